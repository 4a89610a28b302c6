"""Topographic maps a second: the operator against MNE and against scipy's griddata as torcheeg calls it, in one run.

    python tests/benchmarks/topomap.py

Prints a Markdown table. Rates are medians over rounds in which every method takes its turn; the multiples are medians
of the rounds' own ratios, the operator on batches over each of the others. The methods:

- batch: `TopomapOperator` on --batch maps at once, torch float32; one map: the same, one map a call.
- MNE interpolation: what `plot_topomap` does to make its image, without the figure, by MNE's private helpers. The
  triangulation is made once and reused, which is the most that MNE allows.
- MNE figure: `mne.viz.plot_topomap(..., show=False)` on a cleared figure.
- griddata: `ToInterpolatedGrid` of torcheeg, one scipy call a map over the electrodes' places on its 9x9 grid, here
  sampled at the same size. Its map is another one (the box round the electrodes, 0 beyond their hull).

The difference is the largest over the head between the operator (float32) and MNE's interpolation, for values of unit
variance. The setup is the operator's, spent once.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import matplotlib.pyplot as plt
import mne
import numpy as np
import torch
from mne.viz.topomap import _get_pos_outlines, _setup_interp
from scipy.interpolate import griddata

from ngd_timm.eeg.signal.recording import EMOTIV_14
from ngd_timm.eeg.topomap import TopomapOperator, standard_montage

# Electrodes on torcheeg's 9x9 grid.
PLACES = """
    .    .    .    Fp1  .    Fp2  .    .    .
    .    .    .    AF3  .    AF4  .    .    .
    F7   .    F3   .    Fz   .    F4   .    F8
    .    FC5  .    FC1  .    FC2  .    FC6  .
    T7   .    C3   .    Cz   .    C4   .    T8
    .    CP5  .    CP1  .    CP2  .    CP6  .
    P7   .    P3   .    Pz   .    P4   .    P8
    .    .    .    PO3  .    PO4  .    .    .
    .    .    .    O1   Oz   O2   .    .    .
"""
PLACE = {
    name: (row, column)
    for row, line in enumerate(PLACES.strip().splitlines())
    for column, name in enumerate(line.split())
    if name != "."
}
MONTAGES = {14: list(EMOTIV_14), 32: list(PLACE)}
METHODS = ["batch", "one map", "MNE interpolation", "MNE figure", "griddata"]


def mne_interpolation(info: mne.Info, size: int) -> Callable[[np.ndarray], np.ndarray]:
    positions, outlines = _get_pos_outlines(info, None, np.array([0, 0, 0, 0.095]))
    _, x, y, interpolator = _setup_interp(positions, size, "cubic", "head", outlines, "mean")
    interpolator.set_locations(x, y)
    return lambda values: interpolator.set_values(values)()


def mne_figure(info: mne.Info, size: int) -> Callable[[np.ndarray], object]:
    figure = plt.figure()

    def draw(values: np.ndarray) -> object:
        figure.clear()
        return mne.viz.plot_topomap(values, info, axes=figure.subplots(), res=size, show=False)

    return draw


def torcheeg_grid(channels: list[str], size: int) -> Callable[[np.ndarray], np.ndarray]:
    places = np.array([PLACE[name] for name in channels])
    low, high = places.min(axis=0), places.max(axis=0)
    y, x = np.mgrid[low[0] : high[0] : size * 1j, low[1] : high[1] : size * 1j]
    return lambda values: griddata(places, values, (x, y), method="cubic", fill_value=0)


def rate(step: Callable[[int], object], seconds: float) -> float:
    """Calls a second, over at least `seconds` and one call."""
    calls = 0
    began = time.perf_counter()
    while calls == 0 or time.perf_counter() - began < seconds:
        step(calls)
        calls += 1
    return calls / (time.perf_counter() - began)


def on_gpu(operator: TopomapOperator, values: torch.Tensor, seconds: float) -> float:
    def step(_: int) -> None:
        operator(values)
        torch.cuda.synchronize()

    step(0)
    return len(values) * rate(step, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", choices=sorted(MONTAGES), default=sorted(MONTAGES))
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 224])
    parser.add_argument("--batch", type=int, default=320, help="default: a teacher's, 64 samples of five bands")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="time of one method in one round")
    parser.add_argument("--threads", type=int, help="torch threads; the default is torch's own")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 0.02
    if options.threads:
        torch.set_num_threads(options.threads)

    mne.set_log_level("error")
    plt.switch_backend("agg")
    print(
        f"batches of {options.batch}, {torch.get_num_threads()} threads, median of {options.rounds} rounds, "
        f"torch {torch.__version__}, MNE {mne.__version__}\n"
    )
    heads = [f"{name}, maps/s" for name in METHODS] + [f"batch / {name}" for name in METHODS[2:]]
    print(f"| channels | px | {' | '.join(heads)} | difference to MNE | setup, s |")
    print("|---" * (len(heads) + 4) + "|")
    extra = []
    for count in options.channels:
        channels = MONTAGES[count]
        info = mne.create_info(channels, 1.0, "eeg").set_montage(standard_montage("standard_1005"))
        for size in options.sizes:
            began = time.perf_counter()
            operator = TopomapOperator(channels, size=size)
            setup = time.perf_counter() - began
            values = torch.randn(options.batch, count, generator=torch.Generator().manual_seed(size))
            arrays = values.double().numpy()
            image, draw, grid = mne_interpolation(info, size), mne_figure(info, size), torcheeg_grid(channels, size)
            steps: list[Callable[[int], object]] = [
                lambda _, o=operator, v=values: o(v),
                lambda i, o=operator, v=values: o(v[i % len(v)]),
                *(lambda i, m=method, a=arrays: m(a[i % len(a)]) for method in (image, draw, grid)),
            ]
            for step in steps:
                step(0)
            rounds = [[rate(step, options.seconds) for step in steps] for _ in range(options.rounds)]
            for row in rounds:
                row[0] *= options.batch
            rates = [statistics.median(column) for column in zip(*rounds, strict=True)]
            times = [statistics.median(row[0] / row[i] for row in rounds) for i in range(2, len(METHODS))]
            difference = max(
                np.abs(ours.numpy() - image(array))[operator.mask].max()
                for ours, array in zip(operator(values[:16]), arrays, strict=False)
            )
            cells = [f"{value:,.0f}" for value in (*rates, *times)]
            print(f"| {count} | {size} | {' | '.join(cells)} | {difference:.1e} | {setup:.2f} |", flush=True)
            plt.close("all")
            if torch.cuda.is_available():
                speed = on_gpu(operator, values.cuda(), options.seconds)
                extra.append(f"| {count} | {size} | {speed:,.0f} | {speed / rates[2]:,.0f} |")
    if extra:
        print(f"\n| channels | px | batch on {torch.cuda.get_device_name()}, maps/s | batch / MNE interpolation |")
        print("\n".join(["|---|---|---|---|", *extra]))


if __name__ == "__main__":
    main()
