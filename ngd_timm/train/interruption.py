"""SIGINT and SIGTERM as a flag that a run reads between batches."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Stopped(BaseException):
    """A signal ended a run, which has saved a checkpoint (typer would swallow a `KeyboardInterrupt`)."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number, self.exit_code = number, 128 + number


class Interruption:
    """Within the block the first SIGINT or SIGTERM only sets `number` from 0; a second SIGINT interrupts at once."""

    number = 0

    def __enter__(self) -> Interruption:
        main = threading.current_thread() is threading.main_thread()
        self._before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)} if main else {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.number and isinstance(error, RuntimeError):
            # torchrun's, because another process failed and broke a collective here
            signal.raise_signal(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number

    def check(self) -> None:
        """Raise `Stopped` after a signal."""
        if self.number:
            raise Stopped(self.number)
