"""Simulated recordings in the BIDS layouts of two of OpenNeuro's sets: DENS (ds003751) and ds002721."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ngd_timm.core.affect import va_to_rating
from ngd_timm.core.files import atomic_path, write_json, write_text
from ngd_timm.eeg.readers.bids import SIMULATOR
from ngd_timm.eeg.signal.recording import Recording

DENS_CHANNELS = tuple(f"E{number}" for number in range(1, 129))
"""The electrodes of EGI's HydroCel net."""

MUSIC_CHANNELS = (
    *("FP1", "FP2", "F7", "F3", "Fz", "F4", "F8", "T3", "C3", "Cz"),
    *("C4", "T4", "T5", "P3", "Pz", "P4", "T6", "O1", "O2"),
)
"""The electrodes of ds002721, in the files' order."""

_OTHERS = {"E129": "REF", "ECG": "ECG", "EMG": "EMG", "EMG_2": "EMG"}
_MUSIC_RUNS = (2, 3, 4, 5)  # of ds002721; before and after them is rest
_QUESTIONS = ("pleasant", "energetic", "tense", "angry", "afraid", "happy", "sad", "tender")  # 800 to 807


def write_dens(root: str | Path, recordings: Iterable[Recording]) -> None:
    """Write recordings (250 Hz, ratings from 1 to 9, `DENS_CHANNELS`) in the layout of DENS, marked as simulated.

    A file a person: EEGLAB's .set with the data in .fdt; events in samples (not BIDS's seconds), of which `stm` begins
    a clip, whose `label` is its name and the trial's number, and `vlnc` asks for its valence; ratings in beh/, by the
    name of the clip's file. Clips come in an order of each person's own.

    Reference:
        https://openneuro.org/datasets/ds003751; Asif et al., "Emotion recognition using temporally localized emotional
        events in EEG with naturalistic context: DENS dataset", IEEE Access 11 (2023).
    """
    root = Path(root)
    _describe(root, "Dataset on Emotion with Naturalistic Stimuli (DENS)", "10.18112/openneuro.ds003751.v1.0.6")
    people = []
    for subject, trials in groupby(recordings, key=lambda recording: recording.subject):
        name = f"sub-mit{subject:03d}"
        people.append(name)
        folder, stem = root / name / "eeg", f"{name}_task-Emotion"
        shown, rng = list(trials), np.random.default_rng(subject)
        clips = iter((rng.permutation(len(shown)) + 1).tolist())
        events: list[tuple[int, int, str, str]] = []
        ratings: list[tuple[Any, ...]] = []
        length = 0
        with atomic_path(folder / f"{stem}_eeg.fdt") as temporary, open(temporary, "wb") as handle:
            for part in _with_gaps(shown, DENS_CHANNELS, rng):
                signal = part.signal if isinstance(part, Recording) else part
                if isinstance(part, Recording):
                    clip, place = f"clip{next(clips):02d}", len(ratings) + 1
                    events.append((length, 1, "stm", f"{clip}_{place}"))
                    events.append((length + signal.shape[1], 1, "vlnc", f"vlnc_{place}"))
                    valence, arousal = va_to_rating(np.array(part.valence_arousal), 1, 9).tolist()
                    ratings.append((f"{clip}.mp4", valence, arousal, 5, 5, 1, 5))
                length += signal.shape[1]
                others = np.zeros((len(_OTHERS), signal.shape[1]))
                np.concatenate([signal, others]).astype("<f4").T.tofile(handle)  # µV, all channels of a sample together
        _write_set(folder / f"{stem}_eeg.set", (*DENS_CHANNELS, *_OTHERS), length, 250.0)
        write_json(folder / f"{stem}_eeg.json", {"TaskName": "Emotion", "SamplingFrequency": 250})
        kinds = [(channel, "EEG", "uV") for channel in DENS_CHANNELS] + [(*item, "uV") for item in _OTHERS.items()]
        _write_tsv(folder / f"{stem}_channels.tsv", ("name", "type", "units"), kinds)
        _write_tsv(folder / f"{name}_task-emotion_events.tsv", ("onset", "duration", "trial_type", "label"), events)
        columns = ("stimuliName", "valence", "arousal", "dominance", "liking", "familiarity", "relevance")
        _write_tsv(root / name / "beh" / f"{stem}_beh.tsv", columns, ratings)
    _write_tsv(root / "participants.tsv", ("participant_id",), [(name,) for name in people])


