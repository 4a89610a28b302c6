"""Grids of two halves of the subjects."""

from __future__ import annotations

import numpy as np
import pytest

from ngd_timm.core.affect import cell_of
from ngd_timm.core.errors import InputError
from ngd_timm.eeg.teacher.stability import split_half
from ngd_timm.grid.prototypes import PrototypeGrid


def people(
    n: int = 12, trials: int = 16, noise: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two windows a trial whose embeddings bend over the plane, with noise."""
    rng = np.random.default_rng(seed)
    va = np.repeat(rng.uniform(-1, 1, (n * trials, 2)), 2, axis=0)
    subject, trial = np.repeat(np.arange(n), trials * 2), np.tile(np.repeat(np.arange(trials), 2), n)
    shape = np.stack([va[:, 0], va[:, 1], va[:, 0] * va[:, 1], np.full(len(va), 2.0)], axis=1)
    return shape + noise * rng.standard_normal(shape.shape), va, subject, trial


def test_a_split_equals_two_grids_built_by_the_grid_itself() -> None:
    rows, va, subject, trial = people(n=6)
    found = split_half(rows, va, subject, trial, size=3, splits=1, permutations=1, seed=3)
    half = np.zeros(6, dtype=bool)
    half[np.random.default_rng(3).permutation(6)[:3]] = True
    grids = [
        PrototypeGrid.build(
            rows[np.isin(subject, np.flatnonzero(side))],
            va[np.isin(subject, np.flatnonzero(side))],
            subject[np.isin(subject, np.flatnonzero(side))],
            size=3,
        )
        for side in (half, ~half)
    ]
    both = (grids[0].counts > 0).numpy() & (grids[1].counts > 0).numpy()
    one, other = (g.prototypes.double().numpy()[both] for g in grids)
    assert found.cosine == pytest.approx((one * other).sum(axis=1).mean(), abs=1e-6)
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    cosine = (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert found.centered == pytest.approx(cosine.mean(), abs=1e-6)
    assert found.cells == both.sum()


def test_a_finer_grid_of_the_same_people_is_less_stable() -> None:
    figures = [split_half(*people(noise=1.5), size=size, splits=40, permutations=20) for size in (3, 5, 7)]
    values = [f.centered for f in figures]
    assert values == sorted(values, reverse=True)
    assert values[0] - values[2] > 0.2
    low, high = figures[0].centered_range
    assert low < values[0] < high


def test_embeddings_that_ignore_the_plane_agree_as_they_are_and_not_when_centred() -> None:
    rows, va, subject, trial = people()
    blind = np.random.default_rng(9).normal(0, 0.2, rows.shape) + np.array([0, 0, 0, 2.0])
    found = split_half(blind, va, subject, trial, splits=40, permutations=200)
    assert found.cosine > 0.9
    assert abs(found.centered - found.chance) < 0.2
    assert found.p > 0.05
    told = split_half(rows, va, subject, trial, splits=40, permutations=200)
    assert told.p < 0.01
    assert told.centered > found.centered + 0.3


def test_the_same_seed_gives_the_same_figures_whatever_the_order_of_rows() -> None:
    rows, va, subject, trial = people(n=5, trials=6)
    order = np.random.default_rng(1).permutation(len(rows))
    one = split_half(rows, va, subject, trial, size=3, splits=10, permutations=10)
    other = split_half(rows[order], va[order], subject[order], trial[order], size=3, splits=10, permutations=10)
    assert one.centered == pytest.approx(other.centered)
    assert one.p == other.p


def test_too_few_people_or_cells_are_refused() -> None:
    rows, va, subject, trial = people(n=3)
    with pytest.raises(InputError, match="at least four"):
        split_half(rows, va, subject, trial)
    rows, va, subject, trial = people(n=4)
    with pytest.raises(InputError, match="three cells"):
        split_half(rows, np.full_like(va, 0.9), subject, trial)
    assert len(np.unique(cell_of(va, 5))) > 3
