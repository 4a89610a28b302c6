"""From embeddings to the rows of a grid: unit length, means within cells, copies for empty cells."""

from __future__ import annotations

import numpy as np
import torch

from ngd_timm.core.affect import cell_distances
from ngd_timm.core.errors import InputError

MAX_SIZE = 64


def checked_size(size: int) -> int:
    """S, cells along an axis, if it is in range."""
    if not 2 <= size <= MAX_SIZE:
        raise InputError(f"a grid has 2 to {MAX_SIZE} cells along an axis, got {size}")
    return int(size)


def checked_rows(
    embeddings: np.ndarray | torch.Tensor,
    valence_arousal: np.ndarray | torch.Tensor,
    subjects: np.ndarray | None,
    min_subjects: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit rows in float64, ratings, and subjects as 0, 1, … (each row its own subject where none are named)."""
    rows, va = _float64(embeddings), _float64(valence_arousal)
    if rows.ndim != 2 or not rows.size:
        raise InputError(f"embeddings must have shape (N, D) with N, D > 0, got {rows.shape}")
    if va.shape != (len(rows), 2):
        raise InputError(f"valence_arousal must have shape ({len(rows)}, 2), got {va.shape}")
    if min_subjects < 1:
        raise InputError(f"min_subjects must be at least 1, got {min_subjects}")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise InputError(f"embedding row {int(np.argmin(finite))} is not finite")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if (norms < 1e-12).any():
        raise InputError(f"embedding row {int(np.argmin(norms))} is zero and has no direction")
    if subjects is None:
        if min_subjects > 1:
            raise InputError(f"min_subjects={min_subjects} needs subjects, one name a row")
        return rows / norms, va, np.arange(len(rows))
    names = np.asarray(subjects)
    if names.shape != (len(rows),):
        raise InputError(f"subjects must have shape ({len(rows)},), got {names.shape}")
    return rows / norms, va, numbered(names)


def _float64(values: np.ndarray | torch.Tensor) -> np.ndarray:
    array = values.detach().cpu().double().numpy() if isinstance(values, torch.Tensor) else values
    return np.asarray(array, dtype=np.float64)


def cell_sums(
    rows: np.ndarray, cells: np.ndarray, subjects: np.ndarray, size: int, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """For each cell the sum of its subjects' means (S*S, D) and their number; rows are sums of `weights` embeddings."""
    people = int(subjects.max()) + 1
    groups, group = np.unique(cells * people + subjects, return_inverse=True)
    means = sums_of(rows, group, len(groups)) / np.bincount(group, weights=weights)[:, None]
    return sums_of(means, groups // people, size * size), np.bincount(groups // people, minlength=size * size)


def sums_of(rows: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """(groups, …) float64 sums of the rows (N, …) of each group (N,): as `np.add.at`, ten times faster."""
    from scipy.sparse import csr_array

    members = csr_array((np.ones(len(group)), group, np.arange(len(group) + 1)), shape=(len(group), groups))
    return (members.T @ rows.reshape(len(rows), -1)).reshape(groups, *rows.shape[1:])


def numbered(names: np.ndarray) -> np.ndarray:
    """A number from 0 for each different name (N,), or row (N, K)."""
    return np.unique(names, axis=0 if names.ndim > 1 else None, return_inverse=True)[1].reshape(-1)


def rows_of(names: np.ndarray) -> list[np.ndarray]:
    """The rows of each different name (N,), in the order of the names."""
    order = np.argsort(names, kind="stable")
    return np.split(order, np.flatnonzero(names[order][1:] != names[order][:-1]) + 1)


def trial_index(subject: np.ndarray, trial: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Trials in order of subject and trial: the first row of each, (T,), and the trial of each row, (N,)."""
    who, which = (numbered(names) for names in (subject, trial))
    return np.unique(who * (which.max() + 1) + which, return_index=True, return_inverse=True)[1:]


def pooled_sums(
    rows: np.ndarray,
    cells: np.ndarray,
    subjects: np.ndarray,
    size: int,
    weights: np.ndarray | None = None,
    frames: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`cell_sums` of rows in several frames (N,): each frame's sums are rotated onto the first's before they add up.

    The rotation is the Procrustes solution over cells, which weigh by their subjects in both frames.
    """
    if frames is None:
        return cell_sums(rows, cells, subjects, size, weights)
    from scipy.linalg import orthogonal_procrustes

    total, counts = np.zeros((size * size, rows.shape[1])), np.zeros(size * size, dtype=np.int64)
    onto: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    for frame in np.unique(frames):
        own = frames == frame
        sums, count = cell_sums(rows[own], cells[own], subjects[own], size, None if weights is None else weights[own])
        # in bases of what the cells span, because the test rotates thousands of times and D may be large
        basis, inside = np.linalg.qr(sums.T)
        if onto is None:
            onto = basis, inside.T, count > 0
        elif not (onto[2] & (count > 0)).any():
            raise InputError("the runs fill no cell in common, so nothing says how their frames lie; lower the size")
        else:
            sums = inside.T @ orthogonal_procrustes(inside.T, onto[1])[0] @ onto[0].T
        total += sums
        counts += count
    return total, counts


def fill_empty(rows: np.ndarray, filled: np.ndarray, size: int) -> np.ndarray:
    """A copy in which an empty cell has the mean of its nearest filled cells, of unit length."""
    out = rows.copy()
    distances = cell_distances(size)[:, filled]
    for cell in np.flatnonzero(~filled):
        nearest = distances[cell] <= distances[cell].min() + 1e-9
        average = rows[filled][nearest].mean(axis=0, keepdims=True)
        out[cell] = unit(average, f"empty cell {cell} lies between opposite prototypes; give more data")[0]
    return out


def unit(rows: np.ndarray, otherwise: str) -> np.ndarray:
    """Rows of unit length; `otherwise` is the error for a row that has none."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if (norms < 1e-9).any():
        raise InputError(otherwise)
    return rows / norms
