"""A CSV of one's own: a path and a label a row, and what else is known."""

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
from ngd_timm.data.layouts.csv_file import csv_headers, header_of, read_csv
from ngd_timm.data.layouts.options import Source
from ngd_timm.data.layouts.parquet import LABEL_COLUMNS
from ngd_timm.data.layouts.picture_list import PATH_COLUMNS, check_sha256
from ngd_timm.data.layouts.rows import Piece, Rows, affect_column, pieces_by_split, require_files, table_of_files

__all__ = ["ID_COLUMNS", "LISTED_AGAIN", "find_manifests"]

log = logging.getLogger("ngd_timm.data")

ID_COLUMNS = ("label_id", "class_id", "label_idx")
LISTED_AGAIN = "listed again with the same label, of which the first row counts"


def find_manifests(source: Source) -> list[Piece] | None:
    """A CSV with a path column and a label column, or all such in a folder; None where there is none.

    The label is a name (`label_name`, `class_name`, `label_str`, `label`). A number (`label_id`, `class_id`,
    `label_idx`, or a `label` of numbers) needs a class map beside the CSV: `<its name>.classes.json` or
    `class_map.json`, `{"0": "neutral", …}`. Optional columns: `split`, `subject`, `file_name` (default: the path's last
    part), `valence` with `arousal`. Paths are relative to the CSV's folder, or absolute. Without `split` the file's
    name says it. A picture that a split lists twice is kept once; the same picture in two splits is a copy, which
    `drop_duplicates` is about.

    Raises:
        InputError: A CSV file as root that lacks a path or a label, a split that has no known name, or a picture of
            which two rows say different things.
    """
    root = source.root
    if root.is_file():
        if root.suffix.lower() != ".csv":
            return None
        names = header_of(root)
        if _column(names, PATH_COLUMNS) is None or not _has_label(names):
            raise InputError(
                f"{root} needs a path column ({', '.join(PATH_COLUMNS)}) and a label column "
                f"({', '.join((*LABEL_COLUMNS, *ID_COLUMNS))}); it has: {', '.join(names)}"
            )
        return _pieces(root, source.dataset)
    files = csv_headers(root)
    ours = [p for p, names in files.items() if _column(names, PATH_COLUMNS) and _has_label(names)]
    for path in files if ours else ():
        if path not in ours:
            log.warning("%s: %s has no path and label columns and is left out", root, path.name)
    return [piece for path in ours for piece in _pieces(path, source.dataset)] or None


def _column(names: list[str], wanted: tuple[str, ...]) -> str | None:
    return next((w for w in wanted if w in names), None)


def _has_label(names: list[str]) -> bool:
    return _column(names, (*LABEL_COLUMNS, *ID_COLUMNS)) is not None


def _pieces(path: Path, dataset: str) -> list[Piece]:
    check_sha256(path, None)
    table = read_csv(path)
    if "split" in table.column_names:
        written = table["split"].to_pylist()
        splits = [split_of(s) for s in written]
        if None in splits:
            row = splits.index(None)
            raise InputError(f"{path} row {row}: split '{written[row][:40]}' is unknown; write train, valid or test")
    else:
        splits = [split_of(path.stem)] * table.num_rows
    again = _listed_again(path, table, splits, dataset)
    return pieces_by_split("CSV manifest", path, splits, partial(_read, path, table, again))


def _listed_again(path: Path, table: Any, splits: Sequence[str | None], dataset: str) -> np.ndarray:
    """(N,) bool: rows whose picture an earlier row of the same split lists; what the two say of it must agree."""
    column = _column(table.column_names, PATH_COLUMNS)
    assert column is not None
    folders: dict[str, str] = {}
    first: dict[tuple[str, str], int] = {}
    seen: set[tuple[tuple[str, str], str | None]] = set()
    again = np.zeros(table.num_rows, dtype=bool)
    for row, written in enumerate(table[column].to_pylist()):
        folder, name = os.path.split(os.path.join(path.parent, written))
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        picture = folders[folder], name
        before = first.setdefault(picture, row)
        if before != row:
            _refuse_contradiction(path, table, (before, row), dataset)
        again[row] = (picture, splits[row]) in seen
        seen.add((picture, splits[row]))
    return again


