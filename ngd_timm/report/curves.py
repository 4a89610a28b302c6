"""How training went, epoch by epoch: the figures made from the rows of a run's summary.csv."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from ngd_timm.evaluate.metrics import METRIC_TITLES
from ngd_timm.report import figures

__all__ = ["TERMS", "column", "known", "mean_shares", "training_figures", "valid_column"]

TERMS = {"ce": "cross-entropy", "kd": "logit KD", "proto_kd": "Proto-KD", "d_geo": "D-Geo"}


def column(rows: Sequence[Mapping[str, str]], name: str) -> list[float]:
    """The numbers of a column; a gap is NaN."""
    return [float(row[name]) if row.get(name) else math.nan for row in rows]


def known(values: Sequence[float]) -> list[float]:
    """The values that are not gaps."""
    return [v for v in values if not math.isnan(v)]


def valid_column(row: Mapping[str, str], score: str) -> str | None:
    """The name of the column that holds a score on the validation pictures, where there is one."""
    return next((name for name in row if name.endswith(f"valid_{score}")), None)


def training_figures(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Losses, validation scores and gradient shares by epoch, each with its title and how to read it.

    Args:
        rows: Of summary.csv, see `run_log.read_rows`.

    Returns:
        `title`, `svg` and `caption` of the figures for which there are numbers.
    """
    epochs = column(rows, "epoch")
    losses = _filled(rows, {label: t for t, label in TERMS.items()})
    shares = _filled(rows, {label: f"share_{t}" for t, label in TERMS.items()})
    valid = _filled(rows, {label: valid_column(rows[0], s) for s, label in METRIC_TITLES.items()})
    made = []
    if losses:
        alt = "Loss terms by epoch. " + _first_last(losses, "{:.3g}")
        svg = figures.line_figure("losses", alt, epochs, losses, "loss, before its weight", log=True)
        caption = (
            "Each term of the objective, averaged over an epoch's training pictures: lower is better, a straight "
            "fall means a steady factor (the axis is logarithmic), and heights of different terms don't compare."
        )
        made.append({"title": "Loss by term", "svg": svg, "caption": caption})
    if valid:
        alt = "Validation figures by epoch. " + _first_last(valid, "{:.1f} %")
        svg = figures.line_figure("validation", alt, epochs, valid, "percent")
        caption = (
            "Scores on the validation pictures after each epoch: higher is better; a gap between accuracy and the "
            "other two means that rare classes are missed."
        )
        made.append({"title": "Validation by epoch", "svg": svg, "caption": caption})
    if len(shares) > 1:
        alt = "Share of the gradient by term and epoch. " + _first_last(shares, "{:.1f} %")
        svg = figures.share_figure("shares", alt, epochs, shares)
        caption = (
            "How much of the pull on the student's features comes from each weighted term (gradient norms, percent of "
            "their sum): a term whose band is too thin to see changes little of what the student learns."
        )
        made.append({"title": "Gradient share by term", "svg": svg, "caption": caption})
    return made


def mean_shares(rows: Sequence[Mapping[str, str]]) -> str:
    """What each term gave of the gradient on average, in words; empty where it wasn't measured."""
    shares = _filled(rows, {label: f"share_{t}" for t, label in TERMS.items()})
    return ", ".join(
        f"{label} gave {statistics.fmean(known(values)):.1f}\N{NO-BREAK SPACE}%" for label, values in shares.items()
    )


def _filled(rows: Sequence[Mapping[str, str]], columns: Mapping[str, str | None]) -> dict[str, list[float]]:
    """The columns that exist and hold at least one number."""
    found = {label: column(rows, name) for label, name in columns.items() if name is not None}
    return {label: values for label, values in found.items() if not all(map(math.isnan, values))}


def _first_last(lines: Mapping[str, Sequence[float]], form: str) -> str:
    parts = []
    for label, values in lines.items():
        numbers = known(values)
        parts.append(f"{label}: first {form.format(numbers[0])}, last {form.format(numbers[-1])}")
    return "; ".join(parts) + "."
