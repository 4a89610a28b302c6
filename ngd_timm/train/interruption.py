"""SIGINT and SIGTERM as a request that a run grants at its next safe point."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interruption", "Stopped"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A run that was asked to stop has saved what it needs to go on; the message says how.

    No `Exception`, so that nothing on the way takes it for an error; no `KeyboardInterrupt`, which typer would swallow.

    Attributes:
        exit_code: 128 + the signal's number: 130 after SIGINT, 143 after SIGTERM.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class Interruption:
    """Within the block the first SIGINT or SIGTERM is noted in `requested`; a second SIGINT interrupts at once.

    In a thread other than the main one, where Python takes no signals, it notes nothing.

    Args:
        grant: Called with the signal's number where it is safe to stop; it raises `Stopped`.

    Attributes:
        requested: The signal's number, 0 for none.

    Example:
        >>> with Interruption(print) as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.requested
        15
    """

    def __init__(self, grant: Callable[[int], object]) -> None:
        self.grant = grant
        self.requested = 0
        self._immediate = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.requested and isinstance(error, RuntimeError):
            # torchrun's, because another process failed and broke a collective here
            signal.raise_signal(self.requested)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.requested and number == signal.SIGINT
        self.requested = self.requested or number
        if again or self._immediate:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def at_once(self, wanted: bool = True) -> Iterator[None]:
        """Within this block nothing changes that is to be saved, so a request need not wait for its end."""
        with self.granting(wanted), self.immediate(wanted):
            yield

    @contextlib.contextmanager
    def immediate(self, wanted: bool = True) -> Iterator[None]:
        """Within this block a request interrupts; what is changed around it for its time is given back undisturbed."""
        self._immediate = wanted
        try:
            if wanted and self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._immediate = False

    @contextlib.contextmanager
    def granting(self, wanted: bool = True) -> Iterator[None]:
        """Grant the request for which a block was interrupted, once all is as it was before the block."""
        try:
            yield
        except KeyboardInterrupt:
            if wanted and self.requested:
                self.grant(self.requested)
            raise
