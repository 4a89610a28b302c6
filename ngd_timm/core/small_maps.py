"""Convolutions on maps of a few pixels as matrix products, for training small images on a processor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SmallMapConv2d", "crop_to_one_size", "small_maps_as_products"]

# Output pixels up to which the products won in tests/benchmarks/throughput.py; at 4x4 the convolution does.
_PIXELS = 9


def small_maps_as_products(model: nn.Module) -> nn.Module:
    """Let a model's 3x3 convolutions compute maps of up to 3x3 pixels as matrix products while it trains.

    The last stage of a ResNet sees 2x2 maps at 48 and 64 px. There five of nine taps multiply padding (32 of 81 on 3x3
    maps), and oneDNN's kernels are made for larger maps. Values differ from the convolution's by rounding; in
    evaluation, on accelerators and on larger maps it is the convolution itself. Parameters, state dict and
    `isinstance(m, nn.Conv2d)` stay.

    Args:
        model: Changed in place.

    Returns:
        The model.

    Examples:
        >>> model = small_maps_as_products(nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, bias=False)))
        >>> type(model[0]).__name__, tuple(model(torch.randn(2, 4, 2, 2)).shape)
        ('SmallMapConv2d', (2, 8, 2, 2))
    """
    for module in model.modules():
        # a subclass may compute something else
        if type(module) is nn.Conv2d and _fits(module):
            module.__class__ = SmallMapConv2d
    return model


def _fits(conv: nn.Conv2d) -> bool:
    return _dense(conv) and conv.kernel_size == (3, 3) and conv.padding == (1, 1)


def _dense(conv: nn.Conv2d) -> bool:
    return conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros" and conv.bias is None


def crop_to_one_size(model: nn.Module, images: Tensor) -> nn.Module:
    """Fit a model's convolutions to images of one size (B, bands, H, W), whose last maps have a few pixels.

    Where a 3x3 kernel makes one pixel of one, or of 2x2, some taps lie on padding alone. They go, and with them what an
    optimizer spends on them: of `resnet10t` at 32 px 2.75 of 4.96 million weights. What is left, and 1x1 kernels on
    maps of up to four pixels, become products. Values differ by rounding; images of another size are lost on the model.

    Examples:
        >>> model = crop_to_one_size(nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, bias=False)), torch.zeros(1, 4, 1, 1))
        >>> tuple(model[0].weight.shape), tuple(model(torch.randn(2, 4, 1, 1)).shape)
        ((8, 4, 1, 1), (2, 8, 1, 1))
    """
    hooks = [m.register_forward_hook(_crop) for m in model.modules() if isinstance(m, nn.Conv2d)]
    training = model.training
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return model.train(training)


def _crop(conv: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    (rows, side), pixels = inputs[0].shape[-2:], output.shape[-2:].numel()
    if _fits(conv) and pixels == 1 and rows == side <= 2:
        kernel = conv.weight.detach()[:, :, 1 : 1 + side, 1 : 1 + side]
        conv.weight = nn.Parameter(kernel.clone(memory_format=torch.channels_last))
        conv.kernel_size, conv.padding, conv.__class__ = (side, side), (0, 0), _Patches
    elif type(conv) is nn.Conv2d and _dense(conv) and pixels == side * rows <= 4 and conv.kernel_size == (1, 1):
        conv.__class__ = _Patches


class _Patches(nn.Conv2d):
    """A convolution whose square kernel is all of the map, or a pixel, as one product."""

    def forward(self, input: Tensor) -> Tensor:
        side, x = self.kernel_size[0], input.permute(0, 2, 3, 1)
        patches = x.reshape(len(x), x.shape[1] // side, x.shape[2] // side, -1)
        return (patches @ self.weight.permute(0, 2, 3, 1).flatten(1).T).permute(0, 3, 1, 2)


class SmallMapConv2d(nn.Conv2d):
    """A 3x3 convolution with padding 1 and no bias, see `small_maps_as_products`."""

    def forward(self, input: Tensor) -> Tensor:
        rows, columns = ((n - 1) // s + 1 for n, s in zip(input.shape[-2:], self.stride, strict=True))
        if not self.training or input.device.type != "cpu" or rows * columns > _PIXELS:
            return super().forward(input)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            kind = torch.get_autocast_dtype("cpu")
            input, weight = input.to(kind), weight.to(kind)
        product: Tensor = _Products.apply(input, weight, self.stride)
        return product


class _Products(torch.autograd.Function):
    """One product an output pixel: the pixels that its kernel covers times the taps that lie on them."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
        x, w = images.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1)
        ctx.save_for_backward(images, weight)
        ctx.stride = stride
        batch, outputs = x.shape[0], w.shape[0]
        (rows, columns) = (_windows(n, s) for n, s in zip(x.shape[1:3], stride, strict=True))
        out = x.new_empty(batch, len(rows), len(columns), outputs)
        for i, (seen_rows, tap_rows) in enumerate(rows):
            for j, (seen_columns, tap_columns) in enumerate(columns):
                seen = x[:, seen_rows, seen_columns].reshape(batch, -1)
                out[:, i, j] = seen @ w[:, tap_rows, tap_columns].reshape(outputs, -1).T
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        images, weight = ctx.saved_tensors
        x, w, g = (t.permute(0, 2, 3, 1) for t in (images, weight, gradients[0]))
        to_x, to_w = torch.zeros_like(x), torch.zeros_like(w)
        batch, outputs = x.shape[0], w.shape[0]
        (rows, columns) = (_windows(n, s) for n, s in zip(x.shape[1:3], ctx.stride, strict=True))
        for i, (seen_rows, tap_rows) in enumerate(rows):
            for j, (seen_columns, tap_columns) in enumerate(columns):
                here = g[:, i, j]
                seen, taps = x[:, seen_rows, seen_columns], w[:, tap_rows, tap_columns]
                to_x[:, seen_rows, seen_columns].add_((here @ taps.reshape(outputs, -1)).view(seen.shape))
                to_w[:, tap_rows, tap_columns].add_((here.T @ seen.reshape(batch, -1)).view(taps.shape))
        return to_x.permute(0, 3, 1, 2), to_w.permute(0, 3, 1, 2), None


def _windows(size: int, stride: int) -> list[tuple[slice, slice]]:
    """For each output place along one side: the input places under the kernel, and the taps over them."""
    windows = []
    for centre in range(0, size, stride):
        first, last = max(centre - 1, 0), min(centre + 2, size)
        windows.append((slice(first, last), slice(first - centre + 1, last - centre + 1)))
    return windows
