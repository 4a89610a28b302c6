"""What every layout is brought to: pieces with a split, and rows with an encoded picture and what is said of it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ngd_timm.core.errors import InputError
from ngd_timm.data.labels import SPLITS, subject_of

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "IMAGE_SUFFIXES",
    "Piece",
    "Rows",
    "affect_column",
    "encode_png",
    "files_below",
    "image_files",
    "labels_of_ids",
    "pieces_by_split",
    "require_files",
    "shown_path",
    "subfolders",
    "table_of_files",
    "table_of_pixels",
    "with_subjects",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".pgm", ".ppm")


@dataclass(frozen=True)
class Rows:
    """The rows of one piece.

    Attributes:
        table: `image` (struct of bytes and path), `file_name`, `source`, and where known `subject`, `valence`,
            `arousal` (null where a row has none).
        votes: (N, 10) counts in the order of `VOTE_COLUMNS`, or None.
        names: The piece's own label names, or None where it has votes.
        label: (N,) index into `names`; -1 on rows of `dropped`.
        dup_of_train: (N,) bool, or None where the piece doesn't say.
        dropped: Reason → (N,) bool: rows that the layout itself gives up, at most one reason a row.
    """

    table: pa.Table
    votes: np.ndarray | None
    names: tuple[str, ...] | None
    label: np.ndarray | None
    dup_of_train: np.ndarray | None = None
    dropped: Mapping[str, np.ndarray] = field(default_factory=dict)

    def features(self) -> dict[str, Any]:
        """The `datasets` feature of each column of `table`."""
        from datasets import Image as ImageFeature
        from datasets import Value

        known = {"image": ImageFeature(), "valence": Value("float32"), "arousal": Value("float32")}
        return {c: known.get(c, Value("string")) for c in self.table.column_names}

    def usable(self) -> np.ndarray:
        """(N,) bool: rows that the layout doesn't give up; only their pictures need exist."""
        keep = np.ones(self.table.num_rows, dtype=bool)
        for mask in self.dropped.values():
            keep &= ~mask
        return keep


@dataclass(frozen=True)
class Piece:
    """A part of a data set with one split: a file, a folder, or the rows of one split within a file.

    Attributes:
        kind: The layout, in words.
        path: Where it is.
        split: "train", "valid", "test", or None where nothing says.
        shown: What messages and the `source` column call it.
        read: Reads all its rows.
        stream: Reads them a few at a time, or None where the layout can't.
    """

    kind: str
    path: Path
    split: str | None
    shown: str
    read: Callable[[], Rows] = field(repr=False, compare=False)
    stream: Callable[[], Iterator[Rows]] | None = field(default=None, repr=False, compare=False)


