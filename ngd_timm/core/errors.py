"""Errors of the input, which the command line prints as one line before it exits with 2, and what they quote."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave can't be used. The message says what was given, what is allowed and what to do."""


class PageError(Exception):
    """Some page or figure is not written; all that it is about is finished."""


def choices(what: str, value: object, allowed: Iterable[object]) -> InputError:
    """An `InputError` for a name outside a closed set, with the nearest allowed name and all of them."""
    names = [str(a) for a in allowed]
    near = difflib.get_close_matches(str(value)[:80], names, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return InputError(f"unknown {what} '{quoted(value)}'{hint} Allowed: {', '.join(names)}")


def printable(text: object, kept: str = "", for_file: bool = False) -> str:
    """A text with control characters, but those in `kept`, and bytes that are no text, as escapes.

    For a terminal so are other characters that don't show, which may turn the text round; with `for_file` they stay.

    Examples:
        >>> printable("fear\\x1b]0;title\\x07")
        'fear\\\\x1b]0;title\\\\x07'
    """
    return "".join(
        c
        if c.isprintable() or c in kept or (for_file and unicodedata.category(c) not in ("Cc", "Cs"))
        else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def one_line(error: object) -> str:
    """What another library's exception says, on one line of at most 300 characters; its type's name if nothing.

    Examples:
        >>> one_line(ValueError("unexpected end,\\n  line 3")), one_line(EOFError())
        ('unexpected end, line 3', 'EOFError')
    """
    text = str(error).split(":\n\t", 1)[-1]  # torch begins with a title
    return " ".join(text.split())[:300] or type(error).__name__


def quoted(value: object) -> str:
    """A value as a message shows it: one line of at most 80 characters."""
    text = str(value)
    return printable(text) if len(text) <= 80 else f"{printable(text[:80])[:77]}..."
