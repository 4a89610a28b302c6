"""Train a run that is killed again and again, and resume it until it is through: a script of test_resume.py.

    python tests/killed_runs.py RECIPE.json KIND SEED

KIND `moments`: SIGKILL at random times. KIND `writes`: a run kills itself inside its own writes: before and after a
rename, between the two renames of a folder, and with half a checkpoint on disk. Prints where each life ended, as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ngd_timm.train.loop as training
from ngd_timm.core.recipe import Recipe

torch.set_num_threads(1)


def live(recipe: Recipe, before: Callable[[], None]) -> int:
    """Start a life of the run in a forked process; its id."""
    child = os.fork()
    if child:
        return child
    try:
        before()
        begun = (Path(recipe.out or "") / "recipe.yaml").is_file()
        training.resume(recipe.out or "") if begun else training.train(recipe)
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def die_inside_a_write(number: int, report: int) -> None:
    """Kill this process at the `number`-th of the moments around and inside writes, and report which it was."""
    replace, save, moments = os.replace, torch.save, [0]

    def moment(what: str) -> None:
        moments[0] += 1
        if moments[0] == number:
            os.write(report, what.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def replace_or_die(source: Any, target: Any) -> None:
        moment(f"before {Path(target).name}")
        replace(source, target)
        moment(f"after {Path(target).name}")

    def save_or_die(state: Any, file: Path) -> None:
        save(state, file)
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        moment(f"half of {'step' if state['step'] else 'state'}.pt")
        file.write_bytes(whole)

    os.replace, torch.save = replace_or_die, save_or_die


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="RECIPE.json", type=Path)
    parser.add_argument("kind", metavar="KIND", choices=("moments", "writes"))
    parser.add_argument("seed", metavar="SEED", type=int)
    options = parser.parse_args()
    recipe, chance, ends = Recipe.model_validate_json(options.file.read_text()), random.Random(options.seed), []
    prepare = training.prepare
    for _ in range(60):
        ready, pipe = os.pipe()
        if options.kind == "writes":
            number = chance.randint(1, 24)
            child = live(recipe, lambda number=number, pipe=pipe: die_inside_a_write(number, pipe))
        else:

            def report_when_prepared(pipe: int = pipe) -> None:
                training.prepare = lambda recipe: (prepare(recipe), os.write(pipe, b"prepared"))[0]

            child = live(recipe, report_when_prepared)
        os.close(pipe)
        if options.kind == "moments" and len(ends) < 12:
            os.read(ready, 8)
            time.sleep(chance.uniform(0, 0.15))  # a whole run takes about 0.7 s
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        end = os.read(ready, 100).decode() if options.kind == "writes" else "killed"
        os.close(ready)
        if code != -signal.SIGKILL:
            print(json.dumps(ends))
            sys.exit(code)
        ends.append(end)
    sys.exit("60 lives were not enough")


if __name__ == "__main__":
    main()
