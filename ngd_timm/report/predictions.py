"""What a report computes from a run's predictions: intervals of each class, a map of the embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np

from ngd_timm.evaluate.metrics import resampled

__all__ = ["class_intervals", "embedding_map", "stratified"]

_FEWEST_ON_A_MAP = 12  # below that t-SNE has no neighbourhoods to keep


def class_intervals(
    target: np.ndarray,
    predicted: np.ndarray,
    size: int,
    subjects: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> list[dict[str, list[float]] | None]:
    """95 % percentile intervals of each class's precision, recall and F1, by bootstrap over images or over subjects.

    Args:
        target: (N,) true class indices.
        predicted: (N,) class indices said.
        size: C, the number of classes.
        subjects: (N,) who is on each picture: people are then resampled instead of pictures.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.

    Returns:
        For each class `precision`, `recall` and `f1` as [low, high] in percent; None for a class without pictures.

    Example:
        >>> class_intervals(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), size=3)[1:]
        [{'precision': [100.0, 100.0], 'recall': [100.0, 100.0], 'f1': [100.0, 100.0]}, None]
    """
    matrix = resampled((target * size + predicted)[None], size, subjects, resamples, seed)[:, 0]
    hit, true, said = np.diagonal(matrix, axis1=1, axis2=2), matrix.sum(axis=2), matrix.sum(axis=1)
    found: list[dict[str, list[float]] | None] = []
    for c in range(size):
        # a resample without the class says nothing about it
        there = true[:, c] > 0
        if not there.any():
            found.append(None)
            continue
        h, t, s = hit[there, c], true[there, c], said[there, c]
        figures = {"precision": h / np.maximum(s, 1), "recall": h / t, "f1": 2 * h / (t + s)}
        found.append({k: [float(100 * x) for x in np.percentile(v, [2.5, 97.5])] for k, v in figures.items()})
    return found


def stratified(target: np.ndarray, limit: int, seed: int = 0) -> np.ndarray:
    """Indices of at most `limit` rows, as equally many of each class as there are: rare classes stay whole.

    Example:
        >>> chosen = stratified(np.array([0] * 90 + [1] * 3 + [2] * 50), limit=23)
        >>> np.bincount(np.array([0] * 90 + [1] * 3 + [2] * 50)[chosen]).tolist()
        [10, 3, 10]
    """
    rng = np.random.default_rng(seed)
    groups = sorted((np.flatnonzero(target == c) for c in np.unique(target)), key=len)
    chosen: list[np.ndarray] = []
    for done, group in enumerate(groups):
        quota = (limit - sum(map(len, chosen))) // (len(groups) - done)
        chosen.append(rng.permutation(group)[:quota])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)


def embedding_map(rows: np.ndarray, seed: int = 0) -> np.ndarray | None:
    """t-SNE of the rows' directions.

    Args:
        rows: (N, D); only directions count, as in the losses.
        seed: Of t-SNE.

    Returns:
        (N, 2), or None where there are too few different rows for a map.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.maximum(length, 1e-12)
    if len(np.unique(unit.round(6), axis=0)) < _FEWEST_ON_A_MAP:
        return None
    perplexity = min(30.0, (len(unit) - 1) / 3)
    # two threads are hardly faster, many times slower on a busy machine, and add up in no fixed order
    with threadpool_limits(1):
        places: Any = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(unit)
    return np.asarray(places, dtype=np.float64)
