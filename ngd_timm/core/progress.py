"""A bar that says how far a loop is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from ngd_timm.core.distributed import is_first

T = TypeVar("T")


def with_bar(items: Iterable[T], total: int | None, title: str) -> Iterator[T]:
    """The items, with a progress bar on a terminal; `total` may be a guess."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not console.is_terminal or not is_first():
        return iter(items)
    return iter(track(items, description=title, total=total, console=console, transient=True))
