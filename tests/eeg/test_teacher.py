"""From band power to a grid: the teacher finds what is planted, and only that."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
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
from ngd_timm.eeg.signal.bandpower import BandPower, save_bandpower
from ngd_timm.eeg.simulate.power import CHANNELS, simulate_bandpower
from ngd_timm.eeg.teacher import fit as fit_module
from ngd_timm.eeg.teacher import training
from ngd_timm.eeg.teacher.consolidate import build_grid
from ngd_timm.eeg.teacher.fit import fit_teacher
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.report import try_page

MODEL = {"backbone": "test_resnet", "image_size": 32, "embedding_dim": 16}
QUICK = {
    "optim": {"epochs": 1, "samples_per_trial": 3, "batch_size": 8, "lr": 3e-3},
    "scores": {"bootstrap": 5, "permutations": 5},
}


def recipe_for(root: Path, support: Path | None = None, consistency: float = 0.0, **change: Any) -> TeacherRecipe:
    """A recipe that is fitted in a second."""
    data: dict[str, Any] = {"name": "bandpower", "root": str(root), "folds": 3}
    if support is not None:
        data["support"] = {"name": "bandpower", "root": str(support)}
    settings = {"name": "quick", "data": data, "teacher": MODEL, **QUICK, **change}
    settings["optim"] = {**settings["optim"], "consistency": consistency}
    return TeacherRecipe.model_validate(settings)


def unrated(data: BandPower, rows: np.ndarray | slice = slice(None)) -> BandPower:
    va = data.valence_arousal.copy()
    va[rows] = np.nan
    return replace(data, valence_arousal=va)


def embeddings(run: Path, fold: int = 0) -> np.ndarray:
    return load_file(run / "embeddings.safetensors")[f"fold{fold}.embedding"]


def fit_planted(folder: Path, effect: float, epochs: int) -> Path:
    command = ["ngd", "teacher", "fit", "small.yaml", f"data.root={folder}/a.npz"]
    save_bandpower(folder / "a.npz", simulate_bandpower(subjects=9, trials=12, windows=4, effect=effect))
    optim = {"epochs": epochs, "samples_per_trial": 2, "batch_size": 16, "lr": 3e-3}
    scores = {"bootstrap": 100, "permutations": 110}
    return fit_teacher(recipe_for(folder / "a.npz", optim=optim, scores=scores), folder / "run", command)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher run on band power with valence and arousal in it."""
    return fit_planted(tmp_path_factory.mktemp("planted"), effect=1.5, epochs=5)


@pytest.fixture
def small(tmp_path: Path) -> TeacherRecipe:
    """Of little data, whose bands have names that a plot could stumble over."""
    data = simulate_bandpower(subjects=3, trials=4, windows=2)
    save_bandpower(tmp_path / "a.npz", replace(data, bands=(r"$\frac$", "$x", "<b>", "a_$b$")))
    return recipe_for(tmp_path / "a.npz")


def test_a_planted_effect_is_found_on_subjects_the_teacher_has_not_seen(planted: Path) -> None:
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


def test_where_nothing_is_planted_nothing_is_found(tmp_path: Path) -> None:
    scores = json.loads((fit_planted(tmp_path, effect=0.0, epochs=1) / "scores.json").read_text())
    assert scores["grids"]["5"]["mantel"]["p"] > 0.05
    assert scores["grids"]["5"]["stability"]["centered"]["p"] > 0.05
    for axis in ("valence", "arousal"):
        assert scores["teacher"][axis]["ccc"]["value"] < 0.3
        assert scores["teacher"][axis]["ccc"]["p"] > 0.05


def test_a_run_directory_holds_recipe_fingerprint_scores_and_embeddings_of_every_fold(planted: Path) -> None:
    files = {"cells.safetensors", "embeddings.safetensors", "fingerprint.json", "lock", "recipe.yaml", "scores.json"}
    assert {p.name for p in planted.iterdir()} == files
    tensors = load_file(planted / "embeddings.safetensors")
    assert {tensors[f"fold{fold}.embedding"].shape for fold in range(3)} == {(432, 16)}
    np.testing.assert_array_equal(tensors["held_out_fold"], subject_folds(tensors["subject"], 3, seed=0))
    assert load_recipe(TeacherRecipe, planted / "recipe.yaml").out == str(planted)
    fingerprint = json.loads((planted / "fingerprint.json").read_text())
    assert set(fingerprint) >= {"data_sha256", "recipe_sha256", "embeddings_sha256", "packages", "seed"}


