"""From band power to a grid: the teacher finds what is planted, and only that."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ngd_timm.core.errors import InputError
from ngd_timm.core.lock import locked
from ngd_timm.core.recipe import load_recipe
from ngd_timm.core.teacher_recipe import TeacherRecipe
from ngd_timm.eeg.folds import subject_folds
from ngd_timm.eeg.signal.bandpower import save_bandpower
from ngd_timm.eeg.simulate.power import CHANNELS, simulate_bandpower
from ngd_timm.eeg.teacher import fit as teacher_module
from ngd_timm.eeg.teacher import fitting
from ngd_timm.eeg.teacher.consolidate import build_grid
from ngd_timm.eeg.teacher.fit import fit_teacher
from ngd_timm.eeg.teacher.fitting import Trials, fit_one
from ngd_timm.eeg.topomap import TopomapOperator
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.report import try_page, write_teacher_report

SMALL = {
    "teacher": {"backbone": "test_resnet", "image_size": 32, "embedding_dim": 16},
    "optim": {"epochs": 6, "samples_per_trial": 3, "batch_size": 32, "lr": 3e-3},
    "scores": {"bootstrap": 100, "permutations": 200},
}


def small(root: Path, **change: object) -> TeacherRecipe:
    data = {"name": "bandpower", "root": str(root), "folds": 3}
    return TeacherRecipe.model_validate({"name": "small", "data": data, **SMALL, **change})


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher run on band power with valence and arousal in it."""
    folder = tmp_path_factory.mktemp("planted")
    save_bandpower(folder / "a.npz", simulate_bandpower(subjects=9, trials=12, windows=4, effect=1.5))
    command = ["ngd", "teacher", "fit", "small.yaml", f"data.root={folder}/a.npz"]
    return fit_teacher(small(folder / "a.npz"), folder / "run", command)


def test_a_planted_effect_is_found_on_people_the_teacher_has_not_seen(planted: Path) -> None:
    scores = json.loads((planted / "scores.json").read_text())
    for axis in ("valence", "arousal"):
        assert scores["teacher"][axis]["ccc"]["value"] > 0.5
        assert scores["teacher"][axis]["ccc"]["p"] < 0.01
        assert scores["teacher"][axis]["bacc"]["ci95"][0] > scores["teacher"][axis]["bacc"]["chance"]
        assert scores["logistic_regression"][axis]["bacc"]["value"] > 0.7
        assert scores["teacher"][axis]["ccc"]["given_number"]["p"] < 0.01  # numbers mean nothing here
        assert scores["ridge"][axis]["ccc"]["value"] > 0.7
    assert list(scores["grids"]) == ["3", "5", "7"]
    grid = scores["grids"]["5"]
    assert grid["mantel"]["r"] > 0.4
    assert grid["mantel"]["p"] < 0.01
    assert grid["stability"]["centered"]["p"] < 0.01
    assert grid["stability"]["centered"]["value"] > grid["stability"]["centered"]["chance"] + 0.2
    assert scores["n"] == {"subjects": 9, "trials": 108, "windows": 432}


def test_a_run_directory_holds_recipe_fingerprint_scores_and_embeddings_of_every_fold(planted: Path) -> None:
    assert sorted(p.name for p in planted.iterdir()) == [
        "cells.safetensors",
        "embeddings.safetensors",
        "fingerprint.json",
        "lock",
        "recipe.yaml",
        "scores.json",
    ]
    tensors = load_file(planted / "embeddings.safetensors")
    for fold in range(3):
        assert tensors[f"fold{fold}.embedding"].shape == (432, 16)
    held_out = tensors["held_out_fold"]
    np.testing.assert_array_equal(held_out, subject_folds(tensors["subject"], 3, seed=0))
    recipe = load_recipe(TeacherRecipe, planted / "recipe.yaml")
    assert recipe.out == str(planted)
    fingerprint = json.loads((planted / "fingerprint.json").read_text())
    assert set(fingerprint) >= {"data_sha256", "recipe_sha256", "embeddings_sha256", "packages", "seed"}


