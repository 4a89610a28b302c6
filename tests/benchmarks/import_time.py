"""Wall and processor time of `import ngd_timm` against `import timm`, each in fresh processes that take turns.

    python tests/benchmarks/import_time.py --pairs 40

Prints the medians and the median of the pairwise ratios with its quartiles. Processor time hardly sees what
else the machine does. The order within a pair alternates, so that a machine which grows busier or calmer favours
neither; the first pair warms the disk's cache and isn't counted.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from measuring import parser

MODULES = ("timm", "ngd_timm")


def seconds(module: str) -> tuple[float, float]:
    """Wall and processor time of a fresh process that imports it."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began, spent


def report(what: str, taken: dict[str, list[float]]) -> None:
    timms, ours = (taken[module] for module in MODULES)
    low, middle, high = statistics.quantiles([b / a for a, b in zip(timms, ours, strict=True)], n=4)
    print(
        f"{what}: import timm {statistics.median(timms):.2f} s, import ngd_timm {statistics.median(ours):.2f} s, "
        f"ratio {middle:.3f} (quartiles {low:.3f} to {high:.3f}, {len(ours)} pairs)"
    )


def main() -> None:
    options = parser(__doc__, pairs=40).parse_args()

    wall: dict[str, list[float]] = {module: [] for module in MODULES}
    processor: dict[str, list[float]] = {module: [] for module in MODULES}
    for pair in range(options.pairs + 1):
        for module in MODULES if pair % 2 else MODULES[::-1]:
            elapsed, spent = seconds(module)
            if pair:
                wall[module].append(elapsed)
                processor[module].append(spent)
    report("wall", wall)
    report("processor", processor)


if __name__ == "__main__":
    main()
