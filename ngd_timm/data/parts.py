"""One piece of a data set with its labels: which rows are kept, as which class, and why the others are dropped."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError, choices
from ngd_timm.data.labels import (
    DATASETS,
    GIVEN,
    LABEL_RULES,
    NOT_A_CLASS,
    OTHER_CLASS,
    apply_rule,
    class_of,
    is_class,
)
from ngd_timm.data.layouts import Piece, Rows
from ngd_timm.data.layouts.rows import dataset_of

if TYPE_CHECKING:
    from datasets import Dataset, Features

DUPLICATE = "a copy of a training image"
NO_VOTES = "has no votes but one label an image, which is taken as given"
_NAMED_BY = ("file_name", "source")


@dataclass(frozen=True)
class Selection:
    """Which rows of a data set are kept, and as which class: the options of `load_split`."""

    name: str
    label_rule: str = "majority"
    classes: Sequence[str] = CLASSES
    drop_duplicates: bool = True
    limit: int | None = None
    label_fraction: float | None = None

    def __post_init__(self) -> None:
        checks = [("data set", self.name, DATASETS), ("label rule", self.label_rule, LABEL_RULES)]
        for what, value, known in [*checks, *(("class", c, CLASSES) for c in self.classes)]:
            if value not in known:
                raise choices(what, value, known)
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2:
            raise InputError(f"classes must be at least two different names, got {list(self.classes)}")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit must be at least 1 or absent, got {self.limit}")
        if self.label_fraction is not None and not 0 < self.label_fraction <= 1:
            raise InputError(f"label_fraction must be a share above 0 and at most 1, got {self.label_fraction}")


class Part:
    """The rows of a piece, or some of them, under a label rule.

    `label` is (N,) int64, `NOT_A_CLASS` on dropped rows; `labels` the rule's name, or "given"; `kept` (N,) bool.
    """

    def __init__(self, piece: Piece, rows: Rows, selection: Selection) -> None:
        self.piece, self.rows, self.classes = piece, rows, selection.classes
        self.soft: np.ndarray | None = None
        self.counts: np.ndarray | None = None
        self.lacks_votes = False  # where the rule is of votes
        if rows.votes is not None:
            ruled = apply_rule(rows.votes, selection.label_rule, self.classes)
            self.label, self.soft, reasons = ruled.label, ruled.soft, ruled.dropped
            self.labels = selection.label_rule
            self.counts = rows.votes[:, [CLASSES.index(c) for c in self.classes]]
        else:
            self.lacks_votes = selection.label_rule == "votes" and selection.name == "ferplus"
            self.label, self.labels = self._label_by_name(selection.name), GIVEN
            outside = self.label == NOT_A_CLASS
            reasons = {OTHER_CLASS: outside} if outside.any() else {}
        usable = rows.usable()
        self.dropped = {**rows.dropped, **{reason: mask & usable for reason, mask in reasons.items()}}
        self.kept = (self.label != NOT_A_CLASS) & usable

    def _label_by_name(self, dataset: str) -> np.ndarray:
        names, label = self.rows.names, self.rows.label
        assert names is not None
        assert label is not None
        if not names:
            return label
        place = {c: i for i, c in enumerate(self.classes)}
        try:
            index = np.array([place.get(class_of(dataset, name), NOT_A_CLASS) for name in names], dtype=np.int64)
        except InputError as error:
            remedy = "ROOT,unknown=drop drops such rows"
            if all(name.isdecimal() for name in names):
                remedy = "say which number is which class: ROOT,names=angry/disgusted/…, from 0 on"
            elif not any(is_class(dataset, name) for name in names):
                remedy = f"nor is any other name one of {dataset}'s; give the folder or file whose names are classes"
            raise InputError(f"{self.piece.shown}: {error}; {remedy}") from None
        return np.where(label < 0, NOT_A_CLASS, index[label])

    def drop(self, reason: str, mask: np.ndarray) -> None:
        """Drop the rows of `mask` that are still kept."""
        self.dropped[reason] = mask & self.kept
        self.kept = self.kept & ~mask

    def drop_copies(self, training_hashes: Callable[[], set[bytes] | None]) -> None:
        """Drop copies of training images: by the rows' own mark, else by pixel hashes, where there are some."""
        copies = self.rows.dup_of_train
        if copies is None:
            hashes = training_hashes()
            if hashes is None:
                return
            copies = self.rows.usable()
            copies[copies] = [h in hashes for h in self.rows.pixel_hashes]
        self.drop(DUPLICATE, copies)

    def features(self) -> Features:
        """The `datasets` features of `dataset()`."""
        from datasets import ClassLabel, Features, Image, List, Value

        number, classwise = Value("float32"), List(Value("float32"), length=len(self.classes))
        known = {"image": Image(), "valence": number, "arousal": number}
        features = {c: known.get(c, Value("string")) for c in self.rows.table.column_names}
        features["label"] = ClassLabel(names=list(self.classes))
        return Features({**features, **{c: classwise for c, _ in self._class_columns()}})

    def _class_columns(self) -> Iterator[tuple[str, np.ndarray]]:
        for name, values in (("votes", self.counts), ("soft_label", self.soft)):
            if values is not None:
                yield name, values.astype(np.float32)

    def dataset(self, hold: bool = False) -> Dataset:
        """The kept rows; with `hold` their image files are read into memory, see `Rows.held`."""
        index = np.flatnonzero(self.kept)
        held = self.rows.held(index) if hold else None
        rows = np.arange(len(self.label)) if held is None else index
        table = self.rows.table if held is None else held
        for name, values in (("label", self.label), *self._class_columns()):
            table = table.append_column(name, _arrow(values[rows]))
        dataset = dataset_of(table.cast(self.features().arrow_schema))
        return dataset.select(index) if held is None else dataset


def keep_fraction(parts: Sequence[Part], fraction: float) -> None:
    """Keep a share of each class's rows of all parts, one at least: those whose names have the smallest sha256.

    So a smaller share is within a larger one, and no seed has a part in it. A row's name is its `file_name`, or its
    `source` where it has none.
    """
    names = [
        [
            file_name or source
            for file_name, source in zip(*(p.rows.table[c].to_pylist() for c in _NAMED_BY), strict=True)
        ]
        for p in parts
    ]
    away = [part.kept.copy() for part in parts]
    for c in range(len(parts[0].classes) if parts else 0):
        rows = [(n, row) for n, p in enumerate(parts) for row in np.flatnonzero(p.kept & (p.label == c)).tolist()]
        rows.sort(key=lambda at: (hashlib.sha256(names[at[0]][at[1]].encode()).digest(), at))
        for n, row in rows[: max(round(fraction * len(rows)), 1)]:
            away[n][row] = False
    for part, mask in zip(parts, away, strict=True):
        part.drop(f"beyond label_fraction={fraction:g}", mask)


def dropped_counts(parts: Iterable[Part]) -> dict[str, int]:
    """Reason → rows of all parts."""
    counts: Counter[str] = Counter()
    for part in parts:
        for reason, mask in part.dropped.items():
            counts[reason] += int(mask.sum())
    return {reason: n for reason, n in counts.items() if n}


def _arrow(values: np.ndarray) -> Any:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
