from __future__ import annotations

import numpy as np
import pytest
from writers import random_votes

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError
from ngd_timm.data.labels import DATASETS, VOTE_COLUMNS, apply_rule, class_of, split_of


def majority_of(counts: dict[str, int]) -> str | None:
    """The rule, row by row, as its sentence says it."""
    left = {name: n for name, n in counts.items() if n > 1}
    if not left or not any(counts[c] for c in CLASSES):
        return None
    leader = max(left, key=lambda name: left[name])
    if leader in ("unknown", "NF"):
        return None
    return leader if left[leader] > sum(left.values()) / 2 else None


def argmax_of(counts: dict[str, int]) -> str | None:
    best = max(CLASSES, key=lambda c: counts[c])
    return best if counts[best] else None


@pytest.mark.parametrize(("rule", "reference"), [("majority", majority_of), ("argmax", argmax_of)])
def test_a_rule_equals_its_sentence_row_by_row(rule: str, reference: object) -> None:
    votes = random_votes(3000, seed=1)
    expected = [reference(dict(zip(VOTE_COLUMNS, row.tolist(), strict=True))) for row in votes]  # type: ignore[operator]
    got = [CLASSES[i] if i >= 0 else None for i in apply_rule(votes, rule).label]
    assert got == expected
    assert None in got
    assert len(set(got)) == 9


def test_votes_are_renormalised_over_the_eight() -> None:
    votes = random_votes(500, seed=2)
    ruled = apply_rule(votes, "votes")
    for row, soft, label in zip(votes, ruled.soft, ruled.label, strict=True):
        if row[:8].sum() == 0:
            assert label == -1
        else:
            np.testing.assert_allclose(soft, row[:8] / row[:8].sum(), rtol=1e-6)
            assert label == row[:8].argmax()
    assert (ruled.label == -1).sum() == ruled.dropped["no vote for any of the classes"].sum() > 0


@pytest.mark.parametrize("rule", ["majority", "argmax", "votes"])
def test_every_dropped_row_has_exactly_one_reason(rule: str) -> None:
    ruled = apply_rule(random_votes(1000, seed=3), rule, classes=CLASSES[:5])
    reasons = sum(mask.astype(int) for mask in ruled.dropped.values())
    np.testing.assert_array_equal(reasons, (ruled.label == -1).astype(int))


def test_classes_choose_the_order_of_the_labels() -> None:
    votes = np.array([[0, 0, 0, 0, 9, 1, 0, 0, 0, 0], [9, 0, 0, 0, 1, 0, 0, 0, 0, 0]])
    ruled = apply_rule(votes, "majority", classes=("disgust", "anger"))
    assert ruled.label.tolist() == [1, -1]
    np.testing.assert_allclose(apply_rule(votes, "votes", classes=("disgust", "anger")).soft, [[0.1, 0.9], [0, 1]])


@pytest.mark.parametrize(
    ("name", "label"),
    [("Happy", "happiness"), ("angry", "anger"), (" sad ", "sadness"), ("surprised", "surprise"), ("fearful", "fear")],
)
def test_common_names_mean_their_class_in_every_data_set(name: str, label: str) -> None:
    assert {class_of(dataset, name) for dataset in DATASETS} == {label}


def test_an_unknown_class_name_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(InputError, match=r"hapines.*did you mean 'happiness'.*neutral"):
        class_of("ferplus", "hapines")
    with pytest.raises(InputError, match="contempt"):
        class_of("rafdb", "contempt")


def test_an_index_is_never_a_class_name() -> None:
    with pytest.raises(InputError, match="unknown ferplus class name '0'"):
        class_of("ferplus", "0")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("PublicTest", "valid"),
        ("FER2013Valid", "valid"),
        ("val", "valid"),
        ("PrivateTest", "test"),
        ("train-00000-of-00002", "train"),
        ("train_test", None),
        ("trainer", None),
    ],
)
def test_split_names_are_known_by_their_usual_aliases(name: str, split: str | None) -> None:
    assert split_of(name) == split
