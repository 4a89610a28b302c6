"""Comparison of finished runs: means over seeds, paired differences, and each term's share of the gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.core.recipe import Recipe, load_recipe
from ngd_timm.evaluate.metrics import mean_over_seeds, paired_difference
from ngd_timm.evaluate.predictions import Predictions, prediction_file, read_predictions
from ngd_timm.evaluate.run_log import read_rows
from ngd_timm.evaluate.schema import read_entries, read_fingerprint
from ngd_timm.losses import COMPONENTS

RecipePredictions = Mapping[str, Sequence[tuple[str, Predictions]]]
"""By recipe, the name and predictions of each seed's run."""

QUESTIONS: Mapping[str, Sequence[tuple[str, str, str]]] = {
    "What each term adds": (
        ("logit KD", "b1_kd", "b0_ce"),
        ("Proto-KD", "b2_proto", "b1_kd"),
        ("Proto-KD at its share", "b2_share", "b1_kd"),
        ("D-Geo", "b3_full", "b2_proto"),
        ("Proto-KD and D-Geo", "b3_full", "b1_kd"),
        ("D-Geo, Proto-KD at its share", "b3_share", "b2_share"),
        ("Proto-KD at its share and D-Geo", "b3_share", "b1_kd"),
    ),
    "Does a prior help where labels are few?": (
        ("Proto-KD", "low_real", "low_ce"),
        ("D-Geo", "low_geo", "low_ce"),
        ("Proto-KD and D-Geo", "low_both", "low_ce"),
        ("D-Geo beside Proto-KD", "low_both", "low_real"),
        ("Proto-KD beside D-Geo", "low_both", "low_geo"),
    ),
    "Does real EEG add anything over its controls, at an equal share of the gradient?": (
        ("the EEG grid against a random grid", "b2_share", "c_random"),
        ("the EEG grid against a shuffled grid", "b2_share", "c_shuffled"),
        ("the EEG grid against valence and arousal alone", "b2_share", "c_va"),
        ("the EEG grid against a random grid", "low_real", "low_random"),
        ("the EEG grid against a shuffled grid", "low_real", "low_shuffled"),
        ("the EEG grid against valence and arousal alone", "low_real", "low_va"),
    ),
    "Would the terms be better off otherwise?": (
        ("3x3 cells instead of 5x5", "g3", "b2_share"),
        ("7x7 cells instead of 5x5", "g7", "b2_share"),
        ("the paper's tau and lambda, as tau_paper has them", "tau_paper", "b2_share"),
        ("logit KD by kl instead of mse", "kd_kl", "b1_kd"),
        ("D-Geo from epoch 0", "d_geo_epoch0", "b3_full"),
        ("D-Geo without separation", "d_geo_no_separation", "b3_full"),
    ),
}
"""By question the differences that answer it: what is compared, recipe a minus recipe b."""
_TWINS = [(a, b) for pairs in QUESTIONS.values() for _, a, b in pairs]


# keys in which seeds of a recipe may differ: folders, and what has no part in training
_OF_A_RUN: Any = {
    **dict.fromkeys(("seed", "out", "init", "teacher", "kd_cache", "device", "eval", "tracker", "save_every"), True),
    "data": {"root", "workers", "in_memory"},
}


def refuse_other_recipes(name: str, runs: Sequence[tuple[str, Recipe, Mapping[str, Any]]], remedy: str) -> None:
    """Seeds of the recipe `name`, each with its run's name and fingerprint, train alike on the same images."""
    (first, recipe, fingerprint), *others = runs
    settings, images = recipe.model_dump(exclude=_OF_A_RUN), _images_sha256(recipe, fingerprint)
    for run, other, notes in others:
        own = other.model_dump(exclude=_OF_A_RUN)
        changed = [key for key, value in settings.items() if own[key] != value]
        if None not in (images, own_images := _images_sha256(other, notes)) and images != own_images:
            changed.append("the sha256 of its training images")
        if changed:
            raise InputError(
                f"{first} and {run} are both of the recipe {name}, but {', '.join(changed)} differs, so they are not "
                f"its seeds; {remedy}"
            )


def _images_sha256(recipe: Recipe, fingerprint: Mapping[str, Any]) -> str | None:
    """Of the images that a run was trained on; None where it isn't known, as of a stream, which goes by processes."""
    sha256: str | None = fingerprint.get("data", {}).get("train", {}).get("sha256")
    return None if recipe.data.streaming else sha256


def difference_pairs(names: Sequence[str], swept: Mapping[str, Any] | None = None) -> list[tuple[str, str]]:
    """The differences that a table shows: each recipe to the first, a sweep's rows to its first, and of `QUESTIONS`."""
    pairs = [(name, names[0]) for name in names[1:]]
    pairs = [(b, a) if (b, a) in _TWINS else (a, b) for a, b in pairs]
    first: dict[str, str] = {}
    for row, sweep in (swept or {}).items():
        pair = (row, first.setdefault(sweep["recipe"], row))
        pairs += [pair] if row != pair[1] and pair not in pairs else []
    pairs += [pair for pair in _TWINS if set(pair) <= set(names) and pair not in pairs]
    return pairs


