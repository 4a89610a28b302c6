"""Plots with matplotlib, as PNG or as an SVG whose colours are the page's CSS."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngd_timm.core.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ACCENT", "INK", "PAGE", "RULE", "STYLES", "png_figure", "to_svg"]

# `to_svg` replaces these by CSS, for the light and the dark page
INK, RULE, ACCENT, PAGE = "#010203", "#040506", "#070809", "#0a0b0c"
_CSS = {INK: "currentColor", RULE: "var(--rule)", ACCENT: "var(--accent)", PAGE: "var(--page)"}
# names of bands, classes, sets and runs may hold a dollar
_PLAIN_TEXT: Any = {"text.parse_math": False}
# Okabe and Ito's palette, with a marker each: distinguishable without colour too.
STYLES = (("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#56B4E9", "v"), ("#D55E00", "P"))


@contextlib.contextmanager
def png_figure(path: str | Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A matplotlib figure, its size in inches, that is written to `path` as PNG when the block ends well."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_PLAIN_TEXT):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def to_svg(
    name: str, alt: str, draw: Callable[[Axes], None], size: tuple[float, float] = (4.4, 2.9), dpi: float = 100
) -> str:
    """An inline SVG of what `draw` draws, its ids prefixed by `name`, without date, fonts and colours of its own.

    `dpi` is of the artists that `draw` marks as rasterized; those keep their colours.
    """
    from xml.sax.saxutils import quoteattr

    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings = {
        **_PLAIN_TEXT,
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.edgecolor": RULE,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.BytesIO()
        plain = {"Date": None, "Creator": None}
        figure.savefig(
            buffer, format="svg", dpi=dpi, transparent=True, bbox_inches="tight", pad_inches=0.04, metadata=plain
        )
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for stand_in, css in _CSS.items():
        text = text.replace(stand_in, css)
    view_box = re.search(r'viewBox="[^"]*"', text)
    if view_box is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox")
    inner = text[text.index(">") + 1 :]
    return (
        f'<svg role="img" aria-label={quoteattr(alt)} xmlns:xlink="http://www.w3.org/1999/xlink" {view_box[0]}>{inner}'
    )
