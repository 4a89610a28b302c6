"""Training throughput: this package's loop against the same model trained by timm's own parts, taken in turns.

    python tests/benchmarks/throughput.py --data FOLDER --threads 2
    python tests/benchmarks/throughput.py --data FOLDER --device cuda

FOLDER holds FER+ as parquet; without it faces are drawn. The contenders, all on pictures of one channel:

- full objective: `FaceBatches` and `NeuroGazeTask` as `ngd train` sets them up, cross-entropy, Proto-KD and D-Geo, bf16
  where the processor has it, channels_last, fused AdamW, clipping.
- timm float32: `create_dataset("hfds/…")`, `create_loader` with the nearest augmentation that its options give (crop,
  flip, light, erasing; no rotation) and two workers, `ClassificationTask`, `create_optimizer_v2`, clipping.
- timm bf16, channels_last: the same under autocast.
- bare: forward, backward and step on one fixed tensor, with all that the full objective has of precision, format,
  products on small maps, optimizer and clipping.

A round gives every contender two steps that don't count and `--steps` that do. Wall is what a clock says; CPU is the
seconds of the process and its workers, which a neighbour on the same cores disturbs less (take `--threads 1` then: with
more, oneDNN's threads wait for each other by spinning). Ratios are of the same round: median, least and most.
On a GPU the clock stops once the device has done what it was given, and a warning of PyTorch's tells where a step of
the full objective waits for the device; it should be silent.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import repeat
from pathlib import Path
from typing import Any

import timm
import torch
from measuring import cpu_seconds, faces, timm_dataset, timm_loader
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask
from torch import nn

from ngd_timm import NeuroGazeLoss, NeuroGazeTask, PrototypeGrid, wrap
from ngd_timm.core.devices import autocast_type
from ngd_timm.core.recipe import AugmentConfig
from ngd_timm.data import FaceBatches
from ngd_timm.models.small_maps import small_maps_as_products

OURS, TIMM, TIMM_BF16, BARE = "full objective", "timm float32", "timm bf16, channels_last", "bare"


def stepper(
    model: nn.Module,
    loss: Callable[..., torch.Tensor],
    device: torch.device,
    dtype: torch.dtype | None,
    channels_last: bool,
    fused: bool,
) -> Callable[..., None]:
    options: dict[str, Any] = {"fused": True} if fused else {}
    optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-4, weight_decay=0.05, **options)

    def step(images: torch.Tensor, target: torch.Tensor) -> None:
        images, target = images.to(device, non_blocking=True), target.to(device, non_blocking=True)
        if channels_last:
            images = images.to(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=dtype) if dtype else nullcontext():
            value = loss(images, target)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def forever(batches: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for epoch in range(10**6):
        batches.set_epoch(epoch)
        for batch in batches:
            yield batch.images, batch.target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of FER+ as parquet")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="of timm's loader")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=6, help="timed steps of a contender in a round")
    parser.add_argument("--amp", choices=["auto", "bf16", "off"], default="auto", help="of the full objective")
    parser.add_argument("--plain-convolutions", action="store_true", help="no products on small maps in ours")
    parser.add_argument("--ahead", action="store_true", help="make our batches in a thread, as on a GPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("skipped: there is no GPU here that PyTorch can use")
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    dtype, augment = autocast_type(options.amp, device), AugmentConfig()
    if dtype == torch.float16:
        raise SystemExit("this GPU has no bf16; give --amp off, as fp16 needs a scaler")

    def student() -> nn.Module:
        return timm.create_model(options.backbone, num_classes=8, in_chans=1).train().to(device)

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        dataset = faces(options.data, scratch)
        batches = FaceBatches(
            dataset,
            image_size=options.size,
            batch_size=options.batch,
            train=True,
            augment=augment,
            ahead=options.ahead or device.type == "cuda",
        )
        grid = PrototypeGrid.default()
        wrapped = wrap(student(), grid=grid).to(device).to(memory_format=torch.channels_last)
        if not options.plain_convolutions:
            small_maps_as_products(wrapped)
        ours = NeuroGazeTask(
            wrapped, NeuroGazeLoss(grid, epochs=1, proto_kd=0.12, d_geo=0.012, ramp=(0, 0)), None, device, verbose=False
        )
        ours.train()
        bare = student().to(memory_format=torch.channels_last)
        if not options.plain_convolutions:
            small_maps_as_products(bare)
        theirs = timm_dataset(dataset, scratch / "timm", "L")
        loader = timm_loader(theirs, 1, options.size, options.batch, options.workers, augment, device=device)
        smoothing = {"smoothing": 0.055}
        timm32 = ClassificationTask(student(), criterion_kwargs=smoothing, device=device, verbose=False)
        timm16 = ClassificationTask(
            student().to(memory_format=torch.channels_last),
            criterion_kwargs=smoothing,
            device=device,
            verbose=False,
        )
        fixed = torch.randn(options.batch, 1, options.size, options.size, device=device)
        fixed = fixed.to(memory_format=torch.channels_last)
        target = torch.randint(0, 8, (options.batch,), device=device)
        sources: dict[str, Callable[[], Iterator[Any]]] = {
            OURS: lambda: forever(batches),
            TIMM: lambda: iter(loader),
            TIMM_BF16: lambda: iter(loader),
            BARE: lambda: repeat((fixed, target)),
        }
        steps = {
            OURS: stepper(wrapped, lambda x, y: ours(x, y)["loss"], device, dtype, True, True),
            TIMM: stepper(timm32.trainable_module, lambda x, y: timm32(x, y)["loss"], device, None, False, False),
            TIMM_BF16: stepper(
                timm16.trainable_module, lambda x, y: timm16(x, y)["loss"], device, torch.bfloat16, True, False
            ),
            BARE: stepper(
                bare, lambda x, y: nn.functional.cross_entropy(bare(x).float(), y), device, dtype, True, True
            ),
        }
        wall: dict[str, list[float]] = {n: [] for n in steps}
        cpu: dict[str, list[float]] = {n: [] for n in steps}
        for number in range(options.rounds):
            for contender in list(steps)[:: 1 if number % 2 == 0 else -1]:
                source, step = sources[contender](), steps[contender]
                for _ in range(2):
                    step(*next(source))
                wait(device)
                if device.type == "cuda" and contender == OURS:
                    torch.cuda.set_sync_debug_mode("warn")
                began, used = time.perf_counter(), cpu_seconds()
                for _ in range(options.steps):
                    step(*next(source))
                if device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
                wait(device)
                images = options.steps * options.batch
                wall[contender].append(images / (time.perf_counter() - began))
                cpu[contender].append(images / (cpu_seconds() - used))
                del source

    precision = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    print(
        f"{options.backbone}, {options.size} px, batch {options.batch}, {options.device}, {options.threads} thread(s), "
        f"full objective in "
        f"{precision}, {options.rounds} rounds of {options.steps} steps, load {os.getloadavg()[0]:.1f}, "
        f"torch {torch.__version__}, timm {timm.__version__}"
    )
    for name in steps:
        line = f"{name:26}"
        for kind, rates in (("wall", wall), ("CPU", cpu)):
            line += f"{statistics.median(rates[name]):6.0f} images/s {kind}"
            if name != OURS:
                ratios = sorted(a / b for a, b in zip(rates[OURS], rates[name], strict=True))
                line += f", ours {statistics.median(ratios):.2f} times ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            line += "; " if kind == "wall" else ""
        print(line)


if __name__ == "__main__":
    main()
