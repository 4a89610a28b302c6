"""Cross-entropy that agrees with torch's, and class weights from counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ngd_timm.core.errors import InputError, choices
from ngd_timm.losses.functional import at_least_float32, class_weight_matrix, mean_by

EFFECTIVE_NUMBER_BETA = 0.999
CITATIONS = {
    "label_smoothing": (
        'C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, "Rethinking the Inception architecture for computer '
        'vision", CVPR 2016, 2818-2826.'
    ),
    "effective_number": (
        'Y. Cui, M. Jia, T.-Y. Lin, Y. Song, S. Belongie, "Class-balanced loss based on effective number of samples", '
        "CVPR 2019, 9268-9277."
    ),
}
"""What to cite for each option."""


def class_weights(counts: np.ndarray | Sequence[float], rule: str) -> Tensor | None:
    """Weights (C,) from class counts (C,), with mean 1 over the classes that occur; absent classes weigh 0.

    "none" gives None; "balanced" is 1/n; "effective_number" is (1 - b) / (1 - b^n) with b = .999, which is our reading
    of the authors' `class_weights`, a list that they don't show.

    Examples:
        >>> class_weights([1, 1, 4], "balanced").tolist()
        [1.3333333730697632, 1.3333333730697632, 0.3333333432674408]

    Reference:
        Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019.
    """
    n = np.asarray(counts, dtype=np.float64)
    if rule == "none":
        return None
    if n.ndim != 1 or not np.isfinite(n).all() or (n < 0).any() or not (n > 0).any():
        raise InputError(f"counts must be one number a class, 0 or more and not all 0, got {n.tolist()}")
    if rule not in ("balanced", "effective_number"):
        raise choices("class weight rule", rule, ("none", "balanced", "effective_number"))
    present = n > 0
    safe = np.where(present, n, 1)
    weight = np.where(present, 1 / (safe if rule == "balanced" else 1 - EFFECTIVE_NUMBER_BETA**safe), 0)
    return torch.tensor(weight / weight.sum() * present.sum(), dtype=torch.float32)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    gather_distributed: bool = False,
) -> Tensor:
    """Cross-entropy as a weighted mean over the batch.

    For indices it equals torch's, rows of index -100 ignored; for soft labels the class weights enter the divisor too,
    and a row counts as much as its weights sum to. A batch in which nothing counts costs 0, attached to the graph,
    where torch's gives NaN.

    Args:
        logits: (B, C), any float dtype; computed in at least float32.
        target: (B,) indices or (B, C) weights.
        weight: (C,) of the classes, 0 or more.
        label_smoothing: Share of each row's weight that is spread over all classes.
        gather_distributed: Divide by the weights of all ranks, which must then all call it.

    Examples:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> round(float(cross_entropy(logits, torch.tensor([0, -100]))), 3)
        0.127
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = at_least_float32(logits)
        label = class_weight_matrix(target, logits.shape[1], logits)
        smooth = label * (1 - label_smoothing) + label.sum(dim=1, keepdim=True) * (label_smoothing / logits.shape[1])
        if weight is not None:
            weight = weight.to(logits)
            label, smooth = label * weight, smooth * weight
        return mean_by(-(smooth * torch.log_softmax(logits, dim=1)).sum(), label.sum(), gather_distributed)
