"""Disks: what can't be written is reported in one line, and the earlier file stays whole."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import FOLDER, RAMP, SCORE, TRAIN, encoded, rows, write

from ngd_timm.core.files import write_json

EXPORT = "export student --out"
DENIED = "can't be written (Permission denied)"
MAY_NOT = 99  # no exit code of pytest


@rows(
    "command, message",
    {
        "metrics below a file": (f"{SCORE} --out file/test.json", "can't be written"),
        "metrics onto a folder": (f"{SCORE} --out folder", "can't be written"),
        "metrics under 300 letters": (f"{SCORE} --out {'x' * 300}", "can't be written"),
        "metrics into a folder of mode 555": (f"{SCORE} --out locked/test.json", DENIED),
        "a run onto a file": (f"{TRAIN} out=file", "is not empty"),
        "a run below a file": (f"{TRAIN} out=file/run", "can't be written"),
        "a run under 300 letters": (f"{TRAIN} out={'x' * 300}", "File name too long"),
        "a run into a folder of mode 555": (f"{TRAIN} out=locked/run", DENIED),
        "an export onto a file": (f"{EXPORT} file", "file"),
        "an export into a folder of mode 555": (f"{EXPORT} locked/student", DENIED),
        "a figure below a file": ("prototypes show --plot file/grid.png", "can't be written"),
    },
)
def test_a_place_that_cannot_be_written(command: str, message: str, refused: Any, tmp_path: Path) -> None:
    write(tmp_path, {"file": "mine", "folder": FOLDER, "locked": FOLDER})
    (tmp_path / "locked").chmod(0o555)
    refused(command, message)


@contextlib.contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """A write beyond `size` bytes fails, as on a disk with a quota."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@rows(
    "command, message",
    {
        "metrics over an earlier file": (f"{SCORE} --out test.json", "can't be written (File too large)"),
        "an export": (f"{EXPORT} new", "can't be written"),
        "annotations": ("predict student a.png --annotate new", "can't be written (File too large)"),
        "saved faces": ("predict student noise.png --crops --save-faces new", "can't be written (File too large)"),
    },
)
def test_a_write_that_a_quota_cuts_off(command: str, message: str, refused: Any, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64))
    write(tmp_path, {"test.json": "earlier", "a.png": encoded(RAMP), "noise.png": encoded(noise)})
    with no_file_larger_than(1024):
        refused(command, message)


DISKS = {"full": ["-o", "size=16k"], "small": ["-o", "size=1m"], "locked": ["-o", "size=16k,ro"]}
NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000


def run_small_disks(folder: Path) -> int:
    """Run small_disks.py in a name space of this process's own, in which anybody may mount; pytest's exit code."""
    user, group = os.getuid(), os.getgid()
    try:
        if ctypes.CDLL(None).unshare(NEW_USER | NEW_MOUNTS):
            return MAY_NOT
        for name, line in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path(f"/proc/self/{name}").write_text(line)
    except (OSError, AttributeError):
        return MAY_NOT
    for name, options in DISKS.items():
        (folder / name).mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", folder / name], capture_output=True).returncode:
            return MAY_NOT
    os.environ["NGD_SMALL_DISKS"] = str(folder)
    tests = Path(__file__).with_name("small_disks.py")
    return pytest.main(["-n0", "-p", "no:cacheprovider", f"--basetemp={folder / 't'}", str(tests)])


def test_full_and_read_only_file_systems(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException), open(tmp_path / "printed", "w") as sys.stdout:
            code = run_small_disks(tmp_path)
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == MAY_NOT:
        pytest.skip("this machine lets nobody mount a small file system")
    assert code == 0, (tmp_path / "printed").read_text()


def test_a_full_standard_output_ends_with_code_2(ngd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full, contextlib.suppress(OSError):
        monkeypatch.setattr(sys, "stdout", full)
        done = ngd("--version")
        assert done.returncode == 2
        assert "standard output: No space left" in done.stderr


class _Interrupts(dict):  # type: ignore[type-arg]
    def items(self) -> Any:
        raise KeyboardInterrupt


def test_ctrl_c_during_a_write_leaves_the_earlier_file_alone(tmp_path: Path) -> None:
    write(tmp_path, {"test.json": "earlier"})
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "test.json", _Interrupts(a=1))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("test.json", "earlier")]
