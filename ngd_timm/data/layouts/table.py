"""A table of images and labels, in parquet or on the Hub: which columns hold them, and in which form."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ngd_timm.core.errors import InputError, one_line
from ngd_timm.data.class_map import names_of, shown_ids
from ngd_timm.data.labels import LISTED_IDS, NOT_A_CLASS, VOTE_COLUMNS
from ngd_timm.data.layouts.csv_file import first_column
from ngd_timm.data.layouts.options import Source
from ngd_timm.data.layouts.rows import Rows, affect_column, encode_png, image_array, index_names

log = logging.getLogger("ngd_timm.data")

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "img_bytes", "pixels")
LABEL_COLUMNS = (
    *("label_name", "class_name", "label_str", "emotion_name"),  # names before what may be numbers
    *("label", "labels", "emotion", "expression", "cls", "category"),
)

_NESTED = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_TEXT = (pa.types.is_string, pa.types.is_large_string)


@dataclass(frozen=True)
class TableReader:
    """Reads tables whose schema may carry `datasets` features.

    Columns are an image (bytes, a struct of bytes and path, or pixels as nested lists or as text), FER+'s ten counts or
    a label (a name, a ClassLabel, or a number with names from elsewhere), and where known `file_name`, `subject`,
    `valence` and `arousal`, `dup_of_train`.
    """

    source: Source
    shown: str  # the piece, in messages about a row and in the column `source`
    where: str  # the piece, in messages about the table
    beside: Callable[[str], Mapping[int, str] | None]  # a column's names from what lies beside the table
    file: Callable[[str], str]  # where the image is that a row names instead of holding it

    def rows(self, table: pa.Table, start: int = 0) -> Rows:
        """The rows of a table, of which the first has the number `start`."""
        try:
            return self._rows(table, start)
        except pa.ArrowException as error:
            raise InputError(f"{self.where}: {one_line(error)}; write the table again") from None

    def _rows(self, table: pa.Table, start: int) -> Rows:
        options, shown = self.source.options, self.shown
        image = self._column(table, "image", options.image, IMAGE_COLUMNS)
        columns: dict[str, Any] = {
            "image": self._images(table[image], image, start),
            "file_name": self._file_names(table, image),
            "source": pa.array([f"{shown} row {start + i}" for i in range(table.num_rows)], pa.string()),
        }
        if "subject" in table.column_names:
            columns["subject"] = self._cast(table, "subject", pa.string())
        if {"valence", "arousal"} <= set(table.column_names):
            for c in ("valence", "arousal"):
                columns[c] = affect_column(table[c], c, shown, start)
        dup = None
        if "dup_of_train" in table.column_names:
            marks = self._cast(table, "dup_of_train", pa.bool_())
            dup = marks.combine_chunks().fill_null(False).to_numpy(zero_copy_only=False)
        if not self.source.labelled:
            return Rows(pa.table(columns), None, None, np.full(table.num_rows, NOT_A_CLASS), dup)
        if options.label is None and set(VOTE_COLUMNS) <= set(table.column_names):
            return Rows(pa.table(columns), self._votes(table), None, None, dup)
        names, label = self._labels(table, self._column(table, "label", options.label, LABEL_COLUMNS), start)
        return Rows(pa.table(columns), None, names, label, dup)

    def _column(self, table: pa.Table, what: str, given: str | None, known: Sequence[str]) -> str:
        """The column that the option names, else the first of the usual ones."""
        found = first_column(table.column_names, known if given is None else (given,))
        if found is None:
            lacks = f"no column '{given}'" if given else f"no column '{known[0]}' ({', '.join(known[1:])})"
            if what == "label" and given is None:
                lacks = f"neither the ten vote columns of FER+ nor a label column ({', '.join(known)})"
            raise InputError(
                f"{self.where} has {lacks}; it has: {', '.join(table.column_names)}; name the one to read behind the "
                f"root, ROOT,{what}=COLUMN"
            )
        return found

    def _cast(self, table: pa.Table, column: str, kind: pa.DataType) -> pa.ChunkedArray:
        try:
            return table[column].cast(kind)
        except pa.ArrowException:
            raise InputError(f"{self.where}: column '{column}' must hold {kind}, got {table[column].type}") from None

    def _images(self, column: pa.ChunkedArray, name: str, start: int) -> pa.ChunkedArray:
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        if pa.types.is_struct(column.type) and "bytes" in (fields := [f.name for f in column.type]):
            chunks = [_resolved(chunk, fields, self.file) for chunk in column.chunks]
        elif pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            chunks = [image_array(c.cast(pa.binary()), pa.nulls(len(c), pa.string())) for c in column.chunks]
        else:
            chunks = [self._drawn(chunk, name) for chunk in column.chunks if len(chunk)]
        whole = pa.chunked_array(chunks, type=kind)
        absent = pc.and_(*(pc.is_null(pc.struct_field(whole, name)) for name in ("bytes", "path")))
        if (row := pc.index(absent, True).as_py()) >= 0:
            raise InputError(
                f"{self.shown} row {start + row}: no image, neither bytes nor a path; add it or remove the row"
            )
        return whole

    def _drawn(self, chunk: pa.Array, column: str) -> pa.StructArray:
        """Images of one size as nested lists of pixels (`Array2D` and `Array3D` too) or as text, encoded as PNG."""
        values = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
        if _is(values.type, _TEXT):
            values = pc.ascii_split_whitespace(values)
        shape = [len(values)]
        while _is(values.type, _NESTED):
            lengths = pc.unique(pc.list_value_length(values)).to_pylist()
            shape.append(lengths[0] or 0 if len(lengths) == 1 else 0)
            values = values.flatten()
        if len(shape) == 2 and math.isqrt(shape[1]) ** 2 == shape[1]:
            shape = [shape[0], *[math.isqrt(shape[1])] * 2]
        try:
            if 0 in shape or not (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))):
                raise ValueError
            pixels = pc.cast(values, pa.uint8()).to_numpy().reshape(shape)
        except (pa.ArrowException, ValueError):
            raise InputError(
                f"{self.where}: column '{column}' must hold bytes or {{bytes, path}}, or pixels of images of one size, "
                f"(H, W) or (H, W, 1 or 3) whole numbers from 0 to 255, got {chunk.type}"
            ) from None
        return image_array([encode_png(image) for image in pixels], [None] * len(pixels))

    def _file_names(self, table: pa.Table, image: str) -> pa.ChunkedArray | pa.Array:
        if "file_name" in table.column_names:
            return self._cast(table, "file_name", pa.string())
        if "file" in table.column_names and _is(table["file"].type, _TEXT):
            return self._cast(table, "file", pa.string())
        column = table[image]
        if pa.types.is_struct(column.type) and any(f.name == "path" for f in column.type):
            return pc.struct_field(column, "path").cast(pa.string())
        return pa.nulls(table.num_rows, pa.string())

    def _votes(self, table: pa.Table) -> np.ndarray:
        for c in VOTE_COLUMNS:
            if table[c].null_count or not (pa.types.is_integer(table[c].type) or pa.types.is_floating(table[c].type)):
                raise InputError(f"{self.where}: vote column '{c}' must hold a whole number in every row")
        votes = np.stack([table[c].to_numpy() for c in VOTE_COLUMNS], axis=1)
        if (part := (votes != np.floor(votes)).any(axis=0)).any():
            name = VOTE_COLUMNS[int(part.argmax())]
            raise InputError(f"{self.where}: vote column '{name}' holds shares; give the number of votes")
        return votes

    def _labels(self, table: pa.Table, column: str, start: int) -> tuple[tuple[str, ...], np.ndarray]:
        """The names in a label column, and each row's (N,) place among them."""
        values = table[column].combine_chunks()
        single = _is(values.type, _NESTED)
        if single:
            counts = pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False)
            if (counts != 1).any():
                row = int((counts != 1).argmax())
                raise InputError(
                    f"{self.shown} row {start + row}: column '{column}' has {counts[row]} labels; give one"
                )
            values = values.flatten()
        if values.null_count:
            row = values.is_null().to_pylist().index(True)
            raise InputError(f"{self.shown} row {start + row}: column '{column}' is empty; label or remove the row")
        names: Sequence[str] | None
        if pa.types.is_integer(values.type):
            index = values.to_numpy().astype(np.int64)
            names = self._feature_names(table, column, index)
        else:
            if pa.types.is_dictionary(values.type):
                values = values.dictionary_decode()
            if not _is(values.type, _TEXT):
                raise InputError(f"{self.where}: column '{column}' must hold class names, got {values.type}")
            encoded = values.dictionary_encode()
            names, index = encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)
        if names is not None and not _are_numbers(names):
            return tuple(names), index
        numbers = index if names is None else np.array(names, dtype=np.int64)[index]
        known = self._known_numbers(column, single, start)
        return index_names(names_of(numbers.tolist(), known, f"{self.where}: {column}"))

    def _feature_names(self, table: pa.Table, column: str, index: np.ndarray) -> tuple[str, ...] | None:
        """The names that a column's own feature has, unless an option gives others."""
        from datasets import ClassLabel, Features

        feature = Features.from_arrow_schema(table.schema).get(column)
        feature = getattr(feature, "feature", feature)
        if not isinstance(feature, ClassLabel) or not feature.names:
            return None
        if self.source.options.named and not _are_numbers(feature.names):
            return None
        if len(index) and not (index.min() >= 0 and index.max() < len(feature.names)):
            raise InputError(
                f"{self.where}: column '{column}' holds {index.min()} to {index.max()}, but names "
                f"{len(feature.names)} classes"
            )
        return tuple(feature.names)

    def _known_numbers(self, column: str, single: bool, start: int) -> Mapping[int, str]:
        """Which number is which class: by an option, else by what lies beside the table, else by the publishers."""
        dataset = self.source.dataset
        known = None if self.source.options.named else self.beside(column)
        if known is None and single and dataset in LISTED_IDS and not self.source.options.named:
            known = LISTED_IDS[dataset]
            if start == 0:
                log.warning("%s: %s is read by %s's own numbers: %s", self.where, column, dataset, shown_ids(known))
        return known or self.source.class_numbers(self.where, f"column '{column}' holds")


