"""The page of a run: how good the student is, how it was trained, and what it must not be used for."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ngd_timm.core.commands import without_folders
from ngd_timm.core.errors import InputError
from ngd_timm.core.recipe import Recipe, StudentConfig, to_yaml
from ngd_timm.evaluate.metrics import METRIC_TITLES, METRICS
from ngd_timm.evaluate.predictions import Predictions
from ngd_timm.evaluate.run import Run, read_run
from ngd_timm.evaluate.run_log import Row, choice_note, choices_of_epoch, present_column
from ngd_timm.report.page import clock, grid_context, pretty_fingerprint, render, to_png_uri
from ngd_timm.report.plots import plot_lines, plot_shares
from ngd_timm.report.sets import set_context

TERMS = {"ce": "cross-entropy", "kd": "logit KD", "proto_kd": "Proto-KD", "d_geo": "D-Geo"}
_MOST_MISTAKES = 60  # of a set
_THUMBNAIL = (96, 96)
_MAX_BYTES = 3_000_000  # of a page, which mistakes make large


def write_report(run: str | Path, mistakes: int = 0) -> Path:
    """Write `report.html` into a finished run directory; with `mistakes` the page holds faces."""
    if not 0 <= mistakes <= _MOST_MISTAKES:
        raise InputError(f"mistakes={mistakes}; between 0 and {_MOST_MISTAKES} of each data set can be shown")
    files = read_run(run)
    if mistakes and not files.predictions:
        raise InputError(f"{files.folder} keeps no predictions, so its mistakes can't be shown; evaluate the run again")
    shown = {key: _mistakes(files.recipe, key, p, mistakes) for key, p in files.predictions.items() if mistakes}
    return render("run.html.j2", {**_context(files), "mistakes": shown}, files.folder / "report.html", _MAX_BYTES)


def _context(run: Run) -> dict[str, Any]:
    recipe = run.recipe
    classes, sigma = recipe.data.classes, recipe.loss.sigma
    grid = run.grid if recipe.loss.uses_grid else None
    simulated = {
        "the faces are drawn by a program": recipe.data.name == "schematic",
        "the grid was built from simulated EEG": grid is not None and "simulated" in grid.metadata,
    }
    return {
        "title": f"Run {recipe.name}, seed {recipe.seed}",
        "simulated": [what for what, true in simulated.items() if true],
        "facts": facts(run),
        "sets": [
            set_context(key, entry, classes, run.predictions.get(key), grid, sigma, name=f"set{i}")
            for i, (key, entry) in enumerate(run.metrics.items())
        ],
        "unpredicted": [key for key in run.metrics if key not in run.predictions],
        "plots": training_plots(run.rows),
        "choices": _choices(recipe, run.rows) if recipe.best_on else None,
        "grid": None if grid is None else grid_context(grid, classes),
        **texts(run),
    }


def texts(run: Run) -> dict[str, str]:
    """A run's recipe and fingerprint, without the folders of this machine."""
    return {
        "recipe_text": to_yaml(without_folders(run.recipe)),
        "fingerprint_text": pretty_fingerprint(run.fingerprint),
    }


def _choices(recipe: Recipe, rows: Sequence[Row]) -> dict[str, Any]:
    """The epoch that each way to choose one takes, with its scores on validation and on the sets of `best_on`."""
    columns = {f"{recipe.data.name}:valid, all classes": [f"valid_{metric}" for metric in METRICS]}
    columns |= {f"{key}, present classes only": [present_column(key, m) for m in METRICS] for key in recipe.best_on}
    ways = {
        way: (int(row["epoch"]), [row[name] for names in columns.values() for name in names])
        for way, row in choices_of_epoch(recipe, rows).items()
    }
    return {
        "sets": list(columns),
        "ways": ways,
        "metric": METRIC_TITLES[recipe.best_metric],
        "note": choice_note(recipe),
    }


def column(rows: Sequence[Row], name: str) -> list[float]:
    """The numbers of a column of summary.csv; a gap is NaN."""
    return [math.nan if (value := row.get(name)) is None else value for row in rows]


def known(values: Sequence[float]) -> list[float]:
    """The values that are not gaps."""
    return [v for v in values if not math.isnan(v)]


def mean_shares(rows: Sequence[Row]) -> str:
    """Each term's mean share of the gradient, in words; empty where it wasn't measured."""
    return ", ".join(
        f"{label} gave {statistics.fmean(known(values)):.1f}\N{NO-BREAK SPACE}%"
        for label, values in _filled(rows, {label: f"share_{t}" for t, label in TERMS.items()}).items()
    )


def training_plots(rows: Sequence[Row]) -> dict[str, str]:
    """Losses, validation metrics and gradient shares by epoch, those for which there are numbers."""
    epochs, plots = column(rows, "epoch"), {}
    if losses := _filled(rows, {label: t for t, label in TERMS.items()}):
        alt = "Loss terms by epoch. " + _first_last(losses, "{:.3g}")
        plots["losses"] = plot_lines("losses", alt, epochs, losses, "loss, before its weight", log=True)
    if valid := _filled(rows, {label: f"valid_{m}" for m, label in METRIC_TITLES.items()}):
        alt = "Validation metrics by epoch. " + _first_last(valid, "{:.1f} %")
        plots["validation"] = plot_lines("validation", alt, epochs, valid, "percent")
    if len(shares := _filled(rows, {label: f"share_{t}" for t, label in TERMS.items()})) > 1:
        alt = "Share of the gradient by term and epoch. " + _first_last(shares, "{:.1f} %")
        plots["shares"] = plot_shares("shares", alt, epochs, shares)
    return plots


