"""DREAMER: what is written reads back, as SciPy shows it too; faults are named; forged files do no harm."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from numpy.lib.recfunctions import repack_fields

from ngd_timm.core.errors import InputError
from ngd_timm.eeg.readers.dreamer import CHANNELS, read_dreamer, write_dreamer
from ngd_timm.eeg.readers.limited import read_limited
from ngd_timm.eeg.signal.recording import Recording
from ngd_timm.eeg.simulate.signals import simulate_recordings


def simulated(subjects: int = 2, trials: int = 3, seconds: float = 2.0, **change: Any) -> list[Recording]:
    settings = {"channels": CHANNELS, "baseline_s": 1.0, "levels": 5, **change}
    return list(simulate_recordings(subjects, trials, seconds, **settings))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dreamer") / "DREAMER.mat"
    write_dreamer(path, simulated())
    return path


def changed(source: Path, path: Path, change: Callable[[Any], None], compress: bool = True) -> Path:
    """The file as SciPy writes it again after `change` on DREAMER[0, 0]."""
    database = scipy.io.loadmat(source)["DREAMER"]
    change(database[0, 0])
    scipy.io.savemat(path, {"DREAMER": database}, do_compression=compress)
    return path


def test_recordings_come_back_with_dc_and_the_headsets_resolution(file: Path) -> None:
    data = read_dreamer(file)
    again = list(data)
    assert [str(r) for r in again] == [str(r) for r in simulated()]
    for ours, original in zip(again, simulated(), strict=True):
        assert (ours.channels, ours.sfreq, ours.signal.dtype) == (CHANNELS, 128.0, np.float32)
        assert ours.valence_arousal == original.valence_arousal
        assert np.abs(ours.signal - original.signal - 4200).max() < 0.26
        assert np.abs(ours.baseline - original.baseline - 4200).max() < 0.26
    assert data.simulated
    assert data.files == (file,)
    assert [str(r) for r in data] == [str(r) for r in again]  # a set can be read again


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("compress", [False, True])
def test_signals_and_ratings_are_those_that_scipy_reads(file: Path, tmp_path: Path, compress: bool) -> None:
    path = changed(file, tmp_path / "a.mat", lambda database: None, compress)
    subjects = scipy.io.loadmat(path)["DREAMER"][0, 0]["Data"]
    for recording in read_dreamer(path):
        fields, trial = subjects[0, recording.subject - 1], recording.trial - 1
        for part, signal in (("stimuli", recording.signal), ("baseline", recording.baseline)):
            np.testing.assert_array_equal(signal, fields["EEG"][0, 0][part][0, 0][trial, 0].T.astype(np.float32))
        ratings = [fields[score][0, 0][trial, 0] for score in ("ScoreValence", "ScoreArousal")]
        assert recording.valence_arousal == tuple((r - 3) / 2 for r in ratings)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("subjects", "trials"), [(2, 3), (1, 3), (2, 1), (1, 1)])
def test_sets_of_any_size_and_trials_of_any_length_are_read(tmp_path: Path, subjects: int, trials: int) -> None:
    original = [replace(r, signal=r.signal[:, : 100 + 10 * r.trial]) for r in simulated(subjects, trials)]
    write_dreamer(tmp_path, original)
    assert [p.name for p in tmp_path.iterdir()] == ["DREAMER.mat"]
    read = list(read_dreamer(tmp_path))
    assert [(str(r), r.signal.shape) for r in read] == [(str(r), r.signal.shape) for r in original]


@pytest.mark.usefixtures("in_process")
def test_electrodes_are_named_by_the_file_and_only_ours_is_called_simulated(file: Path, tmp_path: Path) -> None:
    def reverse(database: Any) -> None:
        database["EEG_Electrodes"][:] = database["EEG_Electrodes"][:, ::-1].copy()
        database["Provider"] = np.array(["University of the West of Scotland"])

    data = read_dreamer(changed(file, tmp_path / "a.mat", reverse))
    assert next(iter(data)).channels == CHANNELS[::-1]
    assert not data.simulated
    assert "Katsigiannis" in data.dataset


def subject(database: Any, number: int = 1) -> Any:
    return database["Data"][0, number - 1][0, 0]


def set_rating(database: Any) -> None:
    subject(database, 2)["ScoreArousal"][2, 0] = 7


def set_nan(database: Any) -> None:
    subject(database)["EEG"][0, 0]["stimuli"][1, 0][5, 3] = np.nan


def drop_a_rating(database: Any) -> None:
    subject(database)["ScoreValence"] = np.array([[1.0], [2.0]])


def drop_an_electrode(database: Any) -> None:
    stimuli = subject(database)["EEG"][0, 0]["stimuli"]
    stimuli[1, 0] = stimuli[1, 0][:, :13]


def drop_a_field(database: Any) -> None:
    fields = database["Data"][0, 0]
    database["Data"][0, 0] = repack_fields(fields[[name for name in fields.dtype.names if name != "ScoreArousal"]])


def set_electrodes_to_numbers(database: Any) -> None:
    database["EEG_Electrodes"] = np.eye(3)


def set_a_subject_to_text(database: Any) -> None:
    database["Data"][0, 1] = np.array(["a subject"])


def set_scores_to_text(database: Any) -> None:
    subject(database)["ScoreValence"] = np.array(["high", "low", "low"])


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_rating, r"subject 2, trial 3: ratings must lie in \[1, 5\], got .* 7"),
        (set_nan, r"subject 1, trial 2: signal of FC5 is not finite"),
        (drop_a_rating, r"subject 1 must have as many ratings as trials, got .*2 valence"),
        (drop_an_electrode, r"subject 1's stimuli, trial 2: must be \(samples, 14 electrodes\), got .*13"),
        (drop_a_field, r"subject 1 lacks ScoreArousal; it has Age"),
        (set_electrodes_to_numbers, r"EEG_Electrodes must be a cell array of names, got float64 of shape \(3, 3\)"),
        (set_a_subject_to_text, r"subject 2 must be one struct, got str"),
        (set_scores_to_text, r"subject 1: ScoreValence must be numbers, got <U4"),
    ],
)
def test_faults_in_the_data_name_file_subject_and_trial(
    file: Path, tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    changed(file, tmp_path / "a.mat", change)
    with pytest.raises(InputError, match=rf"a\.mat: {message}"):
        list(read_dreamer(tmp_path / "a.mat"))


@pytest.mark.usefixtures("in_process")
def test_other_files_are_refused_in_one_line(file: Path, tmp_path: Path) -> None:
    database = scipy.io.loadmat(file)["DREAMER"]
    some = repack_fields(database[[n for n in database.dtype.names if n not in ("EEG_Electrodes", "Provider")]])
    scipy.io.savemat(tmp_path / "some.mat", {"DREAMER": some})
    scipy.io.savemat(tmp_path / "other.mat", {"x": 1, "y": 2})
    scipy.io.savemat(tmp_path / "flat.mat", {"DREAMER": np.eye(3)})
    (tmp_path / "cut.mat").write_bytes(file.read_bytes()[:-5000])
    (tmp_path / "new.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400))
    for name, message in (
        ("", r"no file .*DREAMER\.mat; give the path"),
        ("some.mat", "DREAMER lacks EEG_Electrodes, Provider; it has Data"),
        ("other.mat", "this has x, y"),
        ("flat.mat", r"must be one struct, got float64 of shape \(3, 3\)"),
        ("cut.mat", r"cut\.mat: damaged, or not a MATLAB file of level 5"),
        ("new.mat", r"new\.mat: a MATLAB 7\.3 \(HDF5\) file"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            read_dreamer(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (struct.pack("<II", 9, 256 * 14 * 8), struct.pack("<II", 9, 2**32 - 16), "damaged"),  # bytes of a signal
        (struct.pack("<IIii", 5, 8, 256, 14), struct.pack("<IIii", 5, 8, 2**31 - 1, 2**31 - 1), "damaged"),
        (struct.pack("<IIii", 5, 8, 1, 2), struct.pack("<IIii", 5, 8, 30000, 30000), "more than 0.5 GiB of memory"),
    ],
)
def test_a_forged_size_costs_one_line_and_no_memory(
    file: Path, tmp_path: Path, old: bytes, new: bytes, message: str
) -> None:
    raw = changed(file, tmp_path / "a.mat", lambda database: None, compress=False).read_bytes()
    assert old in raw
    (tmp_path / "a.mat").write_bytes(raw.replace(old, new))
    with pytest.raises(InputError, match=rf"a\.mat: .*{message}") as caught:
        list(read_limited("dreamer", tmp_path / "a.mat", gibibytes=0.5, cpu_seconds=60))
    assert "\n" not in str(caught.value)


def test_a_small_file_that_grows_when_it_is_read_is_refused(file: Path, tmp_path: Path) -> None:
    def inflate(database: Any) -> None:
        fields = database["Data"][0, 0]
        for part in ("baseline", "stimuli"):
            fields["EEG"][0, 0][part][0, 0] = np.empty((1, 1), object)
            fields["EEG"][0, 0][part][0, 0][0, 0] = np.zeros((80_000, 14), np.uint8)  # float32 is four times as large
        database["Data"] = np.empty((1, 32), object)
        database["Data"][0] = [fields] * 32

    changed(file, tmp_path / "a.mat", inflate)
    assert (tmp_path / "a.mat").stat().st_size < 1e6
    with pytest.raises(InputError, match=r"a\.mat: .*more than 0.25 GiB"):
        list(read_limited("dreamer", tmp_path / "a.mat", gibibytes=0.25, cpu_seconds=60))
