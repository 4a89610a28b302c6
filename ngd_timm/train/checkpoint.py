"""Checkpoints: everything that changes while a run trains, written atomically, read without pickled code."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ngd_timm.core.distributed import average, gather, is_first, rank
from ngd_timm.core.errors import InputError, one_line
from ngd_timm.core.files import atomic_path
from ngd_timm.evaluate.run_log import choice_score, parse_rows, read_state, summary_csv

if TYPE_CHECKING:
    from ngd_timm.train.setup import Setup

logger = logging.getLogger("ngd_timm.train")

_NEVER = 2**62
_AUTO_SHARE = 0.01
_FIRST_GUESS_SECONDS = 0.6  # the cost assumed before one is written: the first comes after a minute


class RunningMeans:
    """Means of finite values over the batches of an epoch and over all processes, on the device until they are read.

    The spread of a class may be unknown, and the fp16 scaler skips steps whose gradient overflows.
    """

    def __init__(self) -> None:
        # by the names of values that come together
        self.sums: dict[tuple[str, ...], Tensor] = {}
        self.seen: dict[tuple[str, ...], Tensor] = {}
        self.first_bad: dict[tuple[str, ...], Tensor] = {}
        self.count = 0

    def add(self, values: dict[str, Tensor], count: int = 0, step: int = 0) -> None:
        """Add the values of batch number `step`, which has `count` images."""
        names, together = tuple(values), average(torch.stack([value.detach().double() for value in values.values()]))
        finite = together.isfinite()
        for means, new in ((self.sums, torch.where(finite, together, 0)), (self.seen, finite.long())):
            # those of a checkpoint are on the CPU, as shares always are
            means[names] = means[names].to(new.device) + new if names in means else new
        never = torch.full_like(finite, _NEVER, dtype=torch.int64)
        bad = self.first_bad.get(names, never)
        self.first_bad[names] = torch.where(finite, bad, bad.clamp(max=step))
        self.count += count

    def first_not_finite(self, watched: Sequence[str]) -> tuple[int, str] | None:
        """Batch and name of the first of these values that is not finite, the same on every process."""
        bad = {n: s for names, steps in self.first_bad.items() for n, s in zip(names, steps.tolist(), strict=True)}
        step, name = min(((bad.get(name, _NEVER), name) for name in watched), key=lambda found: found[0])
        return None if step == _NEVER else (step, name)

    def means(self) -> dict[str, float | None]:
        """By name; None where no batch knows the value."""
        means: dict[str, float | None] = {}
        for names, sums in self.sums.items():
            for name, total, seen in zip(names, sums.tolist(), self.seen[names].tolist(), strict=True):
                means[name] = total / seen if seen else None
        return means


@dataclass
class Progress:
    """Where a run is."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished batches of the epoch under way
    rows: list[dict[str, Any]] = field(default_factory=list)  # of summary.csv
    means: RunningMeans = field(default_factory=RunningMeans)  # of the epoch under way
    seconds: float = 0.0  # spent on the epoch under way

    def finish_step(self, losses: dict[str, Tensor], shares: dict[str, float], images: int) -> None:
        """Log a step's losses, gradient shares in percent, and number of images."""
        if shares:
            self.means.add({f"share_{name}": torch.tensor(share) for name, share in shares.items()})
        self.means.add(losses, images, self.step)
        self.step += 1

    def finish_epoch(self, row: dict[str, Any]) -> None:
        """Log an epoch's row."""
        self.rows.append(row)
        self.epoch, self.step, self.means, self.seconds = self.epoch + 1, 0, RunningMeans(), 0.0


