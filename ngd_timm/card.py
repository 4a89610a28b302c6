"""Model cards, written from what a file says of itself and from nothing else."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ngd_timm.errors import InputError
from ngd_timm.files import packaged, write_text
from ngd_timm.paths import last_part, without_paths
from ngd_timm.prototypes import PrototypeGrid
from ngd_timm.recipe import load_recipe, recipe_names
from ngd_timm.verdict import METRICS, WHO, decimal, grid_verdict, score_rows, sizes_verdict, span, teacher_verdict

if TYPE_CHECKING:
    from ngd_timm.eeg.recipe import TeacherRecipe

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
_JSON = ("scores", "grids", "preprocessing")  # metadata whose text is an object
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

    notes = {key: value if key in _JSON else without_paths(value) for key, value in grid.metadata.items()}
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
        preprocessing=without_paths(json.loads(notes.get("preprocessing", "{}"))),
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

    Args:
        run: The teacher run; its recipe is told as a packaged one and what differs from that, or as recipe.yaml.
        out: The grid's file; its folders are told only below hub/, where the packaged grids lie.
        size: As in `ngd_timm.eeg.consolidate.build_grid`.
        min_subjects: Likewise.
        center: Likewise.

    Raises:
        InputError: A directory without a teacher's recipe.
    """
    from ngd_timm.eeg.recipe import TeacherRecipe

    recipe = load_recipe(TeacherRecipe, Path(run) / "recipe.yaml")
    where = f"runs/{recipe.name}-{recipe.seed}"  # where a run goes that isn't told where to
    flags = [f"--size {size}"] if size != 5 else []
    flags += [f"--min-subjects {min_subjects}"] if min_subjects != 1 else []
    flags += ["--center"] if center else []
    fit = " ".join(["ngd teacher fit", *_fit_arguments(recipe, where)])
    return f"{fit}\n{' '.join([f'ngd prototypes build {where} --out {_shown_path(Path(out))}', *flags])}"


def _fit_arguments(recipe: TeacherRecipe, where: str) -> Iterator[str]:
    own, packaged_one = dict(_leaves(_told(recipe))), _packaged(recipe)
    if packaged_one is None:
        # A run's recipe.yaml names the run's own folder, which is full, and data by their place on that disk.
        yield "recipe.yaml"
        changed = {key: value for key, value in own.items() if key.endswith("root") and value is not None}
        changed["out"] = where
    else:
        yield recipe.name
        before = dict(_leaves(_told(packaged_one)))
        changed = {key: value for key, value in own.items() if key not in before or value != before[key]}
    for key, value in changed.items():
        yield shlex.quote(f"{key}={_as_yaml(value)}")


def _packaged(recipe: TeacherRecipe) -> TeacherRecipe | None:
    if recipe.name not in recipe_names():
        return None
    try:
        return load_recipe(type(recipe), recipe.name)
    except InputError:  # a student's
        return None


def _told(recipe: TeacherRecipe) -> dict[str, Any]:
    """What a shell line says of a recipe: data by their names, and nothing that is about one machine only."""
    told = recipe.model_dump(mode="json", exclude={"out": True, "device": True, "data": {"cache": True}})
    for data in (told["data"], told["data"]["support"]):
        if data is not None and data["root"] is not None:
            data["root"] = last_part(data["root"])
    return told


def _leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _as_yaml(value: Any) -> str:
    """A value as an override reads it back: names bare, all else as JSON."""
    if isinstance(value, list):
        return f"[{', '.join(map(_as_yaml, value))}]"
    bare = isinstance(value, str) and re.fullmatch(r"[^\W\d_](?:[\w./ -]*\w)?", value) is not None
    return value if bare and yaml.safe_load(value) == value else json.dumps(value, ensure_ascii=False)


def _shown_path(path: Path) -> str:
    below_hub = path.parts[:1] == ("hub",) and ".." not in path.parts
    return shlex.quote(path.as_posix() if below_hub else last_part(str(path)))


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
        "value": decimal(row["value"], 3),
        "ci": span(row["ci95"], 3),
        "chance": decimal(row["chance"], 3),
        "p": f"{row['p']:.4f}",
    }


def _size_row(size: str, entry: dict[str, Any]) -> dict[str, str]:
    halves, centered = entry["stability"], entry["stability"]["centered"]
    agree = {key: f"{decimal(halves[key]['value'])} ({span(halves[key]['ci95'])})" for key in ("cosine", "centered")}
    follow = {key: f"{decimal(entry[key]['r'])}, p = {entry[key]['p']:.4f}" for key in ("mantel", "mantel_centered")}
    return {
        "size": f"{size} x {size}",
        "filled": f"{entry['filled']} of {entry['cells']}",
        "cosine": agree["cosine"],
        "centered": f"{agree['centered']}, chance {decimal(centered['chance'])}, p = {centered['p']:.4f}",
        **follow,
    }
