"""Opening of images, of a few formats and up to a size, and their way to a model's input."""

from __future__ import annotations

import io
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ngd_timm.core.devices import send
from ngd_timm.core.errors import InputError, one_line
from ngd_timm.core.files import files_with, require_regular

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger("ngd_timm.core")

LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue in a grey image, by ITU-R BT.601 and PIL's mode "L"."""
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
"""The formats that are opened, by PIL's names. Others, such as EPS, may run a program."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".pgm", ".ppm")
"""Of image files in a folder."""
_OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".jp2", ".jxl")

DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What PIL's decoders raise on damaged bytes."""
_GREY = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N", "I", "F")

_ORIENTATION = 0x0112  # EXIF's tag
_BLOCK, _WINDOW = 64, 32
_TINY = 8192

_pixel_limit = 100_000_000

R = TypeVar("R")


def image_files(folder: Path, deep: bool = False) -> list[Path]:
    """The images in a folder, in order, by their suffix; one line where it holds some of other formats."""
    found: list[Path] = []
    other: list[Path] = []
    for path in files_with(folder, (*SUFFIXES, *_OTHER_SUFFIXES), deep):
        (found if path.suffix.lower() in SUFFIXES else other).append(path)
    for path in found:
        if not path.is_file():
            raise InputError(f"{path} is no file (or links to none); bring the image, or remove it")
    if other:
        logger.warning(f"{folder}: {len(other)} images are left out (first: {other[0].name}); save them as JPEG or PNG")
    return found


def image_records(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """The `image` column row by row, still encoded: `{"bytes": …, "path": …}`."""
    encoded = dataset.select_columns(["image"]).with_format("arrow")
    for table in encoded.iter(batch_size=1024):
        yield from table["image"].to_pylist()


def row_name(dataset: Dataset, index: int) -> str:
    """A row's name in error messages: its source, and its file name where it has one."""
    row = dataset.select_columns([c for c in ("source", "file_name") if c in dataset.column_names])[index]
    name = row.get("source") or f"row {index}"
    return f"{name} ('{row['file_name']}')" if row.get("file_name") else str(name)


def open_image(source: Mapping[str, Any] | str | Path) -> Image.Image:
    """Open an image lazily, from a path or a record `{"bytes": …, "path": …}`; the only place that opens one."""
    file: Any = source
    if isinstance(source, Mapping):
        file = source["path"] if source["bytes"] is None else io.BytesIO(source["bytes"])
        if file is None:
            raise OSError("neither bytes nor a path")
    if not isinstance(file, io.BytesIO):
        require_regular(file)
    refused = Image.DecompressionBombError(
        f"more than {_pixel_limit / 1e6:g} megapixels; raise max_megapixels to open it"
    )
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise refused from None
    if image.width * image.height > _pixel_limit:
        image.close()
        raise refused
    return image


def image_limit() -> float:
    """The largest image that is opened, in megapixels."""
    return _pixel_limit / 1e6


def raise_image_limit(megapixels: float) -> None:
    """Open larger images than 100 megapixels in this process; a smaller number changes nothing."""
    global _pixel_limit
    if not 0 < megapixels < float("inf"):
        raise InputError(f"max_megapixels must be a number above 0, got {megapixels}")
    if megapixels * 1e6 > _pixel_limit:
        _pixel_limit = round(megapixels * 1e6)
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, _pixel_limit)


