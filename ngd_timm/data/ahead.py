"""Making the next items in a thread while the caller works with the last one."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import closing, suppress
from queue import Empty, Full, Queue
from typing import TypeVar

__all__ = ["ahead"]

T = TypeVar("T")

_POLL = 0.1


def ahead(items: Generator[T, None, None], depth: int = 2) -> Generator[T, None, None]:
    """The same items in the same order, made by a thread up to `depth` before they are asked for.

    The thread starts with the first item asked for and ends with the iteration, also with one that is broken off. An
    error in the thread is raised where the item would have come.

    Args:
        items: Consumed, and closed, by the thread alone.
        depth: Finished items that wait at most.

    Example:
        >>> list(ahead(n * n for n in range(4)))
        [0, 1, 4, 9]
    """
    made: Queue[tuple[T | None, BaseException | None]] = Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: T | None, error: BaseException | None) -> bool:
        while not stop.is_set():
            try:
                made.put((item, error), timeout=_POLL)
                return True
            except Full:
                continue
        return False

    def work() -> None:
        try:
            with closing(items):
                for item in items:
                    if not put(item, None):
                        return
        except BaseException as error:  # raised again in the caller's thread, whatever it is
            put(None, error)
        else:
            put(None, StopIteration())

    thread = threading.Thread(target=work, name="ngd_timm.ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        # makes room, so that a thread that waits to put sees the flag at once
        with suppress(Empty):
            made.get_nowait()
        thread.join()
