"""What a run logs while it trains: summary.csv, a line an epoch, a progress bar, TensorBoard."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ngd_timm.core.distributed import is_first
from ngd_timm.core.errors import InputError
from ngd_timm.evaluate.metrics import METRIC_NAMES
from ngd_timm.losses import COMPONENTS

COLUMNS = (
    *("epoch", "lr", "loss", *COMPONENTS, "geo_ramp"),
    *(f"share_{name}" for name in COMPONENTS),
    *("lambda_proto_kd", "positive_variance", "grad_norm", "valid_acc", "valid_macro_f1", "valid_bacc"),
    *("temperature", "seconds", "images_per_second"),
)


def with_bar(batches: Iterator[Any], total: int, title: str) -> Iterator[Any]:
    """The batches, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not console.is_terminal or not is_first():
        return batches
    return iter(track(batches, description=title, total=total, console=console, transient=True))


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    parts = [f"{name} {row[name]:.4g}" for name in ("loss", *COMPONENTS) if row.get(name) is not None]
    shares = [f"{name} {row[f'share_{name}']:.2g}%" for name in COMPONENTS[1:] if row.get(f"share_{name}") is not None]
    valid = [f"{name} {row[f'valid_{metric}']:.2f}" for metric, name in METRIC_NAMES.items()]
    return (
        f"epoch {row['epoch'] + 1}/{epochs}  {'  '.join(parts)}"
        + (f"  gradient {' '.join(shares)}" if shares else "")
        + f"  valid {' '.join(valid)}"
        + f"  {row['seconds']:.0f} s, {row['images_per_second']:.0f} images/s"
    )


def write_tensorboard(folder: Path, row: dict[str, Any]) -> None:
    """Add an epoch's row, in place of an earlier one of that epoch."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder), purge_step=row["epoch"]) as writer:
        for name, value in row.items():
            if value is not None and name != "epoch":
                writer.add_scalar(name, value, row["epoch"])


def summary_csv(rows: list[dict[str, Any]]) -> str:
    """All rows as the text of summary.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="raise", restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of summary.csv, one an epoch."""
    if not path.is_file():
        raise InputError(f"{path} is missing; it lies in the directory that the run was trained into")
    with open(path, newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    if not rows or "epoch" not in rows[0]:
        raise InputError(f"{path} has no epochs; train the run first")
    short = next((i for i, row in enumerate(rows, start=1) if None in row or None in row.values()), None)
    if short is not None:
        raise InputError(f"{path}: row {short} is not whole; bring the file again, or continue the run")
    return rows
