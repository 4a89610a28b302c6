"""BDF files: MNE reads what is written."""

from __future__ import annotations

from pathlib import Path

import mne
import numpy as np
import pytest

from ngd_timm.core.errors import InputError
from ngd_timm.eeg.readers.bdf import STEP_UV, bdf_patient, write_bdf


@pytest.fixture
def signals() -> np.ndarray:
    return np.random.default_rng(0).normal(-3000, 500, (3, 192))


def test_mne_reads_signals_names_rate_and_events_back(tmp_path: Path, signals: np.ndarray) -> None:
    status = np.zeros(192, dtype=int)
    status[70:74] = 268
    write_bdf(tmp_path / "a.bdf", signals, 64.0, ["Fp1", "Cz", "EXG1"], status, patient="somebody")
    raw = mne.io.read_raw_bdf(tmp_path / "a.bdf", preload=True, verbose="error")
    assert raw.ch_names == ["Fp1", "Cz", "EXG1", "Status"]
    assert (raw.info["sfreq"], raw.n_times) == (64.0, 192)
    read = raw.get_data(picks=["Fp1", "Cz", "EXG1"], units="uV")
    np.testing.assert_allclose(read, signals, atol=STEP_UV / 2 * 1.001)
    assert mne.find_events(raw, "Status", verbose="error").tolist() == [[70, 0, 268]]
    assert bdf_patient(tmp_path / "a.bdf") == "somebody"


def test_all_24_bits_of_the_status_are_in_the_file(tmp_path: Path) -> None:
    status = np.array([0x80FFFF, 0x010203], dtype=int)
    write_bdf(tmp_path / "a.bdf", np.zeros((1, 2)), 2, ["Cz"], status)
    assert (tmp_path / "a.bdf").read_bytes()[-6:] == bytes([0xFF, 0xFF, 0x80, 0x03, 0x02, 0x01])


def test_what_the_format_cannot_hold_is_refused_and_leaves_no_file(tmp_path: Path, signals: np.ndarray) -> None:
    names, status = ["Fp1", "Cz", "Pz"], np.zeros(192, dtype=int)
    file = tmp_path / "a.bdf"
    with pytest.raises(InputError, match=r"a\.bdf: can't be written as BDF in records of 1 s"):
        write_bdf(file, signals, 62.5, names, status)
    with pytest.raises(InputError, match="not exactly divisible"):
        write_bdf(file, signals, 100, names, status)
    with pytest.raises(InputError, match="out of physical range"):
        write_bdf(file, signals * 1000, 64, names, status)
    with pytest.raises(InputError, match="exceeds maximum field length: 22 > 16"):
        write_bdf(file, signals, 64, ["Fp1", "Cz", "a name too long for it"], status)
    with pytest.raises(InputError, match=r"\(2 channels, samples\)"):
        write_bdf(file, signals, 64, names[:2], status)
    assert not list(tmp_path.iterdir())


def test_another_file_is_not_taken_for_bdf(tmp_path: Path) -> None:
    (tmp_path / "a.bdf").write_bytes(b"0" * 300)
    with pytest.raises(InputError, match=r"a\.bdf: not a BDF file"):
        bdf_patient(tmp_path / "a.bdf")
