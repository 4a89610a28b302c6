"""Removes the folders from paths in texts that are published."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

ValueT = TypeVar("ValueT")

_BEFORE = r"(?<![^\s=:\"'(\[{<>,;|`])"
# Folders may hold spaces and commas, but a comma and a space after it, or a space before a slash, is punctuation.
_FOLDER = r"(?!\s)(?:[^\\/\r\n,;:]|[,;:](?!\s))+(?<!\s)[\\/]+"
_SUFFIX = r"\.[A-Za-z]\w{0,9}\b"
_PATH = re.compile(
    rf"(?P<address>\b(?:https?://|hf-hub:)\S+|\b[\w.-]+/[\w.-]+@[0-9a-f]{{40}}\b)"
    rf"|{_BEFORE}(?:"
    rf"(?:~\w*|\.\.?|[A-Za-z]:)[\\/]+(?:{_FOLDER})*[^\\/\s]*"  # ~/a, ../a, C:\a
    rf"|(?:/+|\\\\)(?:(?:{_FOLDER})+[^\\/\s]*|[^\\/\s]+{_SUFFIX})"  # /a/b, \\server\a, /a.mat
    rf"|(?:[^\s\\/=\"',;:]+[\\/])+[^\s\\/=\"',;:]+{_SUFFIX}"  # a/b.mat, but neither dB/Hz nor and/or
    rf")"
)


def last_part(path: str) -> str:
    """The last part of a path of any system."""
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def without_paths(value: ValueT) -> ValueT:
    """The same value with every path in its texts, keys included, cut to its last part; URLs stay."""
    cleaned: Any = value
    if isinstance(value, Mapping):
        cleaned = {without_paths(key): without_paths(entry) for key, entry in value.items()}
    elif isinstance(value, list):
        cleaned = [without_paths(entry) for entry in value]
    elif isinstance(value, str):
        cleaned = _PATH.sub(lambda found: found["address"] or last_part(found[0]), value)
    return cleaned
