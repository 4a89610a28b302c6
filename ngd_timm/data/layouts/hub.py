"""A data set on the Hugging Face Hub, `user/dataset[@revision]`, through `datasets.load_dataset`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngd_timm.core.errors import InputError
from ngd_timm.core.hub import PREFIX, REQUEST_ERRORS, HubId
from ngd_timm.data.labels import split_of
from ngd_timm.data.layouts.parquet import rows_of_table
from ngd_timm.data.layouts.rows import Piece, Rows

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["find_hub"]

_STREAM_ROWS = 256


def find_hub(repository: HubId, streaming: bool = False) -> list[Piece]:
    """The splits of a Hub data set, by their usual names.

    Raises:
        InputError: It can't be had: unknown, private, no network, or nothing that `datasets` reads.
    """
    root = str(repository).removeprefix(PREFIX)
    return [
        Piece(
            "Hub data set",
            Path(root),
            split_of(name),
            f"{root} {name}",
            partial(_read, data, root, name),
            partial(_stream, data, root, name),
        )
        for name, data in _load(repository, root, streaming).items()
    ]


def _load(repository: HubId, root: str, streaming: bool) -> Any:
    import datasets

    try:
        return datasets.load_dataset(repository.repo, revision=repository.revision, streaming=streaming)
    except REQUEST_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"'{root}' is no path here, and as a dataset on the Hub it can't be loaded ({reason}); check path, id, "
            "revision, network and access (hf auth login)"
        ) from None


def _read(data: Any, root: str, name: str) -> Rows:
    table = data.with_format("arrow")[:]
    return rows_of_table(_with_features(table, data.features), f"{root} {name}", f"{root} ({name})")


def _stream(data: Any, root: str, name: str) -> Iterator[Rows]:
    start = 0
    features = data.features
    for table in data.with_format("arrow").iter(batch_size=_STREAM_ROWS):
        yield rows_of_table(_with_features(table, features), f"{root} {name}", f"{root} ({name})", None, start)
        start += table.num_rows


def _with_features(table: pa.Table, features: Any) -> pa.Table:
    """Names of a ClassLabel travel in the schema's metadata."""
    return table if features is None else table.replace_schema_metadata(features.arrow_schema.metadata)
