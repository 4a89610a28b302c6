"""The baselines find what is planted and know nothing of the subjects they are scored on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ngd_timm.core.affect import ccc
from ngd_timm.eeg.folds import subject_folds
from ngd_timm.eeg.scores import balanced_accuracy, trial_means
from ngd_timm.eeg.signal.bandpower import log_power_z
from ngd_timm.eeg.simulate.power import simulate_bandpower
from ngd_timm.eeg.teacher.baselines import logistic_regression, ridge_regression, trial_number


def test_ridge_and_logistic_regression_find_what_is_planted_on_subjects_they_have_not_seen() -> None:
    data = simulate_bandpower(subjects=9, trials=12, windows=4, effect=1.5)
    z, folds = log_power_z(data), subject_folds(data.subject, 3)
    target = trial_means(data.valence_arousal, data.subject, data.trial)[0]
    prediction, decision = ridge_regression(data, z, folds)
    logistic = logistic_regression(data, z, folds)
    assert np.abs(prediction).max() <= 1
    for axis in (0, 1):
        assert ccc(prediction[:, axis], target[:, axis]) > 0.7
        assert balanced_accuracy(decision[:, axis], target[:, axis]) > 0.8
        assert balanced_accuracy(logistic[:, axis], target[:, axis]) > 0.8


def test_a_baseline_never_sees_the_ratings_of_held_out_subjects() -> None:
    data = simulate_bandpower(subjects=6, trials=8, windows=2)
    z, folds = log_power_z(data), subject_folds(data.subject, 3)
    held_out = folds == 0
    va = data.valence_arousal.copy()
    va[held_out] = -va[held_out]
    flipped = replace(data, valence_arousal=va)
    own = trial_means(held_out[:, None].astype(float), data.subject, data.trial)[0].ravel() > 0
    for baseline in (ridge_regression, logistic_regression, lambda d, _, f: trial_number(d, f)):
        before, after = (np.asarray(baseline(d, z, folds)).reshape(-1, len(own), 2) for d in (data, flipped))
        np.testing.assert_allclose(before[:, own], after[:, own])
        assert np.abs(before[:, ~own] - after[:, ~own]).max() > 1e-3


def test_the_trials_number_predicts_all_where_all_subjects_rate_the_same_order_alike() -> None:
    data = simulate_bandpower(subjects=6, trials=5, windows=2, effect=0.0)
    by_trial = np.array([[-1.0, 0.5], [0.5, -0.5], [1.0, 1.0], [-0.5, -1.0], [0.25, 0.25]], dtype=np.float32)
    same = replace(data, valence_arousal=by_trial[data.trial - 1])
    decision = trial_number(same, subject_folds(data.subject, 3))
    assert decision is not None
    target = trial_means(same.valence_arousal, data.subject, data.trial)[0]
    np.testing.assert_allclose(decision, target - target.mean(axis=0), atol=1e-6)


def test_a_number_that_no_other_subject_has_gives_nothing_and_takes_nothing_from_the_others() -> None:
    data = simulate_bandpower(subjects=6, trials=5, windows=1)
    folds, trial = subject_folds(data.subject, 3), data.trial.copy()
    trial[0] = 99
    whole, apart = trial_number(data, folds), trial_number(replace(data, trial=trial), folds)
    assert whole is not None
    assert apart is not None
    last = (data.subject == data.subject[0]).sum() - 1  # 99 sorts last among the trials of the first subject
    assert (apart[last] == 0).all()
    kept = (data.subject != data.subject[0]) & (data.trial != data.trial[0])  # one window a trial: rows are trials
    np.testing.assert_array_equal(np.sign(apart[kept]), np.sign(whole[kept]))
    assert trial_number(replace(data, trial=data.trial + 100 * data.subject), folds) is None
