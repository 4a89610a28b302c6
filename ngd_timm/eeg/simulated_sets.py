"""Whole data sets in the layouts of the licensed ones, with simulated signals: to try the flow before the data come."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ngd_timm.eeg import deap, dreamer, mahnob
from ngd_timm.eeg.recording import Recording
from ngd_timm.eeg.simulated_signals import simulate_recordings
from ngd_timm.errors import InputError, choices

__all__ = ["LAYOUTS", "LayoutName", "write_simulated"]

LayoutName = Literal["dreamer", "mahnob", "deap"]


@dataclass(frozen=True)
class _Layout:
    write: Callable[[str | Path, Iterable[Recording]], object]
    channels: tuple[str, ...]
    sfreq: float  # Hz
    levels: int  # of the rating scale, from 1
    trials: int
    seconds: float
    baseline_s: float


LAYOUTS: dict[str, _Layout] = {
    "dreamer": _Layout(dreamer.write_dreamer, dreamer.CHANNELS, 128.0, 5, 18, 60.0, 61.0),
    "mahnob": _Layout(mahnob.write_mahnob, mahnob.CHANNELS, 256.0, 9, 20, 60.0, 30.0),
    "deap": _Layout(deap.write_deap, deap.CHANNELS, 128.0, 9, 40, 60.0, 3.0),
}


def write_simulated(
    name: str,
    out: str | Path,
    subjects: int = 16,
    trials: int | None = None,
    seconds: float | None = None,
    effect: float = 1.0,
    shuffled: bool = False,
    seed: int = 0,
) -> None:
    """Write simulated EEG in a data set's own layout; whatever reads it knows that it is simulated.

    Args:
        name: `dreamer` (a DREAMER.mat), `mahnob` or `deap` (a folder).
        out: What to write; it must not exist.
        subjects: People.
        trials: Trials a person; None: as many as the real data set has.
        seconds: Length of a trial, s; None: 60.
        effect: Strength of valence and arousal in alpha and beta; 0 plants nothing.
        shuffled: Permute the ratings within each person after planting, so that nothing is left to find.
        seed: Same seed, same data.

    Raises:
        InputError: An unknown layout, a file that exists, sizes below one.
    """
    if name not in LAYOUTS:
        raise choices("layout", name, LAYOUTS)
    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists; choose another name or remove it")
    layout = LAYOUTS[name]
    recordings = simulate_recordings(
        subjects,
        layout.trials if trials is None else trials,
        layout.seconds if seconds is None else seconds,
        channels=layout.channels,
        sfreq=layout.sfreq,
        baseline_s=layout.baseline_s,
        levels=layout.levels,
        seed=seed,
        effect=effect,
        shuffled=shuffled,
    )
    layout.write(out, recordings)
