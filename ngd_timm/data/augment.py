"""Whole-batch augmentation: small uint8 images to a normalised float batch, with one resampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from ngd_timm.core.devices import send
from ngd_timm.core.recipe import AugmentConfig

_ERASE_AREA = (0.02, 1 / 3)
_ERASE_ASPECT = 0.3
# Output numbers made at once on a CPU: large images a few at a time, since a whole batch doesn't stay in the caches.
_IN_CACHE = 1 << 19


@dataclass(frozen=True)
class AugmentDraw:
    """The random numbers of one batch, drawn on the CPU so that a device or a thread count can't change them."""

    theta: torch.Tensor  # (B, 2, 3) affine maps from output to source, both in [-1, 1] coordinates
    brightness: torch.Tensor  # (B,) factors
    contrast: torch.Tensor  # (B,) factors
    box: torch.Tensor  # (B, 4) left, top, right, bottom of the erased box as shares of the side, 0 where none is
    gamma: torch.Tensor  # (B,) exponents of the grey values
    stretch: torch.Tensor  # (B,) bool: whether the contrast is stretched
    blur: torch.Tensor  # (B,) sigma of a Gaussian as a share of the side, 0 for none
    downscale: torch.Tensor  # (B,) share of the resolution that is lost

    def __getitem__(self, rows: slice) -> AugmentDraw:
        """The parameters of some rows."""
        return AugmentDraw(*(getattr(self, field.name)[rows] for field in fields(self)))

    def to(self, device: torch.device) -> AugmentDraw:
        """The same on a device, by one copy that is not waited for."""
        if device.type == "cpu":
            return self
        values = [getattr(self, field.name) for field in fields(self)]
        together = send(torch.cat([v.flatten(1) if v.ndim > 1 else v[:, None] for v in values], dim=1), device)
        parts = together.split([v[0].numel() for v in values], dim=1)
        return AugmentDraw(*(p.reshape(v.shape).to(v.dtype) for p, v in zip(parts, values, strict=True)))


@dataclass(frozen=True)
class _Plan:
    """What the host decides of a batch, so that nothing is read back from a device."""

    samples: list[tuple[int, torch.Tensor]]  # so many samples a pixel and side, and the rows that need them
    softens: bool
    stretched: torch.Tensor | None  # rows
    has_gamma: bool
    erased: list[list[int]]  # left, top, right and bottom pixel of each row's box


def plan_batch(draw: AugmentDraw, side: int, image_size: int) -> _Plan:
    """Decide on the CPU, where the draw is; `side` is the shorter one of the images."""
    # source pixels that lie between two of the output, rounded up: so many samples a pixel and side are averaged
    reach = draw.theta[:, :, :2].norm(dim=1).amax(dim=1) * side / image_size
    samples = (reach - 1e-4).ceil().clamp(min=1).int()
    # a pixel is erased where its centre lies in the box
    centres = (torch.arange(image_size) + 0.5) / image_size
    return _Plan(
        samples=[(n, (samples == n).nonzero()[:, 0]) for n in samples.unique().tolist()],
        softens=bool((draw.blur > 0).any() or (draw.downscale > 0).any()),
        stretched=draw.stretch.nonzero()[:, 0] if bool(draw.stretch.any()) else None,
        has_gamma=bool((draw.gamma != 1).any()),
        erased=torch.searchsorted(centres, draw.box).tolist(),
    )


