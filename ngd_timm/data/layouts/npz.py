"""An NPZ file of pixels and names, the form in which the authors of arXiv 2509.11916 kept their data.

They published none, so the arrays are named here: `X` or `images` (N, H, W), (N, H, W, 1) or (N, H, W, 3) uint8; `y` or
`labels` (N,) names, or numbers together with `classes` (C,) names; optional `split`, `subject`, `file_name` (N,) and
`valence` with `arousal` (N,) in [-1, 1].
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.data.labels import split_of
from ngd_timm.data.layouts.options import Source
from ngd_timm.data.layouts.rows import (
    Piece,
    Rows,
    affect_column,
    index_names,
    named_splits,
    pieces_by_split,
    table_of_pixels,
)

Arrays = Mapping[str, np.ndarray]

# What numpy raises on a damaged file, or on one of pickled objects.
_DAMAGE = (ValueError, EOFError, OSError, LookupError, MemoryError, AttributeError, TypeError, zlib.error, BadZipFile)


def find_npz(source: Source) -> list[Piece] | None:
    """An NPZ file, or every NPZ file in a folder."""
    root = source.root
    if root.is_file():
        files = [root] if root.suffix.lower() == ".npz" else []
    else:
        files = sorted(p for p in root.glob("*.npz") if not p.name.startswith("."))
    return [piece for path in files for piece in _pieces(path)] or None


def _pieces(path: Path) -> list[Piece]:
    arrays = _load(path)
    images, (names, label) = _images(path, arrays), _labels(path, arrays)
    n = len(images)
    for key in ("y", "labels", "split", "subject", "file_name", "valence", "arousal"):
        if key in arrays and arrays[key].shape != (n,):
            raise InputError(
                f"{path}: '{key}' has shape {arrays[key].shape}, but there are {n} images; expected ({n},)"
            )
    splits = [split_of(path.stem)] * n
    if "split" in arrays:
        splits = named_splits(path, [str(s) for s in arrays["split"]])
    return pieces_by_split("NPZ", path, splits, partial(_read, path, arrays, images, names, label))


def _read(
    path: Path, arrays: Arrays, images: np.ndarray, names: tuple[str, ...], label: np.ndarray, rows: np.ndarray
) -> Rows:
    further: dict[str, Any] = {}
    if "subject" in arrays:
        further["subject"] = [str(s) for s in arrays["subject"][rows]]
    if {"valence", "arousal"} <= set(arrays):
        for c in ("valence", "arousal"):
            if not np.issubdtype(arrays[c].dtype, np.floating):
                raise InputError(f"{path}: '{c}' must hold floats in [-1, 1], got {arrays[c].dtype}")
            further[c] = affect_column(arrays[c][rows].tolist(), c, path.name)
    file_names = [str(name) for name in arrays["file_name"][rows]] if "file_name" in arrays else None
    return Rows(table_of_pixels(images, rows, path.name, file_names, **further), None, names, label[rows])


def _load(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path} can't be read as an NPZ of plain arrays ({reason}); write it again with numpy.savez, without "
            "objects"
        ) from None


def _one(path: Path, arrays: Arrays, names: tuple[str, str], what: str) -> np.ndarray:
    found = [n for n in names if n in arrays]
    if len(found) != 1:
        raise InputError(
            f"{path} must have {what} under '{names[0]}' or '{names[1]}', one of them; it has: {', '.join(arrays)}"
        )
    return arrays[found[0]]


def _images(path: Path, arrays: Arrays) -> np.ndarray:
    images = _one(path, arrays, ("X", "images"), "its images")
    grey, colour = images.ndim == 3, images.ndim == 4 and images.shape[3] in (1, 3)
    if images.dtype != np.uint8 or not (grey or colour) or 0 in images.shape:
        raise InputError(
            f"{path}: images must be uint8 of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3), got {images.dtype} of "
            f"{images.shape}"
        )
    return images


def _labels(path: Path, arrays: Arrays) -> tuple[tuple[str, ...], np.ndarray]:
    labels = _one(path, arrays, ("y", "labels"), "its labels")
    if labels.dtype.kind in "US":
        return index_names(labels.astype(np.str_).ravel().tolist())
    if labels.dtype.kind not in "iu":
        raise InputError(f"{path}: labels must be names or whole numbers, got {labels.dtype}")
    classes = arrays.get("classes")
    if classes is None or classes.dtype.kind not in "US" or classes.ndim != 1:
        raise InputError(
            f"{path} has plain integers as labels and no array 'classes' of names; class numbers mean different things "
            "in different data sets: store names, or 'classes' beside the numbers"
        )
    class_names = tuple(classes.astype(np.str_).tolist())
    if labels.size and not (labels.min() >= 0 and labels.max() < len(class_names)):
        raise InputError(
            f"{path}: labels hold {labels.min()} to {labels.max()}, but 'classes' names {len(class_names)}"
        )
    return class_names, labels.astype(np.int64)
