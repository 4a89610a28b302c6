"""One data set on a page: scores, confusion, intervals of each class, calibration, map of the embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ngd_timm.evaluate.metrics import METRICS, resampled
from ngd_timm.evaluate.predictions import Predictions
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.losses import ProtoKDLoss
from ngd_timm.report.page import PROTOCOLS
from ngd_timm.report.plots import plot_embeddings, plot_reliability

_MAP_POINTS = 1500
_MIN_MAP_POINTS = 12  # below that t-SNE has no neighbourhoods to keep


def set_context(
    key: str,
    entry: Mapping[str, Any],
    classes: Sequence[str],
    predictions: Predictions | None = None,
    grid: PrototypeGrid | None = None,
    sigma: float = 0.4,
    name: str = "set",
) -> dict[str, Any]:
    """What the templates show of an entry of metrics.json; `name` is the prefix of the element ids."""
    per_class = {c: dict(entry["per_class"][c]) for c in classes}
    confusion, n = entry["confusion"], entry["n"]
    scores = {p: {s: entry[p][s] for s in METRICS} for p in PROTOCOLS}
    support = dict(zip(classes, map(sum, confusion), strict=True))
    present = [i for i, c in enumerate(classes) if support[c]]
    masked = entry.get("confusion_present") if len(present) < len(classes) else None
    intervals = [None] * len(classes) if predictions is None else _class_intervals(predictions)
    for scores_of_class, interval in zip(per_class.values(), intervals, strict=True):
        scores_of_class["ci95"] = interval
    commonest = max(support, key=lambda c: support[c])
    return {
        "key": key,
        "n": n,
        "scores": scores,
        "intervals": {p: entry.get("ci95", {}).get(p, {}) for p in PROTOCOLS},
        "ece": entry.get("ece"),
        "absent": [c for c in classes if not support[c]],
        "smallest": sorted((support[classes[i]], classes[i]) for i in present)[:2],
        "commonest": (commonest, 100 * support[commonest] / n if n else 0.0),
        "per_class": per_class,
        "matrix": _matrix(confusion, classes, range(len(classes))),
        "masked": masked and _matrix(masked, classes, present),
        "reliability": _reliability(name, key, entry),
        "map": None if predictions is None else _map(name, key, classes, predictions, grid, sigma),
    }


def class_intervals(
    target: np.ndarray,
    predicted: np.ndarray,
    size: int,
    subjects: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> list[dict[str, list[float]] | None]:
    """95 % bootstrap intervals of each class's precision, recall and F1 in percent, None for a class without images.

    `target` and `predicted` are (N,) indices of `size` classes, `subjects` (N,) who is on each image.
    """
    matrix = resampled((target * size + predicted)[None], size, subjects, resamples, seed)[:, 0]
    hits, true, positive = np.diagonal(matrix, axis1=1, axis2=2), matrix.sum(axis=2), matrix.sum(axis=1)
    intervals: list[dict[str, list[float]] | None] = []
    for c in range(size):
        present = true[:, c] > 0  # a resample without the class says nothing about it
        if not present.any():
            intervals.append(None)
            continue
        h, t, p = hits[present, c], true[present, c], positive[present, c]
        scores = {"precision": h / np.maximum(p, 1), "recall": h / t, "f1": 2 * h / (t + p)}
        intervals.append({k: (100 * np.percentile(v, [2.5, 97.5])).tolist() for k, v in scores.items()})
    return intervals


def stratified(target: np.ndarray, limit: int, seed: int = 0) -> np.ndarray:
    """Indices of at most `limit` rows, as equally many of each class as there are: rare classes stay whole."""
    rng = np.random.default_rng(seed)
    groups = sorted((np.flatnonzero(target == c) for c in np.unique(target)), key=len)
    parts: list[np.ndarray] = []
    for done, group in enumerate(groups):
        quota = (limit - sum(map(len, parts))) // (len(groups) - done)
        parts.append(rng.permutation(group)[:quota])
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)


def embedding_map(rows: np.ndarray, seed: int = 0) -> np.ndarray | None:
    """t-SNE of the directions of (N, D) rows: (N, 2), or None for too few different rows."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    if len(np.unique(unit.round(6), axis=0)) < _MIN_MAP_POINTS:
        return None
    perplexity = min(30.0, (len(unit) - 1) / 3)
    # two threads are hardly faster, many times slower on a busy machine, and add up in no fixed order
    with threadpool_limits(1):
        places: Any = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(unit)
    return np.asarray(places, dtype=np.float64)


def _class_intervals(predictions: Predictions) -> list[dict[str, list[float]] | None]:
    subject = None if predictions.subject is None else predictions.subject.numpy()
    logits = predictions.logits.numpy()
    return class_intervals(predictions.target.numpy(), logits.argmax(axis=1), logits.shape[1], subject)


def _matrix(confusion: Sequence[Sequence[int]], classes: Sequence[str], kept: Sequence[int]) -> dict[str, Any]:
    return {"classes": [classes[i] for i in kept], "counts": [[confusion[i][j] for j in kept] for i in kept]}


def _reliability(name: str, key: str, entry: Mapping[str, Any]) -> dict[str, Any] | None:
    bins = [b for b in entry.get("calibration", ()) if b["n"]]
    if not bins:
        return None
    weights = [b["n"] for b in bins]
    sure, right = (np.average([b[k] for b in bins], weights=weights) for k in ("confidence", "accuracy"))
    alt = (
        f"Reliability diagram of {key}: in {len(bins)} bins of confidence, the percentage right; on average "
        f"{sure:.1f} % sure and {right:.1f} % right."
    )
    return {"svg": plot_reliability(f"{name}-sure", alt, bins), "sure": sure, "right": right}


def _map(
    name: str, key: str, classes: Sequence[str], predictions: Predictions, grid: PrototypeGrid | None, sigma: float
) -> dict[str, Any] | None:
    if predictions.embedding is None:
        return None
    target = predictions.target.numpy()
    sample = stratified(target, _MAP_POINTS)
    rows = predictions.embedding.numpy()[sample].astype(np.float64)
    in_grid = grid is not None and grid.dim == rows.shape[1]
    cells = places = np.zeros((0, rows.shape[1]))
    if grid is not None and in_grid:
        cells = np.asarray(grid.prototypes, dtype=np.float64)
        places = _class_places(grid, classes, sigma)
    points = embedding_map(np.concatenate([rows, cells, places]))
    if points is None:
        return None
    dots, cells, places = np.split(points, [len(rows), len(rows) + len(cells)])
    alt = f"Map of the embeddings of {len(rows)} images of {key} by t-SNE, coloured and marked by true class"
    alt += "; the grid's prototypes and the classes' places on the grid are marked." if in_grid else "."
    svg = plot_embeddings(f"{name}-map", alt, dots, target[sample], classes, places, cells)
    return {"svg": svg, "shown": len(rows), "total": len(target), "in_grid": in_grid}


def _class_places(grid: PrototypeGrid, classes: Sequence[str], sigma: float) -> np.ndarray:
    """(C, D) where Proto-KD is 0 for each class: the prototypes, averaged by the class's soft place on the plane."""
    weights = ProtoKDLoss(grid, target="va", sigma=sigma, classes=classes).class_targets
    return np.asarray(weights @ grid.prototypes, dtype=np.float64)
