"""Would other people have given the same grid? Grids of two halves of the subjects, compared cell by cell."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ngd_timm.core.affect import cell_of
from ngd_timm.core.errors import InputError
from ngd_timm.eeg.signal.bandpower import trial_index
from ngd_timm.grid.mantel import permute_within

__all__ = ["Stability", "split_half"]


class Stability(NamedTuple):
    """Mean cosine between two halves' prototypes of the same cell.

    Attributes:
        cosine: Of the prototypes as they are; near 1 for any grid whose rows crowd together.
        cosine_range: 2.5th and 97.5th percentile over the splits.
        centered: The same after each half's mean prototype is subtracted: what the halves agree on about the plane.
        centered_range: As `cosine_range`.
        chance: Mean of `centered` with ratings permuted within subject.
        p: One-sided, of `centered`.
        cells: Mean number of cells that both halves fill.
        splits: Number of splits.
        permutations: Number of permutations.
    """

    cosine: float
    cosine_range: tuple[float, float]
    centered: float
    centered_range: tuple[float, float]
    chance: float
    p: float
    cells: float
    splits: int
    permutations: int


def split_half(
    embeddings: np.ndarray,
    valence_arousal: np.ndarray,
    subjects: np.ndarray,
    trials: np.ndarray,
    size: int = 5,
    splits: int = 200,
    permutations: int = 500,
    seed: int = 0,
) -> Stability:
    """Split the subjects into random halves, build a grid from each, and compare them.

    A coarse grid is stable and says little, a fine one says much and isn't stable: the figure for 3, 5 and 7 cells a
    side is the argument for a size.

    Args:
        embeddings: (N, D) held-out embeddings in one frame.
        valence_arousal: (N, 2) in [-1, 1], one value a trial.
        subjects: (N,).
        trials: (N,), numbered within a subject.
        size: S, cells along an axis.
        splits: Random halves; the same ones serve the permutations.
        permutations: Of the ratings among a subject's trials, windows of a trial together.
        seed: Of both.

    Raises:
        InputError: Fewer than four subjects, or halves that never fill three cells in common.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> va = rng.uniform(-1, 1, (240, 2))
        >>> subject, trial = np.repeat(np.arange(12), 20), np.tile(np.arange(20), 12)
        >>> rows = np.concatenate([va, 0.1 * rng.standard_normal((240, 6))], axis=1)
        >>> found = split_half(rows, va, subject, trial, size=3, splits=20, permutations=50)
        >>> found.centered > 0.7, found.p < 0.05
        (True, True)
    """
    unit = np.asarray(embeddings, dtype=np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    who = np.unique(subjects, return_inverse=True)[1].reshape(-1)
    people = int(who.max()) + 1
    if people < 4:
        raise InputError(f"halves of {people} subjects can't be compared; at least four are needed")
    first, trial = trial_index(who, trials)
    sums = np.zeros((len(first), unit.shape[1]))
    np.add.at(sums, trial, unit)
    weights = np.bincount(trial).astype(np.float64)
    owner, cells = who[first], cell_of(valence_arousal[first], size)

    rng = np.random.default_rng(seed)
    halves = np.zeros((splits, people), dtype=bool)
    for half in halves:
        half[rng.permutation(people)[: people // 2]] = True

    def compare(of_trial: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean cosine as they are and centred, and cells compared, for each split."""
        total = np.zeros((people * size * size, unit.shape[1]))
        weight = np.zeros(people * size * size)
        slot = owner * size * size + of_trial
        np.add.at(total, slot, sums)
        np.add.at(weight, slot, weights)
        present = (weight > 0).reshape(people, size * size)
        means = total / np.maximum(weight, 1)[:, None]
        of_person = means.reshape(people, -1)
        grids = []
        both = np.ones((splits, size * size), dtype=bool)
        for half in (halves, ~halves):
            grids.append(_unit((half.astype(np.float64) @ of_person).reshape(splits, size * size, -1)))
            both &= half.astype(np.int64) @ present.astype(np.int64) > 0
        count = both.sum(axis=1)
        mask = both[:, :, None]
        plain = (grids[0] * grids[1] * mask).sum(axis=(1, 2)) / np.maximum(count, 1)
        centred = [
            _unit(grid - (grid * mask).sum(axis=1, keepdims=True) / np.maximum(count, 1)[:, None, None])
            for grid in grids
        ]
        return plain, (centred[0] * centred[1] * mask).sum(axis=(1, 2)) / np.maximum(count, 1), count

    plain, centred, count = compare(cells)
    usable = count >= 3
    if not usable.any():
        raise InputError(f"no two halves of the subjects fill three cells of a {size} x {size} grid in common")
    value = float(centred[usable].mean())
    by_subject = [np.flatnonzero(owner == person) for person in range(people)]
    drawn = np.empty(permutations)
    for index in range(permutations):
        # which cells a person fills never changes, so neither do the usable splits
        drawn[index] = compare(permute_within(cells, by_subject, rng))[1][usable].mean()
    return Stability(
        cosine=float(plain[usable].mean()),
        cosine_range=_range(plain[usable]),
        centered=value,
        centered_range=_range(centred[usable]),
        chance=float(drawn.mean()),
        p=(1 + int((drawn >= value - 1e-12).sum())) / (1 + permutations),
        cells=float(count[usable].mean()),
        splits=int(usable.sum()),
        permutations=permutations,
    )


def _unit(rows: np.ndarray) -> np.ndarray:
    # an empty cell stays 0 and is masked by whoever calls
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
