"""Metrics against scikit-learn, on label sets that lack classes too."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score

from ngd_timm.core.errors import InputError
from ngd_timm.evaluate.metrics import PROTOCOLS, confusion_difference, fer_metrics, mean_over_seeds, paired_difference


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


def test_intervals_contain_the_metric_and_narrow_with_more_images() -> None:
    few, many = (fer_metrics(*random_set(1, n, list(range(8)))) for n in (100, 2000))
    for entry in (few, many):
        for metric, (low, high) in entry["ci95"]["8way"].items():
            assert low <= entry["8way"][metric] <= high
    widths = [e["ci95"]["8way"]["acc"][1] - e["ci95"]["8way"]["acc"][0] for e in (few, many)]
    assert widths[1] < widths[0] / 3


def test_images_of_one_subject_widen_the_interval() -> None:
    logits, target = random_set(2, 60, list(range(8)))
    logits, target, subjects = np.repeat(logits, 10, 0), np.repeat(target, 10), np.repeat(np.arange(60), 10)
    by_image, by_subject = fer_metrics(logits, target), fer_metrics(logits, target, subjects=subjects)
    width = [e["ci95"]["8way"]["acc"][1] - e["ci95"]["8way"]["acc"][0] for e in (by_image, by_subject)]
    assert width[1] > 2 * width[0]
    assert by_subject["bootstrap"]["unit"] == "subject"


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    sure = np.log(np.array([[0.8, 0.2]] * 10))
    target = np.array([0] * 5 + [1] * 5)
    entry = fer_metrics(sure, target, classes=("a", "b"), resamples=0)
    assert entry["ece"] == pytest.approx(30)
    (filled,) = [b for b in entry["calibration"] if b["n"]]
    assert filled["low"] <= 80 <= filled["high"]
    assert (filled["n"], filled["confidence"], filled["accuracy"]) == (10, pytest.approx(80), 50)


def test_a_temperature_changes_calibration_and_no_other_metric() -> None:
    logits, target = random_set(4, 300, list(range(8)))
    cold, warm = fer_metrics(logits, target), fer_metrics(logits, target, temperature=4.0)
    assert warm["ece"] == pytest.approx(fer_metrics(logits / 4, target, resamples=0)["ece"])
    assert warm["ece"] != pytest.approx(cold["ece"], abs=1)
    assert warm["temperature"] == 4.0
    calibration = ("ece", "calibration", "temperature")
    assert {k: v for k, v in warm.items() if k not in calibration} == {
        k: v for k, v in cold.items() if k not in calibration
    }
    with pytest.raises(InputError, match="temperature must be above 0"):
        fer_metrics(logits, target, temperature=0)


@pytest.mark.parametrize("unit", ["image", "subject"])
def test_intervals_of_accuracy_cover_the_true_value_in_93_to_97_of_100_sets(unit: str) -> None:
    rng, draws, hits = np.random.default_rng(0), 300, 0
    for draw in range(draws):
        # either 400 images of as many subjects, or 80 subjects of 8 images whose own accuracy varies about 70 %
        subjects, each = (400, 1) if unit == "image" else (80, 8)
        skill = np.full(subjects, 0.7) if unit == "image" else rng.beta(7, 3, subjects)
        subject = np.repeat(np.arange(subjects), each)
        target = rng.integers(0, 4, subjects * each)
        predicted = np.where(rng.random(subjects * each) < skill[subject], target, (target + 1) % 4)
        by = None if unit == "image" else subject
        entry = fer_metrics(np.eye(4)[predicted], target, tuple("abcd"), by, resamples=400, seed=draw)
        low, high = entry["ci95"]["8way"]["acc"]
        hits += low <= 70 <= high
    assert 0.93 <= hits / draws <= 0.97


def seeds_of_two(count: int, n: int = 300) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Logits of two recipes that share what is hard about an image; the first is the better one."""
    rng = np.random.default_rng(5)
    target = rng.choice([0, 1, 2, 5], n)
    hard = rng.normal(size=(n, 8))
    a = [hard + 2.2 * np.eye(8)[target] + 0.2 * rng.normal(size=(n, 8)) for _ in range(count)]
    b = [hard + 1.9 * np.eye(8)[target] + 0.2 * rng.normal(size=(n, 8)) for _ in range(count)]
    return a, b, target


def test_a_difference_is_the_mean_over_seeds_of_the_difference_of_metrics() -> None:
    a, b, target = seeds_of_two(3)
    difference = paired_difference(a, b, target, resamples=200)
    for protocol in PROTOCOLS:
        for metric, found in difference[protocol].items():
            scores = [[fer_metrics(x, target, resamples=0)[protocol][metric] for x in runs] for runs in (a, b)]
            per_seed = np.subtract(*scores)
            assert found["per_seed"] == pytest.approx(per_seed)
            assert found["mean"] == pytest.approx(per_seed.mean())
            assert found["seed_sd"] == pytest.approx(per_seed.std(ddof=1))


