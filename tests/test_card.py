"""A grid's card says what the grid's metadata say, weak results too."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import packaged
from ngd_timm.grid.card import grid_card, grid_findings, grid_licence
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.grid.verdict import teacher_verdict


def grid(p: float, **notes: str) -> PrototypeGrid:
    rng = np.random.default_rng(0)
    score = {"value": 0.512, "ci95": [0.41, 0.61], "chance": 0.499, "p": p}
    scores = {"teacher": {"valence": {"bacc": score, "ccc": score}}, "logistic_regression": {}}
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
    prototypes = grid(0.4)
    card = grid_card(prototypes, "mine-v1")
    assert yaml.safe_load(card.split("---")[1])["license"] == "other"
    for words in ("| teacher, valence bACC | 0.512 | 0.410 to 0.610 | 0.499 | 0.4000 |", prototypes.sha256, "101951"):
        assert words in card
    assert "not** from DREAMER" in card
    assert "simulated" not in card.lower()
    assert f"{int(prototypes.counts.max())} (" in card


def test_a_simulated_grid_says_so_on_its_card() -> None:
    card = grid_card(grid(0.4, simulated="true", dataset="simulated band power"), "a-v1")
    assert "**Simulated.**" in card
    assert "DREAMER" not in card


def entry(size: int, p: float) -> dict[str, object]:
    return {
        "filled": size * size,
        "cells": size * size,
        "mean_cosine": 0.9,
        "mantel": {"r": 0.31, "p": p, "permutations": 100},
        "mantel_centered": {"r": 0.21, "p": p, "permutations": 100},
        "stability": {
            "splits": 200,
            "cells": 7.0,
            "cosine": {"value": 0.95, "ci95": [0.9, 0.98]},
            "centered": {"value": 0.33, "ci95": [0.1, 0.5], "chance": 0.02, "p": p},
        },
    }


def full_grid(p: float, number: float = 0.7, **notes: str) -> PrototypeGrid:
    """With all that a new run leaves in a grid's metadata."""
    teacher, by_number = ({"value": v, "ci95": [0.52, 0.75], "chance": 0.5, "p": 0.001} for v in (0.6, number))
    scores = {
        "teacher": {"valence": {"bacc": teacher, "ccc": teacher}},
        "ridge": {"valence": {"bacc": teacher, "ccc": teacher}},
        "logistic_regression": {"valence": {"bacc": {**teacher, "value": 0.55}}},
        "trial_number": {"valence": {"bacc": by_number}},
    }
    extra = {
        "scores": json.dumps(scores),
        "grids": json.dumps({"3": entry(3, 0.001), "5": entry(5, p)}),
        "preprocessing": json.dumps({"filter": "1 to 45 Hz", "trials_dropped": "3 of 90"}),
    }
    return grid(p, **{**extra, **notes})


def test_the_card_of_a_new_run_has_baselines_sizes_and_preprocessing() -> None:
    card = grid_card(full_grid(0.4), "a-v1")
    for words in (
        "| ridge regression, same folds, valence CCC | 0.600 | 0.520 to 0.750 |",
        "| trial number alone, no EEG, valence bACC | 0.700 |",
        "| 3 x 3 | 9 of 9 | 0.95 (0.90 to 0.98) | 0.33 (0.10 to 0.50), chance 0.02, p = 0.0010, Holm 0.0070 |",
        "| filter | 1 to 45 Hz |",
        "| trials dropped | 3 of 90 |",
        "Both halves are embedded by the same teachers",
        "A ridge regression does no worse for valence.",
    ):
        assert words in card


def test_a_grid_that_does_not_pass_the_declared_test_is_said_to_be_no_evidence() -> None:
    weak, strong = grid_card(full_grid(0.4), "a-v1"), grid_card(full_grid(0.01), "a-v1")
    assert "p 0.4000) the grid does not follow the valence/arousal plane" in weak
    assert "halves of the subjects agree no more than chance" in weak
    assert "p is below .05 for Mantel as it is (3 x 3), Mantel centred (3 x 3) and agreement of halves (3 x 3)" in weak
    assert "p is not below .05 for Mantel as it is (this grid and 5 x 5), Mantel centred (5 x 5)" in weak
    assert "p 0.0100) the grid follows the valence/arousal plane" in strong
    assert "no more than chance" not in strong


def test_no_smaller_p_of_another_test_or_size_changes_the_verdict() -> None:
    """The smaller of two p values passes more than one null grid in twenty."""
    prototypes = full_grid(0.001, mantel_p_centered="0.06")
    declared, exploratory = grid_findings(prototypes)
    assert "does not follow" in declared
    assert exploratory.startswith("Exploratory, with Holm's correction for 7 tests: p is below .05 for")
    assert "| exploratory: Mantel r of the grid as it is | 0.01, p = 0.001, Holm 0.0070 |" in grid_card(
        prototypes, "a-v1"
    )
    passed = grid_findings(full_grid(0.4, mantel_p_centered="0.04"))
    assert "the grid follows" in passed[0]


