"""Facial-expression data sets as one `datasets.Dataset`: which rows there are, which are kept, and why not the rest."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import numpy as np

from ngd_timm.core.citations import FACES
from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.images import image_records
from ngd_timm.data.hold_out import HELD_OUT, TRAINED_ON, held_out
from ngd_timm.data.labels import DATASETS, SPLITS
from ngd_timm.data.layouts import NOT_LISTED, Found, Piece, Rows, dataset_id, look_at
from ngd_timm.data.layouts.rows import read_image_file
from ngd_timm.data.parts import NO_VOTES, Part, Selection, dropped_counts, keep_fraction
from ngd_timm.data.streaming import StreamedRows, Tally, streamed

if TYPE_CHECKING:
    from datasets import Dataset, DatasetInfo, IterableDataset
    from typing_extensions import Unpack

log = logging.getLogger("ngd_timm.data")


class Options(TypedDict, total=False):
    """The keyword arguments of `load_fer`; their defaults are those of `parts.Selection`."""

    label_rule: str
    drop_duplicates: bool
    classes: Sequence[str]
    limit: int | None
    label_fraction: float | None
    options: Mapping[str, Any] | None


@dataclass(frozen=True)
class LoadReport:
    """What loading read, dropped and kept: numbers of rows, and the hash of the rows that were kept."""

    name: str
    split: str  # "train", "valid", "test" or "all"
    labels: str  # the label rule used, or "given" where the set names one class an image
    read: int
    dropped: Mapping[str, int]  # by reason
    kept: int
    counts: Mapping[str, float]  # by class; summed soft targets under the rule `votes`
    duplicates: str  # how copies of training images were searched
    sha256: str  # of encoded images, targets, and where there are any valence and arousal, in order
    layout: str = ""
    dataset_id: str = ""  # user/dataset@commit of a Hub data set

    def lines(self) -> list[str]:
        """The report as a few plain lines."""
        gone = "; ".join(f"{n} {reason}" for reason, n in self.dropped.items()) or "none"
        per_class = ", ".join(f"{c} {n:g}" if n == int(n) else f"{c} {n:.1f}" for c, n in self.counts.items())
        return [
            f"{self.name}:{self.split}: {self.kept} of {self.read} images, labels: {self.labels}",
            f"  dropped: {gone} (duplicates: {self.duplicates})",
            f"  classes: {per_class}",
        ]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data that JSON can hold."""
        return {key: value for key, value in asdict(self).items() if key != "dataset_id" or value}


def parse_spec(spec: str) -> tuple[str, str, str | None, str]:
    """Read `name=root[:split]`, or `title:name=root[:split]` for a set of its own name with the labels of a known one.

    A colon that isn't followed by a split's name belongs to the root, so Windows paths work.

    Args:
        spec: For example `ckplus=/data/ck+:test`.

    Returns:
        Name, root, split or None, and the key under which results are filed: `<title or name>:<split or all>`.

    Raises:
        InputError: Not of that form, or an unknown data set or split.

    Examples:
        >>> parse_spec("ferplus=faces/fer:valid")
        ('ferplus', 'faces/fer', 'valid', 'ferplus:valid')
        >>> parse_spec("ckplus=faces/ck")
        ('ckplus', 'faces/ck', None, 'ckplus:all')
        >>> parse_spec("mine:fer2013=faces/mine")
        ('fer2013', 'faces/mine', None, 'mine:all')
    """
    name, equals, rest = spec.partition("=")
    if not equals or not name or not rest:
        raise InputError(f"'{spec}' is not name=root[:split]; write for example ferplus=/data/ferplus:valid")
    title, titled, name = name.rpartition(":")
    if name not in DATASETS:
        raise choices("data set", name, DATASETS)
    if titled and (title in DATASETS or not re.fullmatch(r"\w[\w.-]*", title)):
        raise InputError(f"'{title}' in '{spec}' is no title: letters, digits, ., - and _, and no known set's name")
    title = title or name
    root, colon, tail = rest.rpartition(":")
    if not colon or "/" in tail or "\\" in tail or not root:
        return name, rest, None, f"{title}:all"
    if tail not in (*SPLITS, "all"):
        raise choices("split", tail, (*SPLITS, "all"))
    return name, root, tail, f"{title}:{tail}"


