"""The plots of all pages, and those written as files.

A `plot_*` function takes `name`, the prefix of its element ids, unique on a page, and `alt`, the text for those who
can't see the plot. It returns an `<svg>` element, the same bytes for the same input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ngd_timm.core.affect import anchors
from ngd_timm.core.plots import ACCENT, INK, PAGE, RULE, STYLES, png_figure, to_svg
from ngd_timm.evaluate.metrics import METRIC_NAMES, METRIC_TITLES, METRICS, protocol_name, shown_protocols, unit_of
from ngd_timm.grid.prototypes import PrototypeGrid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = tuple[Sequence[float], Sequence[float]]  # epochs and values

# Two more than Okabe and Ito give without their yellow, which can't be seen on white; both are legible in the dark too.
CLASS_STYLES = (*STYLES, ("#8C8C8C", "X"), ("#8A63D2", "*"))
_SIDE_STYLES = {1: ("#009E73", "^"), -1: ("#D55E00", "v"), 0: ("#8C8C8C", "o")}
_SCALP_WIDTH = 5.2  # inches; the page scales the plot to its column
_SCALP_STEP, _SCALP_ROW = 2.2, 2.85  # from map to map and from row to row, in their radii
_PANELS = 5  # of robustness, side by side


def plot_lines(
    name: str, alt: str, epochs: Sequence[float], lines: Mapping[str, Sequence[float]], ylabel: str, log: bool = False
) -> str:
    """Curves over epochs by label; NaN leaves a gap, and on a logarithmic axis zero and less do."""
    from matplotlib.ticker import LogFormatter

    def draw(axes: Axes) -> None:
        for (label, values), (color, marker) in zip(lines.items(), _styles(len(lines)), strict=True):
            y = np.asarray(values, dtype=np.float64)
            y = np.where(y > 0, y, np.nan) if log else y
            axes.plot(epochs, y, color=color, marker=marker, markersize=3.2, linewidth=1.5, label=label)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())  # the default one writes mathtext
            axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
        _finish_epochs(axes, epochs, ylabel, len(lines))

    return to_svg(name, alt, draw)


def plot_shares(name: str, alt: str, epochs: Sequence[float], shares: Mapping[str, Sequence[float]]) -> str:
    """A stacked bar per epoch: the percentage of the gradient that comes from each term; NaN counts as none."""

    def draw(axes: Axes) -> None:
        _stack(axes.bar, epochs, shares, width=0.86)
        axes.set_ylim(0, 100.5)
        _finish_epochs(axes, epochs, "percent of the gradient", len(shares))

    return to_svg(name, alt, draw)


def plot_plane(name: str, alt: str, grid: PrototypeGrid, classes: Sequence[str]) -> str:
    """The valence/arousal plane: EEG windows (and subjects) in each cell, and the classes' anchors."""
    counts = np.asarray(grid.counts).tolist()
    subjects = grid.metadata.get("subjects_per_cell", "").split(",")
    side, most = 2 / grid.size, max(*counts, 1)

    def draw(axes: Axes) -> None:
        for cell, count in enumerate(counts):
            x, y = (-1 + i * side for i in divmod(cell, grid.size))
            corners = [x, x + side, x + side, x], [y, y, y + side, y + side]
            axes.fill(*corners, facecolor=ACCENT, alpha=0.5 * count / most, linewidth=0)
            label = f"{count:,}" + (f" ({subjects[cell]})" if count and len(subjects) == len(counts) else "")
            axes.text(x + 0.03, y + side - 0.03, label, fontsize=7, color=INK, ha="left", va="top")
        _cell_lines(axes, np.linspace(-1, 1, grid.size + 1), RULE)
        for (x, y), label in _anchor_labels(classes).items():
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
        axes.set(xlim=(-1, 1), ylim=(-1, 1), xticks=_centers(grid), yticks=_centers(grid), aspect="equal")
        axes.set(xlabel="valence: unpleasant → pleasant", ylabel="arousal: calm → excited")

    return to_svg(name, alt, draw, size=(4.0, 4.0))


