"""Windows of EEG as power in each band and channel, with ratings: their file, and the features made of them."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ngd_timm.core.affect import rating_to_va
from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.files import atomic_path

__all__ = ["BandPower", "load_bandpower", "log_power_z", "save_bandpower", "trial_index"]

DATASETS = {
    "gameemo": "GAMEEMO (Alakus et al. 2020), 14-channel Emotiv EPOC+ at 128 Hz, four games a person, 12 s windows",
    "bandpower": "a band-power file",
}
NORMALISATION = "log power, per-subject z-score (transductive: uses the subject's own unlabelled recordings)"

_RATING_LOW, _RATING_HIGH = 1.0, 9.0
_KEYS = ("X", "ch", "bands", "subject")
_UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    RuntimeError,
    TypeError,  # a lone array has no files; of Python 3.10 the next
    AttributeError,
    zlib.error,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
)
_NOTE = "note."  # keys of the .npz that hold notes begin so


@dataclass(frozen=True, eq=False)
class BandPower:
    """Windows of EEG as band power.

    Attributes:
        power: (N, B, C) float32, above 0; µV² or relative, since it is only used after log and z-score.
        bands: B names.
        channels: C electrode names.
        valence_arousal: (N, 2) float32 in [-1, 1], one pair a trial; NaN, both, in trials that nobody rated.
        subject: (N,) int64.
        trial: (N,) int64, numbered within a subject.
        window: (N,) int64, numbered within a trial.
        dataset: What it is, for people.
        notes: How it was made (filters, windows, what was dropped), for fingerprints and cards.
        simulated: True for made-up data with a known answer.
    """

    power: np.ndarray
    bands: tuple[str, ...]
    channels: tuple[str, ...]
    valence_arousal: np.ndarray
    subject: np.ndarray
    trial: np.ndarray
    window: np.ndarray
    dataset: str
    notes: Mapping[str, str] = field(default_factory=dict)
    simulated: bool = False

    def __post_init__(self) -> None:
        _check(self)

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
        for array, kind in (
            (self.power, "<f4"),
            (self.valence_arousal, "<f4"),
            (self.subject, "<i8"),
            (self.trial, "<i8"),
            (self.window, "<i8"),
        ):
            digest.update(np.ascontiguousarray(array.astype(kind)).tobytes())
        return digest.hexdigest()

    def rows(self, index: np.ndarray) -> BandPower:
        """Only these windows: row indices or a mask."""
        return replace(
            self,
            power=self.power[index],
            valence_arousal=self.valence_arousal[index],
            subject=self.subject[index],
            trial=self.trial[index],
            window=self.window[index],
        )

    def pick(self, bands: Sequence[str] | None = None, channels: Sequence[str] | None = None) -> BandPower:
        """Only these bands and electrodes, by name and in this order; None keeps all.

        Raises:
            InputError: A band or an electrode that is lacking; all that lack are listed.
        """
        power = self.power
        if bands is not None:
            power = power[:, _indices("band", bands, self.bands, self.dataset)]
        if channels is not None:
            power = power[:, :, _indices("channel", channels, self.channels, self.dataset)]
        return replace(self, power=power, bands=tuple(bands or self.bands), channels=tuple(channels or self.channels))


def load_bandpower(root: str | Path, name: str = "bandpower") -> BandPower:
    """Read a band-power `.npz`: `X` (N, B, C), `ch`, `bands`, ratings (N, 2), `subject`, `trial` or `game`.

    Ratings are either `ratings` from 1 to 9 or `valence_arousal` in [-1, 1] with NaN for unrated trials. `window` is
    optional; `simulated` marks made-up data, `note.*` say how it was made. Pickled arrays are refused.

    Args:
        root: The file, or a folder that holds exactly one `.npz`.
        name: `gameemo` or `bandpower`: how the data set is named in what is made of it.

    Raises:
        InputError: Names the file and what is wrong with it.
    """
    if name not in DATASETS:
        raise choices("EEG data set", name, DATASETS)
    path = _find(Path(root))
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: np.asarray(file[key]) for key in file.files}
    except _UNREADABLE as error:
        raise InputError(f"{path}: not a readable .npz without pickles ({' '.join(str(error).split())})") from None
    trial_key = "trial" if "trial" in arrays else "game"
    rating_key = "valence_arousal" if "valence_arousal" in arrays else "ratings"
    missing = [key for key in (*_KEYS, rating_key, trial_key) if key not in arrays]
    if missing:
        raise InputError(
            f"{path}: lacks {', '.join(missing)}; a band-power file has {', '.join(_KEYS)}, ratings or "
            "valence_arousal, trial or game"
        )
    simulated = "simulated" in arrays and _flag(path, "simulated", arrays["simulated"])
    subject, trial = _integers(path, "subject", arrays["subject"]), _integers(path, trial_key, arrays[trial_key])
    notes = {key.removeprefix(_NOTE): str(arrays[key]) for key in arrays if key.startswith(_NOTE)}
    window = _integers(path, "window", arrays["window"]) if "window" in arrays else _running(subject, trial)
    try:
        va = np.asarray(arrays[rating_key], dtype=np.float32)
        if rating_key == "ratings":
            va = rating_to_va(va, _RATING_LOW, _RATING_HIGH).astype(np.float32)
        return BandPower(
            power=np.asarray(arrays["X"], dtype=np.float32),
            bands=tuple(str(b) for b in np.atleast_1d(arrays["bands"])),
            channels=tuple(str(c) for c in np.atleast_1d(arrays["ch"])),
            valence_arousal=va,
            subject=subject,
            trial=trial,
            window=window,
            dataset=notes.pop("dataset", "simulated band power" if simulated else DATASETS[name]),
            notes=notes,
            simulated=simulated,
        )
    except (InputError, ValueError, TypeError) as error:
        raise InputError(f"{path}: {error}") from None


def save_bandpower(path: str | Path, data: BandPower) -> None:
    """Write the `.npz` that `load_bandpower` reads, atomically."""
    arrays: dict[str, Any] = {
        "X": data.power,
        "ch": np.array(data.channels),
        "bands": np.array(data.bands),
        "valence_arousal": data.valence_arousal,
        "subject": data.subject,
        "trial": data.trial,
        "window": data.window,
    }
    for key, note in {"dataset": data.dataset, **data.notes}.items():
        arrays[_NOTE + key] = np.array(note)
    if data.simulated:
        arrays["simulated"] = np.array(True)
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, **arrays)


def log_power_z(data: BandPower) -> np.ndarray:
    """Log power, z-scored for each subject, band and channel over all of that subject's windows.

    Transductive: a new person's own unlabelled recordings are needed before the first prediction. Ratings have no part.

    Returns:
        (N, B, C) float32.

    Raises:
        InputError: A subject with one window, or whose power doesn't vary, in a channel or at all.

    Example:
        >>> from ngd_timm.eeg.simulate.power import simulate_bandpower
        >>> z = log_power_z(simulate_bandpower(subjects=2, trials=3, windows=2))
        >>> bool(abs(z[:6].mean(axis=0)).max() < 1e-5)
        True
    """
    log = np.log(data.power.astype(np.float64))
    out = np.empty_like(log)
    for subject in np.unique(data.subject):
        rows = data.subject == subject
        if rows.sum() < 2:
            raise InputError(
                f"subject {subject} has one window; a z-score needs at least two: leave that subject out, or give more"
            )
        spread = log[rows].std(axis=0)
        if (spread < 1e-9).all():
            raise InputError(
                f"subject {subject} has the same power in all of {rows.sum()} windows; a z-score needs windows that "
                "differ: leave that subject out"
            )
        if (spread < 1e-9).any():
            band, channel = np.argwhere(spread < 1e-9)[0]
            raise InputError(
                f"subject {subject}: {data.bands[band]} power at {data.channels[channel]} never changes; leave that "
                "channel, band or subject out"
            )
        out[rows] = (log[rows] - log[rows].mean(axis=0)) / spread
    return out.astype(np.float32)


def trial_index(subject: np.ndarray, trial: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Trials in order of subject and trial: the first row of each, (T,), and the trial of each row, (N,).

    Example:
        >>> [x.tolist() for x in trial_index(np.array([2, 1, 2]), np.array([1, 1, 1]))]
        [[1, 0], [1, 0, 1]]
    """
    keys = np.stack([subject, trial], axis=1)
    _, first, index = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return first, index.reshape(-1)


