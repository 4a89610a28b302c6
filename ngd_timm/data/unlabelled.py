"""Face crops whose labels are not read: what a teacher labels while a student trains."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ngd_timm.core.errors import InputError
from ngd_timm.core.images import image_files
from ngd_timm.data.fer import LoadReport, choose, parse_spec, rows_sha256
from ngd_timm.data.layouts import Found, Piece, Rows, look_at
from ngd_timm.data.layouts.options import LayoutOptions, parse_root
from ngd_timm.data.layouts.rows import dataset_of, table_of_files

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("ngd_timm.data")

_NO_CLASS = -100


def load_unlabelled(name: str, roots: Sequence[str], classes: Sequence[str]) -> tuple[Dataset, LoadReport]:
    """Load the images of several roots, `ROOT[,key=value][:split]` each, without their labels.

    A root is read as `load_fer` reads it for the data set `name`, whatever its classes are; parquet, Hub data sets and
    NPZ need no labels, and images that lie directly in a folder no class folders. The label of every row is -100, which
    is no class: see `NeuroGazeLoss`.

    Returns:
        A `datasets.Dataset` of `image`, `label` and `source`, and the report of what was read.

    Raises:
        InputError: A root that can't be read, or no image.

    Examples:
        >>> import tempfile
        >>> from ngd_timm.data.synthetic.schematic import write_schematic
        >>> folder = write_schematic(tempfile.mkdtemp(), "pencil", n_train=8, n_valid=8, n_test=8, seed=0)
        >>> images, report = load_unlabelled("schematic", [f"{folder}:train"], ("happiness", "fear"))
        >>> images["label"][:3], report.kept
        ([-100, -100, -100], 8)
    """
    from datasets import ClassLabel, Features, Image, Value

    tables, dropped, read, layouts, ids = list[pa.Table](), Counter[str](), 0, dict[str, None](), dict[str, None]()
    for root in roots:
        for piece in _pieces(name, root):
            rows = piece.read()
            index = np.flatnonzero(rows.usable())
            held = rows.held(index)
            table = rows.table.take(index) if held is None else held
            tables.append(table.select(["image", "source"]))
            read, layouts[piece.kind] = read + rows.table.num_rows, None
            ids |= {piece.dataset_id: None} if piece.dataset_id else {}
            dropped.update({reason: int(mask.sum()) for reason, mask in rows.dropped.items() if mask.any()})
    table = pa.concat_tables(tables)
    target = np.full(table.num_rows, _NO_CLASS)
    if not len(target):
        raise InputError(f"data.unlabelled={', '.join(roots)} has no image left; check the roots and their options")
    features = Features({"image": Image(), "source": Value("string"), "label": ClassLabel(names=list(classes))})
    dataset = dataset_of(table.append_column("label", pa.array(target)).cast(features.arrow_schema))
    report = LoadReport(
        name=name,
        split="unlabelled",
        labels="not read",
        read=read,
        dropped=dict(dropped),
        kept=len(target),
        counts={},
        duplicates="kept",
        sha256=rows_sha256(dataset, target),
        layout=", ".join(layouts),
        dataset_id=", ".join(ids),
    )
    log.info(report.lines()[0])
    return dataset, report


def _pieces(name: str, root: str) -> list[Piece]:
    _, root, split, _ = parse_spec(f"{name}={root}")
    place, options = parse_root(root)
    path = Path(place)
    if split in (None, "all") and path.is_dir() and image_files(path):
        if options != LayoutOptions():
            raise InputError(
                f"data.unlabelled={root}: images that lie directly in a folder are taken whole; leave the options out"
            )
        return [Piece("folder of images", path, None, path.name, partial(_rows_of_folder, path))]
    found: Found = look_at(root, name, labelled=False)
    if found.hold_out is not None:
        raise InputError(
            f"data.unlabelled={root}: what hold_out keeps for validation would be trained on; leave it out"
        )
    return choose(found, split, root)


def _rows_of_folder(folder: Path) -> Rows:
    files = image_files(folder, deep=True)
    return Rows(table_of_files(files, folder), None, None, np.full(len(files), _NO_CLASS))
