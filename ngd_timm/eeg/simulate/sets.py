"""Whole data sets in the layouts of the licensed ones, with simulated signals: to try the flow before the data come."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.files import atomic_folder
from ngd_timm.eeg.readers import deap, dreamer, mahnob
from ngd_timm.eeg.signal.recording import Recording
from ngd_timm.eeg.simulate.signals import simulate_recordings

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
    folder: bool
    most_trials: int | None = None  # a person


LAYOUTS: dict[str, _Layout] = {
    "dreamer": _Layout(dreamer.write_dreamer, dreamer.CHANNELS, 128.0, 5, 18, 60.0, 61.0, folder=False),
    "mahnob": _Layout(
        mahnob.write_mahnob,
        mahnob.CHANNELS,
        256.0,
        9,
        20,
        60.0,
        30.0,
        folder=True,
        most_trials=mahnob.SESSIONS_A_SUBJECT,
    ),
    "deap": _Layout(deap.write_deap, deap.CHANNELS, 128.0, 9, 40, 60.0, 3.0, folder=True),
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

    What is written is whole or absent.

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
        InputError: An unknown layout, a file that exists, sizes below one or beyond what the layout holds.
    """
    if name not in LAYOUTS:
        raise choices("layout", name, LAYOUTS)
    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists; choose another name or remove it")
    layout = LAYOUTS[name]
    trials = layout.trials if trials is None else trials
    seconds = layout.seconds if seconds is None else seconds
    if layout.most_trials is not None and trials > layout.most_trials:
        raise InputError(f"the layout {name} has numbers for {layout.most_trials} trials a person, got {trials}")
    if not math.isfinite(seconds):
        raise InputError(f"seconds must be a finite length, got {seconds}")
    recordings = simulate_recordings(
        subjects,
        trials,
        seconds,
        channels=layout.channels,
        sfreq=layout.sfreq,
        baseline_s=layout.baseline_s,
        levels=layout.levels,
        seed=seed,
        effect=effect,
        shuffled=shuffled,
    )
    if not layout.folder:
        layout.write(out, recordings)
        return
    with atomic_folder(out) as temporary:
        layout.write(temporary, recordings)
