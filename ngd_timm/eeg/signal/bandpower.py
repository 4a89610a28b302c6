"""Windows of EEG as power in each band and channel, with ratings: their file, and their z-scores."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ngd_timm.core.affect import rating_to_va
from ngd_timm.core.arrays import read_npz
from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.files import atomic_path
from ngd_timm.eeg.signal.recording import name_indices
from ngd_timm.grid.averages import rows_of, trial_index

DATASETS = {
    "gameemo": "GAMEEMO (Alakus et al. 2020), 14-channel Emotiv EPOC+ at 128 Hz, four games a person, 12 s windows",
    "bandpower": "a band-power file",
}
NORMALISATION = "log power, per-subject z-score (transductive: uses the subject's own unlabelled recordings)"

SET = 1_000_000
"""In a pool, subject and trial n of the k-th set are k * SET + n, so that no two sets share a number."""

_NOTE = "note."  # prefix of the .npz keys that hold notes
_DTYPES = {"power": "<f4", "valence_arousal": "<f4", "subject": "<i8", "trial": "<i8", "window": "<i8"}


@dataclass(frozen=True, eq=False)
class BandPower:
    """Windows of EEG as band power."""

    power: np.ndarray  # (N, B, C) float32, above 0; µV² or relative
    bands: tuple[str, ...]
    channels: tuple[str, ...]
    valence_arousal: np.ndarray  # (N, 2) float32 in [-1, 1], one pair a trial; both NaN in unrated trials
    subject: np.ndarray  # (N,) integers, as the next two
    trial: np.ndarray  # numbered within a subject
    window: np.ndarray  # numbered within a trial
    dataset: str  # a description
    notes: Mapping[str, str] = field(default_factory=dict)  # how it was made, for fingerprints and cards
    simulated: bool = False
    sets: tuple[str, ...] = ()  # of a pool, a description of each
    stimulus: np.ndarray | None = None  # (N,) str, one a trial, the same for everybody; "" where it isn't known

    def __post_init__(self) -> None:
        shape, va = self.power.shape, self.valence_arousal
        if len(shape) != 3 or shape[1:] != (len(self.bands), len(self.channels)) or not shape[0]:
            raise InputError(
                f"X must be (windows, {len(self.bands)} bands, {len(self.channels)} channels), got {shape}"
            )
        if va.shape != (shape[0], 2):
            raise InputError(f"ratings must be ({shape[0]}, 2), got {va.shape}")
        for name in ("subject", "trial", "window"):
            numbers = getattr(self, name)
            if numbers.shape != (shape[0],) or numbers.dtype.kind not in "iu":
                raise InputError(f"{name} must be ({shape[0]},) integers, got {numbers.dtype} of {numbers.shape}")
            if (numbers > np.iinfo(np.int64).max).any():
                raise InputError(f"{name} must be below 2^63, got {numbers.max()}")
            object.__setattr__(self, name, numbers.astype(np.int64, copy=False))
        bad = ~(np.isfinite(self.power) & (self.power > 0)).all(axis=(1, 2))
        if bad.any():
            raise InputError(f"window {int(bad.argmax())}: power must be finite and above 0 to take its logarithm")
        half = np.isfinite(va[:, 0]) != np.isfinite(va[:, 1])
        if half.any() or np.isinf(va).any() or (np.abs(va) > 1).any():
            raise InputError("valence and arousal must lie in [-1, 1], or both be NaN where nobody rated the trial")
        first, trial = trial_index(self.subject, self.trial)
        if (names := self.stimulus) is not None and (names.shape != (shape[0],) or names.dtype.kind != "U"):
            raise InputError(f"stimulus must be ({shape[0]},) strings, got {names.dtype} of {names.shape}")
        for what, values in (("rating", np.nan_to_num(va, nan=9)), ("stimulus", self.stimulus)):
            if values is not None and (differs := values != values[first][trial]).any():
                row = np.argwhere(differs)[0][0]
                raise InputError(
                    f"subject {self.subject[row]}, trial {self.trial[row]} has more than one {what}; a trial has one"
                )

    def __len__(self) -> int:
        return len(self.power)

    @property
    def rated(self) -> np.ndarray:
        """(N,) bool, windows of trials with a rating."""
        return np.isfinite(self.valence_arousal).all(axis=1)

    @property
    def sha256(self) -> str:
        """Hex sha256 of names and values in a fixed byte order."""
        digest = hashlib.sha256("\n".join([*self.bands, "", *self.channels, ""]).encode())
        for name, dtype in _DTYPES.items():
            digest.update(np.ascontiguousarray(getattr(self, name).astype(dtype)).tobytes())
        return digest.hexdigest()

    def rows(self, index: np.ndarray) -> BandPower:
        """Only these windows: row indices or a mask."""
        columns = {name: getattr(self, name)[index] for name in _DTYPES}
        return replace(self, **columns, stimulus=None if self.stimulus is None else self.stimulus[index])

    def pick(self, bands: Sequence[str] | None = None, channels: Sequence[str] | None = None) -> BandPower:
        """Only these bands and electrodes, by name and in this order; None keeps all."""
        power = self.power
        if bands is not None:
            power = power[:, name_indices(self.dataset, "band", bands, self.bands)]
        if channels is not None:
            power = power[:, :, name_indices(self.dataset, "channel", channels, self.channels)]
        return replace(self, power=power, bands=tuple(bands or self.bands), channels=tuple(channels or self.channels))


def pool_sets(parts: Sequence[BandPower]) -> BandPower:
    """Several rated sets on the same channels as one; see `SET`.

    Raises:
        InputError: Other bands, a set given twice or without ratings, numbers that leave no room for the set's.
    """
    first = parts[0]
    for place, part in enumerate(parts):
        if part.bands != first.bands:
            common = [band for band in first.bands if all(band in other.bands for other in parts)]
            remedy = f"name what all have: data.bands=[{', '.join(common)}]" if common else "they have none in common"
            raise InputError(
                f"{first.dataset} has the bands {', '.join(first.bands)} and {part.dataset} has "
                f"{', '.join(part.bands)}; {remedy}"
            )
        if not part.rated.any():
            raise InputError(f"{part.dataset}: nobody rated anything; recordings without ratings go to data.support")
        if any(part.sha256 == other.sha256 for other in parts[:place]):
            raise InputError(f"{part.dataset} is in the pool twice; name each set once, in data.root or in data.also")
        if part.simulated != first.simulated:
            raise InputError(f"a pool of simulated and recorded EEG says nothing: {first.dataset}, {part.dataset}")
        numbers = np.concatenate([part.subject, part.trial])
        if numbers.min() < 0 or numbers.max() >= SET:
            raise InputError(f"{part.dataset}: to be pooled, subjects and trials have numbers from 0 to {SET - 1}")
    names = [part.dataset for part in parts]
    names = [f"{name}, set {k}" if names.count(name) > 1 else name for k, name in enumerate(names, start=1)]
    columns = {name: [getattr(part, name) for part in parts] for name in _DTYPES}
    for name in ("subject", "trial"):
        columns[name] = [numbers + k * SET for k, numbers in enumerate(columns[name], start=1)]
    if any(part.stimulus is not None for part in parts):
        columns["stimulus"] = [_stimuli_of_set(part, k) for k, part in enumerate(parts, start=1)]
    whole: dict[str, Any] = {name: np.concatenate(values) for name, values in columns.items()}
    return replace(
        first,
        **whole,
        dataset=" + ".join(names),
        notes={
            f"{name}: {key}": note for name, part in zip(names, parts, strict=True) for key, note in part.notes.items()
        },
        sets=tuple(names),
    )


def _stimuli_of_set(part: BandPower, number: int) -> np.ndarray:
    if part.stimulus is None:
        return np.full(len(part), "")
    return np.where(part.stimulus == "", "", np.char.add(f"{number}:", part.stimulus))


def load_bandpower(root: str | Path, name: str = "bandpower") -> BandPower:
    """Read a band-power `.npz`: `X` (N, B, C), `ch`, `bands`, ratings (N, 2), `subject`, `trial` or `game`.

    Ratings are `ratings` from 1 to 9 or `valence_arousal` in [-1, 1] with NaN for unrated trials. `stimulus`, a string
    a window, says which stimulus a trial was of, "" where that isn't known; a game is one too. A folder stands for the
    one `.npz` in it; `name` decides how the data set is described.
    """
    if name not in DATASETS:
        raise choices("EEG data set", name, DATASETS)
    path = _find(Path(root))
    arrays = read_npz(path)
    trial_key = "trial" if "trial" in arrays else "game"
    rating_key = "valence_arousal" if "valence_arousal" in arrays else "ratings"
    missing = [key for key in ("X", "ch", "bands", "subject", rating_key, trial_key) if key not in arrays]
    if missing:
        raise InputError(
            f"{path}: lacks {', '.join(missing)}; a band-power file has X, ch, bands, subject, ratings or "
            "valence_arousal, trial or game"
        )
    notes = {key.removeprefix(_NOTE): str(arrays[key]) for key in arrays if key.startswith(_NOTE)}
    subject, trial = arrays["subject"], arrays[trial_key]
    try:
        simulated = bool(arrays["simulated"].item()) if "simulated" in arrays else False
        va = np.asarray(arrays[rating_key], dtype=np.float32)
        if rating_key == "ratings":
            va = rating_to_va(va, 1.0, 9.0).astype(np.float32)
        return BandPower(
            power=np.asarray(arrays["X"], dtype=np.float32),
            bands=tuple(str(b) for b in np.atleast_1d(arrays["bands"])),
            channels=tuple(str(c) for c in np.atleast_1d(arrays["ch"])),
            valence_arousal=va,
            subject=subject,
            trial=trial,
            window=arrays["window"] if "window" in arrays else _number_windows(subject, trial),
            dataset=notes.pop("dataset", "simulated band power" if simulated else DATASETS[name]),
            notes=notes,
            simulated=simulated,
            stimulus=arrays.get("stimulus", trial.astype(str) if trial_key == "game" else None),
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {error}") from None


def save_bandpower(path: str | Path, data: BandPower) -> None:
    """Write the `.npz` that `load_bandpower` reads, atomically."""
    arrays = {
        "X": data.power,
        "ch": np.array(data.channels),
        "bands": np.array(data.bands),
        "valence_arousal": data.valence_arousal,
        "subject": data.subject,
        "trial": data.trial,
        "window": data.window,
    }
    arrays |= {_NOTE + key: np.array(note) for key, note in {"dataset": data.dataset, **data.notes}.items()}
    if data.stimulus is not None:
        arrays["stimulus"] = data.stimulus
    if data.simulated:
        arrays["simulated"] = np.array(True)
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]


def log_power_z(data: BandPower) -> np.ndarray:
    """Log power (N, B, C) float32, z-scored for each subject, band and channel over all windows of that subject.

    Transductive: a new subject's own unlabelled recordings are needed before the first prediction.
    """
    log = np.log(data.power.astype(np.float64))
    out = np.empty_like(log)
    for subject in np.unique(data.subject):
        rows = data.subject == subject
        if rows.sum() < 2:
            raise InputError(
                f"subject {subject} has one window; a z-score needs at least two: leave that subject out, or give more"
            )
        std = log[rows].std(axis=0)
        if (std < 1e-9).any():
            band, channel = np.argwhere(std < 1e-9)[0]
            raise InputError(
                f"subject {subject}: {data.bands[band]} power at {data.channels[channel]} never changes; leave that "
                "channel, band or subject out"
            )
        out[rows] = (log[rows] - log[rows].mean(axis=0)) / std
    return out.astype(np.float32)


def group_trials(subject: np.ndarray, trial: np.ndarray) -> list[np.ndarray]:
    """Row indices of each trial's windows, by subject and trial."""
    return rows_of(trial_index(subject, trial)[1])


def _number_windows(subject: np.ndarray, trial: np.ndarray) -> np.ndarray:
    numbers = np.zeros(len(subject), dtype=np.int64)
    for rows in group_trials(subject, trial):
        numbers[rows] = np.arange(1, len(rows) + 1)
    return numbers


def _find(root: Path) -> Path:
    if root.is_dir():
        files = sorted(root.glob("*.npz"))
        if len(files) != 1:
            raise InputError(f"{root} holds {len(files)} .npz files; give the path of one")
        return files[0]
    if not root.is_file():
        raise InputError(f"no band-power file {root}; set data.root to an .npz file")
    return root
