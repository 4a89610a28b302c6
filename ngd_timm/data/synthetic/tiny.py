"""Data sets in miniature: drawn faces, laid out file by file as licensed sets are, to try readers without them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ngd_timm.core.affect import CLASSES, anchors
from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.files import atomic_folder
from ngd_timm.data.labels import (
    AFFECTNET_IDS,
    CKPLUS_48_IDS,
    CKPLUS_IDS,
    FER2013_IDS,
    JAFFE_LETTERS,
    RAFDB_IDS,
    VOTE_COLUMNS,
)
from ngd_timm.data.layouts.rows import encode_png
from ngd_timm.data.synthetic.schematic import draw_face

_SIDE = 48
_SEVEN = tuple(c for c in CLASSES if c != "contempt")
_USAGE = {"train": "Training", "valid": "PublicTest", "test": "PrivateTest"}
_FER_FOLDERS = {"train": "FER2013Train", "valid": "FER2013Valid", "test": "FER2013Test"}
_SFEW_FOLDERS = {"train": "Train/Train_Aligned_Faces", "valid": "Val/Val_Aligned_Faces_new"}
_FOLDER_NAMES = dict(zip(_SEVEN, ("Neutral", "Happy", "Surprise", "Sad", "Angry", "Disgust", "Fear"), strict=True))
_LETTERS = {name: letters for letters, name in JAFFE_LETTERS.items()}


class TinyLayout(NamedTuple):
    """A layout that can be written: the data set it belongs to, and its writer (folder, images a class, seed)."""

    dataset: str
    write: Callable[[Path, int, int], None]


TINY_LAYOUTS: dict[str, TinyLayout] = {}
"""Name → layout, for `write_tiny`."""


def tiny_face(expression: str, number: int, seed: int = 0, strength: float = 1.0) -> Image.Image:
    """The image `number` of an expression that `write_tiny` draws: 48x48, grey; `strength` 0 is neutral."""
    va = anchors([expression])[0] * strength
    subject = 1000 * seed + 10 * number + CLASSES.index(expression)
    return draw_face(expression, va, domain="pencil", seed=subject, image_size=_SIDE)


def write_tiny(layout: str, folder: str | Path, n: int = 2, seed: int = 0) -> Path:
    """Write a data set of drawn faces in the exact layout of a published one, `n` of each class in each split.

    It is to be read as `load_fer(TINY_LAYOUTS[layout].dataset, folder)`; a folder that is there is replaced.

    Examples:
        >>> import tempfile
        >>> from ngd_timm.data import load_split
        >>> folder = write_tiny("rafdb-list", Path(tempfile.mkdtemp()) / "RAF-DB")
        >>> load_split("rafdb", folder, "test")[1].kept
        14
    """
    if layout not in TINY_LAYOUTS:
        raise choices("tiny layout", layout, TINY_LAYOUTS)
    if n < 1:
        raise InputError(f"n must be at least 1, got {n}")
    with atomic_folder(folder) as root:
        TINY_LAYOUTS[layout].write(root, n, seed)
    return Path(folder)


class _Face(NamedTuple):
    expression: str
    number: int
    split: str
    seed: int

    @property
    def image(self) -> Image.Image:
        return tiny_face(self.expression, self.number, self.seed)

    @property
    def place(self) -> tuple[float, float]:
        valence, arousal = anchors([self.expression])[0]
        return round(float(valence), 3), round(float(arousal), 3)

    def number_in(self, published: Mapping[int, str]) -> int:
        return next(number for number, name in published.items() if name == self.expression)

    def save(self, path: Path) -> None:
        _save(self.image, path)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        path.write_bytes(encode_png(np.asarray(image)))
    else:
        image.save(path, quality=95)  # of JPEGs


def _faces(classes: Sequence[str], splits: Iterable[str], n: int, seed: int) -> list[_Face]:
    """Splits in order; within one the classes take turns, so that no order gives the class away."""
    return [_Face(c, k * n + i, split, seed) for k, split in enumerate(splits) for i in range(n) for c in classes]


def _write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows(rows)


def _layout(name: str, dataset: str) -> Callable[[Callable[[Path, int, int], None]], None]:
    """Register a writer."""

    def register(write: Callable[[Path, int, int], None]) -> None:
        TINY_LAYOUTS[name] = TinyLayout(dataset, write)

    return register


def _ferplus_rows(n: int, seed: int) -> list[tuple[_Face, str, list[int]]]:
    """Faces with name and votes: names aren't row numbers, one face has none, and one name stands twice."""
    rows = []
    for i, face in enumerate(_faces(CLASSES, _USAGE, n, seed)):
        votes = dict.fromkeys(VOTE_COLUMNS, 0)
        votes[face.expression] += 8
        votes["happiness" if face.expression == "neutral" else "neutral"] += 1
        votes["unknown"] += 1
        rows.append((face, f"fer{7 * i + 3:07d}.png", list(votes.values())))
    rows.insert(1, (rows[1][0], "", [0] * 9 + [10]))
    # Microsoft's file has four such names; the later row counts, since its image overwrites the earlier
    rows[-2] = (rows[-2][0], rows[-1][1], rows[-2][2])
    return rows


