"""The page of an EEG teacher: what was done, how far to trust it, and what it looks like on plane and scalp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ngd_timm.core.affect import AXES, CLASSES, cell_distances, centers
from ngd_timm.core.citations import dataset_name, dataset_names
from ngd_timm.core.commands import without_folders
from ngd_timm.core.errors import InputError, one_line
from ngd_timm.core.paths import without_paths
from ngd_timm.core.recipe import to_yaml
from ngd_timm.grid.verdict import (
    FOLDS,
    METRICS,
    UNSEEN,
    WHO,
    decimal,
    exploratory_tests,
    fold_rows,
    folds_verdict,
    grid_verdict,
    score_rows,
    teacher_verdict,
)
from ngd_timm.report.page import grid_context, pretty_fingerprint, render
from ngd_timm.report.plots import plot_forest, plot_scalps, plot_stability

if TYPE_CHECKING:
    from ngd_timm.eeg.teacher.fitted import FittedTeacher

_SIZE = 5  # of the grid that the page shows, and of cells.safetensors
_MIN_SUBJECTS = 3  # a map of fewer would show a person, not a cell
_MAP_PIXELS = 64
_LARGEST = 1e9  # what a map can be drawn of


def write_teacher_report(run: str | Path) -> Path:
    """Write `report.html` into a teacher's run directory: averages over subjects only, and no path of a disk."""
    from ngd_timm.eeg.teacher.consolidate import preview_grid
    from ngd_timm.eeg.teacher.fitted import read_teacher

    folder = Path(run)
    teacher = read_teacher(folder, "cells.safetensors")
    cells = _read_cells(folder / "cells.safetensors", teacher.fingerprint)
    context, grid = _context(teacher, cells), preview_grid(teacher, _MIN_SUBJECTS)
    context["grid"] = None if grid is None else grid_context(grid, CLASSES)
    return render("teacher.html.j2", context, folder / "report.html")


def _read_cells(file: Path, fingerprint: Mapping[str, Any]) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        cells = load_file(file)
        map_shape = (len(fingerprint["bands"]), len(fingerprint["channels"]))
        shapes = {"z_mean": (_SIZE**2, *map_shape), "slope": (len(AXES), *map_shape), "slope_people": (len(AXES),)}
        shapes |= {"windows": (_SIZE**2,), "subjects": (_SIZE**2,)}
        fits = all(cells[name].shape == shape for name, shape in shapes.items())
        fits &= all(cells[name].dtype.kind == "i" for name in ("windows", "subjects", "slope_people"))
        fits &= all(bool((np.abs(cells[name]) <= _LARGEST).all()) for name in shapes)
    except (SafetensorError, KeyError, TypeError) as error:
        raise InputError(f"{file}: {one_line(error)}; fit again") from None
    if not fits:
        raise InputError(f"{file} doesn't fit fingerprint.json's bands and channels; fit again")
    return cells


def _context(teacher: FittedTeacher, cells: Mapping[str, np.ndarray]) -> dict[str, Any]:
    recipe, scores, fingerprint = teacher.recipe, teacher.scores, without_paths(teacher.fingerprint)
    grids, support = scores["grids"], fingerprint.get("support")
    own, declared = grids.get(str(_SIZE)), str(_SIZE)
    exploratory = exploratory_tests(grids, declared)
    about_grid = own and grid_verdict(
        _SIZE, own["mantel_centered"]["p"], exploratory, own["stability"]["centered"], recipe.data.folds_by
    )
    simulated = scores.get("simulated") or teacher.fingerprint["simulated"]
    shown = [axis for axis, n in zip(AXES, cells["slope_people"], strict=True) if n >= _MIN_SUBJECTS]
    rows = list(score_rows(scores))
    groups = {
        (axis, metric): [row for row in rows if (row["axis"], row["metric"]) == (axis, metric)]
        for axis in AXES
        for metric in METRICS
    }
    return {
        "title": f"EEG teacher {recipe.name}, seed {recipe.seed}",
        "simulated": ["the EEG was made up by a program, from a known valence and arousal"] if simulated else [],
        "recipe": recipe,
        "scores": scores,
        "fingerprint": fingerprint,
        "dataset": " and ".join(dataset_names(scores["dataset"])),
        "support": support and dataset_name(support["dataset"]),
        "about_teacher": [*teacher_verdict(scores), folds_verdict(scores)],
        "fold_rows": list(fold_rows(scores)),
        "folds_in_words": FOLDS,
        "unseen": UNSEEN[recipe.data.folds_by],
        "about_grid": about_grid,
        "groups": groups,
        "forests": {metric: _forest(metric, groups) for metric in METRICS},
        "exploratory": exploratory,
        "declared": _SIZE if own else None,
        "stability": plot_stability("stability", _stability_alt(grids), grids) if grids else None,
        "slopes": _slopes(fingerprint, cells, shown),
        "slopes_hidden": [axis for axis in AXES if axis not in shown],
        "patterns": _patterns(fingerprint, cells),
        "recipe_text": to_yaml(without_folders(recipe)),
        "fingerprint_text": pretty_fingerprint(teacher.fingerprint),
    }