def _filled(rows: Sequence[Row], columns: Mapping[str, str]) -> dict[str, list[float]]:
    """By label the columns that exist and hold at least one number."""
    values = {label: column(rows, name) for label, name in columns.items()}
    return {label: numbers for label, numbers in values.items() if known(numbers)}


def _first_last(lines: Mapping[str, Sequence[float]], form: str) -> str:
    ends = {label: (known(values)[0], known(values)[-1]) for label, values in lines.items()}
    parts = [f"{label}: first {form.format(first)}, last {form.format(last)}" for label, (first, last) in ends.items()]
    return "; ".join(parts) + "."


def facts(run: Run) -> dict[str, str]:
    """What a run was, by heading."""
    recipe = without_folders(run.recipe)
    student, loss = recipe.student, recipe.loss
    start = recipe.init or ("ImageNet weights" if student.pretrained else "random weights")
    weights = [f"{loss.ce:g} × {TERMS['ce']}"]
    weights += [f"{w:g} × {TERMS[t]}" for t in ("kd", "proto_kd", "d_geo") if (w := getattr(loss, t)) > 0]
    if loss.proto_share is not None:
        weights.append(f"Proto-KD held at {100 * loss.proto_share:g} % of the gradient")
    seconds = known(column(run.rows, "seconds"))
    times = f", {clock(statistics.fmean(seconds))} each, {clock(sum(seconds))} in all" if seconds else ""
    train = run.fingerprint.get("data", {}).get("train", {})
    kept = f", {train['kept']:,} training images" if "kept" in train else ""
    facts = {
        "Student": f"{student.backbone}, {student.image_size} × {student.image_size} px, "
        f"{'grey' if student.in_chans == 1 else 'colour'}, from {start}",
        "Faces": f"{run.recipe.data.name}{kept}, labels: {train.get('labels', run.recipe.data.label_rule)}",
        "Images without labels": ", ".join(recipe.data.unlabelled),
        "Objective": " + ".join(weights),
        "Trained": f"{len(run.rows)} epochs{times}",
        "Grid": (recipe.grid or "none") + f", control: {recipe.grid_control}" * (recipe.grid_control != "none"),
        "Logit teacher": ", ".join(recipe.teacher_sources) or "none",
        "Saved with": _saved_with(student, known(column(run.rows, "temperature"))),
        "Weights scored": "the last epoch's; "
        + (choice_note(recipe) if recipe.best_on else "the best on validation is kept beside it and not reported"),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _saved_with(student: StudentConfig, temperatures: Sequence[float]) -> str:
    """How the student that is saved and scored differs from the one that was trained."""
    changes = [] if student.weights == "float32" else [f"matrices in {student.weights}"]
    if student.logit_adjustment:
        changes.append(f"logits less {student.logit_adjustment:g} × the log prior of the labels drawn in training")
    if temperatures:
        changes.append(f"logits divided by {temperatures[-1]:g}, a temperature fitted on validation")
    return ", ".join(changes)


def _mistakes(recipe: Recipe, key: str, predictions: Predictions, n: int) -> list[dict[str, Any]]:
    """The most confident wrong predictions with their thumbnails; none for a set that the recipe doesn't name."""
    dataset = _images(recipe, key, predictions)
    if dataset is None:
        return []
    probability = predictions.logits.double().softmax(dim=1).numpy()
    predicted, target = probability.argmax(axis=1), predictions.target.numpy()
    wrong = np.flatnonzero(predicted != target)
    sure = 100 * probability[wrong, predicted[wrong]]
    surest = np.argsort(-sure, kind="stable")[:n]
    mistakes = []
    for i, percent in zip(wrong[surest], sure[surest], strict=True):
        thumbnail = dataset[int(i)]["image"].convert("RGB")
        thumbnail.thumbnail(_THUMBNAIL)
        true, other = recipe.data.classes[target[i]], recipe.data.classes[predicted[i]]
        alt = f"a face labelled {true} that the student called {other}"
        caption = f"{true}, predicted {other} ({percent:.0f} %)"
        mistakes.append({"uri": to_png_uri(thumbnail), "alt": alt, "caption": caption})
    return mistakes


def _images(recipe: Recipe, key: str, predictions: Predictions) -> Any:
    """The images of a set that the recipe names, checked to be those of the predictions."""
    from ngd_timm.data import load_split, parse_spec
    from ngd_timm.data.labels import GIVEN

    data, limit = recipe.data, None
    sources = {parse_spec(f"{name}={root}")[3]: f"{name}={root}" for name, root in recipe.eval.items()}
    if key == f"{data.name}:valid" and data.root is not None:
        limit = data.limit
        sources.setdefault(key, f"{data.name}={data.root}:valid")
    if key not in sources:
        return None
    name, root, split, _ = parse_spec(sources[key])
    dataset, report = load_split(
        name,
        root,
        split or "all",
        label_rule=data.label_rule if predictions.label_rule == GIVEN else predictions.label_rule,
        drop_duplicates=data.drop_duplicates,
        classes=data.classes,
        limit=limit,
    )
    if report.sha256 != predictions.data_sha256:
        raise InputError(
            f"the images of {key} at {root} are not those that the run was scored on, so its mistakes can't be "
            "shown; evaluate the run again"
        )
    return dataset
