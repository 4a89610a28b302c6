"""One process at a time trains a run: a lock that the system gives back when its holder ends, killed or not."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import is_leftover

__all__ = ["LOCK_FILE", "is_unused", "locked"]

logger = logging.getLogger("ngd_timm.train.loop")

LOCK_FILE = "lock"
"""Empty, and there for good: to remove it would let two processes hold two files of that name."""

_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


def is_unused(run: Path) -> bool:
    """Whether a run may begin there: no such path, or a folder with nothing but a lock and what killed writes left.

    Example:
        >>> is_unused(Path("runs/new")), is_unused(Path(__file__))
        (True, False)
    """
    if not run.exists():
        return True
    return run.is_dir() and all(path.name == LOCK_FILE or is_leftover(path) for path in run.iterdir())


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep other processes from training this run within the block; the folder is made where it is missing.

    The lock belongs to this process alone (POSIX record locks), not to what it forks: a loader that outlives a killed
    run by some seconds does not hold it.

    Raises:
        InputError: Another process trains it, or nothing can be written there.

    Example:
        >>> import tempfile
        >>> with locked(Path(tempfile.mkdtemp())):
        ...     print("alone")
        alone
    """
    file = run / LOCK_FILE
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(
            f"{file} can't be written ({error.strerror}); choose another place, or free some space"
        ) from None
    try:
        try:
            _lock(descriptor)
        except OSError as error:
            if error.errno in _TAKEN:
                raise InputError(
                    f"{run} is being trained by another process; wait until that has ended, or stop it first"
                ) from None
            logger.warning(f"{run} can't be locked ({error.strerror}); let no other process continue it meanwhile")
        yield
    finally:
        os.close(descriptor)


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
