"""The report of an EEG teacher: what was done, how far to trust it, and what it looks like on plane and scalp."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ngd_timm.core.affect import CLASSES, cell_distances, centers
from ngd_timm.core.citations import dataset_name
from ngd_timm.core.commands import public_fingerprint
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import read_json
from ngd_timm.core.paths import last_part, without_paths
from ngd_timm.core.recipe import load_recipe, to_yaml
from ngd_timm.grid.verdict import (
    METRICS,
    WHO,
    Test,
    decimal,
    exploratory_tests,
    grid_verdict,
    score_rows,
    span,
    teacher_verdict,
)
from ngd_timm.report.figures_teacher import Score, forest_figure, scalp_figure, stability_figure
from ngd_timm.report.page import clock, grid_context, render, write_page

if TYPE_CHECKING:
    from ngd_timm.core.teacher_recipe import TeacherRecipe

__all__ = ["write_teacher_report"]

_FILES = ("recipe.yaml", "fingerprint.json", "scores.json", "embeddings.safetensors", "cells.safetensors")
_AXES = ("valence", "arousal")
_MEANING = {"bacc": "high against low, balanced accuracy (bACC)", "ccc": "concordance with the rating (CCC)"}
_SHORT = {
    "teacher": "teacher",
    "ridge": "ridge",
    "logistic_regression": "logistic regression",
    "trial_number": "trial number",
}
_SIZE = 5  # of the grid that the page shows, and of cells.safetensors
_MIN_PEOPLE = 3  # a map of fewer would show a person, not a cell
_MAP_PIXELS = 64


@dataclass(frozen=True)
class _Teacher:
    recipe: TeacherRecipe
    fingerprint: dict[str, Any]
    scores: dict[str, Any]
    cells: dict[str, np.ndarray]

    @property
    def simulated(self) -> bool:
        return bool(self.scores.get("simulated") or self.fingerprint["simulated"])


def write_teacher_report(run: str | Path) -> Path:
    """Write `report.html` into a teacher's run directory.

    Args:
        run: A directory with recipe.yaml, fingerprint.json, scores.json, embeddings.safetensors and cells.safetensors.

    Returns:
        The path of the page: one file under 3 MB that opens without a network, and that holds averages over people
        only, no person's row and no path of a disk.

    Raises:
        InputError: A file is missing or can't be read; it is named.
    """
    from ngd_timm.eeg.teacher.consolidate import preview_grid

    folder = Path(run)
    teacher = _read(folder)
    try:
        context = _context(teacher)
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder}: scores.json or fingerprint.json lacks {error}; fit the teacher again") from None
    grid = preview_grid(folder, _MIN_PEOPLE)
    context["grid"] = None if grid is None else grid_context(grid, None, CLASSES)
    return write_page(folder / "report.html", render("teacher.html.j2", context))


def _read(folder: Path) -> _Teacher:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from ngd_timm.core.teacher_recipe import TeacherRecipe

    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder} is not a teacher run: no {', '.join(missing)}; make one with: ngd teacher fit RECIPE"
        )
    fingerprint = read_json(folder / "fingerprint.json")
    try:
        cells = load_file(folder / "cells.safetensors")
        shape = (len(fingerprint["bands"]), len(fingerprint["channels"]))
        fits = cells["z_mean"].shape == (_SIZE**2, *shape) and cells["slope"].shape == (len(_AXES), *shape)
        fits = fits and cells["slope_people"].shape == (len(_AXES),)
        fits = fits and cells["windows"].shape == cells["subjects"].shape == (_SIZE**2,)
    except (SafetensorError, KeyError, TypeError) as error:
        raise InputError(f"{folder / 'cells.safetensors'}: {' '.join(str(error).split())}; fit again") from None
    if not fits:
        raise InputError(f"{folder / 'cells.safetensors'} doesn't fit fingerprint.json's bands and channels; fit again")
    recipe = load_recipe(TeacherRecipe, folder / "recipe.yaml")
    return _Teacher(recipe, fingerprint, read_json(folder / "scores.json"), cells)


def _context(teacher: _Teacher) -> dict[str, Any]:
    recipe, scores = teacher.recipe, teacher.scores
    grids = scores["grids"]
    own = grids.get(str(_SIZE))
    exploratory = exploratory_tests(grids, declared=str(_SIZE))
    about_grid = []
    if own is not None:
        about_grid = grid_verdict(_SIZE, own["mantel_centered"]["p"], exploratory, own["stability"]["centered"])
    return {
        "title": f"EEG teacher {recipe.name}, seed {recipe.seed}",
        "simulated": ["the EEG was made up by a program, from a known valence and arousal"]
        if teacher.simulated
        else [],
        "lead": _lead(teacher),
        "about_teacher": teacher_verdict(scores),
        "about_grid": about_grid,
        "n": scores["n"],
        "protocol": scores["protocol"],
        "groups": _score_groups(scores),
        "forests": _forests(scores),
        "by_number": "trial_number" in scores,
        "sizes": [_size_row(size, entry, exploratory) for size, entry in grids.items()],
        "exploratory": len(exploratory),
        "declared": _SIZE if own is not None else None,
        "not_scored": scores.get("grids_not_scored", {}),
        "splits": max((entry["stability"]["splits"] for entry in grids.values()), default=0),
        "permutations": recipe.scores.permutations,
        "stability": stability_figure("stability", _stability_alt(grids), grids) if grids else None,
        "slopes": _slopes(teacher),
        "slopes_hidden": [axis for axis, people in zip(_AXES, _slope_people(teacher), strict=True) if not people],
        "patterns": _patterns(teacher),
        "facts": _facts(teacher),
        "notes": _spelled(teacher.fingerprint["notes"]),
        "support_notes": _spelled((teacher.fingerprint.get("support") or {}).get("notes", {})),
        "recipe_text": to_yaml(_without_folders(recipe)),
        "fingerprint_text": json.dumps(public_fingerprint(teacher.fingerprint), indent=2, ensure_ascii=False),
    }


def _lead(teacher: _Teacher) -> str:
    recipe, n = teacher.recipe, teacher.scores["n"]
    people = f"{n['subjects']} {'simulated people' if teacher.simulated else 'people'}"
    support = teacher.fingerprint.get("support")
    agree = (
        ""
        if support is None
        else f" It also had to agree with itself on unlabelled EEG of {dataset_name(support['dataset'])}."
    )
    return (
        f"A small network learned to read valence (unpleasant to pleasant) and arousal (calm to excited) from maps of "
        f"the EEG of {people} ({dataset_name(teacher.scores['dataset'])}), and was scored on people it had never seen: "
        f"they were dealt into {recipe.data.folds} folds, and each fold was told by a network fitted on the others."
        f"{agree} Its features of held-out people, averaged over the valence/arousal plane, are the prototype grid."
    )


def _score_groups(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = list(score_rows(scores))
    return [
        {
            "title": f"{axis}: {_MEANING[metric]}",
            "rows": [
                {
                    "who": WHO[row["who"]],
                    "value": decimal(row["value"]),
                    "ci": span(row["ci95"]),
                    "chance": decimal(row["chance"]),
                    "p": _p(row["p"]),
                }
                for row in rows
                if (row["axis"], row["metric"]) == (axis, metric)
            ],
        }
        for axis in _AXES
        for metric in METRICS
    ]


def _forests(scores: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = list(score_rows(scores))
    captions = {
        "bacc": "How often high is told from low, both counting alike: 0.5 is a coin, 1 is always right.",
        "ccc": "How closely the predicted rating follows the given one: 0 is not at all, 1 is exactly.",
    }
    made = []
    for metric, caption in captions.items():
        marks = [
            Score(axis, _SHORT[row["who"]], row["value"], row["ci95"][0], row["ci95"][1], row["chance"])
            for axis in _AXES
            for row in rows
            if (row["axis"], row["metric"]) == (axis, metric)
        ]
        told = "; ".join(f"{m.group}, {m.label}: {decimal(m.value)}, chance {decimal(m.chance)}" for m in marks)
        made.append(
            {
                "title": _MEANING[metric].capitalize().replace("(bacc)", "(bACC)").replace("(ccc)", "(CCC)"),
                "svg": forest_figure(f"forest-{metric}", f"Scores with intervals. {told}.", marks, METRICS[metric]),
                "caption": f"{caption} Bar: 95 % interval over people; upright tick: chance, from permuted ratings.",
            }
        )
    return made


def _size_row(size: str, entry: Mapping[str, Any], exploratory: Mapping[Test, float]) -> dict[str, Any]:
    plain, centered = entry["stability"]["cosine"], entry["stability"]["centered"]

    def p(test: str, raw: float) -> str:
        holm = exploratory.get((size, test))
        return f"p {_p(raw)}, {'declared' if holm is None else f'Holm {_p(holm)}'}"

    return {
        "size": f"{size}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}{size}",
        "filled": f"{entry['filled']} of {entry['cells']}",
        "mean_cosine": decimal(entry["mean_cosine"]),
        "plain": (decimal(plain["value"]), span(plain["ci95"])),
        "centered": (decimal(centered["value"]), span(centered["ci95"])),
        "chance": f"chance {decimal(centered['chance'])}, {p('stability', centered['p'])}",
        **{key: (decimal(entry[key]["r"]), p(key, entry[key]["p"])) for key in ("mantel", "mantel_centered")},
    }


def _stability_alt(grids: Mapping[str, Any]) -> str:
    parts = []
    for size, grid in grids.items():
        plain, centered = grid["stability"]["cosine"], grid["stability"]["centered"]
        told = f"{decimal(plain['value'])} as it is, {decimal(centered['value'])} centred"
        parts.append(f"{size} × {size}: {told}, chance {decimal(centered['chance'])}")
    return f"Cosine between grids of two halves of the people, by size. {'; '.join(parts)}."


def _slopes(teacher: _Teacher) -> str | None:
    enough = _slope_people(teacher)
    if not enough.any():
        return None
    maps, dots = _maps(teacher, teacher.cells["slope"][enough])
    rows = dict(zip((axis for axis, people in zip(_AXES, enough, strict=True) if people), maps, strict=True))
    alt = f"Scalp maps of the correlation of band power with {' and with '.join(rows)}, {_named_bands(teacher)}."
    return scalp_figure("slopes", alt, rows, teacher.fingerprint["bands"], dots, "correlation")


def _slope_people(teacher: _Teacher) -> np.ndarray:
    """(2,) bool: is an axis's slope an average over people, and not a person's?"""
    return teacher.cells["slope_people"] >= _MIN_PEOPLE


def _patterns(teacher: _Teacher) -> str | None:
    chosen = _telling_cells(teacher.cells["subjects"])
    if not chosen:
        return None
    maps, dots = _maps(teacher, teacher.cells["z_mean"][chosen])
    place, people = centers(_SIZE), teacher.cells["subjects"]
    rows = {
        f"valence {place[cell][0]:+.1f}, arousal {place[cell][1]:+.1f} ({people[cell]} people)": values
        for cell, values in zip(chosen, maps, strict=True)
    }
    alt = f"Scalp maps of mean band power in {len(rows)} cells of the plane, {_named_bands(teacher)}."
    return scalp_figure("patterns", alt, rows, teacher.fingerprint["bands"], dots, "mean z-scored log power (SD)")


def _maps(teacher: _Teacher, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps (…, H, W) of (…, C), and the electrodes (C, 2) in radii of a map."""
    from ngd_timm.eeg.topomap import TopomapOperator

    operator = TopomapOperator(teacher.fingerprint["channels"], size=_MAP_PIXELS)
    return operator(values), operator.positions


