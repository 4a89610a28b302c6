"""Held out by stimulus: what belongs to a stimulus doesn't carry over to another one, what belongs to affect does."""

from __future__ import annotations

import itertools
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ngd_timm.core.errors import InputError
from ngd_timm.core.teacher_recipe import TeacherData, TeacherRecipe
from ngd_timm.eeg.folds import FOLDS_BY, cells, fold_windows, stimulus_folds
from ngd_timm.eeg.readers.mahnob import read_mahnob
from ngd_timm.eeg.readers.sources import open_recordings
from ngd_timm.eeg.scores import score_trials, trial_means
from ngd_timm.eeg.signal.bandpower import BandPower, load_bandpower, log_power_z, pool_sets, save_bandpower
from ngd_timm.eeg.signal.preprocess import band_power
from ngd_timm.eeg.simulate.power import simulate_bandpower
from ngd_timm.eeg.simulate.sets import write_simulated
from ngd_timm.eeg.teacher.baselines import ridge_regression
from ngd_timm.eeg.teacher.consolidate import add_scores, build_grid
from ngd_timm.eeg.teacher.fit import fit_teacher
from ngd_timm.grid.card import grid_card
from ngd_timm.grid.mantel import Exchange, HeldOut
from ngd_timm.report.teacher import write_teacher_report


def recipe_for(root: Path, **data: Any) -> TeacherRecipe:
    return TeacherRecipe.model_validate(
        {
            "name": "quick",
            "data": {"name": "bandpower", "root": str(root), "folds": 3, **data},
            "teacher": {"backbone": "test_resnet", "image_size": 32, "embedding_dim": 8},
            "optim": {"epochs": 1, "samples_per_trial": 1, "batch_size": 8},
            "scores": {"bootstrap": 5, "permutations": 20},
        }
    )


def ridge_scores(data: BandPower, by: str) -> dict[str, Any]:
    fold = fold_windows(data, by, 3)
    prediction, decision = ridge_regression(data, log_power_z(data), fold, by)
    target, subject, first = trial_means(data.valence_arousal, data.subject, data.trial)
    assert data.stimulus is not None
    held = {} if by == "subject" else {"stimulus": data.stimulus[first], "fold": fold[first]}
    return score_trials(decision, prediction, target, subject, bootstrap=2, permutations=200, seed=0, **held)


@pytest.mark.parametrize("by", FOLDS_BY)
def test_what_belongs_to_a_stimulus_is_found_on_new_people_and_not_on_new_stimuli(by: str) -> None:
    scores = ridge_scores(simulate_bandpower(8, 16, 1, seed=1, effect=0.0, stimulus=1.0), by)
    for axis in ("valence", "arousal"):
        assert (scores[axis]["bacc"]["p"] < 0.01) == (by == "subject")
        assert (scores[axis]["bacc"]["p"] > 0.05) == (by != "subject")


@pytest.mark.parametrize("by", FOLDS_BY)
def test_affect_is_found_on_new_people_and_on_new_stimuli(by: str) -> None:
    scores = ridge_scores(simulate_bandpower(8, 16, 1, seed=1, effect=1.5, stimulus=1.0), by)
    for axis in ("valence", "arousal"):
        assert scores[axis]["bacc"]["p"] < 0.01
        assert scores[axis]["bacc"]["value"] > scores[axis]["bacc"]["chance"] + 0.15