def _find(root: Path) -> Path:
    if root.is_dir():
        files = sorted(root.glob("*.npz"))
        if len(files) != 1:
            raise InputError(f"{root} holds {len(files)} .npz files; give the path of one")
        return files[0]
    if not root.is_file():
        raise InputError(f"no band-power file {root}; set data.root to an .npz file")
    return root


def _integers(path: Path, key: str, values: np.ndarray) -> np.ndarray:
    if not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"{path}: '{key}' must be integers, got {values.dtype}")
    return values.astype(np.int64)


def _flag(path: Path, key: str, values: np.ndarray) -> bool:
    if values.size != 1:
        raise InputError(f"{path}: '{key}' must be one true or false, got an array of shape {values.shape}")
    return bool(values.item())


def _running(subject: np.ndarray, trial: np.ndarray) -> np.ndarray:
    seen: dict[tuple[int, int], int] = {}
    numbers = np.zeros(len(subject), dtype=np.int64)
    for row, key in enumerate(zip(subject.tolist(), trial.tolist(), strict=True)):
        numbers[row] = seen[key] = seen.get(key, 0) + 1
    return numbers


def _check(data: BandPower) -> None:
    shape = data.power.shape
    if len(shape) != 3 or shape[1:] != (len(data.bands), len(data.channels)) or not shape[0]:
        raise InputError(f"X must be (windows, {len(data.bands)} bands, {len(data.channels)} channels), got {shape}")
    va = data.valence_arousal
    if va.shape != (shape[0], 2):
        raise InputError(f"ratings must be ({shape[0]}, 2), got {va.shape}")
    for name in ("subject", "trial", "window"):
        if getattr(data, name).shape != (shape[0],):
            raise InputError(f"{name} must be ({shape[0]},), got {getattr(data, name).shape}")
    bad = ~(np.isfinite(data.power) & (data.power > 0)).all(axis=(1, 2))
    if bad.any():
        raise InputError(f"window {int(bad.argmax())}: power must be finite and above 0 to take its logarithm")
    half = np.isfinite(va[:, 0]) != np.isfinite(va[:, 1])
    if half.any() or np.isinf(va).any() or (np.abs(va) > 1).any():
        raise InputError("valence and arousal must lie in [-1, 1], or both be NaN where nobody rated the trial")
    first, trial = trial_index(data.subject, data.trial)
    given = va[first][trial]
    same = (va == given) | np.isnan(va) & np.isnan(given)
    if not same.all():
        row = int((~same.all(axis=1)).argmax())
        raise InputError(
            f"subject {data.subject[row]}, trial {data.trial[row]} has more than one rating; a trial has one"
        )


def _indices(what: str, wanted: Sequence[str], present: Sequence[str], dataset: str) -> list[int]:
    missing = [name for name in wanted if name not in present]
    if missing:
        lacks = f"{dataset} lacks the {what}{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
        raise InputError(f"{lacks}; it has {', '.join(present)}")
    return [present.index(name) for name in wanted]
