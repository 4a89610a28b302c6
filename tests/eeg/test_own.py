"""Own recordings: cut where the annotations say, refused where the table and the files disagree."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest

from ngd_timm.core.errors import InputError
from ngd_timm.eeg.readers.own import read_recordings
from ngd_timm.eeg.signal.recording import Recording

SFREQ = 64.0
MARKS = [(0, 3, "rest"), (4, 2, "sad"), (7, 1, "rest"), (8, 4, "happy"), (13, 0, "press"), (14, 2, "late")]
HEADER = "file,subject,annotation,valence,arousal"


def make_raw(marks: list[Any] = MARKS) -> mne.io.BaseRaw:
    """The value of a sample is its own time in µV, plus 100 a channel."""
    names = ["Fz", "Cz", "HEOG", "Pz"]
    info = mne.create_info(names, SFREQ, ["eeg", "eeg", "eog", "eeg"], verbose="error")
    volts = 1e-6 * (np.arange(20 * SFREQ) / SFREQ + 100 * np.arange(4)[:, None])
    raw = mne.io.RawArray(volts, info, verbose="error")
    return raw.set_annotations(mne.Annotations(*zip(*marks, strict=True)), verbose="error")


def write_table(folder: Path, *rows: str, header: str = HEADER) -> Path:
    (folder / "mine.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "mine.csv"


def read(folder: Path, raw: mne.io.BaseRaw, *rows: str, header: str = HEADER) -> list[Recording]:
    raw.save(folder / "r_raw.fif", overwrite=True, verbose="error")
    return list(read_recordings(write_table(folder, *(f"r_raw.fif,1,{row}" for row in rows), header=header)))


def starts(recordings: list[Recording]) -> list[float]:
    return [round(float(r.signal[0, 0]), 3) for r in recordings]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_raw().save(tmp_path / "a_raw.fif", verbose="error")
    make_raw([(1, 4, "news")]).save(tmp_path / "b_raw.fif", verbose="error")
    return tmp_path


def test_only_good_eeg_channels_are_taken_and_in_microvolts(tmp_path: Path) -> None:
    raw = make_raw()
    raw.info["bads"] = ["Cz"]
    (happy,) = read(tmp_path, raw, "happy,,")
    assert happy.channels == ("Fz", "Pz")
    assert happy.signal.dtype == np.float32
    np.testing.assert_allclose(happy.signal[:, 0], [8, 308], rtol=1e-5)
    raw.info["bads"] = ["Fz", "Cz", "Pz"]
    with pytest.raises(InputError, match="row 2: no usable EEG among Fz, Cz, HEOG, Pz"):
        read(tmp_path, raw, "happy,,")


def test_the_baseline_is_the_last_rest_that_ends_before_the_trial(tmp_path: Path) -> None:
    header = f"{HEADER},baseline"
    trials = read(tmp_path, make_raw(), *(f"{name},,,rest" for name in ("sad", "happy", "late")), header=header)
    baselines = [r.baseline for r in trials]
    assert [(float(b[0, 0]), b.shape[1]) for b in baselines if b is not None] == [(0, 192), (7, 64), (7, 64)]
    with pytest.raises(InputError, match="no annotation 'rest' ends before 'early' begins"):
        read(tmp_path, make_raw([(2, 2, "early"), (1, 4, "rest")]), "early,,,rest", header=header)


def test_a_cropped_raw_is_cut_at_the_same_samples(tmp_path: Path) -> None:
    raw = make_raw().crop(tmin=6.5)
    assert raw.first_samp > 0
    assert starts(read(tmp_path, raw, "happy,,", "late,,")) == [8.0, 14.0]
    raw.set_meas_date(1_500_000_000)
    assert starts(read(tmp_path, raw, "happy,,", "late,,")) == [8.0, 14.0]


def test_a_file_whose_tags_lead_backwards_is_not_followed_for_ever(tmp_path: Path) -> None:
    read(tmp_path, make_raw(), "happy,,")
    content = bytearray((tmp_path / "r_raw.fif").read_bytes())
    _, _, size, _ = struct.unpack_from(">4i", content)
    struct.pack_into(">i", content, 16 + size + 12, 16)  # after the second tag comes the first one's data
    (tmp_path / "r_raw.fif").write_bytes(content)
    recordings = read_recordings(write_table(tmp_path, "r_raw.fif,1,happy,,"))
    with pytest.raises(InputError, match=r"row 2: MNE can't open r_raw\.fif \(a tag leads backwards"):
        list(recordings)


@pytest.mark.parametrize(("file", "pipe"), [("r_raw.fif", "r_raw-1.fif"), ("c.vhdr", "other.eeg"), ("d.edf", "d.edf")])
def test_a_pipe_among_the_files_of_a_recording_is_not_waited_for(tmp_path: Path, file: str, pipe: str) -> None:
    if file != pipe:
        (tmp_path / file).write_text("DataFile=other.eeg\n")
    os.mkfifo(tmp_path / pipe)
    with pytest.raises(InputError, match=f"{pipe}: can't be read \\(not a regular file\\)"):
        read_recordings(write_table(tmp_path, f"{file},1,happy,,"))


def test_an_annotation_of_a_moment_needs_a_length_in_seconds(tmp_path: Path) -> None:
    header = f"{HEADER},seconds"
    with pytest.raises(InputError, match="'press' marks a moment"):
        read(tmp_path, make_raw(), "press,,,", header=header)
    (press,) = read(tmp_path, make_raw(), "press,,,3", header=header)
    assert (starts([press]), press.seconds) == ([13.0], 3.0)
    with pytest.raises(InputError, match="of 30 s reaches beyond the recording"):
        read(tmp_path, make_raw(), "press,,,30", header=header)


def test_a_table_of_two_files_is_read_file_by_file_and_each_is_opened_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["a_raw.fif,1,happy,9,1,rest,1,9", "b_raw.fif,2,news,,,,,", "a_raw.fif,1,sad,0.5,-0.5,rest,,"]
    table = write_table(folder, *rows, header=f"{HEADER},baseline,low,high")
    opened: list[str] = []
    read_raw = mne.io.read_raw
    monkeypatch.setattr(mne.io, "read_raw", lambda f, **kw: opened.append(Path(f).name) or read_raw(f, **kw))
    recordings = read_recordings(table)
    assert recordings.dataset == "own recordings (mine)"
    assert [f.name for f in recordings.files] == ["mine.csv", "a_raw.fif", "b_raw.fif"]
    assert not opened
    trials = list(recordings)
    assert opened == ["a_raw.fif", "b_raw.fif"]
    assert [(r.subject, r.trial, r.valence_arousal, r.baseline is None) for r in trials] == [
        (1, 1, (1.0, -1.0), False),
        (1, 2, (0.5, -0.5), False),
        (2, 1, None, True),
    ]
    assert len(list(recordings)) == 3


def test_given_trial_numbers_and_lengths_are_kept(folder: Path) -> None:
    rows = ["a_raw.fif,1,press,,,12,2.5", "a_raw.fif,1,sad,0,0,30,"]
    table = write_table(folder, *rows, header=f"{HEADER},trial,seconds")
    assert [(r.trial, r.seconds) for r in read_recordings(table)] == [(12, 2.5), (30, 2.0)]


HEAD = "BrainVision Data Exchange Header File Version 1.0\r\n; DataFile=comment.eeg\r\n[Common Infos]\r\n"
HEAD += "Codepage=ANSI\r\nDataFile=renämed.eeg\r\nmarkerfile = marks.vmrk\r\nNumberOfChannels=2\r\n"


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("c.vhdr", ["c.eeg", "c.vhdr", "c.vmrk"]),
        ("d.vhdr", ["d.eeg", "d.vhdr", "marks.vmrk", "renämed.eeg"]),  # whatever a header calls them
        ("late.vhdr", ["late.vhdr", "late.vmrk", "renämed.eeg"]),
        ("e.set", ["e.set", "old.fdt"]),
        ("s_split-01_eeg.fif", ["s_split-01_eeg.fif", "s_split-02_eeg.fif"]),
        ("t_raw.fif", ["t_raw-1.fif", "t_raw.fif"]),
    ],
)
def test_all_files_that_a_recording_is_spread_over_count(tmp_path: Path, file: str, parts: list[str]) -> None:
    names = "c.vhdr c.eeg c.vmrk cc.eeg d.eeg renämed.eeg marks.vmrk comment.eeg late.vmrk e.set old.fdt"
    for name in f"{names} s_split-01_eeg.fif s_split-02_eeg.fif t_raw.fif t_raw-1.fif t_rawer.fif".split():
        (tmp_path / name).touch()
    (tmp_path / "d.vhdr").write_bytes(HEAD.encode("latin-1"))
    (tmp_path / "late.vhdr").write_bytes(HEAD.replace("marks.vmrk", "gone.vmrk").encode())
    assert [f.name for f in read_recordings(write_table(tmp_path, f"{file},1,happy,,")).files] == ["mine.csv", *parts]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("c_raw.fif,1,happy,,", r"row 2: no file 'c_raw\.fif'"),
        ("a_raw.fif,anna,happy,,", "row 2: subject: .*valid integer.*, got 'anna'"),
        ("a_raw.fif,1,,,", "row 2: annotation: Field required"),
        ("a_raw.fif,1,happy,0.5,", "row 2: only one of valence and arousal is given"),
        ("a_raw.fif,1,happy,much,0", "row 2: valence: .*valid number.*, got 'much'"),
        ("a_raw.fif,1,happy,7,3", r"row 2: ratings must lie in \[-1\.0, 1\.0\].*columns low and high"),
        ("a_raw.fif,1,happy,nan,0", "row 2: valence: .*finite"),
        ("a_raw.fif,1,happy", "row 2: must have 5 cells"),
        ("a_raw.fif,1,happy,0,0,0", "row 2: must have 5 cells"),
        ("a_raw.fif,1,rest,,", r"row 2: 2 annotations 'rest' in a_raw\.fif"),
        ("a_raw.fif,1,joy,,", r"row 2: 0 annotations 'joy' in .*There are: happy, late, press, rest, sad"),
        ("d_raw.fif,1,happy,,", r"row 2: MNE can't open d_raw\.fif"),
        ("d.xyz,1,happy,,", r"row 2: MNE can't open d\.xyz"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(folder: Path, row: str, message: str) -> None:
    (folder / "d_raw.fif").write_bytes(b"no fif")
    (folder / "d.xyz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=message):
        list(read_recordings(write_table(folder, row)))


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("file,subject,annotation", [], "lacks the columns valence, arousal"),
        (f"{HEADER},baselin", [], "'baselin'; did you mean 'baseline'"),
        (f"{HEADER},valence", [], "has the column valence twice"),
        (HEADER, [], "has no rows"),
        *((f"{HEADER},seconds", [f"press,,,{s}"], "row 2: seconds: ") for s in ("nan", "inf", "0", "-2")),
        (f"{HEADER},trial", ["sad,,,"], "row 2: trial is empty"),
        (f"{HEADER},trial", ["happy,0,0,4", "sad,0.5,0,4"], "row 3: subject 1, trial 4 has another rating"),
        (f"{HEADER},low,high", ["sad,3,3,5,1"], "row 2: low must be below high, got 5.0 and 1.0"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(folder: Path, header: str, rows: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_recordings(write_table(folder, *(f"a_raw.fif,1,{row}" for row in rows), header=header))
    with pytest.raises(InputError, match=r"no file .*columns file, subject"):
        read_recordings(folder / "other.csv")
