"""Read untrusted files in a child process with limited memory and processor time."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import require_regular

_SCRIPT = Path(__file__).with_name("untrusted.py")
# A plain child rather than `multiprocessing`: it neither imports torch, nor runs the caller's `__main__` again.
_START = """
import json, runpy, sys
sys.path[:] = json.loads(sys.argv.pop(1))
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # each reserves memory


def read_limited(
    reader: Literal["dreamer", "deap", "faced", "faced_ratings"], path: Path, gibibytes: float, cpu_seconds: int
) -> Iterator[dict[str, np.ndarray]]:
    """Iterate over the arrays that a parser of `untrusted.py` finds in a file or folder, in a limited child process.

    Where the system refuses a limit (Windows; macOS for memory), the parser runs without.
    """
    try:
        if not path.is_dir():
            require_regular(path)
            open(path, "rb").close()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or error})") from None
    left = round(gibibytes * 2**30)
    arguments = (json.dumps(sys.path), str(_SCRIPT), reader, os.path.abspath(path), str(left), str(cpu_seconds))
    child = subprocess.Popen(  # noqa: S603 - this package's own script, without a shell
        [sys.executable, "-I", "-c", _START, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **_THREADS},
    )
    assert child.stdout is not None
    try:
        while len(head := child.stdout.read(8)) == 8:
            size = int.from_bytes(head, "little")
            left -= size  # this process takes no more memory than the child may
            if left < 0 or len(message := child.stdout.read(size)) < size:
                break
            with np.load(io.BytesIO(message), allow_pickle=False) as arrays:
                content = dict(arrays)
            del message
            if "refused" in content:
                raise InputError(f"{path}: {content['refused']}")
            if "end" in content:
                return
            yield content
        if left < 0:
            raise InputError(f"{path}: can't be read: it holds more than {gibibytes:g} GiB")
        code = child.wait()
        end = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise InputError(
            f"{path}: can't be read: its parser ended with {end} (it may take {gibibytes:g} GiB and {cpu_seconds} s)"
        )
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
