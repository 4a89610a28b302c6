"""FER+ as Microsoft publishes it: vote counts in `fer2013new.csv`, images from FER2013.

Reference:
    https://github.com/microsoft/FERPlus, `src/generate_training_data.py`. Its README: the label file has FER2013's rows
    in FER2013's order. Rows without an image name (no face) are left out of the export; four names stand twice, and
    there the later image overwrites the earlier, so the later row counts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from ngd_timm.core.errors import InputError
from ngd_timm.core.images import image_files
from ngd_timm.data.labels import VOTE_COLUMNS
from ngd_timm.data.layouts.csv_file import header_of, read_csv, whole_numbers
from ngd_timm.data.layouts.options import Source
from ngd_timm.data.layouts.pixels_csv import FER2013_FILES, PixelFile, is_pixels_csv, usage_splits
from ngd_timm.data.layouts.rows import Piece, Rows, pieces_by_split, require_files, table_of_files, table_of_pixels

log = logging.getLogger("ngd_timm.data")

LABEL_FILE = "fer2013new.csv"
NO_NAME = f"without an image name in {LABEL_FILE}"
NAMED_TWICE = "an image name that stands twice, of which the last row counts"

_FOLDERS: Mapping[str, str] = {"FER2013Train": "train", "FER2013Valid": "valid", "FER2013Test": "test"}
_BELOW = ("", "data", "images", "Images")
_NAME = "Image name"


def find_ferplus_export(source: Source) -> list[Piece] | None:
    """Folders FER2013Train, FER2013Valid, FER2013Test of `ferNNNNNNN.png`.

    Votes come from `fer2013new.csv` at `root` or beside the folders, else from the `label.csv` in each folder, and are
    joined by image name.
    """
    root = source.root
    base = next((root / b for b in _BELOW if any((root / b / f).is_dir() for f in _FOLDERS)), None)
    if base is None:
        return None
    whole = next((p for p in (root / LABEL_FILE, base / LABEL_FILE) if p.is_file()), None)
    return [
        Piece("FER+ export", base / folder, split, folder, partial(_read_export, base / folder, split, root, whole))
        for folder, split in _FOLDERS.items()
        if (base / folder).is_dir()
    ]


def _read_export(folder: Path, split: str, root: Path, whole: Path | None) -> Rows:
    listed = whole or folder / "label.csv"
    if not listed.is_file():
        raise InputError(
            f"{folder} has no label.csv, and there is no {LABEL_FILE} at {root}; put Microsoft's {LABEL_FILE} there"
        )
    table = _folder_labels(listed) if whole is None else _label_file(whole)
    names: list[str] = table[_NAME].to_pylist()
    splits = [split] * len(names) if whole is None else usage_splits(listed, table["Usage"].to_pylist())
    last = {name: row for row, name in enumerate(names) if name and splits[row] == split}
    rows = sorted(last.values())
    paths = [folder / names[row] for row in rows]
    require_files(paths, str(listed), f"export them into {folder} with Microsoft's generate_training_data.py")
    unlisted = [p.name for p in image_files(folder) if p.name not in last]
    if unlisted:
        log.warning(
            "%s: %d images have no row in %s and are left out (first: %s)",
            folder,
            len(unlisted),
            listed.name,
            ", ".join(unlisted[:3]),
        )
    return Rows(table_of_files(paths, root), _votes(table, listed)[rows], None, None)


def _folder_labels(path: Path) -> pa.Table:
    """A folder's label.csv: no header; the name, in older copies a box, and the ten counts."""
    width = len(header_of(path))
    columns = [_NAME, *(["box"] if width == len(VOTE_COLUMNS) + 2 else []), *VOTE_COLUMNS]
    if width != len(columns):
        raise InputError(f"{path} has {width} columns, expected an image name, perhaps a box, and ten vote counts")
    return read_csv(path, columns)


def _label_file(path: Path) -> pa.Table:
    return read_csv(path, required=("Usage", _NAME, *VOTE_COLUMNS))


def _votes(table: pa.Table, path: Path) -> np.ndarray:
    return np.stack([whole_numbers(path, table[c], c) for c in VOTE_COLUMNS], axis=1)


def find_ferplus_two_csv(source: Source) -> list[Piece] | None:
    """`fer2013.csv` and `fer2013new.csv`, joined by row as Microsoft's script does."""
    root = source.root
    places = [root] if root.is_file() else [root / name for name in FER2013_FILES]
    path = next((p for p in places if p.is_file()), root)
    if not path.is_file() or path.suffix.lower() != ".csv" or not is_pixels_csv(path):
        return None
    labels = next((p for p in (path.with_name(LABEL_FILE), root / LABEL_FILE) if p.is_file()), None)
    if labels is None:
        raise InputError(
            f"{path} has FER2013's labels, not FER+'s votes; put Microsoft's {LABEL_FILE} beside it, or name the data "
            "set fer2013"
        )
    file, table = PixelFile(path), _label_file(labels)
    _require_same_rows(file, table, labels)
    read = partial(_read_two, file, table[_NAME].to_pylist(), _votes(table, labels))
    return pieces_by_split("FER+ as two CSV files", path, file.splits, read)


def _require_same_rows(file: PixelFile, table: pa.Table, labels: Path) -> None:
    if len(file) != table.num_rows:
        raise InputError(
            f"{file.path} has {len(file)} rows and {labels.name} {table.num_rows}; they are joined by row, so both "
            "must be the whole original files"
        )
    if file.usage is None:
        raise InputError(f"{file.path} has no column 'Usage'; take the original fer2013.csv")
    for row, (usage, expected) in enumerate(zip(file.usage, table["Usage"].to_pylist(), strict=True)):
        if usage != expected:
            raise InputError(
                f"{file.path} row {row} has Usage {usage}, {labels.name} has {expected}; they are joined by row, so "
                "both must be in the original order"
            )


def _read_two(file: PixelFile, all_names: Sequence[str], votes: np.ndarray, rows: np.ndarray) -> Rows:
    names = [all_names[i] for i in rows]
    last = {name: i for i, name in enumerate(names)}
    unnamed = np.array([not name for name in names])
    earlier = np.array([bool(name) and last[name] != i for i, name in enumerate(names)])
    dropped = {NO_NAME: unnamed, NAMED_TWICE: earlier}
    return Rows(table_of_pixels(file.pixels, rows, file.path.name, names), votes[rows], None, None, None, dropped)
