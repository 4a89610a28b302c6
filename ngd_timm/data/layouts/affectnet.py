"""AffectNet's two distributions: folders with an annotation file an image, and the two CSV lists.

Images are read as they are: `face_x` to `face_height` of the lists are not applied. Valence and arousal of -2 mean
that there are none.

Reference:
    Mollahosseini, Hasani, Mahoor: "AffectNet: A Database for Facial Expression, Valence, and Arousal Computing in the
    Wild", 2017. The folders are those of the distribution of March 2021 with eight labels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError, one_line
from ngd_timm.core.files import require_regular
from ngd_timm.core.images import image_files
from ngd_timm.data.labels import AFFECTNET_IDS, split_of
from ngd_timm.data.layouts.csv_file import csv_headers, header_of, numbers, read_csv, whole_numbers
from ngd_timm.data.layouts.folders import split_folders
from ngd_timm.data.layouts.options import Source
from ngd_timm.data.layouts.rows import Piece, Rows, affect_column, labels_of_ids, missing_files, table_of_files

log = logging.getLogger("ngd_timm.data")

_PATH = "subDirectory_filePath"
_LISTS = ("", "Manually_Annotated_file_lists", "Manually_Annotated/Manually_Annotated_file_lists", "Manually_Annotated")
_IMAGES = ("Manually_Annotated_Images", "Manually_Annotated/Manually_Annotated_Images", "Manually_Annotated", "")
_MISSING = -2.0


def find_affectnet_folders(source: Source) -> list[Piece] | None:
    """`train_set/images/7.jpg` with `train_set/annotations/7_exp.npy`, `7_val.npy`, `7_aro.npy`; not `7_lnd.npy`."""
    root = source.root
    found = [(root, split_of(root.name))] if (root / "annotations").is_dir() else split_folders(root)
    return [
        Piece("AffectNet folders", p, split, p.name, partial(_read_folder, p, root))
        for p, split in found
        if (p / "annotations").is_dir() and (p / "images").is_dir()
    ] or None


def _read_folder(folder: Path, root: Path) -> Rows:
    paths = image_files(folder / "images")
    notes = {what: [folder / "annotations" / f"{p.stem}_{what}.npy" for p in paths] for what in ("exp", "val", "aro")}
    missing = [note for row in zip(*notes.values(), strict=True) for note in row if not note.is_file()]
    if missing:
        raise InputError(
            f"{folder / 'annotations'}: {len(missing)} annotations of {len(paths)} images aren't there (first: "
            f"{', '.join(m.name for m in missing[:3])}); unpack the annotations whole"
        )
    ids = [_number(p, int) for p in notes["exp"]]
    valence, arousal = ([_number(p, float) for p in notes[what]] for what in ("val", "aro"))
    return _rows(paths, root, ids, valence, arousal, folder.name)


def _number(path: Path, kind: type[int] | type[float]) -> float:
    """The one number in an .npy, which the distribution stores as text of no dimension."""
    try:
        require_regular(path)
        value = np.load(path, allow_pickle=False)
        if value.size != 1:
            raise ValueError(f"an array of shape {value.shape}")
        return kind(value.item())
    except Exception as error:  # numpy and tokenize have no common type of error
        raise InputError(f"{path} does not hold one number ({one_line(error)}); unpack it again") from None


def find_affectnet_csv(source: Source) -> list[Piece] | None:
    """`training.csv` and `validation.csv` with the column `subDirectory_filePath`, and a folder of images nearby."""
    root = source.root
    if root.is_file():
        files = {root: header_of(root)} if root.suffix.lower() == ".csv" else {}
    else:
        files = next((f for b in _LISTS if (f := csv_headers(root / b))), {})
    lists = [(p, split_of(p.stem)) for p, names in files.items() if _PATH in names]
    for path in (p for p, names in files.items() if lists and _PATH not in names):
        log.warning("%s has no column %s and is left out", path, _PATH)
    if not root.is_file() and any(split for _, split in lists):
        for path in (p for p, split in lists if split is None):
            log.warning("%s: %s is not named after a split and is left out", root, path.name)
        lists = [(p, split) for p, split in lists if split]
    return [Piece("AffectNet lists", p, split, p.name, partial(_read_list, p, source)) for p, split in lists] or None


def _read_list(path: Path, source: Source) -> Rows:
    root = source.root
    table = read_csv(path, required=(_PATH, "expression", "valence", "arousal"))
    ids = whole_numbers(path, table["expression"], "expression")
    folders = [path.parent, path.parent.parent, root if root.is_dir() else path.parent]
    bases = list(dict.fromkeys(f / sub for f in folders for sub in _IMAGES))
    names = table[_PATH].to_pylist()
    base = next((b for b in bases for n in names[:50] if n and (b / n).is_file()), bases[0])
    paths = [base / n for n in names]
    hint = "unpack the images into Manually_Annotated_Images beside the lists"
    missing = missing_files(paths, np.array(ids) < len(CLASSES), source.options.missing is not None, str(path), hint)
    valence, arousal = (numbers(path, table[name].to_pylist(), name) for name in ("valence", "arousal"))
    return _rows(paths, root if root.is_dir() else path.parent, ids, valence, arousal, path.name, missing)


def _rows(
    paths: Sequence[Path],
    root: Path,
    ids: Any,
    valence: Any,
    arousal: Any,
    shown: str,
    missing: Mapping[str, np.ndarray] | None = None,
) -> Rows:
    label = labels_of_ids(ids, AFFECTNET_IDS, shown, "expression")
    names = tuple(AFFECTNET_IDS.values())
    dropped = {
        f"labelled '{name}'": label == i for i, name in enumerate(names) if i >= len(CLASSES) and (label == i).any()
    }
    label[label >= len(CLASSES)] = -1
    for reason, mask in (missing or {}).items():
        dropped[reason], label[mask] = mask, -1
    # a face without one of the two has no place in the plane
    places = np.array([valence, arousal], dtype=np.float64)
    absent = ((places == _MISSING) | np.isnan(places)).any(axis=0) | (label < 0)
    va = {
        name: affect_column([None if gone else v for v, gone in zip(values, absent, strict=True)], name, shown)
        for name, values in zip(("valence", "arousal"), places.tolist(), strict=True)
    }
    if placeless := int((absent & (label >= 0)).sum()):
        log.info("%s: %d labelled faces have no valence and arousal", shown, placeless)
    return Rows(table_of_files(paths, root, **va), None, names[: len(CLASSES)], label, None, dropped)
