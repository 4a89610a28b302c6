"""A validation split for data sets that have none: some of the training pictures, the same ones every time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from ngd_timm.data.duplicates import pixel_hashes
from ngd_timm.data.layouts import Rows
from ngd_timm.errors import InputError

__all__ = ["HELD_OUT", "TRAINED_ON", "held_out"]

HELD_OUT, TRAINED_ON = "held out for validation", "trained on"


def held_out(pieces: Sequence[Rows], share: float) -> list[np.ndarray]:
    """Which rows of the training pictures are held out.

    Neither label rule, classes, the order of files nor a seed has a part in it, so that what one run trains on is never
    what another command scores. Where the set names people, whole people are held out, the first `share` of them by the
    hashes of their names; else the pictures whose own hash lies in the first `share` of all hashes, copies with them.

    Args:
        pieces: All training rows.
        share: Between 0 and 1.

    Returns:
        For each piece (N,) bool, False on rows that the layout gives up.

    Raises:
        InputError: One person alone.
    """
    people = [_people(rows) for rows in pieces]
    if all(of is not None for of in people):
        chosen = _first_people(sorted({person for of in people if of is not None for person in of}), share)
        return [
            np.array([person in chosen for person in of or ()]) & r.usable()
            for of, r in zip(people, pieces, strict=True)
        ]
    masks = []
    for rows in pieces:
        mask = rows.usable()
        mask[mask] = [int.from_bytes(h[:8], "big") < share * 2**64 for h in pixel_hashes(rows)]
        masks.append(mask)
    return masks


def _people(rows: Rows) -> list[str] | None:
    """The person of each row, or None where some have none."""
    if "subject" not in rows.table.column_names:
        return None
    subjects = rows.table["subject"].to_pylist()
    return None if any(person is None for person in subjects) else [str(person) for person in subjects]


def _first_people(people: Sequence[str], share: float) -> set[str]:
    if len(people) < 2:
        raise InputError(f"hold_out={share:g} holds whole people out, and there is only {people[0]}; leave it out")
    ordered = sorted(people, key=lambda person: hashlib.sha256(person.encode()).digest())
    return set(ordered[: max(round(share * len(people)), 1)])
