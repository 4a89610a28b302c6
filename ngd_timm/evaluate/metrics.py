"""Metrics of facial-expression recognition: of one student, over seeds, and between two recipes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ngd_timm.core.affect import AXES, CLASSES, ccc
from ngd_timm.core.errors import InputError

METRICS = ("acc", "macro_f1", "bacc")
METRIC_NAMES = dict(zip(METRICS, ("acc", "macro-F1", "bACC"), strict=True))  # in tables
METRIC_TITLES = dict(zip(METRICS, ("accuracy", "macro-F1", "balanced accuracy"), strict=True))  # in prose
PROTOCOLS = ("8way", "present", "present_unmasked")
_ECE_BINS = 15
_CHUNK = 1 << 24  # resampled units a block, so that memory stays at some 100 MB


def fer_metrics(
    logits: Any,
    target: Any,
    classes: Sequence[str] = CLASSES,
    subjects: Any = None,
    resamples: int = 1000,
    seed: int = 0,
    temperature: float = 1.0,
) -> dict[str, Any]:
    """Accuracy, macro-F1 and balanced accuracy over all classes ("8way") and over the classes that the set has.

    "8way": argmax over all classes, means over all, a class the set lacks counts 0. "present": logits of absent classes
    are masked before argmax, means over the present ones, which is our reading of the authors' "present-only";
    "present_unmasked" is the same mean without the mask.
    Intervals are percentile bootstrap over images, or over subjects where given; the present classes stay the same.
    With rare classes in a small set macro-F1's intervals are too narrow (`tests/benchmarks/coverage.py`: at FER+'s
    frequencies they cover the true value 80 % of the time with 300 images, 89 % with 1000, 93 % with 3000).
    "calibration" is the reliability diagram behind "ece": equal-width bins of the top class's confidence.

    Args:
        logits: (N, C), numpy or torch.
        target: (N,) class indices, or (N, C) votes, whose first largest entry is the class.
        classes: Names of the C classes.
        subjects: (N,) the subject of each image, or None.
        resamples: Bootstrap resamples; 0 leaves the intervals out.
        seed: Of the bootstrap.
        temperature: Logits are divided by it before the softmax of "ece" and "calibration"; nothing else depends on it.

    Returns:
        An entry of metrics.json, every metric in percent.

    Raises:
        InputError: Shapes that don't fit, an empty set, logits that are not finite, targets that are no whole numbers,
            a temperature of 0 or less.

    Examples:
        >>> entry = fer_metrics(np.eye(8)[[0, 1, 1]] * 5, np.array([0, 1, 2]), resamples=0)
        >>> round(entry["8way"]["acc"], 1), entry["present_classes"]
        (66.7, ['neutral', 'happiness', 'surprise'])
    """
    require_temperature(temperature)
    scores, label = _checked(logits, target, classes)
    size = len(classes)
    present = np.bincount(label, minlength=size) > 0
    counted = {name: np.ones(size, dtype=bool) if name == "8way" else present for name in PROTOCOLS}
    cells = {name: label * size + predicted for name, predicted in _predictions(scores, present).items()}
    confusion = {name: np.bincount(c, minlength=size * size).reshape(size, size) for name, c in cells.items()}
    entry: dict[str, Any] = {"n": len(label), "present_classes": [classes[int(c)] for c in np.flatnonzero(present)]}
    for name in PROTOCOLS:
        entry[name] = {k: float(v[0]) for k, v in _metrics(confusion[name][None], counted[name]).items()}
    if resamples:
        entry["ci95"], drawn = {}, dict[bytes, np.ndarray]()
        for name in PROTOCOLS:
            if (key := cells[name].tobytes()) not in drawn:  # most protocols share their predictions
                drawn[key] = resampled(cells[name][None], size, subjects, resamples, seed)[:, 0]
            entry["ci95"][name] = {k: _interval(v) for k, v in _metrics(drawn[key], counted[name]).items()}
        entry["bootstrap"] = {"unit": "image" if subjects is None else "subject", "resamples": resamples, "seed": seed}
    entry["per_class"] = _per_class(confusion["8way"], classes)
    entry["confusion"] = confusion["8way"].tolist()
    entry["confusion_present"] = confusion["present"].tolist()
    bins = entry["calibration"] = _calibration(scores / temperature, label)
    entry["ece"] = sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in bins if b["n"]) / len(label)
    entry["temperature"] = temperature
    return entry


def rating_scores(places: Any, ratings: Any) -> dict[str, dict[str, float]] | None:
    """How well places in the plane follow people's ratings: Pearson's r and concordance (CCC) by axis.

    Args:
        places: (N, 2) valence and arousal, as predicted.
        ratings: (N, 2) as rated, in [-1, 1]; a row with NaN is not rated.

    Returns:
        {"valence": {"r", "ccc", "n"}, "arousal": …}; None where fewer than three are rated.

    Examples:
        >>> places = np.array([[-0.5, 0.0], [0.0, 0.5], [0.5, 0.1]])
        >>> rating_scores(places, places)["valence"]
        {'r': 1.0, 'ccc': 1.0, 'n': 3}
    """
    places, ratings = _to_numpy(places), _to_numpy(ratings)
    rated = np.isfinite(ratings).all(axis=1)
    if rated.sum() < 3:
        return None
    scores = {}
    for name, place, rating in zip(AXES, places[rated].T, ratings[rated].T, strict=True):
        varies = place.std() > 0 and rating.std() > 0
        r = float(np.corrcoef(place, rating)[0, 1]) if varies else 0.0
        scores[name] = {"r": round(r, 4), "ccc": round(ccc(place, rating), 4), "n": int(rated.sum())}
    return scores


def mean_over_seeds(
    logits: Sequence[Any],
    target: Any,
    classes: Sequence[str] = CLASSES,
    subjects: Any = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Metrics as means over seeds: `{"n", "seeds", "bootstrap", protocol: {metric: summary}}`, see `summary`.

    `logits` are S of (N, C), a seed each, on the same images; the other arguments are as in `fer_metrics`.
    """
    return _over_seeds([_seeds(logits)], target, classes, subjects, resamples, seed, lambda values: values[0])


