"""Training throughput: this package's loop against the same model trained by timm's own parts, taken in turns.

    python tests/benchmarks/throughput.py --data FOLDER --threads 2
    python tests/benchmarks/throughput.py --data FOLDER --device cuda

FOLDER holds FER+ as parquet; without it faces are drawn. The contenders, all on images of one channel:

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
On a GPU the clock stops once the device has finished, and PyTorch warns where a step of the full objective waits for
it; there should be no warning. `--compile` adds the full objective under torch.compile, `--json FILE` keeps all rates.
"""

from __future__ import annotations

import json
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
from measuring import cpu_seconds, faces, parser, spread, timm_dataset, timm_loader
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask
from torch import nn

from ngd_timm import NeuroGazeLoss, NeuroGazeTask, PrototypeGrid, wrap
from ngd_timm.core.devices import autocast_type
from ngd_timm.core.recipe import AugmentConfig
from ngd_timm.core.small_maps import small_maps_as_products
from ngd_timm.data import FaceBatches

OURS, TIMM, TIMM_BF16, BARE = "full objective", "timm float32", "timm bf16, channels_last", "bare"
COMPILED = "full objective, compiled"


def stepper(
    model: nn.Module,
    loss: Callable[..., torch.Tensor],
    device: torch.device,
    dtype: torch.dtype | None,
    channels_last: bool = True,
    ours: bool = False,
) -> Callable[..., None]:
    options: dict[str, Any] = {"fused": True} if ours else {}
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
    arguments = parser(__doc__, data=True, size=64, batch=128, threads=2, workers=2, rounds=6, steps=6)
    arguments.add_argument("--backbone", default="resnet18")
    arguments.add_argument("--amp", choices=["auto", "bf16", "off"], default="auto", help="of the full objective")
    arguments.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments.add_argument("--compile", action="store_true", help="add a contender: minutes of compilation on a CPU")
    arguments.add_argument("--json", type=Path, help="write rates, ratios and peak memory here")
    options = arguments.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("skipped: there is no GPU here that PyTorch can use")
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)

    def student() -> nn.Module:
        return timm.create_model(options.backbone, num_classes=8, in_chans=1).train().to(device)

    dtype, augment = autocast_type(options.amp, device, student()), AugmentConfig()
    if dtype == torch.float16:
        raise SystemExit("this GPU has no bf16; give --amp off, as fp16 needs a scaler")

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        dataset = faces(options.data, scratch)
        batches = FaceBatches(
            dataset, image_size=options.size, batch_size=options.batch, train=True, augment=augment, device=device
        )
        grid = PrototypeGrid.default()

        def objective() -> NeuroGazeTask:
            model = wrap(student(), grid=grid).to(device).to(memory_format=torch.channels_last)
            criterion = NeuroGazeLoss(grid, epochs=1, ramp=(0, 0))
            task = NeuroGazeTask(small_maps_as_products(model), criterion, device=device, verbose=False)
            task.train()
            return task

        ours = objective()
        bare = student().to(memory_format=torch.channels_last)
        small_maps_as_products(bare)
        theirs = timm_dataset(dataset, scratch / "timm", "L")
        loader = timm_loader(theirs, 1, options.size, options.batch, options.workers, augment, device=device)
        as_ours: dict[str, Any] = {"criterion_kwargs": {"smoothing": 0.055}, "device": device, "verbose": False}
        timm32 = ClassificationTask(student(), **as_ours)
        timm16 = ClassificationTask(student().to(memory_format=torch.channels_last), **as_ours)
        fixed = torch.randn(options.batch, 1, options.size, options.size, device=device)
        fixed = fixed.to(memory_format=torch.channels_last)
        target = torch.randint(0, 8, (options.batch,), device=device)
        sources: dict[str, Callable[[], Iterator[Any]]] = {
            OURS: lambda: forever(batches),
            TIMM: lambda: iter(loader),
            TIMM_BF16: lambda: iter(loader),
            BARE: lambda: repeat((fixed, target)),
        }
        model32, model16 = timm32.trainable_module, timm16.trainable_module
        steps = {
            OURS: stepper(ours.trainable_module, lambda x, y: ours(x, y)["loss"], device, dtype, ours=True),
            TIMM: stepper(model32, lambda x, y: timm32(x, y)["loss"], device, None, channels_last=False),
            TIMM_BF16: stepper(model16, lambda x, y: timm16(x, y)["loss"], device, torch.bfloat16),
            BARE: stepper(bare, lambda x, y: nn.functional.cross_entropy(bare(x).float(), y), device, dtype, ours=True),
        }
        if options.compile:
            fast = objective()
            fast.compile()
            sources[COMPILED] = sources[OURS]
            steps[COMPILED] = stepper(fast.trainable_module, lambda x, y: fast(x, y)["loss"], device, dtype, ours=True)
        wall: dict[str, list[float]] = {n: [] for n in steps}
        peak = dict.fromkeys(steps, 0)
        cpu: dict[str, list[float]] = {n: [] for n in steps}
        for number in range(options.rounds):
            for contender in list(steps)[:: 1 if number % 2 == 0 else -1]:
                source, step = sources[contender](), steps[contender]
                for _ in range(2):
                    step(*next(source))
                wait(device)
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                    torch.cuda.set_sync_debug_mode("warn" if contender == OURS else "default")
                began, used = time.perf_counter(), cpu_seconds()
                for _ in range(options.steps):
                    step(*next(source))
                if device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
                    peak[contender] = max(peak[contender], torch.cuda.max_memory_allocated())
                wait(device)
                images = options.steps * options.batch
                wall[contender].append(images / (time.perf_counter() - began))
                cpu[contender].append(images / (cpu_seconds() - used))
                del source

    precision = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    print(
        f"{options.backbone}, {options.size} px, batch {options.batch}, {options.device}, {options.threads} thread(s), "
        f"full objective in {precision}, {options.rounds} rounds of {options.steps} steps, "
        f"load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, timm {timm.__version__}"
    )
    for name in steps:
        line = f"{name:26}"
        for kind, rates in (("wall", wall), ("CPU", cpu)):
            line += f"{statistics.median(rates[name]):6.0f} images/s {kind}"
            if name != OURS:
                line += f", ours {spread(a / b for a, b in zip(rates[OURS], rates[name], strict=True))}"
            line += "; " if kind == "wall" else ""
        print(line)
    if options.json:
        ratios = {n: sorted(a / b for a, b in zip(wall[OURS], wall[n], strict=True)) for n in steps if n != OURS}
        figures = {"images_per_second": wall, "ours_over": ratios, "peak_bytes": peak}
        settings = {name: value for name, value in vars(options).items() if name not in ("json", "data")}
        options.json.write_text(json.dumps({**settings, "precision": precision, **figures}, indent=2))


if __name__ == "__main__":
    main()
