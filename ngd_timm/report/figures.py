"""The figures that papers show, as PNG and PDF: confusion matrices, embeddings side by side, class centres."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ngd_timm.core.affect import anchors
from ngd_timm.core.plots import INK, RULE, png_figure
from ngd_timm.evaluate.metrics import confusion_difference, fer_metrics, protocol_name, scoring_name
from ngd_timm.evaluate.predictions import Predictions, prediction_file, read_predictions
from ngd_timm.evaluate.run import read_run
from ngd_timm.losses import ProtoKDLoss
from ngd_timm.losses.functional import unit
from ngd_timm.report.plots import CLASS_STYLES
from ngd_timm.report.sets import embedding_map, stratified

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONFUSIONS = {"confmat": "8way", "confmat_present": "present"}
"""File names of confusion matrices, and their protocol."""
_MATRICES = {"8way": "confusion", "present": "confusion_present"}
_MOST_ROWS = 8  # of a table, whose embeddings are drawn
_POINTS = 600  # in a map of embeddings


def figure_folder(folder: str | Path, key: str) -> Path:
    """Where a run or an ablation keeps the figures of the data set `name:split`."""
    return Path(folder) / "figures" / key.replace(":", "-")


def write_confusions(results: Mapping[str, Mapping[str, Any]], run: str | Path) -> None:
    """Write confmat.png and confmat_present.png (and as PDF) of entries of metrics.json into a run's figures/."""
    for key, entry in results.items():
        for name, protocol in CONFUSIONS.items():
            title = f"{key}, {protocol_name(protocol, entry)}\n{scoring_name(entry)}"
            matrix = np.array(entry[_MATRICES[protocol]])
            _write_confusions(figure_folder(run, key) / f"{name}.png", {title: matrix}, tuple(entry["per_class"]))


def write_ablation_figures(comparison: Mapping[str, Any], folder: str | Path) -> None:
    """Write the figures of every set into an ablation's figures/; embeddings and class centres of the first set.

    Embeddings are those of the first seed's runs.
    """
    folder, recipes = Path(folder), comparison["recipes"]
    for number, (key, found) in enumerate(comparison["sets"].items()):
        runs = {name: [folder / "runs" / run for run in comparison["runs"][name]] for name in recipes}
        kept = {name: [read_predictions(prediction_file(run, key)) for run in runs[name]] for name in recipes}
        at, classes = figure_folder(folder, key), kept[recipes[0]][0].classes
        for name, protocol in CONFUSIONS.items():
            shown = protocol_name(protocol, found)
            panels = {row: _counts(by_seed, protocol) for row, by_seed in kept.items()}
            _write_confusions(at / f"{name}.png", panels, classes, f"{key}, {shown}")
        if len(recipes) > 1:
            _write_difference(at, key, recipes[-1], recipes[0], kept)
        if number == 0:
            drawn = recipes[:_MOST_ROWS]
            _write_embeddings(at, {name: kept[name][0] for name in drawn}, key)
            places = {name: class_centers(runs[name], kept[name]) for name in drawn}
            _write_panels(at / "va_plane.png", places, partial(_draw_centers, classes=classes), key)


def _counts(by_seed: Sequence[Predictions], protocol: str) -> np.ndarray:
    """The confusion matrices of all seeds together."""
    entries = [fer_metrics(p.logits, p.target, p.classes, resamples=0) for p in by_seed]
    return np.array([entry[_MATRICES[protocol]] for entry in entries]).sum(axis=0)


def _write_panels(
    path: Path,
    panels: Mapping[str, Any],
    draw: Callable[[Axes, str, Any], None],
    heading: str = "",
    width: float = 3.3,
    scale: float = 1.0,
) -> None:
    """A panel a row of the table, at most four side by side, under one legend."""
    columns = min(len(panels), 4)
    rows = math.ceil(len(panels) / columns)
    with png_figure(path, (max(width * columns, 4.5), width * rows + 0.5), pdf=True) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, (title, panel) in zip(axes, panels.items(), strict=False):
            draw(axis, title, panel)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        figure.suptitle(heading, fontsize=10)
        handles, labels = axes[0].get_legend_handles_labels()
        if labels:
            figure.legend(
                handles, labels, loc="outside lower center", ncols=2 * columns, frameon=False, markerscale=scale
            )


def _write_confusions(path: Path, panels: Mapping[str, np.ndarray], classes: Sequence[str], heading: str = "") -> None:
    """Percent of each true class's images; rows of classes without images stay empty."""

    def draw(axes: Axes, title: str, counts: np.ndarray) -> None:
        n = counts.sum(axis=1, keepdims=True)
        percent = np.divide(100.0 * counts, n, out=np.full(counts.shape, np.nan), where=n > 0)
        _draw_matrix(axes, f"{title}, n = {n.sum():,}", percent, classes, "Blues", (0, 100), percent > 55)

    _write_panels(path, panels, draw, heading, width=4.2)


def _write_difference(at: Path, key: str, last: str, first: str, kept: Mapping[str, Sequence[Predictions]]) -> None:
    """Last row minus first, a figure a protocol; bold where the interval over images, or subjects, excludes 0."""
    a, b = ([p.logits for p in kept[name]] for name in (last, first))
    reference = kept[first][0]
    unit = "images" if reference.subject is None else "subjects"
    found = confusion_difference(a, b, reference.target, reference.classes, reference.subject)
    for name, protocol in CONFUSIONS.items():
        mean, low, high = found[protocol]
        reach = max(float(np.nanmax(np.abs(mean))), 1.0)
        with png_figure(at / f"{name}_difference.png", (7.2, 6.4), pdf=True) as figure:
            axes, apart = figure.add_subplot(), (low > 0) | (high < 0)
            masked = "masked to present classes, " * (protocol == "present")
            title = f"{key}: {last} − {first}\n{masked}points [95 % over {unit}]; bold: 0 is outside"
            _draw_matrix(axes, title, mean, reference.classes, "RdBu", (-reach, reach), np.abs(mean) > 0.6 * reach)
            for (i, j), text in zip(np.ndindex(mean.shape), list(axes.texts), strict=True):
                if not np.isnan(mean[i, j]):
                    text.set_text(f"{mean[i, j]:+.1f}\n[{low[i, j]:+.0f}, {high[i, j]:+.0f}]".replace("-", "−"))
                    text.set_fontweight("bold" if apart[i, j] else "normal")


