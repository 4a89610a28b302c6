"""Own recordings: cut where the annotations say, refused where the table and the files disagree."""

from __future__ import annotations

from pathlib import Path

import mne
import numpy as np
import pytest

from ngd_timm.core.errors import InputError
from ngd_timm.eeg.readers.own import read_recordings, recordings_from_raw

SFREQ = 64.0
MARKS = [(0, 3, "rest"), (4, 2, "sad"), (7, 1, "rest"), (8, 4, "happy"), (13, 0, "press"), (14, 2, "sad")]


def make_raw(marks: list[tuple[float, float, str]] = MARKS, seconds: int = 20) -> mne.io.BaseRaw:
    """The value of a sample is its own time in µV, plus 100 a channel."""
    names = ["Fz", "Cz", "HEOG", "Pz"]
    info = mne.create_info(names, SFREQ, ["eeg", "eeg", "eog", "eeg"], verbose="error")
    times = np.arange(seconds * SFREQ) / SFREQ
    volts = 1e-6 * (times + 100 * np.arange(4)[:, None])
    raw = mne.io.RawArray(volts, info, verbose="error")
    onset, duration, description = zip(*marks, strict=True)
    return raw.set_annotations(mne.Annotations(onset, duration, description), verbose="error")


def write_table(folder: Path, *rows: str, header: str = "file,subject,annotation,valence,arousal") -> Path:
    (folder / "mine.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "mine.csv"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_raw(MARKS[:5]).save(tmp_path / "a_raw.fif", verbose="error")
    make_raw([(1, 4, "news")]).save(tmp_path / "b_raw.fif", verbose="error")
    return tmp_path


def test_every_annotation_with_a_rating_is_a_trial_in_order_of_time() -> None:
    read = list(recordings_from_raw(make_raw(), 7, {"happy": (0.5, 0.2), "sad": None}))
    assert [(r.subject, r.trial, r.seconds, r.valence_arousal) for r in read] == [
        (7, 1, 2.0, None),
        (7, 2, 4.0, (0.5, 0.2)),
        (7, 3, 2.0, None),
    ]
    assert [round(float(r.signal[0, 0]), 3) for r in read] == [4.0, 8.0, 14.0]
    assert all(r.baseline is None for r in read)


def test_only_good_eeg_channels_are_taken_and_in_microvolts() -> None:
    raw = make_raw()
    raw.info["bads"] = ["Cz"]
    (read,) = recordings_from_raw(raw, 1, {"happy": None})
    assert read.channels == ("Fz", "Pz")
    assert read.signal.dtype == np.float32
    np.testing.assert_allclose(read.signal[:, 0], [8, 308], rtol=1e-5)
    raw.info["bads"] = ["Fz", "Cz", "Pz"]
    with pytest.raises(InputError, match="no usable EEG among Fz, Cz, HEOG, Pz"):
        list(recordings_from_raw(raw, 1, {"happy": None}))


def test_the_baseline_is_the_last_rest_that_ends_before_the_trial() -> None:
    sad, happy, last = recordings_from_raw(make_raw(), 1, {"happy": None, "sad": None}, baseline="rest")
    starts = [
        (round(float(r.baseline[0, 0]), 3), r.baseline.shape[1]) for r in (sad, happy, last) if r.baseline is not None
    ]
    assert starts == [(0.0, 192), (7.0, 64), (7.0, 64)]
    with pytest.raises(InputError, match="no annotation 'rest' ends before 'early' begins"):
        list(recordings_from_raw(make_raw([(2, 2, "early"), (1, 4, "rest")]), 1, {"early": None}, baseline="rest"))


def test_a_cropped_raw_is_cut_at_the_same_samples() -> None:
    raw = make_raw().crop(tmin=6.5)
    assert raw.first_samp > 0
    happy, sad = recordings_from_raw(raw, 1, {"happy": None, "sad": None})
    assert [round(float(r.signal[0, 0]), 3) for r in (happy, sad)] == [8.0, 14.0]
    raw.set_meas_date(1_500_000_000)
    happy, sad = recordings_from_raw(raw, 1, {"happy": None, "sad": None})
    assert [round(float(r.signal[0, 0]), 3) for r in (happy, sad)] == [8.0, 14.0]


def test_an_annotation_of_a_moment_needs_a_length_in_seconds() -> None:
    with pytest.raises(InputError, match="'press' marks a moment"):
        list(recordings_from_raw(make_raw(), 1, {"press": None}))
    (read,) = recordings_from_raw(make_raw(), 1, {"press": None}, seconds=3)
    assert (round(float(read.signal[0, 0]), 3), read.seconds) == (13.0, 3.0)
    with pytest.raises(InputError, match="of 30 s reaches beyond the recording"):
        list(recordings_from_raw(make_raw(), 1, {"press": None}, seconds=30))


def test_a_rating_of_no_annotation_lists_those_there_are() -> None:
    with pytest.raises(InputError, match=r"'hapy'; did you mean 'happy'\? Allowed: happy, press, rest, sad"):
        list(recordings_from_raw(make_raw(), 1, {"hapy": None}))


def test_a_table_of_two_files_is_read_file_by_file_and_each_is_opened_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["a_raw.fif,1,happy,9,1,rest,1,9", "b_raw.fif,2,news,,,,,", "a_raw.fif,1,sad,0.5,-0.5,rest,,"]
    table = write_table(folder, *rows, header="file,subject,annotation,valence,arousal,baseline,low,high")
    opened: list[str] = []
    read_raw = mne.io.read_raw
    monkeypatch.setattr(mne.io, "read_raw", lambda f, **kw: opened.append(Path(f).name) or read_raw(f, **kw))
    recordings = read_recordings(table)
    assert recordings.dataset == "own recordings (mine)"
    assert [f.name for f in recordings.files] == ["mine.csv", "a_raw.fif", "b_raw.fif"]
    assert not opened
    read = list(recordings)
    assert opened == ["a_raw.fif", "b_raw.fif"]
    assert [(r.subject, r.trial, r.valence_arousal) for r in read] == [
        (1, 1, (1.0, -1.0)),
        (1, 2, (0.5, -0.5)),
        (2, 1, None),
    ]
    assert [r.baseline is None for r in read] == [False, False, True]
    assert len(list(recordings)) == 3


def test_given_trial_numbers_and_lengths_are_kept(folder: Path) -> None:
    header = "file,subject,annotation,valence,arousal,trial,seconds"
    table = write_table(folder, "a_raw.fif,1,press,,,12,2.5", "a_raw.fif,1,sad,0,0,30,", header=header)
    assert [(r.trial, r.seconds) for r in read_recordings(table)] == [(12, 2.5), (30, 2.0)]


def test_the_files_a_recording_is_spread_over_all_count(folder: Path) -> None:
    for name in ("c.vhdr", "c.eeg", "c.vmrk", "cc.eeg"):
        (folder / name).touch()
    table = write_table(folder, "c.vhdr,1,happy,,")
    assert [f.name for f in read_recordings(table).files] == ["mine.csv", "c.eeg", "c.vhdr", "c.vmrk"]


def test_files_that_a_header_names_count_whatever_they_are_called(folder: Path) -> None:
    header = "BrainVision Data Exchange Header File Version 1.0\r\n; DataFile=comment.eeg\r\n[Common Infos]\r\n"
    header += "Codepage=ANSI\r\nDataFile=renämed.eeg\r\nmarkerfile = marks.vmrk\r\nNumberOfChannels=2\r\n"
    (folder / "late.vhdr").write_bytes(header.replace("marks.vmrk", "gone.vmrk").encode())
    (folder / "c.vhdr").write_bytes(header.encode("latin-1"))
    for name in ("renämed.eeg", "marks.vmrk", "comment.eeg", "c.eeg", "late.vmrk"):
        (folder / name).touch()
    table = write_table(folder, "c.vhdr,1,happy,,")
    assert [f.name for f in read_recordings(table).files] == [
        "mine.csv",
        "c.eeg",
        "c.vhdr",
        "marks.vmrk",
        "renämed.eeg",
    ]
    table = write_table(folder, "late.vhdr,1,happy,,")
    assert [f.name for f in read_recordings(table).files] == ["mine.csv", "late.vhdr", "late.vmrk", "renämed.eeg"]


def test_split_files_and_those_that_a_set_may_keep_its_data_in_count(folder: Path) -> None:
    for name in (
        "e.set",
        "old.fdt",
        "s_split-01_eeg.fif",
        "s_split-02_eeg.fif",
        "t_raw.fif",
        "t_raw-1.fif",
        "t_rawer.fif",
    ):
        (folder / name).touch()
    for name, parts in (
        ("e.set", ["e.set", "old.fdt"]),
        ("s_split-01_eeg.fif", ["s_split-01_eeg.fif", "s_split-02_eeg.fif"]),
        ("t_raw.fif", ["t_raw-1.fif", "t_raw.fif"]),
    ):
        assert [f.name for f in read_recordings(write_table(folder, f"{name},1,happy,,")).files] == ["mine.csv", *parts]


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "0", "-2"])
def test_a_length_that_is_none_names_its_row(folder: Path, seconds: str) -> None:
    header = "file,subject,annotation,valence,arousal,seconds"
    with pytest.raises(InputError, match=f"row 3: seconds must be a length above 0, got {float(seconds)}"):
        read_recordings(write_table(folder, "a_raw.fif,1,happy,,,2", f"a_raw.fif,1,press,,,{seconds}", header=header))


