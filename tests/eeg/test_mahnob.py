"""MAHNOB-HCI's layout: what is read of it, what is left out, what is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ngd_timm.core.errors import InputError
from ngd_timm.core.teacher_recipe import TeacherData
from ngd_timm.eeg.readers.mahnob import CHANNELS, read_mahnob, write_bdf, write_mahnob
from ngd_timm.eeg.signal.preprocess import band_power
from ngd_timm.eeg.signal.recording import Recording

STEP_UV = 1 / 32  # quantisation of BioSemi's 24 bits


def recording(
    subject: int = 1,
    trial: int = 2,
    va: tuple[float, float] | None = (0.5, -1.0),
    channels: Sequence[str] = CHANNELS,
    rest: int | None = 100,
) -> Recording:
    rng = np.random.default_rng([subject, trial])
    signal = rng.normal(50, 10, (len(channels), 150)).astype(np.float32)
    baseline = None if rest is None else rng.normal(50, 10, (len(channels), rest)).astype(np.float32)
    return Recording(subject, trial, signal, 64.0, tuple(channels), va, baseline)


def referenced(values: np.ndarray | None) -> np.ndarray:
    assert values is not None
    return values - values.mean(axis=0)


def session_xml(root: Path, number: int) -> Path:
    return root / "Sessions" / str(number) / "session.xml"


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def replace_bdf(root: Path, number: int, status: np.ndarray, channels: Sequence[str] = CHANNELS) -> None:
    file = next((root / "Sessions" / str(number)).glob("*.bdf"))
    write_bdf(file, np.full((len(channels), len(status)), 5.0), 64, channels, status)


def test_recordings_come_back_as_written_in_order_of_their_sessions(tmp_path: Path) -> None:
    written = [recording(2, 135), recording(1, 12, None), recording(1, 2), recording(2, 131)]
    write_mahnob(tmp_path, written)
    opened = read_mahnob(tmp_path)
    read = list(opened)
    assert opened.simulated
    assert "simulated" in opened.dataset
    assert [r.trial for r in read] == [2, 12, 131, 135]
    assert len(opened.files) == 8
    for was, now in zip(sorted(written, key=lambda r: r.trial), read, strict=True):
        assert (now.subject, now.trial, now.sfreq, now.channels) == (was.subject, was.trial, 64.0, CHANNELS)
        assert now.valence_arousal == was.valence_arousal
        assert now.signal.dtype == np.float32
        np.testing.assert_allclose(now.signal, referenced(was.signal), atol=STEP_UV)
        np.testing.assert_allclose(now.baseline, referenced(was.baseline), atol=STEP_UV)
    assert [r.trial for r in opened] == [2, 12, 131, 135]
    assert read_mahnob(tmp_path / "Sessions").files == opened.files


def test_a_neutral_clip_and_one_with_a_rating_missing_are_unrated_and_one_off_the_scale_is_refused(
    tmp_path: Path,
) -> None:
    write_mahnob(tmp_path, [recording(1, 1), recording(1, 2), recording(1, 3)])
    edit(session_xml(tmp_path, 1), 'isStim="1"', 'isStim="0"')
    edit(session_xml(tmp_path, 2), ' feltVlnc="7"', "")
    assert [r.valence_arousal for r in read_mahnob(tmp_path)] == [None, None, (0.5, -1.0)]
    edit(session_xml(tmp_path, 3), 'feltVlnc="7"', 'feltVlnc="10"')
    with pytest.raises(InputError, match=r"Sessions.3.session\.xml: ratings must lie in \[1\.0, 9\.0\]"):
        read_mahnob(tmp_path)


def test_sessions_without_an_eeg_file_or_without_two_marks_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_mahnob(tmp_path, [recording(1, n) for n in range(1, 7)])
    one_mark = np.zeros(192, dtype=int)
    one_mark[80:84] = 268
    replace_bdf(tmp_path, 1, one_mark)
    one_mark[:4] = 268  # no rise is seen where a recording begins with it
    replace_bdf(tmp_path, 2, one_mark)
    cut_file = next(session_xml(tmp_path, 3).parent.glob("*.bdf"))
    cut_file.write_bytes(cut_file.read_bytes()[: 256 * 48 + 3 * 64 * 100])
    next(session_xml(tmp_path, 4).parent.glob("*.bdf")).unlink()
    tagging = next(session_xml(tmp_path, 5).parent.glob("*.bdf"))
    tagging.rename(tagging.with_name("Part_1_tagging.bdf"))
    (tmp_path / "Sessions" / "9").mkdir()
    opened = read_mahnob(tmp_path)
    assert opened.notes["sessions left out"] == "2 without an EEG file, 1 without session.xml"
    for _ in range(2):
        with caplog.at_level(logging.WARNING, logger="ngd_timm.eeg"):
            assert [r.trial for r in opened] == [6]
        counts = "2 without an EEG file, 1 without session.xml, 3 without two stimulus marks"
        assert opened.notes["sessions left out"] == counts
    marks = {1: 1, 2: 1, 3: 1}
    assert caplog.messages[:3] == [f"session {n} left out: {marks[n]} stimulus marks in its EEG, not 2" for n in marks]
    settings = TeacherData(name="mahnob", bands=("beta",), window_s=1.0, lowpass=30, artefact_uv=None, cache=False)
    assert band_power(opened, settings).notes["sessions left out"] == counts


def test_what_all_electrodes_share_vanishes_and_a_dead_electrode_stays_flat(tmp_path: Path) -> None:
    plain = recording(1, 2)
    assert plain.baseline is not None
    plain.signal[5] = plain.baseline[5] = -7
    live = np.arange(32)[:, None] != 5
    hum = live * (300 * np.sin(np.arange(150) / 3) - 2000)
    noisy = replace(plain, signal=plain.signal + hum, baseline=plain.baseline + hum[:, :100])
    write_mahnob(tmp_path / "plain", [plain])
    write_mahnob(tmp_path / "noisy", [noisy])
    (one,), (other,) = read_mahnob(tmp_path / "plain"), read_mahnob(tmp_path / "noisy")
    # the dead electrode is part of the average and has no hum, so a 32nd of it is left
    np.testing.assert_allclose(one.signal, (other.signal - hum / 32) * live, atol=2 * STEP_UV)
    for values in (other.signal, other.baseline):
        assert values is not None
        assert np.flatnonzero(np.ptp(values, axis=1) == 0).tolist() == [5]
    assert read_mahnob(tmp_path / "noisy").notes["reference"].startswith("average of the 32 electrodes")


def test_bits_that_are_no_trigger_are_no_marks(tmp_path: Path) -> None:
    write_mahnob(tmp_path, [recording(1, 1)])
    status = np.full(192, 1 << 16)
    status[10:] |= 1 << 20
    status[30:] |= 1 << 22
    status[64:66] |= 268
    status[128:130] |= 268
    status[100:] &= ~(1 << 16)
    status[150:] |= 1 << 16
    replace_bdf(tmp_path, 1, status)
    (read,) = read_mahnob(tmp_path)
    assert read.baseline is not None
    assert (read.baseline.shape[1], read.signal.shape[1]) == (64, 64)


def test_electrodes_are_taken_by_name_and_those_that_lack_are_listed(tmp_path: Path) -> None:
    write_mahnob(tmp_path, [recording(1, 1)])
    status = np.zeros(192, dtype=int)
    status[[64, 128]] = 268
    file = next(session_xml(tmp_path, 1).parent.glob("*.bdf"))
    reverse = CHANNELS[::-1]
    level = np.outer(np.arange(1.0, 33), np.arange(192) % 2)
    write_bdf(file, level, 64, reverse, status)
    (read,) = read_mahnob(tmp_path)
    np.testing.assert_allclose(np.ptp(read.signal, axis=1), np.abs(np.arange(1, 33)[::-1] - 16.5), atol=STEP_UV)
    assert read.signal[0, 1] > read.signal[-1, 1]
    replace_bdf(tmp_path, 1, status, [c for c in CHANNELS if c not in ("Cz", "Oz")])
    with pytest.raises(InputError, match=r"Part_1_S_Trial1_emotion\.bdf lacks the channels Oz, Cz"):
        list(read_mahnob(tmp_path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_session_file_with_a_doctype_is_refused(tmp_path: Path, encoding: str) -> None:
    write_mahnob(tmp_path, [recording(1, 1)])
    bomb = f"<?xml version='1.0' encoding='{encoding}'?><!DOCTYPE session [<!ENTITY a 'aaaa'>]><session>&a;</session>"
    session_xml(tmp_path, 1).write_bytes(bomb.encode(encoding))
    with pytest.raises(InputError, match="has a DOCTYPE"):
        read_mahnob(tmp_path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("session.xml", lambda raw: raw[:100], r"session\.xml: not readable as XML"),
        ("session.xml", lambda raw: raw.replace(b'subject id="1"', b'subject id="one"'), "<subject id="),
        ("*.bdf", lambda raw: raw[:1000], r"emotion\.bdf: not readable as BDF"),
        ("*.bdf", lambda raw: raw[: 256 * 48], r"emotion\.bdf: not readable as BDF"),  # a header and nothing after it
        ("*.bdf", lambda raw: b"", r"emotion\.bdf: not a BDF file"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, damage: Callable[[bytes], bytes], message: str) -> None:
    write_mahnob(tmp_path, [recording(1, 1)])
    file = next(tmp_path.rglob(name))
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=message):
        list(read_mahnob(tmp_path))


def test_files_not_marked_as_simulated_are_recordings_and_a_mix_is_refused(tmp_path: Path) -> None:
    write_mahnob(tmp_path, [recording(1, 1), recording(1, 2)])
    files = sorted(tmp_path.rglob("*.bdf"))
    for file in files:
        data = bytearray(file.read_bytes())
        data[8:17] = b"P1       "
        file.write_bytes(data)
        if file is files[0]:
            with pytest.raises(InputError, match="mixes recordings with simulated ones"):
                read_mahnob(tmp_path)
    opened = read_mahnob(tmp_path)
    assert not opened.simulated
    assert opened.dataset.startswith("MAHNOB-HCI")


def test_what_the_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lacks the channels"):
        write_mahnob(tmp_path / "a", [recording(channels=CHANNELS[:5])])
    with pytest.raises(InputError, match=r"records of 1 s .*out of physical range"):
        write_mahnob(tmp_path / "c", [replace(recording(), signal=1e6 * recording().signal)])
    with pytest.raises(InputError, match="no folder"):
        read_mahnob(tmp_path / "d")
    (tmp_path / "Sessions").mkdir()
    with pytest.raises(InputError, match="holds no session"):
        read_mahnob(tmp_path)
