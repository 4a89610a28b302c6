"""Does a grid follow the valence/arousal plane? Mantel's correlation and its permutation test."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from ngd_timm.core.affect import cell_distances, cell_of
from ngd_timm.core.errors import InputError
from ngd_timm.grid.averages import (
    checked_rows,
    checked_size,
    numbered,
    pooled_sums,
    rows_of,
    sums_of,
    trial_index,
    unit,
)


class Mantel(NamedTuple):
    """Correlation between prototype dissimilarity and cell distance, with its one-sided permutation p."""

    r: float
    p: float
    permutations: int


class HeldOut(NamedTuple):
    """Of each row its stimulus (N,) and the fold, (N,) or (N, 2), whose teacher has not seen that stimulus."""

    stimulus: np.ndarray
    fold: np.ndarray

    def rows(self, index: np.ndarray) -> HeldOut:
        """Of these rows alone."""
        return HeldOut(self.stimulus[index], self.fold[index])


def mantel_r(rows: np.ndarray, distances: np.ndarray) -> float:
    """Pearson r between 1 - cosine of unit rows (F, D) and the distances (F, F) of their cells, over pairs of cells."""
    if len(rows) < 3:
        raise InputError(f"a Mantel correlation needs at least three filled cells, got {len(rows)}")
    upper = np.triu_indices(len(rows), 1)
    dissimilarity = 1 - (rows @ rows.T)[upper]
    if dissimilarity.std() < 1e-12 or distances[upper].std() < 1e-12:
        return 0.0
    return float(np.corrcoef(dissimilarity, distances[upper])[0, 1])


def mantel_test(
    embeddings: np.ndarray | torch.Tensor,
    valence_arousal: np.ndarray | torch.Tensor,
    subjects: np.ndarray,
    trials: np.ndarray,
    size: int = 5,
    permutations: int = 2000,
    seed: int = 0,
    *,
    min_subjects: int = 1,
    center: bool = False,
    frames: np.ndarray | None = None,
    held_out: HeldOut | None = None,
) -> Mantel:
    """Test whether the grid of these embeddings follows the plane more than grids of permuted ratings do.

    Ratings are permuted among a subject's trials, all windows of a trial together, and the grid is rebuilt each time;
    which cells are filled and by whom does not change. With `frames` (N,), see `PrototypeGrid.build`, every
    permutation rotates them onto one another anew, because that uses the ratings. The declared test is that of
    `center=True` at the grid's own size.

    Where stimuli are shared, embeddings that know a stimulus by its EEG pass as well, whatever they hold of affect
    (`tests/benchmarks/null_grids.py --stimulus .3`). With `held_out` they don't: a fold's stimuli exchange their mean
    ratings, see `Exchange`, and ratings of which no grid can be built count against this one. That needs teachers
    fitted without the stimulus, since others have learned its rating.

    Reference:
        Mantel, "The detection of disease clustering and a generalized regression approach", Cancer Res. 27 (1967).
    """
    size = checked_size(size)
    if permutations < 1:
        raise InputError(f"permutations must be at least 1, got {permutations}")
    rows, va, who = checked_rows(embeddings, valence_arousal, subjects, min_subjects)
    if np.shape(trials) != who.shape:
        raise InputError(f"trials must have shape {who.shape}, got {np.shape(trials)}")
    first, trial = trial_index(who, np.asarray(trials))
    owner = who[first]
    exchange = Exchange(va[first], owner, held_out and held_out.rows(first))
    if not np.array_equal(va, va[first][trial]):
        raise InputError("a trial has more than one valence/arousal rating; permuting trials needs exactly one")
    if not exchange.possible:
        if held_out is not None:
            raise InputError("every fold holds out one stimulus, and there is nothing to exchange; use fewer folds")
        raise InputError("no subject has two trials: nothing to permute; give subject and trial of each row")
    sums, windows = sums_of(rows, trial, len(first)), np.bincount(trial).astype(np.float64)
    frame = None if frames is None else np.asarray(frames)[first]
    distances = cell_distances(size)

    def statistic(ratings: np.ndarray) -> float:
        means, people = pooled_sums(sums, cell_of(ratings, size), owner, size, windows, frame)
        filled = people >= min_subjects
        means = unit(means[filled], "the embeddings of a cell cancel out")
        if center:
            means = unit(means - means.mean(axis=0), "centring needs filled cells that differ from their mean")
        return mantel_r(means, distances[np.ix_(filled, filled)])

    def by_chance(rng: np.random.Generator) -> float:
        try:
            return statistic(exchange(rng))
        except InputError:  # too few cells
            return np.inf

    r = statistic(va[first])
    rng = np.random.default_rng(seed)
    reached = sum(by_chance(rng) >= r - 1e-12 for _ in range(permutations))
    return Mantel(r, (1 + reached) / (1 + permutations), permutations)


def mantel_notes(*rows_and_settings: Any, **options: Any) -> dict[str, str]:
    """What a grid's metadata say of `mantel_test`, whose arguments these are, with and without `center`."""
    found = {center: mantel_test(*rows_and_settings, **options, center=center) for center in (False, True)}
    notes = {"mantel_permutations": str(found[True].permutations)}
    for suffix, test in (("", found[False]), ("_centered", found[True])):
        notes |= {f"mantel_r{suffix}": f"{test.r:.4f}", f"mantel_p{suffix}": f"{test.p:.4f}"}
    return notes


class Exchange:
    """Draws ratings (T, …) as they would be if the EEG held no affect.

    They are permuted within subjects (T,). Where stimuli are held out, these exchange their mean ratings within a fold,
    and what a rating has beyond its stimulus's mean is permuted within subject and fold. So what subjects share about
    a stimulus, in the EEG as in the ratings, stays together, whoever met it; few stimuli make a wide chance; a fold
    that holds out high ratings stays one. No drawn rating lies beyond the given ones.

    Attributes:
        possible: Whether there is something to exchange.

    Examples:
        >>> clip = np.array([0, 1, 2, 3, 0, 1, 2, 3])
        >>> exchange = Exchange(10.0 * clip, np.zeros(8), HeldOut(clip, clip // 2))
        >>> exchange(np.random.default_rng(3)).tolist()
        [10.0, 0.0, 30.0, 20.0, 10.0, 0.0, 30.0, 20.0]
    """

    def __init__(self, ratings: np.ndarray, within: np.ndarray, held_out: HeldOut | None = None) -> None:
        self._own, self._means = ratings, None
        self._range = ratings.min(axis=0), ratings.max(axis=0)
        if held_out is not None:
            self._stimulus = numbered(held_out.stimulus)
            first = np.unique(self._stimulus, return_index=True)[1]
            self._means = np.stack([ratings[self._stimulus == number].mean(axis=0) for number in range(len(first))])
            self._own = ratings - self._means[self._stimulus]
            # of folds by subject and stimulus the second column is the stimulus's
            self._folds = rows_of(held_out.fold.reshape(len(ratings), -1)[first, -1])
            within = numbered(np.column_stack([within, held_out.fold]))
        self._within = rows_of(within)
        self.possible = max(map(len, self._within if held_out is None else self._folds)) > 1

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """One draw, (T, …)."""
        own = _permuted(self._own, self._within, rng)
        if self._means is None:
            return own
        return (_permuted(self._means, self._folds, rng)[self._stimulus] + own).clip(*self._range)


def _permuted(values: np.ndarray, groups: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    out = values.copy()
    for rows in groups:
        out[rows] = values[rng.permutation(rows)]
    return out
