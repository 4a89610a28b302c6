"""How a command ends: wrong input, and what the system refuses, become one line and exit code 2."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import NoReturn, TextIO

from rich.console import Console

from ngd_timm.core.distributed import is_first
from ngd_timm.core.errors import InputError, PageError, printable

BREAKS = "\n\t"
"""Control characters that a terminal may get."""
_GRACE_SECONDS = 5.0
_LONGEST = 900  # characters of a message


class Terminal:
    """A text stream, for what files say."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(printable(text, BREAKS, for_file=not self._stream.isatty()))
        except BrokenPipeError:
            raise
        except OSError as error:  # by its own name, not that of a file which is written meanwhile
            _discard_output()
            raise InputError(f"standard output: {error.strerror}") from None


class _ForTerminal(logging.Formatter):
    """What files say stands in messages."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), BREAKS)


def start_logging() -> None:
    """Log to standard error: the first of torchrun's processes what it does, the others only errors."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_ForTerminal("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("ngd_timm").setLevel(logging.INFO if is_first() else logging.ERROR)
    logging.getLogger("huggingface_hub").propagate = False  # it prints its warnings itself


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line where the user's input or the system is at fault; other errors go on."""
    try:
        with _one_report():
            yield
    except InputError as error:
        leave_with(str(error), 2)
    except PageError as error:
        leave_with(str(error), 1)
    except RuntimeError as error:
        if not (_together() and re.search("gloo|NCCL|Connection (closed|reset)", str(error))):
            raise
        print_error(
            "another process of this run has ended; see what it says, then continue with ngd train --resume RUN"
        )
        sys.exit(1)
    except KeyboardInterrupt:
        leave_with("interrupted", 130)
    except BrokenPipeError:  # the reader of a pipe (head, less) went away; that is no failure of ours
        _discard_output()
    except OSError as error:
        if error.errno is None:
            raise
        if error.filename is None:  # what is still to be flushed at the exit would fail again
            _discard_output()
        leave_with(f"{os.fsdecode(error.filename or 'standard output')}: {error.strerror}", 2)


@contextlib.contextmanager
def _one_report() -> Iterator[None]:
    """Let only one of torchrun's processes report an error: wrong input at once by the first, others after a wait."""
    try:
        yield
    except Exception as error:
        if _together() and not (is_first() and isinstance(error, (InputError, OSError))):
            signal.signal(signal.SIGTERM, lambda *_: os._exit(2))
            time.sleep(_GRACE_SECONDS)
        raise


def _together() -> bool:
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def leave_with(message: str, code: int) -> NoReturn:
    """Print a message in one line on standard error, and exit."""
    if is_first() or code == 2:
        print_error(message)
    sys.exit(code)


def print_error(message: str) -> None:
    """Print a message in one line on standard error; of a long one the begin and the end."""
    text = printable(message)
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 300]} … {text[-300:]}"
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"ngd: {text}")


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
