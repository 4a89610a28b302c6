"""Parquet files and data sets on the Hub: tables of images and labels (votes, names, or a ClassLabel with names)."""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ngd_timm.core.errors import InputError
from ngd_timm.core.hub import PREFIX, REQUEST_ERRORS, HubId
from ngd_timm.data.labels import VOTE_COLUMNS, split_of
from ngd_timm.data.layouts.csv_file import first_column
from ngd_timm.data.layouts.options import Source
from ngd_timm.data.layouts.rows import Piece, Rows, affect_column, files_below, image_array

LABEL_COLUMNS = ("label_name", "class_name", "label_str", "label")

_STREAM_ROWS, _COPY_ROWS = 256, 1024
# Bytes above which a file is copied to be mapped instead of being held in memory.
_LARGE = 128 << 20


def find_parquet(source: Source) -> list[Piece] | None:
    """A parquet file, or every parquet file below a folder."""
    root = source.root
    if root.is_file():
        return [_piece(root, split_of(root.stem), root.name)] if root.suffix == ".parquet" else None
    files = sorted(p for p in files_below(root) if p.suffix == ".parquet" and not p.name.startswith("."))
    return [_piece(p, _split_of_file(p, root), p.relative_to(root).as_posix()) for p in files] or None


def _piece(path: Path, split: str | None, shown: str) -> Piece:
    return Piece(
        "parquet", path, split, shown, partial(_read_parquet, path, shown), partial(_stream_parquet, path, shown)
    )


def _split_of_file(path: Path, root: Path) -> str | None:
    names = (path.stem, *reversed(path.relative_to(root).parent.parts))
    return next((split for name in names if (split := split_of(name))), None)


def rows_of_table(table: pa.Table, shown: str, where: str, folder: Path | None = None, start: int = 0) -> Rows:
    """The rows of a table whose schema may carry `datasets` features; the first row has the number `start`.

    Its columns are `image` (bytes, or a struct of bytes and path, relative to `folder`); FER+'s ten counts, or a label
    that is a name or a ClassLabel; and where known `file_name`, `subject`, `valence` and `arousal`, `dup_of_train`.
    """
    if "image" not in table.column_names:
        raise InputError(f"{where} has no column 'image'; it has: {', '.join(table.column_names)}")
    try:
        return _rows_of_table(table, shown, where, folder, start)
    except pa.ArrowException as error:
        raise InputError(f"{where}: {' '.join(str(error).split())[:160]}; write the table again") from None


def _rows_of_table(table: pa.Table, shown: str, where: str, folder: Path | None, start: int) -> Rows:
    columns: dict[str, Any] = {
        "image": _image_column(table["image"], shown, where, folder, start),
        "file_name": _file_names(table, where),
        "source": pa.array([f"{shown} row {start + i}" for i in range(table.num_rows)], pa.string()),
    }
    if "subject" in table.column_names:
        columns["subject"] = _cast(table, "subject", pa.string(), where)
    if {"valence", "arousal"} <= set(table.column_names):
        for c in ("valence", "arousal"):
            columns[c] = affect_column(table[c], c, shown, start)
    dup = None
    if "dup_of_train" in table.column_names:
        marks = _cast(table, "dup_of_train", pa.bool_(), where)
        dup = marks.combine_chunks().fill_null(False).to_numpy(zero_copy_only=False)
    if set(VOTE_COLUMNS) <= set(table.column_names):
        return Rows(pa.table(columns), _vote_columns(table, where), None, None, dup)
    names, label = _label_column(table, shown, where, start)
    return Rows(pa.table(columns), None, names, label, dup)


def _read_parquet(path: Path, shown: str) -> Rows:
    try:
        # A memory map would turn a file cut short under us into a crash; pages are checked as they are read.
        large = path.stat().st_size > _LARGE
        table = _mapped_copy(path) if large else pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None
    return rows_of_table(table, shown, str(path), path.parent)


def _mapped_copy(path: Path) -> pa.Table:
    """A file's rows in an uncompressed copy that is memory-mapped: memory stays flat however large the file.

    The copy lies in the cache folder of `datasets`, since a temporary folder may itself be memory. It has no name once
    it is mapped, so it goes when the last reader does.
    """
    from datasets import config

    config.HF_DATASETS_CACHE.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix="ngd_timm-", suffix=".arrow", dir=config.HF_DATASETS_CACHE)
    os.close(handle)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            with pa.OSFile(name, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for batch in _row_batches(file, _COPY_ROWS):
                    writer.write_batch(batch)
        return pa.ipc.open_file(pa.memory_map(name)).read_all()
    finally:
        try:
            os.unlink(name)
        except PermissionError:  # Windows keeps the name of a file that is mapped
            atexit.register(Path(name).unlink, missing_ok=True)


def _stream_parquet(path: Path, shown: str) -> Iterator[Rows]:
    start = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in _row_batches(file, _STREAM_ROWS):
                yield rows_of_table(pa.Table.from_batches([batch]), shown, str(path), path.parent, start)
                start += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _row_batches(file: pq.ParquetFile, rows: int) -> Iterator[pa.RecordBatch]:
    # one row group at a time: given all of them, the reader holds the whole file
    for group in range(file.num_row_groups):
        yield from file.iter_batches(batch_size=rows, row_groups=[group])


def _damaged(path: Path, error: Exception) -> InputError:
    # arrow's own OSErrors carry a number, and a text that repeats the path before it comes to the reason
    known = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    reason = " ".join(known.split())[:160]
    return InputError(f"{path} is not a whole parquet file ({reason}); copy or write it again")


def find_hub(repository: HubId, streaming: bool = False) -> list[Piece]:
    """The splits of a Hub data set, by their usual names."""
    import datasets

    root = str(repository).removeprefix(PREFIX)
    try:
        splits = datasets.load_dataset(repository.repo, revision=repository.revision, streaming=streaming)
    except REQUEST_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"'{root}' is no path here, and as a dataset on the Hub it can't be loaded ({reason}); check path, id, "
            "revision, network and access (hf auth login)"
        ) from None
    return [
        Piece(
            "Hub data set",
            Path(root),
            split_of(name),
            f"{root} {name}",
            partial(_read_hub, data, root, name),
            partial(_stream_hub, data, root, name),
        )
        for name, data in splits.items()
    ]


