"""BIDS data sets, in the layouts of DENS and ds002721: trials, ratings, names, and what a table of trials does."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ngd_timm.core.errors import InputError
from ngd_timm.core.recipe import load_recipe
from ngd_timm.core.teacher_recipe import TeacherData, TeacherRecipe
from ngd_timm.eeg.readers.bids import read_bids
from ngd_timm.eeg.readers.sources import load_eeg
from ngd_timm.eeg.signal.bandpower import BandPower, log_power_z
from ngd_timm.eeg.signal.recording import Recording
from ngd_timm.eeg.simulate.openneuro import DENS_CHANNELS, MUSIC_CHANNELS
from ngd_timm.eeg.simulate.sets import write_simulated
from ngd_timm.eeg.simulate.signals import simulate_recordings
from ngd_timm.eeg.teacher.held_out import ridge_in_other_folds
from ngd_timm.eeg.topomap import TopomapOperator

COLUMNS = {"valence": "pleasant", "arousal": "energetic", "stimulus": "clip"}


def write(path: Path, rows: Iterable[Iterable[Any]]) -> Path:
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


def simulated(channels: tuple[str, ...], sfreq: float) -> list[Recording]:
    return list(simulate_recordings(2, 4, 2.0, channels=channels, sfreq=sfreq))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people and four trials of 2 s in either layout; in `music`, rows of music have columns with its rating."""
    folder = tmp_path_factory.mktemp("sets")
    write_simulated("dens", folder / "dens", 2, 4, 2.0)
    write_simulated("ds002721", folder / "music", 2, 4, 2.0)
    rated = iter(simulated(MUSIC_CHANNELS, 1000.0))
    for path in sorted((folder / "music").rglob("*_events.tsv")):
        header, *rows = [line.split("\t") for line in path.read_text().splitlines()]
        for row in rows:
            row += ["n/a"] * 3
            if row[2] == "788":
                valence, arousal = next(rated).valence_arousal or (0, 0)
                row[3:] = [f"{4 * valence + 5:g}", f"{4 * arousal + 5:g}", f"clip {path.stem[12:16]}"]
        write(path, [[*header, *COLUMNS.values()], *rows])
    return folder


@pytest.fixture
def music(sets: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sets / "music", tmp_path / "music"))


@pytest.fixture
def dens(sets: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sets / "dens", tmp_path / "dens", copy_function=os.link))


def table_of_dens(path: Path, subjects: Iterable[str] = ("sub-mit001", "mit002")) -> Path:
    rows = [
        (subject, 2 + 4 * trial, 2, f"clip{trial}", *rating)
        for subject in subjects
        for trial, rating in enumerate([(1, 9), (5, 5), ("n/a", ""), (9, 2.0)])
    ]
    return write(path, [("participant_id", "onset", "duration", "stimulus", "valence", "arousal"), *rows])


def test_rated_rows_of_events_are_the_trials(music: Path) -> None:
    opened = read_bids(music, **COLUMNS)
    assert opened.simulated
    assert opened.dataset.endswith("in the layout of An EEG dataset recorded during affective music listening")
    assert opened.notes["licence"] == "CC0"
    read = list(opened)
    assert len(read) == 8
    for one, other in zip(simulated(MUSIC_CHANNELS, 1000.0), read, strict=True):
        assert (one.subject, one.trial, one.sfreq) == (other.subject, other.trial, other.sfreq)
        assert one.valence_arousal == pytest.approx(other.valence_arousal)
        assert other.stimulus == f"clip run{1 + one.trial}"
        np.testing.assert_allclose(one.signal, other.signal, atol=0.06)  # EDF's 16 bits
    assert read[0].channels[:2] == ("Fp1", "Fp2")  # the file has FP1 and FP2
    TopomapOperator(read[0].channels)


