"""Recordings of your own: any file that MNE opens, cut at annotations, with ratings from a table."""

from __future__ import annotations

import gzip
import re
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field, ValidationError

from ngd_timm.core.affect import rating_to_va
from ngd_timm.core.errors import InputError, choices, one_line
from ngd_timm.core.files import require_regular
from ngd_timm.core.recipe import StrictModel
from ngd_timm.core.table import read_table
from ngd_timm.eeg.signal.recording import Recording, RecordingSet

if TYPE_CHECKING:
    import mne

_REQUIRED = ("file", "subject", "annotation", "valence", "arousal")
_OPTIONAL = ("trial", "stimulus", "baseline", "seconds", "low", "high")


_Number = Annotated[int, Field(gt=-(10**9), lt=10**9)]


class _Row(StrictModel):
    """A row of the table: one trial. Empty cells are left out."""

    file: str
    subject: _Number
    annotation: str
    valence: float | None = None
    arousal: float | None = None
    trial: _Number | None = None
    stimulus: str | None = None
    baseline: str | None = None
    seconds: Annotated[float, Field(gt=0)] | None = None
    low: float = -1.0
    high: float = 1.0

    @property
    def valence_arousal(self) -> tuple[float, float] | None:
        if self.valence is None and self.arousal is None:
            return None
        if self.valence is None or self.arousal is None:
            raise InputError("only one of valence and arousal is given; give both, or neither where nobody rated")
        if not self.low < self.high:
            raise InputError(f"low must be below high, got {self.low} and {self.high}")
        try:
            valence, arousal = rating_to_va(np.array([self.valence, self.arousal]), self.low, self.high).tolist()
        except InputError as error:
            raise InputError(f"{error}; give the scale's ends in the columns low and high") from None
        return valence, arousal


def read_recordings(table: str | Path) -> RecordingSet:
    """Recordings of your own, described by a CSV (UTF-8, with commas) with a row a trial.

    Columns: `file` (any format that MNE opens, relative to the CSV), `subject` (a number), `annotation` (its
    description; it has to occur once in the file), `valence` and `arousal` (both empty where nobody rated). And
    where needed: `trial` (a number; else rows are numbered within a subject), `stimulus` (its name, the same for
    everybody; needed to hold out by stimulus), `baseline` (the description of the rest before the trial), `seconds`
    (for annotations that only mark a begin), `low` and `high` (the rating scale's ends, -1 and 1 if not given).
    Triggers in a channel become annotations by `mne.annotations_from_events`. An `InputError` names the row and what
    is wrong with it.

    Examples:
        >>> import tempfile
        >>> import mne
        >>> folder = Path(tempfile.mkdtemp())
        >>> info = mne.create_info(["Fz", "Cz"], 128.0, "eeg", verbose="error")
        >>> raw = mne.io.RawArray(np.random.default_rng(0).normal(0, 1e-5, (2, 1280)), info, verbose="error")
        >>> raw = raw.set_annotations(mne.Annotations([1, 5], [4, 5], ["comedy", "news"]), verbose="error")
        >>> _ = raw.save(folder / "anna_raw.fif", verbose="error")
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
    rows = _read_rows(path)
    by_file: dict[Path, dict[str, _Row]] = defaultdict(dict)
    for where, row in rows.items():
        by_file[path.parent / row.file][where] = row
    files = dict.fromkeys([path, *(part for file in by_file for part in recording_files(file))])
    return RecordingSet(f"own recordings ({path.stem})", tuple(files), read=lambda: _read_all(by_file))


def _read_rows(path: Path) -> dict[str, _Row]:
    """The rows, by the words with which messages name them."""
    rows: dict[str, _Row] = {}
    counts: Counter[int] = Counter()
    ratings: dict[tuple[int, int | None], tuple[float, float] | None] = {}
    columns, table = read_table(path)
    _check_columns(path, columns)
    for where, cells in table.items():
        row = _check_row(path.parent, where, cells)
        counts[row.subject] += 1
        if "trial" not in columns:
            row = row.model_copy(update={"trial": counts[row.subject]})
        trial, va = (row.subject, row.trial), row.valence_arousal
        if ratings.setdefault(trial, va) != va:
            name = f"subject {row.subject}, trial {row.trial}"
            raise InputError(f"{where}: {name} has another rating in an earlier row; a trial has one")
        rows[where] = row
    if not rows:
        raise InputError(f"{path}: has no rows")
    return rows


def _check_columns(path: Path, columns: list[str]) -> None:
    missing = [name for name in _REQUIRED if name not in columns]
    if missing:
        raise InputError(f"{path}: lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; it has {columns}")
    for name in columns:
        if name not in (*_REQUIRED, *_OPTIONAL):
            raise choices(f"column of {path}", name, (*_REQUIRED, *_OPTIONAL))


def _check_row(folder: Path, where: str, cells: Mapping[str, str]) -> _Row:
    try:
        row = _Row.model_validate({key: value for key, value in cells.items() if value})
        if not (folder / row.file).exists():
            raise InputError(f"no file '{row.file}' beside the CSV")
        if row.trial is None and "trial" in cells:
            raise InputError("trial is empty; number all trials, or leave the column out")
        _ = row.valence_arousal  # refuses a rating off the scale
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = problem["loc"][0]
        raise InputError(f"{where}: {key}: {problem['msg']}, got '{cells[str(key)]}'") from None
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return row


def recording_files(file: Path) -> list[Path]:
    """All files of a recording: a folder's, those of its stem (split ones too), and those that its header names.

    BrainVision's header (.vhdr, .ahdr) names them. EEGLAB's (.set) would have to be parsed as a whole, so that every
    .fdt beside it counts.
    """
    if file.is_dir():
        return regular_files(file.rglob("*"))
    siblings = list(file.parent.iterdir())
    series = re.escape(file.stem).replace("_split\\-01", r"_split\-\d+")  # BIDS; MNE's own is stem-1, stem-2 …
    parts = {p for p in siblings if re.fullmatch(rf"{series}(-.*)?", p.stem)}
    suffix = file.suffix.lower()
    if suffix == ".set":
        parts |= {p for p in siblings if p.suffix.lower() == ".fdt"}
    if suffix in (".vhdr", ".ahdr"):
        regular_files([file])
        parts |= {file.parent / name for name in _named_in(file)}
    return regular_files(parts)


def regular_files(paths: Iterable[Path]) -> list[Path]:
    """The files among the paths, sorted; a device or a pipe is refused."""
    files = sorted(path for path in paths if path.exists() and not path.is_dir())
    for path in files:
        try:
            require_regular(path)
        except OSError as error:
            raise InputError(f"{path}: can't be read ({error.strerror})") from None
    return files


def _named_in(header: Path) -> list[str]:
    raw = header.read_bytes()
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return re.findall(r"^[ \t]*(?:DataFile|MarkerFile)[ \t]*[=:][ \t]*(\S.*?)\s*$", text, re.IGNORECASE | re.MULTILINE)


def _read_all(by_file: Mapping[Path, Mapping[str, _Row]]) -> Iterator[Recording]:
    import mne

    for file, rows in by_file.items():
        try:
            if file.name.endswith((".fif", ".fif.gz")):
                _refuse_endless(file)
            raw = mne.io.read_raw(file, preload=False, verbose="error")
        except Exception as error:  # a reader for each of some thirty formats, and no common type of error
            raise InputError(f"{next(iter(rows))}: MNE can't open {file.name} ({one_line(error)})") from error
        for where, row in rows.items():
            try:
                recording = _cut(raw, row)
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
            except Exception as error:  # a truncated file
                raise InputError(f"{where}: {file.name} can't be read there ({one_line(error)})") from error
            yield recording


def _refuse_endless(file: Path) -> None:
    """Refuse a FIF file whose tags don't all lead forward: MNE would follow them for ever."""
    with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as handle:
        while len(head := handle.read(16)) == 16:
            _kind, _type, size, following = struct.unpack(
                ">4i", head
            )  # where the next tag is; 0: after this one's data
            if following < 0:
                return
            if size < 0 or 0 < following < handle.tell():
                raise ValueError("a tag leads backwards; bring the file again")
            handle.seek(following or handle.tell() + size)


