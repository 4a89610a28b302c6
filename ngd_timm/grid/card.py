"""The card and the licence of a grid, written from what its file says of itself and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ngd_timm.core.citations import EEG, FORBIDDEN, METHOD, dataset_name
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import packaged, write_text
from ngd_timm.core.paths import without_paths
from ngd_timm.grid.prototypes import PrototypeGrid, grid_versions
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

__all__ = ["card_header", "grid_card", "grid_findings", "grid_licence", "render_card", "write_grid_card"]

_JSON = ("scores", "grids", "preprocessing")  # metadata whose text is an object
_NEEDED = ("dataset", "subjects_per_cell", "min_subjects")


def grid_card(grid: PrototypeGrid, name: str, repo_id: str | None = None) -> str:
    """The card of a grid, as Markdown with a YAML header, made of the grid and its metadata alone.

    Args:
        grid: Built from people's recordings; what `build_grid` of a teacher's run records is shown, and what
            a grid built by hand lacks is said to be unknown.
        name: Version, file or repository name.
        repo_id: Where on the Hub it goes to.

    Raises:
        InputError: A grid that doesn't say whose data it holds (a control, say): there is nothing to put on a card.
    """
    notes = {key: value if key in _JSON else without_paths(value) for key, value in grid.metadata.items()}
    missing = [key for key in _NEEDED if key not in notes]
    if missing:
        raise InputError(
            f"this grid's metadata lack {', '.join(missing)}; a card needs a grid made from a teacher run, or built "
            "with subjects=, min_subjects= and metadata={'dataset': ...}"
        )
    set_name, support = dataset_name(notes["dataset"]), dataset_name(notes.get("support", ""))
    credits = [EEG[key] for key in (set_name, support) if key in EEG]
    scores, grids = (json.loads(notes.get(key, "{}")) for key in ("scores", "grids"))
    exploratory = _exploratory(grid, grids)
    plain_holm = exploratory.get(("own", "mantel"), exploratory.get((str(grid.size), "mantel")))
    centered = grid if notes.get("centered") == "true" else grid.centered()
    axis = [f"{v:+.1f}" for v in grid.centers[:: grid.size, 0].tolist()]
    people = notes["subjects_per_cell"].split(",")
    cells = [f"{n} ({who})" if n else "–" for n, who in zip(grid.counts.tolist(), people, strict=True)]
    return render_card(
        "grid_card.md",
        header=card_header(
            library_name="ngd_timm",
            tags=["eeg", "valence-arousal", "prototypes", "knowledge-distillation", "timm"],
            datasets=[credit.title.lower() for credit in credits],
        ),
        name=name,
        opened_by=_opened_by(name, repo_id),
        size=grid.size,
        simulated="simulated" in notes,
        source=_source(set_name, support),
        verdict=" ".join([*teacher_verdict(scores), *grid_findings(grid)]) if scores else "",
        folds=notes.get("split", "").split(",")[0],
        subjects=notes.get("subjects"),
        trials=notes.get("trials"),
        scores=[_score_row(row) for row in score_rows(scores)] if scores else [],
        by_number="trial_number" in scores,
        grids=[_size_row(size, entry, exploratory) for size, entry in grids.items()],
        preprocessing=without_paths(json.loads(notes.get("preprocessing", "{}"))),
        mantel_r=notes.get("mantel_r", f"{grid.mantel_r:.4f}"),
        mantel_p=_corrected(notes.get("mantel_p"), plain_holm),
        mantel_r_centered=notes.get("mantel_r_centered"),
        mantel_p_centered=notes.get("mantel_p_centered"),
        exploratory=len(exploratory),
        permutations=notes.get("mantel_permutations"),
        mean_cosine=f"{grid.mean_cosine:.4f}",
        mean_cosine_centered=f"{centered.mean_cosine:.4f}",
        filled=grid.filled,
        cells=grid.size**2,
        axis=axis,
        table=[{"arousal": axis[j], "cells": cells[j :: grid.size]} for j in reversed(range(grid.size))],
        min_subjects=notes["min_subjects"],
        fewest=_fewest(notes),
        provenance=[*((k.replace("_", " "), v) for k, v in notes.items() if k in _PROVENANCE), ("sha256", grid.sha256)],
        command=notes.get("command"),
        credits=credits,
        method=METHOD,
        forbidden=FORBIDDEN,
    )


def grid_findings(grid: PrototypeGrid) -> list[str]:
    """What the tests in a grid's metadata say of it, the declared one first; nothing where none is recorded.

    Example:
        >>> grid_findings(PrototypeGrid.default("gameemo-v2"))[0][:74]
        'By the declared test (Mantel of the centred grid at its own size, 5 x 5; p'
    """
    notes = grid.metadata
    if "mantel_p_centered" not in notes:
        return []
    grids = json.loads(notes.get("grids", "{}"))
    halves = grids[str(grid.size)]["stability"]["centered"] if str(grid.size) in grids else None
    return grid_verdict(grid.size, float(notes["mantel_p_centered"]), _exploratory(grid, grids), halves)


def card_header(
    *, library_name: str, tags: list[str], datasets: Sequence[str], pipeline_tag: str | None = None, **more: Any
) -> str:
    """The YAML at the head of a card, without its dashes; every artifact of ours is for research under its LICENSE."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        license="other",
        license_name="research-use",
        license_link="LICENSE",
        library_name=library_name,
        pipeline_tag=pipeline_tag,
        tags=tags,
        datasets=list(datasets) or None,
        **more,
    )
    return data.to_yaml().strip()


