"""Folders named after classes, with or without folders named after splits above them."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ngd_timm.data.labels import SUBJECT_IN_NAME, split_of
from ngd_timm.data.layouts.options import Source
from ngd_timm.data.layouts.rows import Piece, Rows, image_files, subfolders, table_of_files
from ngd_timm.errors import InputError

__all__ = ["find_folders", "read_class_folders", "split_folders", "subjects_of", "warn_left_out"]

log = logging.getLogger("ngd_timm.data")


def find_folders(source: Source) -> list[Piece] | None:
    """`root/class/*`, or `root/split/class/*`; None where `root` is a file.

    Raises:
        InputError: No folder in `root`.
    """
    root, dataset = source.root, source.dataset
    if root.is_file():
        return None
    found = split_folders(root)
    if found:
        warn_left_out(root, [path for path, _ in found])
        return [_piece(path, split, root, dataset) for path, split in found]
    if not subfolders(root):
        raise InputError(
            f"{root} holds neither parquet, NPZ or CSV files nor folders; expected one of the layouts of {dataset} "
            "that the README lists, for example class-named folders of pictures"
        )
    return [_piece(root, split_of(root.name), root, dataset)]


def split_folders(root: Path) -> list[tuple[Path, str]]:
    """The folders of `root` that are named after a split, with it."""
    named = [(p, split_of(p.name)) for p in subfolders(root)]
    return [(p, split) for p, split in named if split]


def warn_left_out(root: Path, taken: Sequence[Path]) -> None:
    """Say which folders of `root` aren't read."""
    for path in subfolders(root):
        if path not in taken:
            log.warning("%s: folder '%s' is not named after a split and is left out", root, path.name)


def _piece(path: Path, split: str | None, root: Path, dataset: str) -> Piece:
    return Piece("class folders", path, split, path.name, partial(read_class_folders, path, root, dataset))


def read_class_folders(path: Path, root: Path, dataset: str) -> Rows:
    """All pictures below the class folders of `path`.

    Raises:
        InputError: No folder there.
    """
    folders = subfolders(path)
    if not folders:
        raise InputError(f"{path} holds no class-named folders")
    paths: list[Path] = []
    label: list[int] = []
    for i, folder in enumerate(folders):
        found = image_files(folder, deep=True)
        paths += found
        label += [i] * len(found)
    table = table_of_files(paths, root, **subjects_of(dataset, [p.name for p in paths]))
    return Rows(table, None, tuple(p.name for p in folders), np.array(label, dtype=np.int64))


def subjects_of(dataset: str, file_names: list[str]) -> dict[str, list[str]]:
    """The column `subject`, from the file names, for sets whose every name says who it is (CK+, JAFFE).

    Example:
        >>> subjects_of("ckplus", ["S010_004_00000019.png", "S111_001_00000014.png"])
        {'subject': ['S010', 'S111']}
        >>> subjects_of("ckplus", ["1.png"])
        {}
    """
    pattern = SUBJECT_IN_NAME.get(dataset)
    if pattern is None or not file_names:
        return {}
    found = [re.match(pattern, name) for name in file_names]
    if not all(found):
        if any(found):
            log.warning("%s: not every file name says who it shows, so there is no column 'subject'", dataset)
        return {}
    return {"subject": [m.group(1) for m in found if m]}
