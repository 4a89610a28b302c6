"""Where a data set lies, and options that follow its path: `PATH,key=value,…`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngd_timm.core.errors import InputError, choices
from ngd_timm.data.class_map import FORMS, read_class_map


@dataclass(frozen=True)
class LayoutOptions:
    """Choices that a layout leaves open."""

    apex_frames: int = 1  # of a CK+ sequence: how many last frames count as its emotion
    neutral_frame: bool = False  # whether the first frame of a CK+ sequence counts as neutral
    list: str | None = None  # a file, relative to the root, of relative image paths: the set is these and no others
    sha256: str | None = None  # of the list, or where there is none, of the file that is the root
    hold_out: float | None = None  # the share of the training images that is the split "valid", where there is none
    class_map: str | None = None  # a JSON file, relative to the root: which number is which class
    names: Mapping[int, str] | None = None  # the same, written out
    image: str | None = None  # the column of a table that holds the images
    label: str | None = None  # the column of a table that holds the labels
    unknown: str | None = None  # "drop": rows of a class that the data set's name doesn't know are dropped and counted
    missing: str | None = None  # "drop": listed images that are not there, or empty, are dropped and counted
    config: str | None = None  # of a Hub data set that has several
    revision: str | None = None  # of a Hub data set: a branch, tag or commit
    max_megapixels: float | None = None  # open images of more than 100 megapixels too, up to this many
    part: tuple[int, int] | None = None  # (number, count): only the rows whose hash is of this part
    by: str = "file_name"  # the column whose values are hashed for `part`

    @property
    def named(self) -> bool:
        """Whether an option says which number is which class."""
        return self.names is not None or self.class_map is not None


def _names(text: str) -> Mapping[int, str]:
    return {number: name for number, name in enumerate(text.split("/")) if name != "-"}


# Key → what its text must look like, what it becomes, and how a message describes it.
_OPTIONS: Mapping[str, tuple[str, Callable[[str], Any], str]] = {
    "apex_frames": (r"0*[1-9]\d*", int, "a whole number from 1 on"),
    "neutral_frame": ("true|1|yes|false|0|no", lambda text: text.lower() in ("true", "1", "yes"), "true or false"),
    "list": (".*", str, "a path"),
    "sha256": ("[0-9a-f]{64}", str.lower, "64 hex digits"),
    "hold_out": (r"0?\.(?=0*[1-9])([0-4]\d*|50*)", float, "a share above 0 and at most 0.5, such as 0.1"),
    "class_map": (".+", str, "a path"),
    "names": (r"[^/]+(/[^/]+)+", _names, "class names from number 0 on, angry/disgusted/…, - for a number without one"),
    "image": (".+", str, "a column"),
    "label": (".+", str, "a column"),
    "unknown": ("drop", str.lower, "drop"),
    "missing": ("drop", str.lower, "drop"),
    "config": (".+", str, "a config of the Hub data set"),
    "revision": (r"[\w./-]+", str, "a branch, tag or commit of the Hub data set"),
    "part": (
        r"\d{1,4}/[1-9]\d{0,3}",
        lambda text: tuple(int(number) for number in text.split("/")),
        "a part of so many, counted from 0, such as 0/2",
    ),
    "by": ("subject|file_name|source", str.lower, "subject, file_name or source"),
    "max_megapixels": (r"(?=.*[1-9])\d{1,9}(\.\d+)?", float, "a number above 0, such as 400"),
}


@dataclass(frozen=True)
class Source:
    """A file or folder, or a Hub id, the name of the data set in it (one of `DATASETS`), and its options."""

    root: Path
    dataset: str
    options: LayoutOptions = LayoutOptions()
    labelled: bool = True  # False: tables need no labels, which are not read

    def class_numbers(self, where: str | Path, numbers: str) -> Mapping[int, str]:
        """Which number is which class, by an option or by the JSON beside `where`, if that is a file."""
        if self.options.names is not None:
            return self.options.names
        if self.options.class_map is not None:
            return read_class_map(beside(self.root, self.options.class_map))
        path, place = Path(where), ""
        if path.is_file():
            files = (path.with_name(f"{path.stem}.classes.json"), path.with_name("class_map.json"))
            if (found := next((p for p in files if p.is_file()), None)) is not None:
                return read_class_map(found)
            place = f" or beside the file, {files[0].name}"
        raise InputError(
            f"{where}: {numbers} plain integers, and class numbers mean different things in different data sets; give "
            f"their names from 0 on behind the root, ROOT,names=angry/disgusted/…, or a class map, {FORMS}, as "
            f"ROOT,class_map=FILE.json{place}; or write names"
        )


def beside(root: Path, name: str) -> Path:
    """A file that an option names: relative to the data set's folder, else to where the command runs."""
    path = (root if root.is_dir() else root.parent) / name
    return path if path.exists() or not Path(name).exists() else Path(name)


def parse_root(root: str | Path, further: Mapping[str, Any] | None = None) -> tuple[str, LayoutOptions]:
    """Split `PATH,key=value,…` into the path (or Hub id) and its options; a path that exists is never split."""
    text, written = str(root), dict[str, Any]()
    if not Path(text).exists():
        while (found := re.fullmatch(r"(.+),(\w+)=([^,]*)", text)) is not None:
            text, key, value = found.groups()
            written[key] = value
    options: dict[str, Any] = {}
    for key, value in {**written, **(further or {})}.items():
        if key not in _OPTIONS:
            raise choices("layout option", key, tuple(_OPTIONS))
        pattern, convert, allowed = _OPTIONS[key]
        value = ("/".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)).strip()
        if not re.fullmatch(pattern, value, re.IGNORECASE):
            raise InputError(f"{key} must be {allowed}, got '{value[:80]}'")
        options[key] = convert(value)
    number, count = options.get("part", (0, 1))
    if number >= count:
        raise InputError(f"part={number}/{count}: parts are counted from 0; give 0/{count} to {count - 1}/{count}")
    if "by" in options and "part" not in options:
        raise InputError("by=… says what part=… goes by; give both, such as part=0/2,by=subject")
    return text, LayoutOptions(**options)
