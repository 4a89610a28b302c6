"""Lives of a command, each in a forked process, that end at one of its file operations, or where files can't grow."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib
import itertools
import json
import os
import resource
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

_OPERATIONS = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod")
_LONGEST = 120
"""Seconds after which a hung life dies of SIGALRM."""
_TIMINGS = ("seconds", "images_per_second", "minutes")


class Cut(NamedTuple):
    """What ends a life: a signal before the file operation of that number, or files that can't grow beyond a size."""

    kind: str
    at: int


class Life:
    """How a command ended: its exit code (minus a signal's number), what it printed, how often it changed files."""

    def __init__(self, command: str, folder: Path, cut: Cut | None = None) -> None:
        pipes = [os.pipe() for _ in range(3)]
        child = os.fork()
        if not child:
            _live(command, folder, [write for _, write in pipes], cut)
        for _, write in pipes:
            os.close(write)
        # pipes, because a log would be subject to the quota too
        with ThreadPoolExecutor(3) as readers:
            self.stdout, self.stderr, notes = readers.map(_read_all, [read for read, _ in pipes])
        self.exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if self.exit_code == 0:
            operations, *self.modules = notes.split("\n")
            self.operations = int(operations)

    def load_its_modules(self) -> None:
        """Import here what the life imported, so that the next ones need not."""
        for name in self.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def _read_all(descriptor: int) -> str:
    with open(descriptor) as pipe:
        return pipe.read()


def _live(command: str, folder: Path, pipes: Sequence[int], cut: Cut | None) -> None:
    code = 1
    try:
        signal.alarm(_LONGEST)
        os.chdir(folder)
        os.dup2(pipes[0], 1)
        os.dup2(pipes[1], 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        sys.argv = ["ngd", *shlex.split(command)]
        from ngd_timm.cli import main

        operations = _watch(folder, cut)
        if cut and cut.kind == "quota":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (cut.at, resource.RLIM_INFINITY))
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        if code == 0:
            with os.fdopen(pipes[2], "w") as notes:
                notes.write("\n".join([str(next(operations)), *sorted(sys.modules)]))
        os._exit(code)


def _watch(folder: Path, cut: Cut | None) -> itertools.count[int]:
    """Count this process's operations on files below a folder from now on; before one of them the signal comes."""
    numbers, here = itertools.count(), str(folder)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _OPERATIONS and not (event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
            return
        if isinstance(arguments[0], (str, os.PathLike)) and os.path.abspath(arguments[0]).startswith(here):
            number = next(numbers)
            if cut and cut.kind != "quota" and number == cut.at:
                os.kill(os.getpid(), signal.Signals[cut.kind])

    sys.addaudithook(watch)
    return numbers


def results(folder: Path) -> dict[str, str]:
    """Every file and folder below a folder, a file with the hash of what it says, wall times apart."""
    return {str(path.relative_to(folder)): _said(path) if path.is_file() else "" for path in folder.rglob("*")}


def _said(path: Path) -> str:
    if path.name in ("report.html", "table.md", "table.tex"):  # they say how long it took
        return ""
    if path.name == "summary.csv":
        with open(path, newline="") as handle:
            content: Any = list(csv.DictReader(handle))
    elif path.suffix == ".json":
        content = json.loads(path.read_text())
        content.pop("command", None)  # of a run that had not begun: the one that resumed it
    elif path.suffix == ".pt":
        content = torch.load(path, weights_only=True)
    elif path.suffix == ".safetensors":  # whose metadata come in any order
        with safe_open(path, "pt") as handle:
            tensors = {key: handle.get_tensor(key) for key in [*handle.keys()]}
            content = [sorted((handle.metadata() or {}).items()), tensors]
    else:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return hashlib.sha256(repr(_without_times(content)).encode()).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(entry) for key, entry in value.items() if key not in _TIMINGS}
    if isinstance(value, (list, tuple)):
        return [_without_times(entry) for entry in value]
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else value
