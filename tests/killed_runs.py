"""Lives of a run, each in a forked process that is killed: at a moment of its writes, or after some time."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ngd_timm.train.loop as training
from ngd_timm.core.recipe import Recipe


def live(recipe: Recipe, before: Callable[[], None]) -> int:
    """Train the run, or resume it, in a forked process; its id. One that hangs dies of SIGALRM."""
    if torch.cuda.is_initialized():
        pytest.skip("a process that has used its GPU can't be forked")
    child = os.fork()
    if child:
        return child
    try:
        signal.alarm(60)
        before()
        begun = (Path(recipe.out or "") / "recipe.yaml").is_file()
        training.resume(recipe.out or "") if begun else training.train(recipe)
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(moment: str) -> None:
    """Kill this process at the first `before NAME` or `after NAME` of a rename, or with a checkpoint half written."""
    replace, save = os.replace, torch.save

    def reach(reached: str) -> None:
        if reached == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def replace_or_die(source: Any, target: Any) -> None:
        reach(f"before {Path(target).name}")
        replace(source, target)
        reach(f"after {Path(target).name}")

    def save_or_die(state: Any, file: Path) -> None:
        save(state, file)
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        reach(f"half of {'step' if state['step'] else 'state'}.pt")
        file.write_bytes(whole)

    os.replace, torch.save = replace_or_die, save_or_die


def killed_at(recipe: Recipe, moment: str) -> int:
    """The exit code of a life that ends at a moment of its writes."""
    return exit_code(live(recipe, lambda: die_at(moment)))


def killed_after(recipe: Recipe, seconds: float) -> int:
    """The exit code of a life that ends some time after its data and student are prepared."""
    (ready, write), prepare = os.pipe(), training.prepare

    def report_when_prepared() -> None:
        training.prepare = lambda recipe: (prepare(recipe), os.write(write, b"prepared"))[0]

    child = live(recipe, report_when_prepared)
    os.close(write)
    os.read(ready, 8)
    os.close(ready)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return exit_code(child)