def plot_cosines(name: str, alt: str, grid: PrototypeGrid) -> str:
    """Cosine between every two prototypes, in the grid's order: by valence, arousal within it."""
    rows = np.asarray(grid.prototypes, dtype=np.float64)

    def draw(axes: Axes) -> None:
        image = axes.imshow(np.clip(rows @ rows.T, -1, 1), vmin=-1, vmax=1, cmap="RdBu_r", interpolation="none")
        _cell_lines(axes, np.arange(1, grid.size) * grid.size - 0.5, "white")
        middle = [(i + 0.5) * grid.size - 0.5 for i in range(grid.size)]
        labels = [f"{v:+.1f}" for v in _centers(grid)]
        axes.set_xticks(middle, labels)
        axes.set_yticks(middle, labels)
        axes.tick_params(length=0)
        axes.set(xlabel="cell, by valence; arousal rises within a block", ylabel="cell, by valence")
        _colorbar(axes, image, "cosine", fraction=0.046, pad=0.03)

    return to_svg(name, alt, draw, size=(4.4, 3.7))


def plot_reliability(name: str, alt: str, bins: Sequence[Mapping[str, float]]) -> str:
    """Percentage right against stated confidence, by bin (`n`, `confidence`, `accuracy`), with Wilson's intervals."""
    n, sure, right = (np.array([b[key] for b in bins], dtype=np.float64) for key in ("n", "confidence", "accuracy"))
    low, high = _wilson(right / 100, n)

    def draw(axes: Axes) -> None:
        color, marker = STYLES[0]
        axes.bar(sure, 100 * n / n.sum(), width=3.4, color=RULE, label="percent of the images")
        axes.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="as sure as right")
        axes.vlines(sure, 100 * low, 100 * high, color=color, linewidth=1.4)
        axes.plot(sure, right, color=color, marker=marker, markersize=4, linewidth=1.2, label="percent right")
        axes.set(xlim=(0, 100), ylim=(0, 101), xlabel="stated confidence, percent", ylabel="percent")
        _legend(axes, 3)

    return to_svg(name, alt, draw, size=(4.4, 3.4))


def plot_embeddings(
    name: str,
    alt: str,
    points: np.ndarray,
    label: np.ndarray,
    classes: Sequence[str],
    places: np.ndarray,
    cells: np.ndarray,
) -> str:
    """A map of embeddings: (N, 2) points by (N,) label; on top the classes' (C, 2) places and (K, 2) prototypes."""
    styles = [CLASS_STYLES[i % len(CLASS_STYLES)] for i in range(len(classes))]
    order = np.random.default_rng(0).permutation(len(points))  # so that no class hides another
    size = 13 if len(points) > 600 else 22

    def draw(axes: Axes) -> None:
        for start in range(0, len(order), 100):
            part = order[start : start + 100]
            for c, (color, marker) in enumerate(styles):
                x, y = points[part[label[part] == c]].T
                # thousands of paths would be large
                axes.scatter(x, y, s=size, c=color, marker=marker, alpha=0.75, linewidths=0, rasterized=True)
        axes.plot(*cells.T, color=INK, marker="+", markersize=5, markeredgewidth=0.8, linestyle="none")
        for (x, y), (color, marker) in zip(places, styles, strict=False):
            axes.plot(x, y, color=color, marker=marker, markersize=7, markeredgecolor=INK, markeredgewidth=1)
        for class_name, (color, marker) in zip(classes, styles, strict=True):
            axes.plot([], [], color=color, marker=marker, markersize=5.5, linestyle="none", label=class_name)
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[:].set_visible(True)
        _legend(axes, 4)

    return to_svg(name, alt, draw, size=(4.4, 4.4), dpi=180)


def difference_side(difference: Mapping[str, Any]) -> int:
    """1 where every interval of a difference lies above 0, -1 where every one lies below, else 0."""
    intervals = [i for i in (difference["ci95"], difference["seed_ci95"]) if i is not None]
    return int(all(low > 0 for low, _ in intervals)) - int(all(high < 0 for _, high in intervals))


