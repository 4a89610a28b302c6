"""Which layout lies at a root: decided by the data set's name and by what is there, in one order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ngd_timm.core.errors import InputError
from ngd_timm.core.hub import hub_id
from ngd_timm.core.images import raise_image_limit
from ngd_timm.data.labels import SUBJECT_IN_NAME
from ngd_timm.data.layouts.affectnet import find_affectnet_csv, find_affectnet_folders
from ngd_timm.data.layouts.ckplus import find_ckplus
from ngd_timm.data.layouts.ferplus import find_ferplus_export, find_ferplus_two_csv
from ngd_timm.data.layouts.folders import find_folders
from ngd_timm.data.layouts.hub import find_hub
from ngd_timm.data.layouts.jaffe import find_jaffe
from ngd_timm.data.layouts.manifest import find_manifests
from ngd_timm.data.layouts.npz import find_npz
from ngd_timm.data.layouts.options import Source, parse_root
from ngd_timm.data.layouts.parquet import find_parquet
from ngd_timm.data.layouts.picture_list import check_sha256, on_list, read_list
from ngd_timm.data.layouts.pixels_csv import find_pixels_csv
from ngd_timm.data.layouts.rafdb import find_rafdb_kaggle, find_rafdb_list
from ngd_timm.data.layouts.rows import Piece, Rows, with_subjects
from ngd_timm.data.layouts.sfew import find_sfew

__all__ = ["NOT_LISTED", "Layout", "LAYOUTS", "Found", "find_pieces", "look_at", "read_piece"]

log = logging.getLogger("ngd_timm.data")

NOT_LISTED = "not on the list of pictures"


@dataclass(frozen=True)
class Layout:
    """One way in which files lie.

    Attributes:
        find: From a root and a data set's name to its pieces, or None where this layout isn't there.
        datasets: The data sets that come in it; empty for a layout of any.
    """

    find: Callable[[Source], list[Piece] | None]
    datasets: tuple[str, ...] = ()


LAYOUTS: tuple[Layout, ...] = (
    # before parquet, which is looked for below every folder: these have hundreds of thousands of files
    Layout(find_affectnet_folders, ("affectnet",)),
    Layout(find_affectnet_csv, ("affectnet",)),
    Layout(find_ckplus, ("ckplus",)),
    Layout(find_parquet),
    Layout(find_ferplus_export, ("ferplus",)),
    Layout(find_ferplus_two_csv, ("ferplus",)),
    Layout(find_rafdb_list, ("rafdb",)),
    Layout(find_rafdb_kaggle, ("rafdb",)),
    Layout(find_jaffe, ("jaffe",)),
    Layout(find_sfew, ("sfew",)),
    Layout(find_pixels_csv),
    Layout(find_npz),
    Layout(find_manifests),
    Layout(find_folders),
)
"""In the order in which they are looked for; the first that is there is read."""


@dataclass(frozen=True)
class Found:
    """What lies at a root.

    Attributes:
        pieces: In the order train, valid, test, unnamed, then by name.
        listed: The pictures that a list names, or None without a list.
        hold_out: The share of the training pictures that is the valid split, or None.
    """

    pieces: list[Piece]
    listed: frozenset[str] | None = None
    hold_out: float | None = None


def find_pieces(
    root: str | Path, dataset: str = "", options: Mapping[str, Any] | None = None, streaming: bool = False
) -> list[Piece]:
    """Everything under `root` that holds rows; `look_at` without the list.

    Raises:
        InputError: As `look_at`.
    """
    return look_at(root, dataset, options, streaming).pieces


def look_at(root: str | Path, dataset: str, options: Mapping[str, Any] | None = None, streaming: bool = False) -> Found:
    """Find the layout at a root.

    Args:
        root: A file, a folder, or a Hub id, each perhaps with `,key=value` of `LayoutOptions` behind it.
        dataset: One of `DATASETS`.
        options: The same keys; they win over those in `root`.
        streaming: Have a Hub data set streamed.

    Raises:
        InputError: No such root, nothing in it that a data set is made of, or a list that isn't the published one.
    """
    text, chosen = parse_root(root, options)
    if chosen.max_megapixels is not None:
        raise_image_limit(chosen.max_megapixels)
    path = Path(text)
    if not path.exists():
        repository = hub_id(text)
        if repository is None:
            raise InputError(
                f"no data set at {text}: the path doesn't exist; give its folder or file, or a Hub id (user/dataset)"
            )
        pieces = find_hub(repository, streaming)
    else:
        pieces = _find(Source(path, dataset, chosen))
    if dataset in SUBJECT_IN_NAME:
        pieces = [_changed(piece, partial(with_subjects, dataset=dataset)) for piece in pieces]
    order = {"train": 0, "valid": 1, "test": 2, None: 3}
    pieces = sorted(pieces, key=lambda p: (order[p.split], p.shown))
    if chosen.hold_out is not None and any(piece.split == "valid" for piece in pieces):
        raise InputError(f"{text} has a split 'valid'; leave hold_out={chosen.hold_out:g} out")
    if chosen.list is None:
        if chosen.sha256 is not None:
            if not path.is_file():
                raise InputError(
                    f"sha256=… is the hash of a list or of a file, and {text} is neither; give list=… with it"
                )
            check_sha256(path, chosen.sha256)
        return Found(pieces, None, chosen.hold_out)
    base = path if path.is_dir() else path.parent
    listed = read_list(base / chosen.list, chosen.sha256)
    missing = sorted(entry for entry in listed if not (base / entry).is_file())
    if 0 < len(missing) < len(listed):
        raise InputError(
            f"{base / chosen.list}: {len(missing)} of {len(listed)} pictures aren't below {base} (first: "
            f"{', '.join(missing[:3])}); bring them, the set is only whole with all"
        )
    return Found(
        [_changed(piece, partial(_without_unlisted, listed=listed)) for piece in pieces], listed, chosen.hold_out
    )


def read_piece(piece: Piece, root: Path | None = None) -> Rows:
    """Read one piece; pictures stay encoded, and those in folders stay on disk.

    Raises:
        InputError: A damaged file, or columns that don't make a data set.
    """
    return piece.read()


def _find(source: Source) -> list[Piece]:
    for layout in LAYOUTS:
        if layout.datasets and source.dataset not in layout.datasets:
            continue
        pieces = layout.find(source)
        if pieces is not None:
            log.info("%s: read as %s", source.root, pieces[0].kind)
            return pieces
    raise InputError(
        f"{source.root} is no file that holds a data set; give a parquet, NPZ or CSV file, or the folder of a layout "
        "(a list of pictures goes behind it: FOLDER,list=FILE)"
    )


def _changed(piece: Piece, change: Callable[[Rows], Rows]) -> Piece:
    """The same piece, its rows changed as they are read."""
    stream = None if piece.stream is None else partial(_stream_changed, piece, change)
    return replace(piece, read=partial(_read_changed, piece, change), stream=stream)


def _read_changed(piece: Piece, change: Callable[[Rows], Rows]) -> Rows:
    return change(piece.read())


def _stream_changed(piece: Piece, change: Callable[[Rows], Rows]) -> Iterator[Rows]:
    assert piece.stream is not None
    return map(change, piece.stream())


def _without_unlisted(rows: Rows, listed: frozenset[str]) -> Rows:
    away = ~on_list(rows, listed)
    return replace(rows, dropped={NOT_LISTED: away, **{reason: mask & ~away for reason, mask in rows.dropped.items()}})
