"""The order in which an epoch's images are drawn: a function of (seed, epoch) and nothing else."""

from __future__ import annotations

import numpy as np
import torch

from ngd_timm.core.errors import choices

__all__ = ["SAMPLERS", "drawn_counts", "epoch_order", "generator_for"]

SAMPLERS = ("random", "class_aware")


def generator_for(*key: int) -> torch.Generator:
    """A CPU generator whose stream depends on every number of `key`, so that (1, 23) and (12, 3) differ.

    Examples:
        >>> torch.rand(1, generator=generator_for(0, 1)) == torch.rand(1, generator=generator_for(0, 1))
        tensor([True])
    """
    generator = torch.Generator()
    generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)))
    return generator


def epoch_order(labels: np.ndarray, sampler: str, seed: int, epoch: int) -> np.ndarray:
    """Row numbers in the order in which one epoch draws them.

    - `random`: every row once, shuffled.
    - `class_aware`: rounds over the classes that are present; in a round every class comes once, in shuffled order,
      and gives the next row of its own shuffled list, which is shuffled afresh when used up. So any batch holds each
      class equally often up to two (exactly where the classes divide it), rare rows repeat within an epoch and common
      ones wait for a later one. The epoch is as long as the data set.

    Args:
        labels: (N,) class indices.
        sampler: One of `SAMPLERS`.
        seed: The run's seed.
        epoch: Epoch number from 0.

    Returns:
        (N,) int64 row numbers.

    Raises:
        InputError: Unknown sampler.

    Examples:
        >>> order = epoch_order(np.array([0] * 9 + [1]), "class_aware", seed=0, epoch=0)
        >>> int((order == 9).sum())
        5

    Reference:
        Shen, Lin and Huang, "Relay backpropagation for effective learning of deep CNNs", ECCV 2016, section 3.3.
    """
    if sampler not in SAMPLERS:
        raise choices("sampler", sampler, SAMPLERS)
    generator = generator_for(seed, epoch, 0)
    n = len(labels)
    if sampler == "random" or n == 0:
        return torch.randperm(n, generator=generator).numpy()
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    rounds = -(-n // len(members))
    turns = np.stack([torch.randperm(len(members), generator=generator).numpy() for _ in range(rounds)])
    drawn = np.empty((rounds, len(members)), dtype=np.int64)
    for column, rows in enumerate(members):
        shuffles = -(-rounds // len(rows))
        lists = [rows[torch.randperm(len(rows), generator=generator).numpy()] for _ in range(shuffles)]
        drawn[:, column] = np.concatenate(lists)[:rounds]
    return np.take_along_axis(drawn, turns, axis=1).ravel()[:n]


def drawn_counts(target: np.ndarray, labels: np.ndarray, sampler: str, classes: int) -> np.ndarray:
    """Labels of each class that an epoch of `epoch_order` draws on average: the prior that training sees.

    Args:
        target: (N,) class indices, or (N, C) soft targets.
        labels: (N,) class indices by which the sampler draws.
        sampler: One of `SAMPLERS`.
        classes: C.

    Returns:
        (C,) float64, N in all.

    Examples:
        >>> labels = np.array([0] * 9 + [1])
        >>> drawn_counts(labels, labels, "class_aware", classes=2).tolist()
        [5.0, 5.0]
    """
    weights = target.astype(np.float64) if target.ndim == 2 else np.eye(classes)[target]
    if sampler == "random":
        return weights.sum(0)
    means = [weights[labels == c].mean(0) for c in np.unique(labels)]
    return len(labels) * np.mean(means, axis=0)