def plot_differences(name: str, alt: str, differences: Sequence[Mapping[str, Any]], protocol: str, metric: str) -> str:
    """Paired differences of `evaluate.comparison` as dots with their intervals, and the line of no difference."""

    def draw(axes: Axes) -> None:
        _draw_differences(axes, differences, protocol, metric)
        axes.set_xlabel(f"{METRIC_TITLES[metric]}, points")

    return to_svg(name, alt, draw, size=(4.4, 0.6 + 0.27 * len(differences)))


def write_difference_plot(comparison: Mapping[str, Any], path: str | Path) -> None:
    """Write all differences of `evaluate.comparison.compare` as a PNG, a row of panels for a set and protocol."""
    panels = [(key, protocol) for key, found in comparison["sets"].items() for protocol in shown_protocols(found)]
    most = max(len(found["differences"]) for found in comparison["sets"].values())
    with png_figure(path, (10, len(panels) * (1.1 + 0.28 * most))) as figure:
        axes = figure.subplots(len(panels), len(METRICS), squeeze=False, sharey="row")
        for row, (key, protocol) in zip(axes, panels, strict=True):
            found = comparison["sets"][key]
            for axis, metric in zip(row, METRICS, strict=True):
                _draw_differences(axis, found["differences"], protocol, metric)
                axis.set_title(f"{key}, {protocol_name(protocol, found)}: {METRIC_NAMES[metric]}", fontsize=9)
                axis.set_xlabel("difference, points")
        figure.suptitle(_legend_of_intervals(comparison["seeds"], comparison["sets"]), fontsize=10)


def write_forest_plot(sets: Mapping[str, Any], metric: str, seeds: Sequence[int], path: str | Path) -> None:
    """Write the differences of one metric on several sets of `evaluate.comparison` as a PNG, a panel a set."""
    columns = min(len(sets), _PANELS)
    rows = math.ceil(len(sets) / columns)
    most = max(len(found["differences"]) for found in sets.values())
    with png_figure(path, (2.2 + 1.9 * columns, 0.8 + rows * (1.3 + 0.23 * most))) as figure:
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for axis, (name, found) in zip(axes, sets.items(), strict=False):
            protocol = shown_protocols(found)[-1]
            _draw_differences(axis, found["differences"], protocol, metric)
            title = [*name.split(", ", 1), f"{protocol_name(protocol, found)}, n = {found['n']}"]
            axis.set_title("\n".join(title), fontsize=8)
        for axis in axes[len(sets) :]:
            axis.set_visible(False)
        figure.supxlabel(f"difference in {METRIC_TITLES[metric]}, points", fontsize=9)
        figure.suptitle(_legend_of_intervals(seeds, sets).replace("; ", "\n"), fontsize=9)


def write_sensitivity_plot(comparison: Mapping[str, Any], path: str | Path) -> None:
    """Write every metric against every swept value as PNG and PDF, a row of panels for a key, set and protocol."""
    rows = comparison["swept"].values()
    panels = [
        (swept, key, protocol)
        for swept in dict.fromkeys((row["recipe"], key) for row in rows for key in row["values"])
        for key, found in comparison["sets"].items()
        for protocol in shown_protocols(found)
    ]
    with png_figure(path, (11, 2.9 * len(panels)), pdf=True) as figure:
        axes = figure.subplots(len(panels), len(METRICS), squeeze=False)
        for row, (swept, key, protocol) in zip(axes, panels, strict=True):
            for axis, metric in zip(row, METRICS, strict=True):
                _draw_sensitivity(axis, comparison, swept, key, protocol, metric)
                axis.set_title(f"{key}, {protocol_name(protocol, comparison['sets'][key])}", fontsize=9, pad=22)
        figure.suptitle(_legend_of_intervals(comparison["seeds"], comparison["sets"]), fontsize=10)


def plot_recipe_shares(name: str, alt: str, shares: Mapping[str, Mapping[str, float]], terms: Mapping[str, str]) -> str:
    """A stacked bar per recipe: the percentage of the gradient that comes from each term."""

    def draw(axes: Axes) -> None:
        by_term = {label: [share.get(term, 0.0) for share in shares.values()] for term, label in terms.items()}
        _stack(axes.barh, range(len(shares)), by_term, height=0.7)
        _label_rows(axes, list(shares))
        axes.set(xlim=(0, 100.2), xlabel="percent of the gradient")
        _legend(axes, len(terms), right=True)

    return to_svg(name, alt, draw, size=(4.6, 0.8 + 0.27 * len(shares)))


