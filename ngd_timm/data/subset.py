"""A part of a data set that anybody can draw again: so many images a class and split, by hashes of their names."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.data.fer import choose
from ngd_timm.data.layouts import look_at
from ngd_timm.data.layouts.image_list import entries, write_list
from ngd_timm.data.parts import Part, Selection


def write_subset(
    name: str, root: str | Path, out: str | Path, per_class: int, seed: int = 0, split: str | None = None
) -> list[str]:
    """Write a list of `per_class` images of each class in each split, for the option `list=`, and its sha256 beside it.

    Of a class's images in a split those are taken whose sha256 of "SEED NAME", with the file's name without folders, is
    smallest; all, where there are fewer. No image is opened, so copies across splits are dropped only on loading.

    Returns:
        The list's header: the rule, and how many of each class there are; then its sha256.

    Raises:
        InputError: Images without a name of their own, or a data set that can't be read.

    Examples:
        >>> import tempfile
        >>> from ngd_timm.data.synthetic.tiny import write_tiny
        >>> root = write_tiny("affectnet-folders", Path(tempfile.mkdtemp()) / "AffectNet", n=3)
        >>> write_subset("affectnet", root, root / "mini.txt", per_class=2, split="valid")[0]
        'affectnet, seed 0: of each class and split the 2 images with the smallest sha256 of "0 NAME"'
    """
    out = Path(out)
    if out.suffix.lower() == ".csv":
        raise InputError(f"{out}: the list has a path a line and no columns; give it another suffix, such as .txt")
    found = look_at(root, name)
    if found.hold_out is not None:
        raise InputError(f"{root}: a list is drawn from the splits that are there; leave hold_out out")
    selection, names = Selection(name), set[str]()
    groups: dict[tuple[str, str], list[tuple[bytes, str]]] = {}
    for piece in choose(found, split, root):
        rows = piece.read()
        part = Part(piece, rows, selection)
        for row, entry in zip(np.flatnonzero(part.kept), entries(rows, part.kept), strict=True):
            if entry is None or entry in names:
                what = "no file name" if entry is None else f"the name of another image, {entry}"
                raise InputError(f"{piece.shown}: row {row} has {what}; a list needs a name of its own for each image")
            names.add(entry)
            digest = hashlib.sha256(f"{seed} {PurePosixPath(entry).name}".encode()).digest()
            group = piece.split or "all", selection.classes[part.label[row]]
            groups.setdefault(group, []).append((digest, entry))
    if not groups:
        raise InputError(f"{root} has no labelled image; check name, root and split")
    chosen = {group: [entry for _, entry in sorted(images)[:per_class]] for group, images in groups.items()}
    header = [
        f'{name}, seed {seed}: of each class and split the {per_class} images with the smallest sha256 of "{seed} NAME"'
    ]
    for where in dict.fromkeys(where for where, _ in chosen):
        header.append(f"{where}: {', '.join(f'{c} {len(chosen.get((where, c), []))}' for c in selection.classes)}")
    listed = (entry for group in chosen.values() for entry in group)
    return [*header, f"sha256 {write_list(out, listed, header)}"]
