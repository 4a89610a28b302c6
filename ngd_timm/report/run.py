"""The report of a run: how good the student is, how it was trained, and what it must not be used for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ngd_timm.core.commands import public_fingerprint, without_folders
from ngd_timm.core.errors import InputError
from ngd_timm.core.recipe import StudentConfig, to_yaml
from ngd_timm.evaluate.metrics import METRIC_TITLES
from ngd_timm.evaluate.run import Run, read_run
from ngd_timm.report.curves import TERMS, column, known, training_figures
from ngd_timm.report.mistakes import MOST, worst_mistakes
from ngd_timm.report.page import clock, grid_context, render, write_page
from ngd_timm.report.sets import set_context

__all__ = ["run_context", "write_report"]


def write_report(run: str | Path, mistakes: int = 0) -> Path:
    """Write `report.html` into a finished run directory.

    Args:
        run: A run directory with recipe.yaml, fingerprint.json, summary.csv and metrics.json, grid.safetensors where
            the recipe has a grid, and predictions/ where the run kept them (older runs did not).
        mistakes: Show so many of the surest wrong answers of each set as thumbnails. The page then holds faces and is
            not for publishing; it says so itself.

    Returns:
        The path of the page: one file under 3 MB that opens without a network.

    Raises:
        InputError: A file is missing or can't be read; it is named. Or mistakes are asked for, and the pictures are no
            longer where the run found them.
    """
    if not 0 <= mistakes <= MOST:
        raise InputError(f"mistakes={mistakes}; between 0 and {MOST} of each data set can be shown")
    files = read_run(run)
    if mistakes and not files.predictions:
        raise InputError(f"{files.folder} keeps no predictions, so its mistakes can't be shown; evaluate the run again")
    context = run_context(files)
    context["mistakes"] = {
        key: worst_mistakes(files.recipe, key, said, mistakes) for key, said in files.predictions.items() if mistakes
    }
    return write_page(files.folder / "report.html", render("run.html.j2", context))


def run_context(run: Run) -> dict[str, Any]:
    """What the templates say and show of a run."""
    recipe = run.recipe
    simulated = []
    if recipe.data.name == "schematic":
        simulated.append("the faces are drawn by a program")
    if run.grid is not None and "simulated" in str(run.grid.metadata).lower():
        simulated.append("the grid was built from simulated EEG")
    classes, sigma = recipe.data.classes, recipe.loss.sigma
    return {
        "title": f"Run {recipe.name}, seed {recipe.seed}",
        "simulated": simulated,
        "facts": _facts(run),
        "sets": [
            set_context(key, entry, classes, run.predictions.get(key), run.grid, sigma, name=f"set{i}")
            for i, (key, entry) in enumerate(run.metrics.items())
        ],
        "unpredicted": [key for key in run.metrics if key not in run.predictions],
        "mistakes": {},
        "figures": training_figures(run.rows),
        "grid": None if run.grid is None else grid_context(run.grid, recipe.grid, classes),
        "recipe_text": to_yaml(without_folders(recipe)),
        "fingerprint_text": json.dumps(public_fingerprint(run.fingerprint), indent=2, ensure_ascii=False),
        "score_names": METRIC_TITLES,
    }


def _saved_as(student: StudentConfig, temperatures: Sequence[float]) -> dict[str, str]:
    """Whether the student that is saved and scored differs from the one that was trained."""
    how = [] if student.weights == "float32" else [f"matrices in {student.weights}"]
    if student.logit_adjustment:
        how.append(f"logits less {student.logit_adjustment:g} × the log prior of the labels drawn in training")
    if temperatures:
        how.append(f"logits divided by {temperatures[-1]:g}, a temperature fitted on validation")
    return {"Saved with": ", ".join(how)} if how else {}


def _facts(run: Run) -> dict[str, str]:
    recipe = without_folders(run.recipe)
    student, loss = recipe.student, recipe.loss
    start = recipe.init if recipe.init else "ImageNet weights" if student.pretrained else "random weights"
    weights = [f"{loss.ce:g} × {TERMS['ce']}"]
    weights += [f"{w:g} × {TERMS[t]}" for t in ("kd", "proto_kd", "d_geo") if (w := getattr(loss, t)) > 0]
    if loss.proto_share is not None:
        weights.append(f"Proto-KD held at {100 * loss.proto_share:g} % of the gradient")
    seconds = known(column(run.rows, "seconds"))
    return {
        "Student": f"{student.backbone}, {student.image_size} × {student.image_size} px, "
        f"{'grey' if student.in_chans == 1 else 'colour'}, from {start}",
        "Faces": _faces(run),
        "Objective": " + ".join(weights),
        "Trained": f"{len(run.rows)} epochs"
        + (f", {clock(sum(seconds) / len(seconds))} each, {clock(sum(seconds))} in all" if seconds else ""),
        "Grid": (recipe.grid or "none") + (f", control: {recipe.grid_control}" * (recipe.grid_control != "none")),
        "Logit teacher": ", ".join(recipe.teacher_sources) or "none",
        **_saved_as(student, known(column(run.rows, "temperature"))),
        "Weights scored": "the last epoch's (the best on validation is kept beside it and not reported)",
    }


def _faces(run: Run) -> str:
    train = run.fingerprint.get("data", {}).get("train", {})
    kept = f", {train['kept']:,} training pictures" if "kept" in train else ""
    return f"{run.recipe.data.name}{kept}, labels: {train.get('labels', run.recipe.data.label_rule)}"
