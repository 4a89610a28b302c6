"""The eight expression classes, their valence and arousal, and the cells of the grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ngd_timm.core.errors import InputError, choices

ANCHORS: Mapping[str, tuple[float, float]] = {
    "neutral": (0.0, 0.0),
    "happiness": (0.76, 0.48),
    "surprise": (0.40, 0.67),
    "sadness": (-0.63, -0.27),
    "anger": (-0.51, 0.59),
    "disgust": (-0.60, 0.35),
    "fear": (-0.64, 0.60),
    "contempt": (-0.588, 0.270),
}
"""(valence, arousal) of each class, in [-1, 1]: see `anchors` for the sources."""

AXES = ("valence", "arousal")

CLASSES: tuple[str, ...] = tuple(ANCHORS)
"""FER+'s order. Every data set is mapped onto these by name."""


def anchors(classes: Sequence[str] = CLASSES) -> np.ndarray:
    """Valence and arousal of each class. The paper doesn't say which it takes: these are our reading.

    Six values are Russell and Mehrabian's mean ratings of pleasure and arousal (happiness is their "joyful"); neutral
    is the origin by definition. Their table lacks contempt: its values are those of the word in the NRC VAD lexicon,
    .206 and .635 on 0..1, mapped to [-1, 1]. Warriner et al. (2013) have a lower arousal, -.10; losses take others as
    `class_anchors`.

    Reference:
        Russell and Mehrabian, "Evidence for a three-factor theory of emotions", J. Res. Pers. 11 (1977), 273-294.
        Mohammad, "Obtaining reliable human ratings of valence, arousal, and dominance", ACL 2018, 174-184.
    """
    missing = [c for c in classes if c not in ANCHORS]
    if missing:
        raise choices("class", missing[0], ANCHORS)
    return np.array([ANCHORS[c] for c in classes], dtype=np.float32).reshape(-1, 2)


def rating_to_va(rating: np.ndarray | float, low: float, high: float) -> np.ndarray:
    """Map a rating scale linearly onto [-1, 1]: 1-5 gives (r-3)/2, 1-9 gives (r-5)/4."""
    values = np.asarray(rating, dtype=np.float64)
    if not (np.isfinite(values).all() and (values >= low).all() and (values <= high).all()):
        raise InputError(f"ratings must lie in [{low}, {high}], got {values.min()} to {values.max()}")
    return (values - (low + high) / 2) / ((high - low) / 2)


def va_to_rating(valence_arousal: np.ndarray, low: float, high: float) -> np.ndarray:
    """The inverse of `rating_to_va`."""
    return (low + high) / 2 + (high - low) / 2 * np.asarray(valence_arousal, dtype=np.float64)


def centers(size: int) -> np.ndarray:
    """Cell centres of a grid, (S*S, 2) float32 as (valence, arousal); cell k = i_valence * S + i_arousal."""
    axis = (-1 + (2 * np.arange(size) + 1) / size).astype(np.float32)
    valence, arousal = np.meshgrid(axis, axis, indexing="ij")
    return np.stack([valence.ravel(), arousal.ravel()], axis=1)


def cell_of(valence_arousal: np.ndarray, size: int) -> np.ndarray:
    """Index of the cell that holds each point of (N, 2); an edge belongs to the cell above it, 1.0 to the last.

    Examples:
        >>> ratings = rating_to_va(np.array([[1, 2], [3, 4], [5, 6]]), 1, 6).astype(np.float32)
        >>> [divmod(cell, 5) for cell in cell_of(ratings, 5).tolist()]
        [(0, 1), (2, 3), (4, 4)]
    """
    va = np.asarray(valence_arousal, dtype=np.float64)
    if va.ndim != 2 or va.shape[1] != 2:
        raise InputError(f"valence_arousal must have shape (N, 2), got {va.shape}")
    if not np.isfinite(va).all() or (va.size and np.abs(va).max() > 1):
        raise InputError("valence and arousal must be finite and lie in [-1, 1]; map ratings with rating_to_va first")
    # ratings kept as float32 may lie a rounding below the edge that they are on
    index = np.clip(np.floor(np.round((va + 1) / 2 * size, 6)).astype(np.int64), 0, size - 1)
    return index[:, 0] * size + index[:, 1]


def cell_distances(size: int) -> np.ndarray:
    """Euclidean distance between cells in cell indices, (S*S, S*S) float64."""
    row, column = np.divmod(np.arange(size * size), size)
    return np.hypot(row[:, None] - row[None], column[:, None] - column[None])


def ccc(prediction: np.ndarray, target: np.ndarray) -> float:
    """Lin's concordance correlation of two (N,) series; 0 where neither varies."""
    denominator = prediction.var() + target.var() + (prediction.mean() - target.mean()) ** 2
    if denominator == 0:
        return 0.0
    covariance = ((prediction - prediction.mean()) * (target - target.mean())).mean()
    return float(2 * covariance / denominator)