def plot_curves(
    name: str, alt: str, curves: Sequence[Curve], reference: Sequence[Curve], limits: tuple[float, float]
) -> str:
    """One recipe's validation curves, a line a seed, over the grey ones of the reference."""

    def draw(axes: Axes) -> None:
        for epochs, values in reference:
            axes.plot(epochs, values, color=RULE, linewidth=1.6)
        for epochs, values in curves:
            axes.plot(epochs, values, color=STYLES[0][0], linewidth=1.1)
        axes.set_ylim(*limits)
        axes.locator_params(nbins=4)
        _rule(axes, "y")

    return to_svg(name, alt, draw, size=(2.3, 1.5))


def write_robustness_plot(results: Mapping[str, Any], path: str | Path) -> None:
    """Write accuracy against severity as a PNG: a panel a corruption, a line a recipe (the mean over its seeds)."""
    corruptions, severities = results["settings"]["corruptions"], results["settings"]["severities"]
    rows = math.ceil(len(corruptions) / _PANELS)
    with png_figure(path, (10, 0.9 + 1.75 * rows)) as figure:
        axes = figure.subplots(rows, _PANELS, squeeze=False, sharex=True, sharey=True).ravel()
        for axis, corruption in zip(axes, corruptions, strict=False):
            _plot_accuracy(axis, results, "corrupted", corruption, [0, *severities])
            axis.set_title(corruption.replace("_", " "), fontsize=9)
            axis.set_xticks([0, *severities])
            _rule(axis, "y")
        for axis in axes[len(corruptions) :]:
            axis.set_visible(False)
        figure.supxlabel("severity (0: the clean images)", fontsize=9)
        figure.supylabel("accuracy, percent", fontsize=9)
        _recipe_legend(figure, axes[0])


def write_framing_plot(results: Mapping[str, Any], path: str | Path) -> None:
    """Write accuracy against the crop's scale and shift as a PNG: a panel each, a line a recipe."""
    framings = results["settings"]["framings"]
    with png_figure(path, (9, 3)) as figure:
        axes = figure.subplots(1, len(framings), sharey=True)
        for axis, (name, levels) in zip(axes, framings.items(), strict=True):
            clean = 1.0 if name == "crop_scale" else 0.0
            x = sorted([clean, *levels])
            _plot_accuracy(axis, results, "framed", name, x)
            axis.axvline(clean, color=RULE, lw=0.8)
            axis.set_xlabel(f"{name.replace('_', ' ')}, of the image's side", fontsize=9)
            axis.set_xticks(x, [f"{level:g}" for level in x])
            _rule(axis, "y")
        figure.supylabel("accuracy, percent", fontsize=9)
        _recipe_legend(figure, axes[0])


def _plot_accuracy(axis: Axes, results: Mapping[str, Any], group: str, name: str, x: Sequence[float]) -> None:
    """Accuracy over the levels of one change, clean where the results have no such level: a line a recipe."""
    for recipe, (color, marker) in zip(results["recipes"], _styles(len(results["recipes"])), strict=True):
        students = [student for student in results["students"] if student["recipe"] == recipe]
        entries = [[s[group][name].get(f"{level:g}", s["clean"]) for level in x] for s in students]
        accuracy = np.mean([[entry["acc"] for entry in own] for own in entries], axis=0)
        axis.plot(x, accuracy, color=color, marker=marker, ms=3.5, linewidth=1.3, label=recipe)


def _recipe_legend(figure: Any, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 6), frameon=False)


