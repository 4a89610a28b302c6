"""JAFFE: one folder of `KA.AN1.39.tiff`, where the letters say who shows what."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.data.labels import JAFFE_LETTERS
from ngd_timm.data.layouts.options import Source
from ngd_timm.data.layouts.rows import Piece, Rows, image_files, table_of_files

__all__ = ["find_jaffe"]

_NAME = re.compile(rf"[A-Z]{{2}}\.({'|'.join(JAFFE_LETTERS)})\d+\.\d+\.\w+")


def find_jaffe(source: Source) -> list[Piece] | None:
    """Pictures in `root` or `root/jaffe` that are named as JAFFE's; None where there are none."""
    root = source.root
    if root.is_file():
        return None
    for folder in (root, root / "jaffe"):
        if folder.is_dir() and any(_NAME.fullmatch(p.name) for p in image_files(folder)):
            return [Piece("JAFFE's file names", folder, None, folder.name, partial(_read, folder, root))]
    return None


def _read(folder: Path, root: Path) -> Rows:
    paths = image_files(folder)
    found = [_NAME.fullmatch(p.name) for p in paths]
    strange = [p.name for p, m in zip(paths, found, strict=True) if m is None]
    if strange:
        raise InputError(
            f"{folder}: {len(strange)} pictures aren't named as JAFFE's, person.letters and number.number (first: "
            f"{', '.join(strange[:3])}); remove them, or sort all into class-named folders"
        )
    letters = list(JAFFE_LETTERS)
    label = np.array([letters.index(m.group(1)) for m in found if m], dtype=np.int64)
    return Rows(table_of_files(paths, root), None, tuple(JAFFE_LETTERS.values()), label)
