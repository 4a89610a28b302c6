"""Temperature scaling: probabilities that match how often predictions are right, folded into the classifier."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ngd_timm.core.errors import InputError
from ngd_timm.models.ngd_models import TimmModel, input_channels
from ngd_timm.models.student import notes_of, require_bare, temperature_of

CITATION = (
    'C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017, '
    "arXiv 1706.04599."
)
TEMPERATURES = (0.1, 10.0)
"""No temperature outside is fitted: on a validation set without a mistake the best one is 0."""

_TOLERANCE = 1e-5


def calibrate(model: TimmModel, logits: Any, targets: Any) -> TimmModel:
    """Fit a temperature T on validation images and fold it into a trained classifier, in place: softmax(logits / T).

    No prediction changes. `save_student` writes T into config.json, and a `KDTeacher` of the model divides it out.

    Args:
        model: A timm model whose logits are linear in its classifier.
        logits: (N, C) of images that it was not trained on, numpy or torch.
        targets: (N,) class indices of these images.

    Raises:
        InputError: Shapes that don't fit, logits that are not finite, or another classifier.

    Examples:
        >>> import timm
        >>> model = timm.create_model("test_resnet", num_classes=2).eval()
        >>> logits = torch.tensor([[9.0, 0.0], [0.0, 9.0], [9.0, 0.0], [0.0, 9.0]])
        >>> calibrate(model, logits, torch.tensor([0, 1, 0, 0])).ngd_timm["temperature"]
        8.1922

    Reference:
        Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    require_bare(model, "calibrate")
    temperature = fit_temperature(logits, targets)
    if np.shape(logits)[1] != model.num_classes:
        raise InputError(f"logits are of {np.shape(logits)[1]} classes, the model has {model.num_classes}")
    if not can_calibrate(model):
        raise InputError(
            f"{type(model).__name__}'s logits are not linear in its classifier, so no temperature can be folded in; "
            "divide its logits instead"
        )
    divide_logits(model, temperature)
    return model


@torch.no_grad()
def divide_logits(model: TimmModel, temperature: float) -> None:
    """Divide a model's classifier by a temperature, in place, and note it."""
    for parameter in classifier_parameters(model):
        # times the inverse: a division by a number rounds otherwise on a GPU than on a CPU
        parameter.mul_(1 / temperature)
    model.ngd_timm = {**notes_of(model), "temperature": temperature_of(model) * temperature}


def fit_temperature(logits: Any, targets: Any) -> float:
    """The T within `TEMPERATURES` at which softmax(logits / T) has the least negative log-likelihood."""
    from scipy.optimize import brentq

    z = np.asarray(logits.detach().cpu().double() if isinstance(logits, Tensor) else logits, dtype=np.float64)
    y = np.asarray(targets.cpu() if isinstance(targets, Tensor) else targets)
    if z.ndim != 2 or y.shape != z.shape[:1] or not len(y) or y.dtype.kind not in "iu":
        raise InputError(f"logits must be (N, C) and targets (N,) class indices, got {z.shape} and {y.shape}")
    if not np.isfinite(z).all() or y.min() < 0 or y.max() >= z.shape[1]:
        raise InputError(f"logits must be finite and targets lie in 0..{z.shape[1] - 1}")

    def slope(inverse: float) -> float:
        """Derivative of the mean negative log-likelihood by 1/T; it rises, as the likelihood is log-concave."""
        weights = np.exp(inverse * (z - z.max(axis=1, keepdims=True)))
        expected = (weights * z).sum(axis=1) / weights.sum(axis=1)
        return float((expected - z[np.arange(len(y)), y]).mean())

    coldest, hottest = TEMPERATURES
    low, high = 1 / hottest, 1 / coldest
    if slope(low) >= 0:
        return 1.0 if slope(high) <= 0 else hottest  # logits that are all alike fit as well at any temperature
    return coldest if slope(high) <= 0 else round(1 / brentq(slope, low, high, xtol=1e-12), 4)


def temperature_line(temperature: float, images: int) -> str:
    """The line that is logged of a fit; it warns of a bound that was reached."""
    line = f"temperature {temperature:g}, fitted on {images} validation images and folded into the classifier"
    if temperature in TEMPERATURES:
        line += f"; the best one lies outside {TEMPERATURES[0]:g} to {TEMPERATURES[1]:g}, so don't trust it"
    return line


def classifier_parameters(model: TimmModel) -> list[nn.Parameter]:
    """Weights and biases of the layers that give a timm model's logits: one, or one for each of its heads."""
    heads = model.get_classifier()
    heads = list(heads) if isinstance(heads, (tuple, list)) else [heads]
    names = model.pretrained_cfg.get("classifier") or ()
    modules = dict(model.named_modules())
    heads += [modules[name] for name in ([names] if isinstance(names, str) else names) if name in modules]
    layers = dict.fromkeys(
        layer
        for head in heads
        for layer in head.modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.shape[0] == model.num_classes
    )
    return list(dict.fromkeys(p for layer in layers for p in layer.parameters(recurse=False)))


@torch.no_grad()
def can_calibrate(model: TimmModel) -> bool:
    """Whether dividing a model's classifier divides its logits, tried on random images by a copy."""
    probe, generator = copy.deepcopy(model).eval(), torch.Generator().manual_seed(0)
    images = torch.randn(2, input_channels(model), *model.pretrained_cfg["input_size"][1:], generator=generator)
    images = images.to(next(probe.parameters()))
    for p in classifier_parameters(probe):  # a classifier of zeros would agree with any
        p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p))
    before = probe(images)
    divide_logits(probe, 2.0)  # a power of two rounds nothing
    error = (probe(images) * 2 - before).abs().max()
    return bool(error <= _TOLERANCE * before.abs().max())
