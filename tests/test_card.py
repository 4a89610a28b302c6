"""A grid's card says what the grid's metadata say, weak results included."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from ngd_timm.card import grid_card
from ngd_timm.errors import InputError
from ngd_timm.files import packaged
from ngd_timm.prototypes import PrototypeGrid


def grid(p: float, **notes: str) -> PrototypeGrid:
    rng = np.random.default_rng(0)
    figure = {"value": 0.512, "ci95": [0.41, 0.61], "chance": 0.499, "p": p}
    scores = {"teacher": {"valence": {"bacc": figure, "ccc": figure}}, "logistic_regression": {}}
    metadata = {
        "dataset": "GAMEEMO (Alakus et al. 2020), and so on",
        "subjects": "9",
        "trials": "90",
        "windows": "90",
        "split": "5 folds by subject, seed 0",
        "scores": json.dumps(scores),
        "mantel_r": "0.01",
        "mantel_p": str(p),
        "mantel_r_centered": "0.02",
        "mantel_p_centered": str(p),
        "mantel_permutations": "100",
        **notes,
    }
    va, who = rng.uniform(-1, 1, (90, 2)), np.arange(90) % 9
    return PrototypeGrid.build(rng.standard_normal((90, 6)), va, who, min_subjects=3, metadata=metadata)


def test_the_card_carries_the_licence_the_scores_the_counts_and_the_sha256() -> None:
    made = grid(0.4)
    card = grid_card(made, "mine-v1", "ngd teacher fit mine")
    assert yaml.safe_load(card.split("---")[1])["license"] == "other"
    for words in ("| teacher, valence bACC | 0.512 | 0.410 to 0.610 | 0.499 | 0.4000 |", made.sha256, "101951"):
        assert words in card
    assert "not** from DREAMER" in card
    assert "simulated" not in card.lower()
    assert f"{int(made.counts.max())} (" in card


def test_a_weak_teacher_and_a_grid_without_structure_are_said_plainly() -> None:
    weak, strong = grid_card(grid(0.4), "a-v1", "…"), grid_card(grid(0.001), "a-v1", "…")
    assert "can't be told from chance" in weak
    assert "does not follow the valence/arousal plane" in weak
    assert "can't be told from chance" not in strong
    assert "tells high from low valence" in strong


def test_a_simulated_grid_says_so_on_its_card() -> None:
    card = grid_card(grid(0.4, simulated="true", dataset="simulated band power"), "a-v1", "…")
    assert "**Simulated.**" in card
    assert "DREAMER" not in card


def test_a_control_has_no_card() -> None:
    with pytest.raises(InputError, match="metadata lack dataset"):
        grid_card(PrototypeGrid.random(8), "random", "…")


def test_the_shipped_card_is_what_the_shipped_grid_gives_and_lies_beside_a_licence() -> None:
    folder = packaged("hub") / "gameemo-v1"
    card = (folder / "README.md").read_text(encoding="utf-8")
    command = card.split("Made by:\n\n```\n")[1].split("\n```")[0]
    assert grid_card(PrototypeGrid.default("gameemo-v1"), "gameemo-v1", command) == card
    assert "research" in (folder / "LICENSE").read_text(encoding="utf-8")
