"""Images as numbers in a CSV: `emotion, pixels, Usage` of FER2013 and of CK+'s 48-pixel export."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ngd_timm.core.errors import InputError, one_line
from ngd_timm.data.labels import CKPLUS_48_IDS, FER2013_IDS, split_of
from ngd_timm.data.layouts.csv_file import header_of, read_csv, whole_numbers
from ngd_timm.data.layouts.options import Source
from ngd_timm.data.layouts.rows import Piece, Rows, labels_of_ids, named_splits, pieces_by_split, table_of_pixels

log = logging.getLogger("ngd_timm.data")

_SIDE = 48
FER2013_FILES = ("fer2013.csv", "fer2013/fer2013.csv", "icml_face_data.csv")
_FILES: Mapping[str, tuple[str, ...]] = {"fer2013": FER2013_FILES, "ckplus": ("ckextended.csv",)}
_IDS: Mapping[str, Mapping[int, str]] = {"fer2013": FER2013_IDS, "ckplus": CKPLUS_48_IDS}
_CHUNK = 1024


def is_pixels_csv(path: Path) -> bool:
    """Whether a CSV's header is this layout's."""
    return {"emotion", "pixels"} <= set(header_of(path))


def usage_splits(path: Path, usage: Sequence[str]) -> list[str | None]:
    """The splits that a column `Usage` names."""
    return named_splits(path, usage, "Usage", "Training, PublicTest or PrivateTest")


def find_pixels_csv(source: Source) -> list[Piece] | None:
    """`fer2013.csv`, `icml_face_data.csv` or `ckextended.csv`, at `root` or as `root`.

    The numbers in `emotion` are classes by the publishers' tables; for any other data set they mean nothing.
    """
    root, dataset = source.root, source.dataset
    if root.is_file():
        if root.suffix.lower() != ".csv" or not is_pixels_csv(root):
            return None
        if dataset not in _IDS:
            raise InputError(
                f"{root} holds emotion numbers, which are fixed for {' and '.join(_IDS)} only, not for {dataset}; name "
                "the data set that it is, or give a CSV with class names"
            )
        files = [root]
    else:
        files = [root / name for name in _FILES.get(dataset, ()) if (root / name).is_file()]
    if not files:
        return None
    path, *others = files
    for other in others:
        log.warning("%s: %s is read, %s holds the same set and is left out", root, path.name, other.name)
    file = PixelFile(path)
    return pieces_by_split("pixels in a CSV", path, file.splits, partial(_read, file, _IDS[dataset]))


def _read(file: PixelFile, published: Mapping[int, str], rows: np.ndarray) -> Rows:
    label = labels_of_ids(file.emotion, published, file.path.name, "emotion")[rows]
    return Rows(table_of_pixels(file.pixels, rows, file.path.name), None, tuple(published.values()), label)


class PixelFile:
    """One such CSV, read once for all its splits; Kaggle's train.csv has no `Usage`."""

    def __init__(self, path: Path) -> None:
        self.path, self._table = path, read_csv(path, required=("emotion", "pixels"))
        self.usage: list[str] | None = None
        self.splits: list[str | None] = [split_of(path.stem)] * self._table.num_rows
        if "Usage" in self._table.column_names:
            self.usage = self._table["Usage"].to_pylist()
            self.splits = usage_splits(path, self.usage)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @cached_property
    def emotion(self) -> np.ndarray:
        """(N,) int64, the numbers as written."""
        return whole_numbers(self.path, self._table["emotion"], "emotion")

    @cached_property
    def pixels(self) -> np.ndarray:
        """(N, 48, 48) uint8; a row of another size, or a value that is no grey level, is refused."""
        out = np.empty((len(self), _SIDE, _SIDE), dtype=np.uint8)
        for begin in range(0, len(self), _CHUNK):
            block = self._table["pixels"].slice(begin, _CHUNK).combine_chunks()
            out[begin : begin + len(block)] = self._parse(block, begin)
        return out

    def _parse(self, block: pa.StringArray, begin: int) -> np.ndarray:
        words = pc.ascii_split_whitespace(block)
        counts = pc.list_value_length(words).to_numpy(zero_copy_only=False)
        wrong = counts != _SIDE * _SIDE
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(
                f"{self.path} row {begin + row}: {counts[row]} pixels, expected {_SIDE}x{_SIDE} = {_SIDE * _SIDE}; the "
                "file is cut short or another one"
            )
        try:
            levels = pc.cast(words.flatten(), pa.uint8())
        except pa.ArrowException as error:
            raise InputError(
                f"{self.path} rows {begin} to {begin + len(block) - 1}: a pixel is no whole number from 0 to 255 "
                f"({one_line(error)})"
            ) from None
        return levels.to_numpy().reshape(-1, _SIDE, _SIDE)
