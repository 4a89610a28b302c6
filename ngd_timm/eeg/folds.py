"""Folds by subject, and one frame for the embeddings of teachers that were trained on different subjects."""

from __future__ import annotations

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.grid.averages import procrustes

__all__ = ["align", "check_split", "subject_folds"]


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


def check_split(
    train: np.ndarray, held_out: np.ndarray, subjects: np.ndarray, trials: np.ndarray, power: np.ndarray | None = None
) -> None:
    """Refuse a split that leaks: windows of one person are near copies, and of one trial share a label.

    Args:
        train: Row indices (or a mask) that are trained on.
        held_out: Row indices (or a mask) that are scored.
        subjects: (N,) names.
        trials: (N,) names of trials within a subject.
        power: (N, …) what the rows hold; given it, the same recording under two subjects' names is found as well.

    Raises:
        InputError: A trial, a subject or a copy of a window on both sides, or a side without rows.
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
    shared = np.intersect1d(subjects[train], subjects[held_out])
    if len(shared):
        raise InputError(
            f"the split puts subject {', '.join(map(str, shared[:5]))} on both sides; split by subject, not by trial"
        )
    if power is not None:
        flat = np.ascontiguousarray(power).reshape(len(power), -1)
        rows = flat.view(np.dtype((np.void, flat.dtype.itemsize * flat.shape[1]))).ravel()
        _, at, other = np.intersect1d(rows[train], rows[held_out], return_indices=True)
        if len(at):
            names = subjects[train][at[0]], subjects[held_out][other[0]]
            raise InputError(f"the same window is filed under subject {names[0]} and subject {names[1]}; remove one")


def align(embeddings: np.ndarray, held_out_fold: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Held-out unit embeddings of every recording, turned into fold 0's frame.

    Teacher f's rotation is fitted on recordings that both teacher f and teacher 0 were trained on, so a held-out
    recording has no part in its own frame. Building one grid from the teachers of several folds is our reading.

    Args:
        embeddings: (F, N, D), teacher f's embedding of every recording.
        held_out_fold: (N,) the fold in which each recording is held out.

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
    for fold in range(folds):
        shared = (held_out_fold != fold) & (held_out_fold != 0)
        rotation = np.eye(rows.shape[-1]) if fold == 0 else procrustes(rows[fold, shared], rows[0, shared])
        own = held_out_fold == fold
        out[own] = rows[fold, own] @ rotation
        agreement.append(float(((rows[fold, shared] @ rotation) * rows[0, shared]).sum(axis=1).mean()))
    return out, agreement