def size_and_grey(image: Image.Image) -> tuple[int, int, bool]:
    """Width and height after any EXIF rotation, and whether the image is grey, from the header alone."""
    width, height = image.size
    # PIL turns a TIFF by itself, and would decode a PNG to look for an EXIF block behind the pixels
    known = image.format in ("JPEG", "MPO", "WEBP") or (image.format == "PNG" and "exif" in image.info)
    if known and _orientation(image) in (5, 6, 7, 8):
        width, height = height, width
    return width, height, image.mode in _GREY


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF says, itself where that says nothing."""
    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


def _orientation(image: Image.Image) -> int:
    """As EXIF says; 1, upright, where its block can't be read, which does not hide the image."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except DAMAGE:
        return 1


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Upright 8-bit pixels in "L" or "RGB"; 16 bits are scaled (PIL clips them), transparency is laid on white."""
    image = upright(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        wide = np.asarray(image).astype(np.int64)
        if 0 < wide.max() <= 255:
            raise ValueError("pixels of 16 or 32 bits up to 255 where up to 65535 are taken; save it with 8 bits")
        image = Image.fromarray((wide.clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "F":
        real = np.asarray(image)
        if not real.max() > 1 and real.any():
            raise ValueError("pixels of floats up to 1 where up to 255 are taken; save it with 8 bits")
        image = Image.fromarray(real.clip(0, 255).round().astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


class InputTransform:
    """Bring images of any size, grey or RGB, to a model's input as timm's own transform for evaluation does."""

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        from timm.data import create_transform

        self.size: tuple[int, int, int] = tuple(cfg["input_size"])
        self.mode = "L" if self.size[0] == 1 else "RGB"
        self.mean, self.std = (per_channel(name, cfg[name], self.size[0]) for name in ("mean", "std"))
        self.resize = create_transform(
            self.size,
            interpolation=cfg["interpolation"],
            crop_pct=cfg["crop_pct"],
            crop_mode=cfg["crop_mode"],
            mean=self.mean,
            normalize=False,
        )
        self.key = (self.size, self.mean, self.std, cfg["interpolation"], cfg["crop_pct"], cfg["crop_mode"])
        """Equal for transforms that prepare images alike."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """An image as (C, H, W) uint8."""
        short, long = sorted(image.size)
        if short < 1 or long / short * self.size[-1] ** 2 > _pixel_limit:
            raise ValueError(f"{image.width} x {image.height} px can't be brought to {self.size[-1]} px")
        pixels: torch.Tensor = self.resize(to_mode(image, self.mode))
        return pixels

    def record(self, record: Mapping[str, Any]) -> torch.Tensor:
        """The image of a record, see `open_image`, as (C, H, W) uint8."""
        with open_image(record) as image:
            return self(image)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Uint8 pixels (B, C, H, W) as the model's input, float32."""
        mean, std = (send(torch.tensor(v), pixels.device)[:, None, None] for v in (self.mean, self.std))
        return pixels.float().div_(255).sub_(mean).div_(std)


def per_channel(what: str, value: float | Sequence[float], channels: int) -> tuple[float, ...]:
    """One number a channel, of a single one or of as many."""
    values = (float(value),) * channels if isinstance(value, (int, float)) else tuple(float(v) for v in value)
    if len(values) == 1:
        values *= channels
    if len(values) != channels:
        raise InputError(f"{what} must be one number or {channels}, one a channel, got {list(values)}")
    if not all(0 <= v <= 1 for v in values) or (what == "std" and min(values) == 0):
        low = "above 0" if what == "std" else "from 0"
        raise InputError(f"{what} must be {low} to 1, of pixels in [0, 1], got {list(values)}")
    return values


def square_pixels(image: Image.Image, mode: str, side: int) -> np.ndarray:
    """The largest central square of an image as (C, side, side) uint8; a large JPEG is decoded smaller."""
    # a JPEG's luma plane is its grey image, but only where the file says that it holds colour as such
    image.draft("L" if mode == "L" and image.mode == "RGB" else image.mode, (side, side))
    image = to_mode(image, mode)
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    if (width, height) != (side, side):
        box = (left, top, left + short, top + short)
        image = image.resize((side, side), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def check_pixels(image: Image.Image) -> None:
    """Decode an image and forget it; JPEGs at an eighth of their size, which still reads every byte."""
    image.draft(image.mode, (max(image.width // 8, 1), max(image.height // 8, 1)))
    image.load()
    if image.mode.startswith(("I", "F")):  # whose range may be none that is taken
        to_mode(image, "L")


def check_images(dataset: Dataset) -> None:
    """Refuse a data set with an image that can't be decoded."""

    def check(record: Mapping[str, Any]) -> None:
        with open_image(record) as image:
            check_pixels(image)

    for _ in decode_each(dataset, check):
        pass


def damage_reason(error: BaseException) -> str:
    """The message of one of `DAMAGE`, on one line."""
    if isinstance(error, UnidentifiedImageError):  # whose own message is a buffer's address
        return f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"
    return one_line(getattr(error, "strerror", None) or error)


def decode_each(dataset: Dataset, function: Callable[[dict[str, Any]], R]) -> Iterator[R]:
    """Apply `function` to every record of the `image` column in parallel (PIL releases the interpreter lock)."""

    def decode(block: list[dict[str, Any]]) -> tuple[list[R], str | None]:
        results: list[R] = []
        for record in block:
            try:
                results.append(function(record))
            except DAMAGE as error:
                return results, damage_reason(error)
        return results, None

    index, records = 0, image_records(dataset)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        while window := list(islice(records, _BLOCK * _WINDOW)):
            # for images of a few KB threads would only wait for the interpreter lock
            tiny = sum(_TINY + 1 if r["bytes"] is None else len(r["bytes"]) for r in window) <= _TINY * len(window)
            blocks = [window[i : i + _BLOCK] for i in range(0, len(window), _BLOCK)]
            for results, damage in (map if tiny else pool.map)(decode, blocks):
                yield from results
                index += len(results)
                if damage is not None:
                    raise InputError(
                        f"{row_name(dataset, index)}: the image can't be decoded ({damage}); replace or remove it"
                    )
