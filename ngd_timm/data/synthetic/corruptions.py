"""Fifteen common corruptions in five severities, made for small face crops: noise, blur, weather, digital damage."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from ngd_timm.core.errors import InputError, choices

SEVERITIES = (1, 2, 3, 4, 5)
FRAMINGS = {
    "crop_scale": (0.8, 0.9, 1.1, 1.2),
    "shift_right": (-0.15, -0.075, 0.075, 0.15),
    "shift_down": (-0.15, -0.075, 0.075, 0.15),
}
"""Crops that are tighter, wider or displaced, as `reframe` takes them."""
SMALLEST = 8  # px a side that an image must have
_SIDE = 48  # px for which the strengths are given
_BLOCK = 1 << 22  # numbers worked on at once
_ZOOMS = 11

Draws = Sequence[np.random.Generator]


def corrupt(images: np.ndarray, name: str, severity: int, seed: int = 0, first: int = 0) -> np.ndarray:
    """Corrupt images as Hendrycks and Dietterich's ImageNet-C does, with strengths for 48-pixel faces.

    The list of corruptions and their ideas are theirs, the code and the numbers are not: scores don't compare with
    those on ImageNet-C. The strengths were chosen by eye, on drawn faces and on FER+'s, so that severity 1 is mild and
    people still tell most expressions at 5. Lengths (radii, streaks, the grain of noise, flakes, blocks of pixels) are
    shares of the image's shorter side, so a larger image is hurt alike; only JPEG's blocks stay 8 pixels wide.
    Frost is a drawn ice texture (veins and needles that grow in from the rim), where the original lays photographs over
    the image.

    An image's random numbers come from (seed, name, its place in the set); over the severities they are the same and
    only the strength changes. So the result does not depend on how a set is divided into batches.

    Images are (N, H, W) or (N, H, W, 1 or 3) uint8, and `first` is the place of the first in the set.

    Reference:
        Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
        ICLR 2019, arXiv 1903.12261.
    """
    if name not in _CORRUPTIONS:
        raise choices("corruption", name, CORRUPTIONS)
    if not isinstance(severity, (int, np.integer)) or severity is True or severity not in SEVERITIES:
        raise InputError(f"severity must be one of {', '.join(map(str, SEVERITIES))}, got {severity!r}")
    if min(seed, first) < 0:
        raise InputError(f"seed and first must be 0 or more, got {seed} and {first}")
    _check(images)
    function, strengths = _CORRUPTIONS[name]
    shape = images.shape
    images = images if images.ndim == 4 else images[..., None]
    scale = min(shape[1:3]) / _SIDE
    out = np.empty_like(images)
    step = max(_BLOCK // max(math.prod(images.shape[1:]), 1), 1)
    for start in range(0, len(images), step):
        part = images[start : start + step]
        places = range(first + start, first + start + len(part))
        draws = [np.random.default_rng([seed, CORRUPTIONS.index(name), place]) for place in places]
        changed = function(part.astype(np.float32) / 255, draws, strengths[severity - 1], scale)
        out[start : start + step] = np.rint(255 * changed.clip(0, 1))
    return out.reshape(shape)


def reframe(image: np.ndarray, name: str, level: float) -> np.ndarray:
    """Crop an image, (H, W) or (H, W, C), as if the face had been found otherwise; its edge goes on beyond it.

    Args:
        image: The face crop.
        name: One of `FRAMINGS`.
        level: The crop's side, or how far it moves that way, over the image's side; to whole pixels.

    Examples:
        >>> reframe(np.arange(16).reshape(4, 4), "shift_right", 0.25)[0].tolist()
        [1, 2, 3, 3]
    """
    scale, (height, width) = (level if name == "crop_scale" else 1.0), image.shape[:2]
    places = []
    for side, moves in ((height, "shift_down"), (width, "shift_right")):
        length = max(1, round(scale * side))
        first = round((side - length) / 2 + side * (level if name == moves else 0.0))
        places.append(np.clip(np.arange(length) + first, 0, side - 1))
    return image[np.ix_(*places)]


def _check(images: Any) -> None:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        kind = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise InputError(f"images to corrupt must be a numpy array of uint8, got {kind}")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise InputError(f"images to corrupt must be (N, H, W), (N, H, W, 1) or (N, H, W, 3), got {images.shape}")
    if min(images.shape[1:3]) < SMALLEST:
        raise InputError(f"images to corrupt must have sides of at least {SMALLEST} px, got {images.shape[1:3]}")


# Below, images are (N, H, W, C) float32 on the scale 0-1 and there is a generator an image; lengths are in pixels of an
# image of side 48 and are multiplied by `scale`. What is returned may leave 0-1.


def _gaussian_noise(images: np.ndarray, draws: Draws, deviation: float, scale: float) -> np.ndarray:
    noise = _grains(images.shape, scale, (rng.standard_normal for rng in draws))
    return images + deviation * noise


def _shot_noise(images: np.ndarray, draws: Draws, photons: float, scale: float) -> np.ndarray:
    grain = _grain(scale)
    light = ndimage.uniform_filter(images, (0, grain, grain, 0), mode="nearest") if grain > 1 else images
    light = light[:, grain // 2 :: grain, grain // 2 :: grain]
    caught = np.stack([rng.poisson(photons * own) for rng, own in zip(draws, light, strict=True)]) / photons
    return images + _enlarged((caught - light).astype(np.float32), images.shape, grain)


def _impulse_noise(images: np.ndarray, draws: Draws, share: float, scale: float) -> np.ndarray:
    chance = _grains(images.shape, scale, (rng.random for rng in draws))
    return np.where(chance < share / 2, 0, np.where(chance > 1 - share / 2, 1, images))


def _defocus_blur(images: np.ndarray, draws: Draws, radius: float, scale: float) -> np.ndarray:
    radius *= scale
    at = np.arange(-math.ceil(radius), math.ceil(radius) + 1)
    disc = (radius + 0.5 - np.hypot(at, at[:, None])).clip(0, 1)  # a soft rim: radii between whole pixels differ
    return np.stack([_convolved(image, disc) for image in images])


def _glass_blur(images: np.ndarray, draws: Draws, reach: float, scale: float) -> np.ndarray:
    moves = reach * scale * (2 * _grains((*images.shape[:3], 2), scale, (rng.random for rng in draws)) - 1)
    scattered = np.stack([_moved(image, own) for image, own in zip(images, moves, strict=True)])
    deviation = 0.1 * reach * scale
    return ndimage.gaussian_filter(scattered, (0, deviation, deviation, 0), mode="reflect")


def _motion_blur(images: np.ndarray, draws: Draws, length: float, scale: float) -> np.ndarray:
    return np.stack(
        [_streaked(image, length * scale, rng.uniform(0, math.pi)) for image, rng in zip(images, draws, strict=True)]
    )


def _zoom_blur(images: np.ndarray, draws: Draws, most: float, scale: float) -> np.ndarray:
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    blurred = np.zeros_like(images)
    for zoom in np.linspace(1, most, _ZOOMS):
        down, across = (_zoom_matrix(side, zoom) for side in images.shape[2:])
        blurred += down @ images @ np.ascontiguousarray(across.T)
    return blurred.transpose(0, 2, 3, 1) / _ZOOMS


def _snow(images: np.ndarray, draws: Draws, strength: tuple[float, float], scale: float) -> np.ndarray:
    share, white = strength
    flakes = np.stack([_flakes(images.shape[1:3], share, scale, rng) for rng in draws])[..., None]
    grey = images.mean(axis=3, keepdims=True)
    pale = (1 - white) * images + white * np.maximum(images, 0.5 + 0.5 * grey)
    return pale + flakes


def _frost(images: np.ndarray, draws: Draws, grown: float, scale: float) -> np.ndarray:
    ice = np.stack([_ice(images.shape[1:3], rng) for rng in draws])
    cover = 0.85 * ((ice - (1 - grown)) / 0.4).clip(0, 1)[..., None]
    tint = np.array([0.86, 0.93, 1.0], dtype=np.float32) if images.shape[3] == 3 else np.float32(0.92)
    return images * (1 - cover) + tint * cover * (0.75 + 0.25 * ice[..., None])


def _fog(images: np.ndarray, draws: Draws, thickness: float, scale: float) -> np.ndarray:
    cloud = np.stack([_clouds(images.shape[1:3], rng) for rng in draws])[..., None]
    brightest = images.max(axis=(1, 2, 3), keepdims=True)
    return (images + thickness * cloud) * brightest / (brightest + thickness).clip(1e-3)


def _brightness(images: np.ndarray, draws: Draws, more: float, scale: float) -> np.ndarray:
    value = images.max(axis=3, keepdims=True)  # of hue, saturation and value
    brighter = np.minimum(value + more, 1)
    return np.where(value > 0, images * (brighter / np.where(value > 0, value, 1)), brighter)


def _contrast(images: np.ndarray, draws: Draws, kept: float, scale: float) -> np.ndarray:
    mean = images.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    return mean + kept * (images - mean)


def _elastic_transform(images: np.ndarray, draws: Draws, reach: float, scale: float) -> np.ndarray:
    size = images.shape[1:3]
    moves = [reach * scale * np.stack([_waves(size, 9, rng) for _ in range(2)], axis=-1) for rng in draws]
    return np.stack([_moved(image, own) for image, own in zip(images, moves, strict=True)])


def _pixelate(images: np.ndarray, draws: Draws, share: float, scale: float) -> np.ndarray:
    _, height, width, _ = images.shape
    few = max(share / max(scale, 1), 1 / min(height, width))
    size = (max(round(few * width), 1), max(round(few * height), 1))

    def coarse(image: Image.Image) -> Image.Image:
        return image.resize(size, Image.Resampling.BOX).resize((width, height), Image.Resampling.NEAREST)

    return _by_pil(images, coarse)


def _jpeg_compression(images: np.ndarray, draws: Draws, quality: int, scale: float) -> np.ndarray:
    def packed(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=quality)
        return Image.open(buffer)

    return _by_pil(images, packed)


_CORRUPTIONS: dict[str, tuple[Callable[[np.ndarray, Draws, Any, float], np.ndarray], Sequence[Any]]] = {
    "gaussian_noise": (_gaussian_noise, (0.03, 0.06, 0.09, 0.125, 0.165)),  # standard deviation
    "shot_noise": (_shot_noise, (300, 120, 60, 34, 20)),  # photons that white sends
    "impulse_noise": (_impulse_noise, (0.01, 0.03, 0.06, 0.10, 0.15)),  # share of black and white dots
    "defocus_blur": (_defocus_blur, (0.7, 1.1, 1.5, 2.0, 2.5)),  # radius, px
    "glass_blur": (_glass_blur, (0.6, 0.9, 1.2, 1.6, 2.0)),  # how far a pixel may go, px
    "motion_blur": (_motion_blur, (2.0, 3.2, 4.4, 5.6, 7.0)),  # length, px
    "zoom_blur": (_zoom_blur, (1.05, 1.10, 1.16, 1.22, 1.30)),  # largest zoom
    "snow": (_snow, ((0.015, 0.08), (0.03, 0.15), (0.05, 0.22), (0.075, 0.30), (0.10, 0.38))),  # covered, whitened
    "frost": (_frost, (0.46, 0.57, 0.67, 0.77, 0.87)),  # how far the ice has grown
    "fog": (_fog, (0.25, 0.5, 0.8, 1.15, 1.6)),  # thickness
    "brightness": (_brightness, (0.06, 0.12, 0.18, 0.24, 0.30)),  # added
    "contrast": (_contrast, (0.75, 0.55, 0.40, 0.28, 0.18)),  # what is left
    "elastic_transform": (_elastic_transform, (0.35, 0.6, 0.9, 1.2, 1.55)),  # root mean square of the moves, px
    "pixelate": (_pixelate, (0.75, 0.60, 0.50, 0.42, 0.34)),  # pixels left a side, of 48
    "jpeg_compression": (_jpeg_compression, (60, 35, 22, 15, 10)),  # quality
}
CORRUPTIONS = tuple(_CORRUPTIONS)
"""The fifteen, in the paper's order: noise, blur, weather, digital."""


