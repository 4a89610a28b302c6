"""A ridge as a teacher: what it predicts, and an embedding to build a grid from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ngd_timm.eeg.scores import trial_means
from ngd_timm.eeg.signal.bandpower import BandPower
from ngd_timm.eeg.teacher.baselines import fit_ridge, inner_groups


@dataclass(frozen=True)
class LinearTeacher:
    """Valence, arousal and an embedding of standardised features, each a matrix product."""

    weight: np.ndarray  # (K, 2)
    offset: np.ndarray  # (2,)
    directions: np.ndarray  # (K, D)

    def __call__(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, K) to embeddings (N, D) and predictions (N, 2), as `infer` gives a network's."""
        embedding, prediction = features @ self.directions, features @ self.weight + self.offset
        return embedding.astype(np.float32), prediction.astype(np.float32)


def fit_linear(features: np.ndarray, data: BandPower, dim: int, by: str = "subject") -> LinearTeacher:
    """The baseline's ridge on the rated windows of `data`, whose standardised features (N, K) it sees as trial means.

    See `leading_directions` for the embedding; a grid from it is our reading, as everything about the teacher.
    """
    means, _, first = trial_means(features, data.subject, data.trial)
    ridges = fit_ridge(means, data.valence_arousal[first], inner_groups(data, first, by))
    weight = np.stack([ridge.coef_ for ridge in ridges])
    offset = np.array([ridge.intercept_ for ridge in ridges])
    return LinearTeacher(weight.T, offset, leading_directions(means, weight, dim))


def leading_directions(features: np.ndarray, weight: np.ndarray, dim: int) -> np.ndarray:
    """(K, dim) to project features (T, K) on: the two that a ridge reads, and the principal ones of what they leave.

    The two are the right singular vectors of the weights (2, K). Alone they make a grid of two dimensions, which any
    map of the plane has, and unscaled they drown: the two parts are scaled to the same variance over the trials.

    Examples:
        >>> features = np.random.default_rng(0).normal(size=(50, 6))
        >>> directions = leading_directions(features, np.eye(2, 6), 4)
        >>> read, rest = np.split(features @ directions, [2], axis=1)
        >>> bool(np.isclose(read.var(axis=0).sum(), 1)), bool(np.isclose(rest.var(axis=0).sum(), 1))
        (True, True)
    """
    read = np.linalg.svd(weight, full_matrices=False)[2][:dim]
    centred = features - features.mean(axis=0)
    parts = [read]
    if dim > len(read):
        rest = centred - centred @ read.T @ read
        few = len(rest) < dim - len(read)  # fewer trials than directions, which are then any
        parts.append(np.linalg.svd(rest, full_matrices=few)[2][: dim - len(read)])
    return np.vstack([part / np.sqrt(((centred @ part.T) ** 2).mean(axis=0).sum()) for part in parts]).T
