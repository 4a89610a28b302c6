"""Texts that are published: paths without their folders, and nothing that Markdown would take for its own."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ngd_timm.core.errors import printable

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
    return _in_texts(value, lambda text: _PATH.sub(lambda found: found["address"] or last_part(found[0]), text))


def as_markdown(value: ValueT) -> ValueT:
    """The same value with every text in it, keys included, as one line of Markdown: no tag, heading or end of a cell.

    Examples:
        >>> as_markdown(["<b>", "a|b", "one\\n# two"])
        ['&lt;b&gt;', 'a\\\\|b', 'one # two']
    """
    return _in_texts(value, markdown_line)


def markdown_line(text: str) -> str:
    """`as_markdown` of a text."""
    line = printable(" ".join(text.splitlines()))
    return re.sub(r"(?<!\\)\|", r"\|", html.escape(line, quote=False))


def _in_texts(value: ValueT, change: Callable[[str], str]) -> ValueT:
    changed: Any = value
    if isinstance(value, Mapping):
        changed = {_in_texts(key, change): _in_texts(entry, change) for key, entry in value.items()}
    elif isinstance(value, list):
        changed = [_in_texts(entry, change) for entry in value]
    elif isinstance(value, str):
        changed = change(value)
    return changed
