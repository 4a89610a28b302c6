"""The card and the licence of a grid, written from what its file says of itself and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ngd_timm.core.citations import FORBIDDEN, METHOD, dataset_names, eeg_credits
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import packaged
from ngd_timm.core.paths import as_markdown, without_paths
from ngd_timm.grid.prototypes import PrototypeGrid, grid_versions
from ngd_timm.grid.verdict import (
    METRICS,
    WHO,
    Test,
    decimal,
    exploratory_tests,
    fold_rows,
    folds_verdict,
    grid_verdict,
    score_rows,
    span,
    teacher_verdict,
)

_NEEDED = ("dataset", "subjects_per_cell", "min_subjects")
_JSON = ("scores", "grids", "preprocessing", "runs", "sets")  # metadata whose text is an object or a list


def grid_card(grid: PrototypeGrid, name: str, repo_id: str | None = None) -> str:
    """The card of a grid, as Markdown with a YAML header, made of the grid and its metadata alone."""
    notes = _plain(grid.metadata)
    missing = [key for key in _NEEDED if key not in notes]
    if missing:
        raise InputError(
            f"this grid's metadata lack {', '.join(missing)}; a card needs a grid made from a teacher run, or built "
            "with subjects=, min_subjects= and metadata={'dataset': ...}"
        )
    grids = notes.get("grids", {})
    teachers = _teachers(notes)
    exploratory = _exploratory(grid, grids)
    subjects = notes["subjects_per_cell"].split(",")
    return render_card(
        "grid_card.md",
        **_sources(notes),
        header=card_header(
            library_name="ngd_timm",
            tags=[
                *([] if "source" in notes else ["eeg"]),
                "valence-arousal",
                "prototypes",
                "knowledge-distillation",
                "timm",
            ],
            datasets=[credit.title.lower() for credit in _sources(notes)["credits"]],
        ),
        name=name,
        opened_by=_opened_by(name, repo_id),
        grid=grid,
        centered=grid if notes.get("centered") == "true" else grid.centered(),
        teachers=teachers,
        by_subject=_folds_by(teachers) == "subject",
        verdict=_verdict(teachers, grid_findings(grid)),
        sets=notes.get("sets", []),
        grids=grids,
        exploratory=exploratory,
        plain_holm=exploratory.get(("own", "mantel"), exploratory.get((str(grid.size), "mantel"))),
        mantel_r=notes.get("mantel_r") or f"{grid.mantel_r:.4f}",
        preprocessing=notes.get("preprocessing", {}),
        axis=[f"{v:+.1f}" for v in grid.centers[:: grid.size, 0].tolist()],
        cells=[f"{n} ({who})" if n else "–" for n, who in zip(grid.counts.tolist(), subjects, strict=True)],
        method=METHOD,
        who=WHO,
        metrics=METRICS,
        score_rows=score_rows,
        fold_rows=fold_rows,
        decimal=decimal,
        span=span,
    )


def _plain(notes: Mapping[str, Any]) -> dict[str, Any]:
    """A file's own words without folders and as one line of Markdown each."""
    known = without_paths({key: json.loads(value) if key in _JSON else value for key, value in notes.items()})
    # commands stand in a block of code, a line each
    return {key: value.replace("```", "") if key == "command" else as_markdown(value) for key, value in known.items()}


def _teachers(notes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The notes and scores of each teacher behind a grid, where they are recorded; `name` where there are several."""
    if "runs" not in notes:
        return [{**notes, "name": ""}] if notes.get("scores") else []
    return [{**notes, **run, "name": " and ".join(dataset_names(run["dataset"])), "own": run} for run in notes["runs"]]


def _folds_by(teachers: Sequence[Mapping[str, Any]]) -> str:
    return teachers[0]["scores"].get("folds_by", "subject") if teachers else "subject"


def _verdict(teachers: Sequence[Mapping[str, Any]], findings: Sequence[str]) -> str:
    about = [
        (part["name"], " ".join([*teacher_verdict(part["scores"]), folds_verdict(part["scores"])])) for part in teachers
    ]
    lines = [f"{name}: {text}" if name else text for name, text in about]
    return ("\n\n" if len(lines) > 1 else " ").join([*lines, " ".join(findings)]) if lines else ""


def grid_findings(grid: PrototypeGrid) -> list[str]:
    """What the tests in a grid's metadata say of it, the declared one first; nothing where none is recorded."""
    notes = grid.metadata
    if "mantel_p_centered" not in notes:
        return []
    grids = json.loads(notes.get("grids", "{}"))
    halves = grids[str(grid.size)]["stability"]["centered"] if str(grid.size) in grids else None
    p, by = float(notes["mantel_p_centered"]), _folds_by(_teachers(_plain(notes)))
    return grid_verdict(grid.size, p, _exploratory(grid, grids), halves, by)


def describe(grid: PrototypeGrid, name: str) -> str:
    """A grid in lines for people: what it is made of and what its tests say."""
    counts = grid.counts.reshape(grid.size, grid.size)
    return "\n".join(
        [
            f"{name}: {grid.size}x{grid.size} prototypes of {grid.dim} values, sha256 {grid.sha256}",
            f"cells filled: {grid.filled} of {counts.numel()}; mean cosine {grid.mean_cosine:.3f}",
            "counts, arousal upwards, valence to the right:",
            *("  " + " ".join(f"{value:5d}" for value in row) for row in counts.T.flip(0).tolist()),
            *grid_findings(grid),
            *(f"{key}: {value}" for key, value in grid.metadata.items()),
        ]
    )


def as_dict(grid: PrototypeGrid) -> dict[str, Any]:
    """The same for programs."""
    return {
        "size": grid.size,
        "dim": grid.dim,
        "sha256": grid.sha256,
        "mean_cosine": grid.mean_cosine,
        "counts": grid.counts.tolist(),
        "findings": grid_findings(grid),
        "metadata": grid.metadata,
    }


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

    # Markdown, into which what a grid says comes escaped
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701
    text = (packaged("hub") / "templates" / template).read_text(encoding="utf-8")
    return environment.from_string(text).render(**context)


def grid_licence(grid: PrototypeGrid, name: str) -> str:
    """The terms of a grid, as the text of its LICENSE file."""
    return render_card("grid_licence.txt", name=name, **_sources(_plain(grid.metadata)))


def _sources(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Whose data a grid holds, as card and licence say it; `fewest` subjects are behind a cell, 0 where unknown."""
    datasets = dataset_names(notes["dataset"])
    subjects = [int(n) for n in notes.get("subjects_per_cell", "").split(",") if n not in ("", "0")]
    return {
        "notes": notes,
        "dataset": " and ".join(dict.fromkeys(datasets)),
        "support": " and ".join(dataset_names(notes.get("support", ""))),
        "credits": eeg_credits(notes),
        "simulated": "simulated" in notes,
        "fewest": min(subjects, default=0),
        "forbidden": FORBIDDEN,
    }


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
