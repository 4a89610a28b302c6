"""What makes a training step of a small ResNet faster on a processor, and how near it is to the processor's limit.

    python tests/benchmarks/cpu_training.py --threads 2
    python tests/benchmarks/cpu_training.py --threads 2 --compile

Every contender is a ResNet-18 of one input channel on a fixed tensor: forward, cross-entropy, backward, clipping, fused
AdamW, bf16 where `optim.amp: auto` takes it, channels_last. The reference is what `ngd train` does; each other changes
one thing:

- no products, products up to 4x4: where 3x3 convolutions are matrix products (`small_maps_as_products`, up to 3x3).
- weight gradients as products: on maps of 4x4 to 16x16, nine products instead of oneDNN's kernel; the rest as it was.
- batch 256, batch 512; batch norm frozen (running statistics); stem and first stage frozen, two stages frozen.
- 48 px, 32 px: smaller images, for schedules that begin with them.
- compiled (--compile): torch.compile with the inductor, at steady state.

A round gives each two steps that don't count and --steps that do; ratios are of one round. The limit is the rate of a
large matrix product in the same type, in the same rounds; a step's operations are those of its convolutions and of the
classifier, padding included, so a step without the taps on padding can pass what this says.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from measuring import parser, spread
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ngd_timm.core import small_maps
from ngd_timm.core.devices import CPU, autocast_type

REFERENCE = "as ngd train"
SIDE = 4096  # of the large product


class WeightGradient(torch.autograd.Function):
    """A 3x3 convolution whose gradient for the weights is a product for each tap."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(images, weight)
        return nn.functional.conv2d(images, weight, padding=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        images, weight = ctx.saved_tensors
        (g,) = gradients
        to_images = torch.nn.grad.conv2d_input(images.shape, weight, g, padding=1)
        rows = g.permute(0, 2, 3, 1).reshape(-1, g.shape[1]).T
        padded = nn.functional.pad(images.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        height, width = images.shape[-2:]
        taps = [
            rows @ padded[:, i : i + height, j : j + width].reshape(-1, images.shape[1])
            for i in range(3)
            for j in range(3)
        ]
        return to_images, torch.stack(taps, dim=-1).view(*weight.shape)


class GradientConv2d(small_maps.SmallMapConv2d):
    def forward(self, input: Tensor) -> Tensor:
        if self.stride != (1, 1) or not 4 <= input.shape[-1] <= 16:
            return super().forward(input)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            kind = torch.get_autocast_dtype("cpu")
            input, weight = input.to(kind), weight.to(kind)
        product: Tensor = WeightGradient.apply(input, weight)
        return product


@dataclass
class Contender:
    size: int = 64
    batch: int = 128
    products_up_to: int = 9  # output pixels
    frozen: tuple[str, ...] = ()
    frozen_norm: bool = False
    gradient_products: bool = False
    compiled: bool = False
    rates: list[float] = field(default_factory=list)

    def prepare(self, backbone: str, dtype: torch.dtype | None) -> None:
        self.model = timm.create_model(backbone, num_classes=8, in_chans=1).train()
        self.model.to(memory_format=torch.channels_last)
        small_maps.small_maps_as_products(self.model)
        for module in self.model.modules():
            if self.gradient_products and type(module) is small_maps.SmallMapConv2d:
                module.__class__ = GradientConv2d
            if self.frozen_norm and isinstance(module, nn.BatchNorm2d):
                module.eval()
        for name in self.frozen:
            getattr(self.model, name).requires_grad_(False)
        self.images = torch.randn(self.batch, 1, self.size, self.size).to(memory_format=torch.channels_last)
        self.target = torch.randint(0, 8, (self.batch,))
        self.optimizer = create_optimizer_v2(self.model, opt="adamw", lr=2e-4, weight_decay=0.05, fused=True)
        self.forward: Callable[[Tensor], Tensor] = torch.compile(self.model) if self.compiled else self.model
        self.dtype = dtype

    def step(self) -> None:
        small_maps._PIXELS = self.products_up_to
        with torch.autocast("cpu", dtype=self.dtype) if self.dtype else nullcontext():
            logits = self.forward(self.images)
        loss = nn.functional.cross_entropy(logits.float(), self.target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()

    def time(self, steps: int) -> None:
        for _ in range(2):
            self.step()
        began = time.perf_counter()
        for _ in range(steps):
            self.step()
        self.rates.append(steps * self.batch / (time.perf_counter() - began))


def contenders(compiled: bool) -> dict[str, Contender]:
    found = {
        REFERENCE: Contender(),
        "no products": Contender(products_up_to=0),
        "products up to 4x4": Contender(products_up_to=16),
        "weight gradients as products": Contender(gradient_products=True),
        "batch 256": Contender(batch=256),
        "batch 512": Contender(batch=512),
        "batch norm frozen": Contender(frozen_norm=True),
        "stem, first stage frozen": Contender(frozen=("conv1", "bn1", "layer1")),
        "stem, two stages frozen": Contender(frozen=("conv1", "bn1", "layer1", "layer2")),
        "48 px": Contender(size=48),
        "32 px": Contender(size=32),
    }
    return found | ({"compiled": Contender(compiled=True)} if compiled else {})


def operations(contender: Contender, backbone: str) -> float:
    """Floating-point operations of a step, an image."""
    model = timm.create_model(backbone, num_classes=8, in_chans=1).train()
    with FlopCounterMode(display=False) as counter:
        model(contender.images[:2]).sum().backward()
    return counter.get_total_flops() / 2


def product_rate(dtype: torch.dtype) -> float:
    a, b = torch.randn(SIDE, SIDE, dtype=dtype), torch.randn(SIDE, SIDE, dtype=dtype)
    a @ b
    began = time.perf_counter()
    a @ b
    return 2 * SIDE**3 / (time.perf_counter() - began)


def main() -> None:
    arguments = parser(__doc__, threads=2, rounds=6, steps=6)
    arguments.add_argument("--backbone", default="resnet18", help="a ResNet of timm")
    arguments.add_argument("--compile", action="store_true", help="add torch.compile: minutes of compilation")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dtype = autocast_type("auto", CPU)
    taking_turns = contenders(options.compile)
    for contender in taking_turns.values():
        contender.prepare(options.backbone, dtype)
    limits = []
    for number in range(options.rounds):
        for name in list(taking_turns)[:: 1 if number % 2 == 0 else -1]:
            taking_turns[name].time(options.steps)
        limits.append(product_rate(dtype or torch.float32))
    reference, limit = taking_turns[REFERENCE], statistics.median(limits)
    print(
        f"{options.backbone}, {dtype or torch.float32}, {options.threads} thread(s), {options.rounds} rounds of "
        f"{options.steps} steps, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}; a product of "
        f"{SIDE}x{SIDE} matrices: {limit / 1e9:.0f} ({min(limits) / 1e9:.0f} to {max(limits) / 1e9:.0f}) GFLOP/s"
    )
    for name, contender in taking_turns.items():
        rate, ratio = statistics.median(contender.rates), ""
        if contender is not reference:
            pairs = zip(contender.rates, reference.rates, strict=True)
            ratio = f", {spread(own / base for own, base in pairs)}"
        share = f", {100 * rate * operations(contender, options.backbone) / limit:.0f} % of the limit"
        print(f"{name:30}{rate:7.0f} images/s{'' if contender.frozen else share}{ratio}")


if __name__ == "__main__":
    main()
