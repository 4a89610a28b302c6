"""What the figures of a teacher run say, in plain words and by rule: one rule for reports and cards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = [
    "METRICS",
    "WHO",
    "decimal",
    "difference_verdict",
    "grid_verdict",
    "score_rows",
    "sizes_verdict",
    "span",
    "teacher_verdict",
]

WHO: Mapping[str, str] = {
    "teacher": "teacher",
    "ridge": "ridge regression, same folds",
    "logistic_regression": "logistic regression, same folds",
    "trial_number": "trial number alone, no EEG",
}
METRICS: Mapping[str, str] = {"bacc": "bACC", "ccc": "CCC"}
_ALPHA = 0.05


def score_rows(scores: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every figure as a row (`who`, `axis`, `metric`, `value`, `ci95`, `chance`, `p`), in the order of `WHO`."""
    for who in WHO:
        for axis, metrics in scores.get(who, {}).items():
            for metric, figure in metrics.items():
                row = {key: figure[key] for key in ("value", "ci95", "chance", "p")}
                yield {"who": who, "axis": axis, "metric": metric, **row}


def decimal(value: float, digits: int = 2) -> str:
    """A figure to so many digits, and never -0.00.

    Example:
        >>> decimal(-0.001), decimal(0.5125, 3)
        ('0.00', '0.512')
    """
    return f"{round(value, digits) + 0.0:.{digits}f}"


def span(pair: Sequence[float], digits: int = 2) -> str:
    """An interval in words: `0.10 to 0.50`."""
    return f"{decimal(pair[0], digits)} to {decimal(pair[1], digits)}"


def teacher_verdict(scores: Mapping[str, Any]) -> list[str]:
    """Sentences about the teacher: does it beat chance, the linear models, and the number of the trial alone?

    Args:
        scores: `teacher` and `logistic_regression`, and where a run has them `ridge` and `trial_number`; each holds for
            an axis and metric `value`, `ci95`, `chance` and `p`.

    Returns:
        One sentence or two an item.

    Example:
        >>> good, number = ({"value": v, "ci95": [0.55, 0.7], "chance": 0.5, "p": 0.01} for v in (0.6, 0.65))
        >>> scores = {"teacher": {"valence": {"bacc": good, "ccc": good}}, "logistic_regression": {}}
        >>> teacher_verdict(scores)
        ['On people it has not seen, the teacher tells high from low valence.']
        >>> teacher_verdict({**scores, "trial_number": {"valence": {"bacc": number}}})[1][:55]
        "The trial's number alone, without any EEG, does as well"
    """
    teacher = scores["teacher"]
    above = [axis for axis in teacher if _shown(teacher[axis]["bacc"])]
    below = [axis for axis in teacher if axis not in above]
    lines = []
    if above:
        weak = all(teacher[axis]["ccc"]["value"] < 0.5 for axis in above)
        strength = ", weakly" if weak else ""
        lines.append(f"On people it has not seen, the teacher tells high from low {_and(above)}{strength}.")
    unsure = [axis for axis in above if teacher[axis]["bacc"]["ci95"][0] <= 0.5]
    if unsure:
        lines.append(f"The interval over people reaches chance for {_and(unsure)}.")
    if below:
        lines.append(f"For {_and(below)} it can't be told from chance on people it has not seen (p above .05).")
    for who, name, metric in (("logistic_regression", "logistic", "bacc"), ("ridge", "ridge", "ccc")):
        better = [axis for axis, simple in scores.get(who, {}).items() if _as_good(simple, teacher[axis], metric)]
        if better:
            lines.append(f"A {name} regression does no worse for {_and(better)}.")
    return lines + _order(teacher, scores.get("trial_number", {})) + _beyond(teacher)


def grid_verdict(size: int, plain_p: float, centered_p: float, stability: Mapping[str, Any] | None = None) -> list[str]:
    """Sentences about a grid: does it follow the plane (Mantel), and would other people have given the same one?

    Args:
        size: S, cells along an axis.
        plain_p: p of the Mantel correlation of the grid as it is.
        centered_p: The same, centred.
        stability: `value`, `chance` and `p` of the split-half cosine, centred; None where it wasn't measured.

    Example:
        >>> grid_verdict(5, 0.4, 0.3, {"value": 0.02, "chance": 0.01, "p": 0.4})[-1][:55]
        'Neither its geometry nor its stability speaks for the 5'
    """
    lines = []
    for label, p in (("as it is", plain_p), ("centred", centered_p)):
        if p < _ALPHA:
            lines.append(f"The grid {label} follows the valence/arousal plane more than permuted ratings do (Mantel).")
        else:
            lines.append(
                f"The grid {label} does not follow the valence/arousal plane more than permuted ratings do (Mantel "
                f"p {p:.3f}): its geometry is no evidence of affect, and a student may gain no more from it than from "
                "a shuffled or a random grid."
            )
    if stability is None:
        return lines
    figures = f"cosine {stability['value']:.2f}, chance {stability['chance']:.2f}, p {stability['p']:.3f}"
    if _shown(stability):
        lines.append(f"Grids of two halves of the people agree on it more than chance (centred {figures}).")
    else:
        lines.append(
            f"Grids of two halves of the people agree no more than chance (centred {figures}): other people might well "
            "have given another grid."
        )
    if not _shown(stability) and min(plain_p, centered_p) >= _ALPHA:
        lines.append(
            f"Neither its geometry nor its stability speaks for the {size} x {size} grid: nothing shows that it holds "
            "affect."
        )
    return lines