def _grain(scale: float) -> int:
    return max(round(scale), 1)


def _grains(shape: Sequence[int], scale: float, draws: Iterable[Callable[..., np.ndarray]]) -> np.ndarray:
    """Numbers for images of a shape, equal within squares that are a pixel of a 48 px image."""
    grain = _grain(scale)
    _, height, width, channels = shape
    small = (-(-height // grain), -(-width // grain), channels)
    return _enlarged(np.stack([draw(small, dtype=np.float32) for draw in draws]), shape, grain)


def _enlarged(small: np.ndarray, shape: Sequence[int], grain: int) -> np.ndarray:
    if grain == 1:
        return small
    # a last, cut square may lie beyond the numbers
    down, across = (np.minimum(np.arange(n) // grain, m - 1) for n, m in zip(shape[1:3], small.shape[1:3], strict=True))
    return small[:, down[:, None], across]


def _moved(image: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """One (H, W, C) image, each pixel taken from where its move, one of (H, W, 2), leads: between pixels too."""
    at = np.indices(image.shape[:2]) + moves.transpose(2, 0, 1)
    planes = [ndimage.map_coordinates(image[..., c], at, order=1, mode="reflect") for c in range(image.shape[2])]
    return np.stack(planes, axis=-1)


def _convolved(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """One (H, W, C) image, mirrored beyond its edges, with a (2r + 1, 2r + 1) kernel that is divided by its sum."""
    # an image at a time, so that the rounding of the transform can't depend on the batch
    reach = len(kernel) // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    size = padded.shape[:2]
    response = np.fft.rfft2(kernel / kernel.sum(), size)
    blurred = np.fft.irfft2(np.fft.rfft2(padded, axes=(0, 1)) * response[..., None], size, axes=(0, 1))
    return blurred[2 * reach :, 2 * reach :].astype(np.float32)


def _streaked(image: np.ndarray, length: float, angle: float) -> np.ndarray:
    reach = math.ceil(length / 2) + 1
    kernel = np.zeros((2 * reach + 1,) * 2)
    along = np.linspace(-length / 2, length / 2, 4 * reach + 1)
    y, x = reach + along * math.sin(angle), reach + along * math.cos(angle)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    for down, across in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share = (1 - abs(y - top - down)) * (1 - abs(x - left - across))
        np.add.at(kernel, (top + down, left + across), share)
    return _convolved(image, kernel)


def _zoom_matrix(side: int, zoom: float) -> np.ndarray:
    """(side, side): which pixels, linearly interpolated, a line of pixels shows when zoomed about its middle."""
    middle = (side - 1) / 2
    at = middle + (np.arange(side) - middle) / zoom
    return (1 - abs(at[:, None] - np.arange(side))).clip(0, 1).astype(np.float32)


def _waves(size: tuple[int, int], cells: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of mean square one, with some `cells` hills and valleys on the shorter side."""
    step = min(size) / cells
    down, across = (_spline(side, step) for side in size)
    waves = down @ rng.standard_normal((down.shape[1], across.shape[1]), dtype=np.float32) @ across.T
    return waves / max(float(np.sqrt(np.mean(waves**2))), 1e-6)


@functools.lru_cache(maxsize=64)
def _spline(side: int, step: float) -> np.ndarray:
    """(side, M) weights of a cubic B-spline with a knot every `step` pixels."""
    away = abs(1 + np.arange(side)[:, None] / step - np.arange(math.ceil(side / step) + 3))
    return np.where(away < 1, 2 / 3 - away**2 + away**3 / 2, (2 - away).clip(0) ** 3 / 6).astype(np.float32)


def _clouds(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Fractal noise from 0 to 1: each octave half as wide and half as strong."""
    height = np.sum([0.55**octave * _waves(size, 2 * 2**octave, rng) for octave in range(5)], axis=0)
    return (height - height.min()) / max(float(np.ptp(height)), 1e-6)


def _flakes(size: tuple[int, int], share: float, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Flakes on a share of the image, near and far ones, falling in one direction; (H, W) from 0 to 1."""
    angle = rng.uniform(math.pi / 4, 3 * math.pi / 4)
    layers = []
    for cells, part, length in ((30, 0.6, 3.0), (18, 0.4, 5.0)):
        waves = _waves(size, cells, rng)
        least = np.quantile(waves, 1 - share * part * 1.6)
        flake = ((waves - least) / 0.5).clip(0, 1)[..., None]
        layers.append(_streaked(flake, length * scale, angle)[..., 0])
    return np.maximum(*layers).clip(0, 1)


def _ice(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A freezing pane, (H, W) from 0 to 1: high where ice comes first, at the rim, along veins and needles."""
    height, width = size
    veins = sum(0.6**octave * (1 - 2 * abs(_waves(size, 4 * 2**octave, rng)).clip(0, 1)) for octave in range(3))
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    ice = 0.42 * np.hypot(x, y) + 0.16 * veins + 0.3 * _needles(size, rng) + 0.1 * _waves(size, 3, rng)
    return ice.clip(0, 1).astype(np.float32)


def _needles(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Feathers of ice that grow inwards from the rim, (H, W) from 0 to 1."""
    height, width = size
    fine = 2 * max(_SIDE, min(size))  # drawn twice as large, for smooth edges
    pane = Image.new("L", (fine, fine), 0)
    pen = ImageDraw.Draw(pane)
    wide = max(round(fine / 48), 1)
    for _ in range(int(rng.integers(7, 11))):
        turn, length = rng.uniform(0, 2 * math.pi), rng.uniform(0.4, 0.8)
        root = np.array([0.5 + 0.75 * math.cos(turn), 0.5 + 0.75 * math.sin(turn)]).clip(0, 1)
        heading = turn + math.pi + rng.uniform(-0.7, 0.7)
        ahead = np.array([math.cos(heading), math.sin(heading)])
        for along in np.arange(0.02, length, 0.045):
            start = root + along * ahead
            twig = (length - along) * rng.uniform(0.15, 0.35)
            tone = round(255 * (1 - 0.6 * along / length))
            for side in (-1, 1):
                bent = heading + side * rng.uniform(0.5, 1.0)
                end = start + twig * np.array([math.cos(bent), math.sin(bent)])
                pen.line([*(fine * start), *(fine * end)], fill=tone, width=wide)
    return np.asarray(pane.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255


def _by_pil(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """What PIL makes of every image."""
    out = np.empty_like(images)
    for own, image in zip(out, np.rint(255 * images).astype(np.uint8), strict=True):
        grey = image.shape[2] == 1
        changed = np.asarray(change(Image.fromarray(image[..., 0] if grey else image)), dtype=np.float32) / 255
        own[:] = changed[..., None] if grey else changed
    return out
