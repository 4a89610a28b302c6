"""How often do the 95 % bootstrap intervals of `fer_metrics` hold the truth? On simulated sets, whose truth is known.

    python tests/benchmarks/coverage.py [--draws 1000] [--resamples 500]

A student predicts class k for class c at a fixed rate; a set draws its classes at about FER+'s frequencies. The truth
is the score on infinitely many images; beside it stands the mean score of sets of that size, which for macro-F1 is
another number (a mean of ratios). Where there are subjects, each has an own rate of being missed.

Then: how often do both intervals of `paired_difference` exclude 0 where two recipes don't differ? Images and seeds move
each difference on their own, by standard errors of a given ratio.
"""

from __future__ import annotations

import time

import numpy as np
from measuring import parser
from scipy import stats

from ngd_timm.core.affect import CLASSES
from ngd_timm.evaluate.metrics import METRICS, fer_metrics

# FER+ validation under `majority`, in the order of CLASSES (contempt last): rounded shares
FREQUENCY = np.array([0.36, 0.26, 0.125, 0.12, 0.085, 0.012, 0.03, 0.008])
RECALL = np.array([0.87, 0.92, 0.85, 0.65, 0.75, 0.40, 0.55, 0.20])


def rates(recall: np.ndarray) -> np.ndarray:
    """(C, C): the chance of each prediction, given the truth; errors go to the other classes by their frequency."""
    size = len(recall)
    other = np.where(np.eye(size, dtype=bool), 0, FREQUENCY[:size] / FREQUENCY[:size].sum())
    return np.diag(recall) + (1 - recall)[:, None] * other / other.sum(axis=1, keepdims=True)


def truth(rate: np.ndarray) -> dict[str, float]:
    """The scores on infinitely many images."""
    joint = FREQUENCY[:, None] / FREQUENCY.sum() * rate
    hit = np.diag(joint)
    return {
        "acc": 100 * hit.sum(),
        "macro_f1": 100 * np.mean(2 * hit / (joint.sum(0) + joint.sum(1))),
        "bacc": 100 * np.mean(np.diag(rate)),
    }


def draw_set(
    rng: np.random.Generator, n: int, subjects: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    target = rng.choice(len(CLASSES), n, p=FREQUENCY / FREQUENCY.sum())
    chance = rng.random(n)
    cumulative = rates(RECALL).cumsum(axis=1)
    predicted = np.minimum((chance[:, None] > cumulative[target]).sum(axis=1), len(CLASSES) - 1)
    if subjects is None:
        return np.eye(len(CLASSES))[predicted], target, None
    # some subjects are recognised worse: a part of their images is predicted as the commonest class instead
    subject = np.arange(n) % subjects
    lost = rng.random(n) < rng.beta(1, 6, subjects)[subject]
    return np.eye(len(CLASSES))[np.where(lost, 0, predicted)], target, subject


def false_findings(seeds: int, ratio: float, draws: int) -> float:
    """Percent of differences of 0 whose intervals over images and over seeds both exclude it."""
    rng = np.random.default_rng([seeds, round(100 * ratio)])
    of_images = rng.normal(size=draws)
    of_seeds = rng.normal(0, ratio * np.sqrt(seeds), (draws, seeds))
    mean = of_images + of_seeds.mean(axis=1)
    half = stats.t.ppf(0.975, seeds - 1) * of_seeds.std(axis=1, ddof=1) / np.sqrt(seeds)
    return 100 * float(np.mean((abs(mean) > stats.norm.ppf(0.975)) & (abs(mean) > half)))


def main() -> None:
    options = parser(__doc__, draws=1000, resamples=500).parse_args()
    print(f"{options.draws} sets each, {options.resamples} resamples; chance alone moves a 95 by", end=" ")
    print(f"{196 * np.sqrt(0.95 * 0.05 / options.draws):.1f}")
    print("set                               metric    truth  mean of sets  covers truth %  covers mean of sets %")
    for n, subjects in ((300, None), (1000, None), (3000, None), (1000, 100)):
        began = time.perf_counter()
        exact = truth(rates(RECALL))
        if subjects is not None:
            lost = 1 / 7
            exact = truth((1 - lost) * rates(RECALL) + lost * np.eye(len(CLASSES))[np.zeros(len(CLASSES), dtype=int)])
        scores = {m: np.zeros(options.draws) for m in METRICS}
        interval = {m: np.zeros((options.draws, 2)) for m in METRICS}
        for draw in range(options.draws):
            logits, target, subject = draw_set(np.random.default_rng([n, draw]), n, subjects)
            entry = fer_metrics(logits, target, subjects=subject, resamples=options.resamples, seed=draw)
            for metric in METRICS:
                scores[metric][draw] = entry["8way"][metric]
                interval[metric][draw] = entry["ci95"]["8way"][metric]
        name = f"{n} images" + (f" of {subjects} subjects" if subjects else "")
        for metric in METRICS:
            low, high = interval[metric].T
            mean = scores[metric].mean()
            covers = [100 * np.mean((low <= t) & (t <= high)) for t in (exact[metric], mean)]
            print(f"{name:33} {metric:8} {exact[metric]:6.2f} {mean:13.2f} {covers[0]:15.1f} {covers[1]:22.1f}")
        print(f"{'':33} ({time.perf_counter() - began:.0f} s)")
    ratios = (0.25, 0.5, 1, 2, 4)
    print("both intervals exclude a difference of 0, %; standard error over seeds / over images:", *ratios)
    for seeds in (2, 3, 5):
        print(f"{seeds} seeds", *(f"{false_findings(seeds, ratio, 200_000):5.1f}" for ratio in ratios))


if __name__ == "__main__":
    main()
