"""SFEW 2.0: Train and Val with class folders, perhaps a folder deeper, whole frames or aligned faces."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from ngd_timm.core.errors import InputError
from ngd_timm.data.labels import class_of
from ngd_timm.data.layouts.folders import read_class_folders, split_folders
from ngd_timm.data.layouts.options import Source
from ngd_timm.data.layouts.rows import Piece, subfolders

__all__ = ["find_sfew"]

log = logging.getLogger("ngd_timm.data")


def find_sfew(source: Source) -> list[Piece] | None:
    """`Train/Angry`, `Train/Train_Aligned_Faces/Angry`, or `Train_Aligned_Faces/Angry`; None where there is none.

    Where aligned faces and whole frames lie beside each other, the aligned ones are read. The test folder of the
    distribution has no labels and is left out, aloud.
    """
    root = source.root
    if root.is_file():
        return None
    found = split_folders(root)
    if not any(_class_folders(path) for path, _ in found):
        return None
    aligned = {split for path, split in found if _is_aligned(path)}
    pieces = []
    for path, split in found:
        if split in aligned and not _is_aligned(path):
            log.warning("%s: '%s' is left out, the aligned faces beside it are read", root, path.name)
            continue
        folder = _class_folders(path)
        if folder is None:
            log.warning("%s: '%s' has no class folders, so no labels, and is left out", root, path.name)
            continue
        shown = folder.relative_to(root).as_posix()
        pieces.append(Piece("SFEW folders", folder, split, shown, partial(read_class_folders, folder, root)))
    return pieces


def _class_folders(path: Path) -> Path | None:
    """The folder whose folders are classes: `path`, or one in it."""
    inside = subfolders(path)
    if any(_is_class(p.name) for p in inside):
        return path
    deeper = [p for p in inside if any(_is_class(c.name) for c in subfolders(p))]
    return next((p for p in deeper if _is_aligned(p)), deeper[0] if deeper else None)


def _is_aligned(path: Path) -> bool:
    """Train_Aligned_Faces, Val_Aligned_Faces_new."""
    return "aligned" in path.name.lower().split("_")


def _is_class(name: str) -> bool:
    try:
        class_of("sfew", name)
    except InputError:
        return False
    return True