@overload
def load_fer(
    name: str, root: str | Path, split: str | None = ..., *, streaming: Literal[False] = ..., **options: Unpack[Options]
) -> Dataset: ...


@overload
def load_fer(
    name: str, root: str | Path, split: str | None = ..., *, streaming: Literal[True], **options: Unpack[Options]
) -> IterableDataset: ...


def load_fer(
    name: str,
    root: str | Path,
    split: str | None = None,
    *,
    streaming: bool = False,
    **options: Unpack[Options],
) -> Dataset | IterableDataset:
    """Load one split, or all rows, of a facial-expression data set by name and root.

    The layouts that are read are those of `ngd_timm.data.layouts`, which is found by what lies at the root:

    - any data set: parquet and Hub ids (`user/dataset[@revision]`) with the columns of `layouts.table`, local copies of
      webdatasets, a CSV manifest, an NPZ, class-named folders `root/class/*` or `root/split/class/*`;
    - FER+: Microsoft's export with `fer2013new.csv`, and `fer2013.csv` with `fer2013new.csv`;
    - FER2013: `fer2013.csv`, `icml_face_data.csv`; CK+: the distribution's sequences, `ckextended.csv`;
    - AffectNet: folders with annotations, `training.csv` and `validation.csv`; RAF-DB: its list, folders 1 to 7;
      JAFFE: its file names; SFEW: its folders.

    Splits are known by file or folder name, with the usual aliases (val, PublicTest, …). A class is known by a name
    that `name` understands; by number only where names come with it or a layout's publishers fixed the numbers.

    Args:
        name: One of `DATASETS`; fixes the label names understood.
        root: File, folder or Hub id; options may follow it, `root,key=value,…`.
        split: "train", "valid", "test"; "all" or None for every row under `root`.
        label_rule: How votes become labels, see `labels.apply_rule`; without effect where a set names one class an
            image.
        drop_duplicates: Drop validation and test rows whose pixels equal a training image's: by the column
            `dup_of_train` where there is one, else by comparing the decoded pixels.
        classes: Class names, in the order of the labels; rows of other classes are dropped and counted.
        limit: Keep the first N remaining rows of each split.
        label_fraction: Keep this share of the split "train", of each class alike and one image of it at least: those
            whose names have the smallest sha256, so that 5 % lies within 20 %.
        options: What a layout leaves open, the keys of `layouts.options.LayoutOptions`. They win over those in `root`.
        streaming: Return an `IterableDataset` with the same columns and the same rows, read lazily: from parquet files
            and Hub ids.

    Returns:
        A `datasets.Dataset` with `image` (encoded, decoded on access), `label` (ClassLabel of `classes`), `file_name`,
        `source` (file and row, for messages), and where the set has them `votes` (C counts), `soft_label` (C, rule
        `votes` only), `valence`, `arousal` (null on rows without), `subject`. Its `info` has the set's citation, terms
        and home page. Image files of up to 1 GiB in all are read once, here.

    Raises:
        InputError: A missing root or split, a damaged file, an unknown name, nothing left, or a layout that can't be
            streamed.

    Examples:
        >>> import tempfile
        >>> from ngd_timm.data.synthetic.schematic import write_schematic
        >>> folder = write_schematic(tempfile.mkdtemp(), "pencil", n_train=8, n_valid=8, n_test=8, seed=0)
        >>> load_fer("schematic", folder, "valid").features["label"].names[:2]
        ['neutral', 'happiness']
        >>> next(iter(load_fer("schematic", folder, "valid", streaming=True)))["source"]
        'valid.parquet row 0'
    """
    return (load_stream if streaming else load_split)(name, root, split, **options)[0]