def draw_augment(config: AugmentConfig, batch: int, generator: torch.Generator) -> AugmentDraw:
    """Draw flips, affine maps, light, sharpness and erased boxes for a batch.

    Every number is drawn whether its part is on or off, so switching one part off leaves the others as they were.
    """
    chance = torch.rand(batch, 2, generator=generator)
    spread = torch.rand(batch, 6, generator=generator) * 2 - 1
    place = torch.rand(batch, 4, generator=generator)
    grain = torch.rand(batch, 4, generator=generator)
    mirror = 1 - 2 * (chance[:, 0] < config.flip).float()
    angle = config.rotate * spread[:, 0]
    zoom = 1 + config.scale * spread[:, 1]
    # + 0.0 turns -0.0 into 0.0, which would otherwise differ in print and in nothing else
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom + 0.0
    shift = 2 * config.shift * spread[:, 2:4] + 0.0
    theta = torch.stack(
        [
            torch.stack([cos * mirror, 0.0 - sin, shift[:, 0]], dim=1),
            torch.stack([sin * mirror + 0.0, cos, shift[:, 1]], dim=1),
        ],
        dim=1,
    )
    low, high = _ERASE_AREA
    area = low + (high - low) * place[:, 0]
    aspect = torch.exp(math.log(_ERASE_ASPECT) * (2 * place[:, 1] - 1))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    left, top = (1 - width) * place[:, 2], (1 - height) * place[:, 3]
    box = torch.stack([left, top, left + width, top + height], dim=1)
    return AugmentDraw(
        theta=theta,
        brightness=1 + config.brightness * spread[:, 4],
        contrast=1 + config.contrast * spread[:, 5],
        box=box * (chance[:, 1] < config.erase).float()[:, None],
        gamma=torch.exp(config.gamma * (2 * grain[:, 0] - 1)),
        stretch=grain[:, 1] < config.stretch,
        blur=config.blur * grain[:, 2],
        downscale=config.downscale * grain[:, 3],
    )