def write_ds002721(root: str | Path, recordings: Iterable[Recording]) -> None:
    """Write recordings (1000 Hz, ratings from 1 to 9, `MUSIC_CHANNELS`) in ds002721's layout, marked as simulated.

    A person's trials are spread over the EDF files `task-run2` to `task-run5`, between two of rest. Events are codes:
    300 and a clip's number, 788 for its music, and 800 to 807 for the questions, each at once with its answer, 832 and
    a rating.

    Reference:
        https://openneuro.org/datasets/ds002721, whose events.json explains the codes; Daly et al., "Neural and
        physiological data from participants listening to affective music", Sci. Data 7 (2020).
    """
    root = Path(root)
    _describe(root, "An EEG dataset recorded during affective music listening", "10.18112/openneuro.ds002721.v1.0.3")
    people = []
    for subject, of_subject in groupby(recordings, key=lambda recording: recording.subject):
        name, trials = f"sub-{subject:02d}", list(of_subject)
        people.append(name)
        rng = np.random.default_rng(subject)
        clips = rng.permutation(len(trials)) + 1
        runs = np.array_split(np.arange(len(trials)), len(_MUSIC_RUNS))
        for run in (1, *_MUSIC_RUNS, 6):
            rows = runs[run - 2].tolist() if run in _MUSIC_RUNS else []
            _write_run(root / name / "eeg", f"{name}_task-run{run}", [(trials[k], int(clips[k])) for k in rows], rng)
    _write_tsv(root / "participants.tsv", ("participant_id",), [(name,) for name in people])


def _write_run(folder: Path, stem: str, trials: Sequence[tuple[Recording, int]], rng: np.random.Generator) -> None:
    from edfio import Edf, EdfSignal

    sfreq = 1000.0
    parts: list[np.ndarray] = []
    events: list[tuple[float, float, int]] = []
    onset = 0.0
    for part in _with_gaps([recording for recording, _ in trials], MUSIC_CHANNELS, rng, sfreq):
        if isinstance(part, Recording):
            clip, seconds = trials[len(parts) // 2][1], part.seconds
            valence, arousal = va_to_rating(np.array(part.valence_arousal), 1, 9).round().astype(int).tolist()
            answers = {"pleasant": valence, "energetic": arousal}
            events += [(onset, 0, 300 + clip), (onset, seconds, 788)]
            for place, question in enumerate(_QUESTIONS, start=1):
                asked = onset + seconds + place * seconds / (len(_QUESTIONS) + 1)
                events += [(asked, 0, 799 + place), (asked, 0, 832 + answers.get(question, 5))]
        parts.append(part.signal if isinstance(part, Recording) else part)
        onset += parts[-1].shape[1] / sfreq
    signal = np.concatenate(parts, axis=1).astype(np.float64).clip(-3276.8, 3276.7)
    signal = signal[:, : int(onset) * round(sfreq)]  # whole records of 1 s
    edf = Edf(
        [
            EdfSignal(values, sfreq, label=name, physical_dimension="uV", physical_range=(-3276.8, 3276.7))
            for name, values in zip(MUSIC_CHANNELS, signal, strict=True)
        ],
        data_record_duration=1,
    )
    with atomic_path(folder / f"{stem}_eeg.edf") as temporary:
        edf.write(temporary)
    write_json(folder / f"{stem}_eeg.json", {"TaskName": stem.rpartition("-")[2], "SamplingFrequency": sfreq})
    _write_tsv(
        folder / f"{stem}_channels.tsv", ("name", "type", "units"), [(name, "EEG", "uV") for name in MUSIC_CHANNELS]
    )
    _write_tsv(folder / f"{stem}_events.tsv", ("onset", "duration", "trial_type"), events)


def _with_gaps(
    trials: Iterable[Recording], channels: Sequence[str], rng: np.random.Generator, sfreq: float = 250.0
) -> Iterator[Recording | np.ndarray]:
    """Trials between noise, in which a person answers: as long as the trial, and 10 s where there is none."""
    samples = round(10 * sfreq)

    def noise() -> np.ndarray:
        return rng.normal(0, 5, (len(channels), samples)).astype(np.float32)

    for trial in trials:
        samples = trial.signal.shape[1]
        yield noise()
        yield trial.pick(channels)
    yield noise()


def _write_set(path: Path, channels: Sequence[str], samples: int, sfreq: float) -> None:
    """EEGLAB's description of a .fdt of the same name."""
    from scipy.io import savemat

    eeg = {
        "setname": path.stem,
        "nbchan": float(len(channels)),
        "trials": 1.0,
        "pnts": float(samples),
        "srate": sfreq,
        "xmin": 0.0,
        "xmax": (samples - 1) / sfreq,
        "data": path.with_suffix(".fdt").name,
        "chanlocs": np.array([(name,) for name in channels], dtype=[("labels", object)]),
        "event": np.empty((0, 0)),
        "epoch": np.empty((0, 0)),
    }
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        savemat(handle, {"EEG": eeg})


def _describe(root: Path, name: str, doi: str) -> None:
    maker = {"Name": SIMULATOR, "Description": "simulated: nobody's EEG, in the layout of this data set"}
    description = {"Name": name, "BIDSVersion": "1.0.2", "License": "CC0", "DatasetDOI": f"doi:{doi}"}
    write_json(root / "dataset_description.json", description | {"GeneratedBy": [maker]})


def _write_tsv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    cells = ([f"{cell:.10g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)
    write_text(path, "".join("\t".join(row) + "\n" for row in (columns, *cells)))
