"""DREAMER: 23 subjects, 18 film clips, EEG of a 14-channel Emotiv EPOC at 128 Hz, in one MATLAB file of 450 MB."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ngd_timm.core.affect import rating_to_va, va_to_rating
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import atomic_path
from ngd_timm.eeg.readers.limited import read_limited
from ngd_timm.eeg.signal.recording import EMOTIV_14, Recording, RecordingSet

CHANNELS = EMOTIV_14

_NAME = "DREAMER.mat"
_DATASET = "DREAMER (Katsigiannis and Ramzan 2018), 14-channel Emotiv EPOC at 128 Hz, 18 film clips a person"
_PROVIDER = "ngd_timm: simulated signals in the layout of DREAMER.mat; nobody's EEG"  # marks a file as simulated
_RATE, _ECG_RATE = 128.0, 256.0  # Hz
_LOW, _HIGH = 1, 5  # rating scale
_OFFSET, _STEP = 4200.0, 0.51  # µV, as Emotiv's converter gives them


def read_dreamer(path: str | Path) -> RecordingSet:
    """Open DREAMER.mat, or the folder that holds it; ECG and dominance are left out.

    SciPy's `loadmat` needs some 2 GB in a child process; the EEG then takes 0.8 GB as float32.
    """
    path = Path(path)
    file = path / _NAME if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"no file {file}; give the path of DREAMER.mat or of the folder that holds it")
    header, *subjects = read_limited("dreamer", file, gibibytes=4, cpu_seconds=300)
    provider = header["provider"].item()
    simulated = provider == _PROVIDER
    return RecordingSet(
        dataset="simulated recordings in DREAMER's layout" if simulated else _DATASET,
        files=(file,),
        read=partial(_recordings, file, header, subjects),
        notes={
            "rate": f"{header['rate']:g} Hz, the file's own",
            "provider": provider,
            "trial": "the same film clip for everyone",
            "left_out": "ECG, dominance",
        },
        simulated=simulated,
    )


def write_dreamer(path: str | Path, recordings: Iterable[Recording]) -> None:
    """Write recordings as DREAMER.mat, with all of its fields, marked as simulated by the provider's name.

    They have 128 Hz, a baseline, a rating on a scale of 5, and equally many trials a subject; ECG is noise.
    """
    from scipy.io import savemat

    path = Path(path)
    by_subject = groupby(recordings, key=lambda recording: recording.subject)
    subjects = [_subject(trials) for _, trials in by_subject]
    database = {
        "Data": _cells(subjects, (1, -1)),
        "EEG_SamplingRate": _RATE,
        "ECG_SamplingRate": _ECG_RATE,
        "EEG_Electrodes": _cells(CHANNELS, (1, -1)),
        "noOfSubjects": float(len(subjects)),
        "noOfVideoSequences": float(len(subjects[0]["ScoreValence"])),
        "Disclaimer": "Simulated. Not the DREAMER database; only its layout.",
        "Provider": _PROVIDER,
        "Version": "1.0",
        "Acknowledgement": "None.",
    }
    with atomic_path(path / _NAME if path.is_dir() else path) as temporary, open(temporary, "wb") as handle:
        savemat(handle, {"DREAMER": database}, do_compression=True)


def _recordings(
    file: Path, header: Mapping[str, np.ndarray], subjects: Sequence[Mapping[str, np.ndarray]]
) -> Iterator[Recording]:
    channels, rate = tuple(header["channels"].tolist()), float(header["rate"])
    for number, arrays in enumerate(subjects, start=1):
        scores = {"valence": arrays["ScoreValence"], "arousal": arrays["ScoreArousal"]}
        counts = {axis: len(values) for axis, values in scores.items()}
        counts |= {part: sum(name.startswith(part) for name in arrays) for part in ("baseline", "stimuli")}
        if len(set(counts.values())) != 1:
            got = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise InputError(f"{file}: subject {number} must have as many ratings as trials, got {got}")
        for trial in range(1, counts["stimuli"] + 1):
            try:
                ratings = np.array([values[trial - 1] for values in scores.values()])
                va = tuple(rating_to_va(ratings, _LOW, _HIGH).tolist())
                signal, baseline = arrays[f"stimuli{trial}"], arrays[f"baseline{trial}"]
                recording = Recording(number, trial, signal, rate, channels, va, baseline, str(trial))
            except InputError as error:
                where = f"subject {number}, trial {trial}: "
                raise InputError(f"{file}: {where}{str(error).removeprefix(where)}") from None
            yield recording


def _subject(recordings: Iterable[Recording]) -> dict[str, Any]:
    eeg, ecg, ratings = defaultdict(list), defaultdict(list), []
    for recording in recordings:
        picked, rng = recording.pick(CHANNELS), np.random.default_rng([recording.subject, recording.trial])
        assert picked.baseline is not None
        for part, signal in (("baseline", picked.baseline), ("stimuli", picked.signal)):
            steps = np.round((signal.T.astype(np.float64) + _OFFSET) / _STEP)
            eeg[part].append(np.ascontiguousarray(steps * _STEP))
            ecg[part].append(rng.integers(1800, 2200, (len(steps) * round(_ECG_RATE / _RATE), 2)).astype(float))
        ratings.append(va_to_rating(np.array(recording.valence_arousal), _LOW, _HIGH).round())
    return {
        "Age": "n/a",
        "Gender": "n/a",
        "EEG": {part: _cells(values, (-1, 1)) for part, values in eeg.items()},
        "ECG": {part: _cells(values, (-1, 1)) for part, values in ecg.items()},
        "ScoreValence": np.array(ratings)[:, :1],
        "ScoreArousal": np.array(ratings)[:, 1:],
        "ScoreDominance": np.full((len(ratings), 1), 3.0),
    }


def _cells(values: Sequence[Any], shape: tuple[int, int]) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):  # one by one: numpy would stack arrays of equal shape
        out[i] = value
    return out.reshape(shape)
