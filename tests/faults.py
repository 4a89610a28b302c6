"""What the fault tests share, and the page that lists them: python tests/faults.py > docs/faults.md"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import os
import runpy
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

TRAIN = (
    "train b0_ce data.name=schematic data.root=faces student.backbone=test_resnet student.image_size=32 "
    "optim.epochs=1 optim.batch_size=16 data.workers=0"
)
SCORE = "evaluate student --data schematic=faces:test"
SIDE = 24
RAMP = np.linspace(0, 255, SIDE * SIDE).reshape(SIDE, SIDE)
FOLDER = None

INTRODUCTION = """\
# What can go wrong

Every line is a test. What is quoted is said in the one line on standard error with which the command refuses its
input; it ends with code 2, and nothing is written or lost. What is not quoted is handled as its line says.
Not listed: runs that are killed at any moment (`tests/test_resume.py`), every flipped bit of a grid
(`tests/test_prototypes.py`), images deleted while they are used (`tests/data/`), extremes of half precision
(`tests/test_properties.py`), and files of EEG (`tests/eeg/`).
Written by `python tests/faults.py > docs/faults.md`; a test says that it is up to date.
"""


def encoded(image: np.ndarray | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """An image, or grey values from 0 to 255, as the bytes of a file."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image.round().astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def write(folder: Path, files: Mapping[str, bytes | str | Path | None]) -> None:
    """Write bytes and texts below a folder; a path becomes a symbolic link to it, FOLDER an empty folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is FOLDER:
            path.mkdir()
        elif isinstance(content, Path):
            path.symlink_to(content)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder below a folder, a file with its hash where it may be read; links are not followed."""
    found = {}
    for path in folder.rglob("*"):
        readable = path.is_file() and os.access(path, os.R_OK)
        found[ascii(str(path))] = hashlib.sha256(path.read_bytes()).hexdigest() if readable else ""
    return found


@contextlib.contextmanager
def modes_bind_root() -> Iterator[None]:
    """Take CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH from this thread, so that file modes count for root too."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    effective, sets[0] = sets[0], sets[0] & ~0b110
    if libc.capset(header, sets):
        pytest.skip("modes don't bind root, and its capabilities can't be dropped here")
    try:
        yield
    finally:
        sets[0] = effective
        libc.capset(header, sets)


def rows(names: str, table: Mapping[str, tuple[Any, ...]]) -> pytest.MarkDecorator:
    """Run a test once a row of a table: a row's name in words, then the values of the test's arguments."""
    return pytest.mark.parametrize(
        names.split(", "), [pytest.param(*values, id=name) for name, values in table.items()]
    )


def page() -> str:
    """The list of faults, from the names of the tests and the rows of their tables."""
    here = Path(__file__).parent
    text = INTRODUCTION
    for path in sorted([*here.rglob("test_*_faults.py"), here / "small_disks.py"]):
        module = runpy.run_path(str(path))
        title = module["__doc__"].partition(":")[0]
        text += f"\n## {title}\n\n`{path.relative_to(here.parent).as_posix()}`\n\n"
        for name, test in module.items():
            if name.startswith("test_"):
                text += f"- {name.removeprefix('test_').replace('_', ' ')}\n"
                text += "".join(f"    - {line}\n" for mark in getattr(test, "pytestmark", []) for line in lines(mark))
    return text


def lines(mark: pytest.Mark) -> Iterator[str]:
    for row in mark.args[1] if mark.name == "parametrize" else []:
        values = dict(zip(mark.args[0], row.values, strict=True))
        yield f"{row.id}: “…{values['message']}…”" if "message" in values else row.id


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write(page())
