"""The pipeline alone: images a second from Arrow to augmented float batch, against timm's loader, taken in turns.

    python tests/benchmarks/pipeline.py --data FOLDER

FOLDER holds FER+ as parquet; without it faces are drawn. Two settings: small grey images (ours decodes them once,
before the first batch, and augments whole batches in memory; that set-up is printed too), and colour JPEGs of --jpeg
pixels a side to 224 (ours decodes each when it is drawn). Both rotate, shift, zoom, flip, change light and erase:
timm's options give all but rotation and shift, which torchvision's `RandomAffine` adds; `--options-only` leaves them
out, and timm's images are less work then.

Wall is images by the clock, both sides with the same number of worker processes (none for ours in memory); CPU is
images by the seconds of the process and its workers. Ratios are of the same round: median, least and most.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measuring import cpu_seconds, drawn_jpegs, faces, parser, spread, timm_dataset, timm_loader

from ngd_timm.core.recipe import AugmentConfig
from ngd_timm.data import FaceBatches


def epoch(batches: Any) -> tuple[float, float]:
    began, used, images = time.perf_counter(), cpu_seconds(), 0
    for batch in batches:
        images += len(batch.images if hasattr(batch, "images") else batch[0])
    return images / (time.perf_counter() - began), images / (cpu_seconds() - used)


def compare(title: str, ours: FaceBatches, theirs: Any, rounds: int) -> None:
    epoch(ours), epoch(theirs)
    rates = [(epoch(ours), epoch(theirs)) for _ in range(rounds)]
    print(f"{title}, {rounds} rounds of {len(ours)} batches of {ours.batch_size}, load {os.getloadavg()[0]:.1f}")
    for column, kind in enumerate(("wall", "CPU")):
        a, b = (statistics.median(r[side][column] for r in rates) for side in (0, 1))
        ratios = spread(one[column] / other[column] for one, other in rates)
        print(f"  {kind}: ours {a:,.0f} images/s, timm {b:,.0f}; {ratios}")


def main() -> None:
    arguments = parser(__doc__, data=True, rows=4000, jpegs=384, workers=2, rounds=5, threads=1)
    arguments.add_argument("--sizes", type=int, nargs="*", default=[48, 64], help="of the small images' batches")
    arguments.add_argument("--jpeg", type=int, nargs="*", default=[256, 640], help="sides of the JPEGs")
    arguments.add_argument("--options-only", action="store_true", help="timm without rotation and shift")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    augment = AugmentConfig()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        dataset = faces(options.data, scratch, options.rows)
        small = timm_dataset(dataset, scratch / "timm", "L")
        for size in options.sizes:
            used = cpu_seconds()
            ours = FaceBatches(dataset, image_size=size, train=True, augment=augment)
            setup = cpu_seconds() - used
            theirs = timm_loader(small, 1, size, 128, options.workers, augment, not options.options_only)
            compare(
                f"in memory, {size} px (set-up once {1e3 * setup / len(dataset):.2f} ms of CPU an image)",
                ours,
                theirs,
                options.rounds,
            )
        for side in options.jpeg:
            dataset = drawn_jpegs(scratch, options.jpegs, side)
            theirs = timm_loader(
                timm_dataset(dataset, scratch / f"timm{side}", "RGB"),
                3,
                224,
                32,
                options.workers,
                augment,
                not options.options_only,
            )
            ours = FaceBatches(
                dataset,
                image_size=224,
                in_chans=3,
                batch_size=32,
                train=True,
                augment=augment,
                in_memory=False,
                workers=options.workers,
            )
            compare(f"per image, JPEG of {side} px to 224 px, {options.workers} workers", ours, theirs, options.rounds)


if __name__ == "__main__":
    main()
