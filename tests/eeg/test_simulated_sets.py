"""Simulated data sets in the licensed ones' layouts, written by one command and read like the real ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ngd_timm.cli import app
from ngd_timm.core.errors import InputError
from ngd_timm.eeg.readers.sources import open_recordings
from ngd_timm.eeg.signal.recording import Recording
from ngd_timm.eeg.simulate import sets as simulated_sets
from ngd_timm.eeg.simulate.sets import LAYOUTS, write_simulated
from ngd_timm.eeg.simulate.signals import simulate_recordings


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in ("dens", "ds002721")])
def test_each_layout_reads_back_by_name_and_is_called_simulated(name: str, tmp_path: Path) -> None:
    out = tmp_path / "set"
    size = ["--subjects", "2", "--trials", "3", "--seconds", "4"]
    result = CliRunner().invoke(app, ["teacher", "simulate", name, str(out), *size])
    assert result.exit_code == 0, result.output
    recordings = open_recordings(name, str(out))
    read = list(recordings)
    assert recordings.simulated
    assert sorted({r.subject for r in read}) == [1, 2]
    assert len(read) == 6
    for recording in read:
        assert set(recording.channels) == set(LAYOUTS[name].channels)
        assert recording.sfreq == LAYOUTS[name].sfreq
        assert recording.seconds >= 4
        assert recording.valence_arousal is not None


def test_a_size_that_cannot_be_leaves_nothing_behind_and_a_later_call_works(tmp_path: Path) -> None:
    out = tmp_path / "set"
    command = ["teacher", "simulate", "mahnob", str(out), "--subjects", "1", "--seconds", "1"]
    result = CliRunner().invoke(app, [*command, "--trials", "131"])
    assert isinstance(result.exception, InputError)
    assert "130 trials a subject, got 131" in str(result.exception)
    assert not list(tmp_path.iterdir())
    assert CliRunner().invoke(app, [*command, "--trials", "2"]).exit_code == 0
    assert [r.trial for r in open_recordings("mahnob", str(out))] == [1, 2]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_write_that_fails_halfway_leaves_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **kwargs: Any) -> Iterator[Recording]:
        yield from simulate_recordings(*args, **kwargs)
        raise OSError("no space left")

    monkeypatch.setattr(simulated_sets, "simulate_recordings", failing)
    with pytest.raises((InputError, OSError), match="no space left"):
        write_simulated(name, tmp_path / "set", 1, 2, 1.0)
    assert not list(tmp_path.iterdir())


def test_lengths_and_names_that_are_none_are_refused_and_nothing_is_overwritten(tmp_path: Path) -> None:
    for seconds in (float("inf"), float("nan"), -1.0, 0.0):
        with pytest.raises(InputError, match="seconds"):
            write_simulated("dreamer", tmp_path / "set", 1, 1, seconds)
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine.mat").write_text("mine")
    with pytest.raises(InputError, match="exists; choose another name"):
        write_simulated("dreamer", tmp_path / "mine.mat")
    with pytest.raises(InputError, match="did you mean 'dreamer'"):
        write_simulated("dreamr", tmp_path / "x")
    assert (tmp_path / "mine.mat").read_text() == "mine"
    assert not (tmp_path / "x").exists()