def test_the_pictures_data_show_where_on_the_scalp_each_axis_was_planted(planted: Path) -> None:
    tensors = load_file(planted / "cells.safetensors")
    assert tensors["windows"].sum() == 432
    assert tensors["subjects"].max() <= 9
    slope, names = tensors["slope"], list(CHANNELS)
    alpha, beta = 2, 3
    assert slope[0, alpha, names.index("F3")] > 0.5 > -0.5 > slope[0, alpha, names.index("F4")]
    assert slope[1, beta, names.index("O1")] > 0.5 > -0.5 > slope[1, alpha, names.index("O1")]
    assert tensors["slope_people"].tolist() == [9, 9]
    assert tensors["z_mean"].shape == (25, 4, 14)
    enough = tensors["subjects"] >= 3
    assert enough.any()
    np.testing.assert_array_equal((tensors["z_mean"] != 0).any(axis=(1, 2)), enough)  # a cell of one is a person's own


def test_unlabelled_support_is_used_without_its_ratings(tmp_path: Path) -> None:
    save_bandpower(tmp_path / "a.npz", simulate_bandpower(subjects=4, trials=6, windows=3))
    other = simulate_bandpower(subjects=5, trials=4, windows=3, seed=9)
    wide = replace(other, power=other.power[:, ::-1, ::-1], bands=other.bands[::-1], channels=other.channels[::-1])
    unrated = replace(wide, valence_arousal=np.full_like(wide.valence_arousal, np.nan))
    found = {}
    quick = {**SMALL["optim"], "epochs": 1, "batch_size": 8}
    for name, support in (("rated", other), ("turned", wide), ("unrated", unrated)):
        save_bandpower(tmp_path / f"{name}.npz", support)
        data = {"name": "bandpower", "root": str(tmp_path / "a.npz"), "folds": 3}
        data["support"] = {"name": "bandpower", "root": str(tmp_path / f"{name}.npz")}
        recipe = small(
            tmp_path, data=data, optim={**quick, "consistency": 0.5}, scores={"bootstrap": 5, "permutations": 5}
        )
        run = fit_teacher(recipe, tmp_path / name)
        found[name] = load_file(run / "embeddings.safetensors")["fold0.embedding"]
        assert json.loads((run / "fingerprint.json").read_text())["support"]["windows"] == 60
        assert "5 people, 60 windows" in build_grid(run).metadata["support"]
    np.testing.assert_array_equal(found["rated"], found["unrated"])
    np.testing.assert_array_equal(found["rated"], found["turned"])  # electrodes and bands by name
    alone = fit_teacher(
        small(tmp_path / "a.npz", optim=quick, scores={"bootstrap": 5, "permutations": 5}), tmp_path / "alone"
    )
    assert np.abs(load_file(alone / "embeddings.safetensors")["fold0.embedding"] - found["rated"]).max() > 1e-3


def test_unrated_trials_of_the_data_itself_support_and_are_not_scored(tmp_path: Path) -> None:
    data = simulate_bandpower(subjects=4, trials=6, windows=3)
    va = data.valence_arousal.copy()
    va[data.trial == 6] = np.nan
    save_bandpower(tmp_path / "a.npz", replace(data, valence_arousal=va))
    few = {"bootstrap": 5, "permutations": 5}
    found = []
    for weight in (0.0, 0.5):
        optim = {**SMALL["optim"], "epochs": 1, "batch_size": 8, "consistency": weight}
        run = fit_teacher(small(tmp_path / "a.npz", optim=optim, scores=few), tmp_path / f"run{weight}")
        assert json.loads((run / "scores.json").read_text())["n"] == {"subjects": 4, "trials": 20, "windows": 60}
        found.append(load_file(run / "embeddings.safetensors")["fold0.embedding"])
    assert np.abs(found[0] - found[1]).max() > 1e-3


