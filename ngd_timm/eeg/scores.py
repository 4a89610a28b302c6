"""Scores of a teacher on held-out subjects: concordance, balanced accuracy, intervals over subjects, chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ngd_timm.core.affect import AXES, ccc
from ngd_timm.grid.averages import rows_of, sums_of, trial_index
from ngd_timm.grid.mantel import Exchange, HeldOut

Metric = Callable[[np.ndarray, np.ndarray], float]


def balanced_accuracy(decision: np.ndarray, target: np.ndarray) -> float:
    """Mean recall, in [0, 1], of high and low trials: a rating or decision above 0 is high. Both must occur."""
    high, predicted = target > 0, decision > 0
    return float((predicted[high].mean() + (~predicted[~high]).mean()) / 2)


def trial_means(
    values: np.ndarray, subject: np.ndarray, trial: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of (N, …) values over each trial's windows, (T, …), with each trial's subject and first row."""
    first, index = trial_index(subject, trial)
    counts = np.bincount(index).reshape(-1, *[1] * (values.ndim - 1))
    return sums_of(values, index, len(first)) / counts, subject[first], first


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
    stimulus: np.ndarray | None = None,
    fold: np.ndarray | None = None,
) -> dict[str, Any]:
    """Scores of both axes over all held-out trials, from decisions (T, 2), above 0 for high, and predictions (T, 2).

    `chance` and one-sided `p` are with ratings permuted within each subject or, with the `fold` of stimuli held out,
    (T,) or (T, 2), within each fold (see `grid.mantel.Exchange`); with `number` (T,), the trial's number where it means
    the same for all subjects, `given_number` has them permuted among the trials of it, `given_stimulus` likewise.
    """
    by_subject = rows_of(subject)
    within, held_out = subject, None
    if fold is not None and stimulus is not None:
        within, held_out = np.zeros_like(subject), HeldOut(stimulus, fold)
    given = {"given_number": number, "given_stimulus": stimulus}
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
                **_chance(metric, values, rating, Exchange(rating, within, held_out), permutations, rng),
            }
            for key, names in given.items():
                if names is not None:
                    rng = np.random.default_rng(seed)
                    scores[axis][name][key] = _chance(
                        metric, values, rating, Exchange(rating, names), permutations, rng
                    )
    return scores


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
    exchange: Exchange,
    permutations: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Mean of the metric over drawn ratings, and the one-sided p of the metric itself."""
    value = metric(values, target)
    permuted = np.array([metric(values, exchange(rng)) for _ in range(permutations)])
    p = (1 + int((permuted >= value - 1e-12).sum())) / (1 + permutations)
    return {"chance": round(float(permuted.mean()), 4), "p": round(p, 5)}