def pieces_by_split(
    kind: str, path: Path, splits: Sequence[str | None], read: Callable[[np.ndarray], Rows]
) -> list[Piece]:
    """One piece for each split that occurs among a file's rows.

    Args:
        kind: The layout, in words.
        path: The file.
        splits: Each row's split.
        read: From (M,) row numbers to their rows.

    Raises:
        InputError: No row at all.
    """
    if not len(splits):
        raise InputError(f"{path} has no rows; copy or write it again")
    each = np.array([s or "" for s in splits])
    return [
        Piece(kind, path, split, path.name, partial(read, np.flatnonzero(each == (split or ""))))
        for split in (*SPLITS, None)
        if (each == (split or "")).any()
    ]


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, in order, without hidden ones."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def image_files(folder: Path, deep: bool = False) -> list[Path]:
    """The pictures in a folder, in order, by their suffix; hidden files are not pictures.

    Raises:
        InputError: A folder that may not be read, or a link to nothing: the set would shrink without a word.
    """
    found = [p for p in files_below(folder, deep) if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    for path in found:
        if not path.is_file():
            raise InputError(f"{path} links to nothing; bring the picture, or remove the link")
    return sorted(found)


def files_below(folder: Path, deep: bool = True) -> Iterator[Path]:
    """Everything in a folder, and in the folders below it, that is no folder.

    Raises:
        InputError: A folder that may not be read; `Path.rglob` would pass over it.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} can't be read ({error.strerror}); change its permissions") from None

    for at, folders, names in os.walk(folder, onerror=refuse):
        if not deep:
            folders.clear()
        yield from (Path(at, name) for name in names)


def require_files(paths: Sequence[Path], listed_in: str, hint: str) -> None:
    """Refuse a list of which some pictures aren't there.

    Raises:
        InputError: How many, the first three, and `hint`.
    """
    missing = [p for p in paths if not os.path.isfile(p)]
    if missing:
        first = ", ".join(str(p) for p in missing[:3])
        raise InputError(f"{listed_in}: {len(missing)} of {len(paths)} pictures aren't there (first: {first}); {hint}")


def shown_path(path: Path, root: Path) -> str:
    """A path relative to the data set's root, or as it is where it lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def table_of_files(paths: Sequence[Path], root: Path, **columns: Any) -> pa.Table:
    """Rows whose pictures stay on disk; `source` is the path relative to `root`."""
    import pyarrow as pa

    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise InputError(f"{path}: the name is not UTF-8; rename the file or the folder") from None
    image = pa.StructArray.from_arrays(
        [pa.nulls(len(paths), pa.binary()), pa.array([str(p) for p in paths], pa.string())], ["bytes", "path"]
    )
    return pa.table(
        {
            "image": image,
            "file_name": pa.array([p.name for p in paths], pa.string()),
            "source": pa.array([shown_path(p, root) for p in paths], pa.string()),
            **columns,
        }
    )


def table_of_pixels(
    pixels: np.ndarray, rows: np.ndarray, shown: str, file_names: Sequence[str] | None = None, **columns: Any
) -> pa.Table:
    """Rows whose pictures are numbers in a file: encoded as PNG; `source` is the file and the row.

    Args:
        pixels: (N, H, W) or (N, H, W, 1 or 3) uint8, of the whole file.
        rows: (M,) which of them.
        shown: The file's name.
        file_names: M names, where the file has them.
        **columns: Further columns of M rows.
    """
    import pyarrow as pa

    image = pa.StructArray.from_arrays(
        [pa.array([encode_png(pixels[i]) for i in rows], pa.binary()), pa.nulls(len(rows), pa.string())],
        ["bytes", "path"],
    )
    names = pa.nulls(len(rows), pa.string()) if file_names is None else pa.array(list(file_names), pa.string())
    source = pa.array([f"{shown} row {i}" for i in rows], pa.string())
    return pa.table({"image": image, "file_name": names, "source": source, **columns})


def with_subjects(rows: Rows, dataset: str) -> Rows:
    """The same rows with a column `subject`, null where nobody is named: read from file names where the table has none.

    Args:
        rows: Of any layout.
        dataset: One of `SUBJECT_IN_NAME`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    table = rows.table
    if "subject" in table.column_names:
        if any(table["subject"].to_pylist()):
            return rows
        table = table.drop_columns(["subject"])
    names, paths = table["file_name"].to_pylist(), pc.struct_field(table["image"], "path").to_pylist()
    subjects = [
        next((s for path in pair if path and (s := subject_of(dataset, path))), None)
        for pair in zip(names, paths, strict=True)
    ]
    return replace(rows, table=table.append_column("subject", pa.array(subjects, pa.string())))


def encode_png(pixels: np.ndarray) -> bytes:
    """(H, W) or (H, W, 1 or 3) uint8 as PNG, uncompressed: the bytes that Microsoft's export of FER+ has, too."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()


def affect_column(values: Any, name: str, shown: str, start: int = 0) -> pa.Array:
    """A valence or arousal column as float32, null where a row has none.

    Args:
        values: A pyarrow column or a sequence, null (None) where a row has none.
        name: "valence" or "arousal".
        shown: What messages call the file.
        start: The number of the first row.

    Raises:
        InputError: A value that is no number in [-1, 1].
    """
    import pyarrow as pa

    column = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, pa.float32())
    try:
        column = column.cast(pa.float32())
    except pa.ArrowException:
        raise InputError(f"{shown}: {name} must be numbers in [-1, 1], got {column.type}") from None
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    numbers = column.fill_null(0).to_numpy(zero_copy_only=False)
    bad = ~(np.abs(numbers) <= 1)
    if bad.any():
        row = int(bad.argmax())
        raise InputError(
            f"{shown} row {start + row}: {name} must lie in [-1, 1], got {numbers[row]}; map ratings with "
            "ngd_timm.core.affect.rating_to_va, or leave the column out"
        )
    return column


def labels_of_ids(ids: np.ndarray, published: Mapping[int, str], shown: str, what: str) -> np.ndarray:
    """(N,) index into `tuple(published.values())`.

    Raises:
        InputError: An id that the layout doesn't have, by its row.

    Example:
        >>> labels_of_ids(np.array([7, 1]), {1: "surprise", 7: "neutral"}, "list.txt", "label").tolist()
        [1, 0]
    """
    place = {number: i for i, number in enumerate(published)}
    unknown = ~np.isin(ids, list(place))
    if unknown.any():
        row = int(unknown.argmax())
        known = ", ".join(f"{number} {name}" for number, name in published.items())
        raise InputError(
            f"{shown} row {row}: {what} {ids[row]} is none of this layout's ({known}); is it another file?"
        )
    return np.array([place[int(i)] for i in ids], dtype=np.int64)
