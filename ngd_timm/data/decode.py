"""Encoded pictures to pixels, with an error that names the row."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ngd_timm.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "DAMAGE",
    "check_image",
    "damage_reason",
    "decode_each",
    "image_records",
    "image_size_and_grey",
    "open_image",
    "row_name",
    "square_pixels",
    "to_mode",
]

# What PIL's decoders raise on damaged bytes.
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
_GREY = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N", "I", "F")

_BLOCK, _WINDOW = 64, 32
_TINY = 8192

R = TypeVar("R")


def image_records(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """The `image` column row by row, still encoded: `{"bytes": …, "path": …}`."""
    encoded = dataset.select_columns(["image"]).with_format("arrow")
    for table in encoded.iter(batch_size=1024):
        yield from table["image"].to_pylist()


def row_name(dataset: Dataset, index: int) -> str:
    """How an error message calls a row: its source, and its file name where it has one."""
    row = dataset.select_columns([c for c in ("source", "file_name") if c in dataset.column_names])[index]
    name = row.get("source") or f"row {index}"
    return f"{name} ('{row['file_name']}')" if row.get("file_name") else str(name)


def open_image(record: dict[str, Any]) -> Image.Image:
    """Open one record lazily: the header is read, pixels are not."""
    if record["bytes"] is not None:
        return Image.open(io.BytesIO(record["bytes"]))
    if record["path"] is None:
        raise OSError("neither bytes nor a path")
    return Image.open(record["path"])


def image_size_and_grey(record: dict[str, Any]) -> tuple[int, int, bool]:
    """Width, height after any EXIF rotation, and whether the picture is grey, from the header alone."""
    with open_image(record) as image:
        width, height = image.size
        if image.format == "JPEG" and image.getexif().get(0x0112, 1) in (5, 6, 7, 8):
            width, height = height, width
        return width, height, image.mode in _GREY


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Upright 8-bit pixels in "L" or "RGB".

    A 16-bit picture is scaled (PIL's own conversion clips it to white), a transparent one is laid on white.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(np.asarray(image).clip(0, 255).round().astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def square_pixels(image: Image.Image, mode: str, side: int) -> np.ndarray:
    """The largest central square of a picture, resized by area-aware bilinear filtering, as uint8.

    A JPEG of twice the side or more is decoded at a half, a quarter or an eighth of its size, never below `side`.

    Args:
        image: Opened and not yet loaded, see `open_image`.
        mode: "L" or "RGB".
        side: Side in pixels.

    Returns:
        (1 or 3, side, side).

    Example:
        >>> square_pixels(Image.new("RGB", (40, 20), "white"), "L", 8).shape
        (1, 8, 8)
    """
    # a JPEG's luma plane is its grey picture, but only where the file says that it holds colour as such
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


def check_image(record: dict[str, Any]) -> None:
    """Decode a picture and forget it; JPEGs at an eighth of their size, which still reads every byte."""
    with open_image(record) as image:
        image.draft(image.mode, (max(image.width // 8, 1), max(image.height // 8, 1)))
        image.load()


def damage_reason(error: BaseException) -> str:
    """What one of `DAMAGE` says, on one line."""
    # PIL prints the address of the buffer it read from, which tells nobody anything
    reason = "not a picture" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
    return reason[:160] or type(error).__name__


def decode_each(dataset: Dataset, function: Callable[[dict[str, Any]], R], what: str = "decoded") -> Iterator[R]:
    """Apply `function` to every encoded picture, in order, on all cores (PIL's decoders release the GIL).

    Args:
        dataset: A data set with an `image` column.
        function: Takes one `{"bytes": …, "path": …}`.
        what: What was tried, for the error message.

    Yields:
        The results in row order.

    Raises:
        InputError: The first damaged picture, by row and file name.
    """
    index = 0
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for window in _blocks(image_records(dataset), _BLOCK * _WINDOW):
            blocks = [window[i : i + _BLOCK] for i in range(0, len(window), _BLOCK)]
            run = map if _tiny(window) else pool.map
            for results, damage in run(lambda block: _apply(function, block), blocks):
                yield from results
                index += len(results)
                if damage is not None:
                    raise InputError(
                        f"{row_name(dataset, index)}: the picture can't be {what} ({damage}); replace or remove it"
                    )


def _apply(function: Callable[[dict[str, Any]], R], block: list[dict[str, Any]]) -> tuple[list[R], str | None]:
    results: list[R] = []
    for record in block:
        try:
            results.append(function(record))
        except DAMAGE as error:
            return results, damage_reason(error)
    return results, None


def _tiny(records: list[dict[str, Any]]) -> bool:
    """Whether the pictures are so small that threads would only fight over the interpreter lock."""
    return sum(_TINY + 1 if r["bytes"] is None else len(r["bytes"]) for r in records) <= _TINY * len(records)


def _blocks(records: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while block := list(islice(records, size)):
        yield block
