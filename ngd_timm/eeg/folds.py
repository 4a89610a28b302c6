"""Folds by subject, by stimulus or by both, and one frame for the embeddings of the teachers of all folds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.linalg import orthogonal_procrustes

from ngd_timm.core.errors import InputError
from ngd_timm.eeg.signal.bandpower import SET, BandPower
from ngd_timm.grid.averages import trial_index

__all__ = [
    "FOLDS_BY",
    "align",
    "cells",
    "check_split",
    "fold_windows",
    "held_out_rows",
    "shared_stimuli",
    "stimulus_folds",
    "subject_folds",
]

FOLDS_BY = ("subject", "stimulus", "both")
"""What is held out; the first as in the paper."""

_DRAWS = 2000  # of folds of stimuli, of which the most even one is taken


def subject_folds(subjects: np.ndarray, folds: int, seed: int = 0, sets: np.ndarray | None = None) -> np.ndarray:
    """The fold in which each row is held out; all rows of a subject share it, and folds differ by one subject at most.

    Args:
        subjects: (N,) names.
        folds: How many.
        seed: Same seed, same folds, whatever the order of the rows.
        sets: (N,) the set that each row's subject is of; every fold then holds out its share of each set.

    Returns:
        (N,) int64 from 0 to folds - 1.

    Raises:
        InputError: Fewer subjects than folds.

    Examples:
        >>> subject_folds(np.array([1, 1, 2, 3]), 3).tolist()[0] == subject_folds(np.array([1, 1, 2, 3]), 3).tolist()[1]
        True
    """
    names, first, index = np.unique(subjects, return_index=True, return_inverse=True)
    if len(names) < folds:
        raise InputError(f"{folds} folds need at least {folds} subjects, got {len(names)}; lower data.folds")
    fold = np.empty(len(names), dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(names))
    if sets is not None:
        order = order[np.argsort(sets[first[order]], kind="stable")]
    fold[order] = np.arange(len(names)) % folds
    return fold[index.reshape(-1)]


def shared_stimuli(stimuli: np.ndarray, subjects: np.ndarray) -> list[str]:
    """The stimuli that more than one subject met; of the others nobody can say how another subject takes them."""
    pairs = np.unique(np.stack([stimuli.astype(str), subjects.astype(str)]), axis=1)
    names, counts = np.unique(pairs[0], return_counts=True)
    return [str(name) for name in names[counts > 1]]


def stimulus_folds(
    stimuli: np.ndarray, subjects: np.ndarray, valence_arousal: np.ndarray, folds: int, seed: int = 0
) -> np.ndarray:
    """The fold in which each trial's stimulus is held out, stratified by the stimuli's mean valence and arousal.

    Of `_DRAWS` random folds of equal size it is the one whose mean ratings differ least: where a fold holds out the
    pleasant stimuli, it trains on unpleasant ones, and even noise then scores below chance.

    Args:
        stimuli: (T,) names.
        subjects: (T,) names.
        valence_arousal: (T, 2) ratings.
        folds: How many; no more than there are stimuli.
        seed: Same seed, same folds, whatever the order of the trials.

    Returns:
        (T,) int64 from 0 to min(folds, stimuli) - 1; -1 for a stimulus that only one subject met.

    Raises:
        InputError: Fewer than three stimuli that two subjects met.

    Examples:
        >>> clips, people = np.tile(["a", "b", "c"], 2), np.repeat([1, 2], 3)
        >>> sorted(stimulus_folds(clips, people, np.zeros((6, 2)), folds=5)[:3].tolist())
        [0, 1, 2]

    Reference:
        Morgan and Rubin, "Rerandomization to improve covariate balance in experiments", Ann. Stat. 40 (2012).
    """
    names = shared_stimuli(stimuli, subjects)
    if len(names) < 3:
        raise InputError(
            f"folds by stimulus need three stimuli that more than one subject met, got {len(names)}; use "
            "data.folds_by=subject"
        )
    place = {name: k for k, name in enumerate(names)}
    index = np.array([place.get(str(name), -1) for name in stimuli])
    means = np.stack([valence_arousal[index == k].mean(axis=0) for k in range(len(names))])
    rng = np.random.default_rng(seed)
    even = np.arange(len(names)) % min(folds, len(names))
    draws = rng.permuted(np.tile(even, (_DRAWS, 1)), axis=1)
    members = (draws[:, None] == np.unique(even)[:, None]).astype(np.float64)
    spread = ((members @ (means - means.mean(axis=0))) ** 2).sum(axis=2) / members.sum(axis=2)
    return np.append(draws[spread.sum(axis=1).argmin()], -1)[index]


def fold_windows(data: BandPower, by: str, folds: int, seed: int = 0) -> np.ndarray:
    """The folds of a data set's windows, as `cells` takes them: (N,), or (N, 2) where both are held out.

    -1 for subjects and stimuli that nobody rated, and for a stimulus that only one subject met.

    Raises:
        InputError: Fewer subjects than folds, fewer than three stimuli, or trials whose stimulus isn't known.
    """
    rated = data.rated
    parts = []
    if by != "stimulus":
        subject = data.subject[rated]
        fold = subject_folds(subject, folds, seed, subject // SET if data.sets else None)
        parts.append(_by_name(data.subject, subject, fold))
    if by != "subject":
        if data.stimulus is None or (unknown := data.stimulus[rated] == "").all():
            raise InputError(f"{data.dataset}: doesn't say which stimulus a trial was of; use data.folds_by=subject")
        if unknown.any():
            row = int(np.flatnonzero(rated)[unknown.argmax()])
            raise InputError(
                f"{data.dataset}: subject {data.subject[row]}, trial {data.trial[row]} has no stimulus, as "
                "others have; name it, or use data.folds_by=subject"
            )
        first = np.flatnonzero(rated)[trial_index(data.subject[rated], data.trial[rated])[0]]
        trials = data.stimulus[first], data.subject[first], data.valence_arousal[first].astype(np.float64)
        parts.append(_by_name(data.stimulus, data.stimulus[first], stimulus_folds(*trials, folds, seed)))
    return parts[0] if len(parts) == 1 else np.stack(parts, axis=1)


def _by_name(names: np.ndarray, known: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """The fold of each name, -1 for one that isn't among the known."""
    folds = dict(zip(known.tolist(), fold.tolist(), strict=True))
    return np.array([folds.get(name, -1) for name in names.tolist()])


