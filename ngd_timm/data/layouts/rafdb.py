"""RAF-DB's basic emotions: the distribution with its list of labels, and the Kaggle export in folders 1 to 7."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.data.labels import RAFDB_IDS, split_of
from ngd_timm.data.layouts.csv_file import header_of, read_csv, require_columns
from ngd_timm.data.layouts.folders import split_folders
from ngd_timm.data.layouts.options import Source
from ngd_timm.data.layouts.rows import (
    Piece,
    Rows,
    image_files,
    labels_of_ids,
    pieces_by_split,
    require_files,
    subfolders,
    table_of_files,
)

__all__ = ["find_rafdb_kaggle", "find_rafdb_list"]

_LISTS = (
    "EmoLabel/list_patition_label.txt",
    "list_patition_label.txt",
    "basic/EmoLabel/list_patition_label.txt",
)
# Where the pictures are, and what is added to the name in the list; faces that are cut out and aligned come first.
_PICTURES = (("Image/aligned", "_aligned"), ("aligned", "_aligned"), ("Image/original", ""), ("original", ""))


def find_rafdb_list(source: Source) -> list[Piece] | None:
    """`EmoLabel/list_patition_label.txt` with `Image/aligned` (else `Image/original`); None where there is no list.

    A line is `train_00001.jpg 5`; the number is a class by `labels.RAFDB_IDS`, the name's beginning the split.

    Raises:
        InputError: A damaged list, or no folder of pictures.
    """
    root = source.root
    if root.is_file():
        path = root if root.name == "list_patition_label.txt" else None
    else:
        path = next((root / p for p in _LISTS if (root / p).is_file()), None)
    if path is None:
        return None
    base = path.parent.parent if path.parent.name == "EmoLabel" else path.parent
    found = next(((base / folder, added) for folder, added in _PICTURES if (base / folder).is_dir()), None)
    if found is None:
        raise InputError(
            f"{path} has no pictures near it; expected {base / 'Image/aligned'} or {base / 'Image/original'}"
        )
    names, ids = _read_list(path)
    splits = [split_of(n.split("_")[0]) for n in names]
    if None in splits:
        row = splits.index(None)
        raise InputError(f"{path} row {row}: '{names[row]}' begins with neither train_ nor test_")
    label = labels_of_ids(ids, RAFDB_IDS, path.name, "label")
    folder, added = found
    paths = [folder / f"{Path(n).stem}{added}{Path(n).suffix}" for n in names]
    kind = f"RAF-DB list, pictures of {folder.name}"
    return pieces_by_split(kind, path, splits, partial(_read, paths, label, root if root.is_dir() else base, path))


def _read(paths: list[Path], label: np.ndarray, root: Path, listed: Path, rows: np.ndarray) -> Rows:
    mine = [paths[i] for i in rows]
    require_files(mine, str(listed), f"unpack the pictures into {mine[0].parent}")
    return Rows(table_of_files(mine, root), None, tuple(RAFDB_IDS.values()), label[rows])


def _read_list(path: Path) -> tuple[list[str], np.ndarray]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text; copy it again") from None
    names, ids = [], []
    for row, line in enumerate(lines):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not words[1].isdecimal():
            raise InputError(f"{path} row {row}: '{line[:60]}' is not a file name and a number, as 'train_00001.jpg 5'")
        names.append(words[0])
        ids.append(int(words[1]))
    if not names:
        raise InputError(f"{path} is empty")
    return names, np.array(ids, dtype=np.int64)


def find_rafdb_kaggle(source: Source) -> list[Piece] | None:
    """`DATASET/train/1` to `7` and `DATASET/test/…`; None where the class folders aren't numbers.

    Where `train_labels.csv` (`image,label`) lies beside, it must say the same as the folders.

    Raises:
        InputError: A folder outside 1 to 7, or a table that contradicts the folders.
    """
    root = source.root
    if root.is_file():
        return None
    base = root / "DATASET" if (root / "DATASET").is_dir() else root
    folders = [(p, s) for p, s in split_folders(base) if any(c.name.isdecimal() for c in subfolders(p))]
    return [
        Piece("RAF-DB folders 1 to 7", p, s, p.name, partial(_read_numbered, p, root, base)) for p, s in folders
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
    table = next((p for p in (base.parent, base) if (p / f"{path.name}_labels.csv").is_file()), None)
    if table is not None:
        _require_same_labels(table / f"{path.name}_labels.csv", dict(zip([p.name for p in paths], ids, strict=True)))
    label = labels_of_ids(np.array(ids, dtype=np.int64), RAFDB_IDS, path.name, "folder")
    return Rows(table_of_files(paths, root), None, tuple(RAFDB_IDS.values()), label)


def _require_same_labels(path: Path, ours: Mapping[str, int]) -> None:
    require_columns(path, header_of(path), ("image", "label"))
    table = read_csv(path)
    theirs = dict(zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True))
    if set(theirs) != set(ours):
        raise InputError(f"{path} lists {len(theirs)} pictures, the folders hold {len(ours)}; unpack both whole")
    for name, label in theirs.items():
        if label != str(ours[name]):
            raise InputError(f"{path} gives {name} the label {label}, but it lies in folder {ours[name]}; unpack again")
