"""What a second of EEG costs on its way from raw signal to topographic maps, and which step takes it.

    python tests/benchmarks/eeg_pipeline.py --subjects 3 --trials 6 --seconds 200

Prints the seconds of EEG that are worked off in a second, for DREAMER's shape (14 channels at 128 Hz, baseline of 61 s)
and for 32 channels at 256 Hz without one (MAHNOB-HCI's), and each step's share.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import mne
import numpy as np
import scipy.signal
import torch

from ngd_timm.core.teacher_recipe import TeacherData
from ngd_timm.eeg.readers.deap import CHANNELS as GENEVA
from ngd_timm.eeg.signal import preprocess
from ngd_timm.eeg.signal.bandpower import log_power_z
from ngd_timm.eeg.signal.recording import Recording, RecordingSet
from ngd_timm.eeg.simulate.power import CHANNELS as EMOTIV
from ngd_timm.eeg.topomap import TopomapOperator

spent: Counter[str] = Counter()
inside: list[str] = []


def timed(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Books the function's time under `step`, unless another step called it (MNE's notch calls its own filter)."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if inside:
            return function(*args, **kwargs)
        inside.append(step)
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[step] += time.perf_counter() - began
            inside.pop()

    return call


def simulated(channels: tuple[str, ...], sfreq: float, baseline: float, options: argparse.Namespace) -> list[Recording]:
    rng = np.random.default_rng(0)

    def signal(seconds: float) -> np.ndarray:
        return 4200 + 15 * rng.standard_normal((len(channels), int(seconds * sfreq)), dtype=np.float32)

    return [
        Recording(s, t, signal(options.seconds), sfreq, channels, (0.0, 0.0), signal(baseline) if baseline else None)
        for s in range(options.subjects)
        for t in range(options.trials)
    ]


def measure(title: str, recordings: list[Recording], size: int) -> None:
    spent.clear()
    settings = TeacherData(name="recordings")
    began = time.perf_counter()
    data = preprocess.band_power(RecordingSet(title, (), lambda: iter(recordings)), settings)
    power_s = time.perf_counter() - began
    spent["windows, artefacts, the rest"] = power_s - sum(spent.values())
    z = timed("log and z-score", log_power_z)(data)
    operator = timed("matrix of the maps, once", TopomapOperator)(data.channels, size=size)
    maps = 0
    for batch in torch.from_numpy(z).split(256):
        maps += len(timed(f"maps at {size} px", operator)(batch))
    total = sum(spent.values())
    eeg_s = sum(r.seconds + (0 if r.baseline is None else r.baseline.shape[1] / r.sfreq) for r in recordings)
    print(
        f"{title}: {len(recordings)} trials, {eeg_s:.0f} s of EEG, {maps} windows in {total:.2f} s: "
        f"{eeg_s / total:.0f} s of EEG a second"
    )
    for step, seconds in spent.most_common():
        print(f"  {step:32s} {seconds:8.3f} s {100 * seconds / total:5.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=3)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=200.0, help="length of a trial")
    parser.add_argument("--size", type=int, default=32, help="pixels a side of a map")
    options = parser.parse_args()

    torch.set_num_threads(1)
    mne.filter.filter_data = timed("filter", mne.filter.filter_data)
    mne.filter.notch_filter = timed("notch", mne.filter.notch_filter)
    scipy.signal.welch = timed("Welch", scipy.signal.welch)
    warm = simulated(EMOTIV, 128.0, 8.0, argparse.Namespace(subjects=1, trials=1, seconds=20))
    preprocess.band_power(RecordingSet("warm-up", (), lambda: iter(warm)), TeacherData(name="recordings"))
    measure("14 channels at 128 Hz", simulated(EMOTIV, 128.0, 61.0, options), options.size)
    measure("32 channels at 256 Hz", simulated(GENEVA, 256.0, 0.0, options), options.size)


if __name__ == "__main__":
    main()
