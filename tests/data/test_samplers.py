from __future__ import annotations

import numpy as np
import pytest

from ngd_timm.core.errors import InputError
from ngd_timm.data.samplers import drawn_counts, epoch_order

LABELS = np.repeat([0, 1, 2, 5], [100, 40, 7, 3])


@pytest.mark.parametrize("sampler", ["random", "class_aware"])
def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else(sampler: str) -> None:
    orders = {(s, e): tuple(epoch_order(LABELS, sampler, s, e)) for s in (0, 1) for e in (0, 1)}
    assert len(set(orders.values())) == 4
    assert orders[0, 1] == tuple(epoch_order(LABELS, sampler, 0, 1))


def test_the_random_sampler_draws_every_row_once() -> None:
    assert sorted(epoch_order(LABELS, "random", 3, 2)) == list(range(150))


def test_the_class_aware_sampler_gives_every_batch_each_present_class_equally_often() -> None:
    order = epoch_order(LABELS, "class_aware", 0, 0)
    assert len(order) == 150
    for start in range(0, 144, 8):
        counts = np.bincount(LABELS[order[start : start + 8]], minlength=6)[[0, 1, 2, 5]]
        assert counts.tolist() == [2, 2, 2, 2]


def test_the_class_aware_sampler_uses_up_a_class_before_it_repeats_a_row() -> None:
    order = epoch_order(LABELS, "class_aware", 4, 7)
    for c in (0, 1, 2, 5):
        drawn = order[LABELS[order] == c]
        size = int(np.count_nonzero(c == LABELS))
        for start in range(0, len(drawn), size):
            part = drawn[start : start + size]
            assert len(set(part)) == len(part)


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'class_aware'"):
        epoch_order(LABELS, "classaware", 0, 0)


@pytest.mark.parametrize("sampler", ["random", "class_aware"])
@pytest.mark.parametrize("soft", [False, True])
def test_the_counts_drawn_are_the_mean_over_epochs_of_what_is_drawn(sampler: str, soft: bool) -> None:
    target = np.random.default_rng(0).dirichlet(np.ones(6), len(LABELS)) + 6 * np.eye(6)[LABELS]
    target = target / target.sum(1, keepdims=True) if soft else np.eye(6)[LABELS]
    epochs = [target[epoch_order(LABELS, sampler, 0, epoch)].sum(0) for epoch in range(200)]
    counts = drawn_counts(target if soft else LABELS, LABELS, sampler, 6)
    np.testing.assert_allclose(counts, np.mean(epochs, axis=0), atol=0.5)
    assert counts.sum() == pytest.approx(150)
