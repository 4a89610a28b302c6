"""Grids of two halves of the subjects."""

from __future__ import annotations

import numpy as np
import pytest

from ngd_timm.core.affect import cell_of
from ngd_timm.core.errors import InputError
from ngd_timm.eeg.teacher.stability import split_half
from ngd_timm.grid.prototypes import PrototypeGrid


def grid_rows(
    n: int = 12, trials: int = 16, noise: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two windows a trial whose embeddings bend over the plane, with noise."""
    rng = np.random.default_rng(seed)
    va = np.repeat(rng.uniform(-1, 1, (n * trials, 2)), 2, axis=0)
    subject, trial = np.repeat(np.arange(n), trials * 2), np.tile(np.repeat(np.arange(trials), 2), n)
    shape = np.stack([va[:, 0], va[:, 1], va[:, 0] * va[:, 1], np.full(len(va), 2.0)], axis=1)
    return shape + noise * rng.standard_normal(shape.shape), va, subject, trial


def test_a_split_equals_two_grids_built_by_the_grid_itself() -> None:
    rows, va, subject, trial = grid_rows(n=6)
    found = split_half(rows, va, subject, trial, size=3, splits=1, permutations=1, seed=3)
    half = np.zeros(6, dtype=bool)
    half[np.random.default_rng(3).permutation(6)[:3]] = True
    grids = []
    for side in (half, ~half):
        own = np.isin(subject, np.flatnonzero(side))
        grids.append(PrototypeGrid.build(rows[own], va[own], subject[own], size=3))
    both = (grids[0].counts > 0).numpy() & (grids[1].counts > 0).numpy()
    one, other = (g.prototypes.double().numpy()[both] for g in grids)
    assert found["cosine"]["value"] == pytest.approx((one * other).sum(axis=1).mean(), abs=1e-4)
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    cosine = (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert found["centered"]["value"] == pytest.approx(cosine.mean(), abs=1e-4)
    assert found["cells"] == both.sum()


def test_a_finer_grid_of_the_same_subjects_is_less_stable() -> None:
    scores = [split_half(*grid_rows(noise=1.5), size=s, splits=40, permutations=20)["centered"] for s in (3, 5, 7)]
    values = [score["value"] for score in scores]
    assert values == sorted(values, reverse=True)
    assert values[0] - values[2] > 0.2
    low, high = scores[0]["ci95"]
    assert low < values[0] < high


def test_embeddings_that_ignore_the_plane_agree_as_they_are_and_not_when_centred() -> None:
    rows, va, subject, trial = grid_rows()
    noise = np.random.default_rng(9).normal(0, 0.2, rows.shape) + np.array([0, 0, 0, 2.0])
    blind = split_half(noise, va, subject, trial, splits=40, permutations=200)
    assert blind["cosine"]["value"] > 0.9
    assert abs(blind["centered"]["value"] - blind["centered"]["chance"]) < 0.2
    assert blind["centered"]["p"] > 0.05
    informed = split_half(rows, va, subject, trial, splits=40, permutations=200)["centered"]
    assert informed["p"] < 0.01
    assert informed["value"] > blind["centered"]["value"] + 0.3


def test_the_same_seed_gives_the_same_scores_whatever_the_order_of_rows() -> None:
    columns = grid_rows(n=5, trials=6)
    order = np.random.default_rng(1).permutation(len(columns[0]))
    one = split_half(*columns, size=3, splits=10, permutations=10)["centered"]
    other = split_half(*(values[order] for values in columns), size=3, splits=10, permutations=10)["centered"]
    assert one["value"] == pytest.approx(other["value"], abs=1e-4)
    assert one["p"] == other["p"]


def test_too_few_subjects_or_cells_are_refused() -> None:
    rows, va, subject, trial = grid_rows(n=3)
    with pytest.raises(InputError, match="at least four"):
        split_half(rows, va, subject, trial)
    rows, va, subject, trial = grid_rows(n=4)
    with pytest.raises(InputError, match="three cells"):
        split_half(rows, np.full_like(va, 0.9), subject, trial)
    assert len(np.unique(cell_of(va, 5))) > 3
