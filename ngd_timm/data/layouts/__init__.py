"""Where the rows of a data set lie: one file a layout, and a registry that finds the one that is there."""

from ngd_timm.data.layouts.options import LayoutOptions
from ngd_timm.data.layouts.parquet import LABEL_COLUMNS
from ngd_timm.data.layouts.registry import LAYOUTS, NOT_LISTED, Found, find_pieces, look_at, read_piece
from ngd_timm.data.layouts.rows import Piece, Rows

__all__ = [
    "LABEL_COLUMNS",
    "LAYOUTS",
    "NOT_LISTED",
    "Found",
    "LayoutOptions",
    "Piece",
    "Rows",
    "find_pieces",
    "look_at",
    "read_piece",
]
