"""Every layout in miniature: drawn faces, laid out file by file as licensed sets are, to try readers without them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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

__all__ = ["TINY_LAYOUTS", "tiny_face", "write_tiny"]

_SIDE = 48
_SEVEN = tuple(c for c in CLASSES if c != "contempt")
_USAGE = {"train": "Training", "valid": "PublicTest", "test": "PrivateTest"}
_FER_FOLDERS = {"train": "FER2013Train", "valid": "FER2013Valid", "test": "FER2013Test"}
_FOLDER_NAMES = {
    "neutral": "Neutral",
    "happiness": "Happy",
    "surprise": "Surprise",
    "sadness": "Sad",
    "anger": "Angry",
    "disgust": "Disgust",
    "fear": "Fear",
}


def tiny_face(expression: str, number: int, seed: int = 0, strength: float = 1.0) -> Image.Image:
    """The picture `number` of an expression that `write_tiny` draws: 48x48, grey.

    Args:
        expression: One of `ngd_timm.CLASSES`.
        number: Which one, from 0.
        seed: The seed of the whole set.
        strength: How far from neutral, 0 to 1.

    Example:
        >>> tiny_face("fear", 0).size
        (48, 48)
    """
    va = anchors([expression])[0] * strength
    person = 1000 * seed + 10 * number + CLASSES.index(expression)
    return draw_face(expression, va, domain="pencil", seed=person, image_size=_SIDE)


def write_tiny(layout: str, folder: str | Path, n: int = 2, seed: int = 0) -> Path:
    """Write a data set of drawn faces in the exact layout of a published one.

    Args:
        layout: One of `TINY_LAYOUTS`.
        folder: Where; replaced if there.
        n: Pictures of each class in each split.
        seed: Of the faces.

    Returns:
        The folder, to be read as `load_fer(TINY_LAYOUTS[layout].dataset, folder)`.

    Raises:
        InputError: Unknown layout, or no picture wanted.

    Example:
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


@dataclass(frozen=True)
class _Face:
    expression: str
    number: int
    split: str
    seed: int

    @property
    def image(self) -> Image.Image:
        return tiny_face(self.expression, self.number, self.seed)

    @property
    def pixels(self) -> str:
        return " ".join(str(p) for p in np.asarray(self.image).ravel())

    @property
    def place(self) -> tuple[float, float]:
        valence, arousal = anchors([self.expression])[0]
        return round(float(valence), 3), round(float(arousal), 3)

    def save(self, path: Path) -> None:
        _save(self.image, path)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        path.write_bytes(encode_png(np.asarray(image)))
    elif path.suffix == ".jpg":
        image.save(path, quality=95)
    else:
        image.save(path)


def _faces(classes: Sequence[str], splits: Sequence[str], n: int, seed: int) -> list[_Face]:
    """Splits in order; within one the classes take turns, so that no order tells the class."""
    return [_Face(c, k * n + i, split, seed) for k, split in enumerate(splits) for i in range(n) for c in classes]


def _write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows(rows)


def _votes(expression: str) -> list[int]:
    """Eight votes for the class, one for neutral or happiness, one unknown."""
    votes = dict.fromkeys(VOTE_COLUMNS, 0)
    votes[expression] += 8
    votes["happiness" if expression == "neutral" else "neutral"] += 1
    votes["unknown"] += 1
    return list(votes.values())


def _ferplus_rows(n: int, seed: int) -> list[tuple[_Face, str, list[int]]]:
    """Faces with name and votes: names aren't row numbers, one face has none, and one name stands twice."""
    faces = _faces(CLASSES, tuple(_USAGE), n, seed)
    rows = [(face, f"fer{7 * i + 3:07d}.png", _votes(face.expression)) for i, face in enumerate(faces)]
    rows.insert(1, (faces[1], "", [0] * 9 + [10]))
    # Microsoft's file has four such names; the later row counts, since its picture overwrites the earlier
    rows[-2] = (rows[-2][0], rows[-1][1], rows[-2][2])
    return rows


def _ferplus_labels(path: Path, rows: Sequence[tuple[_Face, str, list[int]]]) -> None:
    table = [[_USAGE[face.split], name, *votes] for face, name, votes in rows]
    _write_csv(path, [["Usage", "Image name", *VOTE_COLUMNS], *table])


def _ferplus_export(root: Path, n: int, seed: int) -> None:
    rows = _ferplus_rows(n, seed)
    _ferplus_labels(root / "fer2013new.csv", rows)
    for face, name, _ in rows:
        if name:
            face.save(root / _FER_FOLDERS[face.split] / name)


def _ferplus_folder_labels(root: Path, n: int, seed: int) -> None:
    rows = _ferplus_rows(n, seed)
    for split, folder in _FER_FOLDERS.items():
        named = [(face, name, votes) for face, name, votes in rows if name and face.split == split]
        _write_csv(root / "data" / folder / "label.csv", [[name, "(0, 0, 48, 48)", *votes] for _, name, votes in named])
        for face, name, _ in named:
            face.save(root / "data" / folder / name)