def plot_forest(name: str, alt: str, groups: Mapping[str, Mapping[str, Mapping[str, Any]]], xlabel: str) -> str:
    """Scores (`value`, `ci95`, `chance`) by group and label, as dots with their intervals and a tick at chance."""
    lines = [line for group, scores in groups.items() for line in ((group, None), *scores.items())]
    labels = list(dict.fromkeys(label for label, score in lines if score is not None))

    def draw(axes: Axes) -> None:
        for y, (label, score) in enumerate(lines):
            if score is not None:
                color, marker = STYLES[labels.index(label) % len(STYLES)]
                axes.plot(score["ci95"], [y, y], color=color, linewidth=1.6)
                axes.plot(score["value"], y, color=color, marker=marker, markersize=5.5, linestyle="none")
                axes.plot([score["chance"]] * 2, [y - 0.36, y + 0.36], color=INK, linewidth=1.3)
        _label_rows(axes, [label for label, _ in lines])
        for tick, (_, score) in zip(axes.get_yticklabels(), lines, strict=True):
            tick.set_fontweight("bold" if score is None else "normal")
        axes.set_xlabel(xlabel)
        _rule(axes, "x")

    return to_svg(name, alt, draw, size=(4.4, 0.75 + 0.24 * len(lines)))


def plot_stability(name: str, alt: str, grids: Mapping[str, Any]) -> str:
    """Agreement between grids of two halves of the subjects, by size: as they are, and centred with chance."""

    def draw(axes: Axes) -> None:
        for shift, key, label, (color, marker) in (
            (-0.1, "cosine", "as it is", STYLES[1]),
            (0.1, "centered", "centred", STYLES[0]),
        ):
            scores, x = [grid["stability"][key] for grid in grids.values()], np.arange(len(grids)) + shift
            axes.vlines(x, *zip(*(s["ci95"] for s in scores), strict=True), color=color, linewidth=1.6)
            values = [s["value"] for s in scores]
            axes.plot(x, values, color=color, marker=marker, markersize=5.5, linestyle="none", label=label)
        chance = [s["chance"] for s in scores]
        axes.hlines(chance, x - 0.12, x + 0.12, color=INK, linewidth=1.3, label="chance, centred")
        axes.set_xticks(range(len(grids)), [f"{size} × {size}" for size in grids])
        axes.set(xlim=(-0.5, len(grids) - 0.5), xlabel="size of the grid", ylabel="cosine between halves")
        axes.set_ylim(top=1.05)
        _rule(axes, "y")
        _legend(axes, 3)

    return to_svg(name, alt, draw)


