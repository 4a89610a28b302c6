"""Anybody's own EEG: whatever MNE opens, cut at annotations, with ratings from a table."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ngd_timm.core.affect import rating_to_va
from ngd_timm.core.errors import InputError, choices
from ngd_timm.eeg.signal.recording import Recording, RecordingSet

if TYPE_CHECKING:
    import mne

__all__ = ["read_recordings", "recordings_from_raw"]

_REQUIRED = ("file", "subject", "annotation", "valence", "arousal")
_OPTIONAL = ("trial", "baseline", "seconds", "low", "high")


@dataclass(frozen=True)
class _Row:
    where: str
    file: Path
    subject: int
    trial: int
    annotation: str
    valence_arousal: tuple[float, float] | None
    baseline: str | None
    seconds: float | None


def recordings_from_raw(
    raw: mne.io.BaseRaw,
    subject: int,
    ratings: Mapping[str, tuple[float, float] | None],
    baseline: str | None = None,
    seconds: float | None = None,
) -> Iterator[Recording]:
    """Cut a raw at its annotations: each one that `ratings` names is a trial, numbered from 1 in order of time.

    Args:
        raw: EEG in volts, as MNE has it; channels of type EEG that aren't marked bad are taken.
        subject: A number for the person.
        ratings: By an annotation's description: (valence, arousal) in [-1, 1], or None where nobody rated.
        baseline: The description of the rest before trials; a trial's is the last that ends before it begins.
        seconds: Length of a trial, for annotations that only mark its begin; None: the annotation's own.

    Raises:
        InputError: A description that no annotation has, no EEG channels, a trial without length or baseline.

    Example:
        >>> import mne
        >>> info = mne.create_info(["Fz", "Cz", "Pz", "HEOG"], 128.0, ["eeg", "eeg", "eeg", "eog"], verbose="error")
        >>> volts = np.random.default_rng(0).normal(0, 1e-5, (4, 128 * 20))
        >>> raw = mne.io.RawArray(volts, info, verbose="error")
        >>> marks = mne.Annotations(onset=[0, 4, 12], duration=[4, 6, 6], description=["rest", "comedy", "news"])
        >>> raw = raw.set_annotations(marks, verbose="error")
        >>> ratings = {"comedy": (0.8, 0.5), "news": None}
        >>> for recording in recordings_from_raw(raw, subject=1, ratings=ratings, baseline="rest"):
        ...     print(recording, recording.channels, recording.seconds, recording.valence_arousal)
        subject 1, trial 1 ('Fz', 'Cz', 'Pz') 6.0 (0.8, 0.5)
        subject 1, trial 2 ('Fz', 'Cz', 'Pz') 6.0 None
    """
    descriptions = raw.annotations.description
    for name in ratings:
        if name not in descriptions:
            raise choices("annotation", name, sorted(set(descriptions)))
    chosen = [i for i in np.argsort(raw.annotations.onset, kind="stable") if descriptions[i] in ratings]
    for trial, index in enumerate(chosen, 1):
        yield _cut(raw, int(index), subject, trial, ratings[descriptions[index]], baseline, seconds)


def read_recordings(table: str | Path) -> RecordingSet:
    """Own recordings, described by a CSV: a row a trial.

    Columns: `file` (any format that MNE opens, relative to the CSV), `subject` (a number), `annotation` (its
    description; it has to occur once in the file), `valence` and `arousal` (both empty where nobody rated). And
    where needed: `trial` (a number; else rows are numbered within a subject), `baseline` (the description of the rest
    before the trial), `seconds` (for annotations that only mark a begin), `low` and `high` (the rating scale's ends,
    -1 and 1 if not given). Triggers in a channel become annotations by `mne.annotations_from_events`.

    Args:
        table: The CSV; UTF-8, with commas.

    Raises:
        InputError: Names the row and what is wrong with it.

    Example:
        >>> import tempfile
        >>> import mne
        >>> folder = Path(tempfile.mkdtemp())
        >>> info = mne.create_info(["Fz", "Cz"], 128.0, "eeg", verbose="error")
        >>> raw = mne.io.RawArray(np.random.default_rng(0).normal(0, 1e-5, (2, 1280)), info, verbose="error")
        >>> raw = raw.set_annotations(mne.Annotations([1, 5], [4, 5], ["comedy", "news"]), verbose="error")
        >>> raw.save(folder / "anna_raw.fif", verbose="error")  # doctest: +ELLIPSIS
        [...]
        >>> text = "file,subject,annotation,valence,arousal,low,high\\n"
        >>> text += "anna_raw.fif,1,comedy,8,6,1,9\\nanna_raw.fif,1,news,,,,\\n"
        >>> _ = (folder / "mine.csv").write_text(text)
        >>> recordings = read_recordings(folder / "mine.csv")
        >>> recordings.dataset, [recording.valence_arousal for recording in recordings]
        ('own recordings (mine)', [(0.75, 0.25), None])
    """
    path = Path(table)
    if not path.is_file():
        raise InputError(f"no file {path}; set data.root to a CSV with the columns {', '.join(_REQUIRED)}")
    rows = _rows(path)
    by_file: dict[Path, list[_Row]] = {}
    for row in rows:
        by_file.setdefault(row.file, []).append(row)
    files = dict.fromkeys([path, *(part for file in by_file for part in _parts(file))])
    return RecordingSet(f"own recordings ({path.stem})", tuple(files), read=lambda: _read_all(by_file))


def _rows(path: Path) -> list[_Row]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, strict=True)
            given = list(reader.fieldnames or ())
            _check_columns(path, given)
            rows: list[_Row] = []
            counts: dict[int, int] = {}
            for cells in reader:
                where = f"{path}, row {reader.line_num}"
                if None in cells or None in cells.values():
                    raise InputError(f"{where}: must have {len(given)} cells, as the first row has")
                row = _row(path.parent, where, {key: value.strip() for key, value in cells.items()}, counts)
                rows.append(row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as a UTF-8 CSV ({error})") from None
    if not rows:
        raise InputError(f"{path}: has no rows")
    _check_trials(rows)
    return rows


def _check_columns(path: Path, given: list[str]) -> None:
    missing = [name for name in _REQUIRED if name not in given]
    if missing:
        raise InputError(f"{path}: lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; it has {given}")
    for name in given:
        if name not in (*_REQUIRED, *_OPTIONAL):
            raise choices(f"column of {path}", name, (*_REQUIRED, *_OPTIONAL))
        if given.count(name) > 1:
            raise InputError(f"{path}: has the column {name} twice")


def _row(folder: Path, where: str, cells: dict[str, str], counts: dict[int, int]) -> _Row:
    file = folder / cells["file"]
    if not cells["file"] or not file.exists():
        raise InputError(f"{where}: no file '{cells['file']}' beside the CSV")
    if not cells["annotation"]:
        raise InputError(f"{where}: annotation is empty; give the description that marks the trial in {file.name}")
    subject = _whole(where, "subject", cells["subject"])
    counts[subject] = counts.get(subject, 0) + 1
    seconds = _number(where, "seconds", cells["seconds"]) if cells.get("seconds") else None
    if seconds is not None and not (0 < seconds < math.inf):
        raise InputError(f"{where}: seconds must be a length above 0, got {seconds}")
    return _Row(
        where=where,
        file=file,
        subject=subject,
        trial=_whole(where, "trial", cells["trial"]) if "trial" in cells else counts[subject],
        annotation=cells["annotation"],
        valence_arousal=_rating(where, cells),
        baseline=cells.get("baseline") or None,
        seconds=seconds,
    )


def _rating(where: str, cells: dict[str, str]) -> tuple[float, float] | None:
    given = [name for name in ("valence", "arousal") if cells[name]]
    if not given:
        return None
    if len(given) == 1:
        raise InputError(f"{where}: only {given[0]} is given; give both, or neither where nobody rated")
    low, high = (_number(where, name, cells.get(name) or end) for name, end in (("low", "-1"), ("high", "1")))
    if not low < high:
        raise InputError(f"{where}: low must be below high, got {low} and {high}")
    values = np.array([_number(where, name, cells[name]) for name in given])
    try:
        valence, arousal = rating_to_va(values, low, high)
    except InputError as error:
        raise InputError(f"{where}: {error}; give the scale's ends in the columns low and high") from None
    return float(valence), float(arousal)


def _number(where: str, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{where}: {name} must be a number, got '{text}'") from None


def _whole(where: str, name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{where}: {name} must be a whole number, got '{text}'") from None


def _check_trials(rows: list[_Row]) -> None:
    first: dict[tuple[int, int], _Row] = {}
    for row in rows:
        same = first.setdefault((row.subject, row.trial), row)
        if same.valence_arousal != row.valence_arousal:
            raise InputError(
                f"{row.where}: subject {row.subject}, trial {row.trial} has another rating in an earlier row; a trial "
                "has one"
            )


def _parts(file: Path) -> list[Path]:
    """All files of a recording: a folder's, those of its stem (split ones too), and those that its header names.

    BrainVision's header (.vhdr, .ahdr) is asked for those names. EEGLAB's (.set) would have to be parsed as a whole, so
    that every .fdt beside it counts. Other formats of several files count by their stem alone.
    """
    if file.is_dir():
        return sorted(p for p in file.rglob("*") if p.is_file())
    beside = [p for p in file.parent.iterdir() if p.is_file()]
    series = re.escape(file.stem).replace("_split\\-01", r"_split\-\d+")  # BIDS; MNE's own is stem-1, stem-2 …
    parts = {p for p in beside if re.fullmatch(rf"{series}(-.*)?", p.stem)}
    suffix = file.suffix.lower()
    if suffix == ".set":
        parts |= {p for p in beside if p.suffix.lower() == ".fdt"}
    if suffix in (".vhdr", ".ahdr"):
        parts |= {file.parent / name for name in _named_in(file) if (file.parent / name).is_file()}
    return sorted(parts)


def _named_in(header: Path) -> list[str]:
    raw = header.read_bytes()
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return re.findall(r"^[ \t]*(?:DataFile|MarkerFile)[ \t]*[=:][ \t]*(\S.*?)\s*$", text, re.IGNORECASE | re.MULTILINE)


def _read_all(by_file: Mapping[Path, list[_Row]]) -> Iterator[Recording]:
    import mne

    for file, rows in by_file.items():
        try:
            raw = mne.io.read_raw(file, preload=False, verbose="error")
        except Exception as error:  # a reader for each of some thirty formats, and no common type of error
            message = " ".join(str(error).split())
            raise InputError(f"{rows[0].where}: MNE can't open {file.name} ({message})") from error
        for row in rows:
            matches = np.flatnonzero(raw.annotations.description == row.annotation)
            if len(matches) != 1:
                there = ", ".join(sorted(set(raw.annotations.description))) or "none"
                raise InputError(
                    f"{row.where}: {len(matches)} annotations '{row.annotation}' in {file.name}; a row describes "
                    f"exactly one, so each trial needs its own description. There are: {there}"
                )
            va = row.valence_arousal
            try:
                recording = _cut(raw, int(matches[0]), row.subject, row.trial, va, row.baseline, row.seconds)
            except InputError as error:
                raise InputError(f"{row.where}: {error}") from None
            yield recording


def _cut(
    raw: mne.io.BaseRaw,
    index: int,
    subject: int,
    trial: int,
    valence_arousal: tuple[float, float] | None,
    baseline: str | None,
    seconds: float | None,
) -> Recording:
    import mne

    picks = mne.pick_types(raw.info, eeg=True, exclude="bads")
    if not len(picks):
        raise InputError(f"no usable EEG among {', '.join(raw.ch_names)}; set channel types in MNE and save the file")
    rest = None if baseline is None else _span(raw, _rest_before(raw, index, baseline), None)
    return Recording(
        subject=subject,
        trial=trial,
        signal=_microvolts(raw, picks, _span(raw, index, seconds)),
        sfreq=float(raw.info["sfreq"]),
        channels=tuple(raw.ch_names[pick] for pick in picks),
        valence_arousal=valence_arousal,
        baseline=None if rest is None else _microvolts(raw, picks, rest),
    )


def _rest_before(raw: mne.io.BaseRaw, index: int, baseline: str) -> int:
    onset, duration = raw.annotations.onset, raw.annotations.duration
    half_a_sample = 0.5 / raw.info["sfreq"]
    before = (raw.annotations.description == baseline) & (onset + duration <= onset[index] + half_a_sample)
    before[index] = False
    if not before.any():
        name = raw.annotations.description[index]
        raise InputError(f"no annotation '{baseline}' ends before '{name}' begins, so it has no baseline")
    return int(np.where(before, onset + duration, -np.inf).argmax())


def _span(raw: mne.io.BaseRaw, index: int, seconds: float | None) -> tuple[int, int]:
    """First and past-last sample of an annotation, counted from the raw's own first."""
    sfreq = raw.info["sfreq"]
    name = raw.annotations.description[index]
    length = round((raw.annotations.duration[index] if seconds is None else seconds) * sfreq)
    # Annotations are timed from the recording's begin, which a cropped raw no longer holds.
    start = round(raw.annotations.onset[index] * sfreq) - raw.first_samp
    if length < 2:
        raise InputError(f"the annotation '{name}' marks a moment, no stretch; give its length in seconds")
    if start < 0 or start + length > raw.n_times + 1:
        raise InputError(f"the annotation '{name}' of {length / sfreq:g} s reaches beyond the recording")
    return start, min(start + length, raw.n_times)


def _microvolts(raw: mne.io.BaseRaw, picks: np.ndarray, span: tuple[int, int]) -> np.ndarray:
    return raw.get_data(picks=picks, start=span[0], stop=span[1], units="uV", verbose="error").astype(np.float32)
