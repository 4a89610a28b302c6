"""What every layout becomes: pieces with a split, and rows with an encoded image, its labels and its source."""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import require_regular
from ngd_timm.core.images import decode_each, open_image, to_mode
from ngd_timm.data.labels import NOT_A_CLASS, SPLITS, is_class, split_of, subject_of

if TYPE_CHECKING:
    from datasets import Dataset

# Image files of so many bytes in all are read once and held; larger sets stay on disk.
_HELD_BYTES = 1 << 30


@dataclass(frozen=True)
class Rows:
    """The rows of one piece.

    The columns of `table` are `image` (struct of bytes and path), `file_name`, `source`, and where known `subject`,
    `valence`, `arousal` (null where a row has none).
    """

    table: pa.Table
    votes: np.ndarray | None  # (N, 10) counts in the order of VOTE_COLUMNS
    names: tuple[str, ...] | None  # the piece's own label names, where it has no votes
    label: np.ndarray | None  # (N,) index into names; -1 on rows of dropped
    dup_of_train: np.ndarray | None = None  # (N,) bool, or None where the piece doesn't say
    dropped: Mapping[str, np.ndarray] = field(default_factory=dict)  # by the layout: reason → (N,) bool, one a row
    _files: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    def usable(self) -> np.ndarray:
        """(N,) bool: rows that the layout doesn't drop; only their images need exist."""
        return ~np.logical_or.reduce([np.zeros(self.table.num_rows, dtype=bool), *self.dropped.values()])

    def people(self) -> set[str]:
        """The subjects of the usable rows, where they are known."""
        if "subject" not in self.table.column_names:
            return set()
        subjects = self.table["subject"].to_pylist()
        return {subject for subject, used in zip(subjects, self.usable(), strict=True) if used and subject}

    @cached_property
    def pixel_hashes(self) -> list[bytes]:
        """The hash of each usable row's decoded image; copies have the same."""
        usable = np.flatnonzero(self.usable())
        table = self.held(usable)
        images = dataset_of(self.table if table is None else table)
        return list(decode_each(images.select(usable) if table is None else images, _pixel_hash))

    def held(self, index: np.ndarray) -> pa.Table | None:
        """Some rows with their image files read into memory, each once; None where no image or too much is on disk."""
        if not len(index) or not pc.struct_field(self.table["image"], "bytes").null_count:
            return None
        table = self.table.take(index)
        records = table["image"].to_pylist()
        paths = [record["path"] for record in records if record["bytes"] is None]
        if not self._fit(paths):
            return None
        for path in paths:
            if path not in self._files:
                self._files[path] = read_image_file(path)
        data = [self._files[r["path"]] if r["bytes"] is None else r["bytes"] for r in records]
        image = image_array(data, [r["path"] for r in records])
        return table.set_column(table.column_names.index("image"), "image", image)

    def _fit(self, paths: Iterable[str]) -> bool:
        total = sum(map(len, self._files.values()))
        for path in paths:
            try:
                total += 0 if path in self._files else os.path.getsize(path)
            except (OSError, ValueError):
                continue
            if total > _HELD_BYTES:
                return False
        return True


def read_image_file(path: str) -> bytes:
    """A file's bytes."""
    try:
        require_regular(path)
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} can't be read ({reason}); check the image paths") from None


def _pixel_hash(record: dict[str, Any]) -> bytes:
    with open_image(record) as image:
        pixels = to_mode(image, "RGB")
        return hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).digest()


@dataclass(frozen=True)
class Piece:
    """A part of a data set with one split: a file, a folder, or the rows of one split within a file."""

    kind: str  # the layout, in words
    path: Path
    split: str | None  # None where nothing says
    shown: str  # in messages and in the column `source`
    read: Callable[[], Rows] = field(repr=False, compare=False)
    stream: Callable[[], Iterator[Rows]] | None = field(default=None, repr=False, compare=False)  # a few at a time
    dataset_id: str = ""  # of a Hub data set: user/dataset@commit


def dataset_id(pieces: Sequence[Piece]) -> str:
    """The Hub data set that pieces are of, as user/dataset@commit; empty where they are of none."""
    return next((piece.dataset_id for piece in pieces if piece.dataset_id), "")


def pieces_by_split(
    kind: str, path: Path, splits: Sequence[str | None], read: Callable[[np.ndarray], Rows]
) -> list[Piece]:
    """One piece for each split that occurs among a file's rows; `read` takes (M,) row numbers to their rows."""
    if not len(splits):
        raise InputError(f"{path} has no rows; copy or write it again")
    each = np.array([s or "" for s in splits])
    return [
        Piece(kind, path, split, path.name, partial(read, np.flatnonzero(each == (split or ""))))
        for split in (*SPLITS, None)
        if (each == (split or "")).any()
    ]


def named_splits(
    path: Path, values: Sequence[str], column: str = "split", allowed: str = "train, valid or test"
) -> list[str | None]:
    """The split that each row names; one that names none is refused by its row."""
    known = {value: split_of(value) for value in set(values)}
    for row, value in enumerate(values):
        if known[value] is None:
            raise InputError(f"{path} row {row}: {column} '{value[:40]}' is unknown; write {allowed}")
    return [known[value] for value in values]