def _forest(metric: str, groups: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> str:
    names = {who: name.partition(",")[0] for who, name in WHO.items()}
    scores = {axis: {names[row["who"]]: row for row in groups[axis, metric]} for axis in AXES}
    parts = [
        f"{axis}, {name}: {decimal(row['value'])}, chance {decimal(row['chance'])}"
        for axis, by_name in scores.items()
        for name, row in by_name.items()
    ]
    return plot_forest(f"forest-{metric}", f"Scores with intervals. {'; '.join(parts)}.", scores, METRICS[metric])


def _stability_alt(grids: Mapping[str, Any]) -> str:
    parts = []
    for size, grid in grids.items():
        plain, centered = grid["stability"]["cosine"], grid["stability"]["centered"]
        values = f"{decimal(plain['value'])} as it is, {decimal(centered['value'])} centred"
        parts.append(f"{size} × {size}: {values}, chance {decimal(centered['chance'])}")
    return f"Cosine between grids of two halves of the subjects, by size. {'; '.join(parts)}."


def _slopes(fingerprint: Mapping[str, Any], cells: Mapping[str, np.ndarray], axes: Sequence[str]) -> str | None:
    """The axes whose slope is an average over enough subjects."""
    if not axes:
        return None
    rows = {axis: cells["slope"][AXES.index(axis)] for axis in axes}
    what = f"the correlation of band power with {' and with '.join(axes)}"
    return _scalps(fingerprint, "slopes", what, rows, "correlation")


def _patterns(fingerprint: Mapping[str, Any], cells: Mapping[str, np.ndarray]) -> str | None:
    place, subjects = centers(_SIZE), cells["subjects"]
    shown = _telling_cells(subjects)
    if not shown:
        return None
    titles = [f"valence {place[c][0]:+.1f}, arousal {place[c][1]:+.1f} ({subjects[c]} people)" for c in shown]
    rows = dict(zip(titles, cells["z_mean"][shown], strict=True))
    what = f"mean band power in {len(rows)} cells of the plane"
    return _scalps(fingerprint, "patterns", what, rows, "mean z-scored log power (SD)")


def _scalps(fingerprint: Mapping[str, Any], name: str, what: str, rows: Mapping[str, np.ndarray], unit: str) -> str:
    """Maps of the (B, C) values of each row."""
    from ngd_timm.eeg.topomap import TopomapOperator

    bands = fingerprint["bands"]
    operator = TopomapOperator(fingerprint["channels"], size=_MAP_PIXELS)
    maps = {title: operator(values) for title, values in rows.items()}
    alt = f"Scalp maps of {what}, from left to right {', '.join(bands)}."
    return plot_scalps(name, alt, maps, bands, operator.positions, unit)


def _telling_cells(subjects: np.ndarray) -> list[int]:
    """The fullest cell of each corner's block of four, and the one nearest to the middle."""
    enough = subjects >= _MIN_SUBJECTS
    row, column = np.divmod(np.arange(_SIZE**2), _SIZE)
    distance = cell_distances(_SIZE)
    last = _SIZE - 1
    cells: list[int] = []
    for i, j in ((0, last), (last, last), (0, 0), (last, 0)):
        block = np.flatnonzero(enough & (abs(row - i) <= 1) & (abs(column - j) <= 1))
        if len(block):
            cells.append(int(min(block, key=lambda cell: (-subjects[cell], distance[i * _SIZE + j, cell]))))
    rest = [int(cell) for cell in np.flatnonzero(enough) if cell not in cells]
    if rest:
        cells.append(min(rest, key=lambda cell: (distance[_SIZE**2 // 2, cell], -subjects[cell])))
    return cells
