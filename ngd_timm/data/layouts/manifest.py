"""A CSV of one's own: a path and a label a row, and optional columns."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.data.labels import NOT_A_CLASS, class_of, split_of
from ngd_timm.data.layouts.csv_file import csv_headers, first_column, header_of, read_csv
from ngd_timm.data.layouts.image_list import PATH_COLUMNS, check_sha256
from ngd_timm.data.layouts.options import Source
from ngd_timm.data.layouts.parquet import LABEL_COLUMNS
from ngd_timm.data.layouts.rows import (
    Piece,
    Rows,
    affect_column,
    index_names,
    named_splits,
    pieces_by_split,
    require_files,
    table_of_files,
)

__all__ = ["ID_COLUMNS", "LISTED_AGAIN", "find_manifests"]

log = logging.getLogger("ngd_timm.data")

ID_COLUMNS = ("label_id", "class_id", "label_idx")
LISTED_AGAIN = "listed again with the same label, of which the first row counts"


def find_manifests(source: Source) -> list[Piece] | None:
    """A CSV with a path column and a label column, or all such in a folder.

    The label is a name (`label_name`, `class_name`, `label_str`, `label`). A number (`label_id`, `class_id`,
    `label_idx`, or a `label` of numbers) needs a class map beside the CSV: `<its name>.classes.json` or
    `class_map.json`, `{"0": "neutral", …}`. Optional columns: `split`, `subject`, `file_name` (default: the path's last
    part), `valence` with `arousal`. Paths are relative to the CSV's folder, or absolute. Without `split` the file's
    name gives the split. An image that a split lists twice is kept once; the same image in two splits is a copy, which
    `drop_duplicates` handles.
    """
    root = source.root
    if root.is_file():
        if root.suffix.lower() != ".csv":
            return None
        names = header_of(root)
        if _columns(names) is None:
            raise InputError(
                f"{root} needs a path column ({', '.join(PATH_COLUMNS)}) and a label column "
                f"({', '.join((*LABEL_COLUMNS, *ID_COLUMNS))}); it has: {', '.join(names)}"
            )
        return _Manifest(root, source.dataset).pieces()
    files = csv_headers(root)
    manifests = [p for p, names in files.items() if _columns(names)]
    for path in files if manifests else ():
        if path not in manifests:
            log.warning("%s: %s has no path and label columns and is left out", root, path.name)
    return [piece for path in manifests for piece in _Manifest(path, source.dataset).pieces()] or None


def _columns(names: Sequence[str]) -> tuple[str, str] | None:
    """The path column and the label column, None where one is missing."""
    path, label = first_column(names, PATH_COLUMNS), first_column(names, (*LABEL_COLUMNS, *ID_COLUMNS))
    return None if path is None or label is None else (path, label)


class _Manifest:
    """One CSV, read once for all its splits."""

    def __init__(self, path: Path, dataset: str) -> None:
        check_sha256(path, None)
        self.path, self.dataset, self.table = path, dataset, read_csv(path)
        columns = _columns(self.table.column_names)
        assert columns is not None
        self.path_column, self.label_column = columns
        self.splits = [split_of(path.stem)] * self.table.num_rows
        if "split" in self.table.column_names:
            self.splits = named_splits(path, self.table["split"].to_pylist())
        self.again = self._listed_again()

    def pieces(self) -> list[Piece]:
        return pieces_by_split("CSV manifest", self.path, self.splits, partial(_read, self))

    def _listed_again(self) -> np.ndarray:
        """(N,) bool: rows whose image an earlier row of the same split lists; the two must agree about it."""
        folders: dict[str, str] = {}
        first: dict[tuple[str, str], int] = {}
        seen: set[tuple[tuple[str, str], str | None]] = set()
        again = np.zeros(self.table.num_rows, dtype=bool)
        for row, written in enumerate(self.table[self.path_column].to_pylist()):
            folder, name = os.path.split(os.path.join(self.path.parent, written))
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            image = folders[folder], name
            before = first.setdefault(image, row)
            if before != row:
                self._refuse_contradiction([before, row])
            again[row] = (image, self.splits[row]) in seen
            seen.add((image, self.splits[row]))
        return again

    def _refuse_contradiction(self, rows: list[int]) -> None:
        pair = self.table.take(rows)
        further = [c for c in ("subject", "valence", "arousal") if c in self.table.column_names]
        for column in (self.label_column, *further):
            written = pair[column].to_pylist()
            meant: list[Any] = written
            if column == self.label_column and written[0] != written[1]:
                names, index = self.labels(pair)
                try:
                    meant = [class_of(self.dataset, names[i]) for i in index]
                except InputError as error:
                    raise InputError(f"{self.path}: {error}") from None
            elif column in ("valence", "arousal"):
                meant = self.floats(pair, column)
            if meant[0] != meant[1]:
                lines = _lines(self.path, rows)
                raise InputError(
                    f"{self.path} lists {pair[self.path_column][1].as_py()} twice, with {column} '{written[0][:40]}' "
                    f"in line {lines[0]} and '{written[1][:40]}' in line {lines[1]}; keep the row that is right"
                )

    def floats(self, table: Any, column: str) -> list[float | None]:
        """A column of numbers, None where it is empty."""
        return [self._float(value, column) for value in table[column].to_pylist()]

    def _float(self, value: str, column: str) -> float | None:
        try:
            return float(value) if value else None
        except ValueError:
            raise InputError(f"{self.path}: {column} must be a number or empty, got '{value[:40]}'") from None

    def labels(self, table: Any) -> tuple[tuple[str, ...], np.ndarray]:
        """The names in the label column, and each row's place among them."""
        column = self.label_column
        values: list[str] = table[column].to_pylist()
        if "" in values:
            raise InputError(
                f"{self.path}: column '{column}' is empty in {values.count('')} rows; label or remove them"
            )
        if column in ID_COLUMNS or all(v.lstrip("+-").isdecimal() for v in values):
            known = _class_map(self.path, column)
            strange = next((v for v in values if v not in known), None)
            if strange is not None:
                raise InputError(
                    f"{self.path}: {column} {strange} is not in the class map, which has {', '.join(known)}"
                )
            values = [known[v] for v in values]
        return index_names(values)


