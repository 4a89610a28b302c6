"""Figures against scikit-learn, on label sets that lack classes too."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score

from ngd_timm.errors import InputError
from ngd_timm.metrics import fer_metrics


def random_set(seed: int, n: int, present: list[int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.choice(present, size=n)
    return rng.normal(size=(n, 8)) + 1.5 * np.eye(8)[target], target


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 80),
    present=st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True),
)
def test_both_protocols_equal_scikit_learn(seed: int, n: int, present: list[int]) -> None:
    logits, target = random_set(seed, n, present)
    entry = fer_metrics(logits, target, resamples=0)
    seen = sorted(set(target.tolist()))
    masked = np.full_like(logits, -np.inf)
    masked[:, seen] = logits[:, seen]
    for protocol, scores, labels in (
        ("8way", logits, list(range(8))),
        ("present", masked, seen),
        ("present_unmasked", logits, seen),
    ):
        predicted = scores.argmax(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recall = recall_score(target, predicted, labels=labels, average="macro", zero_division=0)
            f1 = f1_score(target, predicted, labels=labels, average="macro", zero_division=0)
        assert entry[protocol]["acc"] == pytest.approx(100 * accuracy_score(target, predicted))
        assert entry[protocol]["bacc"] == pytest.approx(100 * recall)
        assert entry[protocol]["macro_f1"] == pytest.approx(100 * f1)
    assert entry["confusion"] == confusion_matrix(target, logits.argmax(1), labels=list(range(8))).tolist()


def test_numpy_and_torch_votes_and_indices_give_one_entry() -> None:
    logits, target = random_set(0, 50, list(range(8)))
    votes = np.eye(8)[target] * 7
    assert fer_metrics(logits, target) == fer_metrics(torch.from_numpy(logits), torch.from_numpy(votes))


def test_intervals_hold_the_figure_and_narrow_with_more_pictures() -> None:
    few, many = (fer_metrics(*random_set(1, n, list(range(8)))) for n in (100, 2000))
    for entry in (few, many):
        for metric, (low, high) in entry["ci95"]["8way"].items():
            assert low <= entry["8way"][metric] <= high
    widths = [e["ci95"]["8way"]["acc"][1] - e["ci95"]["8way"]["acc"][0] for e in (few, many)]
    assert widths[1] < widths[0] / 3


def test_pictures_of_one_person_widen_the_interval() -> None:
    logits, target = random_set(2, 60, list(range(8)))
    logits, target, subjects = np.repeat(logits, 10, 0), np.repeat(target, 10), np.repeat(np.arange(60), 10)
    by_image, by_subject = fer_metrics(logits, target), fer_metrics(logits, target, subjects=subjects)
    width = [e["ci95"]["8way"]["acc"][1] - e["ci95"]["8way"]["acc"][0] for e in (by_image, by_subject)]
    assert width[1] > 2 * width[0]
    assert by_subject["bootstrap"]["unit"] == "subject"


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    sure = np.log(np.array([[0.8, 0.2]] * 10))
    target = np.array([0] * 5 + [1] * 5)
    assert fer_metrics(sure, target, classes=("a", "b"), resamples=0)["ece"] == pytest.approx(30)


@pytest.mark.parametrize(
    ("logits", "target"),
    [
        (np.zeros((3, 7)), np.zeros(3, int)),
        (np.zeros((0, 8)), np.zeros(0, int)),
        (np.full((2, 8), np.nan), np.zeros(2, int)),
        (np.zeros((2, 8)), np.array([0, 8])),
    ],
)
def test_figures_of_nonsense_are_refused(logits: np.ndarray, target: np.ndarray) -> None:
    with pytest.raises(InputError):
        fer_metrics(logits, target)