def load_stream(
    name: str, root: str | Path, split: str | None = None, **options: Unpack[Options]
) -> tuple[IterableDataset, Tally]:
    """`load_fer(..., streaming=True)`, and a tally of what was read and dropped, filled in by each whole pass."""
    layout, selection = _parsed(name, options)
    if selection.label_fraction is not None:
        raise InputError("label_fraction is counted over the whole set, which a stream does not hold; leave one out")
    found = look_at(root, name, layout, streaming=True)
    if found.hold_out is not None:
        raise InputError(f"{root}: a stream can't hold images out; leave streaming or hold_out out")
    pieces = choose(found, split, root)
    if found.listed is not None:
        raise InputError(f"{root}: a stream can't tell whether it holds all of a list; leave streaming or list out")
    stream = StreamedRows(pieces, [p for p in found.pieces if p.split == "train"], selection)
    dataset = stream.dataset()
    dataset.info.update(_info(selection.name, pieces))
    return dataset, stream.tally


def load_split(
    name: str, root: str | Path, split: str | None = None, *, download: bool = True, **options: Unpack[Options]
) -> tuple[Dataset, LoadReport]:
    """Load one split, or all rows, of a data set as `load_fer` does, and report what was read and dropped.

    Without `download` a Hub data set is read over the network, and its other splits never lie on the disk.

    Examples:
        >>> import tempfile
        >>> from ngd_timm.data.synthetic.schematic import write_schematic
        >>> folder = write_schematic(tempfile.mkdtemp(), "paint", n_train=16, n_valid=8, n_test=8, seed=0)
        >>> dataset, report = load_split("schematic", folder, "train")
        >>> len(dataset), report.kept, report.labels, report.layout
        (16, 16, 'given', 'parquet')
    """
    return load_splits(name, root, [split], download=download, **options)[split]


def load_splits(
    name: str,
    root: str | Path,
    splits: Sequence[str | None],
    *,
    download: bool = True,
    **options: Unpack[Options],
) -> dict[str | None, tuple[Dataset, LoadReport]]:
    """Load several splits as `load_split` does, reading each of their files once."""
    layout, selection = _parsed(name, options)
    found = look_at(root, name, layout, streaming=not download)
    pieces = {split: choose(found, split, root) for split in splits}
    wanted = {piece for chosen in pieces.values() for piece in chosen}

    @cache
    def read_whole(piece: Piece) -> Sequence[Rows]:
        return [piece.read()] if download or not piece.dataset_id else list(streamed(piece))

    def read(piece: Piece) -> Iterable[Rows]:
        """The rows of a piece; of those that are only looked through, such as training images, a few at a time."""
        return read_whole(piece) if piece in wanted or piece.stream is None else streamed(piece)

    return {split: _load_pieces(selection, found, pieces[split], split or "all", root, read) for split in splits}


def _parsed(name: str, options: Options) -> tuple[Mapping[str, Any] | None, Selection]:
    """What a layout leaves open, and the rows to keep."""
    selection: dict[str, Any] = {key: value for key, value in options.items() if key != "options"}
    return options.get("options"), Selection(name, **selection)


