"""The picture of an ablation: paired differences as dots with intervals, a panel a figure, a row a data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ngd_timm.files import atomic_path
from ngd_timm.metrics import METRICS
from ngd_timm.tables import METRIC_NAMES, protocol_name, shown_protocols

__all__ = ["draw_differences"]


def draw_differences(comparison: Mapping[str, Any], path: str | Path) -> None:
    """Draw what `compare` found as a PNG: the mean over seeds, its interval over pictures, each seed as a small ring.

    Args:
        comparison: With at least one difference.
        path: The PNG's.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(key, protocol) for key, found in comparison["sets"].items() for protocol in shown_protocols(found)]
    pairs = max(len(found["differences"]) for found in comparison["sets"].values())
    height = len(panels) * (1.1 + 0.28 * pairs)
    figure = Figure(figsize=(10, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), len(METRICS), squeeze=False, sharey="row")
    for row, (key, protocol) in zip(axes, panels, strict=True):
        found = comparison["sets"][key]
        for axis, metric in zip(row, METRICS, strict=True):
            for place, difference in enumerate(found["differences"]):
                value = difference[protocol][metric]
                low, high = value["ci95"]
                axis.plot([low, high], [place, place], color="#1b6ca8", linewidth=2, solid_capstyle="butt")
                axis.plot(value["per_seed"], [place] * len(value["per_seed"]), "o", mfc="none", mec="#777777", ms=4)
                axis.plot(value["mean"], place, "o", color="#1b6ca8", ms=6)
            axis.axvline(0, color="black", linewidth=0.8)
            axis.set_title(f"{key}, {protocol_name(protocol, found)}: {METRIC_NAMES[metric]}", fontsize=9)
            axis.set_xlabel("difference, points", fontsize=8)
            axis.tick_params(labelsize=8)
            axis.grid(axis="x", alpha=0.3)
        row[0].set_yticks(range(len(found["differences"])), [f"{d['a']} − {d['b']}" for d in found["differences"]])
        row[0].set_ylim(len(found["differences"]) - 0.5, -0.5)
    seeds = len(comparison["seeds"])
    figure.suptitle(f"mean of {seeds} seed{'s' * (seeds > 1)}, 95 % over pictures; rings: single seeds", fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
