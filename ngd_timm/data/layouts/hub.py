"""A data set on the Hugging Face Hub, `user/dataset[@revision]`, through `datasets.load_dataset`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ngd_timm.core.errors import InputError
from ngd_timm.core.hub import PREFIX, REQUEST_ERRORS, HubId
from ngd_timm.data.labels import split_of
from ngd_timm.data.layouts.parquet import rows_of_table
from ngd_timm.data.layouts.rows import Piece, Rows

_STREAM_ROWS = 256


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
            partial(_read, data, root, name),
            partial(_stream, data, root, name),
        )
        for name, data in splits.items()
    ]


def _read(data: Any, root: str, name: str) -> Rows:
    return _rows(data.with_format("arrow")[:], data, root, name)


def _stream(data: Any, root: str, name: str) -> Iterator[Rows]:
    start = 0
    for table in data.with_format("arrow").iter(batch_size=_STREAM_ROWS):
        yield _rows(table, data, root, name, start)
        start += table.num_rows


def _rows(table: Any, data: Any, root: str, name: str, start: int = 0) -> Rows:
    if data.features is not None:  # names of a ClassLabel are in the schema's metadata
        table = table.replace_schema_metadata(data.features.arrow_schema.metadata)
    return rows_of_table(table, f"{root} {name}", f"{root} ({name})", None, start)
