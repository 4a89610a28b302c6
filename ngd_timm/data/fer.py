"""Facial-expression data sets as one `datasets.Dataset`: which rows there are, which are kept, and why not the rest."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.images import image_records
from ngd_timm.data.duplicates import BY_COLUMN, BY_PIXELS, DUPLICATE, copies_of, hashes_of
from ngd_timm.data.hold_out import HELD_OUT, TRAINED_ON, held_out
from ngd_timm.data.labels import DATASETS, LABEL_RULES, SPLITS
from ngd_timm.data.layouts import NOT_LISTED, Found, Piece, look_at
from ngd_timm.data.parts import Part

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from ngd_timm.data.streaming import Tally

__all__ = ["DUPLICATE", "LIMIT", "LoadReport", "choose", "load_fer", "load_split", "load_stream", "parse_spec"]

log = logging.getLogger("ngd_timm.data")

LIMIT = "beyond the limit"


@dataclass(frozen=True)
class LoadReport:
    """What loading read, dropped and kept.

    Attributes:
        name: Data set.
        split: "train", "valid", "test" or "all".
        labels: The label rule used, or "given" where the set names one class a picture.
        read: Rows read.
        dropped: Reason → rows.
        kept: Rows kept.
        counts: Class → rows; summed soft targets under the rule `votes`.
        duplicates: How copies of training pictures were looked for.
        sha256: Of the kept rows' encoded pictures, targets, and where there are any valence and arousal, in order.
        layout: As what the files were read.
    """

    name: str
    split: str
    labels: str
    read: int
    dropped: Mapping[str, int]
    kept: int
    counts: Mapping[str, float]
    duplicates: str
    sha256: str
    layout: str = ""

    def lines(self) -> list[str]:
        """The report for people, a few plain lines."""
        gone = "; ".join(f"{n} {reason}" for reason, n in self.dropped.items()) or "none"
        per_class = ", ".join(f"{c} {n:g}" if n == int(n) else f"{c} {n:.1f}" for c, n in self.counts.items())
        return [
            f"{self.name}:{self.split}: {self.kept} of {self.read} pictures, labels: {self.labels}",
            f"  dropped: {gone} (duplicates: {self.duplicates})",
            f"  classes: {per_class}",
        ]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data that JSON can hold."""
        return {**asdict(self), "dropped": dict(self.dropped), "counts": dict(self.counts)}


def parse_spec(spec: str) -> tuple[str, str, str | None, str]:
    """Read `name=root[:split]`.

    A colon that isn't followed by a split's name belongs to the root, so Windows paths work.

    Args:
        spec: For example `ckplus=/data/ck+:test`.

    Returns:
        Name, root, split or None, and the key under which results are filed: `<name>:<split or all>`.

    Raises:
        InputError: Not of that form, or an unknown data set or split.

    Example:
        >>> parse_spec("ferplus=faces/fer:valid")
        ('ferplus', 'faces/fer', 'valid', 'ferplus:valid')
        >>> parse_spec("ckplus=faces/ck")
        ('ckplus', 'faces/ck', None, 'ckplus:all')
    """
    name, equals, rest = spec.partition("=")
    if not equals or not name or not rest:
        raise InputError(f"'{spec}' is not name=root[:split]; write for example ferplus=/data/ferplus:valid")
    if name not in DATASETS:
        raise choices("data set", name, DATASETS)
    root, colon, tail = rest.rpartition(":")
    if not colon or "/" in tail or "\\" in tail or not root:
        return name, rest, None, f"{name}:all"
    if tail not in (*SPLITS, "all"):
        raise choices("split", tail, (*SPLITS, "all"))
    return name, root, tail, f"{name}:{tail}"


@overload
def load_fer(
    name: str,
    root: str | Path,
    split: str | None = None,
    *,
    label_rule: str = "majority",
    drop_duplicates: bool = True,
    classes: Sequence[str] = CLASSES,
    limit: int | None = None,
    options: Mapping[str, Any] | None = None,
    streaming: Literal[False] = False,
) -> Dataset: ...


