"""Grids of tables and of distances: a value that doesn't fit is named by its row and column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import rows, write
from safetensors.torch import save_file

from ngd_timm.core.errors import InputError
from ngd_timm.grid.prototypes import PrototypeGrid, _metadata_sha256

HEAD = "valence,arousal,f1,f2\n"


@rows(
    "table, message",
    {
        "no arousal": ("valence,f1\n0,1\n", "lacks arousal; a table of embeddings has"),
        "no features": ("valence,arousal,subject\n0,0,1\n", "lacks a feature"),
        "no rows": (HEAD, "lacks rows"),
        "an empty file": ("", "lacks valence, arousal, a feature"),
        "a column twice": ("valence,arousal,f1,f1\n0,0,1,2\n", "has the column f1 twice"),
        "a row cut short": (f"{HEAD}0,0,1,2\n0,0,1\n", "row 3: must have 4 cells"),
        "a word for a number": (f"{HEAD}0,0,1,high\n", "row 2: f2 must be a finite number, got 'high'"),
        "a feature of NaN": (f"{HEAD}0,0,1,nan\n", "row 2: f2 must be a finite number"),
        "a subject without a name": ("valence,arousal,subject,f1\n0,0, p1,1\n1,0, ,1\n", "row 3: subject is empty"),
        "ratings from 1 to 9": (f"{HEAD}0,0,1,2\n7,3,1,2\n", "row 3: valence and arousal must lie in [-1, 1]"),
        "a device": (Path("/dev/zero"), "can't be read (not a regular file)"),
        "a name without end": (f"valence,arousal,{'x' * 5000},{'x' * 5000}\n0,0,1,1\n", "xxx … xxx"),
        "bytes that are no text": (b"\xff\xfe\x00", "not readable as a UTF-8 table"),
    },
)
def test_a_table_that_is_no_table_of_embeddings(table: Any, message: str, refused: Any, tmp_path: Path) -> None:
    write(tmp_path, {"mine.csv": table})
    refused("prototypes build mine.csv --out grid.safetensors", message)


def test_a_table_that_is_missing_and_a_table_beside_a_run_are_refused(refused: Any) -> None:
    refused(
        "prototypes build absent.csv --out grid.safetensors", "absent.csv: can't be read (No such file or directory)"
    )
    refused("prototypes build absent.csv run --out grid.safetensors", "is a table of embeddings; build its grid alone")


@rows(
    "notes, message",
    {
        "subjects of another grid": ({"subjects_per_cell": "3,3"}, "'subjects_per_cell' has 2 numbers for 25 cells"),
        "subjects that are no numbers": ({"subjects_per_cell": "many"}, "metadata 'subjects_per_cell': String"),
        "scores that are no JSON": ({"scores": "good"}, "metadata 'scores': Invalid JSON"),
        "scores that are a list": ({"scores": "[]"}, "metadata 'scores': Input should be a valid dictionary"),
        "an unknown source": ({"source": "eeg"}, "metadata 'source': Input should be 'table' or 'distances'"),
        "a p that is no number": ({"mantel_p": "small"}, "metadata 'mantel_p': String should match"),
    },
)
def test_metadata_that_the_format_does_not_allow(notes: Any, message: str, refused: Any, tmp_path: Path) -> None:
    grid = PrototypeGrid.random(30)
    notes = {"format_version": "1", "sha256": grid.sha256, **notes}
    notes["metadata_sha256"] = _metadata_sha256(notes)
    tensors = {"prototypes": grid.prototypes, "counts": grid.counts, "centers": grid.centers}
    save_file(tensors, tmp_path / "grid.safetensors", metadata=notes)
    refused("prototypes validate grid.safetensors", message)


@rows(
    "distances, message",
    {
        "not square": (np.zeros((2, 3)), "finite square matrix"),
        "not symmetric": (np.array([[0, 1], [2, 0]]), "symmetric"),
        "similarities": (np.eye(2), "take 1 - s"),
        "nothing apart": (np.zeros((2, 2)), "not all 0"),
    },
)
def test_a_matrix_that_is_not_of_distances(distances: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PrototypeGrid.from_distances(distances, labels=("anger", "happiness"))


def test_distances_without_places_on_the_plane_are_refused() -> None:
    with pytest.raises(InputError, match="and not both"):
        PrototypeGrid.from_distances(1 - np.eye(2))
