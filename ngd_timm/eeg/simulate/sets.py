"""Simulated data sets in the file layouts of the real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.files import atomic_folder
from ngd_timm.eeg.readers import deap, dreamer, faced, gameemo, mahnob
from ngd_timm.eeg.signal.recording import Recording
from ngd_timm.eeg.simulate import openneuro
from ngd_timm.eeg.simulate.signals import simulate_recordings


@dataclass(frozen=True)
class _Layout:
    write: Callable[[str | Path, Iterable[Recording]], object]
    channels: tuple[str, ...]
    sfreq: float  # Hz
    levels: int  # of the rating scale, from 1
    trials: int  # a subject, in the real data set
    baseline_s: float
    most_trials: int | None = None  # a subject
    seconds: float = 60.0  # a trial


LAYOUTS = {
    "dreamer": _Layout(dreamer.write_dreamer, dreamer.CHANNELS, 128.0, 5, 18, 61.0),
    "mahnob": _Layout(mahnob.write_mahnob, mahnob.CHANNELS, 256.0, 9, 20, 30.0, mahnob.SESSIONS_A_SUBJECT),
    "deap": _Layout(deap.write_deap, deap.CHANNELS, 128.0, 9, 40, 3.0),
    "gameemo": _Layout(gameemo.write_gameemo, gameemo.CHANNELS, 128.0, 9, gameemo.GAMES, 0.0, gameemo.GAMES),
    "faced": _Layout(faced.write_faced, faced.CHANNELS, faced.SFREQ, faced.LEVELS, faced.CLIPS, 0.0, seconds=30.0),
    "dens": _Layout(openneuro.write_dens, openneuro.DENS_CHANNELS, 250.0, 9, 11, 0.0),
    "ds002721": _Layout(openneuro.write_ds002721, openneuro.MUSIC_CHANNELS, 1000.0, 9, 40, 0.0, seconds=12.0),
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
    """Write simulated EEG in a data set's layout, marked as simulated: a DREAMER.mat, or else a folder."""
    if name not in LAYOUTS:
        raise choices("layout", name, LAYOUTS)
    out, layout = Path(out), LAYOUTS[name]
    if out.exists():
        raise InputError(f"{out} exists; choose another name or remove it")
    trials = layout.trials if trials is None else trials
    if layout.most_trials is not None and trials > layout.most_trials:
        raise InputError(f"the layout {name} has numbers for {layout.most_trials} trials a subject, got {trials}")
    recordings = simulate_recordings(
        subjects,
        trials,
        layout.seconds if seconds is None else seconds,
        channels=layout.channels,
        sfreq=layout.sfreq,
        baseline_s=layout.baseline_s,
        levels=layout.levels,
        seed=seed,
        effect=effect,
        shuffled=shuffled,
    )
    if name == "dreamer":
        layout.write(out, recordings)
    else:
        with atomic_folder(out) as folder:
            layout.write(folder, recordings)
