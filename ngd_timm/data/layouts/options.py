"""Where a data set lies and what may be said of it beyond its path: `PATH,key=value,…`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ngd_timm.core.errors import InputError, choices

__all__ = ["LayoutOptions", "Source", "make_options", "parse_root"]


@dataclass(frozen=True)
class LayoutOptions:
    """Choices that a layout leaves open.

    Attributes:
        apex_frames: CK+ sequences: how many last frames of a sequence count as its emotion.
        neutral_frame: CK+ sequences: whether the first frame of a sequence counts as neutral.
        list: A file of relative picture paths; the data set is these pictures and no others. Relative to the root.
        sha256: The hash that the list must have, or where there is none, the file that is the root.
        hold_out: Where there is no split "valid": the share of the training pictures that is, see
            `ngd_timm.data.hold_out`.
        max_megapixels: Open images of more than 100 megapixels too, up to this many.
    """

    apex_frames: int = 1
    neutral_frame: bool = False
    list: str | None = None
    sha256: str | None = None
    hold_out: float | None = None
    max_megapixels: float | None = None


@dataclass(frozen=True)
class Source:
    """What a layout is looked for with.

    Attributes:
        root: A file or folder that exists.
        dataset: One of `DATASETS`.
        options: Choices that a layout leaves open.
    """

    root: Path
    dataset: str
    options: LayoutOptions = LayoutOptions()


_KEYS = tuple(f.name for f in fields(LayoutOptions))
_BOOL = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def make_options(given: Mapping[str, Any]) -> LayoutOptions:
    """Options from plain values or their text, checked.

    Raises:
        InputError: An unknown key, or a value that its key doesn't take.

    Example:
        >>> options = make_options({"apex_frames": "3", "neutral_frame": True})
        >>> options.apex_frames, options.neutral_frame, options.hold_out
        (3, True, None)
    """
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in _KEYS:
            raise choices("layout option", key, _KEYS)
        text = str(value).strip()
        if key == "apex_frames":
            if not text.isdecimal() or int(text) < 1:
                raise InputError(f"apex_frames must be a whole number from 1 on, got '{text}'")
            values[key] = int(text)
        elif key == "neutral_frame":
            if text.lower() not in _BOOL:
                raise InputError(f"neutral_frame must be true or false, got '{text}'")
            values[key] = _BOOL[text.lower()]
        elif key == "sha256":
            if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
                raise InputError(f"sha256 must be 64 hex digits, got '{text[:80]}'")
            values[key] = text.lower()
        elif key == "hold_out":
            if not re.fullmatch(r"0?\.\d+", text) or not 0 < float(text) <= 0.5:
                raise InputError(f"hold_out must be a share above 0 and at most 0.5, such as 0.1, got '{text[:80]}'")
            values[key] = float(text)
        elif key == "max_megapixels":
            if not re.fullmatch(r"\d{1,9}(\.\d+)?", text) or float(text) <= 0:
                raise InputError(f"max_megapixels must be a number above 0, such as 400, got '{text[:80]}'")
            values[key] = float(text)
        else:
            values[key] = text
    return LayoutOptions(**values)


def parse_root(root: str | Path, further: Mapping[str, Any] | None = None) -> tuple[str, LayoutOptions]:
    """Split `PATH,key=value,…` into the path (or Hub id) and its options; a path that exists is never split.

    Args:
        root: As given.
        further: Options given beside it; they win.

    Raises:
        InputError: An unknown key, or a value that its key doesn't take.

    Example:
        >>> path, options = parse_root("faces/CK+,apex_frames=3")
        >>> path, options.apex_frames
        ('faces/CK+', 3)
    """
    text, given = str(root), {}
    if not Path(text).exists():
        while (found := re.fullmatch(r"(.+),(\w+)=([^,]*)", text)) is not None:
            text, key, value = found.groups()
            given[key] = value
    return text, make_options({**given, **(further or {})})
