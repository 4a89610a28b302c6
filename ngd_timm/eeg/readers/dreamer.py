"""DREAMER: 23 people, 18 film clips, EEG of a 14-channel Emotiv EPOC at 128 Hz, in one MATLAB file of 450 MB."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ngd_timm.core.affect import rating_to_va, va_to_rating
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import atomic_path
from ngd_timm.eeg.readers.limited import read_limited
from ngd_timm.eeg.signal.electrodes import EMOTIV_14
from ngd_timm.eeg.signal.recording import Recording, RecordingSet

__all__ = ["CHANNELS", "read_dreamer", "write_dreamer"]

CHANNELS = EMOTIV_14

_NAME = "DREAMER.mat"
_DATASET = "DREAMER (Katsigiannis and Ramzan 2018), 14-channel Emotiv EPOC at 128 Hz, 18 film clips a person"
_SIMULATED = "simulated recordings in DREAMER's layout"
_PROVIDER = "ngd_timm: simulated signals in the layout of DREAMER.mat; nobody's EEG"  # marks a file as simulated
_RATE, _ECG_RATE = 128.0, 256.0  # Hz
_LOW, _HIGH = 1, 5  # rating scale
_SCORES = {"ScoreValence": "valence", "ScoreArousal": "arousal"}
_OFFSET, _STEP = 4200.0, 0.51  # µV, as Emotiv's converter gives them


def read_dreamer(path: str | Path) -> RecordingSet:
    """Open DREAMER.mat.

    The file is read once, now, with SciPy's `loadmat` in a child process, which needs some 2 GB of memory while it does
    (4 GiB at most); the EEG then stays in memory as float32, 0.8 GB for all of DREAMER, until the result is dropped.
    Recordings are as the headset gave them: they carry about 4200 µV of DC. Subjects and trials are numbered from 1 in
    the file's order, and so trial t is the same clip for everyone. ECG and dominance are left out.

    Args:
        path: The file, or a folder that holds it as DREAMER.mat.

    Raises:
        InputError: Not such a MAT file, damaged, larger than 4 GiB in memory, a field that is missing or not what it
            should be; names the file. While iterating: a rating outside 1 to 5, signals that aren't finite, trials and
            ratings that don't agree; names subject and trial.

    Example:
        >>> import tempfile
        >>> from ngd_timm.eeg.simulate.signals import simulate_recordings
        >>> folder = Path(tempfile.mkdtemp())
        >>> made = simulate_recordings(2, 3, 2.0, channels=CHANNELS, baseline_s=1.0, levels=5)
        >>> write_dreamer(folder / "DREAMER.mat", made)
        >>> data = read_dreamer(folder)
        >>> data.simulated, [str(recording) for recording in data][-1]
        (True, 'subject 2, trial 3')

    Reference:
        Katsigiannis and Ramzan, "DREAMER: A database for emotion recognition through EEG and ECG signals from wireless
        low-cost off-the-shelf devices", IEEE J. Biomed. Health Inform. 22 (2018), 98-107.
    """
    path = Path(path)
    file = path / _NAME if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"no file {file}; give the path of DREAMER.mat or of the folder that holds it")
    header, *subjects = read_limited("dreamer", file, gibibytes=4, cpu_seconds=300)
    provider = header["provider"].item()
    simulated = provider == _PROVIDER
    return RecordingSet(
        dataset=_SIMULATED if simulated else _DATASET,
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
    """Write simulated recordings as DREAMER.mat, field by field as the original has them.

    The headset's DC is added and its resolution imposed; ECG is noise; the provider's name says that all is simulated,
    and `read_dreamer` marks it so. Builds the file in memory, as `scipy.io.savemat` does.

    Args:
        path: The file, or an existing folder that gets a DREAMER.mat.
        recordings: With DREAMER's electrodes (others are left out), at 128 Hz, each with a baseline and a rating on a
            scale of 5; subjects and trials numbered from 1, in order, with equally many trials a subject.

    Raises:
        InputError: A recording that doesn't fit the layout; names subject and trial.
    """
    from scipy.io import savemat

    path = Path(path)
    people: list[list[dict[str, Any]]] = []
    for recording in recordings:
        if recording.subject == len(people) + 1:
            people.append([])
        if recording.subject != len(people) or recording.trial != len(people[-1]) + 1:
            raise InputError(f"{recording}: subjects and trials must be numbered from 1, in order")
        people[-1].append(_trial(recording))
    counts = sorted({len(trials) for trials in people})
    if len(counts) != 1:
        raise InputError(f"every subject must have as many trials, got {counts or 'no recordings'}")
    database = {
        "Data": _cells([_person(trials) for trials in people], (1, -1)),
        "EEG_SamplingRate": _RATE,
        "ECG_SamplingRate": _ECG_RATE,
        "EEG_Electrodes": _cells(CHANNELS, (1, -1)),
        "noOfSubjects": float(len(people)),
        "noOfVideoSequences": float(counts[0]),
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
    channels = tuple(header["channels"].tolist())
    for number, arrays in enumerate(subjects, start=1):
        counts = {axis: len(arrays[name]) for name, axis in _SCORES.items()}
        counts |= {part: sum(name.startswith(part) for name in arrays) for part in ("baseline", "stimuli")}
        if len(set(counts.values())) != 1:
            got = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise InputError(f"{file}: subject {number} must have as many ratings as trials, got {got}")
        for trial in range(1, counts["stimuli"] + 1):
            ratings = {axis: arrays[name][trial - 1] for name, axis in _SCORES.items()}
            for axis, rating in ratings.items():
                if not _LOW <= rating <= _HIGH:
                    raise InputError(
                        f"{file}: subject {number}, trial {trial}: {axis} must be {_LOW} to {_HIGH}, got {rating}"
                    )
            valence, arousal = (float(rating_to_va(rating, _LOW, _HIGH)) for rating in ratings.values())
            signal, baseline = arrays[f"stimuli{trial}"], arrays[f"baseline{trial}"]
            try:
                yield Recording(number, trial, signal, float(header["rate"]), channels, (valence, arousal), baseline)
            except InputError as error:
                raise InputError(f"{file}: {error}") from None


def _trial(recording: Recording) -> dict[str, Any]:
    if recording.valence_arousal is None or recording.baseline is None or recording.sfreq != _RATE:
        raise InputError(f"{recording}: DREAMER has a rating, a baseline and {_RATE:g} Hz in every trial")
    ratings = va_to_rating(np.array(recording.valence_arousal), _LOW, _HIGH)
    if np.abs(ratings - ratings.round()).max() > 1e-6:
        raise InputError(f"{recording}: ratings must be whole numbers on a scale of 5, got {ratings.tolist()}")
    picked = recording.pick(CHANNELS)
    assert picked.baseline is not None
    rng = np.random.default_rng([recording.subject, recording.trial])
    eeg = {"baseline": _as_emotiv(picked.baseline), "stimuli": _as_emotiv(picked.signal)}
    ratio = round(_ECG_RATE / _RATE)
    ecg = {part: rng.integers(1800, 2200, (len(values) * ratio, 2)).astype(float) for part, values in eeg.items()}
    return {"EEG": eeg, "ECG": ecg, "ratings": ratings.round()}


def _as_emotiv(signal: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.round((signal.T.astype(np.float64) + _OFFSET) / _STEP) * _STEP)


def _person(trials: list[dict[str, Any]]) -> dict[str, Any]:
    def parts(kind: str) -> dict[str, np.ndarray]:
        return {part: _cells([trial[kind][part] for trial in trials], (-1, 1)) for part in ("baseline", "stimuli")}

    ratings = np.array([trial["ratings"] for trial in trials])
    return {
        "Age": "n/a",
        "Gender": "n/a",
        "EEG": parts("EEG"),
        "ECG": parts("ECG"),
        "ScoreValence": ratings[:, :1],
        "ScoreArousal": ratings[:, 1:],
        "ScoreDominance": np.full((len(trials), 1), 3.0),
    }


def _cells(items: Iterable[Any], shape: tuple[int, int]) -> np.ndarray:
    values = list(items)
    out = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):  # one by one: numpy would stack arrays of equal shape
        out[i] = value
    return out.reshape(shape)
