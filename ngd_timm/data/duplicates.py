"""Copies of training pictures: by a mark in the file, else by their pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ngd_timm.core.images import decode_each, open_image, to_mode
from ngd_timm.data.layouts import Rows

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BY_COLUMN", "BY_PIXELS", "DUPLICATE", "copies_of", "hashes_of", "pixel_hashes"]

DUPLICATE = "a copy of a training picture"
BY_COLUMN = "by the column dup_of_train"
BY_PIXELS = "by comparing pixels with the train split"


def hashes_of(pieces: Iterable[Rows]) -> set[bytes]:
    """The pixel hashes of all pictures of the training split that its layout doesn't give up."""
    seen: set[bytes] = set()
    for rows in pieces:
        seen.update(pixel_hashes(rows))
    return seen


def copies_of(rows: Rows, seen: set[bytes]) -> np.ndarray:
    """(N,) bool: rows whose decoded pixels are among `seen`."""
    usable = rows.usable()
    copies = np.zeros(len(usable), dtype=bool)
    copies[usable] = [h in seen for h in pixel_hashes(rows)]
    return copies


def pixel_hashes(rows: Rows) -> Iterator[bytes]:
    """The hash of each picture that the layout doesn't give up, in their order; copies have the same."""
    from datasets import Dataset

    return decode_each(Dataset(rows.table.filter(rows.usable())), _pixel_hash)


def _pixel_hash(record: dict[str, Any]) -> bytes:
    with open_image(record) as image:
        pixels = to_mode(image, "RGB")
        return hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).digest()
