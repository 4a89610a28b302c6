"""Logit distillation from any classifier of the same classes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ngd_timm.core.errors import InputError, choices
from ngd_timm.losses.functional import at_least_float32, mean_by


def logit_kd_loss(
    student: Tensor,
    teacher: Tensor,
    mode: Literal["mse", "kl"] = "mse",
    temperature: float = 5.0,
    gather_distributed: bool = False,
) -> Tensor:
    """Distance between student and teacher logits, both (B, C); no gradient reaches the teacher.

    mse: the mean of (s - t)^2 over batch and classes. kl: T^2 KL(softmax(t/T) || softmax(s/T)), mean over the batch.
    An empty batch gives 0, attached to the graph. With `gather_distributed` the mean is over the rows of all ranks,
    which must then all call it.

    Examples:
        >>> float(logit_kd_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]])))
        2.0
    """
    _refuse(mode, temperature)
    if student.shape != teacher.shape:
        raise InputError(
            f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} must have one shape; "
            "reorder or cut the teacher's classes by name first"
        )
    with torch.autocast(student.device.type, enabled=False):
        s = at_least_float32(student)
        t = teacher.detach().to(s.dtype)
        if mode == "mse":
            rows = (s - t).square().mean(dim=1)
        else:
            log_s, log_t = torch.log_softmax(s / temperature, dim=1), torch.log_softmax(t / temperature, dim=1)
            rows = temperature**2 * (log_t.exp() * (log_t - log_s)).sum(dim=1)
        return mean_by(rows.sum(), rows.new_full((), rows.shape[0]), gather_distributed)


def _refuse(mode: str, temperature: float) -> None:
    if mode not in ("mse", "kl"):
        raise choices("KD mode", mode, ("mse", "kl"))
    if not temperature > 0:
        raise InputError(f"temperature must be above 0, got {temperature}")


class LogitKDLoss(nn.Module):
    """Module form of `logit_kd_loss`.

    Args:
        mode: "mse" (the paper's) or "kl" (Hinton et al. 2015).
        temperature: T of "kl"; "mse" has none.
        gather_distributed: In training divide by the rows of all ranks, which must then all call it.

    Shape:
        student logits (B, C), teacher logits (B, C); output: scalar, 0 for an empty batch.

    Examples:
        >>> logits = torch.randn(2, 8)
        >>> float(LogitKDLoss("kl", temperature=4.0)(logits, logits))
        0.0

    Reference:
        Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", arXiv 1503.02531.
    """

    citation = (
        'G. Hinton, O. Vinyals, J. Dean, "Distilling the knowledge in a neural network", arXiv 1503.02531 (2015).'
    )

    def __init__(
        self, mode: Literal["mse", "kl"] = "mse", temperature: float = 5.0, gather_distributed: bool = False
    ) -> None:
        super().__init__()
        _refuse(mode, temperature)
        self.mode, self.temperature = mode, float(temperature)
        self.gather_distributed = gather_distributed

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        gather = self.training and self.gather_distributed
        return logit_kd_loss(student, teacher, self.mode, self.temperature, gather)

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}" + (f", temperature={self.temperature}" if self.mode == "kl" else "")
