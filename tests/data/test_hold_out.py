"""Validation out of the training images, where a data set has none of its own."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from writers import png, write_parquet

from ngd_timm.core.errors import InputError
from ngd_timm.core.images import image_records
from ngd_timm.data import load_fer, load_split, write_tiny
from ngd_timm.data.hold_out import HELD_OUT
from ngd_timm.data.synthetic.tiny import tiny_face
from ngd_timm.evaluate.student import evaluate

FACES = ("neutral", "happiness", "surprise", "sadness")


def folders(root: Path, each: int) -> Path:
    """Class folders of different faces, and one copy of each class's first under another name."""
    for label in FACES:
        for number in range(each):
            file = root / "train" / label / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            tiny_face(label, number, seed=FACES.index(label)).save(file)
        shutil.copy(root / "train" / label / "0.png", root / "train" / label / "copy.png")
    return root


def files(dataset: Dataset) -> set[str]:
    return set(dataset["source"][:])


def encoded_images(dataset: Dataset) -> list[bytes]:
    return sorted(
        r["bytes"] if r["bytes"] is not None else Path(r["path"]).read_bytes() for r in image_records(dataset)
    )


def test_train_and_valid_are_the_training_images_cut_in_two_the_same_way_every_time(tmp_path: Path) -> None:
    root = f"{folders(tmp_path, 39)},hold_out=0.25"
    training, report = load_split("ferplus", root, "train", classes=FACES)
    held, _ = load_split("ferplus", root, "valid", classes=FACES)
    whole, _ = load_split("ferplus", tmp_path, "train", classes=FACES)
    assert files(training) | files(held) == files(whole)
    assert not files(training) & files(held)
    assert 0.15 < len(held) / len(whole) < 0.35
    assert report.dropped == {HELD_OUT: len(held)}
    for label in FACES:
        together = {source for source in files(held) if source.endswith((f"{label}/0.png", f"{label}/copy.png"))}
        assert len(together) in (0, 2)
    before = encoded_images(held)
    moved = tmp_path / "train" / "neutral"
    for number, file in enumerate(sorted(moved.glob("*.png"), reverse=True)):
        file.rename(moved / f"again{number}.png")
    again, _ = load_split("ferplus", root, "valid", classes=FACES)
    assert encoded_images(again) == before


def test_a_copy_under_another_label_is_trained_on(tmp_path: Path) -> None:
    folders(tmp_path, 20)
    for number in range(20):
        shutil.copy(tmp_path / "train" / "neutral" / f"{number}.png", tmp_path / "train" / "sadness" / f"n{number}.png")
    root = f"{tmp_path},hold_out=0.3"
    training, held = (load_split("ferplus", root, split, classes=FACES)[0] for split in ("train", "valid"))
    assert not set(encoded_images(training)) & set(encoded_images(held))


def test_neither_classes_nor_the_label_rule_move_an_image_to_the_other_side(tmp_path: Path) -> None:
    root = f"{folders(tmp_path, 20)},hold_out=0.3"
    few = [files(load_split("ferplus", root, split, classes=FACES[:2])[0]) for split in ("train", "valid")]
    all_ = [files(load_split("ferplus", root, split, classes=FACES)[0]) for split in ("train", "valid")]
    assert few[0] < all_[0]
    assert few[1] < all_[1]


def test_of_a_set_that_names_subjects_whole_subjects_are_held_out(tmp_path: Path) -> None:
    root = f"{write_tiny('jaffe', tmp_path)},hold_out=0.5"
    training, held = (load_split("jaffe", root, split)[0] for split in ("train", "valid"))
    assert set(training["subject"][:])
    assert set(held["subject"][:])
    assert not set(training["subject"][:]) & set(held["subject"][:])


def test_of_a_part_its_own_subjects_are_held_out(tmp_path: Path) -> None:
    who = [f"person {i % 8}" for i in range(24)]
    root = write_parquet(tmp_path / "train.parquet", [png(i) for i in range(24)], subject=who, label=["anger"] * 24)
    digests = sorted(hashlib.sha256(name.encode()).digest() for name in set(who))
    other = 1 - int.from_bytes(digests[0][:8], "big") % 2  # the part without the subject that the whole set holds out
    part = f"{root},part={other}/2,by=subject"
    training, held = (load_split("fer2013", f"{part},hold_out=0.1", split)[0] for split in ("train", "valid"))
    assert len({*held["subject"][:]}) == 1
    assert len(training) + len(held) == len(load_fer("fer2013", part))


CK_NAMES = [f"S0{10 + i // 3}_00{i % 3 + 1}_000000{19 + i}.png" for i in range(24)]
JAFFE_NAMES = [f"{('KA', 'KL', 'YM', 'NM')[i // 6]}.AN{i % 6 + 1}.{39 + i}.tiff" for i in range(24)]


LAYOUTS = ("file_name column", "path of the image", "NPZ", "CSV", "CSV with file_name", "class folders")


