"""Folders of images: class folders, with or without split folders above them, SFEW, and JAFFE's one folder."""

from __future__ import annotations

import logging
import re
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import files_with, subfolders
from ngd_timm.core.images import image_files
from ngd_timm.data.class_map import names_of
from ngd_timm.data.labels import JAFFE_LETTERS, is_class, split_of
from ngd_timm.data.layouts.options import Source
from ngd_timm.data.layouts.rows import Piece, Rows, table_of_files

log = logging.getLogger("ngd_timm.data")

_JAFFE_NAME = re.compile(rf"[A-Z]{{2}}\.({'|'.join(JAFFE_LETTERS)})\d+\.\d+\.\w+")


def find_folders(source: Source) -> list[Piece]:
    """`root/class/*`, or `root/split/class/*`."""
    root = source.root
    if any((root / name).is_file() for name in ("dataset_dict.json", "state.json")):
        raise InputError(f"{root} was written by save_to_disk, which is not read; write it with to_parquet")
    inside = subfolders(root)
    if not inside:
        files = sorted(p.name for p in root.iterdir() if not p.name.startswith("."))
        raise InputError(
            f"{root} holds neither parquet, NPZ or CSV files that are read as {source.dataset}, nor folders (it has: "
            f"{', '.join(files[:5]) or 'nothing'}); expected one of the layouts in docs/data.md, for example "
            "class-named folders of images"
        )
    found: list[tuple[Path, str | None]] = [*split_folders(root)]
    for path in inside if found else ():
        if split_of(path.name) is None:
            log.warning("%s: folder '%s' is not named after a split and is left out", root, path.name)
    for split, several in groupby(sorted(found, key=itemgetter(1)), key=itemgetter(1)):
        if len(names := [path.name for path, _ in several]) > 1:
            log.warning("%s: %s are all read as '%s'", root, ", ".join(names), split)
    for path in (file for folder in (root, *(path for path, _ in found)) for file in files_with(folder, (".csv",))):
        log.warning("%s lies beside class folders and is not read; to take its labels, give it as the root", path)
    return [
        Piece("class folders", path, split, path.name, partial(_read_class_folders, path, source))
        for path, split in found or [(root, split_of(root.name))]
    ]


def split_folders(root: Path) -> list[tuple[Path, str]]:
    """The folders of `root` that are named after a split, with it."""
    return [(p, split) for p in subfolders(root) if (split := split_of(p.name))]


def split_folders_or_root(root: Path) -> list[tuple[Path, str]]:
    """The same, else `root` itself where it is named after a split."""
    own = split_of(root.name)
    return split_folders(root) or ([] if own is None else [(root, own)])


def _read_class_folders(path: Path, source: Source) -> Rows:
    """All images below the class folders of `path`."""
    folders = subfolders(path)
    if not folders:
        raise InputError(f"{path} holds no class-named folders")
    names = [folder.name for folder in folders]
    if source.options.named:
        if not all(name.isdecimal() for name in names):
            raise InputError(f"{path} has class folders with names, which take no names and no class_map; leave it out")
        names = names_of(map(int, names), source.class_numbers(path, "its folders are"), f"{path}: folder")
    images = [image_files(folder, deep=True) for folder in folders]
    for folder, files in zip(folders, images, strict=True):
        if not files:
            log.warning("%s holds no image", folder)
    label = np.repeat(np.arange(len(folders)), [len(files) for files in images])
    table = table_of_files([file for files in images for file in files], source.root)
    return Rows(table, None, tuple(names), label)


def find_sfew(source: Source) -> list[Piece] | None:
    """`Train/Angry`, `Train/Train_Aligned_Faces/Angry`, or `Train_Aligned_Faces/Angry`.

    Where aligned faces and whole frames lie beside each other, the aligned ones are read. The test folder of the
    distribution has no labels and is left out with a warning.
    """
    root = source.root
    found: dict[str, list[Path]] = {}
    for path, split in split_folders(root):
        places = _class_folders(path)
        if not places:
            log.warning("%s: '%s' has no class folders, so no labels, and is left out", root, path.name)
        found.setdefault(split, []).extend(places)
    pieces = []
    for split, places in found.items():
        aligned = [path for path in places if _is_aligned(path.relative_to(root))]
        if not places:
            continue
        folder, *others = aligned or places
        if others:
            raise InputError(f"{root}: {folder} and {others[0]} are both faces of '{split}'; remove one")
        for path in places:
            if path != folder:
                shown = path.relative_to(root).as_posix()
                log.warning("%s: '%s' is left out, the aligned faces beside it are read", root, shown)
        shown = folder.relative_to(root).as_posix()
        pieces.append(Piece("SFEW folders", folder, split, shown, partial(_read_class_folders, folder, source)))
    if len({_is_aligned(piece.path.relative_to(root)) for piece in pieces}) > 1:
        log.warning("%s: aligned faces in one split, whole frames in another; scores don't compare", root)
    return pieces or None


def _class_folders(path: Path, depth: int = 2) -> list[Path]:
    """The folders whose folders are classes: `path`, and those in it."""
    inside = subfolders(path)
    own = [path] if any(is_class("sfew", p.name) for p in inside) else []
    deeper = (_class_folders(p, depth - 1) for p in inside if depth and not is_class("sfew", p.name))
    return [*own, *(place for places in deeper for place in places)]


def _is_aligned(path: Path) -> bool:
    """Whether Train_Aligned_Faces, Val_Aligned_Faces_new or the like is in a path."""
    return any("aligned" in part.lower().split("_") for part in path.parts)


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
