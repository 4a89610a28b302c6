"""Pools: several rated sets for one teacher, several teachers for one grid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import mne
import numpy as np
import pytest
from test_pool_faults import QUICK, fit

from ngd_timm.core.recipe import load_recipe
from ngd_timm.core.teacher_recipe import TeacherRecipe
from ngd_timm.eeg.folds import subject_folds
from ngd_timm.eeg.readers.sources import load_rated
from ngd_timm.eeg.signal.bandpower import pool_sets, save_bandpower
from ngd_timm.eeg.signal.montage import interpolated
from ngd_timm.eeg.signal.recording import BIOSEMI_32, EMOTIV_14, Recording, RecordingSet
from ngd_timm.eeg.simulate.power import simulate_bandpower
from ngd_timm.eeg.simulate.sets import write_simulated
from ngd_timm.eeg.teacher.consolidate import _pool, build_grid
from ngd_timm.eeg.teacher.fit import fit_teacher
from ngd_timm.eeg.teacher.fitted import read_teacher
from ngd_timm.grid.card import grid_card
from ngd_timm.grid.mantel import mantel_test
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.report import try_page

Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def two_frames(effect: float, seed: int = 0, turned: bool = True) -> Rows:
    """Two sets of six subjects and twelve trials, each embedded in coordinates of its own."""
    rng = np.random.default_rng(seed)
    parts = []
    for frame in range(2):
        subject, trial = np.indices((6, 12)).reshape(2, -1)
        va = rng.uniform(-1, 1, (72, 2))
        rows = rng.standard_normal((72, 16)) / 2 + rng.standard_normal((6, 16))[subject] / 2 + 3 * np.eye(16)[0]
        rows[:, 1:3] += effect * va
        rotation = np.linalg.qr(rng.standard_normal((16, 16)))[0]
        parts.append((rows @ rotation if turned else rows, va, subject + 6 * frame, trial, np.full(72, frame)))
    embeddings, va, subject, trial, frames = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return embeddings, va, subject, trial, frames


def test_a_pooled_grid_does_not_depend_on_the_coordinates_of_its_second_run() -> None:
    embeddings, va, subject, _, frames = two_frames(2.0)
    moved = embeddings.copy()
    moved[frames == 1] @= np.linalg.qr(np.random.default_rng(9).standard_normal((16, 16)))[0]
    grids = [PrototypeGrid.build(rows, va, subject, 3, frames=frames) for rows in (embeddings, moved)]
    np.testing.assert_allclose(grids[0].prototypes, grids[1].prototypes, atol=1e-5)
    unaligned = PrototypeGrid.build(moved, va, subject, 3)
    assert np.abs(unaligned.prototypes.numpy() - grids[0].prototypes.numpy()).max() > 0.1


def test_a_pooled_grid_is_nearly_that_of_one_frame_where_there_was_one_to_begin_with() -> None:
    embeddings, va, subject, _, frames = two_frames(2.0, turned=False)
    pooled = PrototypeGrid.build(embeddings, va, subject, 3, frames=frames)
    one = PrototypeGrid.build(embeddings, va, subject, 3)
    assert (pooled.prototypes * one.prototypes).sum(dim=1).min() > 0.9
    assert pooled.counts.tolist() == one.counts.tolist()


@pytest.mark.parametrize("by", ["stimulus", "both"])
def test_stimuli_of_two_runs_are_in_no_common_fold(tmp_path: Path, by: str) -> None:
    for seed, name in enumerate("ab"):
        save_bandpower(tmp_path / f"{name}.npz", simulate_bandpower(4, 6, 2, seed=seed, stimulus=1.0))
        fit(
            tmp_path / f"{name}.npz",
            tmp_path / name,
            "teacher.kind=ridge",
            "teacher.embedding_dim=8",
            f"data.folds_by={by}",
        )
    pool, frames = _pool([read_teacher(tmp_path / name) for name in "ab"])
    assert pool.held_out is not None
    for column in (pool.held_out.stimulus, *pool.held_out.fold.T):
        assert not {*column[frames == 0]} & {*column[frames == 1]}
    # the last column is the stimulus's fold alone, whoever met it
    assert len({*zip(pool.held_out.stimulus, pool.held_out.fold[:, -1], strict=True)}) == 12


def test_a_subject_weighs_the_same_in_a_run_of_many_windows_as_in_one_of_few() -> None:
    embeddings, va, subject, _, frames = two_frames(2.0)
    often = np.where(frames == 0, 1, 5)
    grids = [
        PrototypeGrid.build(
            *(np.repeat(column, n, axis=0) for column in (embeddings, va, subject)), 3, frames=np.repeat(frames, n)
        )
        for n in (np.ones_like(often), often)
    ]
    np.testing.assert_allclose(grids[0].prototypes, grids[1].prototypes, atol=1e-5)


def test_the_mantel_test_of_a_pool_finds_what_is_planted_and_nothing_in_grids_that_know_nothing() -> None:
    *rows, frames = two_frames(3.0)
    found = mantel_test(*rows, 4, 99, frames=frames, center=True)
    assert (found.p, found.r > 0.5) == (0.01, True)
    p_values = []
    for seed in range(12):
        *rows, frames = two_frames(0.0, seed)
        p_values.append(mantel_test(*rows, 3, 59, frames=frames, center=True).p)
    assert np.mean(p_values) > 0.25
    assert sum(p < 0.05 for p in p_values) <= 3


def test_every_fold_of_a_pool_holds_out_subjects_of_each_set_and_no_number_is_shared() -> None:
    pool = pool_sets([simulate_bandpower(6, 3, 2, seed=seed) for seed in (0, 1)])
    assert sorted(set((pool.subject // 1_000_000).tolist())) == [1, 2]
    assert len(np.unique(pool.subject)) == 12
    assert not set(pool.trial[pool.subject < 2_000_000]) & set(pool.trial[pool.subject >= 2_000_000])
    fold = subject_folds(pool.subject, 3, 0, pool.subject // 1_000_000)
    for number in range(3):
        held_out = np.unique(pool.subject[fold == number])
        assert (held_out // 1_000_000).tolist() == [1, 1, 2, 2]


def test_interpolated_electrodes_are_those_of_mne() -> None:
    rng = np.random.default_rng(0)
    signal = rng.normal(0, 10, (14, 64))
    recording = Recording(1, 1, signal, 64.0, EMOTIV_14, (0.0, 0.0), signal[:, :32])
    notes: dict[str, str] = {}

    def read() -> Iterator[Recording]:
        notes["left out"] = "1 session"  # as read_mahnob does
        yield recording

    on_more = interpolated(RecordingSet("noise", (), read, notes), BIOSEMI_32)
    (found,) = on_more
    assert {"left out", "montage"} == {**on_more.notes}.keys()
    assert found.channels == BIOSEMI_32
    own = [BIOSEMI_32.index(name) for name in EMOTIV_14]
    np.testing.assert_allclose(found.signal[own], signal)
    lacking = [name for name in BIOSEMI_32 if name not in EMOTIV_14]
    names = [*lacking, *EMOTIV_14]
    info = mne.create_info(names, 64.0, "eeg", verbose="error")
    raw = mne.io.RawArray(np.concatenate([np.zeros((len(lacking), 64)), signal]) * 1e-6, info, verbose="error")
    raw.set_montage("standard_1005", verbose="error")
    raw.info["bads"] = lacking
    raw.interpolate_bads(verbose="error")
    np.testing.assert_allclose(found.signal, raw.get_data(picks=list(BIOSEMI_32)) * 1e6, atol=1e-6)
    assert found.baseline is not None
    np.testing.assert_allclose(found.baseline, found.signal[:, :32])


@pytest.fixture(scope="module")
def licensed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny simulated records in the layouts of DREAMER, MAHNOB-HCI and GAMEEMO."""
    folder = tmp_path_factory.mktemp("licensed")
    write_simulated("dreamer", folder / "DREAMER.mat", 3, 4, 8.0, seed=1)
    write_simulated("mahnob", folder / "MAHNOB-HCI", 3, 4, 8.0, seed=2)
    write_simulated("gameemo", folder / "games", 3, 3, 8.0, seed=3)
    return folder