def render_batch(
    images: torch.Tensor, image_size: int, mean: Sequence[float], std: Sequence[float], draw: AugmentDraw
) -> torch.Tensor:
    """Resize, augment and normalise (B, 1 or C, H, W) uint8 to (B, C, image_size, image_size) float32.

    Affine map and resize are one bilinear resampling. Where an image is scaled down, as many samples a pixel are
    averaged as its scale needs (antialiasing). An oblong image gives its largest central square. What the affine map
    brings in from outside mirrors the image.
    """
    channels = len(mean)
    part = max(1, _IN_CACHE // (channels * image_size * image_size))
    if images.device.type != "cpu" or part >= len(images):
        return _render(images, image_size, mean, std, draw)
    out = torch.empty(len(images), channels, image_size, image_size)
    for start in range(0, len(images), part):
        rows = slice(start, start + part)
        out[rows] = _render(images[rows], image_size, mean, std, draw[rows])
    return out


def _render(
    images: torch.Tensor, image_size: int, mean: Sequence[float], std: Sequence[float], draw: AugmentDraw
) -> torch.Tensor:
    device, plan = images.device, plan_batch(draw, min(images.shape[-2:]), image_size)
    draw = draw.to(device)
    out = _resample(images, draw.theta, image_size, plan)
    if plan.softens:
        rows_of = _softening(image_size, draw.blur, draw.downscale)[:, None]
        out = rows_of @ out @ rows_of.mT
    if plan.stretched is not None:
        there = send(plan.stretched, device)
        out[there] = _stretched(out[there])
    bright = draw.brightness / 255
    offset = out.mean(dim=(1, 2, 3)) * bright * (1 - draw.contrast)
    out.mul_((bright * draw.contrast)[:, None, None, None]).add_(offset[:, None, None, None]).clamp_(0, 1)
    if plan.has_gamma:
        # pow with an exponent a row takes five times as long
        out.clamp_(min=1e-10).log_().mul_(draw.gamma[:, None, None, None]).exp_()
    mean_, scale = send(torch.stack([torch.tensor(mean), 1 / torch.tensor(std)]), device)[:, :, None, None]
    out = out.sub_(mean_).mul_(scale) if out.shape[1] == len(mean) else (out - mean_).mul_(scale)
    return _erase(out, plan.erased)


def _erase(images: torch.Tensor, boxes: list[list[int]]) -> torch.Tensor:
    """Set a box of each row to 0, the mean, in place."""
    if images.device.type != "cpu":
        return _erase_by_mask(images, boxes)
    # a mask of the whole batch costs a processor six passes
    for row, (left, top, right, bottom) in enumerate(boxes):
        if right > left and bottom > top:
            images[row, :, top:bottom, left:right] = 0.0
    return images


def _erase_by_mask(images: torch.Tensor, boxes: list[list[int]]) -> torch.Tensor:
    """The same by one operation."""
    left, top, right, bottom = send(torch.tensor(boxes), images.device).mT[:, :, None]
    at = torch.arange(images.shape[-1], device=images.device)
    inside = ((top <= at) & (at < bottom))[:, :, None] & ((left <= at) & (at < right))[:, None]
    return images.masked_fill_(inside[:, None], 0.0)


def _softening(size: int, blur: torch.Tensor, downscale: torch.Tensor) -> torch.Tensor:
    """(B, size, size) matrices that blur a row of pixels, then scale it down and up again as antialiased `interpolate`.

    Both are linear and separable, so a whole batch costs two products, whatever each image's strength.
    """
    at = torch.arange(size, device=blur.device) + 0.5
    gap = (at - at[:, None]) / (blur * size).clamp(min=1e-2)[:, None, None]
    # cut at five sigma: exp of what underflows, and products with it, take a hundred times as long
    gauss = torch.exp(-0.5 * gap.square().clamp(max=25)) * (gap.abs() < 5)
    kept = (size * (1 - downscale)).round().clamp(min=1)
    step = (size / kept)[:, None, None]
    centres = at[None, :, None] * step  # of the small image's pixels, of which only the first `kept` exist
    exists = at[None, :, None] < kept[:, None, None]
    small = (1 - (centres - at).abs() / step).clamp(min=0) * exists
    large = (1 - (at[None, :, None] / step - at).abs()).clamp(min=0) * exists.mT
    return _unit_sums(large) @ _unit_sums(small) @ _unit_sums(gauss)


def _unit_sums(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.sum(dim=-1, keepdim=True).clamp(min=1e-12)


def _stretched(images: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) on the scale of the pixels, every image's darkest percent black and its brightest white."""
    # every third pixel of every third row tells enough, and sorting is what costs
    ordered = images[:, :, ::3, ::3].flatten(1).sort(dim=1).values
    low, high = (ordered[:, round(q * (ordered.shape[1] - 1))][:, None, None, None] for q in (0.01, 0.99))
    return ((images - low) * (255 / (high - low).clamp(min=1))).clamp_(0, 255)


def _resample(images: torch.Tensor, theta: torch.Tensor, image_size: int, plan: _Plan) -> torch.Tensor:
    """(B, C, image_size, image_size) float32 on the scale of the pixels, of (B, C, H, W) images and (B, 2, 3) maps."""
    if [n for n, _ in plan.samples] == [1]:
        return _sample(images, theta, image_size)
    out = torch.empty(len(images), images.shape[1], image_size, image_size, device=images.device)
    for n, rows in plan.samples:
        there = send(rows, images.device)
        dense = _sample(images[there], theta[there], image_size * n)
        out[there] = F.avg_pool2d(dense, n) if n > 1 else dense
    return out


def _sample(images: torch.Tensor, theta: torch.Tensor, size: int) -> torch.Tensor:
    height, width = images.shape[-2:]
    device, side = images.device, min(height, width)
    if height != width:
        theta = theta * send(torch.tensor([side / width, side / height]), device)[:, None]
    # not F.affine_grid: its batched product with three columns takes thrice as long as the sampling itself
    at = (2 * torch.arange(size, device=device) + 1) / size - 1
    across, down, shift = theta[:, :, None, None].unbind(-1)
    grid = (across * at + (down * at[:, None] + shift)).permute(0, 2, 3, 1)
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
