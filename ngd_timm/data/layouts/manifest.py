"""A CSV of one's own: a path and a label a row, and optional columns."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ngd_timm.core.errors import InputError
from ngd_timm.data.class_map import names_of
from ngd_timm.data.labels import NOT_A_CLASS, class_of, is_class, split_of
from ngd_timm.data.layouts.csv_file import csv_headers, first_column, header_of, numbers, read_csv, whole_numbers
from ngd_timm.data.layouts.image_list import PATH_COLUMNS, check_sha256
from ngd_timm.data.layouts.options import Source
from ngd_timm.data.layouts.rows import (
    Piece,
    Rows,
    affect_column,
    index_names,
    missing_files,
    named_splits,
    pieces_by_split,
    table_of_files,
)
from ngd_timm.data.layouts.table import LABEL_COLUMNS

log = logging.getLogger("ngd_timm.data")

ID_COLUMNS = ("label_id", "class_id", "label_idx")
_LABELS = (*LABEL_COLUMNS, *ID_COLUMNS, "class", "target", "y")
_NUMBER = re.compile(r"[+-]?\d+(\.0+)?")  # pandas writes whole numbers beside an empty cell as 3.0
LISTED_AGAIN = "listed again with the same label, of which the first row counts"


def find_manifests(source: Source) -> list[Piece] | None:
    """A CSV with a path column and a label column, or all such in a folder.

    Names of columns may be in capitals. The label is a name; a number needs a class map. Without a column `split` the
    file's name gives the split. An image that a split lists twice is kept once; the same image in two splits is a copy,
    which `drop_duplicates` handles.
    """
    root = source.root
    if root.is_file():
        if root.suffix.lower() != ".csv":
            return None
        names = header_of(root)
        if _columns(names) is None:
            raise InputError(
                f"{root} needs a path column ({', '.join(PATH_COLUMNS)}) and a label column "
                f"({', '.join(_LABELS)}); it has: {', '.join(names)}"
            )
        return _Manifest(root, source).pieces()
    files = csv_headers(root)
    manifests = [p for p, names in files.items() if _columns(names)]
    for path in files if manifests else ():
        if path not in manifests:
            log.warning("%s: %s has no path and label columns and is left out", root, path.name)
    opened = [_Manifest(path, source) for path in manifests]
    _refuse_shared(opened)
    return [piece for manifest in opened for piece in manifest.pieces()] or None


def _refuse_shared(manifests: Sequence[_Manifest]) -> None:
    """Manifests that list an image in the same split, as two versions of one list do, would count it twice."""
    listed_in: dict[tuple[tuple[str, str], str | None], Path] = {}
    for manifest in manifests:
        for image, split in zip(manifest.images, manifest.splits, strict=True):
            before = listed_in.setdefault((image, split), manifest.path)
            if before != manifest.path:
                raise InputError(
                    f"{before} and {manifest.path.name} both list {image[1]} for {split or 'no split'}; give one of "
                    "them as the root, or take the other away"
                )


def _columns(names: Sequence[str]) -> tuple[str, str] | None:
    """The path column and the label column, None where one is missing."""
    names = [name.lower() for name in names]
    path, label = first_column(names, PATH_COLUMNS), first_column(names, _LABELS)
    if label == "y" and "x" in names:  # the corner of a box
        label = None
    return None if path is None or label is None else (path, label)


class _Manifest:
    """One CSV, read once for all its splits."""

    def __init__(self, path: Path, source: Source) -> None:
        check_sha256(path, None)
        self.path, table = path, read_csv(path)
        self.columns: dict[str, list[Any]] = {c.lower(): table[c].to_pylist() for c in table.column_names}
        if len(self.columns) < table.num_columns:
            raise InputError(f"{path} has a column twice but for capitals: {', '.join(table.column_names)}; rename one")
        columns = _columns(table.column_names)
        assert columns is not None
        self.path_column, self.label_column = columns
        self.drop_missing = source.options.missing is not None
        self.columns[self.path_column] = [written.replace("\\", "/") for written in self.columns[self.path_column]]
        self.splits = [split_of(path.stem)] * table.num_rows
        if "split" in self.columns:
            self.splits = named_splits(path, self.columns["split"])
        self.affect = {c: numbers(path, self.columns[c], c) for c in ("valence", "arousal") if c in self.columns}
        self.names, self.label = self._labels(source)
        self.images = self._images()
        self._refuse_other_names(source)
        self.again = self._listed_again(self._meanings(source))

    def pieces(self) -> list[Piece]:
        return pieces_by_split("CSV manifest", self.path, self.splits, self.read)

    def read(self, rows: np.ndarray) -> Rows:
        folder = self.path.parent
        paths = [folder / self.columns[self.path_column][row] for row in rows]
        hint = f"paths are relative to {folder} unless they are absolute; correct them or bring the files"
        missing = missing_files(paths, np.ones(len(rows), dtype=bool), self.drop_missing, str(self.path), hint)
        further: dict[str, Any] = {}
        if "subject" in self.columns:
            further["subject"] = [self.columns["subject"][row] or None for row in rows]
        if "file_name" in self.columns:
            further["file_name"] = [self.columns["file_name"][row] for row in rows]
        if len(self.affect) == 2:
            for c, values in self.affect.items():
                further[c] = affect_column([values[row] for row in rows], c, self.path.name)
        repeated = self.again[rows]
        dropped = {**({LISTED_AGAIN: repeated} if repeated.any() else {}), **missing}
        label = np.where(np.logical_or.reduce([repeated, *missing.values()]), NOT_A_CLASS, self.label[rows])
        return Rows(table_of_files(paths, folder, **further), None, self.names, label, None, dropped)

    def _labels(self, source: Source) -> tuple[tuple[str, ...], np.ndarray]:
        """The names in the label column, and each row's place among them."""
        column, values = self.label_column, self.columns[self.label_column]
        if "" in values:
            raise InputError(
                f"{self.path}: column '{column}' is empty in {values.count('')} rows; label or remove them"
            )
        if values and (column in ID_COLUMNS or all(_NUMBER.fullmatch(v) for v in values)):
            values = [value.partition(".")[0] if _NUMBER.fullmatch(value) else value for value in values]
            ids = whole_numbers(self.path, pa.chunked_array([pa.array(values)]), column).tolist()
            known = source.class_numbers(self.path, f"column '{column}' holds")
            values = names_of(ids, known, f"{self.path}: {column}")
        return index_names(values)

    def _refuse_other_names(self, source: Source) -> None:
        """Where a further label column names classes, they are those of the column that is read."""
        for column in (c for c in _LABELS if c in self.columns and c != self.label_column):
            pairs = zip(self.label.tolist(), self.columns[column], strict=True)
            for (label, other), row in {pair: row for row, pair in enumerate(pairs)}.items():
                name = self.names[label]
                known = is_class(source.dataset, name) and is_class(source.dataset, other)
                if known and class_of(source.dataset, name) != class_of(source.dataset, other):
                    raise InputError(
                        f"{self.path}, line {_lines(self.path, (row,))[0]}: column '{self.label_column}' means {name}, "
                        f"'{column}' {other}; correct the class map, or remove one column"
                    )

    def _images(self) -> list[tuple[str, str]]:
        """Each row's image, by its real folder and its name."""
        folders: dict[str, str] = {}
        images = []
        for written in self.columns[self.path_column]:
            folder, name = os.path.split(os.path.join(self.path.parent, written))
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            images.append((folders[folder], name))
        return images

    def _listed_again(self, meanings: Mapping[str, Callable[[int], object]]) -> np.ndarray:
        """(N,) bool: rows whose image an earlier row of the same split lists; the two must agree about it."""
        first: dict[tuple[str, str], int] = {}
        seen: set[tuple[tuple[str, str], str | None]] = set()
        again = np.zeros(len(self.label), dtype=bool)
        for row, image in enumerate(self.images):
            written = self.columns[self.path_column][row]
            before = first.setdefault(image, row)
            for column, meaning in meanings.items() if before != row else ():
                if meaning(before) != meaning(row):
                    lines = _lines(self.path, (before, row))
                    values = self.columns[column]
                    raise InputError(
                        f"{self.path} lists {written} twice, with {column} '{values[before][:40]}' in line {lines[0]} "
                        f"and '{values[row][:40]}' in line {lines[1]}; keep the row that is right"
                    )
            again[row] = (image, self.splits[row]) in seen
            seen.add((image, self.splits[row]))
        return again

    def _meanings(self, source: Source) -> Mapping[str, Callable[[int], object]]:
        """By column, what a row says of its image."""
        found: dict[str, Callable[[int], object]] = {self.label_column: partial(self._class, source)}
        if "subject" in self.columns:
            found["subject"] = self.columns["subject"].__getitem__
        return found | {c: values.__getitem__ for c, values in self.affect.items()}

    def _class(self, source: Source, row: int) -> str:
        name = self.names[self.label[row]]
        if source.options.unknown is not None and not is_class(source.dataset, name):
            return name
        try:
            return class_of(source.dataset, name)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None


def _lines(path: Path, rows: Sequence[int]) -> list[int]:
    """The lines of the file in which rows of its table end: empty ones are no rows, quoted fields may hold breaks."""
    with open(path, encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle)
        ends = [reader.line_num for fields in reader if fields]
    return [ends[row + 1] for row in rows]
