"""What every reader of EEG gives: one stretch of one subject's signal, with a rating or without."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ngd_timm.core.errors import InputError

EMOTIV_14 = ("AF3", "F7", "F3", "FC5", "T7", "P7", "O1", "O2", "P8", "T8", "FC6", "F4", "F8", "AF4")
"""Emotiv EPOC and EPOC+, in the files' order: DREAMER, GAMEEMO."""

BIOSEMI_32 = (
    *("Fp1", "AF3", "F3", "F7", "FC5", "FC1", "C3", "T7", "CP5", "CP1", "P3", "P7", "PO3", "O1", "Oz", "Pz"),
    *("Fp2", "AF4", "Fz", "F4", "F8", "FC6", "FC2", "Cz", "C4", "T8", "CP6", "CP2", "P4", "P8", "PO4", "O2"),
)
"""BioSemi ActiveTwo with 32 electrodes, in the files' order: MAHNOB-HCI, and DEAP's recordings from Geneva."""


@dataclass(frozen=True, eq=False)
class Recording:
    """One trial of one subject.

    Args:
        subject: The subject's number.
        trial: A number within the subject; all stretches of a trial share it, and its rating.
        signal: (C, T) float32 or float64, µV.
        sfreq: Samples a second, Hz.
        channels: C electrode names, as the 10-05 system has them (Fp1, Cz, …).
        valence_arousal: The rating in [-1, 1] (see `ngd_timm.core.affect.rating_to_va`), or None.
        baseline: (C, T') µV, rest before the trial, or None.
        stimulus: The name of the clip, game or image, the same for everybody who met it, or None where it isn't known.

    Raises:
        InputError: Names that don't fit the rows, values that aren't finite, a rating outside [-1, 1].

    Examples:
        >>> signal = np.random.default_rng(0).normal(0, 10, (3, 512))
        >>> recording = Recording(1, 1, signal, 128.0, ("Fz", "Cz", "Pz"), (0.5, -0.5))
        >>> recording.seconds, recording.pick(["Pz", "Fz"]).channels
        (4.0, ('Pz', 'Fz'))
    """

    subject: int
    trial: int
    signal: np.ndarray
    sfreq: float
    channels: tuple[str, ...]
    valence_arousal: tuple[float, float] | None = None
    baseline: np.ndarray | None = None
    stimulus: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(str(name) for name in self.channels))
        for what, number in (("subject", self.subject), ("trial", self.trial)):
            if not isinstance(number, (int, np.integer)):
                raise InputError(f"{self}: {what} must be a whole number, got {number!r}; number the {what}s")
        if not (np.isfinite(self.sfreq) and self.sfreq > 0):
            raise InputError(f"{self}: sfreq must be above 0 Hz, got {self.sfreq}")
        for what, values in (("signal", self.signal), ("baseline", self.baseline)):
            if values is None:
                continue
            if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
                got = getattr(values, "dtype", type(values).__name__)
                raise InputError(
                    f"{self}: {what} must be an array of floats in µV, got {got}; call .astype(np.float32)"
                )
            if values.ndim != 2 or len(values) != len(self.channels) or not values.shape[1]:
                raise InputError(f"{self}: {what} must be ({len(self.channels)} channels, samples), got {values.shape}")
            finite = np.isfinite(values).all(axis=1)
            if not finite.all():
                raise InputError(f"{self}: {what} of {self.channels[int(finite.argmin())]} is not finite")
        repeated = sorted({c for c in self.channels if self.channels.count(c) > 1})
        if repeated:
            raise InputError(f"{self}: channels given twice: {', '.join(repeated)}")
        va = self.valence_arousal
        if va is not None and not (len(va) == 2 and all(-1 <= value <= 1 for value in va)):
            raise InputError(
                f"{self}: valence and arousal must lie in [-1, 1], got {va}; map ratings with rating_to_va"
            )

    def __str__(self) -> str:
        return f"subject {self.subject}, trial {self.trial}"

    @property
    def seconds(self) -> float:
        """Length of the signal."""
        return self.signal.shape[1] / self.sfreq

    def pick(self, channels: Sequence[str]) -> Recording:
        """Only these electrodes, by name and in this order."""
        index = name_indices(self, "channel", channels, self.channels)
        baseline = None if self.baseline is None else self.baseline[index]
        return replace(self, signal=self.signal[index], channels=tuple(channels), baseline=baseline)


@dataclass(frozen=True)
class RecordingSet:
    """A data set of recordings, read lazily.

    Args:
        dataset: A description of the data set.
        files: The files whose bytes decide what `read` gives; a cache is keyed by their hash.
        read: Called with nothing, iterates over the recordings in a fixed order.
        notes: Remarks for fingerprints: the file's own rate, what was left out.
        simulated: True for made-up data with a known answer.
    """

    dataset: str
    files: tuple[Path, ...]
    read: Callable[[], Iterator[Recording]]
    notes: Mapping[str, str] = field(default_factory=dict)
    simulated: bool = False

    def __iter__(self) -> Iterator[Recording]:
        return self.read()


def name_indices(owner: object, what: str, names: Sequence[str], present: Sequence[str]) -> list[int]:
    """The place of each name among those present; names that the owner lacks are refused, all listed."""
    missing = [name for name in names if name not in present]
    if missing:
        lacking = f"{what}{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
        raise InputError(f"{owner} lacks the {lacking}; it has {', '.join(present)}")
    return [present.index(name) for name in names]