def held_out_rows(fold: np.ndarray) -> np.ndarray:
    """(N,) mask of the rows that are held out in some fold, of (N,) or (N, 2) folds."""
    return np.asarray((fold.reshape(len(fold), -1) >= 0).all(axis=1))


def cells(fold: np.ndarray, scored: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows that each fold holds out and those that its model may see, as two (N,) masks.

    Args:
        fold: (N,) the fold of each row, or (N, 2) that of its subject and that of its stimulus: a model then sees
            neither the subjects nor the stimuli of the rows it is held out for. -1: never held out.
        scored: (N,) mask; folds without any such row are passed over.

    Examples:
        >>> both = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])  # two subjects, two stimuli
        >>> [(held_out.nonzero()[0].tolist(), seen.nonzero()[0].tolist()) for held_out, seen in cells(both)]
        [([0], [3]), ([1], [2]), ([2], [1]), ([3], [0])]
    """
    parts = fold.reshape(len(fold), -1)
    held = held_out_rows(fold)
    for cell in np.unique(parts[held if scored is None else held & scored], axis=0):
        same = parts == cell
        yield same.all(axis=1), ~same.any(axis=1)


def check_split(
    train: np.ndarray,
    held_out: np.ndarray,
    subjects: np.ndarray,
    trials: np.ndarray,
    power: np.ndarray | None = None,
    stimuli: np.ndarray | None = None,
    by: str = "subject",
) -> None:
    """Refuse a split that leaks: windows of one person are near copies, and of one trial share a label.

    Args:
        train: Row indices (or a mask) that are trained on.
        held_out: Row indices (or a mask) that are scored.
        subjects: (N,) names.
        trials: (N,) names of trials within a subject.
        power: (N, …) what the rows hold; given it, the same recording under two subjects' names is found as well.
        stimuli: (N,) names, "" where unknown.
        by: Which of "subject" and "stimulus" must not be on both sides, or "both".

    Raises:
        InputError: A trial, a subject, a stimulus or a copy of a window on both sides, or a side without rows.
    """
    if not len(subjects[train]) or not len(subjects[held_out]):
        raise InputError("the split leaves one side without recordings")
    sides = [set(zip(subjects[rows].tolist(), trials[rows].tolist(), strict=True)) for rows in (train, held_out)]
    both = sorted(sides[0] & sides[1])
    if both:
        subject, trial = both[0]
        raise InputError(
            f"the split puts subject {subject}, trial {trial} on both sides; split by subject, not by window"
        )
    for what, names in (("subject", subjects), ("stimulus", stimuli)):
        if names is None or by not in (what, "both"):
            continue
        shared = np.intersect1d(names[train], names[held_out])
        if len(shared):
            raise InputError(
                f"the split puts {what} {', '.join(map(str, shared[:5]))} on both sides; split by {what}, not by trial"
            )
    if power is not None:
        flat = np.ascontiguousarray(power).reshape(len(power), -1)
        rows = flat.view(np.dtype((np.void, flat.dtype.itemsize * flat.shape[1]))).ravel()
        _, at, other = np.intersect1d(rows[train], rows[held_out], return_indices=True)
        if len(at):
            one, two = subjects[train][at[0]], subjects[held_out][other[0]]
            where = f"subject {one} and subject {two}"
            if one == two:
                where = f"subject {one}, trial {trials[train][at[0]]} and trial {trials[held_out][other[0]]}"
            raise InputError(f"the same window is filed under {where}; remove one")


def align(embeddings: np.ndarray, held_out_fold: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Held-out unit embeddings of every recording, turned into fold 0's frame.

    Teacher f's rotation is fitted on recordings that both teacher f and teacher 0 were trained on, so a held-out
    recording has no part in its own frame. Building one grid from the teachers of several folds is our reading.

    Args:
        embeddings: (F, N, D), teacher f's embedding of every recording.
        held_out_fold: (N,) the fold in which each recording is held out, or (N, 2) as `cells` takes it.

    Returns:
        (N, D) float64 of unit length, and for each fold the mean cosine to fold 0 on the shared recordings afterwards.

    Raises:
        InputError: Fewer than three folds, or an embedding without a direction.
    """
    folds = embeddings.shape[0]
    if folds < 3:
        raise InputError(f"aligning needs three folds, got {folds}: two folds share no training recordings")
    rows = embeddings.astype(np.float64)
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    if not np.isfinite(norms).all() or (norms < 1e-12).any():
        raise InputError("a teacher gave an embedding that is zero or not finite; refit it with a lower optim.lr")
    rows = rows / norms
    out = np.empty(rows.shape[1:])
    agreement = []
    parts = list(cells(held_out_fold))
    for fold, (own, seen) in enumerate(parts):
        shared = seen & parts[0][1]
        rotation = orthogonal_procrustes(rows[fold, shared], rows[0, shared])[0] if fold else np.eye(rows.shape[-1])
        out[own] = rows[fold, own] @ rotation
        agreement.append(float(((rows[fold, shared] @ rotation) * rows[0, shared]).sum(axis=1).mean()))
    return out, agreement