def _load_pieces(
    selection: Selection,
    found: Found,
    pieces: Sequence[Piece],
    split: str,
    root: str | Path,
    read: Callable[[Piece], Iterable[Rows]],
) -> tuple[Dataset, LoadReport]:
    parts = [Part(piece, rows, selection) for piece in pieces for rows in read(piece)]
    if not parts:
        raise InputError(f"{selection.name}:{split} at {root} has no rows; check root and split")
    for shown in dict.fromkeys(part.piece.shown for part in parts if part.lacks_votes):
        log.warning(f"{shown}: {NO_VOTES}")
    if found.listed is not None:
        others = (rows for piece in found.pieces if piece not in pieces for rows in read(piece))
        _require_whole_list(chain((part.rows for part in parts), others), len(found.listed), root)
    if found.hold_out is not None and split in ("train", "valid"):
        masks = held_out([part.rows for part in parts], found.hold_out, selection.name)
        for part, held in zip(parts, masks, strict=True):
            part.drop(*((HELD_OUT, held) if split == "train" else (TRAINED_ON, ~held)))
    training = [piece for piece in found.pieces if piece.split == "train"]
    scored = [part for part in parts if part.piece.split in ("valid", "test")]
    by_pixels = selection.drop_duplicates and any(part.rows.dup_of_train is None for part in scored)
    with_people = any(part.rows.people() for part in scored)
    hashes, people = _seen_in_training(training if by_pixels or with_people else [], read, by_pixels)
    searched = _drop_duplicates(scored, hashes if training else None, selection.drop_duplicates)
    _warn_of_shared_people(scored, people)
    if selection.label_fraction is not None and split == "train":
        keep_fraction(parts, selection.label_fraction)
    _apply_limit(parts, selection.limit)
    dataset = _join(parts)
    dataset.info.update(_info(selection.name, pieces))
    report = _report(selection.name, split, parts, dataset, searched)
    if not len(dataset):
        reasons = "; ".join(f"{n} {reason}" for reason, n in report.dropped.items()) or "no rows at all"
        raise InputError(
            f"{selection.name}:{split} at {root} has no image left of {report.read} ({reasons}); check root and rule"
        )
    for line in report.lines():
        log.info(line)
    return dataset, report


def choose(found: Found, split: str | None, root: str | Path) -> list[Piece]:
    """The pieces of a split, all for None or "all"; with `hold_out`, train and valid come from the same ones."""
    if split in (None, "all"):
        return list(found.pieces)
    if split not in SPLITS:
        raise choices("split", split or "", (*SPLITS, "all"))
    named = sorted({p.split for p in found.pieces if p.split}, key=SPLITS.index)
    if found.hold_out is not None and split != "test" and not named:
        return list(found.pieces)
    source = "train" if found.hold_out is not None and split == "valid" else split
    pieces = [p for p in found.pieces if p.split == source]
    if not pieces:
        have = f"splits found: {', '.join(named)}" if named else "no file or folder there is named after a split"
        advice = "leave the split out to take every row"
        if split == "valid" and "train" in named:
            advice += ", or write ROOT,hold_out=0.1 to validate on a tenth of the training images"
        elif not named:
            advice += ", or write ROOT,hold_out=0.1 to train on nine tenths and validate on the rest"
        raise InputError(f"no split '{split}' at {root}; {have}; {advice}")
    return pieces


def _require_whole_list(pieces: Iterable[Rows], listed: int, root: str | Path) -> None:
    """Refuse a set that lacks images of the list; no more pieces are read than it takes to find them."""
    found = 0
    for rows in pieces:
        found += int((~rows.dropped[NOT_LISTED]).sum())
        if found >= listed:
            return
    raise InputError(
        f"{root}: only {found} of the {listed} images on the list are in this data set; is it the list of "
        "another copy? Its paths are relative to the data set's root"
    )


def _seen_in_training(
    training: Sequence[Piece], read: Callable[[Piece], Iterable[Rows]], pixels: bool
) -> tuple[set[bytes], set[str]]:
    """The hashes of the training images' pixels, if wanted, and their people, in one pass."""
    hashes, people = set[bytes](), set[str]()
    for piece in training:
        for rows in read(piece):
            hashes.update(rows.pixel_hashes if pixels else ())
            people |= rows.people()
    return hashes, people


