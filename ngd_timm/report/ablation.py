"""The page of an ablation: the tables, the differences with their intervals, and what each says in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ngd_timm.evaluate.metrics import METRIC_TITLES, METRICS, protocol_name, shown_protocols, unit_of
from ngd_timm.evaluate.run_log import read_rows
from ngd_timm.evaluate.schema import read_comparison
from ngd_timm.grid.verdict import difference_verdict
from ngd_timm.report.figures import CONFUSIONS, figure_folder
from ngd_timm.report.page import render, to_png_uri
from ngd_timm.report.plots import (
    difference_side,
    plot_curves,
    plot_differences,
    plot_recipe_shares,
)
from ngd_timm.report.run import TERMS, column, known
from ngd_timm.report.tables import ablation_tables

_CURVE = "valid_macro_f1"
_INLINE = 2_000_000  # bytes of figures within the page
_FIGURES = {
    "embeddings_pca": "Embeddings by PCA, whose distances are true as far as its share of the variance goes",
    "embeddings_tsne": "Embeddings by t-SNE, of which only neighbourhoods mean something, not distances or sizes",
    "va_plane": "Where the classes lie on the plane (filled) and where Proto-KD pulls them (hollow); mind the axes",
}
_SIDES = {1: " (above 0)", -1: " (below 0)", 0: ""}


def write_ablation_report(folder: str | Path) -> Path:
    """Write `report.html` into the folder of an ablation; it links to the runs' own pages."""
    folder = Path(folder)
    return render("ablation.html.j2", _context(read_comparison(folder), folder), folder / "report.html")


def _context(comparison: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    recipes, seeds = comparison["recipes"], comparison["seeds"]
    *tables, training = ablation_tables(comparison)
    schematic = [key for key in comparison["sets"] if key.partition(":")[0] == "schematic"]
    return {
        "title": f"Ablation: {len(recipes)} recipe{'s'[: len(recipes) > 1]}, {len(seeds)} seed{'s'[: len(seeds) > 1]}",
        "simulated": [f"the faces of {', '.join(schematic)} are drawn by a program"] if schematic else [],
        "recipes": recipes,
        "seeds": seeds,
        "warm_start": comparison["warm_start"],
        "tables": tables,
        "training": training,
        "comparisons": [
            _comparison(f"d{i}{protocol}", key, found, protocol)
            for i, (key, found) in enumerate(comparison["sets"].items())
            for protocol in shown_protocols(found)
            if found["differences"]
        ],
        "figures": _figures(comparison, folder),
        "figure_files": sorted(file.relative_to(folder).as_posix() for file in folder.glob("figures/*/*.p*")),
        "shares": _shares(comparison["training"]),
        "curves": _curves(comparison, folder),
        "runs": comparison["runs"],
        "reports": {file.parent.name for file in folder.glob("runs/*/report.html")},
    }


def _comparison(name: str, key: str, found: Mapping[str, Any], protocol: str) -> dict[str, Any]:
    """Plots and sentences on the differences of one set by one protocol."""
    differences, shown, plots = found["differences"], protocol_name(protocol, found), {}
    pairs = [f"{d['a']} − {d['b']}" for d in differences]
    for metric in METRICS:
        values = [d[protocol][metric] for d in differences]
        parts = [f"{p} {v['mean']:+.1f}{_SIDES[difference_side(v)]}" for p, v in zip(pairs, values, strict=True)]
        alt = f"{key}, {shown}, {METRIC_TITLES[metric]}: {'; '.join(parts)} points."
        plots[metric] = plot_differences(name + metric, alt, differences, protocol, metric)
    verdicts = [difference_verdict(p, d[protocol], METRIC_TITLES) for p, d in zip(pairs, differences, strict=True)]
    return {"set": key, "protocol": shown, "unit": unit_of(found), "plots": plots, "verdicts": verdicts}


def _figures(comparison: Mapping[str, Any], folder: Path) -> list[dict[str, str]]:
    """The sensitivity to swept keys, and the figures of the first set, those that are there, with a title each."""
    from PIL import Image

    key, found = next(iter(comparison["sets"].items()))
    shown = {}
    for name, protocol in CONFUSIONS.items():
        if protocol in shown_protocols(found):
            shown[name] = f"What is taken for what, {protocol_name(protocol, found)}"
            shown[f"{name}_difference"] = (
                f"The last row's confusions minus the first row's, {protocol_name(protocol, found)}"
            )
    at, figures, left = figure_folder(folder, key), [], _INLINE
    files = {at / f"{name}.png": f"{title}: {key}" for name, title in {**shown, **_FIGURES}.items()}
    if comparison.get("swept"):
        files = {folder / "sensitivity.png": "Sensitivity to what was swept", **files}
    for file, title in files.items():
        if file.is_file():
            with Image.open(file) as image:
                uri = to_png_uri(image)
            figure = {"title": title, "file": file.relative_to(folder).as_posix()}
            if len(uri) <= left:  # of a table of many rows the page links to the others
                figure["uri"] = uri
                left -= len(uri)
            figures.append(figure)
    return figures


def _shares(training: Mapping[str, Any]) -> str | None:
    shares = {name: {t: s for t, s in found["share"].items() if s is not None} for name, found in training.items()}
    shares = {name: by_term for name, by_term in shares.items() if by_term}
    if not shares:
        return None
    parts = [
        f"{name}: " + ", ".join(f"{TERMS[t]} {s:.1f} %" for t, s in by_term.items()) for name, by_term in shares.items()
    ]
    return plot_recipe_shares("shares", f"Share of the gradient by recipe. {'; '.join(parts)}.", shares, TERMS)


def _curves(comparison: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """By recipe a small plot of its validation curves over those of the first; none of a single epoch."""
    curves = {}
    for name in comparison["recipes"]:
        files = [folder / "runs" / run / "summary.csv" for run in comparison["runs"][name]]
        rows = [read_rows(file) for file in files if file.is_file()]
        if rows and _CURVE in rows[0][0]:
            curves[name] = [(column(r, "epoch"), column(r, _CURVE)) for r in rows]
    values = [v for by_seed in curves.values() for _, ys in by_seed for v in known(ys)]
    if not values or max(len(xs) for by_seed in curves.values() for xs, _ in by_seed) < 2:
        return {}
    margin = 0.05 * (max(values) - min(values)) or 1.0
    limits = (min(values) - margin, max(values) + margin)
    reference, plots = next(iter(curves.values())), {}
    for number, (name, by_seed) in enumerate(curves.items()):
        last = ", ".join(f"{known(ys)[-1]:.1f}" for _, ys in by_seed if known(ys))
        alt = f"{name}: macro-F1 on validation by epoch, a line a seed; at the end {last} percent."
        plots[name] = plot_curves(f"curve{number}", alt, by_seed, reference, limits)
    return plots
