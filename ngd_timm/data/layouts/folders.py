"""Folders of images: class folders, with or without split folders above them, SFEW, and JAFFE's one folder."""

from __future__ import annotations

import logging
import re
from functools import partial
from pathlib import Path

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.data.labels import JAFFE_LETTERS, is_class, split_of
from ngd_timm.data.layouts.options import Source
from ngd_timm.data.layouts.rows import Piece, Rows, image_files, subfolders, table_of_files

log = logging.getLogger("ngd_timm.data")

_JAFFE_NAME = re.compile(rf"[A-Z]{{2}}\.({'|'.join(JAFFE_LETTERS)})\d+\.\d+\.\w+")


def find_folders(source: Source) -> list[Piece]:
    """`root/class/*`, or `root/split/class/*`."""
    root = source.root
    inside = subfolders(root)
    if not inside:
        raise InputError(
            f"{root} holds neither parquet, NPZ or CSV files nor folders; expected one of the layouts of "
            f"{source.dataset} that the README lists, for example class-named folders of images"
        )
    found: list[tuple[Path, str | None]] = [*split_folders(root)]
    for path in inside if found else ():
        if split_of(path.name) is None:
            log.warning("%s: folder '%s' is not named after a split and is left out", root, path.name)
    return [
        Piece("class folders", path, split, path.name, partial(_read_class_folders, path, root))
        for path, split in found or [(root, split_of(root.name))]
    ]


def split_folders(root: Path) -> list[tuple[Path, str]]:
    """The folders of `root` that are named after a split, with it."""
    return [(p, split) for p in subfolders(root) if (split := split_of(p.name))]


def _read_class_folders(path: Path, root: Path) -> Rows:
    """All images below the class folders of `path`."""
    folders = subfolders(path)
    if not folders:
        raise InputError(f"{path} holds no class-named folders")
    images = [image_files(folder, deep=True) for folder in folders]
    label = np.repeat(np.arange(len(folders)), [len(files) for files in images])
    table = table_of_files([file for files in images for file in files], root)
    return Rows(table, None, tuple(p.name for p in folders), label)


def find_sfew(source: Source) -> list[Piece] | None:
    """`Train/Angry`, `Train/Train_Aligned_Faces/Angry`, or `Train_Aligned_Faces/Angry`.

    Where aligned faces and whole frames lie beside each other, the aligned ones are read. The test folder of the
    distribution has no labels and is left out with a warning.
    """
    root = source.root
    found = [(path, split, _class_folders(path)) for path, split in split_folders(root)]
    if not any(folder for *_, folder in found):
        return None
    aligned = {split for path, split, folder in found if folder is not None and _is_aligned(path)}
    pieces = []
    for path, split, folder in found:
        if split in aligned and not _is_aligned(path):
            log.warning("%s: '%s' is left out, the aligned faces beside it are read", root, path.name)
        elif folder is None:
            log.warning("%s: '%s' has no class folders, so no labels, and is left out", root, path.name)
        else:
            shown = folder.relative_to(root).as_posix()
            pieces.append(Piece("SFEW folders", folder, split, shown, partial(_read_class_folders, folder, root)))
    return pieces


def _class_folders(path: Path) -> Path | None:
    """The folder whose folders are classes: `path`, or one in it."""
    inside = subfolders(path)
    if any(is_class("sfew", p.name) for p in inside):
        return path
    deeper = [p for p in inside if any(is_class("sfew", c.name) for c in subfolders(p))]
    return next((p for p in deeper if _is_aligned(p)), deeper[0] if deeper else None)


def _is_aligned(path: Path) -> bool:
    """Train_Aligned_Faces, Val_Aligned_Faces_new."""
    return "aligned" in path.name.lower().split("_")


def find_jaffe(source: Source) -> list[Piece] | None:
    """Images in `root` or `root/jaffe` that are named as JAFFE's."""
    root = source.root
    for folder in (root, root / "jaffe"):
        if folder.is_dir() and any(_JAFFE_NAME.fullmatch(p.name) for p in image_files(folder)):
            return [Piece("JAFFE's file names", folder, None, folder.name, partial(_read_jaffe, folder, root))]
    return None


def _read_jaffe(folder: Path, root: Path) -> Rows:
    paths = image_files(folder)
    found = [_JAFFE_NAME.fullmatch(p.name) for p in paths]
    strange = [p.name for p, m in zip(paths, found, strict=True) if m is None]
    if strange:
        raise InputError(
            f"{folder}: {len(strange)} images aren't named as JAFFE's, person.letters and number.number (first: "
            f"{', '.join(strange[:3])}); remove them, or sort all into class-named folders"
        )
    letters = list(JAFFE_LETTERS)
    label = np.array([letters.index(m.group(1)) for m in found if m], dtype=np.int64)
    return Rows(table_of_files(paths, root), None, tuple(JAFFE_LETTERS.values()), label)
