"""From what a data set says about a face to a class: names, split names, and the rules that read annotators' votes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError, choices

SPLITS = ("train", "valid", "test")
LABEL_RULES = ("majority", "argmax", "votes")
GIVEN = "given"  # instead of a label rule, of sets that name one class an image
VOTE_COLUMNS = (*CLASSES, "unknown", "NF")  # FER+'s, in the file's order

NO_VOTE = "no vote for any of the classes"
NOT_A_FACE = "led by unknown or NF"
NO_MAJORITY = "no majority"
OTHER_CLASS = "a class outside `classes`"
NOT_A_CLASS = -1

_SPLIT_NAMES = {
    "train": ("train", "training", "fer2013train"),
    "valid": ("valid", "validation", "val", "dev", "publictest", "fer2013valid"),
    "test": ("test", "testing", "privatetest", "fer2013test"),
}
_SPLIT_OF = {alias: split for split, aliases in _SPLIT_NAMES.items() for alias in aliases}

_NAMES: Mapping[str, Sequence[str]] = {
    names.split()[0]: names.split()
    for names in (
        "neutral neutrality ne",
        "happiness happy joy ha",
        "surprise surprised su",
        "sadness sad sa",
        "anger angry an",
        "disgust disgusted di",
        "fear fearful afraid scared fe",
        "contempt contemptuous",
    )
}
_WITHOUT_CONTEMPT = ("fer2013", "rafdb", "jaffe", "sfew", "diffusionfer")

DATASETS = (
    *("ferplus", "fer2013", "affectnet", "ckplus", "rafdb", "jaffe", "sfew"),
    *("diffusionfer", "muxspace", "schematic"),
)
"""The names a data set may have; a name fixes which label names are understood."""


def _numbered(names: str, start: int = 0) -> Mapping[int, str]:
    return dict(enumerate(names.split(), start))


# Numbers mean a class only where the publishers fixed them for one layout; they are read there and nowhere else.
FER2013_IDS = _numbered("anger disgust fear happiness sadness surprise neutral")
"""`emotion` in fer2013.csv and icml_face_data.csv: "Challenges in Representation Learning: Facial Expression
Recognition Challenge", Kaggle 2013, data page."""

CKPLUS_IDS = _numbered("neutral anger contempt disgust fear happiness sadness surprise")
"""`*_emotion.txt` in CK+'s own distribution: its ReadMeCohnKanadeDatabase_website.txt (2010)."""

CKPLUS_48_IDS = _numbered("anger disgust fear happiness sadness surprise neutral contempt")
"""`emotion` in ckextended.csv, the 48-pixel export: its Kaggle page ("CKPLUS", 920 images)."""

AFFECTNET_IDS = _numbered("neutral happiness sadness surprise fear disgust anger contempt None Uncertain Non-Face")
"""`expression` of AffectNet: Mollahosseini, Hasani and Mahoor (2017), and the read-me of the distribution; from 8 on
they are no expressions."""

RAFDB_IDS = _numbered("surprise fear disgust happiness sadness anger neutral", start=1)
"""list_patition_label.txt and the folders 1 to 7: RAF-DB's read-me (basic emotions), Li, Deng and Du (2017)."""

LISTED_IDS: Mapping[str, Mapping[int, str]] = {"rafdb": RAFDB_IDS}
"""By data set, the numbers that a table's column of one-element lists holds: Mat303/raf-db-tcc on the Hub."""

JAFFE_LETTERS: Mapping[str, str] = {names[-1].upper(): c for c, names in _NAMES.items() if c != "contempt"}
"""The letters in JAFFE's file names (KA.AN1.39.tiff): its read-me, Lyons et al. (1998)."""

SUBJECT_IN_NAME: Mapping[str, str] = {"ckplus": r"(S\d{3})_", "jaffe": r"([A-Z]{2})\.[A-Z]{2}\d"}
"""The sets that show a subject on several images, and how their file names begin (S005_001_…, KA.AN1.…)."""


def subject_of(dataset: str, path: str) -> str | None:
    """The subject that a file name of one of the sets of `SUBJECT_IN_NAME` begins with, None where it names none."""
    found = re.match(SUBJECT_IN_NAME[dataset], re.split(r"[/\\]", path)[-1])
    return found.group(1) if found else None