def _ferplus_labels(path: Path, rows: Sequence[tuple[_Face, str, list[int]]]) -> None:
    table = [[_USAGE[face.split], name, *votes] for face, name, votes in rows]
    _write_csv(path, [["Usage", "Image name", *VOTE_COLUMNS], *table])


@_layout("ferplus-export", "ferplus")
def _ferplus_export(root: Path, n: int, seed: int) -> None:
    rows = _ferplus_rows(n, seed)
    _ferplus_labels(root / "fer2013new.csv", rows)
    for face, name, _ in rows:
        if name:
            face.save(root / _FER_FOLDERS[face.split] / name)


@_layout("ferplus-folder-labels", "ferplus")
def _ferplus_folder_labels(root: Path, n: int, seed: int) -> None:
    rows = _ferplus_rows(n, seed)
    for split, folder in _FER_FOLDERS.items():
        named = [(face, name, votes) for face, name, votes in rows if name and face.split == split]
        _write_csv(root / "data" / folder / "label.csv", [[name, "(0, 0, 48, 48)", *votes] for _, name, votes in named])
        for face, name, _ in named:
            face.save(root / "data" / folder / name)


@_layout("ferplus-two-csv", "ferplus")
def _ferplus_two_csv(root: Path, n: int, seed: int) -> None:
    rows = _ferplus_rows(n, seed)
    _ferplus_labels(root / "fer2013new.csv", rows)
    _write_pixels(root / "fer2013.csv", [face for face, *_ in rows], None, ("emotion", "pixels", "Usage"))


def _write_pixels(
    path: Path, faces: Iterable[_Face], published: Mapping[int, str] | None, header: Sequence[str]
) -> None:
    table: list[Sequence[object]] = [header]
    for face in faces:
        row = {
            "emotion": 0 if published is None else face.number_in(published),
            "pixels": " ".join(map(str, np.asarray(face.image).ravel())),
            "Usage": _USAGE[face.split],
        }
        table.append([row[column.strip()] for column in header])
    _write_csv(path, table)


def _pixel_layout(
    name: str, dataset: str, file: str, published: Mapping[int, str], header: Sequence[str], classes: Sequence[str]
) -> None:
    @_layout(name, dataset)
    def write(root: Path, n: int, seed: int) -> None:
        _write_pixels(root / file, _faces(classes, _USAGE, n, seed), published, header)


_pixel_layout("fer2013-csv", "fer2013", "fer2013.csv", FER2013_IDS, ("emotion", "pixels", "Usage"), _SEVEN)
_pixel_layout("fer2013-icml", "fer2013", "icml_face_data.csv", FER2013_IDS, ("emotion", " Usage", " pixels"), _SEVEN)
_pixel_layout("ckplus-48", "ckplus", "ckextended.csv", CKPLUS_48_IDS, ("emotion", "pixels", "Usage"), CLASSES)


def _named_layout(
    name: str, dataset: str, splits: Sequence[str], path: Callable[[_Face, int], str], classes: Sequence[str] = _SEVEN
) -> None:
    """A layout of image files alone, whose paths name everything."""

    @_layout(name, dataset)
    def write(root: Path, n: int, seed: int) -> None:
        for i, face in enumerate(_faces(classes, splits, n, seed)):
            face.save(root / path(face, i))


_named_layout(
    "fer2013-folders",
    "fer2013",
    ("train", "test"),
    lambda face, i: f"{face.split}/{_FOLDER_NAMES[face.expression].lower()}/{i}.jpg",
)
_named_layout(
    "ckplus-folders",
    "ckplus",
    ("all",),
    lambda face, i: (
        f"{'happy' if face.expression == 'happiness' else face.expression}"
        f"/S{10 + face.number:03d}_{1 + i % 7:03d}_{14 + i:08d}.png"
    ),
    CLASSES[1:],
)
_named_layout(
    "jaffe",
    "jaffe",
    ("all",),
    lambda face, i: f"{('KA', 'KL', 'YM')[face.number % 3]}.{_LETTERS[face.expression]}{face.number + 1}.{39 + i}.tiff",
)


@_layout("sfew", "sfew")
def _sfew(root: Path, n: int, seed: int) -> None:
    for i, face in enumerate(_faces(_SEVEN, _SFEW_FOLDERS, n, seed)):
        folder = f"{_SFEW_FOLDERS[face.split]}/{_FOLDER_NAMES[face.expression]}"
        face.save(root / folder / f"Film_{i:09d}_00000001.png")
    test = root / "Test" / "Test_Aligned_Faces"
    test.mkdir(parents=True)
    tiny_face("fear", 99, seed).save(test / "Film_000000099.png")


