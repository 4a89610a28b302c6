"""Faces: data sets by name and root, label rules, samplers, and batches ready for a model.

May import core.
"""

# ruff: noqa: F401

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ngd_timm.data.batches import Batch, FaceBatches, class_counts
    from ngd_timm.data.fer import LoadReport, load_fer, load_split, load_splits, load_stream, parse_spec
    from ngd_timm.data.labels import DATASETS, LABEL_RULES, SPLITS
    from ngd_timm.data.layouts.image_list import write_list
    from ngd_timm.data.stream_batches import FaceStream
    from ngd_timm.data.subset import write_subset
    from ngd_timm.data.synthetic.tiny import TINY_LAYOUTS, write_tiny

_NAMES = {
    "batches": ("Batch", "FaceBatches", "class_counts"),
    "fer": ("LoadReport", "load_fer", "load_split", "load_splits", "load_stream", "parse_spec"),
    "labels": ("DATASETS", "LABEL_RULES", "SPLITS"),
    "layouts.image_list": ("write_list",),
    "stream_batches": ("FaceStream",),
    "subset": ("write_subset",),
    "synthetic.tiny": ("TINY_LAYOUTS", "write_tiny"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    # `datasets` takes seconds to import, so it is not imported until it is used.
    if name not in _HOME:
        raise AttributeError(f"module 'ngd_timm.data' has no attribute '{name}'")
    return getattr(importlib.import_module(f"ngd_timm.data.{_HOME[name]}"), name)
