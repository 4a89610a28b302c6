"""FACED (Chen et al. 2023): 123 subjects, 28 film clips, 30 electrodes at 250 Hz; CC BY 4.0, for anybody."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

import numpy as np

from ngd_timm.core.affect import rating_to_va, va_to_rating
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import atomic_path, write_text
from ngd_timm.eeg.readers.limited import read_limited
from ngd_timm.eeg.signal.recording import Recording, RecordingSet

CHANNELS = (
    *("Fp1", "Fp2", "Fz", "F3", "F4", "F7", "F8", "FC1", "FC2", "FC5", "FC6", "Cz", "C3", "C4", "T7", "T8"),
    *("CP1", "CP2", "CP5", "CP6", "Pz", "P3", "P4", "P7", "P8", "PO3", "PO4", "Oz", "O1", "O2"),
)
"""The EEG channels in the order of the files; the two mastoids A2 and A1 follow."""

CLIPS, SECONDS, SFREQ, LEVELS = 28, 30.0, 250.0, 8
_ROWS = 32
_FOLDER, _RATINGS, _REMARKS = "Processed_data", "Data", "After_remarks.mat"
_MARKER = "SIMULATED.txt"
_DATASET = "FACED (Chen et al. 2023), preprocessed, 30 channels at 250 Hz, 28 film clips a person"
_LOW, _HIGH = 0.0, 7.0  # rating scale
_AROUSAL, _VALENCE = 8, 9  # among the 12 items of a score
_NOTES = {
    "as supplied": "250 Hz, µV, the last 30 s of each clip, 0.05 to 47 Hz, bad channels interpolated, eye artefacts "
    "removed by ICA, average reference, by FACED's authors; no baseline",
    "trial": "the clip's place in the order in which the person saw them, which differs; the clip is the stimulus",
    "left_out": "the mastoids",
}


def read_faced(root: str | Path) -> RecordingSet:
    """Open FACED's `Processed_data/subNNN.pkl`, and the ratings in `Data/subNNN/After_remarks.mat` beside that folder.

    A pickle is one array (28 clips in the order of their numbers, 32 channels, 7500 samples) in µV. `After_remark` has
    an entry for each clip in the order in which the person saw them: its number in `vid`, and in `score` 12 ratings
    from 0 to 7, of which the ninth is arousal and the tenth valence. A child process reads both; of the pickles it
    allows only the names that float arrays need.

    Reference:
        https://doi.org/10.7303/syn50614194, its Readme.md and Code/Readme.md, and `channel_modify` there, which puts
        the mastoids last; `torcheeg.datasets.FACEDDataset`.
    """
    root = Path(root)
    folder = root if root.name == _FOLDER and not (root / _FOLDER).is_dir() else root / _FOLDER
    files = {
        int(number[1]): path
        for path in sorted(folder.glob("sub*.pkl"))
        if (number := re.fullmatch(r"sub(\d{3})", path.stem))
    }
    if not files:
        raise InputError(f"no sub000.pkl … in {folder}; give the folder that holds FACED's {_FOLDER} and {_RATINGS}")
    ratings = folder.parent / _RATINGS
    mats = {subject: ratings / path.stem / _REMARKS for subject, path in files.items()}
    for subject, mat in mats.items():
        if not mat.is_file():
            raise InputError(
                f"subject {subject} has no ratings: there is no {mat}; get it, or take {files[subject].name} away"
            )
    items = read_limited("faced_ratings", ratings, gibibytes=2, cpu_seconds=300)
    remarks = {str(item["subject"]): item for item in items}
    marker = folder.parent / _MARKER
    simulated = marker.is_file()
    return RecordingSet(
        dataset="simulated recordings in FACED's layout" if simulated else _DATASET,
        files=(*files.values(), *mats.values(), *([marker] if simulated else [])),
        read=lambda: (
            recording
            for subject, path in files.items()
            for recording in _read(path, subject, mats[subject], remarks[path.stem])
        ),
        notes=_NOTES,
        simulated=simulated,
    )


def write_faced(root: str | Path, recordings: Iterable[Recording]) -> None:
    """Write recordings (250 Hz, a rating, all `CHANNELS`) in FACED's layout, marked as simulated.

    Trial 1 is the clip that a subject saw first; which clip that is differs by subject.
    """
    from scipy.io import savemat

    root = Path(root)
    write_text(root / _MARKER, "These recordings are simulated: nobody's EEG, in the layout of FACED.\n")
    for subject, trials in groupby(recordings, key=lambda recording: recording.subject):
        seen = list(trials)
        clips = np.random.default_rng([subject, len(seen)]).permutation(len(seen))
        signals = np.zeros((len(seen), _ROWS, seen[0].signal.shape[1]))
        remark = np.zeros((len(seen), 1), dtype=[(name, object) for name in ("score", "trial", "vid")])
        for place, (recording, clip) in enumerate(zip(seen, clips, strict=True)):
            signals[clip, : len(CHANNELS)] = recording.pick(CHANNELS).signal
            score = np.full((1, 12), 3.5)
            score[0, [_VALENCE, _AROUSAL]] = va_to_rating(np.array(recording.valence_arousal), _LOW, _HIGH)
            remark[place, 0] = (score, float(place + 1), float(clip + 1))
        name = f"sub{subject:03d}"
        with atomic_path(root / _FOLDER / f"{name}.pkl") as temporary, open(temporary, "wb") as handle:
            pickle.dump(signals, handle, protocol=4)
        with atomic_path(root / _RATINGS / name / _REMARKS) as temporary, open(temporary, "wb") as handle:
            savemat(handle, {"After_remark": remark})


def _read(path: Path, subject: int, mat: Path, remarks: Mapping[str, np.ndarray]) -> Iterator[Recording]:
    (content,) = read_limited("faced", path, gibibytes=2, cpu_seconds=60)
    data, scores, seen = content["data"], remarks["score"], remarks["vid"]
    if data.ndim != 3 or data.shape[1] != _ROWS or not data.shape[2]:
        raise InputError(f"{path}: must be (clips, {_ROWS} channels, samples), got {data.shape}")
    if sorted(seen.tolist()) != list(range(1, len(data) + 1)):
        listed = ", ".join(f"{clip:g}" for clip in seen) or "none"
        raise InputError(f"{mat}: must have each of the {len(data)} clips in {path.name} once, has {listed}")
    if not np.isfinite(scores[:, [_VALENCE, _AROUSAL]]).all(axis=1).any():
        raise InputError(f"subject {subject} has no ratings: {mat} is without scores; take {path.name} away")
    for trial, (clip, score) in enumerate(zip(seen.astype(int).tolist(), scores, strict=True), start=1):
        rating, va, file = score[[_VALENCE, _AROUSAL]], None, mat
        try:
            if not np.isnan(rating).all():
                va = tuple(rating_to_va(rating, _LOW, _HIGH).tolist())
            file = path
            signal = data[clip - 1, : len(CHANNELS)]
            recording = Recording(subject, trial, signal, SFREQ, CHANNELS, va, stimulus=str(clip))
        except InputError as error:
            raise InputError(f"{file}, clip {clip}, seen in place {trial}: {error}") from None
        yield recording
