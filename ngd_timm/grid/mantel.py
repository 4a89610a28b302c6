"""Does a grid follow the valence/arousal plane? Mantel's correlation and its permutation test."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ngd_timm.core.affect import cell_distances, cell_of
from ngd_timm.core.errors import InputError
from ngd_timm.grid.averages import (
    cell_sums,
    checked_rows,
    checked_size,
    numbered,
    pooled_sums,
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
    which cells are filled and by whom never changes. With `frames` (N,), see `PrototypeGrid.build`, every
    permutation rotates them onto one another anew, because that uses the ratings. The declared test is that of
    `center=True` at the grid's own size.

    Where stimuli are shared, embeddings that know a stimulus by its EEG pass as well, whatever they hold of affect
    (`tests/benchmarks/null_grids.py --stimulus .3`). With `held_out` they don't: the ratings of a fold's stimuli change
    places as wholes. That needs teachers fitted without the stimulus, since others have learned its rating.

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
    owner, cells = who[first], cell_of(va[first], size)
    groups = exchangeable(owner, held_out, first)
    if not np.array_equal(va, va[first][trial]):
        raise InputError("a trial has more than one valence/arousal rating; permuting trials needs exactly one")
    if np.bincount(groups[0]).max() < 2:
        if held_out is not None:
            raise InputError("every fold holds out one stimulus, and there is nothing to exchange; use fewer folds")
        raise InputError("no subject has two trials: nothing to permute; give subject and trial of each row")
    sums, windows = sums_of(rows, trial, len(first)), np.bincount(trial).astype(np.float64)
    frame = None if frames is None else np.asarray(frames)[first]
    filled = cell_sums(sums, cells, owner, size, windows)[1] >= min_subjects
    distances = cell_distances(size)[np.ix_(filled, filled)]

    def statistic(cells: np.ndarray) -> float:
        means = pooled_sums(sums, cells, owner, size, windows, frame)[0][filled]
        means = unit(means, "the embeddings of a cell cancel out")
        if center:
            means = unit(means - means.mean(axis=0), "centring needs filled cells that differ from their mean")
        return mantel_r(means, distances)

    r = statistic(cells)
    rng = np.random.default_rng(seed)
    reached = sum(statistic(permute(cells, groups[0], rng, groups[1])) >= r - 1e-12 for _ in range(permutations))
    return Mantel(r, (1 + reached) / (1 + permutations), permutations)


def exchangeable(
    within: np.ndarray, held_out: HeldOut | None = None, rows: np.ndarray | slice = slice(None)
) -> tuple[np.ndarray, np.ndarray | None]:
    """Groups (T,) to permute within, and what changes places as wholes, for `permute`; stimuli stay in their fold.

    `rows` are those of `held_out` that the T values are of.
    """
    if held_out is None:
        return within, None
    return numbered(np.column_stack([within, held_out.fold[rows]])), numbered(held_out.stimulus[rows])


def permute(
    values: np.ndarray, within: np.ndarray, rng: np.random.Generator, together: np.ndarray | None = None
) -> np.ndarray:
    """A copy of (T, …) values permuted within groups (T,).

    With `together` (T,), stimuli numbered from 0, these change places as wholes, and rows are permuted within each.
    What subjects share about a stimulus, in the EEG as in the ratings, stays together, so that few stimuli make a wide
    chance; a fold that holds out high ratings stays one.

    Examples:
        >>> clip = np.array([0, 1, 2, 3, 0, 1, 2, 3])
        >>> permute(clip, clip // 2, np.random.default_rng(3), clip).tolist()
        [1, 0, 3, 2, 1, 0, 3, 2]
    """
    out = values.copy()
    if together is None:
        order = np.argsort(within, kind="stable")
        for rows in np.split(order, np.flatnonzero(within[order][1:] != within[order][:-1]) + 1):
            out[rows] = values[rng.permutation(rows)]
        return out
    place, order = rng.permutation(int(together.max()) + 1), rng.permutation(len(values))
    out[np.lexsort((together, within))] = values[order][np.lexsort((place[together][order], within[order]))]
    return out