def test_the_declared_test_is_not_corrected_nor_counted_among_the_exploratory_ones() -> None:
    prototypes = full_grid(0.02)
    every_subject = replace(
        prototypes, metadata={**prototypes.metadata, "min_subjects": "1"}
    )  # its tests are those of `grids`
    card = grid_card(every_subject, "a-v1")
    assert "correction for 5 tests" in grid_findings(every_subject)[1]
    assert "Mantel r of the grid as it is | 0.01, p = 0.02, Holm 0.0400 |" in card
    assert "| 0.31, p = 0.0200, Holm 0.0400 | 0.21, p = 0.0200, declared |" in card


def test_a_grid_without_tests_has_no_findings() -> None:
    assert grid_findings(PrototypeGrid.random(8)) == []
    assert grid_findings(PrototypeGrid.default().shuffled()) == []


def test_ratings_that_go_with_the_order_of_trials_are_called_confounded() -> None:
    assert "order of trials is confounded with ratings" in grid_card(full_grid(0.4, number=0.7), "a-v1")
    behind = grid_card(full_grid(0.4, number=0.55), "a-v1")
    assert "confounded" not in behind
    assert "though less well" in behind


@pytest.mark.parametrize(
    ("dataset", "support", "says", "not_says"),
    [
        ("DREAMER (Katsigiannis & Ramzan 2018), 14 channels", "", "without MAHNOB-HCI", "not** from DREAMER"),
        ("DREAMER (K)", "MAHNOB-HCI (Soleymani et al. 2012), 24 people", "the paper's own sources", "without MAHNOB"),
        ("DEAP (Koelstra et al. 2012)", "", "built from DEAP, **not** from DREAMER", "playing games"),
        ("MAHNOB-HCI (Soleymani et al. 2012)", "", "watching film clips", "playing games"),
        ("DREAMER (K) + MAHNOB-HCI (S)", "", "from DREAMER and MAHNOB-HCI, the ratings of both", "not** from DREAMER"),
        ("DREAMER (K) + DEAP (K)", "", "from DREAMER and DEAP, **not** from DREAMER and", "playing games"),
        ("DREAMER (K) + DEAP (K)", "", "watching film clips or watching music videos", "Soleymani"),
        ("our lab's recordings", "", "over a few people; they", "IEEE"),
    ],
)
def test_what_is_said_of_the_source_is_true_for_every_data_set(
    dataset: str, support: str, says: str, not_says: str
) -> None:
    notes = {"support": support} if support else {}
    card = grid_card(full_grid(0.4, dataset=dataset, **notes), "a-v1")
    assert says in card
    assert not_says not in card
    cited = {"DREAMER": "Katsigiannis", "DEAP": "Koelstra", "MAHNOB-HCI": "Soleymani, J. Lichtenauer"}
    for name, author in cited.items():
        if name in f"{dataset} {support}":
            assert author in card.split("## Citation")[1]


def test_a_control_has_no_card() -> None:
    with pytest.raises(InputError, match="metadata lack dataset"):
        grid_card(PrototypeGrid.random(8), "random")


@pytest.mark.parametrize("version", ["gameemo-v1", "gameemo-v2"])
def test_a_packaged_card_is_rendered_from_its_grid_and_lies_beside_a_licence(version: str) -> None:
    folder = packaged("hub") / version
    grid = PrototypeGrid.default(version)
    assert grid_card(grid, version) == (folder / "README.md").read_text(encoding="utf-8")
    licence = (folder / "LICENSE").read_text(encoding="utf-8")
    assert grid_licence(grid, version) == licence
    assert "for research" in licence
    assert version in licence
    assert (folder / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_a_grid_with_a_cell_of_one_subject_is_not_for_publishing() -> None:
    packaged_grid = PrototypeGrid.default()
    subjects = packaged_grid.metadata["subjects_per_cell"].replace("3", "1", 1)
    sparse = replace(
        packaged_grid, metadata={**packaged_grid.metadata, "min_subjects": "1", "subjects_per_cell": subjects}
    )
    assert "Not for publishing" in grid_card(sparse, "mine")
    assert "Not for publishing" not in grid_card(packaged_grid, "mine")


def test_the_card_of_an_older_grid_shows_no_path_either() -> None:
    notes = json.dumps({"source": "x=../anna/private/a.npz, in µV²/Hz"})
    card = grid_card(full_grid(0.4, preprocessing=notes, dataset="ours, /home/anna/b.mat"), "a-v1")
    assert "| source | x=a.npz, in µV²/Hz |" in card
    assert "| dataset | ours, b.mat |" in card
    assert "anna" not in card


def test_the_verdict_says_what_is_known_beyond_the_trials_number() -> None:
    def score(p: float, given: float) -> dict:
        return {"value": 0.6, "ci95": [0.55, 0.7], "chance": 0.5, "p": p, "given_number": {"chance": 0.6, "p": given}}

    teacher = {
        axis: {"bacc": score(0.01, given), "ccc": score(0.01, given)}
        for axis, given in (("valence", 0.84), ("arousal", 0.001))
    }
    verdict = " ".join(teacher_verdict({"teacher": teacher, "logistic_regression": {}}))
    assert "no better than chance for valence (p 0.84): nothing is shown beyond" in verdict
    assert "better than chance for arousal (p 0.0010): more than which stimulus" in verdict
    assert "The interval over people reaches" not in verdict
    teacher["arousal"]["bacc"]["chance"] = 0.56
    assert "The interval over people reaches chance for arousal." in teacher_verdict(
        {"teacher": teacher, "logistic_regression": {}}
    )