class Checkpoints:
    """A run's checkpoints: `state.pt` after its last epoch, `before.pt` one earlier, `step.pt` within the next."""

    def __init__(self, folder: Path, every: float | str, kept: tuple[int, int] = (0, 0)) -> None:
        self.epoch_file, self.step_file, self.before = (folder / f"{name}.pt" for name in ("state", "step", "before"))
        self.every, self.kept = every, kept
        self.cost, self.saved_at = _FIRST_GUESS_SECONDS, time.monotonic()

    def due(self) -> bool:
        """Whether it is time for a checkpoint within the epoch."""
        if self.every == 0:
            return False
        interval = self.cost / _AUTO_SHARE if isinstance(self.every, str) else 60 * self.every
        return time.monotonic() - self.saved_at >= interval

    def save(self, setup: Setup, progress: Progress) -> None:
        """Write a checkpoint atomically. All processes take part, the first one writes."""
        began = time.monotonic()
        state = _state(setup, progress)
        if is_first():
            file = self.step_file if progress.step else self.epoch_file
            if not file.parent.parent.is_dir():
                raise InputError(f"{file.parent.parent} was removed while it trained; start it again")
            with atomic_path(file) as temporary:
                torch.save(state, temporary)
                if not progress.step and file.exists():
                    os.replace(file, self.before)
            if not progress.step:
                self.step_file.unlink(missing_ok=True)
        self.kept = (progress.epoch, progress.step)
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - began

    def load(self, setup: Setup) -> Progress:
        """Load the latest whole checkpoint, if there is one, into a new set-up."""
        # a kill after an epoch's checkpoint may leave an earlier step.pt
        states: list[tuple[Path, dict[str, Any]]] = []
        damaged: InputError | None = None
        for file in filter(Path.is_file, (self.epoch_file, self.step_file, self.before)):
            if file == self.before and states:
                break
            try:
                states.append((file, read_state(file)))
            except InputError as error:
                logger.warning(f"{error}; an earlier one serves, if there is one")
                damaged = error
        if states:
            file, state = max(states, key=lambda found: (found[1]["epoch"], found[1]["step"]))
            try:
                return _restore(setup, state)
            except Exception as error:  # torch checks little of what it loads, and in a dozen ways
                raise InputError(
                    f"{file} is not a checkpoint of this run ({type(error).__name__}: {one_line(error)}); remove it to "
                    "continue from the one before, if there is one"
                ) from None
        if damaged is not None:
            raise InputError(f"{damaged}; start a new run")
        return Progress()


def _state(setup: Setup, progress: Progress) -> dict[str, Any]:
    task, means = setup.task, progress.means
    return {
        "checkpoint": task.get_checkpoint_state(),
        "checkpoint_ema": task.get_checkpoint_state(ema=True) if task.has_ema() else None,
        "optimizer": setup.optimizer.state_dict(),
        "scaler": setup.scaler.state_dict(),
        "random": gather(torch.get_rng_state()),
        "random_cuda": gather(torch.cuda.get_rng_state(setup.device)) if setup.device.type == "cuda" else None,
        "epoch": progress.epoch,
        "step": progress.step,
        "rows": progress.rows,
        "gradient_share": setup.gradient_share.state_dict(),
        "means": {"sums": means.sums, "seen": means.seen, "count": means.count},
        "seconds": progress.seconds,
    }


def _restore(setup: Setup, state: dict[str, Any]) -> Progress:
    task = setup.task
    task.load_checkpoint_state(state["checkpoint"]["state_dict"], state["checkpoint"].get("task_state"))
    if not weights_are_finite(setup):
        raise ValueError("its weights are not finite")
    if state["checkpoint_ema"]:
        ema = state["checkpoint_ema"]
        task.load_checkpoint_state(ema["state_dict_ema"], ema.get("task_state_ema"), ema=True)
    setup.optimizer.load_state_dict(state["optimizer"])
    setup.scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["random"][rank()])
    if state["random_cuda"] is not None and setup.device.type == "cuda":
        torch.cuda.set_rng_state(state["random_cuda"][rank()], setup.device)
    setup.gradient_share.load_state_dict(state["gradient_share"])
    means = RunningMeans()
    means.sums, means.seen, means.count = (state["means"][key] for key in ("sums", "seen", "count"))
    if state["rows"]:
        parse_rows(summary_csv(state["rows"], setup.recipe.best_on), "its log")
    for row in state["rows"]:
        choice_score(setup.recipe, row)
    return Progress(state["epoch"], state["step"], state["rows"], means, state["seconds"])


def weights_are_finite(setup: Setup) -> bool:
    """Whether all weights and running statistics are finite: a step may spoil them before a loss shows it."""
    module = setup.task.trainable_module
    # other buffers may be infinite, as limits that never bind
    running = (buffer for name, buffer in module.named_buffers() if name.endswith(("running_mean", "running_var")))
    sums = [t.detach().sum(dtype=torch.float64) for t in (*module.parameters(), *running)]
    return bool(torch.stack(sums).isfinite().all())