def plot_scalps(
    name: str, alt: str, rows: Mapping[str, np.ndarray], columns: Sequence[str], dots: np.ndarray, unit: str
) -> str:
    """Rows of maps of the scalp seen from above, nose up, on one diverging scale that is symmetric about 0.

    `rows` are titles to (B, H, W) maps as `TopomapOperator` gives them, row 0 the back of the head; `columns` B names;
    `dots` (C, 2) electrodes in radii of a map from its middle, x to the right ear, y to the nose.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Circle

    peak = max((float(np.abs(maps).max()) for maps in rows.values()), default=0.0) or 1.0
    scale: dict[str, Any] = {"vmin": -peak, "vmax": peak, "cmap": "RdBu_r", "interpolation": "none"}
    bottom = -(len(rows) - 1) * _SCALP_ROW

    def draw(axes: Axes) -> None:
        for row, (title, maps) in enumerate(rows.items()):
            y = -row * _SCALP_ROW
            axes.text(-1.1, y + 1.32, title, fontsize=8.5, fontweight="bold", color=INK, ha="left", va="bottom")
            for x, values in zip(np.arange(len(maps)) * _SCALP_STEP, maps, strict=True):
                image = axes.imshow(_extend(values), extent=(x - 1, x + 1, y - 1, y + 1), origin="lower", **scale)
                image.set_clip_path(Circle((x, y), 0.99, transform=axes.transData))
                axes.add_patch(Circle((x, y), 1.0, fill=False, edgecolor=INK, linewidth=1.0))
                axes.plot([x - 0.13, x, x + 0.13], [y + 0.99, y + 1.16, y + 0.99], color=INK, linewidth=1.0)
                axes.plot(x + dots[:, 0], y + dots[:, 1], color="#1c2128", marker="o", markersize=1.3, linestyle="none")
        for column, label in enumerate(columns):
            axes.text(column * _SCALP_STEP, bottom - 1.18, label, fontsize=9, color=INK, ha="center", va="top")
        axes.set(xlim=(-1.2, (len(columns) - 1) * _SCALP_STEP + 1.2), ylim=(bottom - 1.65, 1.8), aspect="equal")
        axes.set_axis_off()
        colors = ScalarMappable(Normalize(-peak, peak), "RdBu_r")
        _colorbar(axes, colors, unit, orientation="horizontal", fraction=0.05, pad=0.02, aspect=36)

    height = _SCALP_WIDTH * (len(rows) * _SCALP_ROW + 0.5) / (len(columns) * _SCALP_STEP) + 0.6
    svg = to_svg(name, alt, draw, size=(_SCALP_WIDTH, height))
    return svg.replace("image-rendering:crisp-edges;image-rendering:pixelated", "")


def _legend_of_intervals(seeds: Sequence[int], sets: Mapping[str, Any]) -> str:
    units = {unit_of(found) for found in sets.values()}
    over = "images (subjects where they are known)" if len(units) > 1 else f"{units.pop()}s"
    over_seeds = "; thin line: 95 % over seeds, ticks: single seeds" * (len(seeds) > 1)
    return f"dot: mean over seeds, thick line: 95 % over {over}{over_seeds}"


def _draw_differences(axes: Axes, differences: Sequence[Mapping[str, Any]], protocol: str, metric: str) -> None:
    """The axis fits the intervals over images; one over seeds may leave the plot."""
    axes.axvline(0, color=INK, linewidth=1.1)
    reach = 0.0
    for y, difference in enumerate(differences):
        value = difference[protocol][metric]
        color, marker = _SIDE_STYLES[difference_side(value)]
        axes.plot(value["ci95"], [y, y], color=color, linewidth=2.2)
        if value["seed_ci95"] is not None:
            axes.plot(value["seed_ci95"], [y + 0.24] * 2, color=color, linewidth=1.0)
        seeds = value["per_seed"] if len(value["per_seed"]) > 1 else []
        axes.plot(seeds, [y + 0.24] * len(seeds), color=color, marker="|", markersize=4, linestyle="none")
        axes.plot(value["mean"], y, color=color, marker=marker, markersize=6, linestyle="none")
        reach = max([reach, *map(abs, (*value["ci95"], *seeds, value["mean"]))])
    _label_rows(axes, [f"{d['a']} − {d['b']}" for d in differences])
    axes.set_xlim(-1.15 * reach or -1.0, 1.15 * reach or 1.0)
    _rule(axes, "x")


def _draw_sensitivity(
    axes: Axes, comparison: Mapping[str, Any], swept: tuple[str, str], key: str, protocol: str, metric: str
) -> None:
    """A line for each combination of the other swept values; the axis fits all but the intervals over seeds."""
    recipe, swept_key = swept
    rows = {row: s["values"] for row, s in comparison["swept"].items() if s["recipe"] == recipe}
    ticks = sorted({str(v[swept_key]): v[swept_key] for v in rows.values()}.items(), key=_numbers_first)
    places = {text: place for place, (text, _) in enumerate(ticks)}
    lines: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for row, values in rows.items():
        others = ", ".join(f"{k.rpartition('.')[2]} {v}" for k, v in values.items() if k != swept_key)
        score = comparison["sets"][key]["recipes"][row][protocol][metric]
        lines.setdefault(others, []).append((places[str(values[swept_key])], score))
    shown: list[float] = []
    for number, (label, points) in enumerate(sorted(lines.items())):
        color, marker = STYLES[number % len(STYLES)]
        points.sort(key=lambda point: point[0])
        shift = 0.12 * (number - (len(lines) - 1) / 2)
        x = [place + shift for place, _ in points]
        axes.plot(x, [s["mean"] for _, s in points], color=color, marker=marker, markersize=5, lw=1, label=label)
        for at, (_, score) in zip(x, points, strict=True):
            seeds = score["per_seed"] if len(score["per_seed"]) > 1 else []
            axes.plot([at, at], score["ci95"], color=color, linewidth=2.2)
            if score["seed_ci95"] is not None:
                axes.plot([at + 0.035] * 2, score["seed_ci95"], color=color, linewidth=0.9)
            axes.plot([at + 0.035] * len(seeds), seeds, color=color, marker="_", markersize=5, linestyle="none")
            shown += [*score["ci95"], *seeds]
    margin = 0.06 * (max(shown) - min(shown)) or 1.0
    axes.set_ylim(min(shown) - margin, max(shown) + margin)
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_xticks(range(len(ticks)), [text for text, _ in ticks])
    axes.set(xlabel=f"{recipe}: {swept_key}", ylabel=f"{METRIC_NAMES[metric]}, percent")
    _rule(axes, "y")
    if len(lines) > 1:
        _legend(axes, 3)


def _numbers_first(tick: tuple[str, Any]) -> tuple[bool, float]:
    """Numbers by size, other values after them as they come."""
    number = isinstance(tick[1], (int, float))
    return not number, float(tick[1]) if number else 0.0


def _stack(bar: Callable[..., Any], places: Sequence[float], parts: Mapping[str, Sequence[float]], **size: Any) -> None:
    """Bars by label on top of each other, or, with `barh`, beside each other."""
    start = np.zeros(len(places))
    for (label, values), (color, _) in zip(parts.items(), _styles(len(parts)), strict=True):
        lengths = np.nan_to_num(np.asarray(values, dtype=np.float64))
        begin = {"left" if "height" in size else "bottom": start}
        bar(places, lengths, color=color, label=label, **begin, **size)
        start = start + lengths


def _label_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Names of rows, from top to bottom."""
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)