def test_how_signals_are_read_may_be_said_of_the_support_alone(licensed: Path, tmp_path: Path) -> None:
    save_bandpower(tmp_path / "a.npz", simulate_bandpower(4, 4, 2))
    support = f"data.support={{name: mahnob, root: {licensed}/MAHNOB-HCI}}"
    changes = ["data.name=bandpower", f"data.root={tmp_path}/a.npz", support, "data.window_s=2"]
    assert (
        len(load_rated(load_recipe(TeacherRecipe, "teacher_gameemo", [*changes, "optim.consistency=0.5"]).data)) == 32
    )


@pytest.mark.parametrize(("montage", "channels"), [("intersection", 14), ("interpolate", 32)])
def test_a_pool_of_signals_has_the_electrodes_that_all_have_or_those_of_the_first_set(
    licensed: Path, montage: str, channels: int
) -> None:
    also = f"data.also=[{{name: dreamer, root: {licensed}/DREAMER.mat}}, {{name: gameemo, root: {licensed}/games}}]"
    changes = [
        f"data.root={licensed}/MAHNOB-HCI",
        also,
        f"data.montage={montage}",
        "data.baseline=false",
        "data.cache=false",
    ]
    pool = load_rated(load_recipe(TeacherRecipe, "teacher_mahnob", changes).data)
    assert len(pool.channels) == channels
    assert set(pool.channels) <= set(BIOSEMI_32)
    assert len(pool.sets) == 3
    assert np.abs(pool.valence_arousal).max() <= 1
    assert len(np.unique(pool.subject)) == 9


