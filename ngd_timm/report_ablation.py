"""The report of an ablation."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_ablation_report"]


def write_ablation_report(folder: str | Path) -> Path:
    """Write `report.html` into an ablation's folder."""
    raise NotImplementedError
