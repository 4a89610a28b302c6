"""One self-contained HTML page from the files of a run, or of the demo: no network, no script, nothing recomputed."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngd_timm import figures
from ngd_timm.errors import InputError
from ngd_timm.recipe import Recipe, load_recipe
from ngd_timm.report_page import PROTOCOLS, clock, grid_context, png_uri, read_json, render, write_page
from ngd_timm.report_teacher import write_teacher_report
from ngd_timm.verdict import WHO, score_rows

if TYPE_CHECKING:
    from ngd_timm.prototypes import PrototypeGrid

__all__ = ["write_demo_report", "write_report", "write_teacher_report"]

_TERMS = {"ce": "cross-entropy", "kd": "logit KD", "proto_kd": "Proto-KD", "d_geo": "D-Geo"}
_SCORES = {"acc": "accuracy", "macro_f1": "macro-F1", "bacc": "balanced accuracy"}


def write_report(run: str | Path) -> Path:
    """Write `report.html` into a finished run directory.

    Args:
        run: A run directory with recipe.yaml, fingerprint.json, summary.csv and metrics.json, and grid.safetensors
            where the recipe has a grid.

    Returns:
        The path of the page: one file under 3 MB that opens without a network.

    Raises:
        InputError: A file is missing or can't be read; it is named.
    """
    files = _read_run(Path(run))
    page = render("run.html.j2", _run_context(files))
    return write_page(files.folder / "report.html", page)


def write_demo_report(folder: str | Path) -> Path:
    """Write `report.html` into the demo's folder: the flow from simulated EEG to a student, stage by stage.

    Args:
        folder: What `ngd demo` filled: teacher/, grid.safetensors, faces/, baseline/ and run/.

    Returns:
        The path of the page.

    Raises:
        InputError: A file is missing or can't be read; it is named.
    """
    from ngd_timm.prototypes import PrototypeGrid

    folder = Path(folder)
    grid = PrototypeGrid.load(folder / "grid.safetensors")
    run, baseline = _read_run(folder / "run"), _read_run(folder / "baseline")
    trained_on = Path(run.recipe.data.root or "").name
    context = {
        "title": "The whole flow, on simulated data",
        "simulated": ["the EEG is simulated from known valence and arousal", "the faces are drawn by a program"],
        "teacher": _teacher_rows(folder / "teacher" / "scores.json"),
        "teacher_report": (folder / "teacher" / "report.html").is_file(),
        "grid": grid_context(grid, run.recipe.grid, run.recipe.data.classes),
        "domains": _domain_samples(folder / "faces", run.recipe.data.classes, trained_on),
        "trained_on": trained_on,
        "shares": _mean_shares(run.rows),
        "run": _run_context(run),
        "comparison": _comparison(baseline, run),
    }
    return write_page(folder / "report.html", render("demo.html.j2", context))


@dataclass(frozen=True)
class _Run:
    folder: Path
    recipe: Recipe
    recipe_text: str
    fingerprint: dict[str, Any]
    rows: list[dict[str, str]]
    metrics: dict[str, Any]
    grid: PrototypeGrid | None


def _read_run(folder: Path) -> _Run:
    from ngd_timm.prototypes import PrototypeGrid

    names = ("recipe.yaml", "fingerprint.json", "summary.csv", "metrics.json")
    missing = [n for n in names if not (folder / n).is_file()]
    if missing:
        raise InputError(f"{folder} is not a finished run: {', '.join(missing)} missing; train it to its end first")
    recipe = load_recipe(Recipe, folder / "recipe.yaml")
    with open(folder / "summary.csv", newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    if not rows or "epoch" not in rows[0]:
        raise InputError(f"{folder / 'summary.csv'} has no epochs; train the run first")
    grid_file = folder / "grid.safetensors"
    return _Run(
        folder=folder,
        recipe=recipe,
        recipe_text=(folder / "recipe.yaml").read_text(encoding="utf-8"),
        fingerprint=read_json(folder / "fingerprint.json"),
        rows=rows,
        metrics=read_json(folder / "metrics.json"),
        grid=PrototypeGrid.load(grid_file) if grid_file.is_file() else None,
    )


def _run_context(run: _Run) -> dict[str, Any]:
    recipe = run.recipe
    simulated = []
    if recipe.data.name == "schematic":
        simulated.append("the faces are drawn by a program")
    if run.grid is not None and "simulated" in str(run.grid.metadata).lower():
        simulated.append("the grid was built from simulated EEG")
    return {
        "title": f"Run {recipe.name}, seed {recipe.seed}",
        "simulated": simulated,
        "facts": _facts(run),
        "sets": [_set_context(key, entry, recipe.data.classes) for key, entry in run.metrics.items()],
        "figures": _training_figures(run),
        "grid": None if run.grid is None else grid_context(run.grid, recipe.grid, recipe.data.classes),
        "recipe_text": run.recipe_text,
        "fingerprint_text": json.dumps(run.fingerprint, indent=2, ensure_ascii=False),
        "score_names": _SCORES,
    }


def _facts(run: _Run) -> dict[str, str]:
    recipe = run.recipe
    student, loss = recipe.student, recipe.loss
    start = "ImageNet weights" if student.pretrained else "random weights"
    weights = [f"{loss.ce:g} × {_TERMS['ce']}"]
    weights += [f"{w:g} × {_TERMS[t]}" for t in ("kd", "proto_kd", "d_geo") if (w := getattr(loss, t)) > 0]
    if loss.proto_share is not None:
        weights.append(f"Proto-KD held at {100 * loss.proto_share:g} % of the gradient")
    seconds = _known(_column(run.rows, "seconds"))
    return {
        "Student": f"{student.backbone}, {student.image_size} × {student.image_size} px, "
        f"{'grey' if student.in_chans == 1 else 'colour'}, from {start if recipe.init is None else recipe.init}",
        "Faces": _faces(run),
        "Objective": " + ".join(weights),
        "Trained": f"{len(run.rows)} epochs"
        + (f", {clock(sum(seconds) / len(seconds))} each, {clock(sum(seconds))} in all" if seconds else ""),
        "Grid": _short(recipe.grid),
        "Logit teacher": _short(recipe.teacher_source),
        "Weights scored": "the last epoch's (the best on validation is kept beside it and not reported)",
    }


def _short(source: str | None) -> str:
    """What a recipe names; of an absolute path only its end, since where it lies is nobody's business."""
    if source is None:
        return "none"
    return Path(source).name if Path(source).is_absolute() else source


