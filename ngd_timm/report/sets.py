"""What a report says of one data set: scores, confusion, each class, calibration, where the embeddings lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.evaluate.metrics import METRICS
from ngd_timm.evaluate.predictions import Predictions
from ngd_timm.report.figures_sets import embedding_figure, reliability_figure
from ngd_timm.report.page import PROTOCOLS
from ngd_timm.report.predictions import class_intervals, embedding_map, stratified

if TYPE_CHECKING:
    from ngd_timm.grid.prototypes import PrototypeGrid

__all__ = ["set_context"]

_MAP_POINTS = 1500


def set_context(
    key: str,
    entry: Mapping[str, Any],
    classes: Sequence[str],
    predictions: Predictions | None = None,
    grid: PrototypeGrid | None = None,
    sigma: float = 0.4,
    name: str = "set",
) -> dict[str, Any]:
    """What the templates say and show of one entry of metrics.json.

    Args:
        key: Of the entry, `<name>:<split>`.
        entry: As `fer_metrics` makes it.
        classes: The run's.
        predictions: Of that set; without them there are no intervals of a class and no map of the embeddings.
        grid: The run's grid, in whose space the embeddings lie.
        sigma: How wide a class's place on that grid is, as the run's loss had it.
        name: Prefix of the element ids, unique on a page.

    Raises:
        InputError: The entry lacks something; it is named.
    """
    try:
        per_class = {c: dict(entry["per_class"][c]) for c in classes}
        confusion, n = entry["confusion"], int(entry["n"])
        scores = {p: {s: float(entry[p][s]) for s in METRICS} for p in PROTOCOLS}
    except KeyError as error:
        raise InputError(f"metrics.json: the entry '{key}' lacks {error}; evaluate the run again") from None
    except (TypeError, ValueError):
        raise InputError(f"metrics.json: the entry '{key}' is not an evaluation's; evaluate the run again") from None
    support = [sum(row) for row in confusion]
    absent = [c for c, s in zip(classes, support, strict=True) if s == 0]
    commonest = max(range(len(classes)), key=support.__getitem__)
    masked = entry.get("confusion_present") if absent else None
    return {
        "key": key,
        "n": n,
        "scores": scores,
        "intervals": {p: entry.get("ci95", {}).get(p, {}) for p in PROTOCOLS},
        "ece": entry.get("ece"),
        "absent": absent,
        "smallest": sorted(((s, c) for c, s in zip(classes, support, strict=True) if s > 0))[:2],
        "commonest": (classes[commonest], 100 * support[commonest] / n if n else 0.0),
        "per_class": _with_intervals(per_class, predictions),
        "matrix": _matrix(confusion, classes),
        "masked": None if masked is None else _matrix(masked, classes, [s > 0 for s in support]),
        "reliability": _reliability(name, key, entry),
        "map": None if predictions is None else _map(name, key, classes, predictions, grid, sigma),
    }


def _matrix(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], kept: Sequence[bool] | None = None
) -> dict[str, Any]:
    """Rows of a confusion matrix, of the kept classes only."""
    chosen = [i for i in range(len(classes)) if kept is None or kept[i]]
    names = [classes[i] for i in chosen]
    rows = [[confusion[true][said] for said in chosen] for true in chosen]
    return {"classes": names, "rows": [_matrix_row(i, row, names) for i, row in enumerate(rows)]}


def _matrix_row(true: int, counts: Sequence[int], classes: Sequence[str]) -> dict[str, Any]:
    n = sum(counts)
    shares = [count / n if n else None for count in counts]
    looks = [
        " ".join(["dark"] * (share is not None and share > 0.5) + ["right"] * (said == true))
        for said, share in enumerate(shares)
    ]
    cells = [
        {"said": said, "count": count, "share": share, "look": look}
        for said, count, share, look in zip(classes, counts, shares, looks, strict=True)
    ]
    return {"name": classes[true], "n": n, "cells": cells}


def _with_intervals(per_class: dict[str, dict[str, Any]], predictions: Predictions | None) -> dict[str, dict[str, Any]]:
    """Each class's figures with `ci95` from the predictions, None where there are none."""
    found: Sequence[dict[str, list[float]] | None] = [None] * len(per_class)
    if predictions is not None:
        subject = None if predictions.subject is None else predictions.subject.numpy()
        said = predictions.logits.numpy().argmax(axis=1)
        found = class_intervals(predictions.target.numpy(), said, len(per_class), subject)
    return {c: {**figures, "ci95": interval} for (c, figures), interval in zip(per_class.items(), found, strict=True)}