@overload
def load_fer(
    name: str,
    root: str | Path,
    split: str | None = None,
    *,
    label_rule: str = "majority",
    drop_duplicates: bool = True,
    classes: Sequence[str] = CLASSES,
    limit: int | None = None,
    options: Mapping[str, Any] | None = None,
    streaming: Literal[True],
) -> IterableDataset: ...


def load_fer(
    name: str,
    root: str | Path,
    split: str | None = None,
    *,
    label_rule: str = "majority",
    drop_duplicates: bool = True,
    classes: Sequence[str] = CLASSES,
    limit: int | None = None,
    options: Mapping[str, Any] | None = None,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """Load a facial-expression data set by name and root; `load_split` without the report.

    Args:
        name: As `load_split`, as are the others.
        root: File, folder or Hub id.
        split: "train", "valid", "test"; "all" or None for every row.
        label_rule: How votes become labels.
        drop_duplicates: Drop validation and test rows whose pixels equal a training picture's.
        classes: Class names, in the order of the labels.
        limit: Keep the first N remaining rows of each split.
        options: What a layout leaves open.
        streaming: Give an `IterableDataset` with the same columns and the same rows, read as they are asked for: from
            parquet files and Hub ids.

    Raises:
        InputError: As `load_split`, or a layout that can't be streamed.

    Example:
        >>> import tempfile
        >>> from ngd_timm.data.synthetic.schematic import write_schematic
        >>> folder = write_schematic(tempfile.mkdtemp(), "pencil", n_train=8, n_valid=8, n_test=8, seed=0)
        >>> load_fer("schematic", folder, "valid").features["label"].names[:2]
        ['neutral', 'happiness']
        >>> next(iter(load_fer("schematic", folder, "valid", streaming=True)))["source"]
        'valid.parquet row 0'
    """
    load = load_stream if streaming else load_split
    return load(
        name,
        root,
        split,
        label_rule=label_rule,
        drop_duplicates=drop_duplicates,
        classes=classes,
        limit=limit,
        options=options,
    )[0]


def load_stream(
    name: str,
    root: str | Path,
    split: str | None = None,
    *,
    label_rule: str = "majority",
    drop_duplicates: bool = True,
    classes: Sequence[str] = CLASSES,
    limit: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[IterableDataset, Tally]:
    """`load_fer(..., streaming=True)`, and a tally of what was read and dropped, filled in by each whole pass.

    Raises:
        InputError: As `load_fer`.
    """
    from ngd_timm.data.streaming import stream

    _check_arguments(name, split, label_rule, classes, limit)
    found = look_at(root, name, options, streaming=True)
    training = [p for p in found.pieces if p.split == "train"]
    if found.hold_out is not None:
        raise InputError(f"{root}: a stream can't hold pictures out; leave streaming or hold_out out")
    wanted = choose(found, split, root)
    return stream(wanted, training, name, label_rule, classes, drop_duplicates, limit)


def load_split(
    name: str,
    root: str | Path,
    split: str | None = None,
    *,
    label_rule: str = "majority",
    drop_duplicates: bool = True,
    classes: Sequence[str] = CLASSES,
    limit: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[Dataset, LoadReport]:
    """Load one split, or all rows, of a data set, and say what was dropped.

    The layouts that are read are those of `ngd_timm.data.layouts`, which is found by what lies at the root:

    - any data set: parquet (picture as bytes or `{bytes, path}`; vote counts, or a label that is a name), a Hub id
      (`user/dataset[@revision]`), a CSV manifest, an NPZ, class-named folders `root/class/*` or `root/split/class/*`;
    - FER+: Microsoft's export with `fer2013new.csv`, and `fer2013.csv` with `fer2013new.csv`;
    - FER2013: `fer2013.csv`, `icml_face_data.csv`; CK+: the distribution's sequences, `ckextended.csv`;
    - AffectNet: folders with annotations, `training.csv` and `validation.csv`; RAF-DB: its list, folders 1 to 7;
      JAFFE: its file names; SFEW: its folders.

    Splits are known by file or folder name, with the usual aliases (val, PublicTest, …). A class is known by a name
    that `name` understands; by number only where a layout's publishers fixed the numbers.

    Args:
        name: One of `DATASETS`; fixes the label names understood.
        root: File, folder or Hub id; options may follow it, `root,key=value,…`.
        split: "train", "valid", "test"; "all" or None for every row under `root`.
        label_rule: How votes become labels, see `labels.apply_rule`; without effect where a set names one class a
            picture.
        drop_duplicates: Drop validation and test rows whose pixels equal a training picture's: by the column
            `dup_of_train` where there is one, else by comparing the decoded pixels.
        classes: Class names, in the order of the labels; rows of other classes are dropped and counted.
        limit: Keep the first N remaining rows of each split.
        options: What a layout leaves open, the keys of `layouts.LayoutOptions`: `apex_frames` and `neutral_frame` of
            CK+'s sequences; `list` and `sha256` of a published list of pictures. They win over those in `root`.

    Returns:
        A `datasets.Dataset` with `image` (encoded, decoded on access), `label` (ClassLabel of `classes`), `file_name`,
        `source` (file and row, for messages), and where the set has them `votes` (C counts), `soft_label` (C, rule
        `votes` only), `valence`, `arousal` (null on rows without), `subject`; and the report, whose lines are also
        logged.

    Raises:
        InputError: A missing root or split, a damaged file, an unknown name, or nothing left.

    Example:
        >>> import tempfile
        >>> from ngd_timm.data.synthetic.schematic import write_schematic
        >>> folder = write_schematic(tempfile.mkdtemp(), "paint", n_train=16, n_valid=8, n_test=8, seed=0)
        >>> dataset, report = load_split("schematic", folder, "train")
        >>> len(dataset), report.kept, report.labels, report.layout
        (16, 16, 'given', 'parquet')
    """
    _check_arguments(name, split, label_rule, classes, limit)
    found = look_at(root, name, options)
    wanted = choose(found, split, root)
    parts = [Part(piece, piece.read(), name, label_rule, classes) for piece in wanted]
    if found.listed is not None and split in (None, "all"):
        _require_whole_list(parts, len(found.listed), root)
    if found.hold_out is not None and split in ("train", "valid"):
        for part, held in zip(parts, held_out([part.rows for part in parts], found.hold_out, name), strict=True):
            part.drop(*((HELD_OUT, held) if split == "train" else (TRAINED_ON, ~held)))
    searched = _mark_duplicates(parts, found.pieces, drop_duplicates)
    _apply_limit(parts, limit)
    dataset = _join(parts)
    key = split or "all"
    report = _report(name, key, parts, dataset, searched)
    if not len(dataset):
        gone = "; ".join(f"{n} {reason}" for reason, n in report.dropped.items()) or "no rows at all"
        raise InputError(f"{name}:{key} at {root} has no picture left of {report.read} ({gone}); check root and rule")
    for line in report.lines():
        log.info(line)
    return dataset, report


def _check_arguments(name: str, split: str | None, rule: str, classes: Sequence[str], limit: int | None) -> None:
    if name not in DATASETS:
        raise choices("data set", name, DATASETS)
    if split is not None and split not in (*SPLITS, "all"):
        raise choices("split", split, (*SPLITS, "all"))
    if rule not in LABEL_RULES:
        raise choices("label rule", rule, LABEL_RULES)
    for c in classes:
        if c not in CLASSES:
            raise choices("class", c, CLASSES)
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise InputError(f"classes must be at least two different names, got {list(classes)}")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1 or absent, got {limit}")


def choose(found: Found, split: str | None, root: str | Path) -> list[Piece]:
    """The pieces of a split, all of them for None or "all"; with `hold_out` train and valid are parts of the same ones.

    Raises:
        InputError: There is no such split.
    """
    if split in (None, "all"):
        return list(found.pieces)
    named = sorted({p.split for p in found.pieces if p.split}, key=SPLITS.index)
    looked_for = "train" if found.hold_out is not None and split == "valid" else split
    if found.hold_out is not None and split != "test" and not named:
        return list(found.pieces)
    wanted = [p for p in found.pieces if p.split == looked_for]
    if not wanted:
        have = f"splits found: {', '.join(named)}" if named else "no file or folder there is named after a split"
        advice = "leave the split out to take every row"
        if split == "valid" and "train" in named:
            advice += ", or write ROOT,hold_out=0.1 to validate on a tenth of the training pictures"
        elif not named:
            advice += ", or write ROOT,hold_out=0.1 to train on nine tenths and validate on the rest"
        raise InputError(f"no split '{split}' at {root}; {have}; {advice}")
    return wanted


def _require_whole_list(parts: Sequence[Part], listed: int, root: str | Path) -> None:
    found = sum(int((~p.dropped[NOT_LISTED]).sum()) for p in parts)
    if found < listed:
        raise InputError(
            f"{root}: only {found} of the {listed} pictures on the list are in this data set; is it the list of "
            "another copy? Its paths are relative to the data set's root"
        )


def _mark_duplicates(parts: Sequence[Part], pieces: Sequence[Piece], wanted: bool) -> str:
    held_out = [p for p in parts if p.piece.split in ("valid", "test")]
    if not wanted:
        return "kept"
    if not held_out:
        return "nothing to compare"
    unmarked = [p for p in held_out if p.rows.dup_of_train is None]
    for part in held_out:
        if part.rows.dup_of_train is not None:
            part.drop(DUPLICATE, part.rows.dup_of_train)
    if not unmarked:
        return BY_COLUMN
    training = [p for p in pieces if p.split == "train"]
    if not training:
        return "not looked for, there is no train split beside it"
    read = {part.piece: part.rows for part in parts}
    seen = hashes_of(read[piece] if piece in read else piece.read() for piece in training)
    for part in unmarked:
        part.drop(DUPLICATE, copies_of(part.rows, seen))
    return BY_PIXELS


def _apply_limit(parts: Sequence[Part], limit: int | None) -> None:
    if limit is None:
        return
    left: dict[str | None, int] = {}
    for part in parts:
        room = left.get(part.piece.split, limit)
        rank = np.cumsum(part.kept)
        left[part.piece.split] = max(room - int(rank[-1] if len(rank) else 0), 0)
        if len(rank) and rank[-1] > room:
            part.drop(LIMIT, part.kept & (rank > room))


def _join(parts: Sequence[Part]) -> Dataset:
    from datasets import concatenate_datasets

    sets = [part.dataset() for part in parts]
    shared = set.intersection(*(set(s.column_names) for s in sets))
    sets = [s.select_columns([c for c in s.column_names if c in shared]) for s in sets]
    return concatenate_datasets(sets) if len(sets) > 1 else sets[0]


def _report(name: str, split: str, parts: Sequence[Part], dataset: Dataset, searched: str) -> LoadReport:
    dropped: dict[str, int] = {}
    for part in parts:
        for reason, mask in part.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + int(mask.sum())
    names = dataset.features["label"].names
    label = np.asarray(dataset.with_format("numpy")["label"][:], dtype=np.int64)
    soft = "soft_label" in dataset.column_names
    target = np.asarray(dataset.with_format("numpy")["soft_label"][:]) if soft else label
    counts = target.sum(0) if soft and len(label) else np.bincount(label, minlength=len(names))
    return LoadReport(
        name=name,
        split=split,
        labels=", ".join(dict.fromkeys(p.labels for p in parts)),
        read=sum(len(p.label) for p in parts),
        dropped={reason: n for reason, n in dropped.items() if n},
        kept=len(dataset),
        counts={c: round(float(n), 3) for c, n in zip(names, counts, strict=True)},
        duplicates=searched,
        sha256=_sha256(dataset, target),
        layout=", ".join(dict.fromkeys(p.piece.kind for p in parts)),
    )


def _sha256(dataset: Dataset, target: np.ndarray) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(target).tobytes())
    if {"valence", "arousal"} <= set(dataset.column_names):
        for column in ("valence", "arousal"):
            digest.update(np.array(dataset[column][:], dtype=np.float32).tobytes())
    for record in image_records(dataset):
        data = record["bytes"] if record["bytes"] is not None else _file_bytes(record["path"])
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _file_bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror or error}); check the picture paths") from None
