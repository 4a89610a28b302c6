"""A validation split for data sets that have none: some of the training images, the same ones every time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.data.labels import SUBJECT_IN_NAME
from ngd_timm.data.layouts import Rows

HELD_OUT, TRAINED_ON = "held out for validation", "trained on"


def held_out(pieces: Sequence[Rows], share: float, dataset: str) -> list[np.ndarray]:
    """Which training rows are held out, (N,) bool for each piece.

    Neither label rule, classes, the order of files nor a seed has a part in it, so that what one run trains on is never
    what another command scores. Where the set names subjects, whole subjects are held out, the first `share` of them by
    the hashes of their names; else the images whose own hash lies in the first `share` of all hashes, copies with them.
    """
    subjects = [_subjects(rows) for rows in pieces]
    named = zip(subjects, (rows.usable() for rows in pieces), strict=True)
    known = sorted({name for names, usable in named for name in np.array(names, object)[usable] if name is not None})
    if known or dataset in SUBJECT_IN_NAME:
        _refuse_unnamed(pieces, subjects, share, dataset)
        first = _first_subjects(known, share)
        return [
            np.array([name in first for name in names], dtype=bool) & rows.usable()
            for names, rows in zip(subjects, pieces, strict=True)
        ]
    masks = []
    for rows in pieces:
        mask = rows.usable()
        mask[mask] = [int.from_bytes(h[:8], "big") < share * 2**64 for h in rows.pixel_hashes]
        masks.append(mask)
    return masks


def _subjects(rows: Rows) -> list[str | None]:
    """The subject of each row, None where it has none."""
    if "subject" not in rows.table.column_names:
        return [None] * rows.table.num_rows
    return [str(name) if name else None for name in rows.table["subject"].to_pylist()]


def _refuse_unnamed(
    pieces: Sequence[Rows], subjects: Sequence[Sequence[str | None]], share: float, dataset: str
) -> None:
    """An image without a subject may show one of the other side."""
    usable = np.concatenate([rows.usable() for rows in pieces])
    unnamed = np.array([name is None for names in subjects for name in names], dtype=bool) & usable
    if unnamed.any():
        sources = [source for rows in pieces for source in rows.table["source"].to_pylist()]
        raise InputError(
            f"hold_out={share:g} keeps every subject on one side, and {unnamed.sum()} of {usable.sum()} images of "
            f"{dataset} name none (first: {sources[int(unnamed.argmax())]}); give a column 'subject' in all rows, or "
            "for CK+ and JAFFE file names as published (S010_004_00000019.png, KA.AN1.39.tiff)"
        )


def _first_subjects(subjects: Sequence[str], share: float) -> set[str]:
    if len(subjects) < 2:
        named = f"only {subjects[0]}" if subjects else "none"
        raise InputError(f"hold_out={share:g} holds whole subjects out, and there is {named}; leave it out")
    ordered = sorted(subjects, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(ordered[: max(round(share * len(subjects)), 1)])
