"""Runs a command line on files that were altered, in a forked process, and says what is wrong with how it ended."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import re
import resource
import signal
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import matplotlib.font_manager  # noqa: F401  its first import writes a cache

CPU_SECONDS, WALL_SECONDS = 10, 60  # a command that waits uses no processor; the second is for a loaded machine
MEMORY, GUARD = 2 << 30, 6 << 30  # bytes above this process's: the limit, and what protects the machine
OUTPUT = "new"  # every command writes to names that begin so


@dataclass(frozen=True)
class Artifact:
    """Something that the package reads: a writer of a valid one, and the command lines that read it.

    `write` gets the working folder, which links to `student`, `faces` and `trained` (a run), and returns the files that
    may be altered. A command may write to `new…` alone.
    """

    write: Callable[[Path], Sequence[Path]]
    commands: tuple[str, ...]
    short: int  # cases with the ordinary suite
    long: int  # cases with --hypothesis-profile=long
    slow: tuple[str, ...] = ()  # commands of the long profile
    output: str = OUTPUT
    sign: Callable[[Path], object] = lambda folder: None  # brings hashes within the files up to date


class Ending(NamedTuple):
    """How a command ended: exit code (below 0: a signal), the two streams, seconds, bytes above this process's."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    memory: int


@dataclass
class Tally:
    """What became of an artifact's cases."""

    tried: int = 0
    read: int = 0  # exit code 0
    failures: dict[str, str] = field(default_factory=dict)  # kind: first case
    failed: int = 0
    memory: int = 0
    seconds: float = 0.0

    def add(self, ending: Ending, problem: str | None, case: object) -> None:
        self.tried += 1
        self.read += ending.code == 0
        self.memory, self.seconds = max(self.memory, ending.memory), self.seconds + ending.seconds
        if problem is not None:
            self.failed += 1
            self.failures.setdefault(kind_of(problem), f"{case}\n{problem}")

    def line(self, name: str) -> str:
        """A line of a report: how many cases were tried, held, and read."""
        return (
            f"{name:26}{self.tried:6} tried {self.tried - self.failed:6} held {self.read:6} read "
            f"{self.memory >> 20:5} MiB {self.seconds:6.0f} s"
        )


def kind_of(problem: str) -> str:
    """Failures of one cause: the first words, and the package's last frame."""
    frames = re.findall(r'ngd_timm/(\S+?)", line (\d+)', problem)
    return f"{problem[:60]} {frames[-1] if frames else ''}"


def check(artifact: Artifact, folder: Path, command: Sequence[str]) -> tuple[Ending, str | None]:
    """Run a command in `folder/work`; how it ended, and what is wrong with that."""
    for name in ("tmp", "home"):
        (folder / name).mkdir(exist_ok=True)
    work, before = folder / "work", _listing(folder)
    ending = run(command, folder)
    after = _listing(folder)
    output = ascii(str(work / artifact.output))[:-1]
    strange = [
        name
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name) and not (ending.code == 0 and name.startswith(output))
    ]
    return ending, _problem(ending, strange) or _wrong_content(ending, command, work)


def _listing(folder: Path) -> dict[str, object]:
    """Everything below a folder, with what changes when it is written to; links and devices are not opened."""
    found = {}
    for path in folder.rglob("*"):
        if path.name == "lock":  # held by whoever resumes a run
            continue
        status = path.lstat()
        kept = (status.st_mode, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else status.st_mode
        found[ascii(str(path))] = kept
    return found


def _problem(ending: Ending, strange: Sequence[str]) -> str | None:
    code, out, err = ending.code, ending.stdout, ending.stderr
    if "Timeout (" in err or code == -signal.SIGXCPU:
        return f"hangs\n{err[-3000:]}"
    if code not in (0, 1, 2) or "Traceback" in err:
        return f"ends with {code}: {(err.strip().splitlines() or [''])[-1]}\n{err[-3000:]}"
    if ending.memory > MEMORY:
        return f"takes {ending.memory / 2**30:.1f} GiB\n{err}"
    if strange:
        return f"writes {strange[:3]} and ends with {code}\n{err}"
    if code and (err.count("\n") != 1 or not err.startswith("ngd: ") or len(err) > 2000):
        return f"ends with {code} and not one line\n{err[:3000]}"
    if code == 2 and out:
        return f"refuses and prints\n{out[:500]}"
    if odd := re.search(r"[^\n\t\x20-\x7e\xa0-\U0010ffff]", out + err):
        return f"prints the control character {odd[0]!r}\n{out[:500]}{err}"
    return None


def _wrong_content(ending: Ending, command: Sequence[str], work: Path) -> str | None:
    """Whether a command that ends well did not write its output, or prints JSON that is none."""
    if ending.code:
        return None
    if absent := [name for name in command if name.startswith(OUTPUT) and not (work / name).exists()]:
        return f"ends with 0 and leaves no {absent}"
    if "--json" in command:
        try:
            json.loads(ending.stdout, parse_constant=lambda name: float(f"no {name}"))
        except ValueError as error:
            return f"prints what is no JSON ({error})\n{ending.stdout[:500]}"
    return None if ending.stdout else "ends with 0 and says nothing"


def run(command: Sequence[str], folder: Path) -> Ending:
    """Run the command line in a forked process, whose temporary files and caches go below `folder`."""
    streams = [folder.parent / name for name in ("stdout", "stderr")]
    for path in streams:
        path.write_bytes(b"")
    floor = _resident()
    child = os.fork()
    if not child:
        _live(command, folder, streams)
    _, status, used = os.wait4(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it started and left
    out, err = (path.read_text(errors="replace") for path in streams)
    memory = max(0, used.ru_maxrss * 1024 - floor)
    return Ending(os.waitstatus_to_exitcode(status), out, err, used.ru_utime + used.ru_stime, memory)


def import_what_it_did(folder: Path) -> None:
    """Import what the last command in `folder` imported, once for all that this process forks."""
    for name in (folder.parent / "modules").read_text().split():
        with contextlib.suppress(Exception):  # one that this machine lacks
            importlib.import_module(name)


def _resident() -> int:
    """Bytes of this process that a forked one begins with: what is not mapped from files."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def _live(command: Sequence[str], folder: Path, streams: Sequence[Path]) -> None:
    """The forked process: it ends here."""
    code, known = 70, set(sys.modules)
    try:
        os.setsid()
        os.chdir(folder / "work")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, path in enumerate(streams, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", 1, "utf-8", "backslashreplace") for n in (1, 2))
        os.environ |= {name: str(folder / "home") for name in ("HOME", "XDG_CACHE_HOME")}
        os.environ |= {"TMPDIR": str(folder / "tmp"), "HF_HUB_OFFLINE": "1"}
        tempfile.tempdir = str(folder / "tmp")
        space = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (space + GUARD, space + GUARD))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 28, 1 << 28))
        faulthandler.dump_traceback_later(WALL_SECONDS, exit=True, file=2)
        faulthandler.register(signal.SIGXCPU, file=2, chain=True)
        from ngd_timm.cli import main

        sys.argv = ["ngd", *command]
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 70
        sys.stdout.flush()
        (folder.parent / "modules").write_text("\n".join(sys.modules.keys() - known))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