def _is(kind: pa.DataType, tests: Sequence[Callable[[pa.DataType], bool]]) -> bool:
    return any(test(kind) for test in tests)


def _are_numbers(names: Sequence[str]) -> bool:
    return bool(names) and all(name.isdecimal() and len(name) < 19 for name in names)  # as int64 holds


def _resolved(chunk: pa.StructArray, fields: Sequence[str], file: Callable[[str], str]) -> pa.StructArray:
    """Bytes as they are; where there are none, the path of the file."""
    # flatten, unlike field, takes the struct's own nulls along
    field = dict(zip(fields, chunk.flatten(), strict=True))
    data = field["bytes"].cast(pa.binary())
    path = field["path"].cast(pa.string()) if "path" in fields else pa.nulls(len(chunk), pa.string())
    if data.null_count:
        missing = data.is_null().to_pylist()
        names = zip(path.to_pylist(), missing, strict=True)
        path = pa.array([file(name) if gone and name else name for name, gone in names], pa.string())
    return image_array(data, path)


def file_below(folder: Path, name: str) -> str:
    """The path of an image that a table names, which must lie in the table's folder."""
    if Path(os.path.normpath(folder / name)).is_relative_to(os.path.normpath(folder)):
        return str(folder / name)
    raise InputError(
        f"{folder}: a row's image is '{name[:80]}', outside this folder; give a path within it, or the bytes"
    )
