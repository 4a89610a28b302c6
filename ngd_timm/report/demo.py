"""The report of the demo: the flow from simulated EEG to a student, stage by stage, for somebody new to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import read_json
from ngd_timm.evaluate.metrics import METRIC_TITLES
from ngd_timm.evaluate.run import Run, read_run
from ngd_timm.grid.verdict import WHO, score_rows
from ngd_timm.report.curves import mean_shares
from ngd_timm.report.page import grid_context, png_uri, render, write_page
from ngd_timm.report.run import run_context
from ngd_timm.report.sets import set_context

__all__ = ["write_demo_report"]


def write_demo_report(folder: str | Path) -> Path:
    """Write `report.html` into the demo's folder: the flow from simulated EEG to a student, stage by stage.

    Args:
        folder: What `ngd demo` filled: teacher/, grid.safetensors, faces/, baseline/ and run/.

    Returns:
        The path of the page.

    Raises:
        InputError: A file is missing or can't be read; it is named.
    """
    from ngd_timm.grid.prototypes import PrototypeGrid

    folder = Path(folder)
    grid = PrototypeGrid.load(folder / "grid.safetensors")
    run, baseline = read_run(folder / "run"), read_run(folder / "baseline")
    trained_on = Path(run.recipe.data.root or "").name
    context = {
        "title": "The whole flow, on simulated data",
        "simulated": ["the EEG is simulated from known valence and arousal", "the faces are drawn by a program"],
        "teacher": _teacher_rows(folder / "teacher" / "scores.json"),
        "teacher_report": (folder / "teacher" / "report.html").is_file(),
        "grid": grid_context(grid, run.recipe.grid, run.recipe.data.classes),
        "domains": _domain_samples(folder / "faces", run.recipe.data.classes, trained_on),
        "trained_on": trained_on,
        "shares": mean_shares(run.rows),
        "run": run_context(run),
        "comparison": _comparison(baseline, run),
    }
    return write_page(folder / "report.html", render("demo.html.j2", context))


def _comparison(baseline: Run, run: Run) -> dict[str, Any]:
    """Cross-entropy alone beside the full objective, on every set that both were tested on."""
    tests = [read_json(r.folder / "test.json") for r in (baseline, run)]
    if list(tests[0]) != list(tests[1]):
        raise InputError(f"test.json names {list(tests[0])} for one student and {list(tests[1])} for the other")
    rows = []
    for key in tests[0]:
        pair = [set_context(key, test[key], run.recipe.data.classes) for test in tests]
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
    return {"rows": rows, "score_names": METRIC_TITLES}


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
