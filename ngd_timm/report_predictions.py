"""What a report computes from a run's predictions: intervals of each class, calibration, a map of the embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ngd_timm.errors import InputError

__all__ = [
    "Predictions",
    "calibration_bins",
    "class_intervals",
    "embedding_map",
    "predictions_file",
    "read_predictions",
    "stratified",
]

_BINS = 15
_FEWEST_ON_A_MAP = 12  # below that t-SNE has no neighbourhoods to keep


@dataclass(frozen=True)
class Predictions:
    """What a student said of each picture of a set.

    Attributes:
        logits: (N, C) float64.
        target: (N,) class indices.
        embedding: (N, D) float64, in the grid's space where the run has a grid.
        subject: (N,) who is on each picture, where the set names them.
        notes: `label_rule`, `flip`, `data_sha256` and the like, as text.
    """

    logits: np.ndarray
    target: np.ndarray
    embedding: np.ndarray
    subject: np.ndarray | None
    notes: Mapping[str, str]

    @property
    def probability(self) -> np.ndarray:
        """(N, C) softmax of the logits."""
        shifted = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def predictions_file(folder: Path, key: str) -> Path:
    """Where a run keeps its predictions for a key of metrics.json.

    Example:
        >>> predictions_file(Path("runs/b0_ce-0"), "ferplus:valid").name
        'ferplus-valid.safetensors'
    """
    return folder / "predictions" / f"{key.replace(':', '-')}.safetensors"


def read_predictions(path: Path, classes: Sequence[str], n: int) -> Predictions:
    """Read and check a file of predictions.

    Args:
        path: A safetensors file with `logits`, `target`, `embedding` and perhaps `subject`; its metadata holds `classes`.
        classes: The run's classes, in the order of its logits.
        n: How many pictures the run's metrics.json counts in that set.

    Raises:
        InputError: A file that can't be read, or that belongs to another evaluation; it is named.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as handle:
            notes = dict(handle.metadata() or {})
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} can't be read ({error}); evaluate the run again") from None
    missing = [name for name in ("logits", "target", "embedding") if name not in tensors]
    if missing or "classes" not in notes:
        raise InputError(f"{path} lacks {', '.join(missing) or 'the names of its classes'}; evaluate the run again")
    if json.loads(notes["classes"]) != list(classes):
        raise InputError(f"{path} is about {notes['classes']}, the run about {list(classes)}; evaluate the run again")
    found = Predictions(
        logits=tensors["logits"].astype(np.float64),
        target=tensors["target"].astype(np.int64),
        embedding=tensors["embedding"].astype(np.float64),
        subject=tensors.get("subject"),
        notes=notes,
    )
    shapes = (found.logits.shape, found.target.shape, found.embedding.shape[:1])
    if shapes != ((n, len(classes)), (n,), (n,)) or found.embedding.ndim != 2:
        raise InputError(
            f"{path} holds logits {found.logits.shape}, target {found.target.shape} and embedding "
            f"{found.embedding.shape}, but metrics.json counts {n} pictures; evaluate the run again"
        )
    if not (np.isfinite(found.logits).all() and np.isfinite(found.embedding).all()):
        raise InputError(f"{path} holds numbers that are not finite")
    if found.target.min(initial=0) < 0 or found.target.max(initial=0) >= len(classes):
        raise InputError(f"{path}: targets must lie in 0..{len(classes) - 1}")
    return found


def class_intervals(
    target: np.ndarray,
    predicted: np.ndarray,
    size: int,
    subjects: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> list[dict[str, list[float]] | None]:
    """95 % percentile intervals of each class's precision, recall and F1, by bootstrap over images or over subjects.

    Args:
        target: (N,) true class indices.
        predicted: (N,) class indices said.
        size: C, the number of classes.
        subjects: (N,) who is on each picture: people are then resampled instead of pictures.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.

    Returns:
        For each class `precision`, `recall` and `f1` as [low, high] in percent; None for a class without pictures.

    Example:
        >>> class_intervals(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), size=3)[1:]
        [{'precision': [100.0, 100.0], 'recall': [100.0, 100.0], 'f1': [100.0, 100.0]}, None]
    """
    rng = np.random.default_rng(seed)
    cell = target * size + predicted
    if subjects is None:
        # resampling images is resampling cells of the confusion matrix
        shares = np.bincount(cell, minlength=size * size) / len(cell)
        drawn = rng.multinomial(len(cell), shares, size=resamples)
    else:
        people = np.unique(subjects, return_inverse=True)[1]
        table = np.zeros((int(people.max()) + 1, size * size), dtype=np.int64)
        np.add.at(table, (people, cell), 1)
        drawn = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), size=resamples) @ table
    matrix = drawn.reshape(resamples, size, size)
    hit, true, said = np.diagonal(matrix, axis1=1, axis2=2), matrix.sum(axis=2), matrix.sum(axis=1)
    found: list[dict[str, list[float]] | None] = []
    for c in range(size):
        # a resample without the class says nothing about it
        there = true[:, c] > 0
        if not there.any():
            found.append(None)
            continue
        h, t, s = hit[there, c], true[there, c], said[there, c]
        figures = {"precision": h / np.maximum(s, 1), "recall": h / t, "f1": 2 * h / (t + s)}
        found.append({k: [float(100 * x) for x in np.percentile(v, [2.5, 97.5])] for k, v in figures.items()})
    return found


def calibration_bins(probability: np.ndarray, target: np.ndarray) -> list[dict[str, float]]:
    """Equal-width bins of the top class's probability: how many pictures, how sure, how often right (in percent).

    Example:
        >>> calibration_bins(np.array([[0.9, 0.1], [0.92, 0.08]]), np.array([0, 1]))
        [{'n': 2, 'confidence': 91.0, 'accuracy': 50.0}]
    """
    confidence, right = probability.max(axis=1), probability.argmax(axis=1) == target
    bin_of = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    return [
        {
            "n": int(inside.sum()),
            "confidence": float(100 * confidence[inside].mean()),
            "accuracy": float(100 * right[inside].mean()),
        }
        for inside in (bin_of == b for b in range(_BINS))
        if inside.any()
    ]


def stratified(target: np.ndarray, limit: int, seed: int = 0) -> np.ndarray:
    """Indices of at most `limit` rows, as equally many of each class as there are: rare classes stay whole.

    Example:
        >>> chosen = stratified(np.array([0] * 90 + [1] * 3 + [2] * 50), limit=23)
        >>> np.bincount(np.array([0] * 90 + [1] * 3 + [2] * 50)[chosen]).tolist()
        [10, 3, 10]
    """
    rng = np.random.default_rng(seed)
    groups = sorted((np.flatnonzero(target == c) for c in np.unique(target)), key=len)
    chosen: list[np.ndarray] = []
    for done, group in enumerate(groups):
        quota = (limit - sum(map(len, chosen))) // (len(groups) - done)
        chosen.append(rng.permutation(group)[:quota])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)


def embedding_map(rows: np.ndarray, seed: int = 0) -> np.ndarray | None:
    """t-SNE of the rows' directions.

    Args:
        rows: (N, D); only directions count, as in the losses.
        seed: Of t-SNE.

    Returns:
        (N, 2), or None where there are too few different rows for a map.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.maximum(length, 1e-12)
    if len(np.unique(unit.round(6), axis=0)) < _FEWEST_ON_A_MAP:
        return None
    perplexity = min(30.0, (len(unit) - 1) / 3)
    # two threads are hardly faster, many times slower on a busy machine, and add up in no fixed order
    with threadpool_limits(1):
        places: Any = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(unit)
    return np.asarray(places, dtype=np.float64)
