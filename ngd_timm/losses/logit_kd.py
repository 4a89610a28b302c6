"""Logit distillation from any classifier of the same classes."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from ngd_timm.core.errors import InputError, choices
from ngd_timm.losses.functional import at_least_float32, mean_by

KDMode: TypeAlias = Literal["mse", "mse_probs", "kl"]


def logit_kd_loss(
    student: Tensor,
    teacher: Tensor,
    mode: KDMode = "mse",
    temperature: float = 5.0,
    gather_distributed: bool = False,
) -> Tensor:
    """Distance between student and teacher logits s and t, both (B, C); no gradient reaches the teacher.

    With q = softmax(s/T), p = softmax(t/T), and "mean" over the batch:

    - mse: mean of (s - t)^2 over the classes too; T has no part in it. The gradient at s_j is 2 (s_j - t_j) / (B C).
    - mse_probs: T^2 mean of (q - p)^2 over the classes too. The gradient at s_j is
      2T/(B C) q_j ((q_j - p_j) - sum_k q_k (q_k - p_k)).
    - kl: T^2 mean of KL(p || q). The gradient at s_j is T/B (q_j - p_j).

    T^2 keeps a gradient that would fall as 1/T^2. For large T, with logits centred to mean 0 over the classes,
    mse_probs becomes 1/C^2 of mse (1/64 with eight classes) and kl 1/2 of it, so one weight does not mean the same in
    two modes. An empty batch gives 0, attached to the graph. With `gather_distributed` the mean is over the rows of all
    ranks, which must then all call it.

    Examples:
        >>> s, t = torch.tensor([[[-1.0, 1.0]], [[0.0, 0.0]]], dtype=torch.float64)
        >>> [round(float(logit_kd_loss(s, t, mode, temperature=100)), 3) for mode in ("mse", "mse_probs", "kl")]
        [1.0, 0.25, 0.5]
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
        elif mode == "mse_probs":
            gap = torch.softmax(s / temperature, dim=1) - torch.softmax(t / temperature, dim=1)
            rows = temperature**2 * gap.square().mean(dim=1)
        else:
            log_s, log_t = torch.log_softmax(s / temperature, dim=1), torch.log_softmax(t / temperature, dim=1)
            rows = temperature**2 * (log_t.exp() * (log_t - log_s)).sum(dim=1)
        return mean_by(rows.sum(), rows.new_full((), rows.shape[0]), gather_distributed)


def _refuse(mode: str, temperature: float) -> None:
    if mode not in get_args(KDMode):
        raise choices("KD mode", mode, get_args(KDMode))
    if not temperature > 0:
        raise InputError(f"temperature must be above 0, got {temperature}")


class LogitKDLoss(nn.Module):
    """Module form of `logit_kd_loss`, which has the formulas and the scale of their gradients.

    The authors name their term `kd_mse` and say no more; that it is of logits is our reading.

    Args:
        mode: "mse" of logits, "mse_probs" of probabilities at T, or "kl" at T (Hinton et al. 2015).
        temperature: T of "mse_probs" and "kl"; it has no effect on "mse".
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

    def __init__(self, mode: KDMode = "mse", temperature: float = 5.0, gather_distributed: bool = False) -> None:
        super().__init__()
        _refuse(mode, temperature)
        self.mode, self.temperature = mode, float(temperature)
        self.gather_distributed = gather_distributed

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        gather = self.training and self.gather_distributed
        return logit_kd_loss(student, teacher, self.mode, self.temperature, gather)

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}" + (f", temperature={self.temperature}" if self.mode != "mse" else "")
