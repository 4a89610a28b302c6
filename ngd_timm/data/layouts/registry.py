"""Which layout lies at a root: decided by the data set's name and by what is there, in one order."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.core.hub import hub_id
from ngd_timm.core.images import raise_image_limit
from ngd_timm.data.labels import SPLITS, SUBJECT_IN_NAME
from ngd_timm.data.layouts.affectnet import find_affectnet_csv, find_affectnet_folders
from ngd_timm.data.layouts.ckplus import find_ckplus
from ngd_timm.data.layouts.ferplus import find_ferplus_export, find_ferplus_two_csv
from ngd_timm.data.layouts.folders import find_folders, find_jaffe, find_sfew
from ngd_timm.data.layouts.hub_dataset import find_hub, find_webdataset
from ngd_timm.data.layouts.image_list import check_sha256, on_list, read_list
from ngd_timm.data.layouts.manifest import find_manifests
from ngd_timm.data.layouts.npz import find_npz
from ngd_timm.data.layouts.options import LayoutOptions, Source, beside, parse_root
from ngd_timm.data.layouts.parquet import find_parquet
from ngd_timm.data.layouts.pixels_csv import find_pixels_csv
from ngd_timm.data.layouts.rafdb import find_rafdb_kaggle, find_rafdb_list
from ngd_timm.data.layouts.rows import Piece, Rows, with_subjects, without_unknown

log = logging.getLogger("ngd_timm.data")

NOT_LISTED = "not on the list of images"


@dataclass(frozen=True)
class Layout:
    """One way in which files lie."""

    find: Callable[[Source], list[Piece] | None]  # None where this layout isn't there
    dataset: str | None = None  # the data set that comes in it; None for a layout of any
    folder: bool = False  # not looked for where the root is a file


# The first that is there is read.
LAYOUTS: tuple[Layout, ...] = (
    # before parquet, which is looked for below every folder: these have hundreds of thousands of files
    Layout(find_affectnet_folders, "affectnet", folder=True),
    Layout(find_affectnet_csv, "affectnet"),
    Layout(find_ckplus, "ckplus"),
    Layout(find_parquet),
    Layout(find_ferplus_export, "ferplus", folder=True),
    Layout(find_ferplus_two_csv, "ferplus"),
    Layout(find_rafdb_list, "rafdb"),
    Layout(find_rafdb_kaggle, "rafdb", folder=True),
    Layout(find_jaffe, "jaffe", folder=True),
    Layout(find_sfew, "sfew", folder=True),
    Layout(find_pixels_csv),
    Layout(find_npz),
    Layout(find_manifests),
    Layout(find_webdataset, folder=True),
    Layout(find_folders, folder=True),
)

_TABLES = ("parquet", "Hub data set", "webdataset")
_TAKEN_BY: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("image", "label"), _TABLES),
    **dict.fromkeys(("names", "class_map"), (*_TABLES, "NPZ", "CSV manifest", "class folders")),
    "missing": ("AffectNet lists", "CSV manifest"),
    **dict.fromkeys(("config", "revision"), ("Hub data set",)),
    **dict.fromkeys(("apex_frames", "neutral_frame"), ("CK+ sequences",)),
}
"""Options that only some layouts take, by the words of `Piece.kind`."""


@dataclass(frozen=True)
class Found:
    """What lies at a root."""

    pieces: list[Piece]  # train, valid, test, unnamed, then by name
    listed: frozenset[str] | None = None  # the images that a list names
    hold_out: float | None = None  # the share of the training images that is the valid split


def look_at(
    root: str | Path,
    dataset: str,
    options: Mapping[str, Any] | None = None,
    streaming: bool = False,
    labelled: bool = True,
) -> Found:
    """Find the layout at a root; with `streaming` nothing of a Hub data set is downloaded before it is needed."""
    text, parsed = parse_root(root, options)
    if parsed.max_megapixels is not None:
        raise_image_limit(parsed.max_megapixels)
    path, labelled = Path(text), labelled or parsed.unknown is not None
    if path.exists():
        pieces = _find(Source(path, dataset, parsed, labelled))
    elif (repository := hub_id(text)) is not None:
        pieces = find_hub(repository, Source(path, dataset, parsed, labelled), streaming)
    else:
        raise InputError(
            f"no data set at {text}: the path doesn't exist; give its folder or file, or a Hub id (user/dataset)"
        )
    for key, kinds in _TAKEN_BY.items():
        if getattr(parsed, key) != getattr(LayoutOptions, key) and pieces[0].kind not in kinds:
            raise InputError(f"{text} is read as {pieces[0].kind}, which takes no {key}; leave {key}=… out")
    if parsed.unknown is not None:
        pieces = [_changed(piece, partial(without_unknown, dataset=dataset)) for piece in pieces]
    if dataset in SUBJECT_IN_NAME:
        pieces = [_changed(piece, partial(with_subjects, dataset=dataset)) for piece in pieces]
    order = (*SPLITS, None)
    pieces = sorted(pieces, key=lambda p: (order.index(p.split), p.shown))
    if parsed.hold_out is not None and any(piece.split == "valid" for piece in pieces):
        raise InputError(f"{text} has a split 'valid'; leave hold_out={parsed.hold_out:g} out")
    listed = _listed(path, parsed)
    if listed is not None:
        pieces = [_changed(piece, partial(_without_unlisted, listed=listed)) for piece in pieces]
    if parsed.part is not None:
        pieces = [_changed(piece, partial(_of_part, part=parsed.part, by=parsed.by, shown=text)) for piece in pieces]
    return Found(pieces, listed, parsed.hold_out)


def _listed(root: Path, options: LayoutOptions) -> frozenset[str] | None:
    """The images on the list that the options name, None where they name none; hashes are checked."""
    if options.list is None:
        if options.sha256 is not None:
            if not root.is_file():
                raise InputError(
                    f"sha256=… is the hash of a list or of a file, and {root} is neither; give list=… with it"
                )
            check_sha256(root, options.sha256)
        return None
    base = root if root.is_dir() else root.parent
    listed = read_list(beside(root, options.list), options.sha256)
    missing = sorted(entry for entry in listed if not (base / entry).is_file())
    if 0 < len(missing) < len(listed):
        raise InputError(
            f"{options.list}: {len(missing)} of {len(listed)} images aren't below {base} (first: "
            f"{', '.join(missing[:3])}); bring them, the set is only whole with all"
        )
    return listed


def _find(source: Source) -> list[Piece]:
    for layout in LAYOUTS:
        if layout.dataset not in (None, source.dataset) or (layout.folder and source.root.is_file()):
            continue
        pieces = layout.find(source)
        if pieces is not None:
            log.info("%s: read as %s", source.root, pieces[0].kind)
            return pieces
    raise InputError(
        f"{source.root} is no file that holds a data set; give a parquet, NPZ or CSV file, or the folder of a layout "
        "(a list of images goes behind it: FOLDER,list=FILE)"
    )


def _changed(piece: Piece, change: Callable[[Rows], Rows]) -> Piece:
    """The same piece, its rows changed as they are read."""
    stream = None if piece.stream is None else partial(_then, piece.stream, partial(map, change))
    return replace(piece, read=partial(_then, piece.read, change), stream=stream)


def _then(function: Callable[[], Any], change: Callable[[Any], Any]) -> Any:
    return change(function())


def _of_part(rows: Rows, part: tuple[int, int], by: str, shown: str) -> Rows:
    """The rows for which the first 8 bytes of sha256 of a column's value, modulo `count`, are `number`."""
    names = rows.table[by].to_pylist() if by in rows.table.column_names else [None] * rows.table.num_rows
    number, count = part
    usable = rows.usable()
    if unnamed := sum(name is None for name, used in zip(names, usable, strict=True) if used):
        raise InputError(f"{shown}: {unnamed} of {usable.sum()} images have no {by}, which part=… goes by; choose by=…")
    digests = (hashlib.sha256((name or "").encode()).digest() for name in names)
    away = usable & np.array([int.from_bytes(d[:8], "big") % count != number for d in digests], dtype=bool)
    return replace(rows, dropped={**rows.dropped, f"of another part than {number}/{count} by {by}": away})


def _without_unlisted(rows: Rows, listed: frozenset[str]) -> Rows:
    away = ~on_list(rows, listed)
    return replace(rows, dropped={NOT_LISTED: away, **{reason: mask & ~away for reason, mask in rows.dropped.items()}})
