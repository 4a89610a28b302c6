"""Post-hoc logit adjustment: predictions as if all classes were equally common, or part of the way there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ngd_timm.core.errors import InputError
from ngd_timm.models.ngd_models import TimmModel

CITATION = (
    "A. K. Menon, S. Jayasumana, A. S. Rawat, H. Jain, A. Veit, S. Kumar, "
    '"Long-tail learning via logit adjustment", ICLR 2021, arXiv 2007.07314.'
)


def adjust_logits(model: TimmModel, counts: np.ndarray | Sequence[float], tau: float = 1.0) -> TimmModel:
    """Subtract tau · log prior from the bias of a trained classifier, in place.

    With tau = 1 the prediction is the best one for balanced accuracy; smaller values lose less accuracy. Choose tau on
    validation.

    Args:
        model: A timm model whose classifier is one layer with a bias.
        counts: (C,) training examples a class, or sums of soft labels; a class without any counts as one example.
        tau: From 0, which changes nothing.

    Raises:
        InputError: Another classifier, other counts, or a tau below 0.

    Examples:
        >>> import timm
        >>> model = timm.create_model("test_resnet", num_classes=2).eval()
        >>> images = torch.zeros(1, 3, 32, 32)
        >>> before = model(images)
        >>> (moved,) = adjust_logits(model, [900, 100], tau=0.5)(images) - before
        >>> [round(logit, 3) for logit in moved.tolist()]
        [0.053, 1.151]

    Reference:
        Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, equation 9.
    """
    shift = logit_shift(counts, tau)
    bias = classifier_bias(model)
    if shift.shape != bias.shape:
        raise InputError(f"counts are {len(shift)}, the model has {len(bias)} classes; give one number a class")
    with torch.no_grad():
        bias.sub_(shift.to(bias))
    return model


def logit_shift(counts: np.ndarray | Sequence[float], tau: float) -> Tensor:
    """tau · log prior, (C,), which `adjust_logits` subtracts from the logits."""
    n = np.asarray(counts, dtype=np.float64)
    if n.ndim != 1 or not np.isfinite(n).all() or (n < 0).any() or tau < 0:
        raise InputError(f"counts must be one number a class, from 0, and tau at least 0; got {n.tolist()} and {tau}")
    n = np.where(n > 0, n, 1)
    return torch.tensor(tau * np.log(n / n.sum()), dtype=torch.float32)


def classifier_bias(model: TimmModel) -> nn.Parameter:
    """The bias that an adjustment changes, (C,)."""
    bias = getattr(model.get_classifier(), "bias", None)
    if not isinstance(bias, nn.Parameter) or bias.shape != (model.num_classes,):
        raise InputError(
            f"{type(model).__name__}'s classifier is no layer with a bias; leave student.logit_adjustment out"
        )
    return bias
