"""FACED and BIDS data sets: what a reader refuses."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import rows
from scipy.io import loadmat, savemat

from ngd_timm.eeg.simulate.sets import write_simulated

FACED = "teacher fit teacher_faced data.root=faced data.cache=false data.folds=3"
BIDS = "teacher fit teacher_bids data.root=music data.cache=false data.folds=3 data.window_s=1 data.artefact_uv=null"
TABLE = "participant_id task onset duration stimulus valence arousal".replace(" ", "\t")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people of FACED and of ds002721, whose rows of music got columns with ratings."""
    folder = tmp_path_factory.mktemp("sets")
    write_simulated("faced", folder / "faced", 3, 3, 2.0)
    write_simulated("ds002721", folder / "music", 3, 4, 2.0)
    for path in (folder / "music").rglob("*_events.tsv"):
        lines = path.read_text().splitlines()
        cells = [
            "valence\tarousal\tstimulus",
            *("2\t8\ta" if "\t788" in line else "n/a\tn/a\tn/a" for line in lines[1:]),
        ]
        path.write_text("".join(f"{line}\t{more}\n" for line, more in zip(lines, cells, strict=True)))
    return folder


@pytest.fixture
def copies(sets: Path, tmp_path: Path) -> Path:
    for name in ("faced", "music"):
        shutil.copytree(sets / name, tmp_path / name, copy_function=os.link)
    return tmp_path


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Of a hard link, which must not change the file that others share."""
    text = path.read_text()
    path.unlink()
    path.write_text(change(text))


def remarks(value: float) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "faced" / "Data" / "sub002" / "After_remarks.mat"
        content = loadmat(path)["After_remark"]
        for entry in content[:, 0]:
            entry["score"] = np.full((1, 12), value)
        path.unlink()
        savemat(path, {"After_remark": content})

    return write


@rows(
    "change, message",
    {
        "a subject without a file of ratings": (
            lambda folder: (folder / "faced" / "Data" / "sub002" / "After_remarks.mat").unlink(),
            "subject 2 has no ratings: there is no faced/Data/sub002/After_remarks.mat; get it, or take sub002.pkl",
        ),
        "a subject without scores": (remarks(np.nan), "subject 2 has no ratings: faced/Data/sub002/After_remarks.mat"),
        "ratings outside the scale": (remarks(7.5), "seen in place 1: ratings must lie in [0.0, 7.0], got 7.5 to 7.5"),
        "a folder without pickles": (
            lambda folder: shutil.rmtree(folder / "faced" / "Processed_data"),
            "no sub000.pkl … in faced/Processed_data; give the folder that holds FACED's Processed_data and Data",
        ),
    },
)
def test_files_of_faced_that_cannot_be_read(
    change: Callable[[Path], None], message: str, copies: Path, refused: Any
) -> None:
    change(copies)
    refused(FACED, message)


def events(old: str, new: str, files: str = "sub-02_task-run2_events.tsv") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for path in (folder / "music").rglob(files):
            rewrite(path, lambda text: text.replace(old, new))

    return write


def table(*lines: str) -> Callable[[Path], None]:
    text = "\n".join([TABLE, *(line.replace(" ", "\t") for line in lines)]) + "\n"
    return lambda folder: (folder / "t.tsv").write_text(text) and None


def bad_channel(folder: Path) -> None:
    for path in (folder / "music" / "sub-02").rglob("*_channels.tsv"):
        rewrite(path, lambda text: text.replace("uV\n", "uV\tgood\n").replace("Pz\tEEG\tuV\tgood", "Pz\tEEG\tuV\tbad"))
        rewrite(path, lambda text: text.replace("units\n", "units\tstatus\n"))


@rows(
    "change, keys, message",
    {
        "no columns of ratings": (
            events("valence\tarousal", "pleasant\tenergetic", "*_events.tsv"),
            "",
            "has the columns valence, arousal; there are onset, duration, trial_type, pleasant, energetic, stimulus;",
        ),
        "a subject without ratings": (
            events("2\t8\ta", "n/a\tn/a\ta", "sub-03*.tsv"),
            "",
            "music: sub-03 has no ratings of valence and arousal; list the others in a table, data.ratings",
        ),
        "ratings outside the scale": (
            events("2\t8\ta", "0\t8\ta"),
            "",
            "row 3: ratings must lie in [1.0, 9.0], got 0.0 to 8.0; give the scale's ends in data.scale",
        ),
        "one rating of two": (events("2\t8\ta", "n/a\t8\ta"), "", "row 3: has arousal alone; give both ratings"),
        "a rating in words": (events("2\t8\ta", "low\t8\ta"), "", "row 3: valence must be a number, got 'low'"),
        "a trial without a length": (events("2\t2\t788", "2\tn/a\t788"), "", "duration must be a number, got 'n/a'"),
        "a trial of a moment": (events("2\t2\t788", "2\t0\t788"), "", "row 3: has a rating and no duration"),
        "onsets in samples": (
            events("2\t2\t788", "2000\t2000\t788"),
            "",
            "row 3: 2000 s and 2000 s from there on is not within the 6 s of sub-02_task-run2_eeg.edf; BIDS has onset",
        ),
        "channels that differ between files": (
            bad_channel,
            "",
            "lacks the channel Pz; it has Fp1, Fp2, F7, F3, Fz, F4, F8, T3, C3, Cz, C4, T4, T5, P3, P4, T6, O1, O2, "
            "unlike recordings before it; name those that all have in data.channels",
        ),
        "a row of the table that fits no recording": (
            table("sub-01 run2 2 2 a 5 5", "sub-09 run2 2 2 a 5 5"),
            "data.ratings=t.tsv",
            "t.tsv, row 3: 0 recordings of sub-09_task-run2; take the row out, or get its files",
        ),
        "a row of the table that fits several": (
            table("sub-01 n/a 2 2 a 5 5"),
            "data.ratings=t.tsv",
            "t.tsv, row 2: 6 recordings of sub-01; name one by the columns session, task or run",
        ),
        "a subject whom the table names and nobody rated": (
            table("sub-01 run2 2 2 a 5 5", "sub-02 run2 2 2 a n/a n/a"),
            "data.ratings=t.tsv",
            "sub-02 has no ratings of valence and arousal; take its rows out of t.tsv",
        ),
        "a table without a column": (
            table("sub-01 run2 2 2 a 5 5"),
            "data.ratings=t.tsv data.stimulus=clip",
            "t.tsv: lacks the column clip; there are participant_id, task",
        ),
        "a table that isn't there": (table(), "data.ratings=u.tsv", "u.tsv: can't be read (No such file or directory)"),
        "a table without rows": (table(), "data.ratings=t.tsv", "t.tsv: has no rows"),
        "a folder that is no BIDS data set": (
            lambda folder: (folder / "music" / "dataset_description.json").unlink(),
            "",
            "no file music/dataset_description.json; set data.root to the folder of a BIDS data set, which has one",
        ),
        "a set without EEG": (
            lambda folder: [path.unlink() for path in (folder / "music").rglob("*.edf")],
            "",
            "music: no sub-…/eeg/…_eeg with one of .edf, .EDF, .bdf, .vhdr, .set; get the files of its EEG",
        ),
        "a scale upside down": (
            table(),
            '"data.scale=[9, 1]"',
            "data.scale is [lowest, highest] rating, got [9.0, 1.0]",
        ),
    },
)
def test_bids_data_sets_that_cannot_be_read(
    change: Callable[[Path], object], keys: str, message: str, copies: Path, refused: Any
) -> None:
    change(copies)
    refused(f"{BIDS} {keys}", message)


def test_a_bids_data_set_without_mne_bids_says_what_to_install(
    copies: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mne_bids", None)
    refused(BIDS, "reading BIDS data sets needs MNE-BIDS: pip install 'ngd-timm[bids]'")


def test_keys_about_bids_are_refused_for_another_set(refused: Any) -> None:
    refused(f"{FACED} data.valence=v", "data.valence is about BIDS data sets, and there is none; see data.name")