def compare(
    runs: Mapping[str, Sequence[Path]],
    seeds: Sequence[int],
    start: Sequence[Path] = (),
    resamples: int = 2000,
    swept: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of an ablation's table, from the predictions that the runs kept.

    `swept` names of the rows of a sweep its "recipe" and its "values" by key.
    """
    rows = {**runs, **({"warm_start": start} if start else {})}
    pairs = difference_pairs(list(runs), swept)
    sets = {}
    for key in _shared_keys(rows):
        predictions = {
            name: [(folder.name, read_predictions(prediction_file(folder, key))) for folder in folders]
            for name, folders in rows.items()
        }
        sets[key] = compare_predictions(key, predictions, pairs, resamples)
    return {
        "recipes": list(runs),
        "seeds": list(seeds),
        "warm_start": bool(start),
        "runs": {name: [folder.name for folder in folders] for name, folders in rows.items()},
        "sets": sets,
        "training": {name: training_summary(folders) for name, folders in rows.items()},
        "swept": dict(swept or {}),
    }


def _shared_keys(runs: Mapping[str, Sequence[Path]]) -> list[str]:
    keys: list[list[str]] = []
    for folder in (folder for folders in runs.values() for folder in folders):
        file = folder / "metrics.json"
        if not file.is_file():
            raise InputError(f"{folder} has no metrics.json; train it to its end: ngd train --resume {folder}")
        keys.append(list(read_entries(file)))
    shared = [key for key in keys[0] if all(key in other for other in keys)]
    if not shared:
        raise InputError(f"the runs were scored on no common set: {', '.join(sorted(set().union(*keys)))}")
    return shared


def compare_predictions(
    key: str, predictions: RecipePredictions, pairs: Sequence[tuple[str, str]], resamples: int = 2000
) -> dict[str, Any]:
    """Recipes on the set `key`: means over seeds, and paired differences of `pairs`."""
    first, *others = (run for runs in predictions.values() for run in runs)
    for other in others:
        _refuse_other_images(key, first, other)
    logits = {name: [found.logits.numpy() for _, found in runs] for name, runs in predictions.items()}
    reference = first[1]
    subjects = None if reference.subject is None else reference.subject.numpy()
    shared = (reference.target.numpy(), reference.classes, subjects)
    present = sorted(set(reference.target.tolist()))
    return {
        "n": len(reference.target),
        "classes": list(reference.classes),
        "present_classes": [reference.classes[c] for c in present],
        "counts": {reference.classes[c]: int((reference.target == c).sum()) for c in present},
        "label_rule": reference.label_rule,
        "flip": reference.flip,
        "recipes": {name: mean_over_seeds(each, *shared, resamples=resamples) for name, each in logits.items()},
        "differences": [
            {"a": a, "b": b, **paired_difference(logits[a], logits[b], *shared, resamples=resamples)} for a, b in pairs
        ],
    }


def _refuse_other_images(key: str, first: tuple[str, Predictions], other: tuple[str, Predictions]) -> None:
    for what in ("classes", "data_sha256", "label_rule", "flip"):
        values = getattr(first[1], what), getattr(other[1], what)
        if values[0] != values[1]:
            shown = [", ".join(v) if isinstance(v, tuple) else str(v)[:40] for v in values]
            raise InputError(
                f"{first[0]} and {other[0]} can't be paired on {key}: {what} is {shown[0]} and {shown[1]}; score all "
                "runs on the same images, labels and classes"
            )


def training_summary(folders: Sequence[Path]) -> dict[str, Any]:
    """Of one recipe's runs: each term's share of the gradient, λ of Proto-KD, images, epochs, and minutes of a run."""
    shares: dict[str, list[float]] = {term: [] for term in COMPONENTS}
    lambdas, seconds, epochs = [], [], 0
    for folder in folders:
        rows = read_rows(folder / "summary.csv")
        epochs = len(rows)
        seconds.append(sum(row["seconds"] or 0 for row in rows))
        for term, values in shares.items():
            values += [share for row in rows if (share := row.get(f"share_{term}")) is not None]
        lambdas += [weight for row in rows if (weight := row.get("lambda_proto_kd")) is not None]
    return {
        "share": {term: float(np.mean(values)) if values else None for term, values in shares.items()},
        "lambda_proto_kd": float(np.mean(lambdas)) if lambdas else None,
        "images": read_fingerprint(folders[0] / "fingerprint.json").get("data", {}).get("train", {}).get("kept"),
        "epoch_repeats": load_recipe(Recipe, folders[0] / "recipe.yaml").data.epoch_repeats,
        "epochs": epochs,
        "minutes": float(np.mean(seconds)) / 60,
    }