def _reliability(name: str, key: str, entry: Mapping[str, Any]) -> dict[str, str] | None:
    bins = [b for b in entry.get("calibration", ()) if b["n"]]
    if not bins:
        return None
    n = sum(b["n"] for b in bins)
    sure = sum(b["n"] * b["confidence"] for b in bins) / n
    right = sum(b["n"] * b["accuracy"] for b in bins) / n
    gap = sure - right
    verdict = "about as sure as it is right" if abs(gap) < 1 else "too sure" if gap > 0 else "not sure enough"
    ece = f" Expected calibration error: {entry['ece']:.1f} points." if entry.get("ece") is not None else ""
    alt = (
        f"Reliability diagram of {key}: in {len(bins)} bins of confidence, the share of right answers; on average "
        f"{sure:.1f} % sure and {right:.1f} % right."
    )
    caption = (
        "A dot on the dashed diagonal is as often right as it claims, a dot below it claims too much; lines are 95 % "
        "intervals, bars say how many of the pictures are answered that surely. On average the student is "
        f"{sure:.1f} % sure and {right:.1f} % right: {verdict}.{ece}"
    )
    return {
        "title": "Is it as sure as it is right?",
        "svg": reliability_figure(f"{name}-sure", alt, bins),
        "caption": caption,
    }


def _map(
    name: str, key: str, classes: Sequence[str], predictions: Predictions, grid: PrototypeGrid | None, sigma: float
) -> dict[str, str] | None:
    if predictions.embedding is None:
        return None
    target = predictions.target.numpy()
    chosen = stratified(target, _MAP_POINTS)
    label, rows = target[chosen], predictions.embedding.numpy()[chosen].astype(np.float64)
    in_grid = grid is not None and grid.dim == rows.shape[1]
    cells, places = np.zeros((0, rows.shape[1])), np.zeros((0, rows.shape[1]))
    if grid is not None and in_grid:
        cells = np.asarray(grid.prototypes, dtype=np.float64)
        places = _class_places(grid, classes, sigma)
    points = embedding_map(np.concatenate([rows, cells, places]))
    if points is None:
        return None
    dots, cells, places = np.split(points, [len(rows), len(rows) + len(cells)])
    everything = len(target)
    shown = f"all {everything:,}"
    if len(rows) < everything:
        shown = f"{len(rows):,} of {everything:,}, of every class equally many where it has so many"
    alt = f"Map of the embeddings of {len(rows)} pictures of {key} by t-SNE, coloured and marked by true class"
    caption = (
        f"Every mark is a picture ({shown}), placed by t-SNE so that pictures with similar embeddings lie close: a "
        "class that forms an island of its own is told apart, marks mixed together are confused; distances between "
        "islands, and sizes, mean nothing."
    )
    if in_grid:
        alt += "; the grid's prototypes and the classes' places on the grid are marked"
        caption += (
            " Rimmed marks are the places on the EEG grid to which Proto-KD pulls each class, crosses the grid's "
            "prototypes: in a clump apart from all pictures, the pull has not got there."
        )
    elif grid is None:
        caption += " The embeddings are the backbone's own features; this run has no grid."
    svg = embedding_figure(f"{name}-map", alt + ".", dots, label, classes, places, cells)
    return {"title": "Which pictures look alike to it", "svg": svg, "caption": caption}


def _class_places(grid: PrototypeGrid, classes: Sequence[str], sigma: float) -> np.ndarray:
    """(C, D) where Proto-KD is 0 for each class: the prototypes, averaged by the class's soft place on the plane."""
    from ngd_timm.losses import ProtoKDLoss

    weights = ProtoKDLoss(grid, target="va", sigma=sigma, classes=classes).class_targets
    return np.asarray(weights @ grid.prototypes, dtype=np.float64)
