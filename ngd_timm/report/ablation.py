"""The report of an ablation: the tables, the differences with their intervals, and what each says in one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import read_json
from ngd_timm.evaluate.metrics import METRIC_TITLES, METRICS, protocol_name, shown_protocols
from ngd_timm.evaluate.run_log import read_rows
from ngd_timm.grid.verdict import difference_verdict
from ngd_timm.report.curves import TERMS, column, known, valid_column
from ngd_timm.report.figures_ablation import Difference, curve_figure, difference_figure, recipe_share_figure
from ngd_timm.report.page import render, write_page
from ngd_timm.report.tables import ablation_tables

__all__ = ["write_ablation_report"]

_CURVE = "macro_f1"
_SIDES = {1: " (above 0)", -1: " (below 0)", 0: ""}


def write_ablation_report(folder: str | Path) -> Path:
    """Write `report.html` into an ablation's folder.

    Args:
        folder: With the ablation.json that `ngd ablate` wrote, and its runs in `runs/`.

    Returns:
        The path of the page: one file under 3 MB that opens without a network; it links to the runs' own reports.

    Raises:
        InputError: A file is missing or can't be read; it is named.
    """
    folder = Path(folder)
    comparison = read_json(folder / "ablation.json")
    try:
        context = _context(comparison, folder)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"{folder / 'ablation.json'} lacks {error}; run the same ngd ablate again") from None
    return write_page(folder / "report.html", render("ablation.html.j2", context))


def _context(comparison: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    recipes, seeds = comparison["recipes"], comparison["seeds"]
    *tables, training = ablation_tables(comparison)
    drawn = [key for key in comparison["sets"] if key.partition(":")[0] == "schematic"]
    return {
        "title": f"Ablation of {len(recipes)} recipes, {len(seeds)} seed{'s' * (len(seeds) > 1)}",
        "simulated": [f"the faces of {', '.join(drawn)} are drawn by a program"] if drawn else [],
        "recipes": recipes,
        "seeds": seeds,
        "warm_start": comparison["warm_start"],
        "several": len(seeds) > 1,
        "tables": tables,
        "training": training,
        "sets": [_set(i, key, found) for i, (key, found) in enumerate(comparison["sets"].items())],
        "shares": _shares(comparison["training"]),
        "curves": list(_curves(comparison, folder)),
        "runs": {
            name: [
                {
                    "name": run,
                    "link": f"runs/{run}/report.html" if (folder / "runs" / run / "report.html").is_file() else None,
                }
                for run in of
            ]
            for name, of in comparison["runs"].items()
        },
    }


def _set(number: int, key: str, found: Mapping[str, Any]) -> dict[str, Any]:
    protocols = []
    for protocol in shown_protocols(found) if found["differences"] else ():
        shown = protocol_name(protocol, found)
        pictures = []
        for metric in METRICS:
            rows = [_difference(d, protocol, metric) for d in found["differences"]]
            alt = (
                f"{key}, {shown}, {METRIC_TITLES[metric]}: "
                + "; ".join(f"{r.label} {r.value:+.1f}{_SIDES[r.side]}" for r in rows)
                + " points."
            )
            svg = difference_figure(f"d{number}{protocol}{metric}", alt, rows, f"{METRIC_TITLES[metric]}, points")
            pictures.append({"title": METRIC_TITLES[metric][0].upper() + METRIC_TITLES[metric][1:], "svg": svg})
        sentences = [
            difference_verdict(f"{d['a']} − {d['b']}", d[protocol], METRIC_TITLES) for d in found["differences"]
        ]
        protocols.append({"name": shown, "pictures": pictures, "sentences": sentences})
    return {"key": key, "n": found["n"], "protocols": protocols}


def _difference(found: Mapping[str, Any], protocol: str, metric: str) -> Difference:
    figure = found[protocol][metric]
    over_seeds = figure["seed_ci95"]
    return Difference(
        f"{found['a']} − {found['b']}",
        figure["mean"],
        (figure["ci95"][0], figure["ci95"][1]),
        tuple(figure["per_seed"]) if len(figure["per_seed"]) > 1 else (),
        None if over_seeds is None else (over_seeds[0], over_seeds[1]),
    )


def _shares(training: Mapping[str, Any]) -> str | None:
    shares = {name: {t: s for t, s in found["share"].items() if s is not None} for name, found in training.items()}
    shares = {name: of for name, of in shares.items() if of}
    if not shares:
        return None
    alt = "Share of the gradient by recipe. " + "; ".join(
        f"{name}: " + ", ".join(f"{TERMS[t]} {s:.1f} %" for t, s in of.items()) for name, of in shares.items()
    )
    return recipe_share_figure("shares", alt + ".", shares, TERMS)


def _curves(comparison: Mapping[str, Any], folder: Path) -> Iterator[dict[str, str]]:
    """A small figure a recipe: its validation curves over those of the first."""
    found = {}
    for name in comparison["recipes"]:
        files = [folder / "runs" / run / "summary.csv" for run in comparison["runs"][name]]
        rows = [read_rows(file) for file in files if file.is_file()]
        column_of = valid_column(rows[0][0], _CURVE) if rows else None
        if column_of is not None:
            found[name] = [(column(r, "epoch"), column(r, column_of)) for r in rows]
    values = [v for curves in found.values() for _, ys in curves for v in known(ys)]
    if not values or max(len(xs) for curves in found.values() for xs, _ in curves) < 2:
        return
    margin = 0.05 * (max(values) - min(values)) or 1.0
    limits = (min(values) - margin, max(values) + margin)
    first = next(iter(found.values()))
    for number, (name, curves) in enumerate(found.items()):
        last = ", ".join(f"{known(ys)[-1]:.1f}" for _, ys in curves if known(ys))
        alt = f"{name}: macro-F1 on validation by epoch, a line a seed; at the end {last} percent."
        yield {"title": name, "svg": curve_figure(f"curve{number}", alt, curves, first, limits)}
