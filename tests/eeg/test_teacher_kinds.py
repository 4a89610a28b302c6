"""A ridge as a teacher, on band power or on tangent vectors, and the network in less time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ngd_timm.core.errors import InputError
from ngd_timm.core.teacher_recipe import TeacherData, TeacherRecipe
from ngd_timm.eeg.signal.bandpower import save_bandpower
from ngd_timm.eeg.signal.cospectra import cospectra, tangent_z
from ngd_timm.eeg.signal.preprocess import band_power
from ngd_timm.eeg.signal.recording import Recording, RecordingSet
from ngd_timm.eeg.simulate.power import simulate_bandpower
from ngd_timm.eeg.simulate.sets import write_simulated
from ngd_timm.eeg.teacher.consolidate import add_scores, build_grid
from ngd_timm.eeg.teacher.fit import fit_teacher
from ngd_timm.eeg.teacher.linear import fit_linear
from ngd_timm.grid.card import grid_card
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.report.teacher import write_teacher_report

NAMES = ("Fz", "Cz", "Pz", "C3", "C4")


def recipe_for(kind: str, data: dict[str, Any], **optim: Any) -> TeacherRecipe:
    return TeacherRecipe.model_validate(
        {
            "name": "quick",
            "data": {"folds": 3, **data},
            "teacher": {"kind": kind, "backbone": "test_resnet", "embedding_dim": 16},
            "optim": {"epochs": 1, "samples_per_trial": 2, "batch_size": 8, **optim},
            "scores": {"bootstrap": 5, "permutations": 50},
        }
    )


@pytest.fixture(scope="module")
def ridges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Ridges on the same data, by what their folds hold out."""
    folder = tmp_path_factory.mktemp("ridges")
    save_bandpower(folder / "a.npz", simulate_bandpower(6, 12, 2, effect=1.5, stimulus=1.0))
    data = {"name": "bandpower", "root": str(folder / "a.npz")}
    return {by: fit_teacher(recipe_for("ridge", {**data, "folds_by": by}), folder / by) for by in ("subject", "both")}


def test_a_ridge_is_scored_as_the_baseline_is_and_a_grid_of_it_follows_the_plane(ridges: dict[str, Path]) -> None:
    run = ridges["both"]
    scores = json.loads((run / "scores.json").read_text())
    for axis in ("valence", "arousal"):
        for metric in ("bacc", "ccc"):
            assert scores["teacher"][axis][metric]["value"] == scores["ridge"][axis][metric]["value"] > 0.5
    assert load_file(run / "embeddings.safetensors")["fold8.embedding"].shape == (144, 16)
    assert scores["grids"]["5"]["mantel_centered"]["p"] < 0.05
    grid = build_grid(run)
    assert grid.metadata["teacher"] == "ridge regression on log power, 16-d embedding"
    assert "A ridge regression does no worse" not in grid_card(grid, "mine")
    page = write_teacher_report(run).read_text()
    assert "A ridge regression learned to read" in page
    assert "network" not in page


def test_the_scores_of_a_teacher_in_other_folds_go_to_the_card(
    ridges: dict[str, Path], ngd: Callable[..., Any], tmp_path: Path
) -> None:
    files = [str(place) for place in (ridges["subject"], tmp_path / "grid.safetensors", tmp_path / "card.md")]
    command = ("prototypes", "build", files[0], "--out", files[1], "--card", files[2])
    outcome = ngd(*command, "--scored", str(ridges["both"]))
    assert outcome.returncode == 0, outcome.stderr
    card = (tmp_path / "card.md").read_text()
    assert "Held out by subject, the teacher passes for valence and arousal; held out by both subject and" in card
    assert "fitted in no other folds: held out by stimulus a ridge passes" in card
    assert "| by both subject and stimulus: teacher, valence bACC |" in card
    grid = PrototypeGrid.load(tmp_path / "grid.safetensors")
    assert grid.sha256 == build_grid(ridges["subject"]).sha256
    for run, words in ((ridges["both"], "are there already"), (ridges["subject"], "in folds by subject are there")):
        with pytest.raises(InputError, match=words):
            add_scores(grid, [run])
    as_network = json.dumps({k: v for k, v in json.loads(grid.metadata["scores"]).items() if k != "kind"})
    with pytest.raises(InputError, match="is a teacher of kind ridge, the grid's is topomap"):
        add_scores(replace(grid, metadata={**grid.metadata, "scores": as_network}), [ridges["both"]])
    with pytest.raises(InputError, match="fitted on other recordings than the grid"):
        add_scores(replace(grid, metadata={**grid.metadata, "data_sha256": "ab"}), [ridges["both"]])
    with pytest.raises(InputError, match="a grid of one teacher run"):
        add_scores(PrototypeGrid.random(16), [ridges["both"]])


