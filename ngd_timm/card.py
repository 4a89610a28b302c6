"""Model cards, written from what a file says of itself and from nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ngd_timm.errors import InputError
from ngd_timm.files import packaged, write_text
from ngd_timm.prototypes import PrototypeGrid
from ngd_timm.verdict import METRICS, WHO, grid_verdict, score_rows, sizes_verdict, teacher_verdict

__all__ = ["build_commands", "dataset_name", "grid_card", "write_grid_card"]

_CITATIONS = {
    "GAMEEMO": (
        'T. B. Alakus, M. Gonen, I. Turkoglu, "Database for an emotion recognition system based on EEG signals and '
        'various computer games - GAMEEMO", Biomedical Signal Processing and Control 60 (2020), 101951.'
    ),
    "DREAMER": (
        'S. Katsigiannis, N. Ramzan, "DREAMER: A database for emotion recognition through EEG and ECG signals from '
        'wireless low-cost off-the-shelf devices", IEEE Journal of Biomedical and Health Informatics 22 (2018), 98-107.'
    ),
    "MAHNOB-HCI": (
        'M. Soleymani, J. Lichtenauer, T. Pun, M. Pantic, "A multimodal database for affect recognition and implicit '
        'tagging", IEEE Transactions on Affective Computing 3 (2012), 42-55.'
    ),
    "DEAP": (
        'S. Koelstra et al., "DEAP: A database for emotion analysis using physiological signals", IEEE Transactions on '
        "Affective Computing 3 (2012), 18-31."
    ),
}
_NOTES = {
    "GAMEEMO": (
        "The powers are of z-scored windows, hence relative. People rated a game once, so that all windows of a trial "
        "share one label."
    )
}
# What people did while their EEG was recorded.
_DOING = {
    "GAMEEMO": "playing games",
    "DREAMER": "watching film clips",
    "MAHNOB-HCI": "watching film clips",
    "DEAP": "watching music videos",
}
_NEEDED = ("dataset", "subjects", "trials", "windows", "split", "scores", "mantel_r", "mantel_p", "subjects_per_cell")


def grid_card(grid: PrototypeGrid, name: str, command: str) -> str:
    """The card of a grid that `ngd_timm.eeg.consolidate.build_grid` built, as Markdown with a YAML header.

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
    name_of_set, support = dataset_name(notes["dataset"]), dataset_name(notes.get("support", ""))
    scores = json.loads(notes["scores"])
    grids = json.loads(notes.get("grids", "{}"))
    halves = grids[str(grid.size)]["stability"]["centered"] if str(grid.size) in grids else None
    sentences = [
        *teacher_verdict(scores),
        *grid_verdict(grid.size, float(notes["mantel_p"]), float(notes["mantel_p_centered"]), halves),
        *sizes_verdict(grids),
    ]
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
        source=_source(name_of_set, support),
        verdict=" ".join(sentences),
        folds=notes["split"].split(",")[0],
        subjects=notes["subjects"],
        trials=notes["trials"],
        scores=[_score_row(row) for row in score_rows(scores)],
        by_number="trial_number" in scores,
        grids=[_size_row(size, entry) for size, entry in grids.items()],
        preprocessing=json.loads(notes.get("preprocessing", "{}")),
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
        note=_NOTES.get(name_of_set, ""),
        doing=_DOING.get(name_of_set),
        citations=[_CITATIONS[name] for name in (name_of_set, support) if name in _CITATIONS],
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
    data = f"data.root={Path(recipe.data.root or '').name}"
    if recipe.data.support is not None:
        data += f" data.support.root={Path(recipe.data.support.root or '').name}"
    return f"ngd teacher fit {recipe.name} {data} out={where}\n{' '.join([build, *flags])}"


_PROVENANCE = (
    "dataset",
    "support",
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


def dataset_name(dataset: str) -> str:
    """The name at the head of a data set's description.

    Example:
        >>> dataset_name("DREAMER (Katsigiannis & Ramzan 2018), 14-channel Emotiv")
        'DREAMER'
    """
    return re.split(r" \(|[,;:]", dataset)[0].strip()


def _source(dataset: str, support: str) -> str:
    """What the grid is made of, against what the paper made its own of; true for every data set."""
    if dataset != "DREAMER":
        return (
            f"It is built from {dataset}, **not** from DREAMER and MAHNOB-HCI as in the paper whose method it follows\n"
            "(NeuroGaze-Distill, arXiv 2509.11916): it is not the paper's grid."
        )
    beside = (
        "with MAHNOB-HCI as unlabelled support: the paper's own sources."
        if support == "MAHNOB-HCI"
        else "the paper's own source of ratings, without MAHNOB-HCI, the paper's unlabelled support."
    )
    return (
        f"It is built from {dataset}, {beside} The method is NeuroGaze-Distill's\n(arXiv 2509.11916), whose authors "
        "published neither code nor grid: this one follows their description and is **not** theirs."
    )


def _score_row(row: dict[str, Any]) -> dict[str, str]:
    return {
        "what": f"{WHO[row['who']]}, {row['axis']} {METRICS[row['metric']]}",
        "value": f"{round(row['value'], 3) + 0.0:.3f}",  # the sum turns -0.000 into 0.000
        "ci": f"{row['ci95'][0]:.3f} to {row['ci95'][1]:.3f}",
        "chance": f"{round(row['chance'], 3) + 0.0:.3f}",
        "p": f"{row['p']:.4f}",
    }


def _size_row(size: str, entry: dict[str, Any]) -> dict[str, str]:
    def spread(figure: dict[str, Any]) -> str:
        return f"{figure['value']:.2f} ({figure['ci95'][0]:.2f} to {figure['ci95'][1]:.2f})"

    centered = entry["stability"]["centered"]
    return {
        "size": f"{size} x {size}",
        "filled": f"{entry['filled']} of {entry['cells']}",
        "cosine": spread(entry["stability"]["cosine"]),
        "centered": f"{spread(centered)}, chance {centered['chance']:.2f}, p = {centered['p']:.4f}",
        "mantel": f"{entry['mantel']['r']:.2f}, p = {entry['mantel']['p']:.4f}",
        "mantel_centered": f"{entry['mantel_centered']['r']:.2f}, p = {entry['mantel_centered']['p']:.4f}",
    }
