"""Figures of a teacher run: scores with their intervals, how stable a grid is at each size, maps of the scalp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ngd_timm.core.plots import INK, RULE, STYLES, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Score", "forest_figure", "scalp_figure", "stability_figure"]

_WIDE = 5.2  # inches; the page scales the drawing to its column
_STEP, _ROW = 2.2, 2.85  # from map to map and from row to row, in their radii


class Score(NamedTuple):
    """One line of a forest plot."""

    group: str
    label: str
    value: float
    low: float
    high: float
    chance: float


def forest_figure(name: str, alt: str, scores: Sequence[Score], xlabel: str) -> str:
    """Each score as a dot with its interval and a tick at chance, a group under its heading.

    Args:
        name: Prefix of the element ids, unique on a page.
        alt: What a reader who can't see the picture is told.
        scores: From top to bottom; those of one group stand together.
        xlabel: Quantity.

    Returns:
        An `<svg>` element as text.

    Example:
        >>> forest_figure("demo", "one score", [Score("valence", "teacher", 0.6, 0.5, 0.7, 0.5)], "bACC")[:20]
        '<svg role="img" aria'
    """
    labels = list(dict.fromkeys(score.label for score in scores))
    lines: list[tuple[str, Score | None]] = []
    for score in scores:
        if not lines or lines[-1][1] is None or lines[-1][1].group != score.group:
            lines.append((score.group, None))
        lines.append((score.label, score))

    def draw(axes: Axes) -> None:
        for y, (_, score) in enumerate(lines):
            if score is None:
                continue
            color, marker = STYLES[labels.index(score.label) % len(STYLES)]
            axes.plot([score.low, score.high], [y, y], color=color, linewidth=1.6)
            axes.plot(score.value, y, color=color, marker=marker, markersize=5.5, linestyle="none")
            axes.plot([score.chance] * 2, [y - 0.36, y + 0.36], color=INK, linewidth=1.3)
        axes.set_yticks(range(len(lines)), [label for label, _ in lines])
        for tick, (_, score) in zip(axes.get_yticklabels(), lines, strict=True):
            tick.set_fontweight("bold" if score is None else "normal")
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.set_xlabel(xlabel)
        axes.grid(axis="x", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)

    return to_svg(name, alt, draw, size=(4.4, 0.75 + 0.24 * len(lines)))


def stability_figure(name: str, alt: str, grids: Mapping[str, Any]) -> str:
    """Agreement between grids of two halves of the people, by size of the grid: as they are, and centred with chance.

    Args:
        name: Prefix of the element ids, unique on a page.
        alt: What a reader who can't see the picture is told.
        grids: By size, as text; each with `stability`, as a run's scores.json has it.

    Returns:
        An `<svg>` element as text.
    """

    def draw(axes: Axes) -> None:
        for shift, key, label, (color, marker) in (
            (-0.1, "cosine", "as it is", STYLES[1]),
            (0.1, "centered", "centred", STYLES[0]),
        ):
            for x, grid in enumerate(grids.values()):
                figure = grid["stability"][key]
                axes.plot([x + shift] * 2, figure["ci95"], color=color, linewidth=1.6)
                axes.plot(
                    x + shift,
                    figure["value"],
                    color=color,
                    marker=marker,
                    markersize=5.5,
                    linestyle="none",
                    label=label if x == 0 else None,
                )
                if "chance" in figure:
                    axes.plot(
                        [x + shift - 0.12, x + shift + 0.12],
                        [figure["chance"]] * 2,
                        color=INK,
                        linewidth=1.3,
                        label="chance, centred" if x == 0 else None,
                    )
        axes.set_xticks(range(len(grids)), [f"{size} × {size}" for size in grids])
        axes.set_xlim(-0.5, len(grids) - 0.5)
        axes.set_ylim(top=1.05)
        axes.set_xlabel("size of the grid")
        axes.set_ylabel("cosine between halves")
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=3,
            frameon=False,
            fontsize=8,
            labelcolor=INK,
            handlelength=1.2,
            columnspacing=1.1,
        )

    return to_svg(name, alt, draw)


def scalp_figure(
    name: str, alt: str, rows: Mapping[str, np.ndarray], columns: Sequence[str], dots: np.ndarray, unit: str
) -> str:
    """Rows of maps of the scalp seen from above, nose up, on one diverging scale that is symmetric about 0.

    Args:
        name: Prefix of the element ids, unique on a page.
        alt: What a reader who can't see the picture is told.
        rows: Title to (B, H, W) maps; row 0 of a map is the back of the head, as `TopomapOperator` gives it.
        columns: B names.
        dots: (C, 2) electrodes in radii of a map, from its middle: x to the right ear, y to the nose.
        unit: What the colour bar says.

    Returns:
        An `<svg>` element as text.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Circle

    peak = max((float(np.abs(maps).max()) for maps in rows.values()), default=0.0) or 1.0

    def draw(axes: Axes) -> None:
        for row, (title, maps) in enumerate(rows.items()):
            y = -row * _ROW
            axes.text(-1.1, y + 1.32, title, fontsize=8.5, fontweight="bold", color=INK, ha="left", va="bottom")
            for column, values in enumerate(maps):
                x = column * _STEP
                extent = (x - 1, x + 1, y - 1, y + 1)
                picture = axes.imshow(
                    _spread(values),
                    extent=extent,
                    origin="lower",
                    vmin=-peak,
                    vmax=peak,
                    cmap="RdBu_r",
                    interpolation="none",
                )
                picture.set_clip_path(Circle((x, y), 0.99, transform=axes.transData))
                axes.add_patch(Circle((x, y), 1.0, fill=False, edgecolor=INK, linewidth=1.0))
                axes.plot([x - 0.13, x, x + 0.13], [y + 0.99, y + 1.16, y + 0.99], color=INK, linewidth=1.0)
                axes.plot(
                    x + dots[:, 0],
                    y + dots[:, 1],
                    color="#1c2128",
                    marker="o",
                    markersize=1.3,
                    linestyle="none",
                )
        for column, label in enumerate(columns):
            axes.text(
                column * _STEP, -(len(rows) - 1) * _ROW - 1.18, label, fontsize=9, color=INK, ha="center", va="top"
            )
        axes.set(xlim=(-1.2, (len(columns) - 1) * _STEP + 1.2), ylim=(-(len(rows) - 1) * _ROW - 1.65, 1.8))
        axes.set_aspect("equal")
        axes.set_axis_off()
        bar = axes.figure.colorbar(
            ScalarMappable(Normalize(-peak, peak), "RdBu_r"),
            ax=axes,
            orientation="horizontal",
            fraction=0.05,
            pad=0.02,
            aspect=36,
        )
        bar.set_label(unit, color=INK)
        bar.ax.tick_params(colors=INK, labelsize=8)
        bar.outline.set_visible(False)

    height = _WIDE * (len(rows) * _ROW + 0.5) / (len(columns) * _STEP) + 0.6
    svg = to_svg(name, alt, draw, size=(_WIDE, height))
    return svg.replace("image-rendering:crisp-edges;image-rendering:pixelated", "")


def _spread(values: np.ndarray) -> np.ndarray:
    """The map with the nearest value outside the head too, so that smoothing at the rim has no pale edge."""
    from scipy.ndimage import distance_transform_edt

    outside = values == 0
    if outside.all():
        return values
    nearest = distance_transform_edt(outside, return_distances=False, return_indices=True)
    return values[tuple(nearest)]