def _faces(run: _Run) -> str:
    train = run.fingerprint.get("data", {}).get("train", {})
    kept = f", {train['kept']:,} training pictures" if "kept" in train else ""
    return f"{run.recipe.data.name}{kept}, labels: {train.get('labels', run.recipe.data.label_rule)}"


def _set_context(key: str, entry: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    try:
        per_class = {c: entry["per_class"][c] for c in classes}
        confusion, n = entry["confusion"], int(entry["n"])
        scores = {p: {s: float(entry[p][s]) for s in _SCORES} for p in PROTOCOLS}
    except (KeyError, TypeError) as error:
        raise InputError(f"metrics.json: the entry '{key}' lacks {error}; evaluate the run again") from None
    support = [sum(row) for row in confusion]
    absent = [c for c, s in zip(classes, support, strict=True) if s == 0]
    commonest = max(range(len(classes)), key=support.__getitem__)
    return {
        "key": key,
        "n": n,
        "scores": scores,
        "intervals": {p: entry.get("ci95", {}).get(p, {}) for p in PROTOCOLS},
        "ece": entry.get("ece"),
        "absent": absent,
        "smallest": sorted(((s, c) for c, s in zip(classes, support, strict=True) if s > 0))[:2],
        "commonest": (classes[commonest], 100 * support[commonest] / n if n else 0.0),
        "per_class": per_class,
        "classes": list(classes),
        "matrix": [_matrix_row(i, row, classes) for i, row in enumerate(confusion)],
    }


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


def _column(rows: Sequence[Mapping[str, str]], name: str) -> list[float]:
    return [float(row[name]) if row.get(name) else math.nan for row in rows]


def _training_figures(run: _Run) -> list[dict[str, str]]:
    rows = run.rows
    epochs = _column(rows, "epoch")
    losses = _filled(rows, {label: t for t, label in _TERMS.items()})
    shares = _filled(rows, {label: f"share_{t}" for t, label in _TERMS.items()})
    valid = _filled(rows, {label: _ending(rows[0], f"valid_{s}") for s, label in _SCORES.items()})
    made = []
    if losses:
        alt = "Loss terms by epoch. " + _first_last(losses, "{:.3g}")
        svg = figures.line_figure("losses", alt, epochs, losses, "loss, before its weight", log=True)
        caption = (
            "Each term of the objective, averaged over an epoch's training pictures: lower is better, a straight "
            "fall means a steady factor (the axis is logarithmic), and heights of different terms don't compare."
        )
        made.append({"title": "Loss by term", "svg": svg, "caption": caption})
    if valid:
        alt = "Validation figures by epoch. " + _first_last(valid, "{:.1f} %")
        svg = figures.line_figure("validation", alt, epochs, valid, "percent")
        caption = (
            "Scores on the validation pictures after each epoch: higher is better; a gap between accuracy and the "
            "other two means that rare classes are missed."
        )
        made.append({"title": "Validation by epoch", "svg": svg, "caption": caption})
    if len(shares) > 1:
        alt = "Share of the gradient by term and epoch. " + _first_last(shares, "{:.1f} %")
        svg = figures.share_figure("shares", alt, epochs, shares)
        caption = (
            "How much of the pull on the student's features comes from each weighted term (gradient norms, percent of "
            "their sum): a term whose band is too thin to see changes little of what the student learns."
        )
        made.append({"title": "Gradient share by term", "svg": svg, "caption": caption})
    return made


def _mean_shares(rows: Sequence[Mapping[str, str]]) -> str:
    shares = _filled(rows, {label: f"share_{t}" for t, label in _TERMS.items()})
    return ", ".join(
        f"{label} gave {statistics.fmean(_known(values)):.1f}\N{NO-BREAK SPACE}%" for label, values in shares.items()
    )


def _known(values: Sequence[float]) -> list[float]:
    return [v for v in values if not math.isnan(v)]


def _filled(rows: Sequence[Mapping[str, str]], columns: Mapping[str, str | None]) -> dict[str, list[float]]:
    """The columns that exist and hold at least one number."""
    found = {label: _column(rows, name) for label, name in columns.items() if name is not None}
    return {label: values for label, values in found.items() if not all(map(math.isnan, values))}


def _ending(row: Mapping[str, str], suffix: str) -> str | None:
    return next((name for name in row if name.endswith(suffix)), None)


def _first_last(lines: Mapping[str, Sequence[float]], form: str) -> str:
    parts = []
    for label, values in lines.items():
        known = _known(values)
        parts.append(f"{label}: first {form.format(known[0])}, last {form.format(known[-1])}")
    return "; ".join(parts) + "."


def _comparison(baseline: _Run, run: _Run) -> dict[str, Any]:
    """Cross-entropy alone beside the full objective, on every set that both were tested on."""
    tests = [read_json(r.folder / "test.json") for r in (baseline, run)]
    if list(tests[0]) != list(tests[1]):
        raise InputError(f"test.json names {list(tests[0])} for one student and {list(tests[1])} for the other")
    rows = []
    for key in tests[0]:
        pair = [_set_context(key, test[key], run.recipe.data.classes) for test in tests]
        intervals = [p["intervals"]["8way"].get("macro_f1") for p in pair]
        apart = all(intervals) and (intervals[0][1] < intervals[1][0] or intervals[1][1] < intervals[0][0])
        rows.append(
            {
                "key": key,
                "n": pair[0]["n"],
                "students": [
                    {"name": name, "scores": p["scores"]["8way"], "intervals": p["intervals"]["8way"]}
                    for name, p in zip(("cross-entropy alone", "full objective"), pair, strict=True)
                ],
                "difference": pair[1]["scores"]["8way"]["macro_f1"] - pair[0]["scores"]["8way"]["macro_f1"],
                "apart": apart,
                "set": pair[1],
            }
        )
    return {"rows": rows, "score_names": _SCORES}


def _domain_samples(faces: Path, classes: Sequence[str], first: str) -> list[dict[str, Any]]:
    """One drawn face a class from each domain's test split, as data URIs; the domain named `first` leads."""
    from ngd_timm.data import load_fer

    domains = []
    for folder in sorted((p for p in faces.iterdir() if p.is_dir()), key=lambda p: (p.name != first, p.name)):
        rows = load_fer("schematic", str(folder), "test", classes=tuple(classes))
        labels = list(rows["label"])
        pictures = [
            {"name": name, "uri": png_uri(rows[labels.index(i)]["image"])}
            for i, name in enumerate(classes)
            if i in labels
        ]
        domains.append({"name": folder.name, "n": len(rows), "pictures": pictures})
    return domains


def _teacher_rows(path: Path) -> list[dict[str, Any]]:
    """One row a figure of the held-out people: the teacher's beside those of the linear models."""
    metrics = {"bacc": "high against low, balanced accuracy", "ccc": "concordance with the rating (CCC)"}
    decoders = ("teacher", "ridge", "logistic_regression")
    scores = read_json(path)
    try:
        rows = list(score_rows({who: scores[who] for who in decoders}))
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} lacks {error}; fit the teacher again") from None
    rows.sort(key=lambda row: (row["axis"] != "valence", row["metric"]))
    return [{**row, "who": WHO[row["who"]], "metric": metrics[row["metric"]]} for row in rows]
