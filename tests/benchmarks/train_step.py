"""What the objective costs: a training step of the wrapped model against the bare timm model, taken in turns.

    python tests/benchmarks/train_step.py --backbone resnet18 --size 64 --batch 128

Prints the median seconds of each and the median of the pairwise ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import nn

from ngd_timm import NeuroGazeLoss, NeuroGazeTask, PrototypeGrid, wrap


def stepper(model: nn.Module, loss: Callable[[], torch.Tensor], amp: bool) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        began = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        return time.perf_counter() - began

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--amp", action="store_true", help="bf16 autocast")
    options = parser.parse_args()

    torch.manual_seed(0)
    images = torch.randn(options.batch, 1, options.size, options.size).to(memory_format=torch.channels_last)
    target = torch.randint(0, 8, (options.batch,))
    grid = PrototypeGrid.default()
    bare = timm.create_model(options.backbone, num_classes=8, in_chans=1).to(memory_format=torch.channels_last)
    wrapped = wrap(options.backbone, grid=grid, in_chans=1).to(memory_format=torch.channels_last)
    task = NeuroGazeTask(wrapped, NeuroGazeLoss(grid, epochs=1, ramp=(0, 0)), verbose=False)
    bare.train()
    task.train()
    first = stepper(bare, lambda: nn.functional.cross_entropy(bare(images).float(), target), options.amp)
    second = stepper(wrapped, lambda: task(images, target)["loss"], options.amp)
    first(), second()
    pairs = [(first(), second()) for _ in range(options.pairs)]
    plain, full = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(b / a for a, b in pairs)
    print(
        f"{options.backbone}, {options.size} px, batch {options.batch}, {'bf16' if options.amp else 'float32'}: "
        f"bare {options.batch / plain:.0f} images/s, full objective {options.batch / full:.0f} images/s, "
        f"ratio of times {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}, {len(pairs)} pairs)"
    )


if __name__ == "__main__":
    main()
