"""Figures of an ablation: paired differences, where each recipe's gradient comes from, curves side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ngd_timm.core.plots import INK, RULE, STYLES, png_figure, to_svg
from ngd_timm.evaluate.metrics import METRIC_NAMES, METRICS, protocol_name, shown_protocols

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Difference", "curve_figure", "difference_figure", "draw_differences", "recipe_share_figure"]

_ABOVE, _BELOW, _OPEN = "#009E73", "#D55E00", "#8C8C8C"


class Difference(NamedTuple):
    """One paired difference, in points."""

    label: str
    value: float
    ci95: tuple[float, float]
    by_seed: tuple[float, ...] = ()
    seed_ci95: tuple[float, float] | None = None

    @property
    def side(self) -> int:
        """1 where every interval lies above 0, -1 where every one lies below, else 0."""
        spans = [self.ci95, *([self.seed_ci95] if self.seed_ci95 else [])]
        return int(all(low > 0 for low, _ in spans)) - int(all(high < 0 for _, high in spans))


def difference_figure(name: str, alt: str, rows: Sequence[Difference], xlabel: str) -> str:
    """Differences as dots with their intervals, and the line of no difference.

    Args:
        name: Prefix of the element ids, unique on a page.
        alt: What a reader who can't see the picture is told.
        rows: From top to bottom; the axis fits the intervals over pictures, one over seeds may leave the figure.
        xlabel: Quantity.

    Returns:
        An `<svg>` element as text.

    Example:
        >>> difference_figure("demo", "one", [Difference("b − a", 1.0, (-0.5, 2.5))], "points")[:20]
        '<svg role="img" aria'
    """

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=INK, linewidth=1.1)
        for y, row in enumerate(rows):
            color, marker = {1: (_ABOVE, "^"), -1: (_BELOW, "v"), 0: (_OPEN, "o")}[row.side]
            axes.plot(row.ci95, [y, y], color=color, linewidth=2.2)
            if row.seed_ci95:
                axes.plot(row.seed_ci95, [y + 0.24] * 2, color=color, linewidth=1.0)
            for value in row.by_seed:
                axes.plot(value, y + 0.24, color=color, marker="|", markersize=4, linestyle="none")
            axes.plot(row.value, y, color=color, marker=marker, markersize=6, linestyle="none")
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        reach = 1.15 * max(abs(x) for row in rows for x in (*row.ci95, *row.by_seed, row.value)) or 1.0
        axes.set_xlim(-reach, reach)
        axes.set_xlabel(xlabel)
        axes.grid(axis="x", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)

    return to_svg(name, alt, draw, size=(4.4, 0.6 + 0.27 * len(rows)))


def recipe_share_figure(
    name: str, alt: str, shares: Mapping[str, Mapping[str, float]], terms: Mapping[str, str]
) -> str:
    """A stacked bar a recipe: what part of the pull on the student comes from each term of its objective.

    Args:
        name: Prefix of the element ids, unique on a page.
        alt: What a reader who can't see the picture is told.
        shares: Recipe to term to percent; a term that a recipe lacks counts as none.
        terms: Term to label, in the order of the bars.

    Returns:
        An `<svg>` element as text.
    """

    def draw(axes: Axes) -> None:
        left = np.zeros(len(shares))
        for (term, label), (color, _) in zip(terms.items(), STYLES, strict=False):
            width = np.array([float(of.get(term) or 0) for of in shares.values()])
            axes.barh(range(len(shares)), width, left=left, color=color, height=0.7, label=label)
            left = left + width
        axes.set_yticks(range(len(shares)), list(shares))
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(shares) - 0.4, -0.6)
        axes.set_xlim(0, 100.2)
        axes.set_xlabel("percent of the gradient")
        axes.spines["left"].set_visible(False)
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1, 1.0),
            ncols=len(terms),
            frameon=False,
            fontsize=8,
            labelcolor=INK,
            borderaxespad=0.2,
            handlelength=1.0,
            columnspacing=1.0,
            handletextpad=0.4,
        )

    return to_svg(name, alt, draw, size=(4.6, 0.8 + 0.27 * len(shares)))


def curve_figure(
    name: str,
    alt: str,
    curves: Sequence[tuple[Sequence[float], Sequence[float]]],
    reference: Sequence[tuple[Sequence[float], Sequence[float]]],
    limits: tuple[float, float],
) -> str:
    """One recipe's validation curves, a line a seed, over the grey ones of the recipe that all are compared with.

    Args:
        name: Prefix of the element ids, unique on a page.
        alt: What a reader who can't see the picture is told.
        curves: Epochs and percent of each seed.
        reference: The same of the recipe drawn in grey.
        limits: Of the y axis, the same in every figure that stands beside this one.

    Returns:
        An `<svg>` element as text.
    """

    def draw(axes: Axes) -> None:
        for epochs, values in reference:
            axes.plot(epochs, values, color=RULE, linewidth=1.6)
        for epochs, values in curves:
            axes.plot(epochs, values, color=STYLES[0][0], linewidth=1.1)
        axes.set_ylim(*limits)
        axes.locator_params(nbins=4)
        axes.grid(axis="y", color=RULE, linewidth=0.5)
        axes.set_axisbelow(True)

    return to_svg(name, alt, draw, size=(2.3, 1.5))


def draw_differences(comparison: Mapping[str, Any], path: str | Path) -> None:
    """Draw what `compare` found as a PNG: the mean over seeds, its interval over pictures, each seed as a small ring.

    Args:
        comparison: With at least one difference.
        path: The PNG's.
    """
    panels = [(key, protocol) for key, found in comparison["sets"].items() for protocol in shown_protocols(found)]
    pairs = max(len(found["differences"]) for found in comparison["sets"].values())
    height = len(panels) * (1.1 + 0.28 * pairs)
    with png_figure(path, (10, height)) as figure:
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
        figure.suptitle(
            f"mean of {seeds} seed{'s' * (seeds > 1)}, 95 % over pictures; rings: single seeds", fontsize=10
        )
