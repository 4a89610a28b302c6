"""DEAP's preprocessed recordings (Koelstra et al. 2012), read from their pickles without running what is in them."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

from ngd_timm.core.affect import rating_to_va, va_to_rating
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import atomic_path, write_text
from ngd_timm.eeg.readers.limited import read_limited
from ngd_timm.eeg.signal.recording import BIOSEMI_32, Recording, RecordingSet

CHANNELS = BIOSEMI_32
"""The EEG channels in the order of the files, which is Geneva's; eight peripheral signals follow."""

_FOLDER = "data_preprocessed_python"
_MARKER = "SIMULATED.txt"
_DATASET = "DEAP (Koelstra et al. 2012), preprocessed, 32 channels at 128 Hz, 40 music videos a person"
_SFREQ, _ROWS, _LOW, _HIGH = 128.0, 40, 1.0, 9.0
_START = 384  # samples of baseline, 3 s
_NOTES = {
    "as supplied": "128 Hz, average reference, eye artefacts removed and 4 to 45 Hz passed by DEAP's authors, so that "
    "delta power is mostly what their filter left",
    "trial": "the same music video for everyone",
}


def read_deap(root: str | Path) -> RecordingSet:
    """Open `data_preprocessed_python/sNN.dat`: 32 EEG channels at 128 Hz, 3 s of baseline and 60 s of music video.

    The files are Python 2 pickles: a child process reads them, and allows only the names that float arrays need.
    """
    folder = Path(root) / _FOLDER if (Path(root) / _FOLDER).is_dir() else Path(root)
    files: dict[int, Path] = {}
    for path in sorted(folder.glob("*.dat")):
        if number := re.fullmatch(r"s(\d+)", path.stem):
            subject = int(number[1])
            if files.setdefault(subject, path) != path:
                raise InputError(
                    f"{folder}: {files[subject].name} and {path.name} are both of subject {subject}; keep one"
                )
    if not files:
        raise InputError(f"no s01.dat … in {folder}; give the folder that holds DEAP's {_FOLDER}")
    marker = folder / _MARKER
    simulated = marker.is_file()
    return RecordingSet(
        dataset="simulated recordings in DEAP's layout" if simulated else _DATASET,
        files=(*(files[subject] for subject in sorted(files)), *([marker] if simulated else [])),
        read=lambda: (recording for subject in sorted(files) for recording in _read(files[subject], subject)),
        notes=_NOTES,
        simulated=simulated,
    )


def write_deap(root: str | Path, recordings: Iterable[Recording]) -> None:
    """Write recordings (128 Hz, 3 s of baseline, a rating, all `CHANNELS`) in DEAP's layout, marked as simulated."""
    folder = Path(root) / _FOLDER
    write_text(folder / _MARKER, "These recordings are simulated: nobody's EEG, in the layout of DEAP.\n")
    for subject, trials in groupby(recordings, key=lambda recording: recording.subject):
        rows, labels = zip(*map(_rows_and_labels, trials), strict=True)
        with atomic_path(folder / f"s{subject:02d}.dat") as temporary:
            temporary.write_bytes(pickle.dumps({"labels": np.array(labels), "data": np.stack(rows)}, protocol=2))


def _rows_and_labels(recording: Recording) -> tuple[np.ndarray, list[float]]:
    recording = recording.pick(CHANNELS)
    assert recording.baseline is not None
    eeg = np.concatenate([recording.baseline, recording.signal], axis=1).astype(np.float64)
    rows = np.concatenate([eeg, np.zeros((_ROWS - len(CHANNELS), eeg.shape[1]))])
    return rows, [*va_to_rating(np.array(recording.valence_arousal), _LOW, _HIGH).tolist(), 5.0, 5.0]


def _read(path: Path, subject: int) -> Iterator[Recording]:
    (content,) = read_limited("deap", path, gibibytes=2, cpu_seconds=60)
    missing = [name for name in ("data", "labels") if name not in content]
    if missing:
        raise InputError(f"{path}: lacks the array {', '.join(missing)}; a file of DEAP has data and labels")
    data, labels = content["data"], content["labels"]
    if data.ndim != 3 or data.shape[1] != _ROWS or data.shape[2] <= _START or labels.shape != (len(data), 4):
        raise InputError(
            f"{path}: data must be (trials, {_ROWS}, more than {_START} samples) and labels (trials, 4), "
            f"got {data.shape} and {labels.shape}"
        )
    for trial, (rows, rating) in enumerate(zip(data[:, : len(CHANNELS)], labels, strict=True), start=1):
        try:
            va = tuple(rating_to_va(rating[:2], _LOW, _HIGH).tolist())
            recording = Recording(subject, trial, rows[:, _START:], _SFREQ, CHANNELS, va, rows[:, :_START], str(trial))
        except InputError as error:
            raise InputError(f"{path}, trial {trial}: {error}") from None
        yield recording