def render_card(template: str, **context: Any) -> str:
    """A text of `hub/templates/` filled in; a name that the context lacks is an error."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    text = (packaged("hub") / "templates" / template).read_text(encoding="utf-8")
    return environment.from_string(text).render(**context)


def grid_licence(grid: PrototypeGrid, name: str) -> str:
    """The terms of a grid, as the text of its LICENSE file.

    Raises:
        InputError: As `grid_card`.
    """
    if "dataset" not in grid.metadata:
        raise InputError("this grid's metadata lack dataset; a licence has to say whose data are in the grid")
    notes = without_paths(grid.metadata)
    credits = [EEG[key] for key in map(dataset_name, (notes["dataset"], notes.get("support", ""))) if key in EEG]
    people = f", {notes['subjects']} people" if "subjects" in notes else ""
    whose = [
        "grid.safetensors holds averages of a neural network's features of EEG band power from "
        f"{notes['dataset']}{people}.",
        *(f"{credit.terms} Cite: {credit.citation}" for credit in credits),
        "No recording, no row of a single person and no rating is in the grid. Every cell that has data averages at "
        f"least {_fewest(notes)} people.",
    ]
    return render_card(
        "grid_licence.txt",
        name=name,
        simulated="simulated" in notes,
        whose=" ".join(whose),
        never=f"Use it, or a model distilled from it, {FORBIDDEN}; or try to recover a participant's data from it.",
    )


def write_grid_card(grid: PrototypeGrid, path: str | Path, name: str) -> None:
    """Write `grid_card` to a file, atomically."""
    write_text(path, grid_card(grid, name))


def _fewest(notes: Mapping[str, str]) -> int:
    """People behind the cell that has the fewest; 0 where the file doesn't say."""
    return min((int(n) for n in notes.get("subjects_per_cell", "").split(",") if n not in ("", "0")), default=0)


def _opened_by(name: str, repo_id: str | None) -> str:
    if repo_id is not None:
        return f'from_pretrained("{repo_id}")'
    return f'default("{name}")' if name in grid_versions() else 'load("grid.safetensors")'


def _exploratory(grid: PrototypeGrid, grids: Mapping[str, Any]) -> dict[Test, float]:
    """All tests but the declared one; those of `grids` count every subject, and so may be of another grid."""
    notes = grid.metadata
    if "mantel_p" not in notes:
        return {}
    if notes.get("min_subjects") == "1" and str(grid.size) in grids:
        return exploratory_tests(grids, declared=str(grid.size))
    return exploratory_tests(grids, own_plain_p=float(notes["mantel_p"]))


def _corrected(p: str | None, holm: float | None) -> str | None:
    return p if p is None or holm is None else f"{p}, Holm {holm:.4f}"


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


def _size_row(size: str, entry: dict[str, Any], exploratory: Mapping[Test, float]) -> dict[str, str]:
    halves, centered = entry["stability"], entry["stability"]["centered"]
    agree = {key: f"{decimal(halves[key]['value'])} ({span(halves[key]['ci95'])})" for key in ("cosine", "centered")}

    def p(test: str, raw: float) -> str:
        holm = exploratory.get((size, test))
        return f"p = {raw:.4f}, declared" if holm is None else f"p = {_corrected(f'{raw:.4f}', holm)}"

    follow = {key: f"{decimal(entry[key]['r'])}, {p(key, entry[key]['p'])}" for key in ("mantel", "mantel_centered")}
    return {
        "size": f"{size} x {size}",
        "filled": f"{entry['filled']} of {entry['cells']}",
        "cosine": agree["cosine"],
        "centered": f"{agree['centered']}, chance {decimal(centered['chance'])}, {p('stability', centered['p'])}",
        **follow,
    }
