"""Finished runs against each other: means over seeds, paired differences, and what each term pulled in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import read_json
from ngd_timm.evaluate.metrics import mean_over_seeds, paired_difference
from ngd_timm.evaluate.predictions import Predictions, prediction_file, read_predictions
from ngd_timm.evaluate.run_log import read_rows
from ngd_timm.losses import COMPONENTS

__all__ = ["Answers", "compare", "compare_answers", "difference_pairs"]

# a recipe's runs, a seed each: the name of the run and what it said
Answers = Mapping[str, Sequence[tuple[str, Predictions]]]

# recipes that differ in one thing: the first minus the second says what that thing does (tau_paper, whose objective is
# b2_proto's, differs from b2_share in the setting of Proto-KD as a whole: tau, and a fixed lambda in place of a share)
_TWINS = (
    ("b1_kd", "b0_ce"),
    ("b2_proto", "b1_kd"),
    ("b3_full", "b2_proto"),
    ("b3_full", "b1_kd"),
    ("b2_share", "b1_kd"),
    ("b3_share", "b2_share"),
    ("b3_share", "b1_kd"),
    ("b2_share", "c_random"),
    ("b2_share", "c_shuffled"),
    ("b2_share", "c_va"),
    ("g3", "b2_share"),
    ("g7", "b2_share"),
    ("tau_paper", "b2_share"),
    ("kd_kl", "b1_kd"),
    ("d_geo_epoch0", "b3_full"),
    ("d_geo_no_separation", "b3_full"),
)


def difference_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Which differences a table of these recipes shows: each to the first, then those that differ in one thing.

    Example:
        >>> difference_pairs(["b0_ce", "b1_kd", "b3_full"])
        [('b1_kd', 'b0_ce'), ('b3_full', 'b0_ce'), ('b3_full', 'b1_kd')]
    """
    pairs = [(name, names[0]) for name in names[1:]]
    pairs += [pair for pair in _TWINS if set(pair) <= set(names) and pair not in pairs and pair[::-1] not in pairs]
    return pairs


def compare(
    runs: Mapping[str, Sequence[Path]],
    seeds: Sequence[int],
    start: Sequence[Path] = (),
    resamples: int = 2000,
) -> dict[str, Any]:
    """Everything that an ablation's table says, from the predictions that the runs kept.

    Args:
        runs: Recipe name → run directories, a seed each; the first recipe is the reference.
        seeds: Their seeds, in that order.
        start: The runs that all others started from, a seed each: a row of their own, no difference.
        resamples: Of each bootstrap.

    Returns:
        "recipes", "seeds", "runs" (names of the directories); "sets": `{"name:split": {"n", "classes",
        "present_classes", "label_rule", "flip", "recipes": {name: mean_over_seeds}, "differences": [{"a", "b",
        paired_difference}]}}`; "training": `{name: {"share": percent by term, "lambda_proto_kd", "epochs",
        "minutes"}}`, means over epochs and seeds, minutes of one run.

    Raises:
        InputError: A run without figures or predictions, or runs that were scored on different pictures.
    """
    if not runs or any(len(folders) != len(seeds) for folders in runs.values()):
        raise InputError(f"a comparison needs each recipe's runs of the seeds {', '.join(map(str, seeds))}")
    rows = {**runs, **({"warm_start": start} if start else {})}
    keys = _shared_keys(rows)
    pairs = difference_pairs(list(runs))
    return {
        "recipes": list(runs),
        "seeds": list(seeds),
        "warm_start": bool(start),
        "runs": {name: [folder.name for folder in folders] for name, folders in rows.items()},
        "sets": {key: compare_answers(key, _kept_answers(key, rows), pairs, resamples) for key in keys},
        "training": {name: _training(folders) for name, folders in rows.items()},
    }


def _shared_keys(runs: Mapping[str, Sequence[Path]]) -> list[str]:
    known: list[list[str]] = []
    for folders in runs.values():
        for folder in folders:
            file = folder / "metrics.json"
            if not file.is_file():
                raise InputError(f"{folder} has no metrics.json; train it to its end: ngd train --resume {folder}")
            known.append(list(read_json(file)))
    shared = [key for key in known[0] if all(key in other for other in known)]
    if not shared:
        raise InputError(f"the runs were scored on no common set: {', '.join(sorted(set().union(*known)))}")
    return shared


def _kept_answers(key: str, runs: Mapping[str, Sequence[Path]]) -> Answers:
    return {
        name: [(folder.name, read_predictions(prediction_file(folder, key))) for folder in folders]
        for name, folders in runs.items()
    }


def compare_answers(
    key: str, answers: Answers, pairs: Sequence[tuple[str, str]], resamples: int = 2000
) -> dict[str, Any]:
    """One of `compare`'s "sets", from answers to the same pictures.

    Args:
        key: The set's name, for messages.
        answers: Of every recipe, a seed each.
        pairs: Which differences, see `difference_pairs`.
        resamples: Of each bootstrap.

    Raises:
        InputError: Answers to different pictures, labels or classes.
    """
    first = next(iter(answers.values()))[0]
    for of in answers.values():
        for other in of:
            _refuse_other_pictures(key, first, other)
    logits = {name: [found.logits.numpy() for _, found in of] for name, of in answers.items()}
    reference = first[1]
    shared = (
        reference.target.numpy(),
        reference.classes,
        None if reference.subject is None else reference.subject.numpy(),
    )
    present = sorted(set(reference.target.tolist()))
    return {
        "n": len(reference.target),
        "classes": list(reference.classes),
        "present_classes": [reference.classes[c] for c in present],
        "label_rule": reference.label_rule,
        "flip": reference.flip,
        "recipes": {name: mean_over_seeds(of, *shared, resamples=resamples) for name, of in logits.items()},
        "differences": [
            {"a": a, "b": b, **paired_difference(logits[a], logits[b], *shared, resamples=resamples)} for a, b in pairs
        ],
    }


def _refuse_other_pictures(key: str, first: tuple[str, Predictions], other: tuple[str, Predictions]) -> None:
    for what in ("classes", "data_sha256", "label_rule", "flip"):
        values = getattr(first[1], what), getattr(other[1], what)
        if values[0] != values[1]:
            shown = [", ".join(v) if isinstance(v, tuple) else str(v)[:40] for v in values]
            raise InputError(
                f"{first[0]} and {other[0]} can't be paired on {key}: {what} is {shown[0]} and {shown[1]}; score all "
                "runs on the same pictures, labels and classes"
            )


def _training(folders: Sequence[Path]) -> dict[str, Any]:
    shares: dict[str, list[float]] = {term: [] for term in COMPONENTS}
    lambdas, seconds, epochs = [], [], 0
    for folder in folders:
        rows = read_rows(folder / "summary.csv")
        epochs = len(rows)
        seconds.append(sum(float(row["seconds"]) for row in rows))
        for term, values in shares.items():
            values += [float(row[f"share_{term}"]) for row in rows if row[f"share_{term}"]]
        lambdas += [float(row["lambda_proto_kd"]) for row in rows if row["lambda_proto_kd"]]
    return {
        "share": {term: float(np.mean(values)) if values else None for term, values in shares.items()},
        "lambda_proto_kd": float(np.mean(lambdas)) if lambdas else None,
        "epochs": epochs,
        "minutes": float(np.mean(seconds)) / 60,
    }
