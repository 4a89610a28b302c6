"""Split-half stability of the grid: grids of two random halves of the subjects, compared cell by cell."""

from __future__ import annotations

from typing import Any

import numpy as np

from ngd_timm.core.affect import cell_of
from ngd_timm.core.errors import InputError
from ngd_timm.eeg.scores import middle
from ngd_timm.grid.averages import numbered, sums_of, trial_index
from ngd_timm.grid.mantel import Exchange, HeldOut


def split_half(
    embeddings: np.ndarray,
    valence_arousal: np.ndarray,
    subjects: np.ndarray,
    trials: np.ndarray,
    size: int = 5,
    splits: int = 200,
    permutations: int = 500,
    seed: int = 0,
    held_out: HeldOut | None = None,
) -> dict[str, Any]:
    """Grids of random halves of the subjects, compared cell by cell; `embeddings` (N, D) are held out, in one frame.

    `cosine` is near 1 for any grid whose rows crowd together; `centered` subtracts each half's mean prototype, and has
    `chance` and one-sided `p` under ratings permuted as in `mantel_test`.
    """
    unit = _unit(np.asarray(embeddings, dtype=np.float64))
    index = numbered(subjects)
    count = int(index.max()) + 1
    if count < 4:
        raise InputError(f"halves of {count} subjects can't be compared; at least four are needed")
    first, trial = trial_index(index, trials)
    sums, weights = sums_of(unit, trial, len(first)), np.bincount(trial).astype(np.float64)
    owner, ratings = index[first], valence_arousal[first]
    exchange = Exchange(ratings, owner, held_out and held_out.rows(first))

    rng = np.random.default_rng(seed)
    halves = np.zeros((splits, count), dtype=bool)
    for half in halves:
        half[rng.permutation(count)[: count // 2]] = True

    plain, centred, common = _compare(halves, sums, weights, owner, cell_of(ratings, size), size)
    usable = common >= 3
    if not usable.any():
        raise InputError(f"no two halves of the subjects fill three cells of a {size} x {size} grid in common")
    value = float(centred[usable].mean())
    by_chance = np.empty(permutations)
    for i in range(permutations):
        _, drawn, shared = _compare(halves, sums, weights, owner, cell_of(exchange(rng), size), size)
        # ratings of which no halves can be compared count against the grid
        by_chance[i] = drawn[shared >= 3].mean() if (shared >= 3).any() else 1.0
    return {
        "splits": int(usable.sum()),
        "cells": round(float(common[usable].mean()), 1),
        "cosine": {"value": round(float(plain[usable].mean()), 4), "ci95": middle(plain[usable])},
        "centered": {
            "value": round(value, 4),
            "ci95": middle(centred[usable]),
            "chance": round(float(by_chance.mean()), 4),
            "p": round((1 + int((by_chance >= value - 1e-12).sum())) / (1 + permutations), 5),
        },
    }


def _compare(
    halves: np.ndarray, sums: np.ndarray, weights: np.ndarray, owner: np.ndarray, cells: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean cosine as they are and centred, and the number of cells that both halves fill, for each split."""
    splits, subjects = halves.shape
    slot, slots = owner * size * size + cells, subjects * size * size
    total, weight = sums_of(sums, slot, slots), np.bincount(slot, weights, slots)
    present = (weight > 0).reshape(subjects, size * size)
    means = (total / np.maximum(weight, 1)[:, None]).reshape(subjects, -1)
    grids = []
    both = np.ones((splits, size * size), dtype=bool)
    for half in (halves, ~halves):
        grids.append(_unit((half.astype(np.float64) @ means).reshape(splits, size * size, -1)))
        both &= half.astype(np.int64) @ present.astype(np.int64) > 0
    common, mask = both.sum(axis=1), both[:, :, None]
    divisor = np.maximum(common, 1)
    centred = [_unit(grid - (grid * mask).sum(axis=1, keepdims=True) / divisor[:, None, None]) for grid in grids]
    plain_cosine, centred_cosine = ((one * other * mask).sum(axis=(1, 2)) / divisor for one, other in (grids, centred))
    return plain_cosine, centred_cosine, common


def _unit(rows: np.ndarray) -> np.ndarray:
    # an empty cell stays 0 and is masked by the caller
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
