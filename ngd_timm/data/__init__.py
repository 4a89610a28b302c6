"""Faces: data sets by name and root, label rules, samplers, and batches ready for a model.

May import core.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ngd_timm.data.batches import Batch, FaceBatches, class_counts
    from ngd_timm.data.fer import LoadReport, load_fer, load_split, load_splits, load_stream, parse_spec
    from ngd_timm.data.labels import DATASETS, LABEL_RULES, SPLITS
    from ngd_timm.data.layouts.image_list import write_list
    from ngd_timm.data.stream_batches import FaceStream
    from ngd_timm.data.synthetic import schematic as schematic
    from ngd_timm.data.synthetic.tiny import TINY_LAYOUTS, write_tiny

__all__ = [
    "Batch",
    "DATASETS",
    "FaceBatches",
    "FaceStream",
    "LABEL_RULES",
    "LoadReport",
    "SPLITS",
    "TINY_LAYOUTS",
    "class_counts",
    "load_fer",
    "load_split",
    "load_splits",
    "load_stream",
    "parse_spec",
    "schematic",
    "write_list",
    "write_tiny",
]

_HOME = {
    "Batch": "batches",
    "DATASETS": "labels",
    "FaceBatches": "batches",
    "FaceStream": "stream_batches",
    "LABEL_RULES": "labels",
    "LoadReport": "fer",
    "SPLITS": "labels",
    "TINY_LAYOUTS": "synthetic.tiny",
    "class_counts": "batches",
    "load_fer": "fer",
    "load_split": "fer",
    "load_splits": "fer",
    "load_stream": "fer",
    "parse_spec": "fer",
    "write_list": "layouts.image_list",
    "write_tiny": "synthetic.tiny",
}


def __getattr__(name: str) -> Any:
    # `datasets` takes seconds to import, so it is not imported until it is used.
    if name == "schematic":
        return importlib.import_module("ngd_timm.data.synthetic.schematic")
    if name not in _HOME:
        raise AttributeError(f"module 'ngd_timm.data' has no attribute '{name}'")
    return getattr(importlib.import_module(f"ngd_timm.data.{_HOME[name]}"), name)
