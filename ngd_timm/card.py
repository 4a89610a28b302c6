"""Model cards, written from what a file says of itself and from nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ngd_timm.errors import InputError
from ngd_timm.files import packaged, write_text
from ngd_timm.prototypes import PrototypeGrid

__all__ = ["build_commands", "grid_card", "write_grid_card"]

_CITATIONS = {
    "GAMEEMO": (
        'T. B. Alakus, M. Gonen, I. Turkoglu, "Database for an emotion recognition system based on EEG signals and '
        'various computer games - GAMEEMO", Biomedical Signal Processing and Control 60 (2020), 101951.'
    )
}
_NOTES = {
    "GAMEEMO": (
        "The powers are of z-scored windows, hence relative. People rated a game once, so that all windows of a trial "
        "share one label."
    )
}
_WHO = {"teacher": "teacher", "logistic_regression": "logistic regression, same folds"}
_METRIC = {"bacc": "bACC", "ccc": "CCC"}
_NEEDED = ("dataset", "subjects", "trials", "windows", "split", "scores", "mantel_r", "mantel_p", "subjects_per_cell")


def grid_card(grid: PrototypeGrid, name: str, command: str) -> str:
    """The card of a grid that `ngd_timm.eeg.teacher.build_grid` built, as Markdown with a YAML header.

    Args:
        grid: Its metadata carry provenance, scores and Mantel figures.
        name: Version or repository name.
        command: The shell lines that make the grid again.

    Raises:
        InputError: A grid without that metadata (a control, say): there is nothing to put on a card.
    """
    from jinja2 import Environment, StrictUndefined

    notes = grid.metadata
    missing = [key for key in _NEEDED if key not in notes]
    if missing:
        raise InputError(f"this grid's metadata lack {', '.join(missing)}; a card needs a grid made from a teacher run")
    simulated = "simulated" in notes
    dataset_name = notes["dataset"].split(" (")[0]
    scores = json.loads(notes["scores"])
    centered = grid if notes.get("centered") == "true" else grid.centered()
    template = (packaged("hub") / "templates" / "grid_card.md").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    axis = [f"{v:+.1f}" for v in grid.centers[:: grid.size, 0].tolist()]
    people = notes["subjects_per_cell"].split(",")
    cells = [f"{n} ({who})" if n else "–" for n, who in zip(grid.counts.tolist(), people, strict=True)]
    return environment.from_string(template).render(
        name=name,
        size=grid.size,
        simulated=simulated,
        dataset_name=dataset_name,
        verdict=_verdict(scores, float(notes["mantel_p"]), float(notes["mantel_p_centered"])),
        folds=notes["split"].split(",")[0],
        subjects=notes["subjects"],
        trials=notes["trials"],
        scores=list(_rows(scores)),
        mantel_r=notes["mantel_r"],
        mantel_p=notes["mantel_p"],
        mantel_r_centered=notes["mantel_r_centered"],
        mantel_p_centered=notes["mantel_p_centered"],
        permutations=notes["mantel_permutations"],
        mean_cosine=f"{grid.mean_cosine:.4f}",
        mean_cosine_centered=f"{centered.mean_cosine:.4f}",
        filled=grid.filled,
        cells=grid.size**2,
        axis=axis,
        table=[{"arousal": axis[j], "cells": cells[j :: grid.size]} for j in reversed(range(grid.size))],
        min_subjects=notes["min_subjects"],
        provenance=[*((k.replace("_", " "), v) for k, v in notes.items() if k in _PROVENANCE), ("sha256", grid.sha256)],
        command=command,
        note=_NOTES.get(dataset_name, ""),
        citation=_CITATIONS.get(dataset_name),
    )


def write_grid_card(grid: PrototypeGrid, path: str | Path, name: str, command: str) -> None:
    """Write `grid_card` to a file, atomically."""
    write_text(path, grid_card(grid, name, command))


def build_commands(run: str | Path, out: str | Path, size: int = 5, min_subjects: int = 1, center: bool = False) -> str:
    """The two shell lines that make a grid again from its teacher run, without a folder of anybody's disk.

    Raises:
        InputError: A directory without a teacher's recipe.
    """
    from ngd_timm.eeg.recipe import TeacherRecipe
    from ngd_timm.recipe import load_recipe

    run, out = Path(run), Path(out)
    recipe = load_recipe(TeacherRecipe, run / "recipe.yaml")
    flags = [f"--size {size}"] if size != 5 else []
    flags += [f"--min-subjects {min_subjects}"] if min_subjects != 1 else []
    flags += ["--center"] if center else []
    where = f"runs/{run.name}"
    build = (
        f"ngd prototypes build {where} --out {'/'.join(out.parts[-3:] if not out.is_absolute() else out.parts[-2:])}"
    )
    data = Path(recipe.data.root or "").name
    return f"ngd teacher fit {recipe.name} data.root={data} out={where}\n{' '.join([build, *flags])}"


_PROVENANCE = (
    "dataset",
    "data_sha256",
    "subjects",
    "trials",
    "windows",
    "channels",
    "bands",
    "normalisation",
    "teacher",
    "teacher_recipe_sha256",
    "split",
    "frame",
    "frame_agreement",
    "created",
    "built_with",
)


def _rows(scores: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "what": f"{_WHO[who]}, {axis} {_METRIC[metric]}",
            "value": f"{figure['value']:.3f}",
            "ci": f"{figure['ci95'][0]:.3f} to {figure['ci95'][1]:.3f}",
            "chance": f"{figure['chance']:.3f}",
            "p": f"{figure['p']:.4f}",
        }
        for who, axes in scores.items()
        for axis, metrics in axes.items()
        for metric, figure in metrics.items()
    ]


def _verdict(scores: dict[str, Any], mantel_p: float, mantel_p_centered: float) -> str:
    """Plain words for the figures, by rule."""
    teacher = scores["teacher"]
    above = [axis for axis in teacher if teacher[axis]["bacc"]["p"] < 0.05]
    below = [axis for axis in teacher if axis not in above]
    lines = []
    if above:
        weak = all(teacher[axis]["ccc"]["value"] < 0.5 for axis in above)
        strength = ", weakly" if weak else ""
        lines.append(f"On people it has not seen, the teacher tells high from low {' and '.join(above)}{strength}.")
    unsure = [axis for axis in above if teacher[axis]["bacc"]["ci95"][0] <= 0.5]
    if unsure:
        lines.append(f"The interval over people reaches chance for {' and '.join(unsure)}.")
    if below:
        lines.append(f"For {' and '.join(below)} it can't be told from chance on people it has not seen (p above .05).")
    simple = scores["logistic_regression"]
    better = [axis for axis in simple if simple[axis]["bacc"]["value"] >= teacher[axis]["bacc"]["value"]]
    if better:
        lines.append(f"A logistic regression does no worse for {' and '.join(better)}.")
    for label, p in (("as it is", mantel_p), ("centred", mantel_p_centered)):
        if p < 0.05:
            lines.append(f"The grid {label} follows the valence/arousal plane more than permuted ratings do (Mantel).")
        else:
            lines.append(
                f"The grid {label} does not follow the valence/arousal plane more than permuted ratings do (Mantel "
                f"p {p:.3f}): its geometry is no evidence of affect, and a student may gain no more from it than from "
                "a shuffled or a random grid."
            )
    return " ".join(lines)
