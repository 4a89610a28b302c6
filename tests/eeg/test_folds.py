"""Folds by subject, and the frame they share."""

from __future__ import annotations

import numpy as np
import pytest

from ngd_timm.core.errors import InputError
from ngd_timm.eeg.folds import align, check_split, subject_folds


def test_no_subject_is_in_two_folds_and_folds_are_even() -> None:
    subjects = np.random.default_rng(0).integers(0, 28, 500)
    fold = subject_folds(subjects, 5)
    assert all(len(set(fold[subjects == s])) == 1 for s in np.unique(subjects))
    sizes = [len(set(subjects[fold == f])) for f in range(5)]
    assert max(sizes) - min(sizes) <= 1


def test_folds_depend_on_the_seed_and_not_on_the_order_of_rows() -> None:
    subjects = np.arange(12).repeat(3)
    order = np.random.default_rng(1).permutation(36)
    np.testing.assert_array_equal(subject_folds(subjects, 4)[order], subject_folds(subjects[order], 4))
    assert (subject_folds(subjects, 4, seed=0) != subject_folds(subjects, 4, seed=1)).any()


def test_fewer_subjects_than_folds_is_refused() -> None:
    with pytest.raises(InputError, match="at least 5 subjects, got 3"):
        subject_folds(np.array([1, 2, 3, 3]), 5)


def test_a_split_with_a_subject_or_a_trial_on_both_sides_is_refused() -> None:
    subjects, trials = np.array(["ann", "ann", "bob", "bob"]), np.array([1, 2, 1, 1])
    check_split(np.array([0, 1]), np.array([2, 3]), subjects, trials)
    with pytest.raises(InputError, match="subject ann on both sides"):
        check_split(np.array([0, 2]), np.array([1]), subjects, trials)
    with pytest.raises(InputError, match="subject bob, trial 1 on both sides"):
        check_split(np.array([0, 1, 2]), np.array([3]), subjects, trials)
    with pytest.raises(InputError, match="without recordings"):
        check_split(np.zeros(4, dtype=bool), np.ones(4, dtype=bool), subjects, trials)


def test_one_recording_under_two_names_is_found_in_a_split() -> None:
    subjects, trials = np.array([1, 1, 2, 2]), np.array([1, 2, 1, 2])
    power = np.arange(4 * 6, dtype=np.float32).reshape(4, 2, 3)
    check_split(subjects == 1, subjects == 2, subjects, trials, power)
    power[3] = power[0]
    with pytest.raises(InputError, match="filed under subject 1 and subject 2"):
        check_split(subjects == 1, subjects == 2, subjects, trials, power)


def test_teachers_that_differ_by_a_rotation_agree_after_alignment() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((90, 5))
    fold = np.arange(90) % 3
    turns = [np.linalg.qr(rng.standard_normal((5, 5)))[0] for _ in range(3)]
    aligned, agreement = align(np.stack([truth @ t for t in turns]), fold)
    expected = truth @ turns[0]
    np.testing.assert_allclose(aligned, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-9)
    np.testing.assert_allclose(agreement, 1, atol=1e-9)


def test_a_held_out_recording_has_no_part_in_its_own_frame() -> None:
    rng = np.random.default_rng(0)
    embeddings, fold = rng.standard_normal((3, 60, 4)), np.arange(60) % 3
    before, _ = align(embeddings, fold)
    changed = embeddings.copy()
    changed[0, fold == 1] = rng.standard_normal((20, 4))  # what teacher 0 says of fold 1's held-out people
    changed[1, 1] = rng.standard_normal(4)  # what teacher 1 says of one of them
    after, _ = align(changed, fold)
    others = (fold == 1) & (np.arange(60) != 1)
    np.testing.assert_allclose(after[others], before[others], atol=1e-12)
    assert np.abs(after[1] - before[1]).max() > 0.1


def test_two_folds_and_a_dead_embedding_are_refused() -> None:
    with pytest.raises(InputError, match="three folds"):
        align(np.ones((2, 4, 3)), np.array([0, 1, 0, 1]))
    dead = np.ones((3, 6, 3))
    dead[1, 2] = 0
    with pytest.raises(InputError, match="zero or not finite"):
        align(dead, np.arange(6) % 3)
