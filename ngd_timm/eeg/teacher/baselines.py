"""The teacher's baselines, in its own folds: linear models on log power, and the number of the trial alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from ngd_timm.core.affect import AXES
from ngd_timm.core.errors import InputError
from ngd_timm.eeg.folds import cells
from ngd_timm.eeg.scores import trial_means
from ngd_timm.eeg.signal.bandpower import BandPower
from ngd_timm.grid.averages import trial_index

_ALPHAS = np.logspace(0, 5, 11)


def fit_ridge(features: np.ndarray, target: np.ndarray, groups: np.ndarray) -> list[Any]:
    """A ridge for each column of (T, 2) targets, on (T, K) features; its strength is chosen in folds of groups (T,)."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold

    if (count := len(np.unique(groups))) < 2:
        raise InputError(
            "a fold trains on fewer than two subjects or stimuli, so the strength of a ridge can't be chosen; set "
            "data.folds lower, or data.folds_by=subject"
        )
    splits = GroupKFold(min(5, count))
    inner = list(splits.split(features, groups=groups))
    return [RidgeCV(_ALPHAS, cv=inner).fit(features, target[:, axis]) for axis in range(len(AXES))]


def inner_groups(data: BandPower, first: np.ndarray, by: str) -> np.ndarray:
    """What the folds hold out that choose a ridge's strength, for the trials whose first rows these are."""
    return data.subject[first] if by == "subject" or data.stimulus is None else data.stimulus[first]


def ridge_regression(
    data: BandPower, z: np.ndarray, held_out_fold: np.ndarray, by: str = "subject"
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression on the trials' mean z-scores: (T, 2) predictions, and (T, 2) decisions, above 0 for high.

    Its strength is chosen in folds of the training trials by subject, or `by` stimulus where that is held out.
    """
    features, _, first = trial_means(z.reshape(len(z), -1), data.subject, data.trial)
    target, fold = data.valence_arousal[first], held_out_fold[first]
    prediction, decision = np.empty(target.shape), np.empty(target.shape)
    groups = inner_groups(data, first, by)
    for own, train in cells(fold):
        for axis, model in enumerate(fit_ridge(features[train], target[train], groups[train])):
            prediction[own, axis] = model.predict(features[own])
            decision[own, axis] = prediction[own, axis] - model.predict(features[train]).mean()
    return np.clip(prediction, -1, 1), decision


def logistic_regression(data: BandPower, z: np.ndarray, held_out_fold: np.ndarray) -> np.ndarray:
    """Decisions (T, 2) of a logistic regression on the windows' z-scores, averaged over each trial."""
    from sklearn.linear_model import LogisticRegression

    features, high = z.reshape(len(z), -1), data.valence_arousal > 0
    decision = np.empty(high.shape)
    for own, train in cells(held_out_fold):
        for axis in range(len(AXES)):
            model = LogisticRegression(class_weight="balanced", max_iter=2000).fit(features[train], high[train, axis])
            decision[own, axis] = model.decision_function(features[own])
    return trial_means(decision, data.subject, data.trial)[0]


def trial_number(data: BandPower, held_out_fold: np.ndarray, names: np.ndarray | None = None) -> np.ndarray | None:
    """Decisions (T, 2) from the trial's number alone, or None where subjects share no number.

    A decoder reaches this without any affect in the EEG where all subjects had the same stimuli in the same order.
    With `names` (N,), the same from the stimulus's name alone.
    """
    first, _ = trial_index(data.subject, data.trial)
    number = (data.trial if names is None else names)[first]
    target, fold = data.valence_arousal[first], held_out_fold[first]
    decision, shared = np.zeros(target.shape), False
    for own, train in cells(fold):
        overall = target[train].mean(axis=0)
        for row in np.flatnonzero(own):
            same = train & (number == number[row])
            if same.any():
                decision[row], shared = target[same].mean(axis=0) - overall, True
    return decision if shared else None