def index_names(values: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The different names in a list, and each entry's (N,) place among them."""
    place: dict[str, int] = {}
    label = [place.setdefault(value, len(place)) for value in values]
    return tuple(place), np.array(label, dtype=np.int64)


def require_files(paths: Sequence[Path], listed_in: str, hint: str) -> None:
    """Refuse a list of images of which some are missing: how many, the first three, and `hint`."""
    missing = [p for p in paths if not os.path.isfile(p)]
    if missing:
        first = ", ".join(str(p) for p in missing[:3])
        raise InputError(f"{listed_in}: {len(missing)} of {len(paths)} images aren't there (first: {first}); {hint}")


def missing_files(
    paths: Sequence[Path], used: np.ndarray, drop: bool, listed_in: str, hint: str
) -> dict[str, np.ndarray]:
    """Of the (N,) used files those that are not there, or empty, as a reason to drop them; without `drop` a refusal."""
    missing = used & np.array([not os.path.isfile(p) or os.path.getsize(p) == 0 for p in paths], dtype=bool)
    if missing.any() and not drop:
        first = ", ".join(str(paths[row]) for row in np.flatnonzero(missing)[:3])
        raise InputError(
            f"{listed_in}: {missing.sum()} of {used.sum()} images aren't there, or are empty (first: {first}); {hint}, "
            "or leave them out: ROOT,missing=drop"
        )
    return {"not there, or empty": missing} if missing.any() else {}


def image_array(data: Any, paths: Any) -> pa.StructArray:
    """Encoded images, or None, and their paths, or None, as the column `image`."""
    return pa.StructArray.from_arrays([pa.array(data, pa.binary()), pa.array(paths, pa.string())], ["bytes", "path"])


def table_of_files(paths: Sequence[Path], root: Path, **columns: Any) -> pa.Table:
    """Rows whose images are files; `source` is the path relative to `root`, or the path where it lies elsewhere."""
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise InputError(f"{path}: the name is not UTF-8; rename the file or the folder") from None
    sources = [(p.relative_to(root) if p.is_relative_to(root) else p).as_posix() for p in paths]
    image = image_array([None] * len(paths), [str(p) for p in paths])
    names = pa.array([p.name for p in paths], pa.string())
    return pa.table({"image": image, "file_name": names, "source": pa.array(sources, pa.string()), **columns})


def dataset_of(table: pa.Table) -> Dataset:
    """A table as a data set with a fingerprint at random: to make one, `datasets` would pickle every image."""
    from datasets import Dataset

    return Dataset(table, fingerprint=uuid.uuid4().hex[:16])


def table_of_pixels(
    pixels: np.ndarray, rows: np.ndarray, shown: str, file_names: Sequence[str] | None = None, **columns: Any
) -> pa.Table:
    """Rows whose images are numbers in a file, encoded as PNG; `source` is the file and the row."""
    image = image_array([encode_png(pixels[i]) for i in rows], [None] * len(rows))
    names = pa.array([None] * len(rows) if file_names is None else list(file_names), pa.string())
    source = pa.array([f"{shown} row {i}" for i in rows], pa.string())
    return pa.table({"image": image, "file_name": names, "source": source, **columns})


def with_subjects(rows: Rows, dataset: str) -> Rows:
    """The same rows with a column `subject`: the table's own, else from file names, null where they name none."""
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


def without_unknown(rows: Rows, dataset: str) -> Rows:
    """The same rows, those of classes that the data set's name doesn't know dropped, by the name of the class."""
    if rows.names is None or rows.label is None:
        return rows
    known = [name for name in rows.names if is_class(dataset, name)]
    place = [known.index(name) if name in known else NOT_A_CLASS for name in rows.names]
    masks = {f"labelled '{name}'": rows.label == i for i, name in enumerate(rows.names) if name not in known}
    label = np.array([*place, NOT_A_CLASS])[rows.label]  # a row without a class has the last place
    return replace(rows, names=tuple(known), label=label, dropped={**rows.dropped, **masks})


def encode_png(pixels: np.ndarray) -> bytes:
    """(H, W) or (H, W, 1 or 3) uint8 as uncompressed PNG: the bytes that Microsoft's export of FER+ has, too."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()


def affect_column(values: Any, name: str, shown: str, start: int = 0) -> pa.Array:
    """A valence or arousal column as float32, null where a row has none; values outside [-1, 1] are refused."""
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


def labels_of_ids(ids: Sequence[int] | np.ndarray, published: Mapping[int, str], shown: str, what: str) -> np.ndarray:
    """(N,) index into `tuple(published.values())`; an id that the layout doesn't have is refused by its row."""
    place = {number: i for i, number in enumerate(published)}
    for row, number in enumerate(ids):
        if number not in place:
            known = ", ".join(f"{n} {name}" for n, name in published.items())
            raise InputError(
                f"{shown} row {row}: {what} {number} is none of this layout's ({known}); is it another file?"
            )
    return np.array([place[number] for number in ids], dtype=np.int64)
