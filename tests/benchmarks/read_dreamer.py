"""Seconds and memory of reading DREAMER.mat as a stream, beside SciPy's `loadmat`, each in a process of its own.

    ngd teacher simulate dreamer DREAMER.mat --subjects 23 --seconds 199
    python tests/benchmarks/read_dreamer.py DREAMER.mat

A file of the real one's size; the real one can be given too. MB is the process's peak of resident memory above what it
was after the imports.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import scipy.io

from ngd_timm.eeg.readers.dreamer import read_dreamer


def stream(file: str) -> None:
    for _ in read_dreamer(file).read():
        pass


def loadmat(file: str) -> None:
    scipy.io.loadmat(file)


READERS = {"read_dreamer": stream, "loadmat": loadmat}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=READERS, help="one reading in this process: its seconds and MB")
    options = parser.parse_args()
    if options.only:
        before, began = peak_mb(), time.perf_counter()
        READERS[options.only](options.file)
        print(time.perf_counter() - began, peak_mb() - before)
        return
    print(f"{options.file}: {Path(options.file).stat().st_size / 1e6:,.0f} MB, {options.rounds} rounds")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in READERS}
    for _ in range(options.rounds):
        for name in READERS:
            line = subprocess.run(
                [sys.executable, __file__, options.file, "--only", name], check=True, capture_output=True, text=True
            ).stdout
            seconds, mb = map(float, line.split())
            found[name].append((seconds, mb))
    for name, of in found.items():
        seconds, mb = (statistics.median(values) for values in zip(*of, strict=True))
        print(f"{name}: {seconds:.1f} s, {mb:,.0f} MB")
    ratios = [theirs[0] / ours[0] for ours, theirs in zip(found["read_dreamer"], found["loadmat"], strict=True)]
    print(f"loadmat takes {statistics.median(ratios):.2f} times the seconds ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