def _read_hub(data: Any, root: str, name: str) -> Rows:
    return _hub_rows(data.with_format("arrow")[:], data, root, name)


def _stream_hub(data: Any, root: str, name: str) -> Iterator[Rows]:
    start = 0
    for table in data.with_format("arrow").iter(batch_size=_STREAM_ROWS):
        yield _hub_rows(table, data, root, name, start)
        start += table.num_rows


def _hub_rows(table: Any, data: Any, root: str, name: str, start: int = 0) -> Rows:
    if data.features is not None:  # names of a ClassLabel are in the schema's metadata
        table = table.replace_schema_metadata(data.features.arrow_schema.metadata)
    return rows_of_table(table, f"{root} {name}", f"{root} ({name})", None, start)


def _cast(table: pa.Table, column: str, kind: pa.DataType, where: str) -> pa.ChunkedArray:
    try:
        return table[column].cast(kind)
    except pa.ArrowException:
        raise InputError(f"{where}: column '{column}' must hold {kind}, got {table[column].type}") from None


def _image_column(column: pa.ChunkedArray, shown: str, where: str, folder: Path | None, start: int) -> pa.ChunkedArray:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    if pa.types.is_struct(column.type) and "bytes" in (fields := [f.name for f in column.type]):
        chunks = [_resolved(chunk, fields, folder) for chunk in column.chunks]
    elif pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        chunks = [image_array(chunk.cast(pa.binary()), pa.nulls(len(chunk), pa.string())) for chunk in column.chunks]
    else:
        raise InputError(f"{where}: column 'image' must hold bytes or {{bytes, path}}, got {column.type}")
    whole = pa.chunked_array(chunks, type=kind)
    absent = pc.and_(*(pc.is_null(pc.struct_field(whole, name)) for name in ("bytes", "path")))
    if (row := pc.index(absent, True).as_py()) >= 0:
        raise InputError(f"{shown} row {start + row}: no image, neither bytes nor a path; add it or remove the row")
    return whole


def _resolved(chunk: pa.StructArray, fields: Sequence[str], folder: Path | None) -> pa.StructArray:
    """Bytes as they are; where there are none, the path is taken relative to the parquet file."""
    # flatten, unlike field, takes the struct's own nulls along
    field = dict(zip(fields, chunk.flatten(), strict=True))
    data = field["bytes"].cast(pa.binary())
    path = field["path"].cast(pa.string()) if "path" in fields else pa.nulls(len(chunk), pa.string())
    if data.null_count and folder is not None:
        missing = data.is_null().to_pylist()
        path = pa.array(
            [str(folder / p) if gone and p else p for p, gone in zip(path.to_pylist(), missing, strict=True)],
            pa.string(),
        )
    return image_array(data, path)


def _file_names(table: pa.Table, where: str) -> pa.ChunkedArray | pa.Array:
    if "file_name" in table.column_names:
        return _cast(table, "file_name", pa.string(), where)
    image = table["image"]
    if pa.types.is_struct(image.type) and any(f.name == "path" for f in image.type):
        return pc.struct_field(image, "path").cast(pa.string())
    return pa.nulls(table.num_rows, pa.string())


def _vote_columns(table: pa.Table, where: str) -> np.ndarray:
    for c in VOTE_COLUMNS:
        if table[c].null_count or not (pa.types.is_integer(table[c].type) or pa.types.is_floating(table[c].type)):
            raise InputError(f"{where}: vote column '{c}' must hold a whole number in every row")
    return np.stack([table[c].to_numpy() for c in VOTE_COLUMNS], axis=1)


def _label_column(table: pa.Table, shown: str, where: str, start: int) -> tuple[tuple[str, ...], np.ndarray]:
    from datasets import ClassLabel, Features

    column = first_column(table.column_names, LABEL_COLUMNS)
    if column is None:
        raise InputError(
            f"{where} has neither the ten vote columns of FER+ nor a label column "
            f"({', '.join(LABEL_COLUMNS)}); it has: {', '.join(table.column_names)}"
        )
    values = table[column].combine_chunks()
    if values.null_count:
        row = values.is_null().to_pylist().index(True)
        raise InputError(f"{shown} row {start + row}: column '{column}' is empty; label or remove the row")
    if pa.types.is_integer(values.type):
        feature = Features.from_arrow_schema(table.schema).get(column)
        if not isinstance(feature, ClassLabel) or not feature.names:
            raise InputError(
                f"{where}: column '{column}' holds plain integers, and class numbers mean different things in "
                "different data sets; store names, or a datasets.ClassLabel with names"
            )
        names, index = tuple(feature.names), values.to_numpy().astype(np.int64)
        if len(index) and not (index.min() >= 0 and index.max() < len(names)):
            raise InputError(
                f"{where}: column '{column}' holds {index.min()} to {index.max()}, but names {len(names)} classes"
            )
        return names, index
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise InputError(f"{where}: column '{column}' must hold class names, got {values.type}")
    encoded = values.dictionary_encode()
    return tuple(encoded.dictionary.to_pylist()), encoded.indices.to_numpy().astype(np.int64)
