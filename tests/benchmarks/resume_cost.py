"""What a checkpoint costs: seconds to write one, beside the seconds of an epoch, in a run as recipes describe it.

    python tests/benchmarks/resume_cost.py --backbone resnet18 --size 64 --images 2000 --checkpoints 20

Prints the median and range of n checkpoints (EMA off and on), their size on disk, the seconds of an epoch and of one of
FER+'s 28,000 images at that speed, and how often `save_every: auto` then writes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from ngd_timm.core.recipe import Recipe
from ngd_timm.data.synthetic.schematic import write_schematic
from ngd_timm.train.checkpoint import Checkpoints, Progress
from ngd_timm.train.interruption import Interruption
from ngd_timm.train.loop import _train_epoch, prepare

FERPLUS = 28_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        faces = folder / "faces"
        write_schematic(faces, "pencil", n_train=options.images, n_valid=16, n_test=16, seed=0, image_size=48)
        for ema in (None, 0.999):
            recipe = Recipe.model_validate(
                {
                    "name": "cost",
                    "student": {"backbone": options.backbone, "image_size": options.size},
                    "data": {"name": "schematic", "root": str(faces), "workers": 0, "drop_duplicates": False},
                    "optim": {"epochs": options.epochs, "batch_size": 128, "ema": ema},
                    "share_every": 0,
                    "save_every": 0,
                }
            )
            setup, progress = prepare(recipe), Progress()
            checkpoints = Checkpoints(folder / "last", 0)
            seconds = []
            with Interruption() as stop:
                for _ in range(options.epochs):
                    began = time.perf_counter()
                    row = _train_epoch(setup, progress, checkpoints, stop)
                    seconds.append(time.perf_counter() - began)
                    progress.finish_epoch(row)
            progress.step = 1
            costs = []
            for _ in range(options.checkpoints):
                checkpoints.save(setup, progress)
                costs.append(checkpoints.cost)
            size = checkpoints.step_file.stat().st_size / 1e6
            epoch, cost = statistics.median(seconds), statistics.median(costs)
            whole = epoch * FERPLUS / (len(setup.batches) * 128)
            images = 128 * len(setup.batches)
            spread = f"median of n = {len(costs)}, {min(costs):.3f} to {max(costs):.3f}"
            epochs = f"median of n = {len(seconds)}, {min(seconds):.1f} to {max(seconds):.1f}"
            print(
                f"{options.backbone}, {options.size} px, EMA {'on' if ema else 'off'}, {options.threads} threads: a "
                f"checkpoint of {size:.0f} MB takes {cost:.3f} s ({spread}); an epoch of {images} images "
                f"{epoch:.1f} s ({epochs}), so one of {FERPLUS} {whole:.0f} s; a checkpoint is "
                f"{100 * cost / whole:.2f} % of that, and save_every=auto writes one every {100 * cost:.0f} s"
            )


if __name__ == "__main__":
    main()