def test_scalp_means_show_where_each_axis_was_planted(planted: Path) -> None:
    tensors = load_file(planted / "cells.safetensors")
    slope, names, alpha, beta = tensors["slope"], list(CHANNELS), 2, 3
    assert slope[0, alpha, names.index("F3")] > 0.5 > -0.5 > slope[0, alpha, names.index("F4")]
    assert slope[1, beta, names.index("O1")] > 0.5 > -0.5 > slope[1, alpha, names.index("O1")]
    assert tensors["slope_people"].tolist() == [9, 9]
    assert tensors["windows"].sum() == 432
    assert tensors["z_mean"].shape == (25, 4, 14)
    enough = tensors["subjects"] >= 3
    assert enough.any()
    np.testing.assert_array_equal((tensors["z_mean"] != 0).any(axis=(1, 2)), enough)  # a cell of one is private


def test_unlabelled_support_is_used_by_names_and_without_its_ratings(tmp_path: Path) -> None:
    other = simulate_bandpower(subjects=5, trials=4, windows=3, seed=9)
    turned = replace(other, power=other.power[:, ::-1, ::-1], bands=other.bands[::-1], channels=other.channels[::-1])
    save_bandpower(tmp_path / "a.npz", simulate_bandpower(subjects=4, trials=6, windows=3))
    save_bandpower(tmp_path / "rated.npz", other)
    save_bandpower(tmp_path / "unrated.npz", unrated(turned))
    runs = []
    for name in ("rated", "unrated"):
        runs.append(fit_teacher(recipe_for(tmp_path / "a.npz", tmp_path / f"{name}.npz", 0.5), tmp_path / name))
        assert json.loads((runs[-1] / "fingerprint.json").read_text())["support"]["windows"] == 60
        assert "5 subjects, 60 windows" in build_grid(runs[-1]).metadata["support"]
    np.testing.assert_array_equal(embeddings(runs[0]), embeddings(runs[1]))
    alone = fit_teacher(recipe_for(tmp_path / "a.npz"), tmp_path / "alone")
    assert np.abs(embeddings(alone) - embeddings(runs[0])).max() > 1e-3


def test_unrated_trials_of_the_data_support_except_those_of_held_out_subjects(tmp_path: Path) -> None:
    data = simulate_bandpower(subjects=4, trials=6, windows=3)
    data = unrated(data, data.trial == 6)
    held_out = subject_folds(data.subject, 3) == 0
    changed = held_out & (data.trial == 6)
    log = np.log(data.power[changed].astype(np.float64))
    power = data.power.copy()
    # mean and std of the subject stay, and with them the z-scores of all rated trials
    power[changed] = np.exp(2 * log.mean(axis=0) - log)
    save_bandpower(tmp_path / "one.npz", data)
    save_bandpower(tmp_path / "other.npz", replace(data, power=power))
    unused = fit_teacher(recipe_for(tmp_path / "one.npz"), tmp_path / "unused")
    one, other = (fit_teacher(recipe_for(tmp_path / f"{n}.npz", None, 0.5), tmp_path / n) for n in ("one", "other"))
    assert json.loads((one / "scores.json").read_text())["n"] == {"subjects": 4, "trials": 20, "windows": 60}
    assert np.abs(embeddings(one) - embeddings(unused)).max() > 1e-3
    # exp and log round, so that the last bits of the subject's own z-scores move; those of all others do not
    others = ~held_out[data.trial != 6]
    np.testing.assert_array_equal(embeddings(one)[others], embeddings(other)[others])
    assert np.abs(embeddings(one, 1) - embeddings(other, 1)).max() > 1e-4