def _draw_matrix(
    axes: Axes,
    title: str,
    values: np.ndarray,
    classes: Sequence[str],
    colors: str,
    limits: tuple[float, float],
    dark: np.ndarray,
) -> None:
    axes.imshow(values, cmap=colors, vmin=limits[0], vmax=limits[1])
    for (i, j), value in np.ndenumerate(values):
        text = "" if np.isnan(value) else f"{value:.0f}"
        shown = axes.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if dark[i, j] else INK)
        shown.set_in_layout(False)  # measuring hundreds of texts would take most of the time
    axes.set_xticks(range(len(classes)), list(classes), rotation=45, ha="right", fontsize=7)
    axes.set_yticks(range(len(classes)), list(classes), fontsize=7)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("predicted", fontsize=8)
    axes.set_ylabel("true", fontsize=8)
    axes.tick_params(length=0)


def _write_embeddings(at: Path, rows: Mapping[str, Predictions], key: str) -> None:
    """The same images in every panel, as equally many of each class as there are."""
    first = next(iter(rows.values()))
    sample = stratified(first.target.numpy(), _POINTS)
    label = first.target.numpy()[sample]
    maps: dict[str, dict[str, np.ndarray]] = {"embeddings_pca": {}, "embeddings_tsne": {}}
    for name, predictions in rows.items():
        assert predictions.embedding is not None  # `write_predictions` keeps none without
        z = unit(predictions.embedding[sample].double()).numpy()
        centered = z - z.mean(axis=0)
        left, scale, _ = np.linalg.svd(centered, full_matrices=False)
        share = 100 * (scale[:2] ** 2).sum() / max((scale**2).sum(), 1e-12)
        maps["embeddings_pca"][f"{name} ({z.shape[1]}-d; {share:.0f} % of the variance)"] = left[:, :2] * scale[:2]
        if (points := embedding_map(z)) is not None:
            maps["embeddings_tsne"][f"{name} ({z.shape[1]}-d)"] = points

    def draw(axes: Axes, title: str, points: np.ndarray) -> None:
        for c, (class_name, (color, marker)) in enumerate(zip(first.classes, CLASS_STYLES, strict=False)):
            x, y = points[label == c].T
            axes.scatter(x, y, s=9, c=color, marker=marker, alpha=0.8, linewidths=0, label=class_name)
        axes.set_title(title, fontsize=9)
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[:].set_visible(True)

    for name, panels in maps.items():
        if panels:
            _write_panels(at / f"{name}.png", panels, draw, f"{key}, {len(sample)} images", scale=2)


def class_centers(runs: Sequence[Path], kept: Sequence[Predictions]) -> tuple[str, np.ndarray, np.ndarray | None]:
    """A note, the classes' (C, 2) places on the plane, and those at which Proto-KD is 0; anchors without Proto-KD.

    A class's place is the mean over its images, and seeds, of the expected cell centre under the student's q on its
    run's own grid, which controls draw anew for each seed.
    """
    classes, target = kept[0].classes, kept[0].target.numpy()
    places, aims = [], []
    for run, predictions in zip(map(read_run, runs), kept, strict=True):
        settings, embedding = run.recipe.loss, predictions.embedding
        if run.grid is None or not settings.uses_grid or embedding is None or embedding.shape[1] != run.grid.dim:
            return "no Proto-KD: the anchors", anchors(classes).astype(np.float64), None
        loss = ProtoKDLoss(run.grid, settings.tau, settings.target, settings.sigma, classes)
        places.append(loss.place(embedding).double().numpy())
        aims.append((loss.class_targets @ loss.cell_centers).double().numpy())
    place = np.mean(places, axis=0)
    means = [place[target == c].mean(axis=0) if (target == c).any() else [np.nan] * 2 for c in range(len(classes))]
    return f"τ {loss.tau:g}", np.array(means), np.mean(aims, axis=0)


def _draw_centers(
    axes: Axes, title: str, panel: tuple[str, np.ndarray, np.ndarray | None], classes: Sequence[str]
) -> None:
    """Filled: where a class is; hollow: where Proto-KD pulls it. The whole plane only without it."""
    note, places, aims = panel
    for c, (class_name, (color, marker)) in enumerate(zip(classes, CLASS_STYLES, strict=False)):
        if aims is not None:
            axes.plot(*zip(places[c], aims[c], strict=True), color=color, linewidth=0.7)
            axes.plot(*aims[c], color=color, marker=marker, markersize=6, fillstyle="none", linestyle="none")
        axes.plot(*places[c], color=color, marker=marker, markersize=6, linestyle="none", label=class_name)
    if aims is None:
        axes.set(xlim=(-1, 1), ylim=(-1, 1), xticks=(-1, -0.5, 0, 0.5, 1), yticks=(-1, -0.5, 0, 0.5, 1))
    axes.axhline(0, color=RULE, linewidth=0.8, zorder=0)
    axes.axvline(0, color=RULE, linewidth=0.8, zorder=0)
    axes.set_title(f"{title} ({note})", fontsize=9)
    axes.set(xlabel="valence", ylabel="arousal")
    axes.tick_params(labelsize=7)
