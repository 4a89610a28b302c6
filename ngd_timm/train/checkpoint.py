"""What a killed run goes on from: everything that changes while it trains, written whole, read without pickled code."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ngd_timm.core.distributed import average, gather_bytes, is_first, rank
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import atomic_path

if TYPE_CHECKING:
    from ngd_timm.train.setup import Setup

__all__ = ["EPOCH_STATE", "STEP_STATE", "Progress", "RunningMeans", "StateFiles", "weights_are_finite"]

EPOCH_STATE, STEP_STATE = "state.pt", "step.pt"
_AUTO_SHARE = 0.01
# so that the first state of a run comes after a minute, before it is known what one costs
_FIRST_GUESS_SECONDS = 0.6


class RunningMeans:
    """Means over the batches of an epoch and over all processes, on the device until asked for.

    What a batch can't tell (the spread of a class that is not in it, the gradient of a step that the fp16 scaler
    skips) does not count in its mean. The first value of a loss that is not finite is remembered with its batch.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.seen: dict[str, Tensor] = {}
        self.count = 0
        self._bad: Tensor | None = None
        self._watched: Sequence[str] = ()

    def add(self, values: dict[str, Tensor], count: int = 0, step: int = 0, watch: Sequence[str] = ()) -> None:
        """One batch's values, how many pictures it had, its number, and which values have to be finite."""
        together = average(torch.stack([value.detach().double() for value in values.values()]))
        finite = together.isfinite()
        for name, value, known in zip(values, together, finite, strict=True):
            may_be_unknown = name in ("positive_variance", "grad_norm")
            self.sums[name] = self.sums.get(name, 0) + (torch.where(known, value, 0) if may_be_unknown else value)
            self.seen[name] = self.seen.get(name, 0) + (known if may_be_unknown else torch.ones_like(known))
        self.count += count
        if watch:
            # one by one: a list as an index would be copied to the device, which waits
            by_name = dict(zip(values, finite, strict=True))
            bad = ~torch.stack([by_name[name] for name in watch])
            before = torch.full_like(bad, -1, dtype=torch.int64) if self._bad is None else self._bad
            self._bad, self._watched = torch.where((before < 0) & bad, step, before), watch

    def first_not_finite(self) -> tuple[int, str] | None:
        """Batch and name of it, the same on every process."""
        bad = [] if self._bad is None else self._bad.tolist()
        found = [(step, number) for number, step in enumerate(bad) if step >= 0]
        return (min(found)[0], self._watched[min(found)[1]]) if found else None

    def means(self) -> dict[str, float | None]:
        """By name; None where no batch could tell."""
        return {n: float(s) / int(self.seen[n]) if int(self.seen[n]) else None for n, s in self.sums.items()}


@dataclass
class Progress:
    """Where a run is; with the weights, the optimizer and the random state it is all that the rest depends on.

    Attributes:
        epoch: Finished epochs.
        step: Finished batches of the epoch that is under way.
        rows: Of summary.csv.
        means: Of the epoch that is under way.
        seconds: Spent on the epoch that is under way before the run was continued.
    """

    epoch: int = 0
    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    means: RunningMeans = field(default_factory=RunningMeans)
    seconds: float = 0.0

    def finish_epoch(self, row: dict[str, Any]) -> None:
        """Count the epoch that this row tells of."""
        self.rows.append(row)
        self.epoch, self.step, self.means, self.seconds = self.epoch + 1, 0, RunningMeans(), 0.0


class StateFiles:
    """A run's two states: `state.pt` after its last whole epoch, beside the student, and `step.pt` within the next.

    Args:
        folder: `last/` of the run.
        every: The recipe's `save_every`.
        kept: Epochs and batches of the state that is there.
    """

    def __init__(self, folder: Path, every: float | str, kept: tuple[int, int] = (0, 0)) -> None:
        self.epoch_file, self.step_file = folder / EPOCH_STATE, folder / STEP_STATE
        self.every, self.kept = every, kept
        self.cost, self.saved_at = _FIRST_GUESS_SECONDS, time.monotonic()

    def due(self) -> bool:
        """Whether a state within the epoch is worth its time by now."""
        if self.every == 0:
            return False
        interval = self.cost / _AUTO_SHARE if isinstance(self.every, str) else 60 * self.every
        return time.monotonic() - self.saved_at >= interval

    def save(self, setup: Setup, progress: Progress) -> None:
        """Write the state; an earlier one is there until this one is whole. All processes take part, one writes."""
        began = time.monotonic()
        state = _state(setup, progress)
        if is_first():
            with atomic_path(self.step_file if progress.step else self.epoch_file) as temporary:
                torch.save(state, temporary)
            if not progress.step:
                self.step_file.unlink(missing_ok=True)
        self.kept = (progress.epoch, progress.step)
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - began

    def load(self, setup: Setup) -> Progress:
        """Put the latest state into a fresh set-up; without one it stays as it is.

        Raises:
            InputError: A damaged file, by name.
        """
        states = [_read(file) for file in (self.epoch_file, self.step_file) if file.is_file()]
        if not states:
            return Progress()
        # a kill after the epoch's state may leave the one before it
        return _restore(setup, max(states, key=lambda state: (state["epoch"], state["step"])))


def _state(setup: Setup, progress: Progress) -> dict[str, Any]:
    task, means = setup.task, progress.means
    return {
        "checkpoint": task.get_checkpoint_state(),
        "checkpoint_ema": task.get_checkpoint_state(ema=True) if task.has_ema() else None,
        "optimizer": setup.optimizer.state_dict(),
        "scaler": setup.scaler.state_dict(),
        "random": gather_bytes(torch.get_rng_state()),
        "random_cuda": gather_bytes(torch.cuda.get_rng_state(setup.device)) if setup.device.type == "cuda" else None,
        "epoch": progress.epoch,
        "step": progress.step,
        "rows": progress.rows,
        "gradient_share": setup.gradient_share.state_dict(),
        "means": {"sums": means.sums, "seen": means.seen, "count": means.count},
        "seconds": progress.seconds,
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a damaged file; none of them is ours to tell apart
        instead = "start a new run" if file.name == EPOCH_STATE else "remove it to go on from the last whole epoch"
        raise InputError(f"{file} is not a readable resume state ({type(error).__name__}); {instead}") from None
    return state


def _restore(setup: Setup, state: dict[str, Any]) -> Progress:
    task = setup.task
    task.load_checkpoint_state(state["checkpoint"]["state_dict"], state["checkpoint"].get("task_state"))
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
    means.sums = {name: value.to(setup.device) for name, value in state["means"]["sums"].items()}
    means.seen = {name: value.to(setup.device) for name, value in state["means"]["seen"].items()}
    means.count = state["means"]["count"]
    return Progress(
        epoch=state["epoch"],
        step=state["step"],
        rows=state["rows"],
        means=means,
        seconds=state["seconds"],
    )


def weights_are_finite(setup: Setup) -> bool:
    """Whether the weights can be gone on from: a step may have spoilt them before a loss tells."""
    sums = [p.detach().sum(dtype=torch.float64) for p in setup.task.trainable_module.parameters()]
    return bool(torch.stack(sums).isfinite().all())
