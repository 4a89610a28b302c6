"""One piece of a data set with its labels: which rows are kept, as what, and why the rest goes."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError
from ngd_timm.data.labels import NOT_A_CLASS, OTHER_CLASS, apply_rule, class_of
from ngd_timm.data.layouts import Piece, Rows

if TYPE_CHECKING:
    from datasets import Dataset, Features

__all__ = ["Part"]


class Part:
    """The rows of a piece, or some of them, under a label rule.

    Args:
        piece: Where they are from.
        rows: The rows.
        name: One of `DATASETS`.
        rule: How votes become labels.
        classes: Class names, in the order of the labels.

    Attributes:
        label: (N,) int64 index into `classes`, `NOT_A_CLASS` where the row goes.
        labels: The rule's name, or "given" where the set names one class a picture.
        dropped: Reason → (N,) bool.
        kept: (N,) bool.

    Raises:
        InputError: A class name that the data set doesn't have, or the rule `votes` for FER+ without votes.
    """

    def __init__(self, piece: Piece, rows: Rows, name: str, rule: str, classes: Sequence[str]) -> None:
        self.piece, self.rows, self.classes = piece, rows, classes
        self.soft: np.ndarray | None = None
        self.counts: np.ndarray | None = None
        if rows.votes is not None:
            ruled = apply_rule(rows.votes, rule, classes)
            self.label, self.soft, reasons, self.labels = ruled.label, ruled.soft, dict(ruled.dropped), rule
            self.counts = rows.votes[:, [CLASSES.index(c) for c in classes]]
        else:
            if rule == "votes" and name == "ferplus":
                raise InputError(
                    f"{piece.shown}: label_rule=votes needs FER+'s vote columns, but there is only a label; "
                    "use label_rule=majority or the file with votes"
                )
            assert rows.names is not None
            assert rows.label is not None
            self.label, self.labels = _by_name(rows.names, rows.label, name, classes, piece), "given"
            outside = self.label == NOT_A_CLASS
            reasons = {OTHER_CLASS: outside} if outside.any() else {}
        usable = rows.usable()
        self.dropped = {**rows.dropped, **{reason: mask & usable for reason, mask in reasons.items()}}
        self.kept = (self.label != NOT_A_CLASS) & usable

    def drop(self, reason: str, mask: np.ndarray) -> None:
        """Give up the rows of `mask` that are still kept."""
        self.dropped[reason] = mask & self.kept
        self.kept = self.kept & ~mask

    def features(self) -> Features:
        """The `datasets` features of `dataset()`."""
        from datasets import ClassLabel, Features, List, Value

        features = self.rows.features()
        features["label"] = ClassLabel(names=list(self.classes))
        for column, values in (("votes", self.counts), ("soft_label", self.soft)):
            if values is not None:
                features[column] = List(Value("float32"), length=len(self.classes))
        return Features(features)

    def dataset(self) -> Dataset:
        """The kept rows."""
        from datasets import Dataset

        table = self.rows.table.append_column("label", _arrow(self.label))
        for column, values in (("votes", self.counts), ("soft_label", self.soft)):
            if values is not None:
                table = table.append_column(column, _arrow(values.astype(np.float32)))
        # with a fingerprint of its own, as `datasets` would pickle every picture to make one
        whole = Dataset(table.cast(self.features().arrow_schema), info=None, fingerprint=uuid.uuid4().hex[:16])
        return whole.select(np.flatnonzero(self.kept))


def _by_name(names: Sequence[str], label: np.ndarray, dataset: str, classes: Sequence[str], piece: Piece) -> np.ndarray:
    index = {c: i for i, c in enumerate(classes)}
    place = np.empty(len(names), dtype=np.int64)
    for i, name in enumerate(names):
        try:
            place[i] = index.get(class_of(dataset, name), NOT_A_CLASS)
        except InputError as error:
            raise InputError(f"{piece.shown}: {error}") from None
    return np.where(label < 0, NOT_A_CLASS, place[label]) if len(names) else label


def _arrow(values: np.ndarray) -> Any:
    import pyarrow as pa

    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
