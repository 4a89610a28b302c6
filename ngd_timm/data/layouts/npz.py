"""An NPZ file of pixels and labels, the form in which the authors of arXiv 2509.11916 keep FER+.

Their README names the file and the class map, not the arrays, so these are read: images `X`, `x` or `images`, uint8 of
(N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W); labels `y` or `labels` (N,), names, or numbers with `classes` (C,)
names or a class map; optional `split`, `subject`, `file_name` (N,) and `valence` with `arousal` (N,) in [-1, 1].
Instead, a pair a split: `X_train`, `y_train`, `X_val`, `y_val`, ….
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ngd_timm.core.arrays import read_npz
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import files_with
from ngd_timm.data.class_map import names_of
from ngd_timm.data.labels import NOT_A_CLASS, split_of
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

IMAGES, LABELS = ("X", "x", "images"), ("y", "labels")


def find_npz(source: Source) -> list[Piece] | None:
    """An NPZ file, or every NPZ file in a folder."""
    root = source.root
    if root.is_file():
        files = [root] if root.suffix.lower() == ".npz" else []
    else:
        files = files_with(root, (".npz",))
    return [piece for path in files for piece in _pieces_of_file(path, source)] or None


def _pieces_of_file(path: Path, source: Source) -> list[Piece]:
    arrays = read_npz(path)
    ends = {key.partition("_")[2] for key in arrays if key.partition("_")[0] in (*IMAGES, *LABELS)}
    splits = {end: split for end in ends if (split := split_of(end)) is not None}
    if not splits:
        return _pieces(path, arrays, source, split_of(path.stem), path.name)
    if len(set(splits.values())) < len(splits) or "" in ends:
        raise InputError(f"{path} must have one pair of images and labels a split; it has: {', '.join(arrays)}")
    pieces = []
    for end, split in splits.items():
        for names, what in ((IMAGES, "its images"), *([(LABELS, "its labels")] if source.labelled else [])):
            _one(path, arrays, tuple(f"{name}_{end}" for name in names), what)
        pair = {key.removesuffix(f"_{end}"): array for key, array in arrays.items() if key.endswith(f"_{end}")}
        shared = {"classes": arrays["classes"]} if "classes" in arrays else {}
        pieces += _pieces(path, pair | shared, source, split, f"{path.name} {end}")
    return pieces


def _pieces(path: Path, arrays: Arrays, source: Source, named: str | None, shown: str) -> list[Piece]:
    images = _images(path, arrays)
    n = len(images)
    names, label = _labels(path, arrays, source) if source.labelled else ((), np.full(n, NOT_A_CLASS))
    for key in (*LABELS, "split", "subject", "file_name", "valence", "arousal"):
        if key in arrays and arrays[key].shape != (n,):
            raise InputError(
                f"{path}: '{key}' has shape {arrays[key].shape}, but there are {n} images; expected ({n},)"
            )
    splits = [named] * n
    if "split" in arrays:
        splits = named_splits(path, _texts(path, "split", arrays["split"]))
    return pieces_by_split("NPZ", path, splits, partial(_read, path, shown, arrays, images, names, label))


def _read(
    path: Path,
    shown: str,
    arrays: Arrays,
    images: np.ndarray,
    names: tuple[str, ...],
    label: np.ndarray,
    rows: np.ndarray,
) -> Rows:
    further: dict[str, Any] = {}
    if "subject" in arrays:
        further["subject"] = _texts(path, "subject", arrays["subject"][rows])
    if {"valence", "arousal"} <= set(arrays):
        for c in ("valence", "arousal"):
            if not np.issubdtype(arrays[c].dtype, np.floating):
                raise InputError(f"{path}: '{c}' must hold floats in [-1, 1], got {arrays[c].dtype}")
            further[c] = affect_column(arrays[c][rows].tolist(), c, path.name)
    file_names = _texts(path, "file_name", arrays["file_name"][rows]) if "file_name" in arrays else None
    return Rows(table_of_pixels(images, rows, shown, file_names, **further), None, names, label[rows])


def _texts(path: Path, key: str, values: np.ndarray) -> list[str]:
    """An array as texts; byte strings, as h5py gives them, are UTF-8."""
    if values.dtype.kind != "S":
        return [str(value) for value in values.tolist()]
    try:
        return [value.decode() for value in values.tolist()]
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: '{key}' holds byte strings that are not UTF-8 ({error.reason}); store text"
        ) from None


def _one(path: Path, arrays: Arrays, names: tuple[str, ...], what: str) -> np.ndarray:
    found = [n for n in names if n in arrays]
    if len(found) != 1:
        under = " or ".join(f"'{n}'" for n in names)
        raise InputError(f"{path} must have {what} under {under}, one of them; it has: {', '.join(arrays)}")
    return arrays[found[0]]


def _images(path: Path, arrays: Arrays) -> np.ndarray:
    images = _one(path, arrays, IMAGES, "its images")
    if images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = np.moveaxis(images, 1, 3)
    grey, colour = images.ndim == 3, images.ndim == 4 and images.shape[3] in (1, 3)
    if images.dtype != np.uint8 or not (grey or colour) or 0 in images.shape:
        raise InputError(
            f"{path}: images must be uint8 of shape (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W), got "
            f"{images.dtype} of {images.shape}"
        )
    return images


def _labels(path: Path, arrays: Arrays, source: Source) -> tuple[tuple[str, ...], np.ndarray]:
    labels = _one(path, arrays, LABELS, "its labels")
    if labels.dtype.kind in "US":
        key = next(name for name in LABELS if name in arrays)
        return index_names(_texts(path, key, labels.ravel()))
    if labels.dtype.kind not in "iu":
        raise InputError(f"{path}: labels must be names or whole numbers, got {labels.dtype}")
    if "classes" not in arrays:
        known = source.class_numbers(path, "there is no array 'classes' of names, and the labels are")
        return index_names(names_of(labels.ravel().tolist(), known, f"{path}: label"))
    classes = arrays["classes"]
    if source.options.named or classes.dtype.kind not in "US" or classes.ndim != 1:
        raise InputError(
            f"{path} has 'classes' of its own, {classes.dtype} of {classes.shape}, which must be (C,) names, beside "
            "which no names=… or class_map=… is given"
        )
    class_names = tuple(_texts(path, "classes", classes))
    if labels.size and not (labels.min() >= 0 and labels.max() < len(class_names)):
        raise InputError(
            f"{path}: labels hold {labels.min()} to {labels.max()}, but 'classes' names {len(class_names)}"
        )
    return class_names, labels.astype(np.int64)
