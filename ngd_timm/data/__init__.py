"""Faces: data sets by name and root, label rules, samplers, and batches ready for a model.

May import core.
"""

from ngd_timm.data.batches import Batch, FaceBatches, class_counts
from ngd_timm.data.fer import LoadReport, load_fer, load_split, load_splits, load_stream, parse_spec
from ngd_timm.data.labels import DATASETS, LABEL_RULES, SPLITS
from ngd_timm.data.layouts.image_list import write_list
from ngd_timm.data.stream_batches import FaceStream
from ngd_timm.data.subset import write_subset
from ngd_timm.data.synthetic.tiny import TINY_LAYOUTS, write_tiny

__all__ = [
    "DATASETS",
    "LABEL_RULES",
    "SPLITS",
    "TINY_LAYOUTS",
    "Batch",
    "FaceBatches",
    "FaceStream",
    "LoadReport",
    "class_counts",
    "load_fer",
    "load_split",
    "load_splits",
    "load_stream",
    "parse_spec",
    "write_list",
    "write_subset",
    "write_tiny",
]
