"""Cross-entropy that agrees with torch's on one process and divides by the weights of all ranks on several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ngd_timm.errors import choices
from ngd_timm.losses.functional import at_least_float32, class_weight_matrix, distributed

__all__ = ["class_weights", "cross_entropy"]

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
    """Weights (C,) from class counts, with mean 1 over the classes that occur; absent classes weigh 0.

    Args:
        counts: (C,) examples a class, or sums of soft labels.
        rule: "none" gives None; "balanced" is 1/n; "effective_number" is (1 - b) / (1 - b^n) with b = .999.

    Example:
        >>> class_weights([1, 1, 4], "balanced").tolist()
        [1.3333333730697632, 1.3333333730697632, 0.3333333432674408]

    Reference:
        Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019.
    """
    n = np.asarray(counts, dtype=np.float64)
    if rule == "none":
        return None
    present = n > 0
    safe = np.where(present, n, 1)
    if rule == "balanced":
        weight = 1 / safe
    elif rule == "effective_number":
        weight = 1 / (1 - EFFECTIVE_NUMBER_BETA**safe)
    else:
        raise choices("class weight rule", rule, ("none", "balanced", "effective_number"))
    weight = np.where(present, weight, 0)
    return torch.tensor(weight / weight.sum() * present.sum(), dtype=torch.float32)


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of (B, C) logits with (B,) indices or (B, C) weights, as a weighted mean.

    For indices it equals `torch.nn.functional.cross_entropy`; for soft labels the class weights enter the divisor too.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = at_least_float32(logits)
        label = class_weight_matrix(target, logits.shape[1], logits)
        smooth = label * (1 - label_smoothing) + label_smoothing / logits.shape[1]
        if weight is not None:
            weight = weight.to(logits)
            label, smooth = label * weight, smooth * weight
        total = -(smooth * torch.log_softmax(logits, dim=1)).sum()
        divisor = label.sum().detach()
        if distributed():
            # ranks average their gradients, so each divides by the mean of the divisors
            dist.all_reduce(divisor)
            divisor = divisor / dist.get_world_size()
        return total / divisor.clamp_min(torch.finfo(divisor.dtype).tiny)
