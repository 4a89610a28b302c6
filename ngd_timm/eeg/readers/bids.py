"""EEG data sets in BIDS, read by MNE-BIDS: the ratings are columns of events.tsv, or of a table of yours."""

from __future__ import annotations

import json
import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ngd_timm.core.affect import rating_to_va
from ngd_timm.core.errors import InputError, one_line
from ngd_timm.core.table import read_table
from ngd_timm.eeg.readers.own import eeg_picks, microvolts, recording_files, regular_files
from ngd_timm.eeg.signal.bandpower import SET
from ngd_timm.eeg.signal.recording import Recording, RecordingSet
from ngd_timm.eeg.topomap import standard_montage

if TYPE_CHECKING:
    from mne_bids import BIDSPath

SIMULATOR = "ngd teacher simulate"
"""The `GeneratedBy` of a simulated set's dataset_description.json."""

logger = logging.getLogger("ngd_timm.eeg")

_FORMATS = [".edf", ".EDF", ".bdf", ".vhdr", ".set"]  # BIDS's for EEG
_ENTITIES = {"session": "ses", "task": "task", "run": "run"}  # columns of a table, and what BIDS calls them
_NOTHING = ("", "n/a")


@dataclass(frozen=True)
class _Columns:
    """Which columns hold what, and the ends of the scale."""

    valence: str
    arousal: str
    stimulus: str | None
    scale: tuple[float, float]

    @property
    def needed(self) -> tuple[str, ...]:
        return ("onset", "duration", self.valence, self.arousal, *([self.stimulus] if self.stimulus else []))


@dataclass(frozen=True)
class _Trial:
    """A row of events.tsv or of a table: seconds from the recording's begin, and the rating."""

    where: str
    onset: float
    duration: float
    valence_arousal: tuple[float, float] | None
    stimulus: str | None


def read_bids(
    root: str | Path,
    *,
    valence: str = "valence",
    arousal: str = "arousal",
    stimulus: str | None = None,
    scale: tuple[float, float] = (1.0, 9.0),
    ratings: str | Path | None = None,
) -> RecordingSet:
    """Open a BIDS data set of EEG; needs `pip install 'ngd-timm[bids]'`.

    A trial is a row of events.tsv that has a rating, from its onset for its duration. Or it is a row of `ratings`, a
    table (.tsv, or .csv with commas) with the columns `participant_id`, `onset` and `duration` (seconds from the begin
    of the recording), where a subject has several recordings `session`, `task` or `run`, and the ratings; both empty
    where nobody rated. Subjects whom the table doesn't name are left out. Bad channels are left out by channels.tsv,
    and names get the case of the 10-05 system (FP1 is Fp1).

    Args:
        root: The folder of dataset_description.json.
        valence: A column.
        arousal: A column.
        stimulus: A column, or None where nobody knows who met the same.
        scale: The lowest and the highest rating there can be.
        ratings: The table.

    Raises:
        InputError: Columns that aren't there, subjects without ratings, ratings outside the scale, rows that fit no
            recording or several, trials beyond their recording.

    Reference:
        Pernet et al., "EEG-BIDS, an extension to the brain imaging data structure for electroencephalography", Sci.
        Data 6 (2019); Appelhoff et al., "MNE-BIDS", JOSS 4 (2019).
    """
    root, columns = Path(root), _Columns(valence, arousal, stimulus, scale)
    description = _description(root)
    paths = _find_recordings(root)
    left_out: Counter[str] = Counter()
    table = None if ratings is None else Path(ratings)
    if table is None:
        trials = _trials_of_events(paths, columns, left_out)
    else:
        trials = _trials_of_table(table, paths, columns, left_out)
    rated = {path.subject for path, rows in trials.items() if any(trial.valence_arousal for trial in rows)}
    unrated = sorted({path.subject for path in (paths if table is None else trials)} - rated)
    if unrated:
        remedy = "list the others in a table, data.ratings" if table is None else f"take its rows out of {table}"
        raise InputError(f"{root}: sub-{unrated[0]} has no ratings of {valence} and {arousal}; {remedy}")
    numbers = _numbers([path.subject for path in paths])
    files = dict.fromkeys(file for path in trials for file in _files(path))
    notes = {"licence": str(description.get("License", "not given")), "doi": str(description.get("DatasetDOI", "none"))}
    if left_out:
        notes["left out"] = ", ".join(f"{count} {why}" for why, count in left_out.items())
        logger.info("%s: left out: %s", root, notes["left out"])
    makers = description.get("GeneratedBy")
    makers = makers if isinstance(makers, list) else []
    simulated = any(isinstance(maker, dict) and maker.get("Name") == SIMULATOR for maker in makers)
    name = " ".join(str(description.get("Name", root.name)).split())[:200]
    return RecordingSet(
        dataset=f"simulated recordings in the layout of {name}" if simulated else f"{name}, in BIDS",
        files=(root / "dataset_description.json", *files, *([table] if table else [])),
        read=lambda: _read_all(trials, numbers),
        notes=notes,
        simulated=simulated,
    )