@_layout("affectnet-folders", "affectnet")
def _affectnet_folders(root: Path, n: int, seed: int) -> None:
    for i, face in enumerate(_faces(CLASSES, ("train", "valid"), n, seed)):
        folder = root / ("train_set" if face.split == "train" else "val_set")
        face.save(folder / "images" / f"{i}.jpg")
        notes = folder / "annotations"
        notes.mkdir(exist_ok=True)
        # the distribution stores each number as text of no dimension
        for what, number in zip(("exp", "val", "aro"), (face.number_in(AFFECTNET_IDS), *face.place), strict=True):
            np.save(notes / f"{i}_{what}.npy", np.array(str(number)))
        np.save(notes / f"{i}_lnd.npy", np.zeros(136))


@_layout("affectnet-lists", "affectnet")
def _affectnet_lists(root: Path, n: int, seed: int) -> None:
    box = ["face_x", "face_y", "face_width", "face_height", "facial_landmarks"]
    header = ["subDirectory_filePath", *box, "expression", "valence", "arousal"]
    faces = _faces(CLASSES, ("train", "valid"), n, seed)
    for split, file in (("train", "training.csv"), ("valid", "validation.csv")):
        rows: list[tuple[Any, ...]] = []
        for i, face in enumerate(faces):
            if face.split == split:
                name = f"{i % 3}/{split}{i:04d}.jpg"
                face.save(root / "Manually_Annotated_Images" / name)
                rows.append((name, face.number_in(AFFECTNET_IDS), *face.place))
        # no images exist of these: None has a place in the plane, Uncertain and Non-Face have -2
        rows += [(f"0/{split}none.jpg", 8, 0.1, 0.2), *((f"0/{split}{i}.jpg", i, -2, -2) for i in (9, 10))]
        _write_csv(root / file, [header, *([name, 0, 0, _SIDE, _SIDE, "1;2", *row] for name, *row in rows)])


@_layout("ckplus-sequences", "ckplus")
def _ckplus_sequences(root: Path, n: int, seed: int) -> None:
    """Five frames a sequence; subject 005 has one more, without an emotion. A hidden file is there, as in the set."""
    emotions = {number: name for number, name in CKPLUS_IDS.items() if name != "neutral"}
    sequences = [(f"S{5 + i:03d}", f"{k:03d}", k, i) for i in range(n) for k in emotions]
    unlabelled = next(number for number, name in emotions.items() if name == "fear")
    for subject, sequence, number, face in [*sequences, ("S005", "009", unlabelled, n)]:
        stem = f"{subject}_{sequence}"
        folder = root / "cohn-kanade-images" / subject / sequence
        for frame in range(5):
            _save(tiny_face(emotions[number], face, seed, frame / 4), folder / f"{stem}_{frame + 1:08d}.png")
        (folder / ".DS_Store").write_bytes(b"")
        notes = root / "Emotion" / subject / sequence
        notes.mkdir(parents=True, exist_ok=True)
        if sequence != "009":
            (notes / f"{stem}_{5:08d}_emotion.txt").write_text(f"   {number:.7e}\n", encoding="utf-8")


@_layout("rafdb-list", "rafdb")
def _rafdb_list(root: Path, n: int, seed: int) -> None:
    lines = []
    for i, face in enumerate(_faces(_SEVEN, ("train", "test"), n, seed), start=1):
        stem = f"train_{i:05d}" if face.split == "train" else f"test_{i:04d}"
        face.save(root / "Image" / "aligned" / f"{stem}_aligned.jpg")
        lines.append(f"{stem}.jpg {face.number_in(RAFDB_IDS)}\n")
    (root / "EmoLabel").mkdir()
    (root / "EmoLabel" / "list_patition_label.txt").write_text("".join(lines), encoding="utf-8")


@_layout("rafdb-kaggle", "rafdb")
def _rafdb_kaggle(root: Path, n: int, seed: int) -> None:
    tables: dict[str, list[tuple[str, object]]] = {split: [("image", "label")] for split in ("train", "test")}
    for i, face in enumerate(_faces(_SEVEN, tables, n, seed), start=1):
        number, name = face.number_in(RAFDB_IDS), f"{face.split}_{i:05d}_aligned.jpg"
        face.save(root / "DATASET" / face.split / str(number) / name)
        tables[face.split].append((name, number))
    for split, table in tables.items():
        _write_csv(root / f"{split}_labels.csv", table)


@_layout("manifest", "affectnet")
def _manifest(root: Path, n: int, seed: int) -> None:
    table: list[tuple[object, ...]] = [("image_path", "label_name", "split", "subject", "valence", "arousal")]
    for i, face in enumerate(_faces(CLASSES, _USAGE, n, seed)):
        face.save(root / "images" / f"{i}.png")
        table.append((f"images/{i}.png", face.expression, face.split, f"p{face.number}", *face.place))
    _write_csv(root / "manifest.csv", table)


@_layout("npz", "ferplus")
def _npz(root: Path, n: int, seed: int) -> None:
    faces = _faces(CLASSES, _USAGE, n, seed)
    np.savez(
        root / "faces.npz",
        X=np.stack([np.asarray(f.image) for f in faces]),
        y=np.array([CLASSES.index(f.expression) for f in faces]),
        classes=np.array(CLASSES),
        split=np.array([f.split for f in faces]),
    )
