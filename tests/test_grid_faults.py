"""Grids: a file that is not what was saved is refused by name."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faults import FOLDER, rows, write
from safetensors.torch import save, save_file

from ngd_timm.grid.card import grid_card, grid_licence
from ngd_timm.grid.prototypes import PrototypeGrid, _metadata_sha256

GRID = PrototypeGrid.random(30)
TENSORS = {"prototypes": GRID.prototypes, "counts": GRID.counts, "centers": GRID.centers}
NAN, INF = float("nan"), float("inf")


def raw(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


BEYOND_BOUNDS = {"prototypes": {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 8]}}


@rows(
    "content, message",
    {
        "a folder": (FOLDER, "no grid file"),
        "a link to itself": (Path("grid.safetensors"), "no grid file"),
        "zero bytes": (b"", "not a readable safetensors file"),
        "a file cut short": (save(TENSORS)[:2000], "not a readable safetensors file"),
        "a header of 2^60 bytes": (struct.pack("<Q", 1 << 60) + b"{}", "not a readable safetensors"),
        "a header that is no JSON": (raw(b"{{{{"), "not a readable safetensors file"),
        "a tensor of 2^60 numbers": (raw(BEYOND_BOUNDS, bytes(8)), "not a readable safetensors file"),
        "other tensors": (save({"weight": torch.zeros(3)}), "not a prototype grid"),
        "a tensor too many": (save({**TENSORS, "extra": torch.zeros(3)}), "not a prototype grid"),
        "a tensor too few": (save({"prototypes": GRID.prototypes}), "not a prototype grid"),
        "another format": (save(TENSORS, {"format_version": "99"}), "format version '99', this pack"),
    },
)
def test_a_file_that_is_no_grid(content: Any, message: str, refused: Any, tmp_path: Path) -> None:
    write(tmp_path, {"grid.safetensors": content})
    refused("prototypes show grid.safetensors", message)


@rows(
    "changed, message",
    {
        "24 prototypes": ({"prototypes": GRID.prototypes[:-1]}, "must have shape"),
        "a scalar": ({"prototypes": GRID.prototypes[0, 0]}, "a grid has 2 to 64 cells"),
        "prototypes of width 0": ({"prototypes": GRID.prototypes[:, :0]}, "must have shape"),
        "prototypes of float64": ({"prototypes": GRID.prototypes.double()}, "must be torch.float32"),
        "NaN": ({"prototypes": GRID.prototypes * NAN}, "not all finite"),
        "infinity": ({"prototypes": GRID.prototypes * INF}, "not all finite"),
        "prototypes too long": ({"prototypes": GRID.prototypes * 1.01}, "has length 1.01, expected 1"),
        "negative counts": ({"counts": GRID.counts - 1}, "counts must not be negative"),
        "24 counts": ({"counts": GRID.counts[:-1]}, "must have shapes (25,)"),
        "centres moved by 0.1": ({"centers": GRID.centers + 0.1}, "centers are not those"),
        "rows moved": ({"prototypes": GRID.prototypes.roll(1, 0)}, "tensors do not match their sha256"),
        "the hash of another grid": ({"sha256": "0" * 64}, "tensors do not match their sha256"),
        "metadata changed": ({"metadata_sha256": "0" * 64}, "metadata do not match their sha256"),
    },
)
def test_a_grid_that_was_changed(changed: dict[str, Any], message: str, refused: Any, tmp_path: Path) -> None:
    notes = {"format_version": "1", "sha256": GRID.sha256, **GRID.metadata}
    notes |= {key: value for key, value in changed.items() if key == "sha256"}
    notes["metadata_sha256"] = changed.get("metadata_sha256", _metadata_sha256(notes))
    tensors = {name: changed.get(name, tensor).contiguous() for name, tensor in TENSORS.items()}
    save_file(tensors, tmp_path / "grid.safetensors", metadata=notes)
    refused("prototypes show grid.safetensors", message)


TESTS = {"5": {"mantel": {"r": 0.2, "p": 0.1}, "mantel_centered": {"r": 0.2, "p": 0.1}}}


@rows(
    "key, text, message",
    {
        "subjects that are TeX": ("subjects_per_cell", r"$\frac$", "should match pattern"),
        "subjects that are letters": ("subjects_per_cell", "a,b", "should match pattern"),
        "a p that is a letter": ("mantel_p", "x", "should match pattern"),
        "scores cut short": ("scores", "{", "Invalid JSON"),
        "scores without a teacher": ("scores", '{"ridge": {}}', "metadata 'scores': Field required at teacher"),
        "tests without the agreement of halves": ("grids", json.dumps(TESTS), "Field required at 5.stability"),
        "a teacher without scores": ("runs", '[{"dataset": "D"}]', "metadata 'runs': Field required at 0.scores"),
        "a set that is a number": ("sets", "[1]", "metadata 'sets': Input should be a valid dictionary"),
    },
)
def test_metadata_that_say_nothing_a_card_can_use(
    key: str, text: str, message: str, refused: Any, tmp_path: Path
) -> None:
    notes = {"format_version": "1", "sha256": GRID.sha256, **GRID.metadata, key: text}
    save_file(TENSORS, tmp_path / "grid.safetensors", {**notes, "metadata_sha256": _metadata_sha256(notes)})
    refused("prototypes show grid.safetensors", message)


def test_a_files_words_are_words_on_its_card_and_in_its_licence() -> None:
    words = "D <script>alert(1)</script>\n# Heading | cell"
    grid = replace(GRID, metadata={**GRID.metadata, "dataset": words, "subjects_per_cell": ",".join("3" * 25)})
    for text in (
        grid_card(replace(grid, metadata={**grid.metadata, "min_subjects": "1"}), "x"),
        grid_licence(grid, "x"),
    ):
        assert "<script" not in text
        assert not any(line.startswith("# Heading") for line in text.splitlines())


@rows(
    "grid, message",
    {
        "a grid that is missing": ("absent/grid.safetensors", "no grid file"),
        "an unknown version": ("gameemo-v0", "did you mean 'gameemo-v"),
        "a grid of 300 letters": ("x" * 300, "File name too long"),
    },
)
def test_no_grid_of_that_name(grid: str, message: str, refused: Any) -> None:
    refused(f"prototypes show {grid}", message)


def test_a_grid_that_may_not_be_read_is_refused(refused: Any, tmp_path: Path) -> None:
    GRID.save(tmp_path / "grid.safetensors")
    (tmp_path / "grid.safetensors").chmod(0)
    refused("prototypes show grid.safetensors", "Permission denied")


def test_a_pickle_by_the_name_of_a_grid_is_refused(refused: Any, tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "grid.safetensors")
    refused("prototypes show grid.safetensors", "not a readable safetensors file")


ROWS = GRID.prototypes.numpy()
ZERO = np.where(np.arange(25)[:, None] == 3, 0, ROWS)


@rows(
    "arrays, options, message",
    {
        "arrays of objects": ({"prototypes": np.array([None, {}])}, "", "without objects"),
        "no prototypes": ({"p": ROWS}, "", "has no 'prototypes'; it has p float32 (25, 30): name the right one with"),
        "an array that is not there": ({"prototypes": ROWS}, "--counts n", "has no 'n'; it has prototypes float32"),
        "no order": ({"prototypes": ROWS}, "", "is 'unknown' in the file and 'unknown' by --order"),
        "an unknown order": ({"prototypes": ROWS}, "--order valence", "must be valence-major (row"),
        "an order of the file's own": ({"prototypes": ROWS, "order": "C"}, "", "'C' in the file"),
        "two orders": ({"prototypes": ROWS, "order": "arousal-major"}, "--order valence-major", "in the file and"),
        "centres that descend": (
            {"prototypes": ROWS, "centers": -GRID.centers.numpy()},
            "--order valence-major",
            "'centers' must be numbers of (25, 2) or (5, 5, 2) that ascend along both axes",
        ),
        "24 rows": (
            {"prototypes": ROWS[1:]},
            "--order valence-major",
            "must be finite floats of (S*S, D) or (S, S, D)",
        ),
        "whole numbers": ({"prototypes": np.eye(9, dtype=int)}, "--order valence-major", "got int64 (9, 9)"),
        "one cell": ({"prototypes": ROWS[:1]}, "--order valence-major", "a grid has 2 to 64 cells"),
        "rows with NaN": ({"prototypes": ROWS * NAN}, "--order valence-major", "must be finite"),
        "an empty cell uncounted": ({"prototypes": ZERO}, "--order valence-major", "has rows of zeros"),
        "24 counts for 25": (
            {"prototypes": ROWS, "counts": np.ones(24)},
            "--order valence-major",
            "must be whole numbers from 0 on, (25,) or (5, 5), got float64 (24,)",
        ),
        "half a count": (
            {"prototypes": ROWS, "counts": np.full(25, 0.5)},
            "--order valence-major",
            "whole numbers from 0",
        ),
    },
)
def test_prototypes_of_others_that_are_no_grid(
    arrays: dict[str, Any], options: str, message: str, refused: Any, tmp_path: Path
) -> None:
    np.savez(tmp_path / "theirs.npz", **arrays)
    refused(f"prototypes import theirs.npz {options} --out grid.safetensors", message)


@rows(
    "content, name, message",
    {
        "an object beside the tensors": ({"a": Path("a")}, "theirs.pt", "it holds a pathlib"),
        "a number that is said to be four gigabytes": (
            {"prototypes": torch.zeros(1).expand(10**9)},
            "theirs.pt",
            "a tensor (1000000000,) that the file does not hold in full",
        ),
        "a list of tensors": ([GRID.prototypes], "theirs.pt", "must be finite floats"),
        "a dict in the place of a tensor": ({"prototypes": {}}, "theirs.pt", "got <U"),
        "a torch file by the name of an NPZ": ({"prototypes": GRID.prototypes}, "theirs.npz", "without objects"),
    },
)
def test_a_torch_file_that_is_no_grid(content: Any, name: str, message: str, refused: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / name)
    refused(f"prototypes import {name} --order valence-major --out grid.safetensors", message)
