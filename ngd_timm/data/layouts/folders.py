"""Folders named after classes, with or without folders named after splits above them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.data.labels import split_of
from ngd_timm.data.layouts.options import Source
from ngd_timm.data.layouts.rows import Piece, Rows, image_files, subfolders, table_of_files

__all__ = ["find_folders", "read_class_folders", "split_folders", "warn_left_out"]

log = logging.getLogger("ngd_timm.data")


def find_folders(source: Source) -> list[Piece] | None:
    """`root/class/*`, or `root/split/class/*`; None where `root` is a file.

    Raises:
        InputError: No folder in `root`.
    """
    root = source.root
    if root.is_file():
        return None
    found = split_folders(root)
    if found:
        warn_left_out(root, [path for path, _ in found])
        return [_piece(path, split, root) for path, split in found]
    if not subfolders(root):
        raise InputError(
            f"{root} holds neither parquet, NPZ or CSV files nor folders; expected one of the layouts of "
            f"{source.dataset} that the README lists, for example class-named folders of pictures"
        )
    return [_piece(root, split_of(root.name), root)]


def split_folders(root: Path) -> list[tuple[Path, str]]:
    """The folders of `root` that are named after a split, with it."""
    named = [(p, split_of(p.name)) for p in subfolders(root)]
    return [(p, split) for p, split in named if split]


def warn_left_out(root: Path, taken: Sequence[Path]) -> None:
    """Say which folders of `root` aren't read."""
    for path in subfolders(root):
        if path not in taken:
            log.warning("%s: folder '%s' is not named after a split and is left out", root, path.name)


def _piece(path: Path, split: str | None, root: Path) -> Piece:
    return Piece("class folders", path, split, path.name, partial(read_class_folders, path, root))


def read_class_folders(path: Path, root: Path) -> Rows:
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
    table = table_of_files(paths, root)
    return Rows(table, None, tuple(p.name for p in folders), np.array(label, dtype=np.int64))