def paired_difference(
    logits_a: Sequence[Any],
    logits_b: Sequence[Any],
    target: Any,
    classes: Sequence[str] = CLASSES,
    subjects: Any = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Recipe a minus recipe b on the same images and seeds, as `mean_over_seeds`, with two intervals.

    - "ci95", a paired bootstrap over images (or subjects): covers other images, for these trained students. Seeds are
      not resampled: from 2 to 5 of them a bootstrap would understate their spread by (S - 1)/S.
    - "seed_ci95", Student's t over the S per-seed differences: covers other seeds, on these images.

    Neither covers both sources of chance: call it a difference of the recipes where both exclude zero. Recipes that do
    not differ pass that test in 2 to 5 of 100 cases with two seeds, in 5 to 6 with three and in 5 to 8 with five, by
    whichever source is larger.

    Reference:
        Koehn, "Statistical significance tests for machine translation evaluation", EMNLP 2004 (the paired bootstrap);
        Bouthillier et al., "Accounting for variance in machine learning benchmarks", MLSys 2021 (why seeds count too).
    """
    a, b = _seeds(logits_a), _seeds(logits_b)
    if len(a) != len(b):
        raise InputError(f"a paired difference needs the same seeds of both, got {len(a)} and {len(b)}")
    return _over_seeds([a, b], target, classes, subjects, resamples, seed, lambda values: values[0] - values[1])


def confusion_difference(
    logits_a: Sequence[Any],
    logits_b: Sequence[Any],
    target: Any,
    classes: Sequence[str] = CLASSES,
    subjects: Any = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Confusion of recipe a minus that of b, in points of each true class: by protocol (3, C, C).

    The mean over seeds and its 95 % bounds by the paired bootstrap of `paired_difference`; NaN in rows of classes that
    the set lacks.
    """
    size, runs = len(classes), [*_seeds(logits_a), *_seeds(logits_b)]
    scores = [_checked(logits, target, classes) for logits in runs]
    label, found = scores[0][1], {}
    present = np.bincount(label, minlength=size) > 0

    def difference(matrix: np.ndarray) -> np.ndarray:
        n = matrix.sum(axis=-1, keepdims=True)  # a resample without a class says nothing about it
        percent = np.divide(100.0 * matrix, n, out=np.full(matrix.shape, np.nan), where=n > 0)
        return percent[:, : len(runs) // 2].mean(axis=1) - percent[:, len(runs) // 2 :].mean(axis=1)

    predicted = [_predictions(s, present) for s, _ in scores]
    for protocol in ("8way", "present"):
        cells = np.stack([label * size + p[protocol] for p in predicted])
        whole = np.stack([np.bincount(c, minlength=size * size) for c in cells]).reshape(1, -1, size, size)
        redrawn = difference(resampled(cells, size, subjects, resamples, seed))
        found[protocol] = np.full((3, size, size), np.nan)
        found[protocol][0] = difference(whole)[0]
        found[protocol][1:, present] = np.nanpercentile(redrawn[:, present], [2.5, 97.5], axis=0)
    return found


def _seeds(logits: Any) -> list[Any]:
    return [logits] if hasattr(logits, "ndim") and logits.ndim == 2 else list(logits)


def _over_seeds(
    recipes: Sequence[Sequence[Any]],
    target: Any,
    classes: Sequence[str],
    subjects: Any,
    resamples: int,
    seed: int,
    statistic: Callable[[np.ndarray], np.ndarray],
) -> dict[str, Any]:
    """`statistic` maps metrics (recipes, seeds, …) to (seeds, …); the intervals are of its mean over seeds."""
    if resamples < 1:
        raise InputError(f"resamples must be at least 1, got {resamples}")
    if not all(recipes):
        raise InputError("no seeds to take a mean over; give the logits of at least one")
    size, seeds = len(classes), len(recipes[0])
    scores = [_checked(logits, target, classes) for runs in recipes for logits in runs]
    label = scores[0][1]
    present = np.bincount(label, minlength=size) > 0
    predicted = [_predictions(s, present) for s, _ in scores]
    result: dict[str, Any] = {
        "n": len(label),
        "seeds": seeds,
        "bootstrap": {"unit": "image" if subjects is None else "subject", "resamples": resamples, "seed": seed},
    }
    bootstrap: dict[str, np.ndarray] = {}
    for protocol in PROTOCOLS:
        counted = np.ones(size, dtype=bool) if protocol == "8way" else present
        cells = np.stack([label * size + p[protocol] for p in predicted])
        whole = np.stack([np.bincount(c, minlength=size * size) for c in cells]).reshape(-1, size, size)
        kind = "masked" if protocol == "present" else "plain"
        if kind not in bootstrap:
            bootstrap[kind] = resampled(cells, size, subjects, resamples, seed).reshape(-1, size, size)
        observed = _metrics(whole, counted)
        redrawn = _metrics(bootstrap[kind], counted)
        result[protocol] = {}
        for metric in METRICS:
            per_seed = statistic(observed[metric].reshape(len(recipes), seeds))
            # (resamples, recipes x seeds) to (recipes, seeds, resamples)
            spread = redrawn[metric].reshape(resamples, len(recipes), seeds).transpose(1, 2, 0)
            result[protocol][metric] = summary(per_seed, statistic(spread).mean(axis=0))
    return result


def summary(per_seed: np.ndarray, redrawn: np.ndarray) -> dict[str, Any]:
    """The mean of a metric or difference over seeds (S,), with the intervals of `paired_difference`."""
    mean = float(per_seed.mean())
    sd = float(per_seed.std(ddof=1)) if len(per_seed) > 1 else None
    return {
        "mean": mean,
        "ci95": _interval(redrawn),
        "per_seed": per_seed.tolist(),
        "seed_sd": sd,
        "seed_ci95": None if sd is None else _t_interval(mean, sd, len(per_seed)),
    }


def metrics_of_versions(
    predicted: np.ndarray, target: np.ndarray, size: int, subjects: Any = None, resamples: int = 2000, seed: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """8-way metrics in percent of S students on K versions of the same images, (K, S), and (K, S, resamples).

    A resample is one set of images (or subjects) for all. `predicted` (K, S, N) and `target` (N,) are class indices.
    """
    versions, students, n = predicted.shape
    counted = np.ones(size, dtype=bool)
    group = np.arange(n) if subjects is None else np.unique(_to_numpy(subjects), return_inverse=True)[1].reshape(-1)
    groups = int(group.max()) + 1
    whole = {metric: np.empty((versions, students)) for metric in METRICS}
    redrawn = {metric: np.empty((versions, students, resamples)) for metric in METRICS}
    rng = np.random.default_rng(seed)
    block = max(_CHUNK // groups, 1)
    for start in range(0, resamples, block):
        some = slice(start, min(start + block, resamples))
        # counts of images are whole numbers far below 2^24, exact in single precision
        times = rng.multinomial(groups, np.full(groups, 1 / groups), size=some.stop - some.start).astype(np.float32)
        for version, classes in enumerate(predicted):
            table = np.zeros((groups, students, size * size), dtype=np.float32)
            np.add.at(table, (group, np.arange(students)[:, None], target * size + classes.astype(np.int64)), 1)
            flat = table.reshape(groups, -1)
            bootstrap = (times @ flat).astype(np.float64).reshape(-1, size, size)
            for metric, values in _metrics(bootstrap, counted).items():
                redrawn[metric][version, :, some] = values.reshape(-1, students).T
            observed = flat.sum(axis=0, dtype=np.float64).reshape(-1, size, size)
            for metric, values in _metrics(observed, counted).items():
                whole[metric][version] = values
    return whole, redrawn


def _t_interval(mean: float, sd: float, n: int) -> list[float]:
    from scipy.special import stdtrit

    half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
    return [mean - half, mean + half]


def require_temperature(temperature: float) -> None:
    """Refuse what logits can't be divided by."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError(f"temperature must be above 0, got {temperature}")


def _checked(logits: Any, target: Any, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    scores = np.asarray(_to_numpy(logits), dtype=np.float64)
    label = np.asarray(_to_numpy(target))
    if label.ndim == 2:
        label = label.argmax(axis=1)
    if scores.ndim != 2 or scores.shape[1] != len(classes) or len(label) != len(scores) or not len(scores):
        raise InputError(f"logits {scores.shape} and target {label.shape} don't fit {len(classes)} classes")
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).any(axis=1).sum())
        raise InputError(f"{bad} of {len(scores)} rows of logits are not finite")
    if label.dtype.kind not in "iub":
        raise InputError(f"target must hold class indices, whole numbers, got {label.dtype}")
    if label.min() < 0 or label.max() >= len(classes):
        raise InputError(f"target must lie in 0..{len(classes) - 1}, got {label.min()}..{label.max()}")
    return scores, label.astype(np.int64)


def _predictions(scores: np.ndarray, present: np.ndarray) -> dict[str, np.ndarray]:
    """The predicted class indices (N,) by protocol."""
    plain = scores.argmax(axis=1)
    masked = np.where(present, scores, -np.inf).argmax(axis=1)
    return {"8way": plain, "present": masked, "present_unmasked": plain}


def _to_numpy(value: Any) -> Any:
    if not hasattr(value, "detach"):
        return value
    value = value.detach().cpu()
    return (value.double() if value.is_floating_point() else value).numpy()


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator, dtype=np.float64), where=denominator > 0)


def _metrics(confusion: np.ndarray, counted: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics in percent of (R, C, C) confusion matrices, rows the truth; means over the `counted` classes."""
    hit = np.diagonal(confusion, axis1=1, axis2=2).astype(np.float64)
    support, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    recall = _ratio(hit, support)
    f1 = _ratio(2 * hit, support + predicted)
    return {
        "acc": 100 * _ratio(hit.sum(axis=1), support.sum(axis=1)),
        "macro_f1": 100 * f1[:, counted].mean(axis=1),
        "bacc": 100 * recall[:, counted].mean(axis=1),
    }


def resampled(cells: np.ndarray, size: int, subjects: Any, resamples: int, seed: int) -> np.ndarray:
    """Confusion matrices (R, S, C, C) of the bootstrap over images or subjects, one set of them for all S students.

    `cells` (S, N) are truth * C + prediction, `size` is C.
    """
    students, flat = len(cells), size * size
    if subjects is None:
        # images with the same predictions of all students are exchangeable: draw how often each kind comes up
        kinds, times = np.unique(cells, axis=1, return_counts=True)
        table = np.zeros((kinds.shape[1], students * flat))
        for student, cell in enumerate(kinds):
            table[np.arange(len(cell)), student * flat + cell] = 1
    else:
        group = np.unique(np.asarray(_to_numpy(subjects)), return_inverse=True)[1].reshape(-1)
        if len(group) != cells.shape[1]:
            raise InputError(f"subjects must name one for each of the {cells.shape[1]} images, got {len(group)}")
        times = np.ones(int(group.max()) + 1, dtype=np.int64)
        table = np.zeros((len(times), students * flat))
        for student, cell in enumerate(cells):
            np.add.at(table, (group, student * flat + cell), 1)
    rng = np.random.default_rng(seed)
    total, block = int(times.sum()), max(_CHUNK // len(times), 1)
    blocks = [
        rng.multinomial(total, times / total, size=min(block, resamples - start)) @ table
        for start in range(0, resamples, block)
    ]
    return np.concatenate(blocks).reshape(resamples, students, size, size)


def _interval(values: np.ndarray) -> list[float]:
    return [float(x) for x in np.percentile(values, [2.5, 97.5])]


def _per_class(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    hit = np.diagonal(confusion).astype(np.float64)
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    columns = 100 * _ratio(hit, predicted), 100 * _ratio(hit, support), 100 * _ratio(2 * hit, support + predicted)
    return {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in zip(classes, *columns, support, strict=True)
    }


def _calibration(scores: np.ndarray, label: np.ndarray) -> list[dict[str, Any]]:
    """Bins of the reliability diagram (Guo et al., arXiv 1706.04599), in percent; an empty bin has no means."""
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    probability = shifted / shifted.sum(axis=1, keepdims=True)
    confidence, right = probability.max(axis=1), probability.argmax(axis=1) == label
    bin_of = np.minimum((confidence * _ECE_BINS).astype(int), _ECE_BINS - 1)
    bins = []
    for number in range(_ECE_BINS):
        inside = bin_of == number
        n = int(inside.sum())
        bins.append(
            {
                "low": 100 * number / _ECE_BINS,
                "high": 100 * (number + 1) / _ECE_BINS,
                "n": n,
                "confidence": float(100 * confidence[inside].mean()) if n else None,
                "accuracy": float(100 * right[inside].mean()) if n else None,
            }
        )
    return bins


def shown_protocols(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """The protocols to show: one where the set has every class, so that both are the same."""
    return ("8way",) if len(entry["present_classes"]) == _width(entry) else ("8way", "present")


def protocol_name(protocol: str, entry: Mapping[str, Any]) -> str:
    """The paper's name of a protocol: "8-way", or "present-only"."""
    return f"{_width(entry)}-way" if protocol == "8way" else "present-only"


def unit_of(found: Mapping[str, Any]) -> str:
    """What the intervals of a set of `compare` are over: an "image", or all images of a "subject"."""
    unit: str = next(iter(found["recipes"].values()))["bootstrap"]["unit"]
    return unit


def scoring_name(entry: Mapping[str, Any]) -> str:
    """How a result was scored: the label rule, whether logits are averaged with the mirror image's, the class prior."""
    return f"labels: {entry['label_rule']}, {'with' if entry['flip'] else 'without'} flip, {prior_of(entry)}"


def prior_of(entry: Mapping[str, Any]) -> str:
    """The class prior of an entry's predictions, in words."""
    prior = entry.get("prior", "training")  # older entries know no other
    return f"{prior} prior" if isinstance(prior, str) else "a prior that was given"


def _width(entry: Mapping[str, Any]) -> int:
    # an entry of metrics.json, or a set of a comparison
    return len(entry["confusion"] if "confusion" in entry else entry["classes"])
