"""A data set on the Hugging Face Hub, `user/dataset[@revision]`, through `datasets.load_dataset`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngd_timm.data.labels import split_of
from ngd_timm.data.layouts.parquet import rows_of_table
from ngd_timm.data.layouts.rows import Piece, Rows
from ngd_timm.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["find_hub", "is_hub_id"]

_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_STREAM_ROWS = 256


def is_hub_id(root: str) -> bool:
    """Whether a root that isn't on disk looks like a Hub id.

    Example:
        >>> is_hub_id("user/faces@v1.0"), is_hub_id("/data/faces"), is_hub_id("data/my/faces")
        (True, False, False)
    """
    return _ID.fullmatch(root) is not None and not Path(root).exists() and not Path(root.split("/")[0]).is_dir()


def find_hub(root: str, streaming: bool = False) -> list[Piece]:
    """The splits of a Hub data set, by their usual names.

    Raises:
        InputError: It can't be had: unknown, private, no network, or nothing that `datasets` reads.
    """
    found = _ID.fullmatch(root)
    assert found is not None
    splits = _load(found["id"], found["revision"], root, streaming)
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


def _load(name: str, revision: str | None, root: str, streaming: bool) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, revision=revision, streaming=streaming)
    except (OSError, ValueError, RuntimeError) as error:
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