def test_a_row_that_fits_no_annotation_or_several_says_how_many(folder: Path) -> None:
    with pytest.raises(InputError, match=r"row 3: 2 annotations 'rest' in a_raw\.fif"):
        list(read_recordings(write_table(folder, "a_raw.fif,1,happy,,", "a_raw.fif,1,rest,,")))
    with pytest.raises(InputError, match=r"row 2: 0 annotations 'joy' in .*There are: happy, press, rest, sad"):
        list(read_recordings(write_table(folder, "a_raw.fif,1,joy,,")))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("c_raw.fif,1,happy,,", r"row 2: no file 'c_raw\.fif'"),
        ("a_raw.fif,anna,happy,,", "row 2: subject must be a whole number, got 'anna'"),
        ("a_raw.fif,1,,,", "row 2: annotation is empty"),
        ("a_raw.fif,1,happy,0.5,", "row 2: only valence is given"),
        ("a_raw.fif,1,happy,much,0", "row 2: valence must be a number"),
        ("a_raw.fif,1,happy,7,3", r"row 2: ratings must lie in \[-1\.0, 1\.0\].*columns low and high"),
        ("a_raw.fif,1,happy,nan,0", "row 2: ratings must lie in"),
        ("a_raw.fif,1,happy", "row 2: must have 5 cells"),
        ("a_raw.fif,1,happy,0,0,0", "row 2: must have 5 cells"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(folder: Path, row: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_recordings(write_table(folder, row))


def test_tables_with_wrong_columns_or_none_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="lacks the columns valence, arousal"):
        read_recordings(write_table(folder, header="file,subject,annotation"))
    with pytest.raises(InputError, match="'baselin'; did you mean 'baseline'"):
        read_recordings(write_table(folder, header="file,subject,annotation,valence,arousal,baselin"))
    with pytest.raises(InputError, match="has no rows"):
        read_recordings(write_table(folder))
    with pytest.raises(InputError, match=r"no file .*columns file, subject"):
        read_recordings(folder / "other.csv")


def test_one_trial_has_one_rating(folder: Path) -> None:
    header = "file,subject,annotation,valence,arousal,trial"
    rows = ["a_raw.fif,1,happy,0,0,4", "a_raw.fif,1,sad,0.5,0,4"]
    with pytest.raises(InputError, match="row 3: subject 1, trial 4 has another rating"):
        read_recordings(write_table(folder, *rows, header=header))


def test_a_file_that_mne_cannot_open_is_named_with_its_row(folder: Path) -> None:
    (folder / "d_raw.fif").write_bytes(b"no fif")
    (folder / "d.xyz").write_bytes(b"nothing")
    for name in ("d_raw.fif", "d.xyz"):
        with pytest.raises(InputError, match=rf"row 2: MNE can't open {name}"):
            list(read_recordings(write_table(folder, f"{name},1,happy,,")))
