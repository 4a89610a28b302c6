"""Prefetching: the next items are made in a thread while the caller works with the last one."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Generator[T, None, None], depth: int = 2) -> Generator[T, None, None]:
    """The same items in the same order, up to `depth` of them made early by a thread.

    The thread ends with the iteration, also with one that is broken off. An error in it is raised where the item would
    have come.
    """
    with closing(items), ThreadPoolExecutor(1, thread_name_prefix="ngd_timm.ahead") as thread:
        coming = deque(thread.submit(next, items, None) for _ in range(depth))
        try:
            while (item := coming.popleft().result()) is not None:
                coming.append(thread.submit(next, items, None))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)
