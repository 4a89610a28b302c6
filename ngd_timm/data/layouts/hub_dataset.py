"""Data sets on the Hub, and local copies of webdatasets: whatever `datasets` loads, as tables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from ngd_timm.core.errors import InputError, one_line
from ngd_timm.core.files import files_below
from ngd_timm.core.hub import PREFIX, REQUEST_ERRORS, HubId
from ngd_timm.core.images import SUFFIXES
from ngd_timm.data.class_map import CLASS_NAMES, read_class_names
from ngd_timm.data.labels import split_of
from ngd_timm.data.layouts.options import Source
from ngd_timm.data.layouts.rows import Piece, Rows
from ngd_timm.data.layouts.table import TableReader

ClassNames = Mapping[int, str] | None
PARQUET_REVISION = "refs/convert/parquet"
_STREAM_ROWS = 256


def find_hub(repository: HubId, source: Source, streaming: bool = False) -> list[Piece]:
    """The splits of a Hub data set, by their usual names."""
    if source.options.revision is not None:
        if repository.revision not in (None, source.options.revision):
            raise InputError(f"{source.root} and revision={source.options.revision} are two revisions; give one")
        repository = replace(repository, revision=source.options.revision)
    splits, commit, names = _open(repository, source.options.config, streaming)
    root = str(repository).removeprefix(PREFIX)
    pieces = _pieces("Hub data set", source, root, splits, names, streaming)
    return [replace(piece, dataset_id=f"{repository.repo}@{commit}") for piece in pieces]


def find_webdataset(source: Source) -> list[Piece] | None:
    """Tar files below a folder, as `datasets` reads them, and `classnames.txt`: a local copy of a Hub data set."""
    import datasets

    root = source.root
    files = sorted(p for p in files_below(root) if not p.name.startswith("."))
    shards = [p for p in files if p.suffix == ".tar"]
    if not shards or any(p.suffix.lower() in SUFFIXES for p in files):  # an archive of the images beside it
        return None
    by_split: dict[str, list[str]] = {}
    for path in shards:
        words = reversed(path.relative_to(root).with_suffix("").parts)
        by_split.setdefault(next((s for word in words if (s := split_of(word))), "data"), []).append(str(path))
    try:
        splits = datasets.load_dataset("webdataset", data_files=by_split)
    except (*REQUEST_ERRORS, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{root}: no webdataset is in its tar files ({one_line(error)}); copy them again") from None
    names = read_class_names(root / CLASS_NAMES) if (root / CLASS_NAMES).is_file() else None
    return _pieces("webdataset", source, str(root), splits, names)


def _open(repository: HubId, config: str | None, streaming: bool) -> tuple[Mapping[str, Any], str, ClassNames]:
    """The splits of a data set on the Hub, the commit that they are of, and the names in its classnames.txt."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(repository.repo, config, revision=repository.revision)
        names = _class_names(HubId(repository.repo, str(builder.hash)))
        if streaming:
            return builder.as_streaming_dataset(), str(builder.hash), names
        builder.download_and_prepare()
        return builder.as_dataset(), str(builder.hash), names
    except (*REQUEST_ERRORS, datasets.exceptions.DatasetsError) as error:
        raise InputError(_problem(repository, config, error)) from None


def _problem(repository: HubId, config: str | None, error: Exception) -> str:
    import datasets

    root, script = str(repository).removeprefix(PREFIX), f"{repository.repo.partition('/')[2]}.py"
    if isinstance(error, RuntimeError) and script in str(error):
        return (
            f"'{root}' is a loading script ({script}), which is never run; read the Hub's conversion of it: "
            f"{repository.repo}@{PARQUET_REVISION}"
        )
    if isinstance(error, ValueError):
        try:
            configs = datasets.get_dataset_config_names(repository.repo, revision=repository.revision)
        except (*REQUEST_ERRORS, datasets.exceptions.DatasetsError):
            configs = []
        if (len(configs) > 1 or config is not None) and config not in configs:
            which = "several configs" if config is None else f"no config '{config}'"
            return f"'{root}' has {which}; choose one behind the id, {root},config=NAME: {', '.join(configs)}"
    return (
        f"'{root}' is no path here, and as a dataset on the Hub it can't be loaded ({one_line(error)}); check path, "
        "id, revision, network and access (hf auth login)"
    )


def _class_names(repository: HubId) -> ClassNames:
    """The names in a commit's classnames.txt, None where it has none."""
    try:
        path = hf_hub_download(repository.repo, CLASS_NAMES, repo_type="dataset", revision=repository.revision)
    except EntryNotFoundError:
        return None
    return read_class_names(Path(path))


def _of_any_column(names: ClassNames, column: str) -> ClassNames:
    return names


def _pieces(
    kind: str, source: Source, root: str, splits: Mapping[str, Any], names: ClassNames, streaming: bool = False
) -> list[Piece]:
    pieces = []
    for name, data in splits.items():
        shown = f"{root} {name}"
        reader = TableReader(source, shown, f"{root} ({name})", partial(_of_any_column, names), _file_in_cache)
        stream = partial(_stream, data, reader) if streaming else None
        pieces.append(Piece(kind, Path(root), split_of(name), shown, partial(_read, data, reader), stream))
    return pieces


def _file_in_cache(name: str) -> str:
    """The path of an image that a row of somebody else's table names: of what was downloaded, and no other file."""
    from datasets import config

    caches = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
    if "://" in name or any(Path(os.path.normpath(name)).is_relative_to(os.path.normpath(cache)) for cache in caches):
        return name
    raise InputError(f"a row's image is '{name[:80]}', which is no downloaded file; the set must hold its images")


def _read(data: Any, reader: TableReader) -> Rows:
    return _rows(data.with_format("arrow")[:], data, reader)


def _stream(data: Any, reader: TableReader) -> Iterator[Rows]:
    start = 0
    # not in arrow's format: `datasets` then joins tables of a webdataset whose columns are in another order
    for batch in data.decode(False).iter(batch_size=_STREAM_ROWS):
        table = pa.table(batch)
        yield _rows(table, data, reader, start)
        start += table.num_rows


def _rows(table: Any, data: Any, reader: TableReader, start: int = 0) -> Rows:
    if data.features is not None:  # names of a ClassLabel are in the schema's metadata
        table = table.replace_schema_metadata(data.features.arrow_schema.metadata)
    return reader.rows(table, start)