def _mne_bids() -> Any:
    try:
        import mne_bids
    except ImportError:
        raise InputError("reading BIDS data sets needs MNE-BIDS: pip install 'ngd-timm[bids]'") from None
    return mne_bids


def _description(root: Path) -> Mapping[str, Any]:
    path = root / "dataset_description.json"
    if not path.is_file():
        raise InputError(f"no file {path}; set data.root to the folder of a BIDS data set, which has one")
    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    return description if isinstance(description, dict) else {}


def _find_recordings(root: Path) -> list[BIDSPath]:
    matching = _mne_bids().find_matching_paths
    paths = matching(root, datatypes="eeg", suffixes="eeg", extensions=_FORMATS, ignore_nosub=True)
    if not paths:
        raise InputError(f"{root}: no sub-…/eeg/…_eeg with one of {', '.join(_FORMATS)}; get the files of its EEG")
    return sorted(paths, key=lambda path: str(path.fpath))


def _trials_of_events(
    paths: Sequence[BIDSPath], columns: _Columns, left_out: Counter[str]
) -> dict[BIDSPath, list[_Trial]]:
    """The rated rows of each recording's events.tsv; a recording whose events have no such columns is left out."""
    trials: dict[BIDSPath, list[_Trial]] = {}
    seen: dict[str, None] = {}
    for path in paths:
        file = _sidecar(path, "events")
        if file is None:
            left_out["recordings without events.tsv"] += 1
            continue
        names, rows = _table(file)
        seen |= dict.fromkeys(names)
        if not set(columns.needed) <= set(names):
            left_out[f"recordings without {columns.valence} and {columns.arousal} in events.tsv"] += 1
            continue
        rated = {
            where: cells
            for where, cells in rows.items()
            if any(cells[name] not in _NOTHING for name in (columns.valence, columns.arousal))
        }
        trials[path] = _in_order(_check_row(where, cells, columns) for where, cells in rated.items())
    if not trials:
        missing = ", ".join(name for name in columns.needed if name not in seen)
        if not seen:
            raise InputError(f"{paths[0].root}: no recording has an events.tsv; name a table of trials in data.ratings")
        raise InputError(
            f"{paths[0].root}: no events.tsv has the column{'s' * (', ' in missing)} {missing}; there are "
            f"{', '.join(seen)}; name columns in data.valence, data.arousal and data.stimulus (null: not "
            "known), or a table in data.ratings"
        )
    return trials


def _trials_of_table(
    table: Path, paths: Sequence[BIDSPath], columns: _Columns, left_out: Counter[str]
) -> dict[BIDSPath, list[_Trial]]:
    names, rows = _table(table)
    missing = [name for name in ("participant_id", *columns.needed) if name not in names]
    if missing:
        raise InputError(
            f"{table}: lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; there are {', '.join(names)}"
        )
    trials: dict[BIDSPath, list[_Trial]] = defaultdict(list)
    for where, cells in rows.items():
        wanted = {"sub": cells["participant_id"].removeprefix("sub-")}
        wanted |= {key: cells[name] for name, key in _ENTITIES.items() if cells.get(name, "") not in _NOTHING}
        fitting = [path for path in paths if wanted.items() <= _entities(path).items()]
        if len(fitting) != 1:
            what = "_".join(f"{key}-{value}" for key, value in wanted.items())
            remedy = "name one by the columns session, task or run" if fitting else "take the row out, or get its files"
            raise InputError(f"{where}: {len(fitting)} recordings of {what}; {remedy}")
        trials[fitting[0]].append(_check_row(where, cells, columns))
    if not trials:
        raise InputError(f"{table}: has no rows")
    strangers = {path.subject for path in paths} - {path.subject for path in trials}
    if strangers:
        left_out[f"subjects without a row in {table.name}"] = len(strangers)
    return {path: _in_order(trials[path]) for path in paths if path in trials}


def _entities(path: BIDSPath) -> dict[str, str]:
    short = {"subject": "sub", **_ENTITIES}
    return {short[name]: value for name, value in path.entities.items() if name in short and value is not None}