def test_a_table_says_where_trials_are_and_leaves_out_whom_it_does_not_name(dens: Path, tmp_path: Path) -> None:
    opened = read_bids(dens, stimulus="stimulus", ratings=table_of_dens(tmp_path / "trials.tsv"))
    read = list(opened)
    assert [(r.subject, r.trial, r.stimulus) for r in read[2:5]] == [(1, 3, "clip2"), (1, 4, "clip3"), (2, 1, "clip0")]
    assert [r.valence_arousal for r in read[:4]] == [(-1.0, 1.0), (0.0, 0.0), None, (1.0, -0.75)]
    for one, other in zip(simulated(DENS_CHANNELS, 250.0), read, strict=True):
        assert other.channels == DENS_CHANNELS  # without the reference, the ECG and the EMG
        np.testing.assert_allclose(one.signal, other.signal, rtol=1e-5)
    TopomapOperator(read[0].channels)
    alone = read_bids(dens, ratings=table_of_dens(tmp_path / "trials.tsv", ["mit002"]))
    assert {(r.subject, r.stimulus) for r in alone} == {(2, None)}
    assert alone.notes["left out"] == "1 subjects without a row in trials.tsv"


def test_a_table_of_several_runs_names_the_run_and_may_be_a_csv(music: Path, tmp_path: Path) -> None:
    rows = "participant_id,task,onset,duration,valence,arousal\nsub-01,run3,2,2,0,1\nsub-01,run2,2,2,1,0.5\n"
    (tmp_path / "trials.csv").write_text(rows)
    read = list(read_bids(music, scale=(0, 1), ratings=tmp_path / "trials.csv"))
    assert [r.valence_arousal for r in read] == [(1.0, 0.0), (-1.0, 1.0)]  # in the order of the recordings
    np.testing.assert_allclose(read[0].signal, simulated(MUSIC_CHANNELS, 1000.0)[0].signal, atol=0.06)


def test_columns_are_listed_where_a_set_has_others(dens: Path, music: Path) -> None:
    for root, there in ((dens, "onset, duration, trial_type, label"), (music, "pleasant, energetic, clip")):
        with pytest.raises(InputError, match=rf"no events.tsv has the columns valence, arousal; there are .*{there}; "):
            read_bids(root)
    for path in dens.rglob("*_events.tsv"):
        path.unlink()
    with pytest.raises(InputError, match=r"no recording has an events\.tsv; name a table"):
        read_bids(dens)


def test_a_recording_that_was_cut_short_is_named(dens: Path, tmp_path: Path) -> None:
    opened = read_bids(dens, ratings=table_of_dens(tmp_path / "trials.tsv"))
    (path,) = dens.rglob("sub-mit001*.fdt")
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"sub-mit001_task-Emotion_eeg\.set.* can't "):
        list(opened)


def test_another_scale_is_another_entry_of_the_cache(
    music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = TeacherData(name="bids", window_s=1.0, artefact_uv=None, **COLUMNS)  # type: ignore[arg-type]
    whole = load_eeg(data, "bids", str(music))
    for scale in ((1.0, 9.0), (0.0, 10.0)):
        again = load_eeg(data.model_copy(update={"scale": scale}), "bids", str(music))
        assert np.array_equal(again.valence_arousal, whole.valence_arousal) == (scale == (1.0, 9.0))
    assert len(list((tmp_path / "cache" / "ngd_timm").iterdir())) == 2


def test_a_stimulus_of_one_person_is_said_and_left_to_folds_by_subject(
    music: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = music / "sub-02" / "eeg" / "sub-02_task-run5_events.tsv"
    path.write_text(path.read_text().replace("clip run5", "mine"))
    keys = [f"data.{key}={value}" for key, value in COLUMNS.items()]
    recipe = load_recipe(TeacherRecipe, "teacher_bids", [*keys, "data.window_s=1", "data.artefact_uv=null"])
    data: BandPower = load_eeg(recipe.data, "bids", str(music))
    with caplog.at_level(logging.WARNING, "ngd_timm.eeg"):
        scores = ridge_in_other_folds(recipe, data, log_power_z(data))
    assert scores["stimuli_of_one_subject"] == ["clip run5", "mine"]
    assert "met by one subject only, and left to folds by subject: stimulus clip run5, mine" in caplog.text
