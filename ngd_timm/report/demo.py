"""The page of the demo: the flow from simulated EEG to a student, stage by stage, for somebody new to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import read_json
from ngd_timm.evaluate.run import Run, read_run
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.grid.verdict import score_rows
from ngd_timm.report.page import grid_context, render, to_png_uri
from ngd_timm.report.run import facts, mean_shares, texts, training_plots
from ngd_timm.report.sets import set_context


def write_demo_report(folder: str | Path) -> Path:
    """Write `report.html` into the folder that `ngd demo` filled."""
    folder = Path(folder)
    run, baseline = read_run(folder / "run"), read_run(folder / "baseline")
    classes, trained_on = run.recipe.data.classes, Path(run.recipe.data.root or "").name
    context = {
        "title": "The whole flow, on simulated data",
        "simulated": ["the EEG is simulated from known valence and arousal", "the faces are drawn by a program"],
        "teacher": _teacher_rows(folder / "teacher" / "scores.json"),
        "teacher_report": (folder / "teacher" / "report.html").is_file(),
        "grid": grid_context(PrototypeGrid.load(folder / "grid.safetensors"), classes),
        "domains": _domain_samples(folder / "faces", classes, trained_on),
        "trained_on": trained_on,
        "shares": mean_shares(run.rows),
        "run": {"facts": facts(run), "plots": training_plots(run.rows), **texts(run)},
        "comparison": _comparison(baseline, run),
    }
    return render("demo.html.j2", context, folder / "report.html")


def _comparison(baseline: Run, run: Run) -> list[dict[str, Any]]:
    """Cross-entropy alone beside the full objective, on every set that both were tested on."""
    tests = [read_json(r.folder / "test.json") for r in (baseline, run)]
    if list(tests[0]) != list(tests[1]):
        raise InputError(f"test.json names {list(tests[0])} for one student and {list(tests[1])} for the other")
    rows = []
    for key in tests[0]:
        before, after = (set_context(key, test[key], run.recipe.data.classes) for test in tests)
        intervals = [s["intervals"]["8way"].get("macro_f1") for s in (before, after)]
        rows.append(
            {
                "key": key,
                "students": {"cross-entropy alone": before, "full objective": after},
                "difference": after["scores"]["8way"]["macro_f1"] - before["scores"]["8way"]["macro_f1"],
                "apart": all(intervals) and max(low for low, _ in intervals) > min(high for _, high in intervals),
            }
        )
    return rows


def _domain_samples(faces: Path, classes: Sequence[str], first: str) -> list[dict[str, Any]]:
    """One drawn face a class from each domain's test split, as data URIs; the domain named `first` leads."""
    from ngd_timm.data import load_fer

    domains = []
    for folder in sorted((p for p in faces.iterdir() if p.is_dir()), key=lambda p: (p.name != first, p.name)):
        rows = load_fer("schematic", str(folder), "test", classes=tuple(classes))
        labels = list(rows["label"])
        samples = [
            {
                "uri": to_png_uri(rows[labels.index(i)]["image"]),
                "alt": f"drawn face in the style {folder.name}, expression {name}",
                "caption": name,
            }
            for i, name in enumerate(classes)
            if i in labels
        ]
        domains.append({"name": folder.name, "n": len(rows), "faces": samples})
    return domains


def _teacher_rows(path: Path) -> list[dict[str, Any]]:
    """A row for each score on held-out subjects: the teacher's beside those of the linear models."""
    scores = read_json(path)
    try:
        rows = list(score_rows({who: scores[who] for who in ("teacher", "ridge", "logistic_regression")}))
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} lacks {error}; fit the teacher again") from None
    return sorted(rows, key=lambda row: (row["axis"] != "valence", row["metric"]))
