"""What every report shares: the frame of the page, the prototype grid's part of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import write_text
from ngd_timm.core.paths import without_paths
from ngd_timm.report import figures

if TYPE_CHECKING:
    from ngd_timm.grid.prototypes import PrototypeGrid

__all__ = ["PROTOCOLS", "clock", "grid_context", "png_uri", "render", "write_page"]

PROTOCOLS = {"8way": "all classes", "present": "present classes only"}
_MAX_BYTES = 3_000_000


def render(template: str, context: Mapping[str, Any]) -> str:
    """The page of a template; a name that the context lacks is an error, and text can't become markup."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("ngd_timm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, interval=_interval, svg=Markup)
    return environment.get_template(template).render(**context, protocols=PROTOCOLS)


def write_page(path: Path, page: str) -> Path:
    """Write a page, atomically, unless it has grown past 3 MB."""
    if len(page.encode()) > _MAX_BYTES:
        raise InputError(
            f"the report would be {len(page.encode()):,} bytes and must stay under {_MAX_BYTES:,}; ask for fewer "
            "mistakes"
        )
    write_text(path, page)
    return path


def clock(seconds: float) -> str:
    """Seconds up to two minutes, minutes from there.

    Example:
        >>> clock(12.3), clock(150)
        ('12 s', '2.5 min')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def png_uri(image: Any) -> str:
    """A PIL image as a data URI."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def grid_context(grid: PrototypeGrid, name: str | None, classes: Sequence[str]) -> dict[str, Any]:
    """What `parts.html.j2` says and shows of a grid."""
    filled = int((grid.counts > 0).sum())
    cells = grid.size * grid.size
    total = int(grid.counts.sum())
    plane_alt = f"Valence/arousal plane of {cells} cells, {filled} filled by {total} EEG windows; class anchors marked."
    cosine_alt = f"Matrix of cosines between {cells} prototypes; mean off the diagonal {grid.mean_cosine:.3f}."
    return {
        "name": name,
        "size": grid.size,
        "cells": cells,
        "filled": filled,
        "total": total,
        "dim": int(grid.prototypes.shape[1]),
        "mean_cosine": grid.mean_cosine,
        "sha256": grid.sha256,
        "people_known": "subjects_per_cell" in grid.metadata,
        "mantel": {k: grid.metadata.get(f"mantel_{k}_centered") for k in ("r", "p")},
        "dataset": without_paths(grid.metadata.get("dataset", grid.metadata.get("provenance", "not recorded"))),
        "metadata": dict(sorted(without_paths(grid.metadata).items())),
        "plane": figures.grid_figure("plane", plane_alt, grid, classes),
        "cosines": figures.cosine_figure("cosines", cosine_alt, grid),
    }


def _percent(value: float) -> str:
    return f"{value:.1f}"


def _interval(pair: Sequence[float] | None) -> str:
    return "" if not pair else f"{pair[0]:.1f}–{pair[1]:.1f}"
