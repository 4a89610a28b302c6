"""Scores of a teacher: concordance, high against low, intervals over subjects, chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from ngd_timm.core.affect import ccc
from ngd_timm.eeg.scores import balanced_accuracy, score_trials, trial_means
from ngd_timm.eeg.teacher.training import ccc_loss


def slow_ccc(x: np.ndarray, y: np.ndarray) -> float:
    rho = np.corrcoef(x, y)[0, 1]
    return 2 * rho * x.std() * y.std() / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)


def test_ccc_and_its_loss_equal_lins_formula() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 40, 2))
    y = 0.5 * y + x + 0.3
    expected = [slow_ccc(x[:, i], y[:, i]) for i in (0, 1)]
    assert [ccc(x[:, i], y[:, i]) for i in (0, 1)] == pytest.approx(expected)
    loss = ccc_loss(torch.from_numpy(x), torch.from_numpy(y), eps=0.0)
    assert float(loss) == pytest.approx(1 - np.mean(expected))


def test_the_ccc_loss_has_a_gradient_and_stays_finite_for_a_batch_of_equal_values() -> None:
    prediction = torch.zeros(8, 2, requires_grad=True)
    loss = ccc_loss(prediction, torch.zeros(8, 2))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(prediction.grad).all()
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(6, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: ccc_loss(p, y), x)


def test_balanced_accuracy_equals_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    decision, target = rng.standard_normal(50), rng.uniform(-1, 0.4, 50)
    assert balanced_accuracy(decision, target) == pytest.approx(balanced_accuracy_score(target > 0, decision > 0))


def test_trial_means_average_the_windows_of_a_trial_and_of_nobody_else() -> None:
    subject, trial = np.array([2, 1, 2, 1, 1]), np.array([7, 7, 7, 8, 7])
    means, who, first = trial_means(np.array([[1.0], [2], [3], [5], [6]]), subject, trial)
    assert means.ravel().tolist() == [4.0, 5.0, 2.0]
    assert who.tolist() == [1, 1, 2]
    assert first.tolist() == [1, 3, 0]


def test_a_good_predictor_beats_chance_and_noise_does_not() -> None:
    rng = np.random.default_rng(0)
    target, subject = rng.uniform(-1, 1, (120, 2)), np.arange(30).repeat(4)
    prediction = np.stack([target[:, 0] + 0.3 * rng.standard_normal(120), rng.standard_normal(120)], axis=1)
    scores = score_trials(prediction, prediction, target, subject, bootstrap=200, permutations=200, seed=0)
    for metric in ("bacc", "ccc"):
        good, noise = scores["valence"][metric], scores["arousal"][metric]
        assert good["p"] == pytest.approx(1 / 201, abs=1e-4)
        assert noise["p"] > 0.05
        assert good["ci95"][0] < good["value"] < good["ci95"][1]
        assert good["chance"] < good["ci95"][0]
    assert scores["arousal"]["bacc"]["chance"] == pytest.approx(0.5, abs=0.05)
    assert "ccc" not in score_trials(prediction, None, target, subject, bootstrap=5, permutations=5, seed=0)["arousal"]


def test_a_decoder_that_knows_the_stimulus_alone_is_not_above_chance_once_the_stimulus_is_given() -> None:
    rng = np.random.default_rng(0)
    who, number = np.arange(30).repeat(4), np.tile(np.arange(4), 30)
    of_stimulus = np.array([[-0.6, 0.5], [0.6, -0.5], [0.4, 0.6], [-0.4, -0.6]])[number]
    target = np.clip(of_stimulus + 0.5 * rng.standard_normal((120, 2)), -1, 1)
    knows_more = target + 0.5 * rng.standard_normal((120, 2))
    times = {"bootstrap": 5, "permutations": 300, "seed": 0, "number": number}
    blind = score_trials(of_stimulus, of_stimulus + 0.01 * rng.standard_normal((120, 2)), target, who, **times)
    informed = score_trials(knows_more, knows_more, target, who, **times)
    for axis in ("valence", "arousal"):
        assert blind[axis]["bacc"]["p"] < 0.01
        assert blind[axis]["bacc"]["given_number"]["p"] > 0.05
        assert blind[axis]["ccc"]["given_number"]["p"] > 0.05
        assert blind[axis]["bacc"]["given_number"]["chance"] > 0.6 > blind[axis]["bacc"]["chance"]
        assert informed[axis]["bacc"]["given_number"]["p"] < 0.01
        assert informed[axis]["ccc"]["given_number"]["p"] < 0.01


def test_intervals_over_subjects_are_wider_than_over_copies_of_their_trials() -> None:
    rng = np.random.default_rng(0)
    target = rng.uniform(-1, 1, (40, 2)).repeat(10, axis=0)
    prediction = target + rng.standard_normal((40, 2)).repeat(10, axis=0)
    widths = []
    for who in (np.arange(40).repeat(10), np.arange(400)):
        scores = score_trials(prediction, prediction, target, who, bootstrap=200, permutations=1, seed=0)
        widths.append(np.ptp(scores["valence"]["ccc"]["ci95"]))
    assert widths[0] > 2 * widths[1]
