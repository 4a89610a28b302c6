"""What all pages share: templates, the size limit, the prototype grid's part."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ngd_timm.core.commands import public_fingerprint
from ngd_timm.core.errors import InputError, printable
from ngd_timm.core.files import write_text
from ngd_timm.core.paths import markdown_line, without_paths
from ngd_timm.evaluate.metrics import METRIC_TITLES
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.grid.verdict import WHO, decimal, listed, span
from ngd_timm.report.plots import plot_cosines, plot_plane

PROTOCOLS = {"8way": "all classes", "present": "present classes only"}
_EEG_SCORES = {"bacc": "high against low, balanced accuracy (bACC)", "ccc": "concordance with the rating (CCC)"}


def render(template: str, context: Mapping[str, Any], path: Path, most: int | None = None) -> Path:
    """Write a template's page, atomically; one of more than `most` bytes is refused."""
    page = fill(template, context)
    size = len(page.encode())
    if most is not None and size > most:
        raise InputError(f"the report would be {size:,} bytes, more than {most:,}; show fewer mistakes")
    write_text(path, page)
    return path


def fill(template: str, context: Mapping[str, Any]) -> str:
    """A template's text: in HTML no value can become markup, and a name that the context lacks is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("ngd_timm.report"),
        autoescape=lambda name: not str(name).endswith(".md.j2"),  # noqa: S701 - HTML is escaped
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent="{:.1f}".format, count="{:,}".format, interval=_interval, svg=Markup)
    environment.filters.update(
        decimal=decimal, span=span, p=_p, clock=clock, listed=listed, line=markdown_line, code=_code
    )
    environment.globals.update(protocols=PROTOCOLS, metric_titles=METRIC_TITLES, eeg_scores=_EEG_SCORES, who=WHO)
    return environment.get_template(template).render(context)


def clock(seconds: float) -> str:
    """Seconds up to two minutes, minutes from there."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def to_png_uri(image: Any) -> str:
    """A PIL image as a data URI."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def pretty_fingerprint(value: dict[str, Any]) -> str:
    """A fingerprint to be read by people, without folders of a disk."""
    return json.dumps(public_fingerprint(value), indent=2, ensure_ascii=False)


def grid_context(grid: PrototypeGrid, classes: Sequence[str]) -> dict[str, Any]:
    """What `parts.html.j2` shows of a grid."""
    cells, filled, total = grid.size**2, grid.filled, int(grid.counts.sum())
    plane_alt = f"Valence/arousal plane of {cells} cells, {filled} filled by {total} EEG windows; class anchors marked."
    cosine_alt = f"Matrix of cosines between {cells} prototypes; mean off the diagonal {grid.mean_cosine:.3f}."
    metadata = dict(sorted(without_paths(grid.metadata).items()))
    return {
        "size": grid.size,
        "filled": filled,
        "total": total,
        "dim": grid.dim,
        "mean_cosine": grid.mean_cosine,
        "sha256": grid.sha256,
        "dataset": metadata.get("dataset", metadata.get("provenance", "not recorded")),
        "metadata": metadata,
        "plane": plot_plane("plane", plane_alt, grid, classes),
        "cosines": plot_cosines("cosines", cosine_alt, grid),
    }


def _interval(pair: Sequence[float] | None) -> str:
    return "{:.1f}–{:.1f}".format(*pair) if pair else ""


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _code(text: str) -> str:
    """A text within a line of code, or a block of it."""
    return printable(" ".join(text.splitlines())).replace("`", "'")