def _telling_cells(people: np.ndarray) -> list[int]:
    """The best filled cell of each corner's block of four, and the one nearest to the middle."""
    enough = people >= _MIN_PEOPLE
    row, column = np.divmod(np.arange(_SIZE**2), _SIZE)
    distance = cell_distances(_SIZE)
    last = _SIZE - 1
    chosen: list[int] = []
    for corner in ((0, last), (last, last), (0, 0), (last, 0)):
        block = np.flatnonzero(enough & (abs(row - corner[0]) <= 1) & (abs(column - corner[1]) <= 1))
        if len(block):
            chosen.append(
                int(min(block, key=lambda cell: (-people[cell], distance[corner[0] * _SIZE + corner[1], cell])))
            )
    rest = [int(cell) for cell in np.flatnonzero(enough) if cell not in chosen]
    if rest:
        chosen.append(min(rest, key=lambda cell: (distance[_SIZE**2 // 2, cell], -people[cell])))
    return chosen


def _facts(teacher: _Teacher) -> dict[str, str]:
    recipe, fingerprint, n = teacher.recipe, teacher.fingerprint, teacher.scores["n"]
    support, agreement = fingerprint.get("support"), teacher.scores["frame_agreement"][1:]
    seconds, pixels = teacher.scores["seconds"], recipe.teacher.image_size
    counts = f"{n['subjects']} people, {n['trials']:,} rated trials, {n['windows']:,} windows"
    facts = {"Recordings": f"{without_paths(fingerprint['dataset'])}: {counts}"}
    if support is not None:
        counts = f"{support['subjects']} people, {support['windows']:,} windows, without their ratings"
        facts["Unlabelled support"] = f"{without_paths(support['dataset'])}: {counts}"
    facts |= {
        "Folds": f"{recipe.data.folds}, by person: nobody is in training and test at once",
        "Bands": ", ".join(fingerprint["bands"]),
        "Electrodes": f"{len(fingerprint['channels'])}: {', '.join(fingerprint['channels'])}",
        "Network": f"{recipe.teacher.backbone} on {pixels} × {pixels} px maps of the scalp, one for each band; "
        f"features of {recipe.teacher.embedding_dim} numbers",
    }
    if agreement:
        facts["Folds' networks agree"] = (
            f"{decimal(min(agreement))} to {decimal(max(agreement))}: cosine on training data they share, turned "
            "into one frame"
        )
    facts["Time"] = f"{clock(seconds['total'])} in all, {clock(sum(seconds['fold']) / len(seconds['fold']))} a fold"
    return facts


def _named_bands(teacher: _Teacher) -> str:
    return "from left to right " + ", ".join(teacher.fingerprint["bands"])


def _spelled(notes: Mapping[str, Any]) -> dict[str, str]:
    return {key.replace("_", " "): str(without_paths(value)) for key, value in notes.items()}


def _without_folders(recipe: TeacherRecipe) -> TeacherRecipe:
    """The recipe with the names of its files and no folder of anybody's disk."""

    def name(path: str | None) -> str | None:
        return None if path is None else last_part(path)

    support = recipe.data.support
    data = recipe.data.model_copy(
        update={
            "root": name(recipe.data.root),
            "support": None if support is None else support.model_copy(update={"root": name(support.root)}),
        }
    )
    return recipe.model_copy(update={"out": name(recipe.out), "data": data})


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
