"""A validation split for data sets that have none: some of the training pictures, the same ones every time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ngd_timm.data.duplicates import pixel_hashes
from ngd_timm.data.parts import Part
from ngd_timm.errors import InputError

__all__ = ["HELD_OUT", "TRAINED_ON", "held_out"]

HELD_OUT, TRAINED_ON = "held out for validation", "trained on"


def held_out(parts: Sequence[Part], share: float) -> list[np.ndarray]:
    """Which rows of the training pictures are held out.

    Where the set names people, whole people are, chosen so that their pictures are about `share` of each class. Else it
    is `share` of each class by the order of the pictures' hashes, so that copies of a picture lie on one side, and
    neither the order of the files nor a seed matters.

    Args:
        parts: All training rows, under the label rule that counts.
        share: Of the kept rows, between 0 and 1.

    Returns:
        For each part (N,) bool.

    Raises:
        InputError: Fewer than two people.
    """
    label = np.concatenate([part.label[part.kept] for part in parts])
    people = [_people(part) for part in parts]
    if all(of is not None for of in people):
        held = _whole_people(np.concatenate([of for of in people if of is not None]), label, share)
    else:
        held = _by_hash(np.concatenate([_hashes(part) for part in parts]), label, share)
    masks = []
    for part in parts:
        mask = np.zeros(len(part.kept), dtype=bool)
        count = int(part.kept.sum())
        mask[part.kept], held = held[:count], held[count:]
        masks.append(mask)
    return masks


def _people(part: Part) -> np.ndarray | None:
    """The person of each kept row, or None where some have none."""
    if "subject" not in part.rows.table.column_names:
        return None
    subject = np.array(part.rows.table["subject"].to_pylist(), dtype=object)[part.kept]
    return None if any(person is None for person in subject) else subject.astype(str)


def _hashes(part: Part) -> np.ndarray:
    hashes = np.full(len(part.kept), b"", dtype="S32")
    hashes[part.rows.usable()] = list(pixel_hashes(part.rows))
    return hashes[part.kept]


def _whole_people(people: np.ndarray, label: np.ndarray, share: float) -> np.ndarray:
    from sklearn.model_selection import StratifiedGroupKFold

    folds = min(round(1 / share), len(np.unique(people)))
    if folds < 2:
        raise InputError(f"hold_out={share:g} needs at least two people among the training pictures; leave it out")
    _, rows = next(StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(people, label, people))
    held = np.zeros(len(label), dtype=bool)
    held[rows] = True
    return held


def _by_hash(hashes: np.ndarray, label: np.ndarray, share: float) -> np.ndarray:
    held = np.zeros(len(label), dtype=bool)
    for c in np.unique(label):
        rows = np.flatnonzero(label == c)
        last = np.sort(hashes[rows])[max(round(share * len(rows)) - 1, 0)]
        held[rows] = (hashes[rows] <= last) & (share * len(rows) >= 0.5)
    # copies under two labels would lie on two sides
    return held & ~np.isin(hashes, hashes[~held])