def test_folds_of_stimuli_are_even_in_size_and_in_mean_rating() -> None:
    clip, who = np.tile(np.arange(20), 6), np.repeat(np.arange(6), 20)
    va = np.random.default_rng(0).uniform(-1, 1, (20, 2))[clip]
    fold = stimulus_folds(clip.astype(str), who, va, 5)
    assert [len(set(clip[fold == k])) for k in range(5)] == [4] * 5
    means = np.stack([va[fold == k].mean(axis=0) for k in range(5)])
    at_random = np.stack([va[clip // 4 == k].mean(axis=0) for k in range(5)])
    assert means.std(axis=0).max() < 0.1 < at_random.std(axis=0).min()
    order = np.random.default_rng(2).permutation(120)
    np.testing.assert_array_equal(stimulus_folds(clip[order].astype(str), who[order], va[order], 5), fold[order])
    assert set(stimulus_folds(np.char.add("c", (clip % 4).astype(str)), who, va, 5)) == {0, 1, 2, 3}


def test_a_cell_of_people_and_stimuli_is_predicted_from_neither() -> None:
    data = simulate_bandpower(6, 9, 2, stimulus=1.0)
    fold = fold_windows(data, "both", 3)
    assert data.stimulus is not None
    held_out = np.zeros(len(data), dtype=int)
    for own, seen in cells(fold):
        assert not set(data.subject[own]) & set(data.subject[seen])
        assert not set(data.stimulus[own]) & set(data.stimulus[seen])
        held_out += own
    assert (held_out == 1).all()


def test_held_out_stimuli_exchange_their_mean_ratings_within_their_fold_whoever_met_them() -> None:
    met = np.random.default_rng(1).random((4, 6)) < 0.7
    who, clip = np.nonzero(met)
    ratings = 10.0 * clip + who
    mean = np.array([ratings[clip == number].mean() for number in range(6)])
    drawn = Exchange(ratings, who, HeldOut(clip, clip // 3))(np.random.default_rng(0))
    beyond = ratings - mean[clip]
    for person, fold in np.unique(np.column_stack([who, clip // 3]), axis=0):
        own = (who == person) & (clip // 3 == fold)
        means = itertools.permutations(mean[3 * fold : 3 * fold + 3])
        exchanged = [np.array(m)[clip[own] - 3 * fold] + b for m in means for b in itertools.permutations(beyond[own])]
        assert any(np.allclose(drawn[own], np.clip(e, ratings.min(), ratings.max())) for e in exchanged)
    assert not np.allclose(drawn, ratings)


def test_the_stimulus_is_kept_in_a_file_and_stays_apart_in_a_pool(tmp_path: Path) -> None:
    data = simulate_bandpower(3, 4, 2, stimulus=1.0)
    save_bandpower(tmp_path / "a.npz", data)
    again = load_bandpower(tmp_path / "a.npz")
    assert data.stimulus is not None
    assert again.stimulus is not None
    np.testing.assert_array_equal(again.stimulus, data.stimulus)
    assert again.sha256 == replace(data, stimulus=None).sha256
    other = simulate_bandpower(3, 4, 2, seed=1)
    assert set(pool_sets([data, other]).stimulus.tolist()) == {"1:1", "1:2", "1:3", "1:4", ""}  # type: ignore[union-attr]
    with pytest.raises(InputError, match="subject 1, trial 1 has more than one stimulus"):
        replace(data, stimulus=np.arange(len(data)).astype(str))
    with pytest.raises(InputError, match=r"stimulus must be \(24,\) strings, got int64"):
        replace(data, stimulus=np.arange(len(data)))


@pytest.mark.parametrize("layout", ["dreamer", "mahnob", "deap", "gameemo"])
def test_every_reader_says_which_stimulus_a_trial_was_of(layout: str, tmp_path: Path, in_process: None) -> None:
    write_simulated(layout, tmp_path / "set", subjects=2, trials=2, seconds=4)
    recordings = open_recordings(layout, str(tmp_path / "set"))
    names = [recording.stimulus for recording in recordings]
    assert names == (["1.avi", "2.avi"] if layout == "mahnob" else ["1", "2"]) * 2
    power = band_power(recordings, TeacherData(name="recordings", window_s=2, baseline=False, artefact_uv=None))
    assert power.stimulus is not None
    assert set(zip(power.trial.tolist(), power.stimulus.tolist(), strict=True)) >= {(1, names[0])}


def test_a_session_of_mahnob_without_a_clip_has_no_stimulus(tmp_path: Path) -> None:
    write_simulated("mahnob", tmp_path / "set", subjects=1, trials=1, seconds=4)
    (path,) = (tmp_path / "set").rglob("session.xml")
    path.write_text(path.read_text().replace("mediaFile", "other"))
    assert [recording.stimulus for recording in read_mahnob(tmp_path / "set")] == [None]


def test_a_teacher_held_out_by_both_is_scored_and_built_from_cells_that_no_model_saw(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = simulate_bandpower(6, 5, 2, effect=1.0, stimulus=1.0)
    assert data.stimulus is not None
    alone = (data.subject == 2) & (data.trial == 5)
    data = replace(data, stimulus=np.where(alone, "mine", data.stimulus))
    save_bandpower(tmp_path / "a.npz", data)
    with caplog.at_level(logging.WARNING, "ngd_timm.eeg"):
        run = fit_teacher(recipe_for(tmp_path / "a.npz", folds_by="both"), tmp_path / "run")
    assert "met by one subject only, and left to folds by subject: stimulus mine" in caplog.text
    scores = json.loads((run / "scores.json").read_text())
    assert scores["folds_by"] == "both"
    assert scores["n"]["trials"] == 29
    assert scores["stimuli_of_one_subject"] == ["mine"]
    assert set(scores["folds"]) == {"subject", "stimulus"}
    assert set(scores["folds"]["subject"]) == {"ridge", "trial_number", "stimulus_alone"}
    assert "stimulus_alone" not in scores  # nobody's rating of a held-out stimulus is known
    tensors = load_file(run / "embeddings.safetensors")
    assert tensors["held_out_fold"].shape == (58, 2)
    assert "fold8.embedding" in tensors
    assert "fold9.embedding" not in tensors
    by_subject = fit_teacher(recipe_for(tmp_path / "a.npz"), tmp_path / "by-subject")
    assert "both" in json.loads(add_scores(build_grid(by_subject), [run]).metadata["scores"])["folds"]
    grid = build_grid(run)
    assert "by subject and by stimulus, seed 0" in grid.metadata["split"]
    card = grid_card(grid, "mine")
    assert "Held out by both subject and stimulus, the teacher passes for " in card
    assert "| by stimulus: ridge regression, valence bACC |" in card
    assert "within subject, the stimuli of a fold exchanging their mean ratings" in card
    with pytest.raises(
        InputError, match=r"/run has folds by \w+ and .*/by-subject by subject, and one test can't be of both"
    ):
        build_grid([run, by_subject])
    page = write_teacher_report(run).read_text()
    assert "Only one person met mine" in page
    assert page.count('<th scope="row">by stimulus</th>') == 4  # two axes, two metrics


def test_by_the_default_folds_the_ridge_is_scored_in_the_others(tmp_path: Path) -> None:
    save_bandpower(tmp_path / "a.npz", simulate_bandpower(4, 4, 2, stimulus=1.0))
    recipe = recipe_for(tmp_path / "a.npz")
    run = fit_teacher(recipe, tmp_path / "run")
    scores = json.loads((run / "scores.json").read_text())
    assert {by: sorted(part) for by, part in scores["folds"].items()} == {"stimulus": ["ridge"], "both": ["ridge"]}
    assert scores["stimulus_alone"] == scores["trial_number"]
