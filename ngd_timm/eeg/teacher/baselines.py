"""The teacher's baselines, in its own folds: linear models on log power, and the number of the trial alone."""

from __future__ import annotations

import numpy as np

from ngd_timm.eeg.scores import AXES, trial_means
from ngd_timm.eeg.signal.bandpower import BandPower, trial_index

_ALPHAS = np.logspace(0, 5, 11)


def ridge_regression(data: BandPower, z: np.ndarray, held_out_fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression on the trials' mean z-scores: (T, 2) predictions, and (T, 2) decisions, above 0 for high."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold

    features, subject, first = trial_means(z.reshape(len(z), -1), data.subject, data.trial)
    target, fold = data.valence_arousal[first], held_out_fold[first]
    prediction, decision = np.empty(target.shape), np.empty(target.shape)
    for held_out in np.unique(fold):
        own, train = fold == held_out, fold != held_out
        splits = GroupKFold(min(5, len(np.unique(subject[train]))))
        inner = list(splits.split(features[train], groups=subject[train]))
        for axis in range(len(AXES)):
            model = RidgeCV(_ALPHAS, cv=inner).fit(features[train], target[train, axis])
            prediction[own, axis] = model.predict(features[own])
            decision[own, axis] = prediction[own, axis] - model.predict(features[train]).mean()
    return np.clip(prediction, -1, 1), decision


def logistic_regression(data: BandPower, z: np.ndarray, held_out_fold: np.ndarray) -> np.ndarray:
    """Decisions (T, 2) of a logistic regression on the windows' z-scores, averaged over each trial."""
    from sklearn.linear_model import LogisticRegression

    features, high = z.reshape(len(z), -1), data.valence_arousal > 0
    decision = np.empty(high.shape)
    for fold in np.unique(held_out_fold):
        train = held_out_fold != fold
        for axis in range(len(AXES)):
            model = LogisticRegression(class_weight="balanced", max_iter=2000).fit(features[train], high[train, axis])
            decision[~train, axis] = model.decision_function(features[~train])
    return trial_means(decision, data.subject, data.trial)[0]


def trial_number(data: BandPower, held_out_fold: np.ndarray) -> np.ndarray | None:
    """Decisions (T, 2) from the trial's number alone, or None where subjects share no number.

    A decoder reaches this without any affect in the EEG where all subjects had the same stimuli in the same order.
    """
    first, _ = trial_index(data.subject, data.trial)
    number, target, fold = data.trial[first], data.valence_arousal[first], held_out_fold[first]
    decision, shared = np.zeros(target.shape), False
    for held_out in np.unique(fold):
        train = fold != held_out
        overall = target[train].mean(axis=0)
        for row in np.flatnonzero(~train):
            same = train & (number == number[row])
            if same.any():
                decision[row], shared = target[same].mean(axis=0) - overall, True
    return decision if shared else None