def sizes_verdict(grids: Mapping[str, Any]) -> list[str]:
    """One sentence on which sizes both the plane (Mantel, as it is or centred) and the halves speak for.

    Args:
        grids: By size, as text, what a run's scores.json says of that grid.

    Example:
        >>> good, bad = ({"p": p} for p in (0.01, 0.5))
        >>> one = {"mantel": good, "mantel_centered": bad, "stability": {"centered": good}}
        >>> two = {"mantel": bad, "mantel_centered": bad, "stability": {"centered": bad}}
        >>> sizes_verdict({"3": one, "5": two})
        ['Of the sizes tried, geometry (Mantel) and stability both speak for 3 x 3; neither speaks for 5 x 5.']
    """
    groups: dict[str, list[str]] = {
        "geometry (Mantel) and stability both speak": [],
        "geometry alone speaks": [],
        "stability alone speaks": [],
        "neither speaks": [],
    }
    both, geometry, stability, neither = groups.values()
    for size, grid in grids.items():
        plane = min(grid["mantel"]["p"], grid["mantel_centered"]["p"]) < _ALPHA
        halves = _shown(grid["stability"]["centered"])
        group = (both if halves else geometry) if plane else (stability if halves else neither)
        group.append(f"{size} x {size}")
    parts = [f"{which} for {_and(sizes)}" for which, sizes in groups.items() if sizes]
    return [f"Of the sizes tried, {'; '.join(parts)}."] if parts else []


def difference_verdict(what: str, figures: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """One sentence on a paired difference: which metrics it shows in, and whether other seeds might not show it.

    Args:
        what: Names the difference, `a − b`.
        figures: For each metric `ci95` (over pictures) and `seed_ci95` (over seeds; None with one seed).
        names: Metric to its name.

    Example:
        >>> up, held = ({"ci95": [0.5, 2.0], "seed_ci95": s} for s in ([0.1, 2.4], [-4.0, 6.0]))
        >>> difference_verdict("b − a", {"acc": up, "bacc": held}, {"acc": "accuracy", "bacc": "balanced accuracy"})
        'b − a: above 0 in accuracy; above 0 for these students in balanced accuracy, which other seeds might not show.'
    """
    groups: dict[str, list[str]] = {}
    for metric, name in names.items():
        low, high = figures[metric]["ci95"]
        seeds = figures[metric]["seed_ci95"]
        side = "above 0" if low > 0 else "below 0" if high < 0 else None
        if side is None:
            said = "no difference shown in {}"
        elif seeds is None:
            said = side + " in {}, with one seed"
        elif (low > 0 and seeds[0] > 0) or (high < 0 and seeds[1] < 0):
            said = side + " in {}"
        else:
            said = side + " for these students in {}, which other seeds might not show"
        groups.setdefault(said, []).append(name)
    return f"{what}: {'; '.join(said.format(_and(of)) for said, of in groups.items())}."


def _order(teacher: Mapping[str, Any], number: Mapping[str, Any]) -> list[str]:
    """What the number of a trial gives away; it is scored only where numbers mean the same for everybody."""
    as_good, part = [], []
    for axis, metrics in number.items():
        alone, eeg = metrics["bacc"], teacher[axis]["bacc"]
        if alone["value"] >= eeg["value"] and (_shown(alone) or _shown(eeg)):
            as_good.append(axis)
        elif _shown(alone):
            part.append(axis)
    lines = []
    if as_good:
        lines.append(
            f"The trial's number alone, without any EEG, does as well for {_and(as_good)}: a number stands for the "
            "same stimulus, or the same place in the order, for everybody, so the order of trials is confounded with "
            "ratings, and what is decoded may be time or the stimulus and not affect."
        )
    if part:
        lines.append(
            f"The trial's number alone tells high from low {_and(part)} better than chance too, though less well: part "
            "of what is decoded may be the order of the trials and not affect."
        )
    return lines


def _beyond(teacher: Mapping[str, Any]) -> list[str]:
    """What the teacher knows of a rating once the trial's number is given."""
    p_of = {
        axis: metrics["bacc"]["given_number"]["p"]
        for axis, metrics in teacher.items()
        if "given_number" in metrics["bacc"]
    }
    more = [f"{axis} (p {p:.4f})" for axis, p in p_of.items() if p < _ALPHA]
    none = [f"{axis} (p {p:.2f})" for axis, p in p_of.items() if p >= _ALPHA]
    lines = []
    if more:
        lines.append(
            f"Among trials of the same number it tells high from low better than chance for {_and(more)}: more than "
            "which stimulus or time it was."
        )
    if none:
        lines.append(
            f"Among trials of the same number it tells high from low no better than chance for {_and(none)}: nothing "
            "is shown beyond which stimulus or time it was."
        )
    return lines


def _shown(figure: Mapping[str, Any]) -> bool:
    return bool(figure["p"] < _ALPHA)


def _as_good(simple: Mapping[str, Any], teacher: Mapping[str, Any], metric: str) -> bool:
    return bool(simple[metric]["value"] >= teacher[metric]["value"])


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