def _rule(axes: Axes, direction: str) -> None:
    axes.grid(axis=direction, color=RULE, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def _legend(axes: Axes, columns: int, right: bool = False) -> None:
    """Above the plot."""
    axes.legend(
        loc="lower right" if right else "lower left",
        bbox_to_anchor=(int(right), 1.0),
        ncols=columns,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        borderaxespad=0.2,
        handlelength=1.2,
        columnspacing=1.0,
        handletextpad=0.4,
    )


def _colorbar(axes: Axes, image: Any, label: str, **place: Any) -> None:
    bar = axes.figure.colorbar(image, ax=axes, **place)
    bar.set_label(label, color=INK)
    bar.ax.tick_params(colors=INK, labelsize=7)
    bar.outline.set_visible(False)


def _finish_epochs(axes: Axes, epochs: Sequence[float], ylabel: str, entries: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(epochs) == 1:
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
    axes.set(xlabel="epoch", ylabel=ylabel)
    _rule(axes, "y")
    _legend(axes, min(entries, 4))


def _cell_lines(axes: Axes, edges: np.ndarray, color: str) -> None:
    for edge in edges:
        axes.axhline(edge, color=color, linewidth=0.8)
        axes.axvline(edge, color=color, linewidth=0.8)


def _styles(n: int) -> list[tuple[str, str]]:
    return [STYLES[i % len(STYLES)] for i in range(n)]


def _centers(grid: PrototypeGrid) -> list[float]:
    return np.unique(np.asarray(grid.centers)[:, 0].round(3)).tolist()


def _anchor_labels(classes: Sequence[str]) -> dict[tuple[float, float], str]:
    """Anchor to label; anchors too close for two labels (anger and fear) share one."""
    labels: dict[tuple[float, float], str] = {}
    for name, (x, y) in zip(classes, anchors(classes).tolist(), strict=True):
        near = next((place for place in labels if abs(place[0] - x) < 0.3 and abs(place[1] - y) < 0.1), (x, y))
        labels[near] = f"{labels[near]}, {name}" if near in labels else name
    return labels


def _wilson(share: np.ndarray, n: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a share of n (Wilson 1927)."""
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return middle - half, middle + half


def _extend(values: np.ndarray) -> np.ndarray:
    """The map with the nearest value outside the head too, so that smoothing at the rim has no pale edge."""
    from scipy.ndimage import distance_transform_edt

    outside = values == 0
    if outside.all():
        return values
    nearest = distance_transform_edt(outside, return_distances=False, return_indices=True)
    return values[tuple(nearest)]