def class_of(dataset: str, label: str) -> str:
    """The class, by FER+'s name, that a data set's own label name means."""
    if dataset not in DATASETS:
        raise choices("data set", dataset, DATASETS)
    if not is_class(dataset, label):
        raise choices(f"{dataset} class name", label, _aliases(dataset))
    return _aliases(dataset)[label.strip().lower()]


def is_class(dataset: str, label: str) -> bool:
    """Whether a data set's label name is known."""
    return label.strip().lower() in _aliases(dataset)


def _aliases(dataset: str) -> Mapping[str, str]:
    left_out = "contempt" if dataset in _WITHOUT_CONTEMPT else None
    return {alias: c for c, aliases in _NAMES.items() for alias in aliases if c != left_out}


def split_of(name: str) -> str | None:
    """The split that a file or folder name speaks of, None where it names none or several."""
    words = name.lower().replace("-", " ").replace("_", " ").replace(".", " ").split()
    found = {_SPLIT_OF[w] for w in words if w in _SPLIT_OF}
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class Ruled:
    """The labels that a rule gives."""

    label: np.ndarray  # (N,) int64 index into the selected classes, NOT_A_CLASS where the row is dropped
    soft: np.ndarray | None  # (N, C) float32, sums of 1, for the rule `votes` only
    dropped: Mapping[str, np.ndarray]  # reason → (N,) bool; a row has at most one reason


def apply_rule(votes: np.ndarray, rule: str, classes: Sequence[str] = CLASSES) -> Ruled:
    """Turn FER+ vote counts, (N, 10) in the order of `VOTE_COLUMNS`, into labels.

    - `majority`: votes of one are dropped (counts of 1 become 0); the leading class must hold more than half of
      what is left, unknown and NF included; rows led by unknown or NF (or tied with them) fall out.
    - `argmax`: the class with the most of the eight counts; the first in FER+'s order where some tie.
    - `votes`: the counts of `classes`, divided by their sum; the label is their argmax.

    The paper names no rule; `majority` in its recipes is our reading.
    Every rule drops rows without a vote for the eight. `majority` and `argmax` decide among the eight and then drop
    rows of a class outside `classes`; `votes` drops rows without a vote for `classes`.

    Reference:
        Barsoum et al., "Training deep networks for facial expression recognition with crowd-sourced label
        distribution", ICMI 2016.
    """
    if rule not in LABEL_RULES:
        raise choices("label rule", rule, LABEL_RULES)
    if votes.ndim != 2 or votes.shape[1] != len(VOTE_COLUMNS):
        raise InputError(f"votes must have shape (N, {len(VOTE_COLUMNS)}), got {votes.shape}")
    counts = votes.astype(np.int64)
    if (counts < 0).any():
        raise InputError(f"vote counts can't be negative; row {int((counts < 0).any(1).argmax())} has {counts.min()}")
    eight = counts[:, : len(CLASSES)]
    dropped = {NO_VOTE: eight.sum(1) == 0}
    soft: np.ndarray | None = None
    if rule == "votes":
        selected = eight[:, [CLASSES.index(c) for c in classes]]
        total = selected.sum(1)
        dropped[NO_VOTE] = total == 0
        soft = (selected / np.maximum(total, 1)[:, None]).astype(np.float32)
        label = selected.argmax(1)
    else:
        strong = np.where(counts > 1, counts, 0) if rule == "majority" else counts
        ours = strong[:, : len(CLASSES)]
        if rule == "majority":
            other = strong[:, len(CLASSES) :].max(1)
            dropped[NOT_A_FACE] = ~dropped[NO_VOTE] & (other >= ours.max(1)) & (other > 0)
            weak = 2 * ours.max(1) <= strong.sum(1)
            dropped[NO_MAJORITY] = ~dropped[NO_VOTE] & ~dropped[NOT_A_FACE] & weak
        place = np.array([classes.index(c) if c in classes else NOT_A_CLASS for c in CLASSES])
        label = place[ours.argmax(1)]
        outside = label == NOT_A_CLASS
        for mask in dropped.values():
            outside = outside & ~mask
        if outside.any():
            dropped[OTHER_CLASS] = outside
    gone = np.logical_or.reduce(list(dropped.values()))
    return Ruled(np.where(gone, NOT_A_CLASS, label), soft, dropped)
