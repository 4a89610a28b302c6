"""A data set a few rows at a time, for sets that shouldn't be held or downloaded whole."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.data.layouts import Piece, Rows, dataset_id
from ngd_timm.data.parts import NO_VOTES, Part, Selection, dropped_counts

if TYPE_CHECKING:
    from datasets import IterableDataset

log = logging.getLogger("ngd_timm.data")

_HELD_OUT = ("valid", "test")


@dataclass
class Tally:
    """What the last whole pass over a stream read, dropped and kept; the fields are those of `LoadReport`."""

    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    labels: str = ""
    layout: str = ""
    dataset_id: str = ""


@dataclass(frozen=True)
class StreamedRows:
    """The rows of `pieces` as `load_fer` would keep them, read lazily."""

    pieces: Sequence[Piece]
    training: Sequence[Piece]
    selection: Selection
    tally: Tally = field(default_factory=Tally)
    counted: dict[tuple[str, str | None], Tally] = field(default_factory=dict)  # by piece, of the last pass over it

    def dataset(self) -> IterableDataset:
        from datasets import IterableDataset

        for piece in self.pieces:
            if piece.stream is None:
                raise InputError(
                    f"{piece.shown}: {piece.kind} can't be streamed, only parquet files and Hub ids; leave streaming "
                    "out"
                )
        features = self._features()
        # lists in gen_kwargs are divided among processes and workers: all others are bound, or rows would be repeated
        rows = partial(self._examples, list(features))
        divisible = self.selection.limit is None and all(p.split not in _HELD_OUT for p in self.pieces)
        shards = {"pieces": list(self.pieces)} if divisible else None
        return IterableDataset.from_generator(rows, features=features, gen_kwargs=shards)

    def _features(self) -> Any:
        """The columns that all pieces have, from the first rows of each."""
        first = [part for piece in self.pieces if (part := next(self._parts(piece), None)) is not None]
        if not first:
            raise InputError(f"{self.pieces[0].shown} has no rows")
        for part in first:
            if part.lacks_votes:
                log.warning(f"{part.piece.shown}: {NO_VOTES}")
        found = [part.features() for part in first]
        shared = set.intersection(*(set(f) for f in found))
        return type(found[0])({c: f for c, f in found[0].items() if c in shared})

    def _examples(self, columns: Sequence[str], pieces: Sequence[Piece] = ()) -> Iterator[dict[str, Any]]:
        left: dict[str | None, int] = {}
        hashes = cache(self._training_hashes)  # one pass over the training split, before the first held-out row
        for piece in pieces or self.pieces:
            tally, dropped, labels = Tally(), Counter[str](), dict[str, None]()
            for part in self._parts(piece):
                if self.selection.drop_duplicates and piece.split in _HELD_OUT:
                    part.drop_copies(hashes)
                room = None if self.selection.limit is None else left.get(piece.split, self.selection.limit)
                n = len(np.flatnonzero(part.kept)[:room])
                if room is not None:
                    left[piece.split] = room - n
                labels[part.labels] = None
                tally.read, tally.kept = tally.read + len(part.label), tally.kept + n
                dropped.update(dropped_counts([part]))
                yield from part.dataset().with_format("arrow").select_columns(list(columns))[:n].to_pylist()
                if room is not None and left[piece.split] <= 0:
                    break
            tally.dropped, tally.labels = dict(dropped), ", ".join(labels)
            self.counted[piece.shown, piece.split] = tally
        self._sum()
        if piece == self.pieces[-1]:
            tally = self.tally
            reasons = "; ".join(f"{n} {reason}" for reason, n in tally.dropped.items()) or "none"
            log.info("%s: %d of %d images streamed; dropped: %s", self.selection.name, tally.kept, tally.read, reasons)

    def _sum(self) -> None:
        """Bring the tally of all pieces up to date."""
        dropped, labels, total = Counter[str](), dict[str, None](), self.tally
        for tally in self.counted.values():
            dropped.update(tally.dropped)
            labels.update(dict.fromkeys(tally.labels.split(", ")))
        total.read = sum(tally.read for tally in self.counted.values())
        total.kept = sum(tally.kept for tally in self.counted.values())
        total.dropped, total.labels = dict(dropped), ", ".join(filter(None, labels))
        total.layout = ", ".join(dict.fromkeys(p.kind for p in self.pieces))
        total.dataset_id = dataset_id(self.pieces)

    def _training_hashes(self) -> set[bytes] | None:
        if not self.training:
            return None
        return {h for piece in self.training for rows in streamed(piece) for h in rows.pixel_hashes}

    def _parts(self, piece: Piece) -> Iterator[Part]:
        return (Part(piece, rows, self.selection) for rows in streamed(piece))


def streamed(piece: Piece) -> Iterator[Rows]:
    """The rows of a piece a few at a time, all at once where it can't be streamed."""
    return piece.stream() if piece.stream is not None else iter([piece.read()])
