"""Small disks: a file system that is full or read-only leaves earlier files whole; test_disk_faults.py mounts them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from faults import SCORE, TRAIN, rows, write

from ngd_timm.core.errors import InputError
from ngd_timm.grid.prototypes import PrototypeGrid

NO_SPACE = "can't be written (No space left on device)"
READ_ONLY = "can't be written (Read-only file system)"


@pytest.fixture
def disks(tmp_path: Path) -> Path:
    """Links `full`, `small` and `locked` to the three file systems; the first holds earlier files and no free byte."""
    for name in ("full", "small", "locked"):
        (tmp_path / name).symlink_to(Path(os.environ["NGD_SMALL_DISKS"]) / name)
    full = tmp_path / "full"
    (full / "filler").unlink(missing_ok=True)
    write(full, {"test.json": "earlier", "grid.safetensors": "earlier"})
    with contextlib.suppress(OSError), open(full / "filler", "wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    return full


def assert_untouched(full: Path) -> None:
    assert sorted(path.name for path in full.iterdir()) == ["filler", "grid.safetensors", "test.json"]
    assert (full / "test.json").read_text() == (full / "grid.safetensors").read_text() == "earlier"


@rows(
    "command, message",
    {
        "metrics onto a full disk": (f"{SCORE} --out full/test.json", NO_SPACE),
        "an export onto a full disk": ("export student --out full/student", NO_SPACE),
        "a figure onto a full disk": ("prototypes show --plot full/grid.png", NO_SPACE),
        "metrics onto a read-only disk": (f"{SCORE} --out locked/test.json", READ_ONLY),
        "a run onto a read-only disk": (f"{TRAIN} out=locked/run", READ_ONLY),
    },
)
def test_a_command_that_cannot_write(command: str, message: str, disks: Path, refused: Any) -> None:
    refused(command, message)
    assert_untouched(disks)


def test_a_grid_saved_onto_a_full_disk_leaves_the_earlier_one(disks: Path) -> None:
    with pytest.raises(InputError, match="No space left on device"):
        PrototypeGrid.random(1000, seed=1).save(disks / "grid.safetensors")
    assert_untouched(disks)


@pytest.mark.usefixtures("disks", "refused")
def test_a_disk_that_fills_up_in_training_ends_the_run_with_one_line(ngd: Any, tmp_path: Path) -> None:
    done = ngd(*f"{TRAIN} out=small/run".split())
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert NO_SPACE in done.stderr
    assert not [*(tmp_path / "small").resolve().rglob(".*")]  # no temporary file
