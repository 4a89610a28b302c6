"""Where the rows of a data set lie on disk: parquet files and class-named folders, brought to one table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ngd_timm.data.labels import VOTE_COLUMNS, split_of
from ngd_timm.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["LABEL_COLUMNS", "Piece", "Rows", "find_pieces", "read_piece"]

log = logging.getLogger("ngd_timm.data")

LABEL_COLUMNS = ("label_name", "class_name", "label_str", "label")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".pgm", ".ppm")
_PASSED_ON = ("file_name", "subject", "valence", "arousal")


@dataclass(frozen=True)
class Piece:
    """One parquet file, or one folder of class folders, and the split its name speaks of.

    Attributes:
        kind: What it is.
        path: Where it is.
        split: "train", "valid", "test", or None where the name says nothing.
        shown: The path relative to the data set's root, for messages and for the `source` column.
    """

    kind: Literal["parquet", "folders"]
    path: Path
    split: str | None
    shown: str


@dataclass(frozen=True)
class Rows:
    """The rows of one piece.

    Attributes:
        table: `image` (struct of bytes and path), `file_name`, `source`, and where known `subject`, `valence`,
            `arousal`.
        votes: (N, 10) counts in the order of `VOTE_COLUMNS`, or None.
        names: The piece's own label names, or None where it has votes.
        label: (N,) index into `names`.
        dup_of_train: (N,) bool, or None where the piece doesn't say.
    """

    table: pa.Table
    votes: np.ndarray | None
    names: tuple[str, ...] | None
    label: np.ndarray | None
    dup_of_train: np.ndarray | None

    def features(self) -> dict[str, Any]:
        """The `datasets` feature of each column of `table`."""
        from datasets import Image, Value

        known = {"image": Image(), "valence": Value("float32"), "arousal": Value("float32")}
        return {c: known.get(c, Value("string")) for c in self.table.column_names}


def find_pieces(root: Path) -> list[Piece]:
    """Everything under `root` that holds rows, in the order train, valid, test, unnamed, then by name.

    Raises:
        InputError: No such root, or nothing in it that a data set is made of.
    """
    if not root.exists():
        raise InputError(f"no data set at {root}: the path doesn't exist; give its folder or parquet file")
    if root.is_file():
        if root.suffix != ".parquet":
            raise InputError(f"{root} is not a parquet file; give a .parquet file, or a folder")
        return [Piece("parquet", root, split_of(root.stem), root.name)]
    files = sorted(p for p in root.rglob("*.parquet") if not p.name.startswith("."))
    if files:
        pieces = [Piece("parquet", p, _split_of_file(p, root), p.relative_to(root).as_posix()) for p in files]
    else:
        pieces = _find_folders(root)
    order = {"train": 0, "valid": 1, "test": 2, None: 3}
    return sorted(pieces, key=lambda p: (order[p.split], p.shown))


def read_piece(piece: Piece, root: Path) -> Rows:
    """Read one piece; pictures stay encoded, and those in folders stay on disk.

    Raises:
        InputError: A damaged file, or columns that don't make a data set.
    """
    return _read_parquet(piece) if piece.kind == "parquet" else _read_folders(piece, root)


def _split_of_file(path: Path, root: Path) -> str | None:
    for part in (path.stem, *reversed(path.relative_to(root).parent.parts)):
        if split := split_of(part):
            return split
    return None


def _find_folders(root: Path) -> list[Piece]:
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    named = [(p, split_of(p.name)) for p in folders]
    if any(split for _, split in named):
        for path, split in named:
            if split is None:
                log.warning("%s: folder '%s' is not named after a split and is left out", root, path.name)
        return [Piece("folders", p, split, p.name) for p, split in named if split]
    if not folders:
        raise InputError(f"{root} holds neither parquet files nor folders; expected class-named folders of pictures")
    return [Piece("folders", root, split_of(root.name), root.name)]


def _read_folders(piece: Piece, root: Path) -> Rows:
    import pyarrow as pa

    folders = sorted(p for p in piece.path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise InputError(f"{piece.path} holds no class-named folders")
    paths: list[Path] = []
    label: list[int] = []
    for i, folder in enumerate(folders):
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _IMAGE_SUFFIXES and p.is_file())
        paths += found
        label += [i] * len(found)
    shown = [p.relative_to(root).as_posix() for p in paths]
    image = pa.StructArray.from_arrays(
        [pa.nulls(len(paths), pa.binary()), pa.array([str(p) for p in paths], pa.string())], ["bytes", "path"]
    )
    table = pa.table(
        {
            "image": image,
            "file_name": pa.array([p.name for p in paths], pa.string()),
            "source": pa.array(shown, pa.string()),
        }
    )
    return Rows(table, None, tuple(p.name for p in folders), np.array(label, dtype=np.int64), None)


def _read_parquet(piece: Piece) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A memory map would turn a file cut short under us into a crash; pages are checked as they are read.
        table = pq.read_table(piece.path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{piece.path} is not a whole parquet file ({reason}); copy or write it again") from None
    if "image" not in table.column_names:
        raise InputError(f"{piece.path} has no column 'image'; it has: {', '.join(table.column_names)}")
    n = table.num_rows
    file_name = _file_names(table)
    columns: dict[str, Any] = {
        "image": _image_column(table["image"], piece),
        "file_name": file_name,
        "source": pa.array([f"{piece.shown} row {i}" for i in range(n)], pa.string()),
    }
    if "subject" in table.column_names:
        columns["subject"] = table["subject"].cast(pa.string())
    if "valence" in table.column_names and "arousal" in table.column_names:
        for c in ("valence", "arousal"):
            columns[c] = _affect_column(table[c], c, piece)
    dup = None
    if "dup_of_train" in table.column_names:
        dup = table["dup_of_train"].combine_chunks().fill_null(False).to_numpy(zero_copy_only=False).astype(bool)
    votes = names = label = None
    if all(c in table.column_names for c in VOTE_COLUMNS):
        votes = _vote_columns(table, piece)
    else:
        names, label = _label_column(table, piece)
    return Rows(pa.table(columns), votes, names, label, dup)


def _image_column(column: pa.ChunkedArray, piece: Piece) -> pa.ChunkedArray:
    import pyarrow as pa

    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    if pa.types.is_struct(column.type) and {f.name for f in column.type} >= {"bytes"}:
        fields = [f.name for f in column.type]
        chunks = [_resolved(chunk, fields, piece.path.parent) for chunk in column.chunks]
    elif pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        chunks = [
            pa.StructArray.from_arrays([c.cast(pa.binary()), pa.nulls(len(c), pa.string())], ["bytes", "path"])
            for c in column.chunks
        ]
    else:
        raise InputError(f"{piece.path}: column 'image' must hold bytes or {{bytes, path}}, got {column.type}")
    return pa.chunked_array(chunks, type=kind)


def _resolved(chunk: pa.StructArray, fields: Sequence[str], folder: Path) -> pa.StructArray:
    """Bytes as they are; where there are none, the path is taken relative to the parquet file."""
    import pyarrow as pa

    data = chunk.field("bytes").cast(pa.binary())
    path = chunk.field("path").cast(pa.string()) if "path" in fields else pa.nulls(len(chunk), pa.string())
    if data.null_count:
        missing = data.is_null().to_pylist()
        path = pa.array(
            [str(folder / p) if gone and p else p for p, gone in zip(path.to_pylist(), missing, strict=True)],
            pa.string(),
        )
    return pa.StructArray.from_arrays([data, path], ["bytes", "path"])


def _file_names(table: pa.Table) -> pa.ChunkedArray | pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    if "file_name" in table.column_names:
        return table["file_name"].cast(pa.string())
    image = table["image"]
    if pa.types.is_struct(image.type) and any(f.name == "path" for f in image.type):
        return pc.struct_field(image, "path").cast(pa.string())
    return pa.nulls(table.num_rows, pa.string())


def _affect_column(column: pa.ChunkedArray, name: str, piece: Piece) -> pa.Array:
    import pyarrow as pa

    values = column.cast(pa.float32()).to_numpy()
    bad = ~(np.abs(values) <= 1)
    if bad.any():
        row = int(bad.argmax())
        raise InputError(
            f"{piece.shown} row {row}: {name} must lie in [-1, 1], got {values[row]}; map ratings with "
            "ngd_timm.affect.rating_to_va, or leave the column out"
        )
    return pa.array(values)


def _vote_columns(table: pa.Table, piece: Piece) -> np.ndarray:
    import pyarrow as pa

    for c in VOTE_COLUMNS:
        if table[c].null_count or not (pa.types.is_integer(table[c].type) or pa.types.is_floating(table[c].type)):
            raise InputError(f"{piece.path}: vote column '{c}' must hold a whole number in every row")
    return np.stack([table[c].to_numpy() for c in VOTE_COLUMNS], axis=1)


def _label_column(table: pa.Table, piece: Piece) -> tuple[tuple[str, ...], np.ndarray]:
    import pyarrow as pa

    column = next((c for c in LABEL_COLUMNS if c in table.column_names), None)
    if column is None:
        raise InputError(
            f"{piece.path} has neither the ten vote columns of FER+ nor a label column "
            f"({', '.join(LABEL_COLUMNS)}); it has: {', '.join(table.column_names)}"
        )
    values = table[column].combine_chunks()
    if values.null_count:
        row = values.is_null().to_pylist().index(True)
        raise InputError(f"{piece.shown} row {row}: column '{column}' is empty; label or remove the row")
    if pa.types.is_integer(values.type):
        names = _class_label_names(table.schema, column)
        if names is None:
            raise InputError(
                f"{piece.path}: column '{column}' holds plain integers, and class numbers mean different things in "
                "different data sets; store names, or a datasets.ClassLabel with names"
            )
        index = values.to_numpy().astype(np.int64)
        if len(index) and not (index.min() >= 0 and index.max() < len(names)):
            raise InputError(
                f"{piece.path}: column '{column}' holds {index.min()} to {index.max()}, but names {len(names)} classes"
            )
        return names, index
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise InputError(f"{piece.path}: column '{column}' must hold class names, got {values.type}")
    encoded = values.dictionary_encode()
    return tuple(encoded.dictionary.to_pylist()), encoded.indices.to_numpy().astype(np.int64)


def _class_label_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    from datasets import ClassLabel, Features

    feature = Features.from_arrow_schema(schema).get(column)
    return tuple(feature.names) if isinstance(feature, ClassLabel) and feature.names else None
