"""Where the rows of a data set lie: one file a layout, and a registry that finds the one that is there."""

from ngd_timm.data.layouts.registry import NOT_LISTED, Found, look_at
from ngd_timm.data.layouts.rows import Piece, Rows

__all__ = ["NOT_LISTED", "Found", "Piece", "Rows", "look_at"]