def slow_macro_f1(target: np.ndarray, predicted: np.ndarray) -> float:
    hits = [((target == c) & (predicted == c)).sum() for c in range(8)]
    sizes = [(target == c).sum() + (predicted == c).sum() for c in range(8)]
    return float(np.mean([2 * hit / size if size else 0 for hit, size in zip(hits, sizes, strict=True)]))


def test_the_paired_bootstrap_equals_a_loop_that_draws_images_for_both() -> None:
    a, b, target = seeds_of_two(2, n=120)
    found = paired_difference(a, b, target, resamples=3000)["8way"]["macro_f1"]["ci95"]
    rng, slow = np.random.default_rng(1), []
    for _ in range(600):
        rows = rng.integers(0, 120, 120)
        f1 = [slow_macro_f1(target[rows], x[rows].argmax(1)) for x in (*a, *b)]
        slow.append(100 * (f1[0] + f1[1] - f1[2] - f1[3]) / 2)
    assert found == pytest.approx(np.percentile(slow, [2.5, 97.5]), abs=1)


def test_pairing_narrows_the_interval_of_students_that_err_on_the_same_images() -> None:
    a, b, target = seeds_of_two(2, n=600)
    paired = paired_difference(a, b, target)["8way"]["acc"]["ci95"]
    apart = paired_difference(a, b[::-1], target)["8way"]["acc"]["ci95"]
    alone = [mean_over_seeds(x, target)["8way"]["acc"]["ci95"] for x in (a, b)]
    independent = np.hypot(*(high - low for low, high in alone))
    assert paired[0] > 0
    assert paired[1] - paired[0] < 0.7 * independent
    # the order of the seeds has no part in the mean
    assert paired == pytest.approx(apart)


def test_the_interval_over_seeds_is_students_t_and_is_absent_for_one_seed() -> None:
    a, _, target = seeds_of_two(2)
    found = mean_over_seeds(a, target)["8way"]["acc"]
    half = 12.7062 * found["seed_sd"] / np.sqrt(2)
    assert found["seed_ci95"] == pytest.approx([found["mean"] - half, found["mean"] + half], abs=1e-3)
    one = mean_over_seeds(a[:1], target)
    assert one["8way"]["acc"]["seed_ci95"] is one["8way"]["acc"]["seed_sd"] is None
    assert one["8way"]["acc"]["mean"] == pytest.approx(fer_metrics(a[0], target, resamples=0)["8way"]["acc"])


def test_confusions_differ_by_the_mean_over_seeds_and_as_a_slow_bootstrap_over_images_says() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 5, 300)  # three classes are absent
    a, b = ([rng.normal(size=(300, 8)) + k * np.eye(8)[target] for _ in range(2)] for k in (2.0, 1.0))

    def slow(rows: np.ndarray, lacking: float) -> np.ndarray:
        matrices = np.zeros((4, 5, 8))
        for matrix, x in zip(matrices, (*a, *b), strict=True):
            predicted = np.where(np.arange(8) < 5, x, x + lacking).argmax(axis=1)
            np.add.at(matrix, (target[rows], predicted[rows]), 1)
        percent = 100 * matrices / matrices.sum(axis=2, keepdims=True)
        return (percent[0] + percent[1] - percent[2] - percent[3]) / 2

    found = confusion_difference(a, b, target, resamples=2000)
    for protocol, lacking in (("8way", 0.0), ("present", -np.inf)):
        mean, low, high = found[protocol]
        assert mean[:5] == pytest.approx(slow(np.arange(300), lacking))
        assert np.isnan(found[protocol][:, 5:]).all()
        bounds = np.percentile([slow(rng.integers(0, 300, 300), lacking) for _ in range(300)], [2.5, 97.5], axis=0)
        assert np.abs(np.stack([low, high])[:, :5] - bounds).max() < 4


def test_a_difference_needs_the_same_seeds_and_images() -> None:
    a, b, target = seeds_of_two(2)
    with pytest.raises(InputError, match="same seeds of both, got 2 and 1"):
        paired_difference(a, b[:1], target)
    with pytest.raises(InputError, match="don't fit"):
        paired_difference(a, [x[:-1] for x in b], target)
    with pytest.raises(InputError, match="subjects must name one"):
        paired_difference(a, b, target, subjects=np.arange(5))


@pytest.mark.parametrize(
    ("logits", "target"),
    [
        (np.zeros((3, 7)), np.zeros(3, int)),
        (np.zeros((0, 8)), np.zeros(0, int)),
        (np.zeros((2, 8)), np.array([0.0, np.nan])),
        (np.full((2, 8), np.nan), np.zeros(2, int)),
        (np.zeros((2, 8)), np.array([0, 8])),
    ],
)
def test_input_that_cannot_be_scored_is_refused(logits: np.ndarray, target: np.ndarray) -> None:
    with pytest.raises(InputError):
        fer_metrics(logits, target)
