"""A data set a few rows at a time, for sets that shouldn't be held or downloaded whole."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.data.duplicates import DUPLICATE, copies_of, hashes_of
from ngd_timm.data.layouts import Piece
from ngd_timm.data.parts import Part

if TYPE_CHECKING:
    from datasets import IterableDataset

__all__ = ["Tally", "stream"]

log = logging.getLogger("ngd_timm.data")


@dataclass
class Tally:
    """What the last whole pass over a stream read, dropped and kept.

    Attributes:
        read: Rows read.
        kept: Rows kept.
        dropped: Reason → rows.
        labels: The label rule, or "given" where the set names one class a picture.
        layout: As what the files were read.
    """

    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    labels: str = ""
    layout: str = ""


def stream(
    wanted: Sequence[Piece],
    training: Sequence[Piece],
    name: str,
    rule: str,
    classes: Sequence[str],
    drop_duplicates: bool,
    limit: int | None,
) -> tuple[IterableDataset, Tally]:
    """The rows of `wanted` as `load_fer` would keep them, read as they are asked for.

    Unmarked copies of training pictures are found by going through the training split once, before the first held-out
    row. What was dropped is logged at the end of each pass.

    Args:
        wanted: Pieces to yield, in order.
        training: The pieces of the train split, for copies.
        name: One of `DATASETS`.
        rule: How votes become labels.
        classes: Class names, in the order of the labels.
        drop_duplicates: Drop held-out rows whose picture is a training picture.
        limit: The first N kept rows of each split.

    Returns:
        The rows, and a tally that each pass fills in at its end.

    Raises:
        InputError: A layout that can't be streamed, or a set without rows.
    """
    from datasets import IterableDataset

    for piece in wanted:
        if piece.stream is None:
            raise InputError(
                f"{piece.shown}: {piece.kind} can't be streamed, only parquet files and Hub ids; leave streaming out"
            )
    rows = _Rows(wanted, training, name, rule, tuple(classes), drop_duplicates, limit)
    features = rows.first_features()
    # bound, not in gen_kwargs: a list there would be divided among the workers of a loader, and rows repeated
    return IterableDataset.from_generator(partial(rows.examples, list(features)), features=features), rows.tally


@dataclass(frozen=True)
class _Rows:
    wanted: Sequence[Piece]
    training: Sequence[Piece]
    name: str
    rule: str
    classes: tuple[str, ...]
    drop_duplicates: bool
    limit: int | None
    tally: Tally = field(default_factory=Tally)

    def first_features(self) -> Any:
        """The columns that all pieces have, from the first rows of each."""
        found = []
        for piece in self.wanted:
            part = next(self._parts(piece), None)
            if part is not None:
                found.append(part.features())
        if not found:
            raise InputError(f"{self.wanted[0].shown} has no rows")
        shared = set.intersection(*(set(f) for f in found))
        return type(found[0])({c: f for c, f in found[0].items() if c in shared})

    def examples(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        left: dict[str | None, int] = {}
        seen: set[bytes] | None = None
        read, kept, dropped, labels = 0, 0, dict[str, int](), dict[str, None]()
        for piece in self.wanted:
            for part in self._parts(piece):
                if self.drop_duplicates and piece.split in ("valid", "test"):
                    marked = part.rows.dup_of_train
                    if marked is None and self.training:
                        if seen is None:
                            seen = hashes_of(rows for p in self.training for rows in _stream_of(p))
                        marked = copies_of(part.rows, seen)
                    if marked is not None:
                        part.drop(DUPLICATE, marked)
                room = left.get(piece.split, self.limit) if self.limit is not None else None
                index = np.flatnonzero(part.kept)[:room]
                if room is not None:
                    left[piece.split] = room - len(index)
                labels[part.labels] = None
                read, kept = read + len(part.label), kept + len(index)
                for reason, mask in part.dropped.items():
                    dropped[reason] = dropped.get(reason, 0) + int(mask.sum())
                yield from part.dataset().with_format("arrow").select_columns(list(columns))[: len(index)].to_pylist()
                if room is not None and left[piece.split] <= 0:
                    break
        tally = self.tally
        tally.read, tally.kept, tally.dropped = read, kept, {reason: n for reason, n in dropped.items() if n}
        tally.labels, tally.layout = ", ".join(labels), ", ".join(dict.fromkeys(p.kind for p in self.wanted))
        gone = "; ".join(f"{n} {reason}" for reason, n in dropped.items() if n) or "none"
        log.info("%s: %d of %d pictures streamed; dropped: %s", self.name, kept, read, gone)

    def _parts(self, piece: Piece) -> Iterator[Part]:
        return (Part(piece, rows, self.name, self.rule, self.classes) for rows in _stream_of(piece))


def _stream_of(piece: Piece) -> Iterator[Any]:
    return piece.stream() if piece.stream is not None else iter([piece.read()])