def write_named(layout: str, folder: Path, names: list[str]) -> Path:
    """24 faces of anger in one of the layouts of any set, under these file names."""
    folder.mkdir()
    images = [png(i) for i in range(len(names))]
    if layout == "file_name column":
        named = [f"faces/{name}" for name in names]
        return write_parquet(folder / "train.parquet", images, file_name=named, label=["anger"] * 24)
    if layout == "path of the image":
        records = [{"bytes": data, "path": name} for data, name in zip(images, names, strict=True)]
        numbers = [f"{i}.png" for i in range(24)]
        return write_parquet(folder / "train.parquet", records, file_name=numbers, label=["anger"] * 24)
    if layout == "NPZ":
        pixels = np.stack([np.full((8, 8), 10 * i, dtype=np.uint8) for i in range(24)])
        np.savez(folder / "train.npz", X=pixels, y=np.array(["anger"] * 24), file_name=np.array(names))
        return folder
    (folder / "anger").mkdir()
    files = [f"{i}.png" for i in range(24)] if layout == "CSV with file_name" else names
    for file, data in zip(files, images, strict=True):
        (folder / "anger" / file).write_bytes(data)
    if layout == "CSV":
        (folder / "train.csv").write_text("path,label\n" + "".join(f"anger/{file},anger\n" for file in files))
    if layout == "CSV with file_name":
        lines = [f"anger/{file},anger,{name}\n" for file, name in zip(files, names, strict=True)]
        (folder / "train.csv").write_text("path,label,file_name\n" + "".join(lines))
    return folder


@pytest.mark.parametrize(("name", "names"), [("ckplus", CK_NAMES), ("jaffe", JAFFE_NAMES)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_subjects_are_read_from_file_names_in_every_layout_and_stay_on_one_side(
    layout: str, name: str, names: list[str], tmp_path: Path
) -> None:
    root = f"{write_named(layout, tmp_path / 'set', names)},hold_out=0.3"
    sides = [set(load_fer(name, root, split)["subject"][:]) for split in ("train", "valid")]
    assert sides[0] | sides[1] == {n[:4] if name == "ckplus" else n[:2] for n in names}
    assert not sides[0] & sides[1]


def test_a_column_subject_wins_over_the_file_names(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [png(0)], file_name=[CK_NAMES[0]], label=["anger"], subject=["anna"])
    assert load_fer("ckplus", path)["subject"][:] == ["anna"]


def test_evaluation_draws_subjects_read_from_file_names(tmp_path: Path) -> None:
    faces = write_named("path of the image", tmp_path / "set", CK_NAMES)
    (entry,) = evaluate("student-ferplus-v1", [f"ckplus={faces}"]).values()
    assert entry["bootstrap"]["unit"] == "subject"


@pytest.mark.parametrize("name", ["ckplus", "jaffe"])
def test_hold_out_is_refused_where_a_set_of_several_images_a_subject_names_none(name: str, tmp_path: Path) -> None:
    faces = write_named("path of the image", tmp_path / "set", [f"{i}.png" for i in range(24)])
    for split in ("train", "valid"):
        with pytest.raises(InputError, match=rf"24 of 24 images of {name} name none .*; give a column 'subject'") as e:
            load_split(name, f"{faces},hold_out=0.3", split)
        assert "\n" not in str(e.value)
    assert len(load_fer(name, faces, "train")) == 24, "anything else goes on"
    assert len(load_fer("ferplus", f"{faces},hold_out=0.3", "train")) < 24, "elsewhere images are held out"


def test_hold_out_is_refused_where_some_images_name_no_subject(tmp_path: Path) -> None:
    subjects = [f"p{i % 4}" for i in range(9)] + [None]
    path = write_parquet(
        tmp_path / "train.parquet", [png(i) for i in range(10)], label=["anger"] * 10, subject=subjects
    )
    with pytest.raises(InputError, match=r"1 of 10 images of affectnet name none \(first: train.parquet row 9\)"):
        load_split("affectnet", f"{path},hold_out=0.3", "train")


def test_pixels_without_file_names_are_scored_but_not_held_out(tmp_path: Path) -> None:
    root = write_tiny("ckplus-48", tmp_path / "set")
    assert load_split("ckplus", root, "test")[1].kept == 16
    lines = (root / "ckextended.csv").read_text().splitlines()
    (root / "ckextended.csv").write_text("".join(line.rpartition(",")[0] + "\n" for line in lines))
    assert load_split("ckplus", root)[1].kept == 48
    with pytest.raises(InputError, match="48 of 48 images of ckplus name none"):
        load_split("ckplus", f"{root},hold_out=0.1", "train")


@pytest.mark.parametrize(
    ("root", "split", "message"),
    [
        ("{},hold_out=0.9", "train", "hold_out must be a share above 0 and at most 0.5, such as 0.1, got '0.9'"),
        ("{},hold_out=ten", "train", "hold_out must be a share"),
        ("{}", "valid", r"no split 'valid' .* splits found: train; .* ROOT,hold_out=0.1 to validate on a tenth"),
        ("{},hold_out=0.2", "test", "no split 'test'"),
    ],
)
def test_what_cannot_be_held_out_is_refused(tmp_path: Path, root: str, split: str, message: str) -> None:
    folders(tmp_path, 2)
    with pytest.raises(InputError, match=message):
        load_split("ferplus", root.format(tmp_path), split, classes=FACES)


def test_a_set_that_has_a_validation_split_keeps_it(tmp_path: Path) -> None:
    folders(tmp_path, 2)
    shutil.copytree(tmp_path / "train", tmp_path / "valid")
    with pytest.raises(InputError, match=r"has a split 'valid'; leave hold_out=0.1 out"):
        load_split("ferplus", f"{tmp_path},hold_out=0.1", "train", classes=FACES)