def test_one_teacher_of_two_rated_sets_is_scored_in_each_and_its_grid_counts_both(
    licensed: Path, tmp_path: Path
) -> None:
    changes = [change for change in QUICK if not change.startswith("data.name")]
    also = f"data.also=[{{name: mahnob, root: {licensed}/MAHNOB-HCI}}]"
    changes += [f"data.root={licensed}/DREAMER.mat", also, "data.cache=false", f"out={tmp_path / 'run'}"]
    run = fit_teacher(load_recipe(TeacherRecipe, "teacher_dreamer_mahnob_rated", changes))
    scores = json.loads((run / "scores.json").read_text())
    assert scores["n"]["subjects"] == 6
    assert set(scores["sets"]) <= {f"simulated recordings in {name}'s layout" for name in ("DREAMER", "MAHNOB-HCI")}
    try_page(run)
    assert "DREAMER" in (run / "report.html").read_text(encoding="utf-8")
    grid = build_grid(run)
    sets = json.loads(grid.metadata["sets"])
    assert [part["subjects"] for part in sets] == [3, 3]
    assert np.sum([part["counts"] for part in sets], axis=0).tolist() == grid.counts.tolist()
    card = grid_card(grid, "pooled")
    assert "| rated set | subjects | windows |" in card
    assert "rotated" not in card  # one teacher, one frame


def test_a_grid_of_two_runs_says_what_each_gave_how_they_were_aligned_and_which_test_is_absent(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        save_bandpower(tmp_path / f"{name}.npz", simulate_bandpower(5, 8, 2, seed=seed))
        fit(tmp_path / f"{name}.npz", tmp_path / name, f"name={name}")
    grid = build_grid([tmp_path / "a", tmp_path / "b"], size=3)
    notes = grid.metadata
    assert (notes["subjects"], notes["trials"], notes["windows"]) == ("10", "80", "160")
    assert [part["subjects"] for part in json.loads(notes["sets"])] == [5, 5]
    assert float(notes["mantel_r"]) == pytest.approx(grid.mantel_r, abs=1e-3)
    assert "grids" not in notes
    assert notes["command"].endswith("ngd prototypes build runs/a-0 runs/b-0 --out grid.safetensors --size 3")
    card = grid_card(grid, "pooled")
    assert card.count("5 subjects, 40 trials") == 2
    assert "Agreement of halves: not tested" in card
    assert "every permutation of the Mantel test rotates anew" in card
    assert str(tmp_path) not in card
    assert build_grid([tmp_path / "a"]).sha256 == build_grid(tmp_path / "a").sha256
