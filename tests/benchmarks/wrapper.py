"""What this package costs: the wrapped model against the bare timm model, taken in turns in one run.

    python tests/benchmarks/wrapper.py                              all models, precisions and modes
    python tests/benchmarks/wrapper.py --models resnet18 --precision float32 --modes eager --pairs 20

Prints a Markdown table. The forward is eval without gradients, the wrapper called plainly, as the bare model is. The
step is forward, loss, backward and AdamW, by the full objective (CE, Proto-KD, D-Geo) against cross-entropy. Ratios are
medians of pairwise ratios, with their quartiles; within a pair the order alternates.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

import timm
import torch
from measuring import parser
from torch import nn

from ngd_timm import NeuroGazeLoss, NeuroGazeTask, PrototypeGrid, wrap

SIZES = {"vit_tiny_patch16_224": 224}
MODELS = ("resnet18", "vit_tiny_patch16_224", "convnext_atto", "efficientnet_b0", "mobilenetv4_conv_small")
CLASSES = 8


class Pair:
    """A bare and a wrapped model of the same weights; compiled as timm's tasks do it: the model, not the loss."""

    def __init__(self, name: str, batch: int, bf16: bool, compiled: bool) -> None:
        torch.manual_seed(0)
        size = SIZES.get(name, 64)
        last = torch.channels_last
        self.images = torch.randn(batch, 3, size, size).to(memory_format=last)
        self.target = torch.arange(batch) % CLASSES
        self.bf16 = bf16
        grid = PrototypeGrid.default()
        bare = timm.create_model(name, num_classes=CLASSES).to(memory_format=last)
        wrapped = wrap(name, num_classes=CLASSES, grid=grid).to(memory_format=last)
        wrapped.student.load_state_dict(bare.state_dict())
        self.task = NeuroGazeTask(wrapped, NeuroGazeLoss(grid, epochs=1, ramp=(0, 0)), verbose=False)
        self.bare: nn.Module = bare
        if compiled:
            self.bare = torch.compile(bare)  # type: ignore[assignment]
            self.task.compile()
        self.optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-4, fused=True) for m in (bare, wrapped)]

    def mode(self, training: bool) -> None:
        self.bare.train(training)
        self.task.train(training)

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16)

    @torch.inference_mode()
    def forward(self, wrapped: bool) -> None:
        with self.autocast():
            (self.task.trainable_module if wrapped else self.bare)(self.images)

    def step(self, wrapped: bool) -> None:
        optimizer = self.optimizers[wrapped]
        with self.autocast():
            if wrapped:
                loss = self.task(self.images, self.target)["loss"]
            else:
                loss = nn.functional.cross_entropy(self.bare(self.images).float(), self.target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def compare(
    run: Callable[[bool], None], pairs: int, clock: Callable[[], float]
) -> tuple[float, float, tuple[float, float, float]]:
    """Median seconds bare and wrapped, and the quartiles of the pairwise ratios."""
    for wrapped in (False, True, False, True):
        run(wrapped)
    taken: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for wrapped in (False, True) if pair % 2 else (True, False):
            began = clock()
            run(wrapped)
            taken[wrapped].append(clock() - began)
    low, middle, high = statistics.quantiles([b / a for a, b in zip(*taken, strict=True)], n=4)
    return statistics.median(taken[False]), statistics.median(taken[True]), (low, middle, high)


def main() -> None:
    arguments = parser(__doc__, batch=32, pairs=20)
    arguments.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    arguments.add_argument("--precision", nargs="+", default=["float32", "bf16"], choices=["float32", "bf16"])
    arguments.add_argument("--modes", nargs="+", default=["eager", "compile"], choices=["eager", "compile"])
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments.add_argument("--clock", default="wall", choices=list(CLOCKS), help="processor time for a busy machine")
    options = arguments.parse_args()

    torch.set_num_threads(options.threads)
    cases = itertools.product(options.models, options.precision, options.modes)
    print(
        f"Batch {options.batch}, {options.threads} threads, {options.pairs} pairs, {options.clock} time; "
        "ratios: median (quartiles)\n"
    )
    print("| model | px | precision | mode | forward | step | step bare, ms | step wrapped, ms |")
    print("|---|---|---|---|---|---|---|---|")
    for name, precision, mode in cases:
        # what was compiled for one model makes the next one's shapes dynamic
        torch.compiler.reset()
        pair = Pair(name, options.batch, precision == "bf16", mode == "compile")
        pair.mode(training=False)
        forward = compare(pair.forward, options.pairs, CLOCKS[options.clock])
        pair.mode(training=True)
        step = compare(pair.step, options.pairs, CLOCKS[options.clock])
        ratios = (f"{middle:.3f} ({low:.3f} to {high:.3f})" for _, _, (low, middle, high) in (forward, step))
        size = pair.images.shape[-1]
        cells = [name, str(size), precision, mode, *ratios, f"{1000 * step[0]:.1f}", f"{1000 * step[1]:.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