def test_a_recipe_gives_the_same_embeddings_on_any_number_of_cores_and_another_seed_does_not(
    small: TeacherRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "cpu_count", lambda: 2)
    monkeypatch.setattr(fit_module, "_WORTH", 0.0)  # so that two threads are two folds at a time
    state, runs = torch.random.get_rng_state(), []
    try:
        for seed, name, threads in ((0, "one", 1), (0, "two", 2), (1, "three", 1)):
            torch.set_num_threads(threads)
            runs.append(fit_teacher(small.model_copy(update={"seed": seed}), tmp_path / name))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    one, two, three = (embeddings(run) for run in runs)
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - three).max() > 1e-3
    prints = [json.loads((run / "fingerprint.json").read_text()) for run in runs]
    assert prints[0] == prints[1]
    assert prints[0]["recipe_sha256"] != prints[2]["recipe_sha256"]


def test_a_killed_process_of_a_fold_is_one_line_and_leaves_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(number: int, seen: np.ndarray, advance: Callable[[], None]) -> tuple[np.ndarray, np.ndarray]:
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(300 * number)
        return seen, seen

    monkeypatch.setattr(fit_module, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(fit_module, "_WORTH", 0.0)
    began = time.monotonic()
    with pytest.raises(
        InputError, match="was killed, perhaps for want of memory; with OMP_NUM_THREADS=1 there are none"
    ):
        list(fit_module._fitted(fit, [np.ones(3)] * 3, lambda: None, alone=False))
    assert time.monotonic() - began < 600  # the other one, which sleeps, was not waited for


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "cuda:77"}, "device 'cuda:77' is not on this machine"),
        ({"device": "meta"}, "device 'meta' is not on this machine"),
        ({"optim": {"opt": "adamww"}}, "did you mean 'adamw'"),
        ({"consistency": 0.5}, "nothing unlabelled to agree on"),
        ({"teacher": {**MODEL, "backbone": "test_resnett"}}, "timm has no model 'test_resnett'"),
        ({"teacher": {**MODEL, "backbone": "convnext_atto", "image_size": 16}}, "can't take maps of 16 x 16"),
        ({"root": "absent.npz"}, "no band-power file"),
        ({"root": "two.npz"}, "need at least 3 subjects"),
        ({"root": "one_sided.npz"}, "arousal: in fold 0 every training trial is on one side"),
        ({"root": "copied.npz"}, "filed under subject"),
        ({"root": "nobody.npz"}, "nobody rated anything"),
        ({"support": "few.npz"}, r"optim\.consistency only, which is 0"),
        ({"support": "few.npz", "consistency": 0.5}, "lacks the channels F8, AF4"),
        ({"support": "a.npz", "consistency": 0.5}, r"windows of data\.root itself"),
        ({"support": "doubled.npz", "consistency": 0.5}, r"windows of data\.root itself"),
    ],
)
def test_data_and_settings_that_cannot_serve_are_refused_before_anything_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str
) -> None:
    data = simulate_bandpower(subjects=4, trials=4, windows=2)
    va = data.valence_arousal * [1, 0] - [0, 0.5]
    twice = data.rows(np.concatenate([np.arange(len(data)), np.flatnonzero(data.subject == 1)]))
    subject = np.where(np.arange(len(twice)) < len(data), twice.subject, 9)
    kinds = {
        "a": data,
        "two": data.rows(data.subject < 3),
        "one_sided": replace(data, valence_arousal=va.astype(np.float32)),
        "copied": unrated(replace(twice, subject=subject), subject == 9),
        "nobody": unrated(data),
        "few": data.pick(channels=data.channels[:12]),
        "doubled": replace(data, power=2 * data.power),
    }
    change = dict(change)
    root, support = change.pop("root", "a.npz"), change.pop("support", None)
    for name in {root, support} - {None, "absent.npz"}:
        save_bandpower(tmp_path / name, kinds[name.removesuffix(".npz")])
    monkeypatch.setattr(fit_module, "train_teacher", lambda *_: pytest.fail("fitted"))
    with pytest.raises(InputError, match=words):
        fit_teacher(recipe_for(tmp_path / root, support and tmp_path / support, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_places_that_cannot_be_used_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        fit_teacher(recipe_for(tmp_path / "absent.npz"), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]
    with pytest.raises(InputError, match="can't be written"):
        fit_teacher(recipe_for(tmp_path / "absent.npz"), tmp_path / "run" / "mine.txt" / "run")
    with pytest.raises(InputError, match=r"data\.root is not set"):
        fit_teacher(TeacherRecipe(name="x"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_while_one_process_fits_another_is_refused_before_anything_is_fitted(
    small: TeacherRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
            patch.setattr(fit_module, "train_teacher", lambda *_: pytest.fail("fitted"))
            with pytest.raises(InputError, match="being written by another process"):
                fit_teacher(small, run)
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)

    def load_while_another_fits(*arguments: Any) -> BandPower:
        monkeypatch.setattr(fit_module, "load_rated", load)
        fit_teacher(small, run)  # what a killed fit left is no run
        return load(*arguments)

    load = fit_module.load_rated
    monkeypatch.setattr(fit_module, "load_rated", load_while_another_fits)
    with pytest.raises(InputError, match="not empty"):
        fit_teacher(small.model_copy(update={"seed": 1}), run)
    assert load_recipe(TeacherRecipe, run / "recipe.yaml").seed == 0


def test_neither_a_file_put_into_the_directory_nor_a_report_that_fails_costs_the_run(
    small: TeacherRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ngd: Callable[..., Any],
) -> None:
    def fit_while_notes_are_written(*args: Any) -> Any:
        (tmp_path / "run" / "notes.txt").write_text("mine")
        return training.train_teacher(*args)

    def fail(run: Path) -> None:
        raise RuntimeError("no\nplot")

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "train_teacher", fit_while_notes_are_written)
        patch.setattr("ngd_timm.report.write_teacher_report", fail)
        run = fit_teacher(small, tmp_path / "run")
        try_page(run)
    message = f"report.html is not written (RuntimeError: no plot); try again: ngd report {run}"
    assert [r.levelname for r in caplog.records if r.getMessage() == message] == ["WARNING"]
    assert not (run / "report.html").exists()
    assert (run / "notes.txt").read_text() == "mine"
    build_grid(run)
    assert ngd("report", str(run)).stdout.endswith(f"{run / 'report.html'}\n")
    assert r">$\frac$</text>" in (run / "report.html").read_text(encoding="utf-8")


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
    centred = build_grid(planted, size=3, center=True)
    assert centred.size == 3
    assert centred.metadata["centered"] == "true"
    assert float(centred.metadata["mantel_r_centered"]) == pytest.approx(centred.mantel_r, abs=1e-3)
    private = build_grid(planted, min_subjects=3)
    counts = [int(n) for n in private.metadata["subjects_per_cell"].split(",")]
    assert min(n for n in counts if n) >= 3
    assert private.filled < build_grid(planted).filled
    assert private.metadata["command"].split("\n") == [
        "ngd teacher fit small.yaml data.root=a.npz",
        "ngd prototypes build runs/quick-0 --out grid.safetensors --min-subjects 3",
    ]


def test_a_run_that_is_incomplete_or_was_changed_gives_no_grid(planted: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a teacher run"):
        build_grid(tmp_path)
    copy = shutil.copytree(planted, tmp_path / "run")
    damaged = bytearray((copy / "embeddings.safetensors").read_bytes())
    damaged[-9] ^= 4
    (copy / "embeddings.safetensors").write_bytes(bytes(damaged))
    with pytest.raises(InputError, match=r"fingerprint\.json describes"):
        build_grid(copy)


def test_the_packaged_recipe_is_valid_and_an_unknown_key_names_the_nearest() -> None:
    assert load_recipe(TeacherRecipe, "teacher_gameemo").data.name == "gameemo"
    with pytest.raises(InputError, match=r"did you mean 'optim\.epochs'"):
        load_recipe(TeacherRecipe, "teacher_gameemo", ["optim.epoch=3"])
    with pytest.raises(InputError, match="gameemo"):
        load_recipe(TeacherRecipe, "teacher_gameemo", ["data.name=gamemo"])


@pytest.mark.skipif("NGD_DATA" not in os.environ, reason="NGD_DATA does not name a folder with eeg/ in it")
def test_gameemo_is_read_as_28_subjects_with_four_games_of_29_windows() -> None:
    from ngd_timm.eeg.signal.bandpower import load_bandpower

    data = load_bandpower(Path(os.environ["NGD_DATA"]) / "eeg" / "gameemo_bandpower.npz", "gameemo")
    assert len(data) == 28 * 4 * 29
    assert not data.simulated
    assert len(np.unique(np.floor((data.valence_arousal + 1) / 2 * 4.999), axis=0)) == 24
