"""A lock that lets one process at a time write a run; the system releases it when its holder ends, killed or not."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import is_leftover, write_refusals

logger = logging.getLogger("ngd_timm.core")

LOCK_FILE = "lock"


def is_unused(run: Path) -> bool:
    """Whether a run may begin there: no such path, or a folder of nothing but a lock and leftovers of killed writes."""
    if not run.exists():
        return True
    return run.is_dir() and all(path.name == LOCK_FILE or is_leftover(path) for path in run.iterdir())


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep other processes from writing this run within the block; forked ones don't inherit the lock."""
    file = run / LOCK_FILE
    with write_refusals(file):
        run.mkdir(parents=True, exist_ok=True)
        file.touch()
    with contextlib.ExitStack() as held:
        try:
            # the soft lock would outlive a killed process
            held.enter_context(FileLock(file, timeout=0, fallback_to_soft=False))
        except Timeout:
            raise InputError(f"{run} is being written by another process; wait for its end, or stop it") from None
        except OSError as error:
            logger.warning(f"{run} can't be locked ({error.strerror}); let no other process continue it meanwhile")
        yield
