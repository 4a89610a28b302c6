"""Parquet files: tables of images and labels, see `table.py`."""

from __future__ import annotations

import atexit
import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ngd_timm.core.errors import InputError, one_line
from ngd_timm.core.files import files_with, require_regular, write_refusals
from ngd_timm.data.class_map import CLASS_NAMES, names_in_card, read_class_names
from ngd_timm.data.labels import split_of
from ngd_timm.data.layouts.options import Source
from ngd_timm.data.layouts.rows import Piece, Rows
from ngd_timm.data.layouts.table import TableReader, file_below

_STREAM_ROWS, _COPY_ROWS = 256, 1024
# Bytes above which a file is copied to be mapped instead of being held in memory.
_LARGE = 128 << 20


def find_parquet(source: Source) -> list[Piece] | None:
    """A parquet file, or every parquet file below a folder."""
    root = source.root
    if root.is_file():
        return [_piece(source, root, split_of(root.stem), root.name)] if root.suffix.lower() == ".parquet" else None
    files = files_with(root, (".parquet",), deep=True)
    return [_piece(source, p, _split_of_file(p, root), p.relative_to(root).as_posix()) for p in files] or None


def _piece(source: Source, path: Path, split: str | None, shown: str) -> Piece:
    reader = TableReader(source, shown, str(path), partial(_names_beside, path), partial(file_below, path.parent))
    return Piece("parquet", path, split, shown, partial(_read, path, reader), partial(_stream, path, reader))


def _split_of_file(path: Path, root: Path) -> str | None:
    names = (path.stem, *reversed(path.relative_to(root).parent.parts))
    return next((split for name in names if (split := split_of(name))), None)


def _names_beside(path: Path, column: str) -> Mapping[int, str] | None:
    """Class names as a local copy of a Hub data set has them: in its README's `dataset_info`, or in classnames.txt."""
    for folder in (path.parent, path.parent.parent):
        if (card := folder / "README.md").is_file() and (names := names_in_card(card, column)) is not None:
            return names
        if (listed := folder / CLASS_NAMES).is_file():
            return read_class_names(listed)
    return None


def _read(path: Path, reader: TableReader) -> Rows:
    try:
        require_regular(path)
        # A memory map would turn a file cut short under us into a crash; pages are checked as they are read.
        large = path.stat().st_size > _LARGE
        table = _mapped_copy(path) if large else pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None
    return reader.rows(table)


def _mapped_copy(path: Path) -> pa.Table:
    """A file's rows in an uncompressed copy that is memory-mapped: memory stays flat however large the file.

    The copy lies in the cache folder of `datasets`, since a temporary folder may itself be memory. It has no name once
    it is mapped, so it goes when the last reader does.
    """
    from datasets import config

    cache = Path(config.HF_DATASETS_CACHE)
    with write_refusals(cache):
        cache.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix="ngd_timm-", suffix=".arrow", dir=cache)
        os.close(handle)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            with pa.OSFile(name, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for batch in _row_batches(file, _COPY_ROWS):
                    writer.write_batch(batch)
        return pa.ipc.open_file(pa.memory_map(name)).read_all()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"no space left in {cache}, where {path} is unpacked; free some, or set HF_DATASETS_CACHE"
            ) from None
        raise
    finally:
        try:
            os.unlink(name)
        except PermissionError:  # Windows keeps the name of a file that is mapped
            atexit.register(Path(name).unlink, missing_ok=True)


def _stream(path: Path, reader: TableReader) -> Iterator[Rows]:
    start = 0
    try:
        require_regular(path)
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in _row_batches(file, _STREAM_ROWS):
                yield reader.rows(pa.Table.from_batches([batch]), start)
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
    return InputError(f"{path} is not a whole parquet file ({one_line(known)}); copy or write it again")