def _drop_duplicates(scored: Sequence[Part], hashes: set[bytes] | None, drop: bool) -> str:
    """Drop copies of training images, whose hashes these are, from held-out parts; how they were searched."""
    if not drop:
        return "kept"
    if not scored:
        return "nothing to compare"
    for part in scored:
        part.drop_copies(lambda: hashes)
    if all(part.rows.dup_of_train is not None for part in scored):
        return "by the column dup_of_train"
    return "not looked for, there is no train split" if hashes is None else "by comparing pixels with the train split"


def _warn_of_shared_people(scored: Sequence[Part], trained: set[str]) -> None:
    """Say so where held-out images are of people who are in the training images too."""
    by_piece: dict[str, set[str]] = {}
    for part in scored:
        by_piece.setdefault(part.piece.shown, set()).update(part.rows.people())
    for shown, people in by_piece.items():
        if shared := sorted(people & trained):
            log.warning(
                "%s: %d of %d people are in the train split too (%s), so scores there say less of new faces",
                shown,
                len(shared),
                len(people),
                ", ".join(shared[:3]) + (", …" if len(shared) > 3 else ""),
            )


def _apply_limit(parts: Sequence[Part], limit: int | None) -> None:
    if limit is None:
        return
    left: dict[str | None, int] = {}
    for part in parts:
        room = left.get(part.piece.split, limit)
        rank = np.cumsum(part.kept)
        kept = int(part.kept.sum())
        left[part.piece.split] = max(room - kept, 0)
        if kept > room:
            part.drop("beyond the limit", part.kept & (rank > room))


def _info(name: str, pieces: Sequence[Piece]) -> DatasetInfo:
    """What `datasets` says of a set: its title and where it was read, citation, terms and home page."""
    from datasets import DatasetInfo

    credit, source = FACES[name], dataset_id(pieces)
    return DatasetInfo(
        description=credit.title + (f", read from hf.co/datasets/{source}" if source else ""),
        citation=credit.citation,
        license=credit.terms,
        homepage=credit.home,
        dataset_name=name,
    )


def _join(parts: Sequence[Part]) -> Dataset:
    from datasets import concatenate_datasets

    sets = [part.dataset(hold=True) for part in parts]
    shared = set.intersection(*(set(s.column_names) for s in sets))
    sets = [s.select_columns([c for c in s.column_names if c in shared]) for s in sets]
    return concatenate_datasets(sets) if len(sets) > 1 else sets[0]


def _report(name: str, split: str, parts: Sequence[Part], dataset: Dataset, searched: str) -> LoadReport:
    names = dataset.features["label"].names
    label = np.asarray(dataset.with_format("numpy")["label"][:], dtype=np.int64)
    soft = "soft_label" in dataset.column_names
    target = np.asarray(dataset.with_format("numpy")["soft_label"][:]) if soft else label
    counts = target.sum(0, dtype=np.float64) if soft and len(label) else np.bincount(label, minlength=len(names))
    return LoadReport(
        name=name,
        split=split,
        labels=", ".join(dict.fromkeys(p.labels for p in parts)),
        read=sum(len(p.label) for p in parts),
        dropped=dropped_counts(parts),
        kept=len(dataset),
        counts={c: round(float(n), 3) for c, n in zip(names, counts, strict=True)},
        duplicates=searched,
        sha256=rows_sha256(dataset, target),
        layout=", ".join(dict.fromkeys(p.piece.kind for p in parts)),
        dataset_id=dataset_id([p.piece for p in parts]),
    )


def rows_sha256(dataset: Dataset, target: np.ndarray) -> str:
    """The hash of a set's encoded images, targets, and where there are any valence and arousal, in order."""
    digest = hashlib.sha256(np.ascontiguousarray(target).tobytes())
    if {"valence", "arousal"} <= set(dataset.column_names):
        for column in ("valence", "arousal"):
            digest.update(np.array(dataset[column][:], dtype=np.float32).tobytes())
    for record in image_records(dataset):
        data = record["bytes"] if record["bytes"] is not None else read_image_file(record["path"])
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
