"""The class prior in a student's logits: taken out of its bias for good, or replaced when it predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ngd_timm.core.errors import InputError, choices
from ngd_timm.models.ngd_models import TimmModel
from ngd_timm.models.student import class_prior, notes_of, require_bare, same_prior, temperature_of

PRIORS = ("training", "uniform")
CITATION = (
    "A. K. Menon, S. Jayasumana, A. S. Rawat, H. Jain, A. Veit, S. Kumar, "
    '"Long-tail learning via logit adjustment", ICLR 2021, arXiv 2007.07314.'
)


def adjust_logits(model: TimmModel, counts: np.ndarray | Sequence[float], tau: float = 1.0) -> TimmModel:
    """Subtract tau · log prior from the bias of a trained classifier, in place.

    With tau = 1 the prediction is the best one for balanced accuracy; smaller values lose less accuracy. Choose tau on
    validation. `save_student` writes tau and the prior into config.json, from where `Predictor(prior=…)` counts.

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
    require_bare(model, "adjust_logits")
    shift = logit_shift(counts, tau)
    bias = classifier_bias(model)
    if shift.shape != bias.shape:
        raise InputError(f"counts are {len(shift)}, the model has {len(bias)} classes; give one number a class")
    with torch.no_grad():
        bias.sub_(shift.to(bias))
    notes, prior = notes_of(model), class_prior(counts)
    if same_prior(notes.get("prior", prior), prior):
        tau = notes.get("logit_adjustment", 0.0) + tau * temperature_of(model)
        model.ngd_timm = {**notes, "prior": prior, "logit_adjustment": tau}
    else:  # of two priors, which no single tau describes
        model.ngd_timm = {key: notes[key] for key in notes if key not in ("prior", "logit_adjustment")}
    return model


def logit_shift(counts: np.ndarray | Sequence[float], tau: float) -> Tensor:
    """tau · log prior, (C,), which `adjust_logits` subtracts from the logits."""
    class_prior(counts)  # checks them
    if not tau >= 0:
        raise InputError(f"tau must be at least 0, got {tau}")
    n = np.asarray(counts, dtype=np.float64)
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


def prior_shift(model: TimmModel, classes: Sequence[str], prior: str | Mapping[str, float]) -> Tensor:
    """What to add to a student's logits, (C,), for the prior "training", "uniform" or one by class.

    The logits are log-posteriors at the training prior, less what `adjust_logits` took; "uniform" takes the rest out,
    and a prior by class is added after that.

    Raises:
        InputError: Another prior, or a student that records none.

    Examples:
        >>> import timm
        >>> model = adjust_logits(timm.create_model("test_resnet", num_classes=2), [900, 100], tau=0.25)
        >>> [round(shift, 3) for shift in prior_shift(model, ("fear", "anger"), "uniform").tolist()]
        [0.079, 1.727]
    """
    if prior == "training":
        return torch.zeros(len(classes))
    log_prior = np.zeros(len(classes))
    if not isinstance(prior, str):
        weights = np.array([prior.get(name, np.nan) for name in classes], dtype=np.float64)
        if set(prior) != set(classes) or not (np.isfinite(weights).all() and (weights > 0).all()):
            raise InputError(f"a prior needs a number above 0 for each of {', '.join(classes)}; got {dict(prior)}")
        log_prior = np.log(weights / weights.sum())
    elif prior != "uniform":
        raise choices("prior", prior, (*PRIORS, "CLASS=P,CLASS=P…"))
    notes = notes_of(model)
    if "prior" not in notes:
        raise InputError(
            "the student records no training prior (prior in config.json), so none can be taken out; use the prior "
            "training, or save the student with save_student(…, counts=…)"
        )
    left = 1 - notes.get("logit_adjustment", 0.0) / temperature_of(model)
    return torch.tensor(log_prior - left * np.log(notes["prior"]), dtype=torch.float32)


def parse_prior(text: str) -> str | dict[str, float]:
    """A prior as commands take it: a name, or `CLASS=P,CLASS=P…`."""
    if "=" not in text:
        return text
    pairs = [part.partition("=") for part in text.split(",")]
    try:
        return {name.strip(): float(p) for name, _, p in pairs}
    except ValueError:
        raise InputError(f"a prior is training, uniform or CLASS=P,CLASS=P…; got '{text}'") from None
