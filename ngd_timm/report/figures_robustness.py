"""The figure of robustness: accuracy against severity, a small panel a corruption, a line a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ngd_timm.core.plots import STYLES, png_figure

__all__ = ["draw_robustness"]

_COLUMNS = 5


def draw_robustness(found: Mapping[str, Any], path: str | Path) -> None:
    """Draw what `robustness` found as a PNG; severity 0 is the clean picture, a line the mean over a recipe's seeds.

    Args:
        found: Of `robustness.robustness`.
        path: The PNG's.
    """
    corruptions, severities = found["settings"]["corruptions"], found["settings"]["severities"]
    rows = math.ceil(len(corruptions) / _COLUMNS)
    with png_figure(path, (10, 0.9 + 1.75 * rows)) as figure:
        axes = figure.subplots(rows, _COLUMNS, squeeze=False, sharex=True, sharey=True).ravel()
        for axis, corruption in zip(axes, corruptions, strict=False):
            for number, recipe in enumerate(found["recipes"]):
                color, marker = STYLES[number % len(STYLES)]
                of = [s for s in found["students"] if s["recipe"] == recipe]
                entries = [[s["clean"], *(s["corrupted"][corruption][str(level)] for level in severities)] for s in of]
                accuracy = np.mean([[entry["acc"] for entry in row] for row in entries], axis=0)
                axis.plot([0, *severities], accuracy, color=color, marker=marker, ms=3.5, linewidth=1.3, label=recipe)
            axis.set_title(corruption.replace("_", " "), fontsize=9)
            axis.set_xticks([0, *severities])
            axis.tick_params(labelsize=8)
            axis.grid(axis="y", alpha=0.3)
        for axis in axes[len(corruptions) :]:
            axis.set_visible(False)
        figure.supxlabel("severity (0: the clean pictures)", fontsize=9)
        figure.supylabel("accuracy, percent", fontsize=9)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 6), frameon=False, fontsize=9)