def _ferplus_two_csv(root: Path, n: int, seed: int) -> None:
    rows = _ferplus_rows(n, seed)
    _ferplus_labels(root / "fer2013new.csv", rows)
    table = [[0, face.pixels, _USAGE[face.split]] for face, _, _ in rows]
    _write_csv(root / "fer2013.csv", [["emotion", "pixels", "Usage"], *table])


def _fer2013(root: Path, n: int, seed: int) -> None:
    faces = _faces(_SEVEN, tuple(_USAGE), n, seed)
    table = [[_number(FER2013_IDS, f.expression), f.pixels, _USAGE[f.split]] for f in faces]
    _write_csv(root / "fer2013.csv", [["emotion", "pixels", "Usage"], *table])


def _fer2013_icml(root: Path, n: int, seed: int) -> None:
    faces = _faces(_SEVEN, tuple(_USAGE), n, seed)
    table = [[_number(FER2013_IDS, f.expression), _USAGE[f.split], f.pixels] for f in faces]
    _write_csv(root / "icml_face_data.csv", [["emotion", " Usage", " pixels"], *table])


def _number(published: Mapping[int, str], expression: str) -> int:
    return next(number for number, name in published.items() if name == expression)


def _affectnet_folders(root: Path, n: int, seed: int) -> None:
    for i, face in enumerate(_faces(CLASSES, ("train", "valid"), n, seed)):
        folder = root / ("train_set" if face.split == "train" else "val_set")
        face.save(folder / "images" / f"{i}.jpg")
        notes = folder / "annotations"
        notes.mkdir(exist_ok=True)
        valence, arousal = face.place
        # the distribution stores each number as text of no dimension
        np.save(notes / f"{i}_exp.npy", np.array(str(_number(AFFECTNET_IDS, face.expression))))
        np.save(notes / f"{i}_val.npy", np.array(str(valence)))
        np.save(notes / f"{i}_aro.npy", np.array(str(arousal)))
        np.save(notes / f"{i}_lnd.npy", np.zeros(136))


def _affectnet_lists(root: Path, n: int, seed: int) -> None:
    box = ["face_x", "face_y", "face_width", "face_height", "facial_landmarks"]
    header = ["subDirectory_filePath", *box, "expression", "valence", "arousal"]
    faces = _faces(CLASSES, ("train", "valid"), n, seed)
    for split, file in (("train", "training.csv"), ("valid", "validation.csv")):
        table: list[list[object]] = []
        for i, face in enumerate(faces):
            if face.split == split:
                name = f"{i % 3}/{split}{i:04d}.jpg"
                face.save(root / "Manually_Annotated_Images" / name)
                expression = _number(AFFECTNET_IDS, face.expression)
                table.append([name, 0, 0, _SIDE, _SIDE, "1;2", expression, *face.place])
        # nobody has pictures of these in mind: None has a place in the plane, Uncertain and Non-Face have -2
        table += [[f"0/{split}none.jpg", 0, 0, _SIDE, _SIDE, "1;2", 8, 0.1, 0.2]]
        table += [[f"0/{split}{i}.jpg", 0, 0, _SIDE, _SIDE, "1;2", i, -2, -2] for i in (9, 10)]
        _write_csv(root / file, [header, *table])


def _ckplus_sequences(root: Path, n: int, seed: int) -> None:
    """Five frames a sequence; person 005 has one more, without an emotion. A hidden file lies beside, as in the set."""
    emotions = [name for name in CKPLUS_IDS.values() if name != "neutral"]
    sequences = [(f"S{5 + i:03d}", f"{1 + k:03d}", name, i) for i in range(n) for k, name in enumerate(emotions)]
    for person, sequence, name, number in [*sequences, ("S005", "009", "fear", n)]:
        stem = f"{person}_{sequence}"
        folder = root / "cohn-kanade-images" / person / sequence
        for frame in range(5):
            _save(tiny_face(name, number, seed, frame / 4), folder / f"{stem}_{frame + 1:08d}.png")
        (folder / ".DS_Store").write_bytes(b"")
        notes = root / "Emotion" / person / sequence
        notes.mkdir(parents=True, exist_ok=True)
        if sequence != "009":
            number_text = f"   {_number(CKPLUS_IDS, name):.7e}\n"
            (notes / f"{stem}_{5:08d}_emotion.txt").write_text(number_text, encoding="utf-8")


def _ckplus_folders(root: Path, n: int, seed: int) -> None:
    for i, face in enumerate(_faces([c for c in CLASSES if c != "neutral"], ("all",), n, seed)):
        name = "happy" if face.expression == "happiness" else face.expression
        face.save(root / name / f"S{10 + face.number:03d}_{1 + i % 7:03d}_{14 + i:08d}.png")


def _ckplus_48(root: Path, n: int, seed: int) -> None:
    faces = _faces(CLASSES, tuple(_USAGE), n, seed)
    table = [[_number(CKPLUS_48_IDS, f.expression), f.pixels, _USAGE[f.split]] for f in faces]
    _write_csv(root / "ckextended.csv", [["emotion", "pixels", "Usage"], *table])


