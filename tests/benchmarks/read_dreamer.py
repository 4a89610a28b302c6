"""Seconds and memory of reading DREAMER.mat, in this process and in the child that parses the file.

    ngd teacher simulate dreamer DREAMER.mat --subjects 23 --seconds 199
    python tests/benchmarks/read_dreamer.py DREAMER.mat

The simulated file has the size of the real one, which can be read too. MB is the peak of resident memory, of this
process above what it was after the imports.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

from ngd_timm.eeg.readers.dreamer import read_dreamer


def peak_mb(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    imports, start = peak_mb(resource.RUSAGE_SELF), time.perf_counter()
    recordings = read_dreamer(file)
    opened = time.perf_counter()
    count = sum(1 for _ in recordings)
    read = time.perf_counter()
    print(f"{file}: {file.stat().st_size / 1e6:,.0f} MB, {count} recordings")
    print(f"opened in {opened - start:.1f} s, iterated over in {read - opened:.1f} s")
    here, child = peak_mb(resource.RUSAGE_SELF) - imports, peak_mb(resource.RUSAGE_CHILDREN)
    print(f"{here:,.0f} MB here, {child:,.0f} MB in the child")


if __name__ == "__main__":
    main()
