"""Pools of EEG: sets and runs that don't go together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import rows

from ngd_timm.core.recipe import load_recipe
from ngd_timm.core.teacher_recipe import TeacherRecipe
from ngd_timm.eeg.signal.bandpower import save_bandpower
from ngd_timm.eeg.simulate.power import simulate_bandpower
from ngd_timm.eeg.teacher.fit import fit_teacher

QUICK = [
    *("data.name=bandpower", "data.folds=3", "teacher.backbone=test_resnet", "optim.epochs=1", "optim.batch_size=8"),
    *("optim.samples_per_trial=1", "scores.bootstrap=5", "scores.permutations=5"),
]


def fit(root: Path, out: Path, *changes: str) -> Path:
    recipe = load_recipe(TeacherRecipe, "teacher_gameemo", [*QUICK, f"data.root={root}", *changes])
    return fit_teacher(recipe, out)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of the same subjects under two seeds, of a pool that holds them, and of another width."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("a", 0), ("b", 1)):
        save_bandpower(folder / f"{name}.npz", simulate_bandpower(4, 6, 2, seed=seed))
    fit(folder / "a.npz", folder / "a", "teacher.embedding_dim=8")
    fit(folder / "a.npz", folder / "again", "teacher.embedding_dim=8", "seed=1")
    fit(folder / "b.npz", folder / "wide", "teacher.embedding_dim=16")
    pool = f"data.also=[{{name: bandpower, root: {folder}/b.npz}}]"
    fit(folder / "a.npz", folder / "pool", "teacher.embedding_dim=8", pool)
    return folder


@rows(
    "names, message",
    {
        "the same run twice": ("a wide a", "a is named twice; a pooled grid takes each run once"),
        "the same run by another path": ("a a/../a", "is named twice; a pooled grid takes each run once"),
        "embeddings of two widths": ("a wide", "embeddings of 8 values"),
        "two teachers of the same subjects": ("a again", "its subjects would count twice"),
        "a teacher of a set beside one of a pool that holds it": ("a pool", "its subjects would count twice"),
        "a folder that is no run": ("a student", "student is not a teacher run"),
    },
)
def test_runs_that_make_no_pooled_grid(
    names: str, message: str, runs: Path, refused: Callable[[str, str], None], tmp_path: Path
) -> None:
    for name in ("a", "again", "wide", "pool"):
        (tmp_path / name).symlink_to(runs / name)
    refused(f"prototypes build {names} --out grid.safetensors", message)


@rows(
    "settings, message",
    {
        "the same set twice": ("{root: a.npz}", "is in the pool twice"),
        "other bands": ("{root: bands.npz}", "name what all have: data.bands=[theta, alpha]"),
        "no band in common": ("{root: strange.npz}", "they have none in common"),
        "no electrode in common": ("{root: elsewhere.npz}", "the sets have no electrode in common"),
        "a set that nobody rated": ("{root: unrated.npz}", "recordings without ratings go to data.support"),
        "simulated and recorded EEG": ("{root: recorded.npz}", "a pool of simulated and recorded EEG"),
        "subjects with numbers of a million": ("{root: large.npz}", "have numbers from 0 to 999999"),
        "a set without a root": ("{}", "data.also: bandpower has no root"),
        "a missing file": ("{root: absent.npz}", "no band-power file absent.npz"),
    },
)
def test_sets_that_make_no_pool(
    settings: str, message: str, refused: Callable[[str, str], None], tmp_path: Path
) -> None:
    data = simulate_bandpower(4, 4, 2)
    other: dict[str, Any] = {
        "a": data,
        "bands": data.pick(bands=("theta", "alpha")),
        "strange": replace(data, bands=("w", "x", "y", "z")),
        "elsewhere": replace(data, channels=tuple(f"E{n}" for n in range(14))),
        "unrated": replace(data, valence_arousal=np.full_like(data.valence_arousal, np.nan)),
        "recorded": replace(data, simulated=False, power=data.power + 1),
        "large": replace(data, subject=data.subject + 1_000_000),
    }
    for name, power in other.items():
        save_bandpower(tmp_path / f"{name}.npz", power)
    also = "[{name: bandpower" + (", " + settings.strip("{}") if settings != "{}" else "") + "}]"
    refused(f"teacher fit teacher_gameemo {' '.join(QUICK)} data.root=a.npz 'data.also={also}' out=run", message)


@rows(
    "change, message",
    {
        "interpolation with one set": ("data.montage=interpolate", "is about several sets"),
        "an unknown key of a further set": (
            "'data.also=[{name: bandpower, rot: b.npz}]'",
            "did you mean 'data.also.root'? Allowed here: name, root",
        ),
        "another way to a common montage": ("data.montage=union", "'intersection' or 'interpolate'"),
        "a window length for a file of band power": ("data.window_s=2", "data.window_s is about signals"),
    },
)
def test_keys_that_fit_no_such_set(
    change: str, message: str, refused: Callable[[str, str], None], tmp_path: Path
) -> None:
    save_bandpower(tmp_path / "a.npz", simulate_bandpower(4, 4, 2))
    refused(f"teacher fit teacher_gameemo {' '.join(QUICK)} data.root=a.npz {change} out=run", message)


@rows(
    "text, message",
    {
        "no ratings": (None, "GAMEEMO's ratings are scanned forms"),
        "a column that is missing": ("subject,game,valence\n1,1,5\n", "lacks the column arousal"),
        "a rating of 10": ("subject,game,valence,arousal\n1,1,10,5\n", "ratings.csv, row 2"),
        "a rating that is no number": ("subject,game,valence,arousal\n1,1,high,5\n", "ratings.csv, row 2"),
        "decimal commas": ("subject,game,valence,arousal\n1,1,7,5,3,2\n", "row 2: must have 4 cells"),
        "two ratings of a game": ("subject,game,valence,arousal\n1,1,4,5\n1,1,5,5\n", "has another rating in an"),
        "a rating of a game that nobody played": (
            "subject,game,valence,arousal\n9,1,4,5\n",
            "no recording of subject 9",
        ),
    },
)
def test_ratings_of_gameemo(
    text: str | None, message: str, refused: Callable[[str, str], None], tmp_path: Path
) -> None:
    folder = tmp_path / "G" / "(S01)" / "Preprocessed EEG Data" / ".csv format"
    folder.mkdir(parents=True)
    (folder / "S01G1AllChannels.csv").write_text("AF3,\n1,\n")
    if text is not None:
        (tmp_path / "G" / "ratings.csv").write_text(text)
    refused("teacher fit teacher_gameemo data.root=G out=run", message)
