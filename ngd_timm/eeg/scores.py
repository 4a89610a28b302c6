"""Figures for a teacher on people it hasn't seen: concordance, high against low, intervals over subjects, chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.eeg.signal.bandpower import trial_index
from ngd_timm.grid.mantel import permute_within

__all__ = ["balanced_accuracy", "ccc", "score_trials", "trial_means"]

AXES = ("valence", "arousal")
Metric = Callable[[np.ndarray, np.ndarray], float]


def ccc(prediction: np.ndarray, target: np.ndarray) -> float:
    """Lin's concordance correlation of two (N,) series; 0 where neither varies.

    Example:
        >>> ccc(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 2.0]))
        1.0
    """
    spread = prediction.var() + target.var() + (prediction.mean() - target.mean()) ** 2
    if spread == 0:
        return 0.0
    covariance = ((prediction - prediction.mean()) * (target - target.mean())).mean()
    return float(2 * covariance / spread)


def balanced_accuracy(decision: np.ndarray, target: np.ndarray) -> float:
    """Mean of the shares of high and of low trials that are told right, in [0, 1].

    Args:
        decision: (N,), above 0 says high.
        target: (N,) ratings in [-1, 1], above 0 is high: the middle of the scale counts as low.

    Raises:
        InputError: All trials high, or all low.
    """
    high = target > 0
    if high.all() or not high.any():
        raise InputError("high against low needs ratings on both sides of the middle")
    said = decision > 0
    return float((said[high].mean() + (~said[~high]).mean()) / 2)


def trial_means(
    values: np.ndarray, subject: np.ndarray, trial: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of (N, …) values over each trial's windows, (T, …), with each trial's subject and first row."""
    first, index = trial_index(subject, trial)
    sums = np.zeros((len(first), *values.shape[1:]))
    np.add.at(sums, index, values)
    counts = np.bincount(index).reshape(-1, *[1] * (values.ndim - 1))
    return sums / counts, subject[first], first


def score_trials(
    decision: np.ndarray,
    prediction: np.ndarray | None,
    target: np.ndarray,
    subject: np.ndarray,
    *,
    bootstrap: int,
    permutations: int,
    seed: int,
    number: np.ndarray | None = None,
) -> dict[str, Any]:
    """Scores of both axes over all held-out trials.

    Args:
        decision: (T, 2), above 0 says high.
        prediction: (T, 2) in [-1, 1], or None for a classifier that has no such value.
        target: (T, 2) ratings in [-1, 1].
        subject: (T,).
        bootstrap: Resamples of the subjects for the 95 % intervals.
        permutations: Permutations of the ratings within each subject, for chance.
        seed: Of both.
        number: (T,) which trial it was, where that means the same for everybody.

    Returns:
        For each axis and metric `value`, `ci95`, `chance` (mean under permutation) and one-sided `p`. With `number`
        also `given_number`: chance and p with ratings permuted among the people who had the trial of that number. It
        asks what a decoder knows beyond which stimulus, or which place in the session, a trial was.
    """
    out: dict[str, Any] = {}
    for column, axis in enumerate(AXES):
        given: dict[str, tuple[Metric, np.ndarray]] = {"bacc": (balanced_accuracy, decision[:, column])}
        if prediction is not None:
            given["ccc"] = (ccc, prediction[:, column])
        out[axis] = {}
        for name, (metric, values) in given.items():
            figure = _figure(metric, values, target[:, column], subject, bootstrap, permutations, seed)
            if number is not None:
                rng = np.random.default_rng(seed)
                figure["given_number"] = _chance(metric, values, target[:, column], number, permutations, rng)
            out[axis][name] = figure
    return out


def _figure(
    metric: Metric,
    given: np.ndarray,
    target: np.ndarray,
    subject: np.ndarray,
    bootstrap: int,
    permutations: int,
    seed: int,
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    value = metric(given, target)
    rows_of = [np.flatnonzero(subject == s) for s in np.unique(subject)]
    drawn: list[float] = []
    while len(drawn) < bootstrap:
        rows = np.concatenate([rows_of[i] for i in rng.integers(0, len(rows_of), len(rows_of))])
        if metric is balanced_accuracy and len(np.unique(target[rows] > 0)) < 2:
            continue  # a resample without one of the two sides has no balanced accuracy
        drawn.append(metric(given[rows], target[rows]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {
        "value": round(value, 4),
        "ci95": [round(float(low), 4), round(float(high), 4)],
        **_chance(metric, given, target, subject, permutations, rng),
    }


def _chance(
    metric: Metric,
    given: np.ndarray,
    target: np.ndarray,
    group: np.ndarray,
    permutations: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Mean of the metric with ratings permuted within groups, and the one-sided p of the metric itself."""
    value = metric(given, target)
    rows_of = [np.flatnonzero(group == g) for g in np.unique(group)]
    drawn = np.empty(permutations)
    for index in range(permutations):
        drawn[index] = metric(given, permute_within(target, rows_of, rng))
    p = (1 + int((drawn >= value - 1e-12).sum())) / (1 + permutations)
    return {"chance": round(float(drawn.mean()), 4), "p": round(p, 5)}
