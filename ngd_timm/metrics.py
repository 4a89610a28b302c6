"""Figures of facial-expression recognition in both protocols, with intervals, out of one confusion tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ngd_timm.affect import CLASSES
from ngd_timm.errors import InputError

__all__ = ["fer_metrics"]

_ECE_BINS = 15


def fer_metrics(
    logits: Any,
    target: Any,
    classes: Sequence[str] = CLASSES,
    subjects: Any = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy, macro-F1 and balanced accuracy over all classes ("8way") and over the classes that the set has.

    "8way": argmax over all classes, means over all, a class the set lacks counts 0. "present": logits of absent classes
    are masked before argmax, means over the present ones; "present_unmasked" is the same mean without the mask.
    Intervals are percentile bootstrap over images, or over subjects where given; the present classes stay the same.

    Args:
        logits: (N, C), numpy or torch.
        target: (N,) class indices, or (N, C) votes, whose first largest entry is the class.
        classes: Names of the C classes.
        subjects: (N,) who is on each picture, or None.
        resamples: Bootstrap resamples; 0 leaves the intervals out.
        seed: Of the bootstrap.

    Returns:
        An entry of metrics.json, every figure in percent.

    Raises:
        InputError: Shapes that don't fit, an empty set, logits that are not finite.

    Example:
        >>> entry = fer_metrics(np.eye(8)[[0, 1, 1]] * 5, np.array([0, 1, 2]), resamples=0)
        >>> round(entry["8way"]["acc"], 1), entry["present_classes"]
        (66.7, ['neutral', 'happiness', 'surprise'])
    """
    scores = np.asarray(_to_numpy(logits), dtype=np.float64)
    label = np.asarray(_to_numpy(target))
    if label.ndim == 2:
        label = label.argmax(axis=1)
    if scores.ndim != 2 or scores.shape[1] != len(classes) or len(label) != len(scores) or not len(scores):
        raise InputError(
            f"logits {scores.shape} and target {label.shape} don't fit {len(classes)} classes (or are empty)"
        )
    if not np.isfinite(scores).all():
        raise InputError(
            f"{int((~np.isfinite(scores)).any(axis=1).sum())} of {len(scores)} rows of logits are not finite"
        )
    if label.min() < 0 or label.max() >= len(classes):
        raise InputError(f"target must lie in 0..{len(classes) - 1}, got {label.min()}..{label.max()}")
    size = len(classes)
    present = np.bincount(label, minlength=size) > 0
    group = np.arange(len(label)) if subjects is None else np.unique(np.asarray(subjects), return_inverse=True)[1]
    readings = {
        "8way": (scores.argmax(axis=1), np.ones(size, dtype=bool)),
        "present": (np.where(present, scores, -np.inf).argmax(axis=1), present),
        "present_unmasked": (scores.argmax(axis=1), present),
    }
    confusion = {name: _confusion(label, predicted, size) for name, (predicted, _) in readings.items()}
    entry: dict[str, Any] = {
        "n": len(label),
        "present_classes": [c for c, p in zip(classes, present, strict=True) if p],
    }
    for name, (_, counted) in readings.items():
        entry[name] = {k: float(v[0]) for k, v in _figures(confusion[name][None], counted).items()}
    if resamples:
        entry["ci95"] = {
            name: _intervals(label, predicted, counted, group, subjects is not None, resamples, seed)
            for name, (predicted, counted) in readings.items()
        }
        entry["bootstrap"] = {"unit": "image" if subjects is None else "subject", "resamples": resamples, "seed": seed}
    entry["per_class"] = _per_class(confusion["8way"], classes)
    entry["confusion"] = confusion["8way"].tolist()
    entry["confusion_present"] = confusion["present"].tolist()
    entry["ece"] = _calibration_error(scores, label)
    return entry


def _to_numpy(value: Any) -> Any:
    if not hasattr(value, "detach"):
        return value
    value = value.detach().cpu()
    return (value.double() if value.is_floating_point() else value).numpy()


def _confusion(label: np.ndarray, predicted: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(label * size + predicted, minlength=size * size).reshape(size, size)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator, dtype=np.float64), where=denominator > 0)


def _figures(confusion: np.ndarray, counted: np.ndarray) -> dict[str, np.ndarray]:
    """Percent figures of (R, C, C) confusion tensors, rows the truth; means over the `counted` classes."""
    hit = np.diagonal(confusion, axis1=1, axis2=2).astype(np.float64)
    support, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    recall = _ratio(hit, support)
    f1 = _ratio(2 * hit, support + predicted)
    return {
        "acc": 100 * _ratio(hit.sum(axis=1), support.sum(axis=1)),
        "macro_f1": 100 * f1[:, counted].mean(axis=1),
        "bacc": 100 * recall[:, counted].mean(axis=1),
    }


def _intervals(
    label: np.ndarray,
    predicted: np.ndarray,
    counted: np.ndarray,
    group: np.ndarray,
    by_group: bool,
    resamples: int,
    seed: int,
) -> dict[str, list[float]]:
    size = len(counted)
    rng = np.random.default_rng(seed)
    cell = label * size + predicted
    if by_group:
        table = np.zeros((int(group.max()) + 1, size * size))
        np.add.at(table, (group, cell), 1)
        times = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), size=resamples)
        drawn = times @ table
    else:
        # resampling images is resampling cells of the confusion matrix
        counts = np.bincount(cell, minlength=size * size)
        drawn = rng.multinomial(len(label), counts / len(label), size=resamples).astype(np.float64)
    figures = _figures(drawn.reshape(resamples, size, size), counted)
    return {k: [float(x) for x in np.percentile(v, [2.5, 97.5])] for k, v in figures.items()}


def _per_class(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    hit = np.diagonal(confusion).astype(np.float64)
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    columns = 100 * _ratio(hit, predicted), 100 * _ratio(hit, support), 100 * _ratio(2 * hit, support + predicted)
    return {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in zip(classes, *columns, support, strict=True)
    }


def _calibration_error(scores: np.ndarray, label: np.ndarray) -> float:
    """Expected calibration error of the top class over equal-width bins (Guo et al., arXiv 1706.04599), in percent."""
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    probability = shifted / shifted.sum(axis=1, keepdims=True)
    confidence, right = probability.max(axis=1), probability.argmax(axis=1) == label
    bin_of = np.minimum((confidence * _ECE_BINS).astype(int), _ECE_BINS - 1)
    gap = np.bincount(bin_of, weights=right - confidence, minlength=_ECE_BINS)
    return float(100 * np.abs(gap).sum() / len(label))
