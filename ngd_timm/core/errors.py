"""Errors of the input, which the command line prints as one line before it exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave can't be used. The message says what was given, what is allowed and what to do."""


def choices(what: str, value: object, allowed: Iterable[object]) -> InputError:
    """An `InputError` for a name outside a closed set, with the nearest allowed name and all of them."""
    names = [str(a) for a in allowed]
    near = difflib.get_close_matches(str(value)[:80], names, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    shown = str(value) if len(str(value)) <= 80 else f"{str(value)[:77]}..."
    return InputError(f"unknown {what} '{shown}'{hint} Allowed: {', '.join(names)}")
