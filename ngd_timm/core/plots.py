"""How every plot is drawn: matplotlib to an SVG that follows the page's CSS, or to a PNG."""

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

# The light page's colours, nearly; `to_svg` replaces exactly these by CSS, so that an SVG follows the dark page too.
INK, RULE, ACCENT, PAGE = "#1c2129", "#d4d8df", "#1f66c2", "#fefeff"
_CSS = {INK: "currentColor", RULE: "var(--rule)", ACCENT: "var(--accent)", PAGE: "var(--page)"}
# Okabe and Ito's palette, with a marker each: distinguishable without colour too.
STYLES = (("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#56B4E9", "v"), ("#D55E00", "P"))
_SETTINGS: Any = {
    "text.parse_math": False,  # names of bands, classes, sets and runs may hold dollars
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # TrueType, which journals ask for
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextlib.contextmanager
def png_figure(path: str | Path, size: tuple[float, float], pdf: bool = False) -> Iterator[Figure]:
    """A figure of so many inches, written to `path` as PNG (and as PDF) atomically, when the block ends well."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
        if pdf:
            with atomic_path(Path(path).with_suffix(".pdf")) as temporary:
                figure.savefig(temporary, format="pdf", dpi=300, metadata={"CreationDate": None})


def to_svg(
    name: str, alt: str, draw: Callable[[Axes], None], size: tuple[float, float] = (4.4, 2.9), dpi: float = 100
) -> str:
    """An `<svg>` element without date, fonts or colours of its own, the same bytes for the same input.

    `name` is the prefix of the element ids, `alt` the text for those who can't see the plot, `size` in inches; `dpi` is
    that of artists which `draw` marks as rasterized.
    """
    from xml.sax.saxutils import quoteattr

    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        undated: Any = {"Date": None, "Creator": None}
        figure.savefig(
            buffer, format="svg", dpi=dpi, transparent=True, bbox_inches="tight", pad_inches=0.04, metadata=undated
        )
    text = buffer.getvalue().decode().partition("<svg")[2]
    attributes, _, inner = text.partition(">")
    (view_box,) = re.findall(r'viewBox="[^"]*"', attributes)
    inner = re.sub(r"font-family: [^;\"]*; ?", "", inner)
    inner = re.sub(r"<metadata>.*?</metadata>", "", inner, flags=re.S)
    inner = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", inner)
    for color, css in _CSS.items():
        inner = inner.replace(color, css)
    head = f'<svg role="img" aria-label={quoteattr(alt)} xmlns:xlink="http://www.w3.org/1999/xlink" {view_box}>'
    return head + inner
