"""What the scores of a teacher and of a grid show, in plain words and by rule, for reports and cards alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WHO: Mapping[str, str] = {
    "teacher": "teacher",
    "ridge": "ridge regression, same folds",
    "logistic_regression": "logistic regression, same folds",
    "trial_number": "trial number alone, no EEG",
    "stimulus_alone": "stimulus alone, no EEG",
}
FOLDS: Mapping[str, str] = {"subject": "by subject", "stimulus": "by stimulus", "both": "by both subject and stimulus"}
"""What a teacher's folds hold out, in words."""
UNSEEN = {"subject": "people", "stimulus": "stimuli", "both": "people and stimuli"}
METRICS: Mapping[str, str] = {"bacc": "bACC", "ccc": "CCC"}
Test = tuple[str, str]
"""A grid's size, as text, and `mantel`, `mantel_centered` or `stability`."""
_TESTS = {"mantel": "Mantel as it is", "mantel_centered": "Mantel centred", "stability": "agreement of halves"}
_ALPHA = 0.05


def score_rows(scores: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every score as a row (`who`, `axis`, `metric`, `value`, `ci95`, `chance`, `p`), in the order of `WHO`."""
    for who in WHO:
        for axis, metrics in scores.get(who, {}).items():
            for metric, score in metrics.items():
                row = {key: score[key] for key in ("value", "ci95", "chance", "p")}
                yield {"who": who, "axis": axis, "metric": metric, **row}


def fold_rows(scores: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The teacher's scores and the ridge's in all folds that they have, as rows of `score_rows`, and `by` in words."""
    fitted = scores.get("folds_by", "subject")
    for by, words in FOLDS.items():
        part = scores if by == fitted else scores.get("folds", {}).get(by, {})
        for row in score_rows({who: part[who] for who in ("teacher", "ridge") if who in part}):
            yield {**row, "by": words}


def decimal(value: float, digits: int = 2) -> str:
    """A number to so many digits, and never -0.00."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def span(pair: Sequence[float], digits: int = 2) -> str:
    """An interval in words: `0.10 to 0.50`."""
    return f"{decimal(pair[0], digits)} to {decimal(pair[1], digits)}"


_TEACHER = {
    "above": "On {seen} it has not seen, the teacher tells high from low {}.",
    "weakly": "On {seen} it has not seen, the teacher tells high from low {}, weakly.",
    "unsure": "The interval over people reaches chance for {}.",
    "chance": "For {} it is not distinct from chance on {seen} it has not seen (p above .05).",
    "logistic_regression": "A logistic regression does no worse for {}.",
    "ridge": "A ridge regression does no worse for {}.",
    "number": (
        "The trial's number alone, without any EEG, does as well for {}: a number stands for the same stimulus, or the "
        "same place in the order, for everybody, so the order of trials is confounded with ratings, and what is "
        "decoded may be time or the stimulus and not affect."
    ),
    "part": (
        "The trial's number alone tells high from low {} better than chance too, though less well: part of what is "
        "decoded may be the order of the trials and not affect."
    ),
    "stimulus": (
        "The stimulus alone, without any EEG, does as well for {}: what is decoded may be what people have in common "
        "about a stimulus, and not how one of them felt."
    ),
    "beyond": (
        "Among trials of the same {name} it tells high from low better than chance for {}: more than which stimulus or "
        "time it was."
    ),
    "nothing": (
        "Among trials of the same {name} it tells high from low no better than chance for {}: nothing is shown beyond "
        "which stimulus or time it was."
    ),
}
"""What may be said of a teacher; each sentence is about some axes."""


def teacher_verdict(scores: Mapping[str, Any]) -> list[str]:
    """Sentences about the teacher: does it beat chance, the linear models, and the number of the trial alone?"""
    teacher = scores["teacher"]
    above = [axis for axis in teacher if _shown(teacher[axis]["bacc"])]
    weak = all(teacher[axis]["ccc"]["value"] < 0.5 for axis in above)
    axes: dict[str, list[str]] = {
        "weakly" if weak else "above": above,
        "unsure": [axis for axis in above if teacher[axis]["bacc"]["ci95"][0] <= teacher[axis]["bacc"]["chance"]],
        "chance": [axis for axis in teacher if axis not in above],
    }
    for who, metric in (("logistic_regression", "bacc"), ("ridge", "ccc")):
        simple = {} if who == scores.get("kind") else scores.get(who, {})  # a ridge does as well as itself
        axes[who] = [axis for axis in simple if simple[axis][metric]["value"] >= teacher[axis][metric]["value"]]
    # the number of a trial is scored only where numbers mean the same for everybody
    for axis, metrics in scores.get("trial_number", {}).items():
        alone, eeg = metrics["bacc"], teacher[axis]["bacc"]
        if alone["value"] >= eeg["value"] and (_shown(alone) or _shown(eeg)):
            axes.setdefault("number", []).append(axis)
        elif _shown(alone):
            axes.setdefault("part", []).append(axis)
    stimulus = scores.get("stimulus_alone", {})
    for axis in stimulus if stimulus != scores.get("trial_number") else ():  # one sentence where they are the same
        if stimulus[axis]["bacc"]["value"] >= teacher[axis]["bacc"]["value"]:
            axes.setdefault("stimulus", []).append(axis)
    name = "number" if all("given_number" in teacher[axis]["bacc"] for axis in teacher) else "stimulus"
    for axis, metrics in teacher.items():
        if f"given_{name}" in metrics["bacc"]:
            p = metrics["bacc"][f"given_{name}"]["p"]
            key, text = ("beyond", f"{axis} (p {p:.4f})") if p < _ALPHA else ("nothing", f"{axis} (p {p:.2f})")
            axes.setdefault(key, []).append(text)
    words = {"seen": UNSEEN[scores.get("folds_by", "subject")], "name": name}
    return [sentence.format(listed(axes[key]), **words) for key, sentence in _TEACHER.items() if axes.get(key)]


def folds_verdict(scores: Mapping[str, Any]) -> str:
    """One sentence: held out by subject, by stimulus and by both, which does the teacher pass, and which a ridge?"""
    fitted, others = scores.get("folds_by", "subject"), scores.get("folds", {})
    teacher = {by: part["teacher"] for by, part in ((fitted, scores), *others.items()) if "teacher" in part}
    passed = [f"held out {FOLDS[by]}, the teacher passes {_passed(teacher[by])}" for by in FOLDS if by in teacher]
    parts = [
        f"held out {FOLDS[by]} a ridge passes {_passed(others[by]['ridge'])}"
        for by in FOLDS
        if "ridge" in others.get(by, {})
    ]
    if untested := [words for by, words in FOLDS.items() if by not in teacher and by not in others]:
        parts.append(f"{listed(untested)} nothing is scored")
    text = f"H{'; '.join(passed)[1:]} (bACC above chance, p below .05)"
    link = "; it was fitted in no other folds: " if len(teacher) < len(FOLDS) else "; "
    return f"{text}{link if parts else ''}{'; '.join(parts)}."


def _passed(scores: Mapping[str, Any]) -> str:
    return f"for {listed([axis for axis in scores if _shown(scores[axis]['bacc'])]) or 'neither axis'}"


_GRID = {
    "subject": "the grid follows the valence/arousal plane more than ratings permuted within each subject do. A "
    "teacher that knows stimuli by their EEG passes this test too, whatever it knows of affect.",
    "stimulus": "the grid, of stimuli that its teachers have not seen, follows the valence/arousal plane more than it "
    "does with the ratings of whole stimuli exchanged.",
    None: "the grid does not follow the valence/arousal plane more than permuted ratings do: its geometry is no "
    "evidence of affect, and a student may gain no more from it than from a shuffled or a random grid.",
}


def grid_verdict(
    size: int,
    p: float,
    exploratory: Mapping[Test, float],
    stability: Mapping[str, Any] | None = None,
    folds_by: str = "subject",
) -> list[str]:
    """Sentences about a grid: one test, declared beforehand, says whether it follows the plane; the rest explores."""
    declared = f"By the declared test (Mantel of the centred grid at its own size, {size} x {size}; p {p:.4f})"
    followed = "subject" if folds_by == "subject" else "stimulus"
    lines = [f"{declared} {_GRID[followed if p < _ALPHA else None]}"]
    if stability is not None and exploratory.get((str(size), "stability"), 0) >= _ALPHA:
        lines.append(
            f"Grids of two halves of the subjects agree no more than chance (centred cosine {stability['value']:.2f}, "
            f"chance {stability['chance']:.2f}): other subjects might well have given another grid."
        )
    groups = (("below", _tests(exploratory, below=True)), ("not below", _tests(exploratory, below=False)))
    parts = [f"p is {words} .05 for {tests}" for words, tests in groups if tests]
    if parts:
        count = f"{len(exploratory)} test{'s' * (len(exploratory) > 1)}"
        lines.append(f"Exploratory, with Holm's correction for {count}: {'; '.join(parts)}.")
    return lines


def exploratory_tests(
    grids: Mapping[str, Any], declared: str | None = None, own_plain_p: float | None = None
) -> dict[Test, float]:
    """p of every test of a grid but the declared one, with Holm's correction for their number.

    At the size `declared` the centred Mantel test of `grids` is the declared one; `own_plain_p` is of the grid itself.
    """
    raw: dict[Test, float] = {} if own_plain_p is None else {("own", "mantel"): own_plain_p}
    for size, grid in grids.items():
        raw[size, "mantel"] = grid["mantel"]["p"]
        if size != declared:
            raw[size, "mantel_centered"] = grid["mantel_centered"]["p"]
        raw[size, "stability"] = grid["stability"]["centered"]["p"]
    return holm(raw)


def holm(p_values: Mapping[Test, float]) -> dict[Test, float]:
    """Holm's step-down correction: below α with a chance of at most α that any of them is so by chance.

    Examples:
        >>> holm({("3", "mantel"): 0.01, ("5", "mantel"): 0.04, ("7", "mantel"): 0.03})
        {('3', 'mantel'): 0.03, ('5', 'mantel'): 0.06, ('7', 'mantel'): 0.06}

    Reference:
        Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979).
    """
    corrected, largest = {}, 0.0
    for rank, (test, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        corrected[test] = largest = max(largest, min(1.0, (len(p_values) - rank) * p))
    return {test: corrected[test] for test in p_values}


def difference_verdict(name: str, metrics: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """One sentence on a paired difference: which metrics it shows in, and whether other seeds might not show it."""
    groups: dict[str, list[str]] = {}
    for metric, title in titles.items():
        (low, high), seeds = metrics[metric]["ci95"], metrics[metric]["seed_ci95"]
        side = "above 0" if low > 0 else "below 0"
        if low <= 0 <= high:
            finding = "no difference shown in {}"
        elif seeds is None:
            finding = side + " in {}, with one seed"
        elif (low > 0 and seeds[0] > 0) or (high < 0 and seeds[1] < 0):
            finding = side + " in {}"
        else:
            finding = side + " for these students in {}, which other seeds might not show"
        groups.setdefault(finding, []).append(title)
    return f"{name}: {'; '.join(finding.format(listed(group)) for finding, group in groups.items())}."


def _tests(exploratory: Mapping[Test, float], below: bool) -> str:
    """The tests whose p is below α, or is not, each with the sizes of its grids."""
    sizes: dict[str, list[str]] = {}
    for (size, test), p in exploratory.items():
        if (p < _ALPHA) == below:
            sizes.setdefault(test, []).append("this grid" if size == "own" else f"{size} x {size}")
    return listed([f"{name} ({listed(sizes[test])})" for test, name in _TESTS.items() if test in sizes])


def _shown(score: Mapping[str, Any]) -> bool:
    return bool(score["p"] < _ALPHA)


def listed(names: Sequence[str]) -> str:
    """`a, b and c`; nothing of none."""
    return " and ".join([", ".join(names[:-1]), *names[-1:]]) if len(names) > 1 else "".join(names)
