"""RAF-DB's basic emotions: the distribution with its list of labels, and the Kaggle export in folders 1 to 7."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import require_regular, subfolders
from ngd_timm.core.images import image_files
from ngd_timm.data.labels import RAFDB_IDS, split_of
from ngd_timm.data.layouts.csv_file import read_csv
from ngd_timm.data.layouts.folders import split_folders_or_root
from ngd_timm.data.layouts.options import Source
from ngd_timm.data.layouts.rows import Piece, Rows, labels_of_ids, pieces_by_split, require_files, table_of_files

_LISTS = ("list_patition_label.txt", "list_partition_label.txt")
# Where the images are, and what is added to the name in the list; faces that are cut out and aligned come first.
_IMAGES = (("Image/aligned", "_aligned"), ("aligned", "_aligned"), ("Image/original", ""), ("original", ""))


def find_rafdb_list(source: Source) -> list[Piece] | None:
    """`EmoLabel/list_patition_label.txt` with `Image/aligned` (else `Image/original`).

    A line is `train_00001.jpg 5`; the number is a class by `labels.RAFDB_IDS`, the name's beginning the split.
    """
    root = source.root
    folders = [root / "EmoLabel", root, root / "basic/EmoLabel"]
    places = [root] if root.is_file() else [folder / name for folder in folders for name in _LISTS]
    path = next((p for p in places if p.name in _LISTS and p.is_file()), None)
    if path is None:
        return None
    base = path.parent.parent if path.parent.name == "EmoLabel" else path.parent
    found = next(((base / folder, added) for folder, added in _IMAGES if (base / folder).is_dir()), None)
    if found is None:
        raise InputError(
            f"{path} has no images near it; expected {base / 'Image/aligned'} or {base / 'Image/original'}"
        )
    folder, added = found
    names, ids = _read_list(path)
    splits = [split_of(name.split("_")[0]) for name in names]
    if None in splits:
        row = splits.index(None)
        raise InputError(f"{path} row {row}: '{names[row]}' begins with neither train_ nor test_")
    label = labels_of_ids(ids, RAFDB_IDS, path.name, "label")
    paths = [folder / f"{Path(name).stem}{added}{Path(name).suffix}" for name in names]
    read = partial(_read, paths, label, root if root.is_dir() else base, path)
    return pieces_by_split(f"RAF-DB list, images of {folder.name}", path, splits, read)


def _read(all_paths: list[Path], label: np.ndarray, root: Path, listed: Path, rows: np.ndarray) -> Rows:
    paths = [all_paths[i] for i in rows]
    require_files(paths, str(listed), f"unpack the images into {paths[0].parent}")
    return Rows(table_of_files(paths, root), None, tuple(RAFDB_IDS.values()), label[rows])


def _read_list(path: Path) -> tuple[list[str], list[int]]:
    require_regular(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text; copy it again") from None
    names, ids = [], []
    for row, line in enumerate(lines):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not words[1].isdecimal() or len(words[1]) > 9:
            raise InputError(f"{path} row {row}: '{line[:60]}' is not a file name and a number, as 'train_00001.jpg 5'")
        names.append(words[0])
        ids.append(int(words[1]))
    if not names:
        raise InputError(f"{path} is empty")
    return names, ids


def find_rafdb_kaggle(source: Source) -> list[Piece] | None:
    """`DATASET/train/1` to `7` and `DATASET/test/…`; a `train_labels.csv` (`image,label`) must agree with them."""
    root = source.root
    base = root / "DATASET" if (root / "DATASET").is_dir() else root
    return [
        Piece("RAF-DB folders 1 to 7", path, split, path.name, partial(_read_numbered, path, root, base))
        for path, split in split_folders_or_root(base)
        if any(folder.name.isdecimal() for folder in subfolders(path))
    ] or None


def _read_numbered(path: Path, root: Path, base: Path) -> Rows:
    paths: list[Path] = []
    ids: list[int] = []
    for folder in subfolders(path):
        if not (folder.name.isdecimal() and int(folder.name) in RAFDB_IDS):
            known = ", ".join(f"{n} {c}" for n, c in RAFDB_IDS.items())
            raise InputError(f"{path}: folder '{folder.name}' is none of RAF-DB's ({known})")
        found = image_files(folder)
        paths += found
        ids += [int(folder.name)] * len(found)
    for table in (p / f"{path.name}_labels.csv" for p in (base.parent, base)):
        if table.is_file():
            _require_same_labels(table, dict(zip([p.name for p in paths], ids, strict=True)))
            break
    label = labels_of_ids(ids, RAFDB_IDS, path.name, "folder")
    return Rows(table_of_files(paths, root), None, tuple(RAFDB_IDS.values()), label)


def _require_same_labels(path: Path, folders: Mapping[str, int]) -> None:
    table = read_csv(path, required=("image", "label"))
    listed = dict(zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True))
    if set(listed) != set(folders):
        raise InputError(f"{path} lists {len(listed)} images, the folders hold {len(folders)}; unpack both whole")
    for name, label in listed.items():
        if label != str(folders[name]):
            raise InputError(
                f"{path} gives {name} the label {label}, but it lies in folder {folders[name]}; unpack again"
            )
