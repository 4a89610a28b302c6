"""A CSV file as a table of trimmed strings, read strictly: every row has every column."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as pacsv

from ngd_timm.core.errors import InputError, one_line
from ngd_timm.core.files import files_with, require_regular

log = logging.getLogger("ngd_timm.data")

# A row of 48x48 pixels has 10 KB; pyarrow refuses a row that is longer than a block.
_BLOCK_BYTES = 16 << 20
_WHOLE = re.compile(r"-?[0-9]{1,18}")


def header_of(path: Path) -> list[str]:
    """The column names in the first line, trimmed (FER2013's `icml_face_data.csv` has " Usage", " pixels")."""
    try:
        require_regular(path)
        with open(path, encoding="utf-8-sig", newline="") as handle:
            first = next(csv.reader(handle), None)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{path} can't be read as a UTF-8 CSV ({one_line(error)})") from None
    if not first:
        raise InputError(f"{path} is empty; a CSV with a header line was expected")
    return [name.strip() for name in first]


def csv_headers(folder: Path) -> dict[Path, list[str]]:
    """The CSV files in a folder and their columns; one that can't be read is left out with a warning."""
    found = {}
    for path in files_with(folder, (".csv",)) if folder.is_dir() else ():
        try:
            found[path] = header_of(path)
        except InputError as error:
            log.warning("%s; it is left out", error)
    return found


def first_column(names: Sequence[str], candidates: Sequence[str]) -> str | None:
    """The first of some column names that a table has."""
    return next((w for w in candidates if w in names), None)


def read_csv(path: Path, columns: Sequence[str] | None = None, required: Sequence[str] = ()) -> pa.Table:
    """Read a CSV; every value is a string without surrounding space."""
    names = list(columns) if columns is not None else header_of(path)
    missing = [w for w in required if w not in names]
    if missing:
        raise InputError(f"{path} has no column '{missing[0]}'; it has: {', '.join(names)}")
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise InputError(f"{path}: column '{twice[0]}' stands twice in the header; rename or remove one")
    try:
        table = pacsv.read_csv(
            path,
            read_options=pacsv.ReadOptions(
                column_names=names, skip_rows=0 if columns is not None else 1, block_size=_BLOCK_BYTES
            ),
            convert_options=pacsv.ConvertOptions(column_types={n: pa.string() for n in names}),
        )
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is damaged or not a CSV ({one_line(error)}); copy or write it again") from None
    return pa.table({n: pc.utf8_trim_whitespace(table[n]) for n in names})


def whole_numbers(path: Path, column: pa.ChunkedArray, name: str) -> np.ndarray:
    """A column of whole numbers, (N,) int64; the first other value is named by its row."""
    try:
        return pc.cast(column, pa.int64()).to_numpy()
    except pa.ArrowException:
        values = column.to_pylist()
        row = next(i for i, v in enumerate(values) if not _WHOLE.fullmatch(v))
        raise InputError(f"{path} row {row}: {name} must be a whole number, got '{values[row][:40]}'") from None


def numbers(path: Path, values: Sequence[str], name: str) -> list[float | None]:
    """A column of numbers, None where it is empty."""
    out: list[float | None] = []
    for row, value in enumerate(values):
        try:
            out.append(float(value) if value else None)
        except ValueError:
            raise InputError(f"{path} row {row}: {name} must be a number or empty, got '{value[:40]}'") from None
    return out
