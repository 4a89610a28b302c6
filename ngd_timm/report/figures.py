"""Small SVG figures for the reports: drawn by matplotlib, reproducible, coloured by the page's own CSS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ngd_timm.core.affect import anchors
from ngd_timm.core.plots import ACCENT, INK, PAGE, RULE, STYLES, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ngd_timm.grid.prototypes import PrototypeGrid

__all__ = [
    "cosine_figure",
    "grid_figure",
    "line_figure",
    "share_figure",
]


def line_figure(
    name: str, alt: str, epochs: Sequence[float], lines: Mapping[str, Sequence[float]], ylabel: str, log: bool = False
) -> str:
    """Curves over epochs, one marker and colour each.

    Args:
        name: Prefix of the element ids, unique on a page.
        alt: What a reader who can't see the picture is told.
        epochs: The x values, E of them.
        lines: Label to E values; NaN leaves a gap.
        ylabel: Quantity and unit.
        log: Logarithmic axis; values at or below zero are then gaps.

    Returns:
        An `<svg>` element as text, the same bytes for the same input.

    Example:
        >>> line_figure("demo", "a line", [0, 1], {"acc": [50.0, 60.0]}, "percent")[:20]
        '<svg role="img" aria'
    """
    from matplotlib.ticker import LogFormatter

    def draw(axes: Axes) -> None:
        for (label, values), (color, marker) in zip(lines.items(), _cycle(len(lines)), strict=True):
            y = np.asarray(values, dtype=np.float64)
            if log:
                y = np.where(y > 0, y, np.nan)
            axes.plot(epochs, y, color=color, marker=marker, markersize=3.2, linewidth=1.5, label=label)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())  # the default one writes mathtext
            axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
        _over_epochs(axes, epochs, ylabel, len(lines))

    return to_svg(name, alt, draw)


def share_figure(name: str, alt: str, epochs: Sequence[float], shares: Mapping[str, Sequence[float]]) -> str:
    """Stacked bars per epoch: what part of the pull on the student comes from each term of the objective.

    Args:
        name: Prefix of the element ids, unique on a page.
        alt: What a reader who can't see the picture is told.
        epochs: The x values, E of them.
        shares: Label to E values in percent; NaN counts as none.

    Returns:
        An `<svg>` element as text.
    """

    def draw(axes: Axes) -> None:
        floor = np.zeros(len(epochs))
        for (label, values), (color, _) in zip(shares.items(), _cycle(len(shares)), strict=True):
            height = np.nan_to_num(np.asarray(values, dtype=np.float64))
            axes.bar(epochs, height, bottom=floor, color=color, width=0.86, label=label)
            floor = floor + height
        axes.set_ylim(0, 100.5)
        _over_epochs(axes, epochs, "percent of the gradient", len(shares))

    return to_svg(name, alt, draw)


def grid_figure(name: str, alt: str, grid: PrototypeGrid, classes: Sequence[str]) -> str:
    """The valence/arousal plane: how many EEG windows (of how many people) fill each cell, and where each class lies.

    Args:
        name: Prefix of the element ids, unique on a page.
        alt: What a reader who can't see the picture is told.
        grid: The prototype grid.
        classes: Classes whose anchors are marked; classes at one place share a label.

    Returns:
        An `<svg>` element as text.
    """

    def draw(axes: Axes) -> None:
        counts = np.asarray(grid.counts).reshape(grid.size, grid.size)
        people = grid.metadata.get("subjects_per_cell", "").split(",")
        side = 2 / grid.size
        top = max(int(counts.max()), 1)
        for i_valence in range(grid.size):
            for i_arousal in range(grid.size):
                count = int(counts[i_valence, i_arousal])
                x, y = -1 + i_valence * side, -1 + i_arousal * side
                axes.fill(
                    [x, x + side, x + side, x],
                    [y, y, y + side, y + side],
                    facecolor=ACCENT,
                    alpha=0.5 * count / top,
                    linewidth=0,
                )
                label = f"{count:,}"
                if len(people) == grid.size**2 and count:
                    label += f" ({people[i_valence * grid.size + i_arousal]})"
                axes.text(x + 0.03, y + side - 0.03, label, fontsize=7, color=INK, ha="left", va="top")
        for edge in np.linspace(-1, 1, grid.size + 1):
            axes.axhline(edge, color=RULE, linewidth=0.8)
            axes.axvline(edge, color=RULE, linewidth=0.8)
        for (x, y), label in _places(classes).items():
            inside = x < 0.5
            # above its dot, unless the counts at the cells' upper edges are there
            above = side - (y + 1.02) % side > 0.21
            axes.annotate(
                label,
                (x, y),
                xytext=(4 if inside else -4, 3 if above else -3),
                textcoords="offset points",
                ha="left" if inside else "right",
                va="bottom" if above else "top",
                fontsize=8,
                color=INK,
                bbox={"facecolor": PAGE, "alpha": 0.8, "linewidth": 0, "pad": 0.8},
            )
            axes.plot(x, y, marker="o", markersize=4, color="#D55E00", linestyle="none")
        axes.set(xlim=(-1, 1), ylim=(-1, 1), xticks=_centers(grid), yticks=_centers(grid))
        axes.set_aspect("equal")
        axes.set_xlabel("valence: unpleasant → pleasant")
        axes.set_ylabel("arousal: calm → excited")

    return to_svg(name, alt, draw, size=(4.0, 4.0))


def cosine_figure(name: str, alt: str, grid: PrototypeGrid) -> str:
    """Cosine between every two prototypes, the cells in the grid's own order (valence first, arousal within it).

    Args:
        name: Prefix of the element ids, unique on a page.
        alt: What a reader who can't see the picture is told.
        grid: The prototype grid.

    Returns:
        An `<svg>` element as text.
    """

    def draw(axes: Axes) -> None:
        rows = np.asarray(grid.prototypes, dtype=np.float64)
        picture = axes.imshow(np.clip(rows @ rows.T, -1, 1), vmin=-1, vmax=1, cmap="RdBu_r", interpolation="none")
        for edge in range(1, grid.size):
            axes.axhline(edge * grid.size - 0.5, color="white", linewidth=0.8)
            axes.axvline(edge * grid.size - 0.5, color="white", linewidth=0.8)
        middle = [(i + 0.5) * grid.size - 0.5 for i in range(grid.size)]
        labels = [f"{v:+.1f}" for v in _centers(grid)]
        axes.set_xticks(middle, labels)
        axes.set_yticks(middle, labels)
        axes.tick_params(length=0)
        axes.set_xlabel("cell, by valence; arousal rises within a block")
        axes.set_ylabel("cell, by valence")
        bar = axes.figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.03)
        bar.set_label("cosine", color=INK)
        bar.ax.tick_params(colors=INK, labelsize=7)
        bar.outline.set_visible(False)

    return to_svg(name, alt, draw, size=(4.4, 3.7))


def _centers(grid: PrototypeGrid) -> list[float]:
    return np.unique(np.asarray(grid.centers)[:, 0].round(3)).tolist()


def _cycle(n: int) -> list[tuple[str, str]]:
    return [STYLES[i % len(STYLES)] for i in range(n)]


def _places(classes: Sequence[str]) -> dict[tuple[float, float], str]:
    """Anchor to label; anchors too close for two labels (anger and fear) share one."""
    places: list[tuple[tuple[float, float], list[str]]] = []
    for name, (x, y) in zip(classes, anchors(classes).tolist(), strict=True):
        for (px, py), names in places:
            if abs(px - x) < 0.3 and abs(py - y) < 0.1:
                names.append(name)
                break
        else:
            places.append(((x, y), [name]))
    return {place: ", ".join(names) for place, names in places}


def _over_epochs(axes: Axes, epochs: Sequence[float], ylabel: str, entries: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(epochs) == 1:
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
    axes.set_xlabel("epoch")
    axes.set_ylabel(ylabel)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=min(entries, 4),
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        borderaxespad=0.2,
        handlelength=1.4,
        columnspacing=1.1,
    )