def _cut(raw: mne.io.BaseRaw, row: _Row) -> Recording:
    descriptions = raw.annotations.description
    matches = np.flatnonzero(descriptions == row.annotation)
    if len(matches) != 1:
        raise InputError(
            f"{len(matches)} annotations '{row.annotation}' in {Path(row.file).name}; a row describes exactly one, so "
            f"each trial needs its own description. There are: {', '.join(sorted(set(descriptions))) or 'none'}"
        )
    index = int(matches[0])
    picks = eeg_picks(raw)
    rest = None if row.baseline is None else _span(raw, _rest_before(raw, index, row.baseline), None)
    assert row.trial is not None
    return Recording(
        subject=row.subject,
        trial=row.trial,
        signal=microvolts(raw, picks, _span(raw, index, row.seconds)),
        sfreq=float(raw.info["sfreq"]),
        channels=tuple(raw.ch_names[pick] for pick in picks),
        valence_arousal=row.valence_arousal,
        baseline=None if rest is None else microvolts(raw, picks, rest),
        stimulus=row.stimulus,
    )


def _rest_before(raw: mne.io.BaseRaw, index: int, baseline: str) -> int:
    """The last annotation of that description that ends before another begins."""
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


def eeg_picks(raw: mne.io.BaseRaw) -> np.ndarray:
    """The indices of the EEG channels that aren't marked as bad."""
    import mne

    picks = mne.pick_types(raw.info, eeg=True, exclude="bads")
    if not len(picks):
        raise InputError(f"no usable EEG among {', '.join(raw.ch_names)}; set channel types in MNE and save the file")
    return picks


def microvolts(raw: mne.io.BaseRaw, picks: np.ndarray, span: tuple[int, int]) -> np.ndarray:
    """(C, T) float32 in µV, from the first sample of a span up to the one past its last."""
    return raw.get_data(picks=picks, start=span[0], stop=span[1], units="uV", verbose="error").astype(np.float32)
