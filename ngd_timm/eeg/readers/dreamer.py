"""DREAMER: 23 people, 18 film clips, EEG of a 14-channel Emotiv EPOC at 128 Hz, in one MATLAB file of 450 MB."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ngd_timm.core.affect import rating_to_va, va_to_rating
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import atomic_path
from ngd_timm.eeg.readers.mat5 import MatArray, open_mat
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
_HEADER = ("EEG_SamplingRate", "EEG_Electrodes", "Provider")
_SCORES = {"ScoreValence": "valence", "ScoreArousal": "arousal"}
_OFFSET, _STEP = 4200.0, 0.51  # µV, as Emotiv's converter gives them


@dataclass(frozen=True)
class _Header:
    rate: float
    channels: tuple[str, ...]
    provider: str
    subjects: int


def read_dreamer(path: str | Path) -> RecordingSet:
    """Open DREAMER.mat.

    The file is passed over once now, for its rate and electrodes lie behind its data, and inflated once each time the
    result is iterated over, with one person's EEG in memory. Recordings are as the headset gave them: they carry about
    4200 µV of DC. Subjects and trials are numbered from 1 in the file's order, and so trial t is the same clip for
    everyone. ECG and dominance are left out.

    Args:
        path: The file, or a folder that holds it as DREAMER.mat.

    Raises:
        InputError: Names the file and what is wrong: not such a MAT file, damaged, a field that lacks. While iterating
            also trials and ratings that don't agree, or a rating outside 1 to 5; names subject and trial.

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
    with open_mat(file) as variables:
        header = _header(file, _variable(file, variables))
    simulated = header.provider == _PROVIDER
    return RecordingSet(
        dataset=_SIMULATED if simulated else _DATASET,
        files=(file,),
        read=partial(_recordings, file, header),
        notes={
            "rate": f"{header.rate:g} Hz, the file's own",
            "provider": header.provider,
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


def _variable(file: Path, variables: Iterator[MatArray]) -> MatArray:
    seen = []
    for variable in variables:
        if variable.name == "DREAMER":
            if variable.kind != "struct" or variable.shape != (1, 1):
                raise InputError(f"{file}: DREAMER must be one struct, got {variable.kind} of shape {variable.shape}")
            return variable
        seen.append(variable.name)
    raise InputError(f"{file}: not DREAMER.mat, which has a variable DREAMER; this has {', '.join(seen) or 'none'}")


def _header(file: Path, database: MatArray) -> _Header:
    _need(file, "DREAMER", database, ("Data", *_HEADER))
    found: dict[str, Any] = {}
    for name, member in database.members():
        if name == "Data":
            found[name] = int(np.prod(member.shape)) if member.kind == "cell" else 0
        elif name == "EEG_SamplingRate":
            found[name] = member.number()
        elif name == "EEG_Electrodes":
            found[name] = tuple(electrode.text().strip() for _, electrode in member.members())
        elif name == "Provider":
            found[name] = member.text()
        if len(found) == 1 + len(_HEADER):
            break
    if not found["Data"]:
        raise InputError(f"{file}: DREAMER.Data must be a cell array of subjects")
    return _Header(found["EEG_SamplingRate"], found["EEG_Electrodes"], found["Provider"], found["Data"])


def _recordings(file: Path, header: _Header) -> Iterator[Recording]:
    with open_mat(file) as variables:
        for name, member in _variable(file, variables).members():
            if name == "Data":
                for number, (_, person) in enumerate(member.members(), start=1):
                    yield from _subject(file, header, number, person)
        for _ in variables:  # to the end, where checksums are
            pass


def _subject(file: Path, header: _Header, number: int, person: MatArray) -> Iterator[Recording]:
    where = f"subject {number}"
    _need(file, where, person, ("EEG", *_SCORES))
    signals: dict[str, list[np.ndarray]] = {}
    scores: dict[str, np.ndarray] = {}
    for name, member in person.members():
        if name == "EEG":
            _need(file, f"{where}'s EEG", member, ("baseline", "stimuli"))
            for part, cells in member.members():
                if part in ("baseline", "stimuli"):
                    signals[part] = _signals(file, f"{where}'s {part}", len(header.channels), cells)
        elif name in _SCORES:
            scores[_SCORES[name]] = member.value().ravel()
    counts = {name: len(trials) for name, trials in signals.items()}
    counts |= {name: len(values) for name, values in scores.items()}
    if len(set(counts.values())) != 1:
        got = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise InputError(f"{file}: {where} must have as many ratings as trials, got {got}")
    for i in range(counts["stimuli"]):
        for axis, values in scores.items():
            if values.dtype.kind not in "fiu" or not _LOW <= values[i] <= _HIGH:
                raise InputError(f"{file}: {where}, trial {i + 1}: {axis} must be {_LOW} to {_HIGH}, got {values[i]}")
        valence, arousal = (float(rating_to_va(scores[axis][i], _LOW, _HIGH)) for axis in ("valence", "arousal"))
        try:
            yield Recording(
                number,
                i + 1,
                signals["stimuli"][i],
                header.rate,
                header.channels,
                (valence, arousal),
                signals["baseline"][i],
            )
        except InputError as error:
            raise InputError(f"{file}: {error}") from None


def _signals(file: Path, where: str, channels: int, cells: MatArray) -> list[np.ndarray]:
    """Each trial's (T, C) as (C, T) float32, whose 24 bits hold the converter's 14 and the DC with room to spare."""
    out = []
    for i, (_, cell) in enumerate(cells.members(), start=1):
        if cell.kind != "numeric" or len(cell.shape) != 2 or cell.shape[1] != channels or not cell.shape[0]:
            raise InputError(
                f"{file}: {where}, trial {i}: must be (samples, {channels} electrodes), got {cell.kind} {cell.shape}"
            )
        out.append(np.ascontiguousarray(cell.value().T, dtype=np.float32))
    return out


def _need(file: Path, where: str, array: MatArray, fields: Iterable[str]) -> None:
    missing = [name for name in fields if name not in array.fields]
    if missing:
        raise InputError(f"{file}: {where} lacks {', '.join(missing)}; it has {', '.join(array.fields) or 'no fields'}")
    if array.shape != (1, 1):
        raise InputError(f"{file}: {where} must be one struct, got shape {array.shape}")


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