def _refuse_contradiction(path: Path, table: Any, rows: tuple[int, int], dataset: str) -> None:
    pair = table.take(list(rows))
    label = _column(table.column_names, (*LABEL_COLUMNS, *ID_COLUMNS))
    assert label is not None
    for column in (label, *(c for c in ("subject", "valence", "arousal") if c in table.column_names)):
        written = pair[column].to_pylist()
        said: list[Any] = written
        if column == label and written[0] != written[1]:
            names, index = _labels(path, pair)
            try:
                said = [class_of(dataset, names[i]) for i in index]
            except InputError as error:
                raise InputError(f"{path}: {error}") from None
        elif column in ("valence", "arousal"):
            said = [_float(path, value, column) for value in written]
        if said[0] != said[1]:
            picture = pair[_column(table.column_names, PATH_COLUMNS)][1].as_py()
            lines = _lines(path, rows)
            raise InputError(
                f"{path} lists {picture} twice, with {column} '{written[0][:40]}' in line {lines[0]} and "
                f"'{written[1][:40]}' in line {lines[1]}; keep the row that is right"
            )


def _lines(path: Path, rows: Sequence[int]) -> list[int]:
    """The lines of the file in which rows of its table end: empty ones are no rows, quoted fields may hold breaks."""
    with open(path, encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle)
        ends = [reader.line_num for fields in reader if fields]
    return [ends[row + 1] for row in rows]


def _read(path: Path, whole: Any, again: np.ndarray, rows: np.ndarray) -> Rows:
    table = whole.take(rows)
    column = _column(table.column_names, PATH_COLUMNS)
    assert column is not None
    paths = [path.parent / p for p in table[column].to_pylist()]
    require_files(
        paths,
        str(path),
        f"paths are relative to {path.parent} unless they are absolute; correct them or bring the files",
    )
    names, label = _labels(path, table)
    further: dict[str, Any] = {}
    if "subject" in table.column_names:
        further["subject"] = [subject or None for subject in table["subject"].to_pylist()]
    if "file_name" in table.column_names:
        further["file_name"] = table["file_name"]
    if {"valence", "arousal"} <= set(table.column_names):
        for c in ("valence", "arousal"):
            further[c] = affect_column([_float(path, v, c) for v in table[c].to_pylist()], c, path.name)
    repeated = again[rows]
    dropped = {LISTED_AGAIN: repeated} if repeated.any() else {}
    label = np.where(repeated, NOT_A_CLASS, label)
    return Rows(table_of_files(paths, path.parent, **further), None, names, label, None, dropped)


def _float(path: Path, value: str, name: str) -> float | None:
    if not value:
        return None
    try:
        return float(value)
    except ValueError:
        raise InputError(f"{path}: {name} must be a number or empty, got '{value[:40]}'") from None


def _labels(path: Path, table: Any) -> tuple[tuple[str, ...], np.ndarray]:
    column = _column(table.column_names, (*LABEL_COLUMNS, *ID_COLUMNS))
    assert column is not None
    values: list[str] = table[column].to_pylist()
    if "" in values:
        raise InputError(f"{path}: column '{column}' is empty in {values.count('')} rows; label or remove them")
    if column in ID_COLUMNS or all(v.lstrip("+-").isdecimal() for v in values):
        known = _class_map(path, column)
        strange = next((v for v in values if v not in known), None)
        if strange is not None:
            raise InputError(f"{path}: {column} {strange} is not in the class map, which has {', '.join(known)}")
        values = [known[v] for v in values]
    names = tuple(dict.fromkeys(values))
    place = {name: i for i, name in enumerate(names)}
    return names, np.array([place[v] for v in values], dtype=np.int64)


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