def _table(path: Path) -> tuple[list[str], dict[str, dict[str, str]]]:
    return read_table(path, "," if path.suffix == ".csv" else "\t")


def _check_row(where: str, cells: Mapping[str, str], columns: _Columns) -> _Trial:
    def number(name: str) -> float:
        try:
            value = float(cells[name])
        except ValueError:
            value = float("nan")
        if not np.isfinite(value):
            raise InputError(f"{where}: {name} must be a number, got '{cells[name]}'")
        return value

    onset, duration, va = number("onset"), number("duration"), None
    if duration <= 0:
        raise InputError(f"{where}: has a rating and no duration; give the trial's length, in data.ratings if not here")
    given = [name for name in (columns.valence, columns.arousal) if cells[name] not in _NOTHING]
    if len(given) == 1:
        raise InputError(f"{where}: has {given[0]} alone; give both ratings, or neither where nobody rated")
    if rating := [number(name) for name in given]:
        try:
            va = tuple(rating_to_va(np.array(rating), *columns.scale).tolist())
        except InputError as error:
            raise InputError(f"{where}: {error}; give the scale's ends in data.scale") from None
    name = cells[columns.stimulus] if columns.stimulus else ""
    return _Trial(where, onset, duration, va, None if name in _NOTHING else name)


def _in_order(trials: Iterator[_Trial] | Sequence[_Trial]) -> list[_Trial]:
    return sorted(trials, key=lambda trial: trial.onset)


def _numbers(labels: Sequence[str]) -> dict[str, int]:
    """Each subject's number: its label's where all are numbers that pooled sets take, else its place among them."""
    names = sorted(set(labels))
    numbers = [int(name) if name.isdecimal() and len(name) < 10 else -1 for name in names]
    if min(numbers) < 0 or max(numbers) >= SET or len(set(numbers)) < len(names):
        numbers = list(range(1, len(names) + 1))
    return dict(zip(names, numbers, strict=True))


def _files(path: BIDSPath) -> list[Path]:
    """A recording's own files; what else MNE-BIDS may open is looked at as well."""
    regular_files([*path.root.iterdir(), *(path.root / f"sub-{path.subject}").rglob("*")])
    sidecars = (_sidecar(path, "events"), _sidecar(path, "channels"))
    return [*recording_files(path.fpath), *(file for file in sidecars if file is not None)]


def _sidecar(path: BIDSPath, suffix: str) -> Path | None:
    """The events.tsv or channels.tsv of a recording; DENS writes a task in capitals in one name and not in another."""
    found = path.find_matching_sidecar(suffix=suffix, extension=".tsv", on_error="ignore")
    if found is not None:
        return Path(found)
    name = f"{path.fpath.stem.rpartition('_')[0]}_{suffix}.tsv".lower()
    return next((file for file in sorted(path.directory.glob("*.tsv")) if file.name.lower() == name), None)


def _read_all(trials: Mapping[BIDSPath, Sequence[_Trial]], numbers: Mapping[str, int]) -> Iterator[Recording]:
    counts: Counter[str] = Counter()
    for path, rows in trials.items():
        if not rows:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of onsets beyond the recording, which are looked at below
                raw = _mne_bids().read_raw_bids(path, verbose="error")
        except Exception as error:  # a reader for each format, and no common type of error
            raise InputError(f"{path.fpath}: MNE-BIDS can't read it ({one_line(error)})") from error
        picks, sfreq = eeg_picks(raw), float(raw.info["sfreq"])
        channels = tuple(_standard_names().get(raw.ch_names[pick].upper(), raw.ch_names[pick]) for pick in picks)
        for trial in rows:
            counts[path.subject] += 1
            start, length = round(trial.onset * sfreq), round(trial.duration * sfreq)
            if start < 0 or start + length > raw.n_times + 1 or length < 2:
                raise InputError(
                    f"{trial.where}: {trial.onset:g} s and {trial.duration:g} s from there on is not within the "
                    f"{raw.n_times / sfreq:g} s of {path.fpath.name}; BIDS has onset and duration in seconds"
                )
            try:
                signal = microvolts(raw, picks, (start, min(start + length, raw.n_times)))
                number, va = numbers[path.subject], trial.valence_arousal
                recording = Recording(number, counts[path.subject], signal, sfreq, channels, va, None, trial.stimulus)
            except Exception as error:  # a truncated file
                raise InputError(f"{trial.where}: {path.fpath.name} can't be read there ({one_line(error)})") from error
            yield recording


@lru_cache(maxsize=1)
def _standard_names() -> dict[str, str]:
    return {name.upper(): name for name in standard_montage("standard_1005").ch_names}