def _other_values_of_the_same_mean_and_spread(power: np.ndarray) -> np.ndarray:
    log = np.log(power.astype(np.float64))
    mirrored = 2 * log.mean(axis=0) - log
    return np.exp(mirrored).astype(np.float32)


def test_unrated_trials_of_held_out_people_are_not_trained_on(tmp_path: Path) -> None:
    data = simulate_bandpower(subjects=4, trials=6, windows=3)
    folds = subject_folds(data.subject, 3)
    va = data.valence_arousal.copy()
    va[data.trial == 6] = np.nan
    held_out = folds == 0
    unrated = held_out & (data.trial == 6)
    power = data.power.copy()
    # the person's mean and spread stay, and with them the z-scores of all rated trials
    power[unrated] = _other_values_of_the_same_mean_and_spread(power[unrated])
    found = []
    for name, values in (("one", data.power), ("other", power)):
        save_bandpower(tmp_path / f"{name}.npz", replace(data, valence_arousal=va, power=values))
        optim = {**SMALL["optim"], "epochs": 1, "batch_size": 8, "consistency": 0.5}
        recipe = small(tmp_path / f"{name}.npz", optim=optim, scores={"bootstrap": 5, "permutations": 5})
        found.append(load_file(fit_teacher(recipe, tmp_path / name) / "embeddings.safetensors"))
    assert (power != data.power).any()
    # exp and log round, so that the last bits of the person's own z-scores move; those of everybody else do not
    others = ~held_out[data.trial != 6]
    np.testing.assert_array_equal(found[0]["fold0.embedding"][others], found[1]["fold0.embedding"][others])
    assert np.abs(found[0]["fold1.embedding"] - found[1]["fold1.embedding"]).max() > 1e-4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "cuda:77"}, "device 'cuda:77' is not on this machine"),
        ({"device": "meta"}, "device 'meta' is not on this machine"),
        ({"optim": {**SMALL["optim"], "opt": "adamww"}}, "did you mean 'adamw'"),
        ({"optim": {**SMALL["optim"], "consistency": 0.5}}, "nothing unlabelled to agree on"),
        ({"teacher": {**SMALL["teacher"], "backbone": "test_resnett"}}, "timm has no model 'test_resnett'"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_fitted(
    tmp_path: Path, change: dict, words: str
) -> None:
    save_bandpower(tmp_path / "a.npz", simulate_bandpower(subjects=4, trials=4, windows=2))
    with pytest.raises(InputError, match=words):
        fit_teacher(small(tmp_path / "a.npz", **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_ratings_on_one_side_are_refused_before_anything_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = simulate_bandpower(subjects=4, trials=4, windows=2)
    va = data.valence_arousal.copy()
    va[:, 1] = -np.abs(va[:, 1])
    save_bandpower(tmp_path / "a.npz", replace(data, valence_arousal=va))
    monkeypatch.setattr(teacher_module, "fit_one", lambda *_: pytest.fail("fitted"))
    with pytest.raises(InputError, match="arousal: in fold 0 every training trial is on one side"):
        fit_teacher(small(tmp_path / "a.npz"), tmp_path / "run")


def test_an_unrated_copy_under_another_name_is_found(tmp_path: Path) -> None:
    data = simulate_bandpower(subjects=4, trials=4, windows=2)
    twice = np.concatenate([np.arange(len(data)), np.flatnonzero(data.subject == 1)])
    both = data.rows(twice)
    subject, va = both.subject.copy(), both.valence_arousal.copy()
    subject[len(data) :], va[len(data) :] = 9, np.nan
    save_bandpower(tmp_path / "a.npz", replace(both, subject=subject, valence_arousal=va))
    with pytest.raises(InputError, match="filed under subject"):
        fit_teacher(small(tmp_path / "a.npz"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_support_that_cannot_serve_is_refused(tmp_path: Path) -> None:
    data = simulate_bandpower(subjects=4, trials=6, windows=2)
    save_bandpower(tmp_path / "a.npz", data)
    save_bandpower(tmp_path / "few.npz", data.pick(channels=data.channels[:12]))
    save_bandpower(tmp_path / "doubled.npz", replace(data, power=2 * data.power))
    save_bandpower(tmp_path / "nobody.npz", replace(data, valence_arousal=np.full_like(data.valence_arousal, np.nan)))

    def fit(support: str, weight: float = 0.5, root: str = "a.npz") -> None:
        data = {"name": "bandpower", "root": str(tmp_path / root), "folds": 3}
        data["support"] = {"name": "bandpower", "root": str(tmp_path / support)}
        fit_teacher(small(tmp_path, data=data, optim={**SMALL["optim"], "consistency": weight}), tmp_path / "run")

    with pytest.raises(InputError, match="lacks the channels F8, AF4"):
        fit("few.npz")
    with pytest.raises(InputError, match=r"optim\.consistency only, which is 0"):
        fit("few.npz", weight=0.0)
    with pytest.raises(InputError, match=r"windows of data\.root itself"):
        fit("a.npz")
    with pytest.raises(InputError, match=r"windows of data\.root itself"):
        fit("doubled.npz")
    with pytest.raises(InputError, match="nobody rated anything"):
        fit("a.npz", root="nobody.npz")
    assert not (tmp_path / "run").exists()


def test_the_grid_of_a_run_says_what_it_was_built_from_and_that_it_is_simulated(planted: Path, tmp_path: Path) -> None:
    grid = build_grid(planted)
    notes = grid.metadata
    assert notes["simulated"] == "true"
    assert notes["subjects"] == "9"
    assert "transductive" in notes["normalisation"]
    assert float(notes["mantel_r"]) == pytest.approx(grid.mantel_r, abs=1e-3)
    assert json.loads(notes["scores"])["teacher"]["valence"]["ccc"]["value"] > 0.5
    assert str(planted) not in "".join(notes.values())
    grid.save(tmp_path / "grid.safetensors")
    assert PrototypeGrid.load(tmp_path / "grid.safetensors").sha256 == grid.sha256 == build_grid(planted).sha256


def test_size_centring_and_min_subjects_reach_the_grid(planted: Path) -> None:
    assert build_grid(planted, size=3).size == 3
    centred = build_grid(planted, size=3, center=True)
    assert centred.metadata["centered"] == "true"
    assert float(centred.metadata["mantel_r_centered"]) == pytest.approx(centred.mantel_r, abs=1e-3)
    private = build_grid(planted, min_subjects=3)
    people = [int(n) for n in private.metadata["subjects_per_cell"].split(",")]
    assert min(n for n in people if n) >= 3
    assert private.filled < build_grid(planted).filled
    assert private.metadata["command"].split("\n") == [
        "ngd teacher fit small.yaml data.root=a.npz",
        "ngd prototypes build runs/small-0 --out grid.safetensors --min-subjects 3",
    ]


def test_where_nothing_is_planted_nothing_is_found(tmp_path: Path) -> None:
    save_bandpower(tmp_path / "a.npz", simulate_bandpower(subjects=9, trials=8, windows=3, seed=1, effect=0.0))
    quick = {"optim": {**SMALL["optim"], "epochs": 3}}
    run = fit_teacher(small(tmp_path / "a.npz", **quick), tmp_path / "run")
    scores = json.loads((run / "scores.json").read_text())
    assert scores["grids"]["5"]["mantel"]["p"] > 0.05
    assert scores["grids"]["5"]["stability"]["centered"]["p"] > 0.05
    for axis in ("valence", "arousal"):
        assert scores["teacher"][axis]["ccc"]["value"] < 0.3
        assert scores["teacher"][axis]["ccc"]["p"] > 0.05


def test_a_recipe_gives_the_same_embeddings_on_any_number_of_threads_and_another_seed_does_not(
    tmp_path: Path,
) -> None:
    torch.set_num_threads(1)
    save_bandpower(tmp_path / "a.npz", simulate_bandpower(subjects=3, trials=6, windows=2))
    quick = {"optim": {**SMALL["optim"], "epochs": 1, "batch_size": 8}, "scores": {"bootstrap": 5, "permutations": 5}}
    state = torch.random.get_rng_state()
    runs = []
    for seed, name, threads in ((0, "one", 1), (0, "two", 2), (1, "three", 1)):
        torch.set_num_threads(threads)
        runs.append(fit_teacher(small(tmp_path / "a.npz", seed=seed, **quick), tmp_path / name))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    one, two, three = (load_file(run / "embeddings.safetensors")["fold0.embedding"] for run in runs)
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - three).max() > 1e-3
    assert torch.equal(torch.random.get_rng_state(), state)
    prints = [json.loads((run / "fingerprint.json").read_text()) for run in runs]
    assert prints[0] == prints[1]
    assert prints[0]["recipe_sha256"] != prints[2]["recipe_sha256"]


def test_a_directory_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        fit_teacher(small(tmp_path / "absent.npz"), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]


QUICK = {
    "optim": {**SMALL["optim"], "epochs": 1, "batch_size": 8},
    "scores": {"bootstrap": 5, "permutations": 5},
}


@pytest.fixture
def quick(tmp_path: Path) -> TeacherRecipe:
    """A teacher that is fitted in a second."""
    save_bandpower(tmp_path / "a.npz", simulate_bandpower(subjects=3, trials=4, windows=2))
    return small(tmp_path / "a.npz", **QUICK)


def test_an_epoch_draws_no_more_samples_of_a_trial_than_it_has_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[np.ndarray] = []

    def view(augment: Any, trials: Any, rng: Any) -> torch.Tensor:
        drawn.extend(rows for _, rows in trials)
        return torch.stack([z[rows].mean(dim=0) for z, rows in trials])

    monkeypatch.setattr(fitting, "_view", view)
    windows = [np.array([0]), np.array([1, 2]), np.array([3, 4, 5, 6, 7])] * 4
    data = Trials(torch.randn(8, 4, 14), windows, torch.rand(8, 2) * 2 - 1)
    optim = {**SMALL["optim"], "epochs": 1, "batch_size": 4, "samples_per_trial": 3}
    operator = TopomapOperator(CHANNELS, size=32)
    fit_one(small(tmp_path, optim=optim), data, [], operator, 4, 0, lambda: None)
    assert Counter(map(len, drawn)) == {1: 4, 2: 8, 5: 12}


def test_a_file_that_is_put_into_the_directory_while_it_fits_stays(
    quick: TeacherRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit_while_notes_are_written(*args: Any) -> Any:
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "notes.txt").write_text("mine")
        return fit_one(*args)

    monkeypatch.setattr(teacher_module, "fit_one", fit_while_notes_are_written)
    run = fit_teacher(quick, tmp_path / "run")
    assert (run / "notes.txt").read_text() == "mine"
    build_grid(run)


def test_while_one_process_fits_another_is_refused_before_anything_is_fitted(
    quick: TeacherRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    ready, tell = os.pipe()
    holder = os.fork()
    if not holder:
        with locked(run):
            os.write(tell, b"1")
            signal.pause()
    os.read(ready, 1)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(teacher_module, "fit_one", lambda *_: pytest.fail("fitted"))
            with pytest.raises(InputError, match="being written by another process"):
                fit_teacher(quick, run)
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    fit_teacher(quick, run)  # what a killed fit left is no run


def test_of_two_that_begin_one_run_the_later_is_refused_and_the_earlier_kept(
    quick: TeacherRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def load_while_another_fits(recipe: TeacherRecipe) -> Any:
        monkeypatch.setattr(teacher_module, "_load", load)
        fit_teacher(quick, run)
        return load(recipe)

    load = teacher_module._load
    monkeypatch.setattr(teacher_module, "_load", load_while_another_fits)
    with pytest.raises(InputError, match="not empty"):
        fit_teacher(quick.model_copy(update={"seed": 1}), run)
    assert load_recipe(TeacherRecipe, run / "recipe.yaml").seed == 0


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        fit_teacher(small(tmp_path / "absent.npz"), tmp_path / "file" / "run")


def test_a_band_may_have_any_name(tmp_path: Path) -> None:
    data = simulate_bandpower(subjects=3, trials=4, windows=2)
    save_bandpower(tmp_path / "a.npz", replace(data, bands=(r"$\frac$", "$x", "<b>", "a_$b$")))
    run = fit_teacher(small(tmp_path / "a.npz", **QUICK), tmp_path / "run")
    assert r">$\frac$</text>" in write_teacher_report(run).read_text(encoding="utf-8")


def test_a_report_that_fails_costs_a_line_and_not_the_run(
    quick: TeacherRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ngd: Callable[..., Any],
) -> None:
    def fail(run: Path) -> None:
        raise RuntimeError("no\nplot")

    with monkeypatch.context() as patch:
        patch.setattr("ngd_timm.report.write_teacher_report", fail)
        run = fit_teacher(quick, tmp_path / "run")
        try_page(run)
    said = f"report.html is not written (RuntimeError: no plot); try again: ngd report {run}"
    assert [r.levelname for r in caplog.records if r.getMessage() == said] == ["WARNING"]
    assert not (run / "report.html").exists()
    build_grid(run)
    assert ngd("report", str(run)).stdout == f"{run / 'report.html'}\n"


def test_missing_data_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no band-power file"):
        fit_teacher(small(tmp_path / "absent.npz"), tmp_path / "run")
    recipe = TeacherRecipe(name="x")
    with pytest.raises(InputError, match=r"data\.root is not set"):
        fit_teacher(recipe, tmp_path / "run")
    save_bandpower(tmp_path / "a.npz", simulate_bandpower(subjects=2, trials=4, windows=2))
    with pytest.raises(InputError, match="need at least 3 subjects"):
        fit_teacher(small(tmp_path / "a.npz"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_incomplete_or_was_changed_gives_no_grid(planted: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a teacher run"):
        build_grid(tmp_path)
    copy = tmp_path / "run"
    copy.mkdir()
    for file in planted.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    damaged = bytearray((copy / "embeddings.safetensors").read_bytes())
    damaged[-9] ^= 4
    (copy / "embeddings.safetensors").write_bytes(bytes(damaged))
    with pytest.raises(InputError, match=r"fingerprint\.json describes"):
        build_grid(copy)


def test_the_shipped_recipe_is_valid_and_an_unknown_key_names_the_nearest() -> None:
    assert load_recipe(TeacherRecipe, "teacher_gameemo").data.name == "gameemo"
    with pytest.raises(InputError, match=r"did you mean 'optim\.epochs'"):
        load_recipe(TeacherRecipe, "teacher_gameemo", ["optim.epoch=3"])
    with pytest.raises(InputError, match="gameemo"):
        load_recipe(TeacherRecipe, "teacher_gameemo", ["data.name=gamemo"])


@pytest.mark.skipif("NGD_DATA" not in os.environ, reason="NGD_DATA does not name a folder with eeg/ in it")
def test_gameemo_is_read_as_28_people_with_four_games_of_29_windows() -> None:
    from ngd_timm.eeg.signal.bandpower import load_bandpower

    data = load_bandpower(Path(os.environ["NGD_DATA"]) / "eeg" / "gameemo_bandpower.npz", "gameemo")
    assert len(data) == 28 * 4 * 29
    assert not data.simulated
    assert len(np.unique(np.floor((data.valence_arousal + 1) / 2 * 4.999), axis=0)) == 24