def _lines(path: Path, rows: Sequence[int]) -> list[int]:
    """The lines of the file in which rows of its table end: empty ones are no rows, quoted fields may hold breaks."""
    with open(path, encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle)
        ends = [reader.line_num for fields in reader if fields]
    return [ends[row + 1] for row in rows]


def _read(manifest: _Manifest, rows: np.ndarray) -> Rows:
    path, table = manifest.path, manifest.table.take(rows)
    paths = [path.parent / p for p in table[manifest.path_column].to_pylist()]
    require_files(
        paths,
        str(path),
        f"paths are relative to {path.parent} unless they are absolute; correct them or bring the files",
    )
    names, label = manifest.labels(table)
    further: dict[str, Any] = {}
    if "subject" in table.column_names:
        further["subject"] = [subject or None for subject in table["subject"].to_pylist()]
    if "file_name" in table.column_names:
        further["file_name"] = table["file_name"]
    if {"valence", "arousal"} <= set(table.column_names):
        for c in ("valence", "arousal"):
            further[c] = affect_column(manifest.floats(table, c), c, path.name)
    repeated = manifest.again[rows]
    dropped = {LISTED_AGAIN: repeated} if repeated.any() else {}
    label = np.where(repeated, NOT_A_CLASS, label)
    return Rows(table_of_files(paths, path.parent, **further), None, names, label, None, dropped)


def _class_map(path: Path, column: str) -> Mapping[str, str]:
    files = (path.with_name(f"{path.stem}.classes.json"), path.with_name("class_map.json"))
    found = next((p for p in files if p.is_file()), None)
    if found is None:
        raise InputError(
            f"{path}: column '{column}' holds plain integers, and class numbers mean different things in different "
            f'data sets; write names, or a class map beside it, {files[0].name}: {{"0": "neutral", …}}'
        )
    try:
        data = json.loads(found.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{found} is not JSON ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(data, dict) or not data or not all(k.isdecimal() and isinstance(v, str) for k, v in data.items()):
        raise InputError(f'{found} must map numbers to class names, as {{"0": "neutral", "1": "happiness"}}')
    return data