def test_a_ridges_embedding_knows_nothing_of_the_ratings_of_others_than_it_was_fitted_on() -> None:
    data = simulate_bandpower(6, 8, 2)
    features = np.log(data.power).reshape(len(data), -1).astype(np.float64)
    seen = data.subject > 2
    teacher = fit_linear(features[seen], data.rows(seen), 12)
    embedding, prediction = teacher(features)
    assert (embedding.shape, prediction.shape) == ((96, 12), (96, 2))
    target = data.valence_arousal[~seen]
    # the first two of an embedding are a turn of the two predictions
    fitted = embedding[:, :2] @ np.linalg.lstsq(embedding[:, :2], prediction - teacher.offset, rcond=None)[0]
    np.testing.assert_allclose(fitted, prediction - teacher.offset, atol=1e-4)
    assert np.corrcoef(prediction[~seen, 1], target[:, 1])[0, 1] > 0.2


def trial(subject: int, number: int, together: bool, rng: np.random.Generator) -> Recording:
    """Alpha of the same power at C3 and C4, in phase or a quarter of a turn apart."""
    time = np.arange(12 * 128) / 128
    signal = rng.normal(0, 5, (5, len(time)))
    signal[3:] += 10 * np.sin(2 * np.pi * 10 * time + np.array([[0.0], [0.0 if together else np.pi / 2]]))
    return Recording(subject, number, signal, 128.0, NAMES, (0.5, -0.5) if together else (-0.5, 0.5))


@pytest.fixture(scope="module")
def coupled() -> RecordingSet:
    """Where one pair of electrodes goes together in every other trial, and power says nothing."""
    rng = np.random.default_rng(0)
    trials = [trial(s, t, (s + t) % 2 == 0, rng) for s in range(2) for t in range(6)]
    return RecordingSet("coupled", (), lambda: iter(trials))


def test_a_co_spectrums_diagonal_is_the_band_power_and_its_tangent_vectors_tell_coupling(coupled: RecordingSet) -> None:
    pytest.importorskip("pyriemann")
    settings = TeacherData(name="recordings", bands=("theta", "alpha"), artefact_uv=None)
    data = band_power(coupled, settings)
    matrices = cospectra(coupled, settings, data)
    assert matrices.shape == (len(data), 2, 5, 5)
    assert np.linalg.eigvalsh(matrices).min() > 0
    shrunk = np.diagonal(matrices, axis1=2, axis2=3)
    power = (shrunk - 0.1 * shrunk.mean(axis=2, keepdims=True)) / 0.9
    assert np.log(power[:, 1] / data.power[:, 1]).std() < 0.02
    vectors = tangent_z(matrices, data.subject)
    together = data.valence_arousal[:, 0] > 0
    pair = np.triu_indices(5)
    place = 15 + int(np.flatnonzero((pair[0] == 3) & (pair[1] == 4))[0])
    assert np.corrcoef(vectors[:, place], together)[0, 1] > 0.8
    assert vectors.std(axis=0).min() > 0.99


def test_a_riemann_teacher_is_fitted_from_signals(tmp_path: Path, in_process: None) -> None:
    pytest.importorskip("pyriemann")
    write_simulated("deap", tmp_path / "set", subjects=4, trials=4, seconds=8)
    data = {"name": "deap", "root": str(tmp_path / "set"), "bands": ["alpha", "beta"], "cache": False}
    run = fit_teacher(recipe_for("riemann", data), tmp_path / "run")
    scores = json.loads((run / "scores.json").read_text())
    assert scores["kind"] == "riemann"
    assert scores["teacher"] != scores["ridge"]
    assert "pyriemann" in json.loads((run / "fingerprint.json").read_text())["packages"]
    assert "tangent vectors" in build_grid(run).metadata["teacher"]


def test_a_fast_network_differs_by_rounding_alone(tmp_path: Path) -> None:
    save_bandpower(tmp_path / "a.npz", simulate_bandpower(3, 4, 2))
    data = {"name": "bandpower", "root": str(tmp_path / "a.npz")}
    runs = [fit_teacher(recipe_for("topomap", data, fast=fast), tmp_path / str(fast)) for fast in (False, True)]
    slow, fast = (load_file(run / "embeddings.safetensors")["fold0.embedding"] for run in runs)
    assert 0 < np.abs(slow - fast).max() < 1e-3
    prints = [json.loads((run / "fingerprint.json").read_text())["recipe_sha256"] for run in runs]
    assert prints[0] != prints[1]
