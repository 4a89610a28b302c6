"""Where the rows of a data set lie: one file a layout, and a registry that finds the one that is there."""

from ngd_timm.data.layouts.registry import NOT_LISTED, Found, look_at
from ngd_timm.data.layouts.rows import Piece, Rows, dataset_id

__all__ = ["NOT_LISTED", "Found", "Piece", "Rows", "dataset_id", "look_at"]