def _rafdb_list(root: Path, n: int, seed: int) -> None:
    lines = []
    for i, face in enumerate(_faces(_SEVEN, ("train", "test"), n, seed), start=1):
        stem = f"train_{i:05d}" if face.split == "train" else f"test_{i:04d}"
        face.save(root / "Image" / "aligned" / f"{stem}_aligned.jpg")
        lines.append(f"{stem}.jpg {_number(RAFDB_IDS, face.expression)}\n")
    (root / "EmoLabel").mkdir()
    (root / "EmoLabel" / "list_patition_label.txt").write_text("".join(lines), encoding="utf-8")


def _rafdb_kaggle(root: Path, n: int, seed: int) -> None:
    tables: dict[str, list[list[object]]] = {"train": [["image", "label"]], "test": [["image", "label"]]}
    for i, face in enumerate(_faces(_SEVEN, ("train", "test"), n, seed), start=1):
        number = _number(RAFDB_IDS, face.expression)
        name = f"{face.split}_{i:05d}_aligned.jpg"
        face.save(root / "DATASET" / face.split / str(number) / name)
        tables[face.split].append([name, number])
    for split, table in tables.items():
        _write_csv(root / f"{split}_labels.csv", table)


def _jaffe(root: Path, n: int, seed: int) -> None:
    letters = {name: short for short, name in JAFFE_LETTERS.items()}
    for i, face in enumerate(_faces(_SEVEN, ("all",), n, seed), start=39):
        person = ("KA", "KL", "YM")[face.number % 3]
        face.save(root / f"{person}.{letters[face.expression]}{face.number + 1}.{i}.tiff")


def _sfew(root: Path, n: int, seed: int) -> None:
    aligned = {"train": "Train/Train_Aligned_Faces", "valid": "Val/Val_Aligned_Faces_new"}
    for i, face in enumerate(_faces(_SEVEN, tuple(aligned), n, seed)):
        face.save(root / aligned[face.split] / _FOLDER_NAMES[face.expression] / f"Film_{i:09d}_00000001.png")
    tiny_face("fear", 99, seed).save(_made(root / "Test" / "Test_Aligned_Faces") / "Film_000000099.png")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _class_folders(root: Path, n: int, seed: int) -> None:
    for i, face in enumerate(_faces(_SEVEN, ("train", "test"), n, seed)):
        face.save(root / face.split / _FOLDER_NAMES[face.expression].lower() / f"{i}.jpg")


def _manifest(root: Path, n: int, seed: int) -> None:
    table: list[list[object]] = []
    for i, face in enumerate(_faces(CLASSES, ("train", "valid", "test"), n, seed)):
        face.save(root / "pictures" / f"{i}.png")
        table.append([f"pictures/{i}.png", face.expression, face.split, f"p{face.number}", *face.place])
    _write_csv(root / "manifest.csv", [["image_path", "label_name", "split", "subject", "valence", "arousal"], *table])


def _npz(root: Path, n: int, seed: int) -> None:
    faces = _faces(CLASSES, ("train", "valid", "test"), n, seed)
    np.savez(
        root / "faces.npz",
        X=np.stack([np.asarray(f.image) for f in faces]),
        y=np.array([CLASSES.index(f.expression) for f in faces]),
        classes=np.array(CLASSES),
        split=np.array([f.split for f in faces]),
    )


@dataclass(frozen=True)
class TinyLayout:
    """A layout that can be written.

    Attributes:
        dataset: The data set it belongs to.
        write: Writes it into a folder: folder, pictures a class and split, seed.
    """

    dataset: str
    write: Callable[[Path, int, int], None]


TINY_LAYOUTS: Mapping[str, TinyLayout] = {
    "ferplus-export": TinyLayout("ferplus", _ferplus_export),
    "ferplus-folder-labels": TinyLayout("ferplus", _ferplus_folder_labels),
    "ferplus-two-csv": TinyLayout("ferplus", _ferplus_two_csv),
    "fer2013-csv": TinyLayout("fer2013", _fer2013),
    "fer2013-icml": TinyLayout("fer2013", _fer2013_icml),
    "fer2013-folders": TinyLayout("fer2013", _class_folders),
    "affectnet-folders": TinyLayout("affectnet", _affectnet_folders),
    "affectnet-lists": TinyLayout("affectnet", _affectnet_lists),
    "ckplus-sequences": TinyLayout("ckplus", _ckplus_sequences),
    "ckplus-folders": TinyLayout("ckplus", _ckplus_folders),
    "ckplus-48": TinyLayout("ckplus", _ckplus_48),
    "rafdb-list": TinyLayout("rafdb", _rafdb_list),
    "rafdb-kaggle": TinyLayout("rafdb", _rafdb_kaggle),
    "jaffe": TinyLayout("jaffe", _jaffe),
    "sfew": TinyLayout("sfew", _sfew),
    "manifest": TinyLayout("affectnet", _manifest),
    "npz": TinyLayout("ferplus", _npz),
}
"""Name → layout, for `write_tiny`."""
