"""Each loss term's share of the gradient, and the λ that holds Proto-KD at a given share."""

from __future__ import annotations

import math
import statistics
from typing import Any

from ngd_timm.train.batches import TrainingBatch
from ngd_timm.train.task import NeuroGazeTask

# updates between settings of the weight: more often at first, when the ratio of the gradients moves fast
_EARLY, _EVERY_EARLY, _EVERY_LATER, _MEASUREMENTS_KEPT = 200, 5, 20, 3


class GradientShare:
    """Measures each term's share of the gradient every few updates, and sets Proto-KD's λ to hold a share.

    A λ fixed at step 0 drifts from 5 % to 1 % within some epochs. With a share of None, λ stays as it is.
    """

    def __init__(self, task: NeuroGazeTask, share: float | None, every: int) -> None:
        self.task, self.share, self.every = task, share, every
        self.norms: list[dict[str, float]] = []

    def measure(self, update: int, batch: TrainingBatch) -> dict[str, float]:
        """The shares up to this update, in percent by term; empty where no measurement is due."""
        held = self.share is not None and update % (_EVERY_EARLY if update < _EARLY else _EVERY_LATER) == 0
        if not held and not (self.every > 0 and update % self.every == 0):
            return {}
        norms = self.task.gradient_norms(*batch)
        # before the first update the shares are those of the λ that this measurement sets
        shares = self.task.gradient_shares(norms) if update else None
        if held:
            self._set_weight(norms)
        return shares or self.task.gradient_shares(norms)

    def _set_weight(self, norms: dict[str, float]) -> None:
        """Set λ by the median ratio of the last measurements, under the weights of the present epoch."""
        if self.share is None or not (norms["proto_kd"] > 0 and all(map(math.isfinite, norms.values()))):
            return  # a float16 gradient may vanish
        self.norms = [*self.norms, norms][-_MEASUREMENTS_KEPT:]
        weights = self.task.criterion.effective_weights(self.task.epoch)
        ratios = [
            sum(weights[name] * norm for name, norm in measured.items() if name != "proto_kd") / measured["proto_kd"]
            for measured in self.norms
        ]
        if (ratio := statistics.median(ratios)) > 0:
            self.task.criterion.weights["proto_kd"] = self.share / (1 - self.share) * ratio

    def state_dict(self) -> dict[str, Any]:
        """The measurements kept, and λ."""
        return {"norms": self.norms, "lambda": self.task.criterion.weights["proto_kd"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.norms, self.task.criterion.weights["proto_kd"] = state["norms"], state["lambda"]
