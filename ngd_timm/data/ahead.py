"""Prefetching: the next items are made in a thread while the caller works with the last one."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import closing, suppress
from queue import Empty, Full, Queue
from typing import TypeVar

T = TypeVar("T")

_POLL = 0.1


def ahead(items: Generator[T, None, None], depth: int = 2) -> Generator[T, None, None]:
    """The same items in the same order, up to `depth` of them made early by a thread.

    The thread starts with the first item and ends with the iteration, also with one that is broken off. An error in
    the thread is raised where the item would have come.
    """
    queue: Queue[tuple[T | None, BaseException | None]] = Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: T | None, error: BaseException | None) -> bool:
        while not stop.is_set():
            with suppress(Full):
                queue.put((item, error), timeout=_POLL)
                return True
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
            item, error = queue.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        # makes room, so that a thread that waits to put sees the flag at once
        with suppress(Empty):
            queue.get_nowait()
        thread.join()
