"""Scores of a teacher on held-out subjects: concordance, balanced accuracy, intervals over subjects, chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ngd_timm.eeg.signal.bandpower import trial_index
from ngd_timm.grid.mantel import permute_within

AXES = ("valence", "arousal")
Metric = Callable[[np.ndarray, np.ndarray], float]


def ccc(prediction: np.ndarray, target: np.ndarray) -> float:
    """Lin's concordance correlation of two (N,) series; 0 where neither varies."""
    denominator = prediction.var() + target.var() + (prediction.mean() - target.mean()) ** 2
    if denominator == 0:
        return 0.0
    covariance = ((prediction - prediction.mean()) * (target - target.mean())).mean()
    return float(2 * covariance / denominator)


def balanced_accuracy(decision: np.ndarray, target: np.ndarray) -> float:
    """Mean recall, in [0, 1], of high and low trials: a rating or decision above 0 is high. Both must occur."""
    high, predicted = target > 0, decision > 0
    return float((predicted[high].mean() + (~predicted[~high]).mean()) / 2)


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
    """Scores of both axes over all held-out trials, from decisions (T, 2), above 0 for high, and predictions (T, 2).

    `chance` and one-sided `p` are with ratings permuted within each subject; with `number` (T,), the trial's number
    where it means the same for all subjects, `given_number` has them permuted among the trials of that number.
    """
    by_subject = _groups(subject)
    scores: dict[str, Any] = {axis: {} for axis in AXES}
    for column, axis in enumerate(AXES):
        rating = target[:, column]
        metrics: dict[str, tuple[Metric, np.ndarray]] = {"bacc": (balanced_accuracy, decision[:, column])}
        if prediction is not None:
            metrics["ccc"] = (ccc, prediction[:, column])
        for name, (metric, values) in metrics.items():
            rng = np.random.default_rng(seed)
            scores[axis][name] = {
                "value": round(metric(values, rating), 4),
                "ci95": _interval(metric, values, rating, by_subject, bootstrap, rng),
                **_chance(metric, values, rating, by_subject, permutations, rng),
            }
            if number is not None:
                rng = np.random.default_rng(seed)
                given = _chance(metric, values, rating, _groups(number), permutations, rng)
                scores[axis][name]["given_number"] = given
    return scores


def _groups(names: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(names == name) for name in np.unique(names)]


def _interval(
    metric: Metric,
    values: np.ndarray,
    target: np.ndarray,
    by_subject: list[np.ndarray],
    bootstrap: int,
    rng: np.random.Generator,
) -> list[float]:
    """95 % interval over resampled subjects."""
    resampled: list[float] = []
    while len(resampled) < bootstrap:
        rows = np.concatenate([by_subject[i] for i in rng.integers(0, len(by_subject), len(by_subject))])
        if metric is balanced_accuracy and len(np.unique(target[rows] > 0)) < 2:
            continue  # a resample with one of the two sides only has no balanced accuracy
        resampled.append(metric(values[rows], target[rows]))
    return middle(resampled)


def middle(values: Sequence[float] | np.ndarray) -> list[float]:
    """The interval that holds 95 % of the values."""
    return [round(float(end), 4) for end in np.percentile(values, [2.5, 97.5])]


def _chance(
    metric: Metric,
    values: np.ndarray,
    target: np.ndarray,
    groups: list[np.ndarray],
    permutations: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Mean of the metric with ratings permuted within groups, and the one-sided p of the metric itself."""
    value = metric(values, target)
    permuted = np.array([metric(values, permute_within(target, groups, rng)) for _ in range(permutations)])
    p = (1 + int((permuted >= value - 1e-12).sum())) / (1 + permutations)
    return {"chance": round(float(permuted.mean()), 4), "p": round(p, 5)}
