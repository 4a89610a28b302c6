"""Figures of one data set: is a student as sure as it is right, and where its embeddings lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ngd_timm.core.plots import INK, RULE, STYLES, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CLASS_STYLES", "embedding_figure", "reliability_figure"]

# Two more than Okabe and Ito give without their yellow, which can't be seen on white; both are legible in the dark too.
CLASS_STYLES = (*STYLES, ("#8C8C8C", "X"), ("#8A63D2", "*"))


def reliability_figure(name: str, alt: str, bins: Sequence[Mapping[str, float]]) -> str:
    """Share of right answers against stated confidence, with intervals, over how many answers are that sure.

    Args:
        name: Prefix of the element ids, unique on a page.
        alt: What a reader who can't see the picture is told.
        bins: `n`, `confidence` and `accuracy` of each bin that holds a picture, the last two in percent.

    Returns:
        An `<svg>` element as text.

    Example:
        >>> reliability_figure("demo", "one bin", [{"n": 9, "confidence": 80.0, "accuracy": 70.0}])[:20]
        '<svg role="img" aria'
    """
    n = np.array([b["n"] for b in bins], dtype=np.float64)
    sure = np.array([b["confidence"] for b in bins])
    right = np.array([b["accuracy"] for b in bins])
    low, high = _wilson(right / 100, n)

    def draw(axes: Axes) -> None:
        color, marker = STYLES[0]
        axes.bar(sure, 100 * n / n.sum(), width=3.4, color=RULE, label="percent of the pictures")
        axes.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="as sure as right")
        axes.vlines(sure, 100 * low, 100 * high, color=color, linewidth=1.4)
        axes.plot(sure, right, color=color, marker=marker, markersize=4, linewidth=1.2, label="percent right")
        axes.set(xlim=(0, 100), ylim=(0, 101))
        axes.set_xlabel("stated confidence, percent")
        axes.set_ylabel("percent")
        _legend(axes, 3)

    return to_svg(name, alt, draw, size=(4.4, 3.4))


def embedding_figure(
    name: str,
    alt: str,
    points: np.ndarray,
    label: np.ndarray,
    classes: Sequence[str],
    places: np.ndarray,
    cells: np.ndarray,
) -> str:
    """A map of embeddings: a colour and a marker a class, and on top where the classes belong on the grid.

    Args:
        name: Prefix of the element ids, unique on a page.
        alt: What a reader who can't see the picture is told.
        points: (N, 2) places of the pictures on the map.
        label: (N,) class indices.
        classes: C names.
        places: (C, 2) where the classes belong, or (0, 2).
        cells: (K, 2) the grid's prototypes, or (0, 2).

    Returns:
        An `<svg>` element as text; the pictures' marks are pixels in it, since thousands of paths would be large.
    """
    styles = [CLASS_STYLES[i % len(CLASS_STYLES)] for i in range(len(classes))]
    # drawn in an order of its own, so that no class hides another
    order = np.random.default_rng(0).permutation(len(points))
    size = 13 if len(points) > 600 else 22

    def draw(axes: Axes) -> None:
        for start in range(0, len(order), 100):
            part = order[start : start + 100]
            for c, (color, marker) in enumerate(styles):
                x, y = points[part[label[part] == c]].T
                axes.scatter(x, y, s=size, c=color, marker=marker, alpha=0.75, linewidths=0, rasterized=True)
        axes.plot(*cells.T, color=INK, marker="+", markersize=5, markeredgewidth=0.8, linestyle="none")
        for (x, y), (color, marker) in zip(places, styles, strict=False):
            axes.plot(x, y, color=color, marker=marker, markersize=7, markeredgecolor=INK, markeredgewidth=1)
        for name_, (color, marker) in zip(classes, styles, strict=True):
            axes.plot([], [], color=color, marker=marker, markersize=5.5, linestyle="none", label=name_)
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
        for spine in axes.spines.values():
            spine.set_visible(True)
        _legend(axes, 4)

    return to_svg(name, alt, draw, size=(4.4, 4.4), dpi=180)


def _wilson(share: np.ndarray, n: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a share of n (Wilson 1927)."""
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return middle - half, middle + half


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        borderaxespad=0.2,
        handlelength=1.2,
        columnspacing=1.0,
        handletextpad=0.4,
    )
