"""DEAP's preprocessed recordings (Koelstra et al. 2012), read from their pickles without running what is in them."""

from __future__ import annotations

import pickle
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ngd_timm.core.affect import rating_to_va, va_to_rating
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import atomic_path, write_text
from ngd_timm.eeg.readers.limited import read_limited
from ngd_timm.eeg.signal.electrodes import BIOSEMI_32
from ngd_timm.eeg.signal.recording import Recording, RecordingSet

__all__ = ["CHANNELS", "read_deap", "write_deap"]

CHANNELS = BIOSEMI_32
"""The EEG channels in the order of the files, which is Geneva's; eight peripheral signals follow."""

_FOLDER = "data_preprocessed_python"
_MARKER = "SIMULATED.txt"
_SFREQ, _BASELINE_S, _ROWS, _LOW, _HIGH = 128.0, 3, 40, 1.0, 9.0
_NOTES = {
    "as supplied": "128 Hz, average reference, eye artefacts removed and 4 to 45 Hz passed by DEAP's authors, so that "
    "delta power is mostly what their filter left",
    "trial": "the same music video for everyone",
}


def read_deap(root: str | Path) -> RecordingSet:
    """Open `data_preprocessed_python/sNN.dat`: 32 EEG channels at 128 Hz, 3 s of baseline and 60 s of music video.

    The files are Python 2 pickles, which could run any code in whoever unpickles them. Here a child process, limited to
    2 GiB of memory, unpickles each. It knows only the names that float arrays need; a file that names anything else is
    refused before that is imported. One subject is in memory at a time.

    Args:
        root: The folder of the `.dat` files, or the one that holds it.

    Raises:
        InputError: No such files, or two of one person; when iterated, a file that holds anything else, named with
            the reason.

    Reference:
        Koelstra et al., "DEAP: a database for emotion analysis using physiological signals", IEEE TAC 3 (2012).
    """
    root = Path(root)
    folder = root / _FOLDER if (root / _FOLDER).is_dir() else root
    files: dict[int, Path] = {}
    for path in sorted(folder.glob("*.dat")):
        if found := re.fullmatch(r"s(\d+)", path.stem):
            other = files.setdefault(int(found[1]), path)
            if other != path:
                raise InputError(
                    f"{folder}: {other.name} and {path.name} are both of subject {int(found[1])}; keep one"
                )
    if not files:
        raise InputError(f"no s01.dat … in {folder}; give the folder that holds DEAP's {_FOLDER}")
    marker = folder / _MARKER
    simulated = marker.is_file()

    def read() -> Iterator[Recording]:
        for subject in sorted(files):
            yield from _subject(files[subject], subject)

    return RecordingSet(
        dataset="simulated recordings in DEAP's layout"
        if simulated
        else "DEAP (Koelstra et al. 2012), preprocessed, 32 channels at 128 Hz, 40 music videos a person",
        files=(*(files[subject] for subject in sorted(files)), *([marker] if simulated else [])),
        read=read,
        notes=_NOTES,
        simulated=simulated,
    )


def write_deap(root: str | Path, recordings: Iterable[Recording]) -> None:
    """Write recordings in DEAP's layout, marked as simulated, so that its reader can be tried without DEAP's licence.

    Args:
        root: Gets the folder `data_preprocessed_python`.
        recordings: 128 Hz, all of `CHANNELS`, rated, 3 s of baseline; a person's trials are numbered from 1 and last
            alike.

    Raises:
        InputError: A recording that the layout has no place for.
    """
    subjects = defaultdict(list)
    for recording in recordings:
        subjects[recording.subject].append(recording)
    folder = Path(root) / _FOLDER
    write_text(folder / _MARKER, "These recordings are simulated: nobody's EEG, in the layout of DEAP.\n")
    for subject, trials in subjects.items():
        trials.sort(key=lambda recording: recording.trial)
        if [recording.trial for recording in trials] != list(range(1, len(trials) + 1)):
            raise InputError(f"subject {subject}: DEAP has no trial numbers; number them from 1 without gaps")
        if len({recording.signal.shape[1] for recording in trials}) > 1:
            raise InputError(f"subject {subject}: the trials of a person are one array; make them last alike")
        content = {
            "labels": np.array([_labels(recording) for recording in trials]),
            "data": np.stack([_rows(recording) for recording in trials]),
        }
        with atomic_path(folder / f"s{subject:02d}.dat") as temporary:
            temporary.write_bytes(pickle.dumps(content, protocol=2))


def _labels(recording: Recording) -> tuple[float, float, float, float]:
    if recording.valence_arousal is None:
        raise InputError(f"{recording} has no rating; every trial of DEAP has one")
    valence, arousal = va_to_rating(np.array(recording.valence_arousal), _LOW, _HIGH).tolist()
    return valence, arousal, 5.0, 5.0


def _rows(recording: Recording) -> np.ndarray:
    recording = recording.pick(CHANNELS)
    samples = round(_BASELINE_S * _SFREQ)
    baseline = recording.baseline
    if recording.sfreq != _SFREQ or baseline is None or baseline.shape[1] != samples:
        raise InputError(f"{recording}: DEAP's layout is {_SFREQ:g} Hz with {_BASELINE_S} s of baseline")
    eeg = np.concatenate([baseline, recording.signal], axis=1).astype(np.float64)
    return np.concatenate([eeg, np.zeros((_ROWS - len(CHANNELS), eeg.shape[1]))])


def _subject(path: Path, subject: int) -> Iterator[Recording]:
    (content,) = read_limited("deap", path, gibibytes=2, cpu_seconds=60)
    missing = [name for name in ("data", "labels") if name not in content]
    if missing:
        raise InputError(f"{path}: lacks the array {', '.join(missing)}; a file of DEAP has data and labels")
    data, labels = content["data"], content["labels"]
    start = round(_BASELINE_S * _SFREQ)
    if data.ndim != 3 or data.shape[1] != _ROWS or data.shape[2] <= start or labels.shape != (len(data), 4):
        raise InputError(
            f"{path}: data must be (trials, {_ROWS}, more than {start} samples) and labels (trials, 4), "
            f"got {data.shape} and {labels.shape}"
        )
    for index, (rows, rating) in enumerate(zip(data, labels, strict=True)):
        eeg = rows[: len(CHANNELS)]
        try:
            valence, arousal = rating_to_va(rating[:2], _LOW, _HIGH).tolist()
            recording = Recording(
                subject, index + 1, eeg[:, start:], _SFREQ, CHANNELS, (valence, arousal), eeg[:, :start]
            )
        except InputError as error:
            raise InputError(f"{path}, trial {index + 1}: {error}") from None
        yield recording
