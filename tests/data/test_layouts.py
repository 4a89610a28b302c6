"""Every layout, written in miniature by `write_tiny`, is read with each image beside its own label."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from writers import IDS, png, write_numbered

from ngd_timm.core.affect import CLASSES, anchors
from ngd_timm.core.errors import InputError
from ngd_timm.data import load_fer, load_split, load_splits
from ngd_timm.data.layouts.ferplus import NAMED_TWICE, NO_NAME
from ngd_timm.data.layouts.manifest import LISTED_AGAIN
from ngd_timm.data.synthetic.tiny import TINY_LAYOUTS, tiny_face, write_tiny

SEVEN = tuple(c for c in CLASSES if c != "contempt")


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """All images that `write_tiny` can have drawn with n=2, and what each shows."""
    faces = [(c, np.asarray(tiny_face(c, i), dtype=np.int16)) for c in CLASSES for i in range(6)]
    return np.stack([f for _, f in faces]), np.array([c for c, _ in faces])


SPLITS = {
    "ferplus-export": {"train": 16, "valid": 16, "test": 15},
    "ferplus-folder-labels": {"train": 16, "valid": 16, "test": 15},
    "ferplus-two-csv": {"train": 16, "valid": 16, "test": 15},
    "fer2013-csv": {"train": 14, "valid": 14, "test": 14},
    "fer2013-icml": {"train": 14, "valid": 14, "test": 14},
    "fer2013-folders": {"train": 14, "test": 14},
    "affectnet-folders": {"train": 16, "valid": 16},
    "affectnet-lists": {"train": 16, "valid": 16},
    "ckplus-sequences": {"all": 14},
    "ckplus-folders": {"all": 14},
    "ckplus-48": {"train": 16, "valid": 16, "test": 16},
    "rafdb-list": {"train": 14, "test": 14},
    "rafdb-kaggle": {"train": 14, "test": 14},
    "jaffe": {"all": 14},
    "sfew": {"train": 14, "valid": 14},
    "manifest": {"train": 16, "valid": 16, "test": 16},
    "npz": {"train": 16, "valid": 16, "test": 16},
}


@pytest.mark.parametrize("layout", TINY_LAYOUTS)
def test_every_image_keeps_its_label_and_every_split_its_rows(
    layout: str, tmp_path: Path, drawn: tuple[np.ndarray, np.ndarray]
) -> None:
    root, name = write_tiny(layout, tmp_path / "set"), TINY_LAYOUTS[layout].dataset
    dataset = load_fer(name, root, drop_duplicates=False)
    images, shows = drawn
    for row in dataset:
        distance = np.abs(images - np.asarray(row["image"].convert("L"), dtype=np.int16)).mean(axis=(1, 2))
        assert distance.min() < 3  # JPEG
        assert shows[distance.argmin()] == CLASSES[row["label"]], row["source"]
    reports = {split: report for split, (_, report) in load_splits(name, root, list(SPLITS[layout])).items()}
    assert {split: report.kept for split, report in reports.items()} == SPLITS[layout]
    eight, seven = (load_split(name, root, classes=classes)[1] for classes in (CLASSES, SEVEN))
    assert eight.kept == sum(SPLITS[layout].values())
    assert seven.dropped.get("a class outside `classes`", 0) == eight.counts["contempt"] == eight.kept - seven.kept


def test_the_three_forms_of_ferplus_are_the_same_rows(tmp_path: Path) -> None:
    forms = ("ferplus-export", "ferplus-folder-labels", "ferplus-two-csv")
    reports = {f: load_split("ferplus", write_tiny(f, tmp_path / f), "test")[1] for f in forms}
    assert len({r.sha256 for r in reports.values()}) == 1
    assert reports["ferplus-two-csv"].dropped == {NAMED_TWICE: 1}
    assert load_split("ferplus", tmp_path / "ferplus-two-csv", "train")[1].dropped == {NO_NAME: 1}


def test_ferplus_votes_are_joined_by_image_name_whatever_the_order_of_the_label_file(tmp_path: Path) -> None:
    root = write_tiny("ferplus-export", tmp_path / "set")
    before = {r["file_name"]: r["votes"] for r in load_fer("ferplus", root, "train")}
    header, *rows = (root / "fer2013new.csv").read_text().splitlines()
    (root / "fer2013new.csv").write_text("\n".join([header, *reversed(rows)]) + "\n")
    assert {r["file_name"]: r["votes"] for r in load_fer("ferplus", root, "train")} == before
    assert len(before) == 16


def test_label_files_without_a_box_are_read_too(tmp_path: Path) -> None:
    root = write_tiny("ferplus-folder-labels", tmp_path / "set")
    before = load_split("ferplus", root, "valid")[1].sha256
    path = root / "data" / "FER2013Valid" / "label.csv"
    with open(path, newline="") as handle:
        rows = [[name, *votes] for name, _, *votes in csv.reader(handle)]
    path.write_text("".join(",".join(r) + "\n" for r in rows))
    assert load_split("ferplus", root, "valid")[1].sha256 == before


def test_images_without_a_label_row_are_left_out_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_tiny("ferplus-export", tmp_path / "set")
    (root / "FER2013Valid" / "fer9999999.png").write_bytes((root / "FER2013Valid" / "fer0000115.png").read_bytes())
    assert load_split("ferplus", root, "valid")[1].read == 16
    assert "1 images have no row in fer2013new.csv" in caplog.text


def test_ck_plus_sequences_give_as_many_apex_frames_as_the_option_says(tmp_path: Path) -> None:
    root = write_tiny("ckplus-sequences", tmp_path / "set")
    one, report = load_split("ckplus", root)
    assert {n[-6:] for n in one["file_name"][:]} == {"05.png"}
    assert report.dropped == {"the apex of a sequence without an emotion": 1}
    three = load_fer("ckplus", root, options={"apex_frames": 3})
    assert Counter(n[-6:] for n in three["file_name"][:]) == {"03.png": 14, "04.png": 14, "05.png": 14}
    with_neutral = load_split("ckplus", f"{root},neutral_frame=true,apex_frames=2")[1]
    assert (with_neutral.counts["neutral"], with_neutral.kept) == (14, 42)
    assert one.unique("subject") == ["S005", "S006"]


def test_subjects_come_from_the_file_names_of_ck_plus_and_jaffe(tmp_path: Path) -> None:
    folders = load_fer("ckplus", write_tiny("ckplus-folders", tmp_path / "ck"))
    assert set(folders["subject"][:]) == {"S010", "S011"}
    jaffe = load_fer("jaffe", write_tiny("jaffe", tmp_path / "jaffe"))
    assert set(jaffe["subject"][:]) == {"KA", "KL"}


@pytest.mark.parametrize("layout", ["affectnet-folders", "affectnet-lists", "manifest"])
def test_valence_and_arousal_come_with_each_image(layout: str, tmp_path: Path) -> None:
    dataset = load_fer("affectnet", write_tiny(layout, tmp_path / "set"), "valid")
    place = np.stack([dataset["valence"][:], dataset["arousal"][:]], axis=1)
    np.testing.assert_allclose(place, anchors(CLASSES)[dataset["label"][:]], atol=1e-3)


def test_affectnet_drops_and_counts_what_is_no_expression(tmp_path: Path) -> None:
    root = write_tiny("affectnet-lists", tmp_path / "set")
    report = load_split("affectnet", root, "train")[1]
    assert report.dropped == {"labelled 'None'": 1, "labelled 'Uncertain'": 1, "labelled 'Non-Face'": 1}


def test_a_face_without_valence_and_arousal_has_none_and_trains_towards_its_class(tmp_path: Path) -> None:
    from ngd_timm.data import FaceBatches

    root = write_tiny("affectnet-folders", tmp_path / "set")
    np.save(root / "val_set" / "annotations" / "16_val.npy", np.array("-2"))
    dataset = load_fer("affectnet", root, "valid")
    assert dataset["valence"][:].count(None) == dataset["arousal"][:].count(None) == 1
    va = next(iter(FaceBatches(dataset, image_size=32, batch_size=16))).valence_arousal
    assert va is not None
    assert va.isfinite().all(dim=1).sum() == 15  # ProtoKDLoss takes the class's place for the other


def test_an_empty_valence_in_an_affectnet_list_is_none(tmp_path: Path) -> None:
    root = write_tiny("affectnet-lists", tmp_path / "set")
    (path,) = (path for path in root.rglob("valid*.csv"))
    header, *lines = path.read_text().splitlines()
    column, row = header.split(",").index("valence"), lines[0].split(",")
    row[column] = ""
    path.write_text("\n".join([header, ",".join(row), *lines[1:]]) + "\n")
    dataset = load_fer("affectnet", root, "valid")
    assert dataset["valence"][:].count(None) == dataset["arousal"][:].count(None) == 1


@pytest.mark.parametrize("value", [np.array(4), np.array("4"), np.array([4.0]), np.array(4, dtype=np.int8)])
def test_affectnet_annotations_may_be_text_or_numbers(tmp_path: Path, value: np.ndarray) -> None:
    root = write_tiny("affectnet-folders", tmp_path / "set")
    np.save(root / "val_set" / "annotations" / "16_exp.npy", value)
    rows = load_fer("affectnet", root, "valid")
    assert dict(zip(rows["file_name"][:], rows["label"][:], strict=True))["16.jpg"] == CLASSES.index("fear")


def test_rafdb_takes_whole_images_where_there_are_no_aligned_ones(tmp_path: Path) -> None:
    root = write_tiny("rafdb-list", tmp_path / "set")
    original = root / "Image" / "original"
    original.mkdir()
    for path in (root / "Image" / "aligned").iterdir():
        path.rename(original / path.name.replace("_aligned", ""))
    (root / "Image" / "aligned").rmdir()
    report = load_split("rafdb", root, "train")[1]
    assert (report.kept, report.layout) == (14, "RAF-DB list, images of original")


def test_sfew_is_read_without_the_folder_in_between_and_without_its_unlabelled_test(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_tiny("sfew", tmp_path / "set")
    assert load_split("sfew", root)[1].kept == 28
    assert "'Test' has no class folders" in caplog.text
    for split, inner in (("Train", "Train_Aligned_Faces"), ("Val", "Val_Aligned_Faces_new")):
        (root / split / inner).rename(root / inner)
        shutil.rmtree(root / split)
    assert load_split("sfew", root)[1].kept == 28


def test_sfews_whole_frames_are_read_where_the_folder_of_aligned_faces_is_empty(tmp_path: Path) -> None:
    (tmp_path / "Train" / "Angry").mkdir(parents=True)
    (tmp_path / "Train" / "Angry" / "0.png").write_bytes(png(0))
    (tmp_path / "Train_Aligned_Faces").mkdir()
    assert load_split("sfew", tmp_path, "train")[1].kept == 1


def test_text_in_an_npz_may_be_bytes(tmp_path: Path) -> None:
    texts = {"split": ["train", "test"], "subject": ["a", "b"], "file_name": ["x.png", "é.png"]}
    columns = {key: np.array([text.encode() for text in value]) for key, value in texts.items()}
    np.savez(
        tmp_path / "faces.npz",
        X=np.arange(128, dtype=np.uint8).reshape(2, 8, 8),
        y=np.array(["fear", "anger"], "S"),
        **columns,
    )
    (row,) = load_split("jaffe", tmp_path / "faces.npz", "test")[0]
    assert (row["subject"], row["file_name"]) == ("b", "é.png")
    np.savez(tmp_path / "faces.npz", X=np.zeros((1, 8, 8), dtype=np.uint8), y=np.array(["fear".encode("utf-16")]))
    with pytest.raises(InputError, match="'y' holds byte strings that are not UTF-8"):
        load_split("jaffe", tmp_path / "faces.npz")


def test_every_image_of_an_npz_with_a_pair_a_split_has_a_name_of_its_own(tmp_path: Path) -> None:
    pairs = {f"X_{end}": np.zeros((2, 8, 8), dtype=np.uint8) for end in ("train", "test")}
    labels = {f"y_{end}": np.array(["fear", "anger"]) for end in ("train", "test")}
    np.savez(tmp_path / "faces.npz", **pairs, **labels)
    dataset, _ = load_split("fer2013", tmp_path / "faces.npz", "all", drop_duplicates=False)
    assert sorted(dataset["source"][:]) == [f"faces.npz {end} row {row}" for end in ("test", "train") for row in (0, 1)]


def test_folders_that_are_linked_into_a_set_are_read_each_once(tmp_path: Path) -> None:
    for folder in ("set/happy", "elsewhere/happy"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.png").write_bytes(png(len(folder)))
    for name, target in (("more", "elsewhere/happy"), ("again", "elsewhere/happy"), ("round", "set")):
        (tmp_path / "set" / "happy" / name).symlink_to(tmp_path / target)
    assert load_split("affectnet", tmp_path / "set")[1].kept == 2


def test_rows_of_unknown_classes_may_be_listed_twice_where_they_are_dropped(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(0))
    (tmp_path / "train.csv").write_text("path,label\na.png,confused\na.png,confused\nb.png,fear\n")
    assert load_split("ferplus", f"{tmp_path / 'train.csv'},unknown=drop", "train")[1].kept == 1


def test_a_part_may_be_given_as_a_pair_of_numbers(tmp_path: Path) -> None:
    root = write_tiny("npz", tmp_path / "set")
    halves = [load_split("ferplus", root, options={"part": (n, 2), "by": "source"})[1].kept for n in range(2)]
    assert sum(halves) == load_split("ferplus", root)[1].kept
    assert all(halves)


def test_a_manifest_of_numbers_is_read_with_its_class_map(tmp_path: Path) -> None:
    root = write_tiny("manifest", tmp_path / "set")
    names = load_split("affectnet", root, "valid")[1]
    text = (root / "manifest.csv").read_text()
    for i, name in enumerate(reversed(CLASSES)):
        text = text.replace(f",{name},", f",{i},")
    (root / "manifest.csv").write_text(text.replace("label_name", "label_id"))
    mapping = ", ".join(f'"{i}": "{name}"' for i, name in enumerate(reversed(CLASSES)))
    (root / "manifest.classes.json").write_text(f"{{{mapping}}}")
    assert load_split("affectnet", root, "valid")[1].sha256 == names.sha256


@pytest.mark.parametrize("column", ["path", "img", "file", "filepath", "filename"])
def test_a_manifest_knows_the_usual_headers(tmp_path: Path, column: str) -> None:
    root = write_tiny("manifest", tmp_path / "set")
    path = root / "manifest.csv"
    path.write_text(path.read_text().replace("image_path", column).replace("label_name", "label"))
    assert load_split("affectnet", root, "valid")[1].kept == 16
    assert load_split("affectnet", path, "valid")[1].kept == 16


def test_a_manifest_may_name_absolute_paths_and_its_file_a_split(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in "ab":
        tiny_face("fear", ord(name)).save(folder / f"{name}.png")
    (tmp_path / "val.csv").write_text(f"path,label\n{folder}/a.png,fear\n../{tmp_path.name}/elsewhere/b.png,fear\n")
    assert load_split("fer2013", tmp_path / "val.csv", "valid")[1].kept == 2


FORMS = {
    "names to numbers": IDS,
    "numbers to names": {str(i): c for c, i in IDS.items()},
    "a list": sorted(IDS, key=IDS.__getitem__),
}


@pytest.mark.parametrize("file", ["ferplus.npz", "labels_all.csv"])
@pytest.mark.parametrize("form", FORMS)
def test_numbers_mean_what_the_class_map_says_in_any_form(file: str, form: str, tmp_path: Path) -> None:
    root = write_numbered(tmp_path / "set")
    (root / "class_map.json").unlink()
    (tmp_path / "map.json").write_text(json.dumps(FORMS[form]))
    for number, split in enumerate(("train", "valid", "test")):
        rows = load_fer("ferplus", f"{root / file},class_map=../map.json", split)
        assert [CLASSES[i] for i in rows["label"]] == list(CLASSES)
        for row, expression in zip(rows, CLASSES, strict=True):
            np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(tiny_face(expression, number)))
    again = load_fer("ferplus", root / file, "test", options={"class_map": tmp_path / "map.json"})
    assert again["label"][:] == rows["label"][:]


@pytest.mark.parametrize("column", ["label_id", "LABEL", "cls", "Class", "target", "y"])
def test_a_manifest_may_number_its_classes_under_any_usual_header(column: str, tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "set") / "labels_all.csv"
    path.write_text(path.read_text().replace("Target", column))
    assert load_fer("ckplus", path, "test")["label"][:] == [*range(8)]


def test_a_class_map_of_eight_serves_a_set_of_seven_unless_the_eighth_occurs(tmp_path: Path) -> None:
    np.savez(tmp_path / "faces.npz", x=np.zeros((2, 8, 8, 1), np.uint8), y=np.array([3, 5], np.uint8))
    (tmp_path / "class_map.json").write_text(json.dumps(CLASSES))
    assert [CLASSES[i] for i in load_fer("rafdb", tmp_path)["label"]] == ["sadness", "disgust"]
    np.savez(tmp_path / "faces.npz", x=np.zeros((2, 8, 8, 1), np.uint8), y=np.array([3, 7]))
    with pytest.raises(InputError, match="unknown rafdb class name 'contempt'"):
        load_fer("rafdb", tmp_path)


def test_an_image_that_a_manifest_lists_twice_with_one_label_is_kept_once_and_counted(tmp_path: Path) -> None:
    for name in "ab":
        tiny_face("fear", ord(name)).save(tmp_path / f"{name}.png")
    (tmp_path / "link").symlink_to(tmp_path)
    rows = ["a.png,fear,train", "b.png,fear,train", "./a.png,Fearful,train", f"{tmp_path}/link/a.png,fear,train"]
    (tmp_path / "faces.csv").write_text("\n".join(["path,label,split", *rows]))
    dataset, report = load_split("affectnet", tmp_path)
    assert dataset["file_name"][:] == ["a.png", "b.png"]
    assert report.dropped == {LISTED_AGAIN: 2}
    assert f"dropped: 2 {LISTED_AGAIN}" in report.lines()[1]
    # in two splits it is a copy of a training image, and those have an option of their own
    (tmp_path / "faces.csv").write_text("\n".join(["path,label,split", *rows[:2], "a.png,fear,test"]))
    assert [load_split("affectnet", tmp_path, drop_duplicates=drop)[1].kept for drop in (True, False)] == [2, 3]


def test_an_npz_may_hold_names_colour_and_no_split(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (3, 20, 10, 3), dtype=np.uint8)
    np.savez(tmp_path / "test.npz", images=colour, labels=np.array(["fear", "Happy", "fear"]))
    dataset = load_fer("rafdb", tmp_path / "test.npz", "test")
    assert dataset["label"][:] == [CLASSES.index(c) for c in ("fear", "happiness", "fear")]
    np.testing.assert_array_equal(np.asarray(dataset[1]["image"]), colour[1])


def test_a_csv_that_cannot_be_read_does_not_hide_the_class_folders(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_tiny("fer2013-folders", tmp_path / "set")
    (root / "notes.csv").write_bytes("größe\n".encode("latin-1"))
    assert load_split("fer2013", root)[1].kept == 28
    assert "notes.csv can't be read as a UTF-8 CSV" in caplog.text


PUBLISHED = {
    # written out again from the publishers' pages: writers and readers share the package's tables
    "fer2013-csv": {0: "anger", 1: "disgust", 2: "fear", 3: "happiness", 4: "sadness", 5: "surprise", 6: "neutral"},
    "ckplus-48": {0: "anger", 1: "disgust", 2: "fear", 3: "happiness", 4: "sadness", 5: "surprise", 6: "neutral"}
    | {7: "contempt"},
    "ckplus-sequences": {1: "anger", 2: "contempt", 3: "disgust", 4: "fear", 5: "happiness", 6: "sadness"}
    | {7: "surprise"},
    "affectnet-lists": {0: "neutral", 1: "happiness", 2: "sadness", 3: "surprise", 4: "fear", 5: "disgust"}
    | {6: "anger", 7: "contempt"},
    "rafdb-list": {1: "surprise", 2: "fear", 3: "disgust", 4: "happiness", 5: "sadness", 6: "anger", 7: "neutral"},
}


@pytest.mark.parametrize("layout", PUBLISHED)
def test_numbers_mean_what_the_publishers_say(layout: str, tmp_path: Path) -> None:
    root = write_tiny(layout, tmp_path / "set", n=1)
    for number, expression in PUBLISHED[layout].items():
        set_number(layout, root, number)
        labels = load_fer(TINY_LAYOUTS[layout].dataset, root, drop_duplicates=False)["label"][:]
        assert set(labels) == {CLASSES.index(expression)}, number


def set_number(layout: str, root: Path, number: int) -> None:
    """Give every image this number."""
    if layout == "rafdb-list":
        path = root / "EmoLabel" / "list_patition_label.txt"
        path.write_text("".join(f"{line.split()[0]} {number}\n" for line in path.read_text().splitlines()))
    elif layout == "ckplus-sequences":
        for path in root.rglob("*_emotion.txt"):
            path.write_text(f"   {number:.7e}\n")
    else:
        for path in root.glob("*.csv"):
            with open(path, newline="") as handle:
                rows = list(csv.DictReader(handle))
            column = "emotion" if "emotion" in rows[0] else "expression"
            with open(path, "w", newline="") as handle:
                writer = csv.DictWriter(handle, list(rows[0]))
                writer.writeheader()
                kept = [r for r in rows if int(r[column]) < 8]
                writer.writerows({**r, column: number} for r in kept)


def test_jaffe_letters_mean_what_its_read_me_says(tmp_path: Path) -> None:
    letters = {"NE": "neutral", "HA": "happiness", "SA": "sadness", "SU": "surprise", "AN": "anger", "DI": "disgust"}
    for short, expression in {**letters, "FE": "fear"}.items():
        folder = tmp_path / short
        folder.mkdir()
        tiny_face("neutral", 0).save(folder / f"KA.{short}1.39.tiff")
        assert load_fer("jaffe", folder)["label"][:] == [CLASSES.index(expression)]


def faces(root: Path, *names: str) -> Path:
    """A drawn face by each name."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(number))
    return root


def test_folders_that_programs_make_for_themselves_are_passed_over(tmp_path: Path) -> None:
    kept = ("train/angry/a.png", "train/fear/b.JPG", "train/fear/deep/c.jfif")
    left = ("train/angry/.ipynb_checkpoints/a.png", "train/fear/@eaDir/b.png", "train/angry/__MACOSX/q.png")
    root = faces(tmp_path / "set", *kept, *left, "__MACOSX/train/angry/a.png")
    assert load_fer("fer2013", root, "train")["source"][:] == list(kept)
    table = write_tiny("manifest", tmp_path / "tables")
    rows = load_fer("ferplus", table, "train")
    for place in ("train.PARQUET", ".cache/test.parquet", ".ipynb_checkpoints/train.parquet"):
        (tmp_path / "parquet" / place).parent.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(tmp_path / "parquet" / place)
    assert {
        split: report.kept for split, (_, report) in load_splits("ferplus", tmp_path / "parquet", ["train"]).items()
    } == {"train": len(rows)}


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (("Train/Angry/a.png", "Train/Train_Aligned_Faces/Angry/b.png"), {"Train/Train_Aligned_Faces/Angry/b.png"}),
        (
            ("Val/Val/Angry/a.png", "Val/Val_new/Val_Aligned_Faces/Angry/b.png"),
            {"Val/Val_new/Val_Aligned_Faces/Angry/b.png"},
        ),
        (("Train/Angry/a.png", "Train_Aligned_Faces/Angry/b.png"), {"Train_Aligned_Faces/Angry/b.png"}),
    ],
)
def test_sfew_takes_the_aligned_faces_wherever_they_lie(
    tmp_path: Path, names: tuple[str, ...], read: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert set(load_fer("sfew", faces(tmp_path, *names))["source"][:]) == read
    assert "is left out, the aligned faces beside it are read" in caplog.text


def test_aligned_faces_in_one_split_and_frames_in_another_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_fer("sfew", faces(tmp_path, "Train_Aligned_Faces/Angry/a.png", "Val/Angry/b.png"))
    assert "aligned faces in one split, whole frames in another" in caplog.text


def test_what_is_odd_about_class_folders_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = faces(tmp_path, "train/anger/a.png", "train_new/anger/b.png", "test/anger/c.png")
    (root / "test" / "fear").mkdir()
    (root / "boxes.csv").write_text("filename,x,y,w,h\na.png,1,2,3,4\n")
    assert len(load_fer("fer2013", root)) == 3
    for said in (
        "train, train_new are all read as 'train'",
        "boxes.csv lies beside class folders and is not read",
        "fear holds no image",
    ):
        assert said in caplog.text


def test_scored_people_who_were_trained_on_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = faces(tmp_path, "train/anger/S011_004_00000011.png", "test/anger/S012_004_00000012.png")
    load_fer("ckplus", root, "test")
    assert "of new faces" not in caplog.text
    (root / "test/anger/S011_005_00000013.png").write_bytes(png(2))
    load_fer("ckplus", root, "test")
    assert "test: 1 of 2 people are in the train split too (S011), so scores there say less of new faces" in caplog.text


def test_numbered_class_folders_are_named_behind_the_root(tmp_path: Path) -> None:
    root = faces(tmp_path, "train/0/a.png", "train/4/b.png")
    rows = load_fer("affectnet", root, "train", options={"names": "neutral/happy/sad/surprise/fear"})
    assert [CLASSES[label] for label in rows["label"][:]] == ["neutral", "fear"]


def test_a_table_of_labels_beside_class_folders_is_taken_at_its_word(tmp_path: Path) -> None:
    root = faces(tmp_path, "anger/a.png", "fear/b.png")
    (root / "labels.csv").write_text("pth,label,relFCs\nanger\\a.png,surprise,.8\nfear/b.png,fear,.7\n")
    assert [CLASSES[label] for label in load_fer("affectnet", root)["label"][:]] == ["surprise", "fear"]
    (root / "labels.csv").write_text("pth,label\nanger/a.png,3.0\nfear/b.png,0\n")
    rows = load_fer("affectnet", f"{root},names=fear/anger/sad/surprise")
    assert [CLASSES[label] for label in rows["label"][:]] == ["surprise", "fear"]


def test_affectnets_lists_go_on_without_the_images_that_are_not_there(tmp_path: Path) -> None:
    root = write_tiny("affectnet-lists", tmp_path / "set")
    whole = load_split("affectnet", root, "valid")[1].kept
    first, second, *_ = sorted(root.rglob("*.jpg"))
    first.unlink()
    second.write_bytes(b"")
    reports = [load_split("affectnet", f"{root},missing=drop", split)[1] for split in ("train", "valid")]
    assert sum(report.dropped.get("not there, or empty", 0) for report in reports) == 2
    assert reports[1].kept <= whole


def test_ck_plus_and_rafdb_are_read_with_the_names_that_copies_have(tmp_path: Path) -> None:
    root = write_tiny("ckplus-sequences", tmp_path / "ck")
    before = load_split("ckplus", root)[1].sha256
    for path in (root / "Emotion").rglob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (root / "Emotion").rename(root / "Emotion_labels")
    assert load_split("ckplus", root)[1].sha256 == before
    root = write_tiny("rafdb-list", tmp_path / "raf")
    before = load_split("rafdb", root, "train")[1].sha256
    (path,) = root.rglob("list_patition_label.txt")
    path.rename(path.with_name("list_partition_label.txt"))
    assert load_split("rafdb", root, "train")[1].sha256 == before
    root = write_tiny("rafdb-kaggle", tmp_path / "kaggle")
    (train,) = root.rglob("train")
    assert load_split("rafdb", train, "train")[1].sha256 == load_split("rafdb", root, "train")[1].sha256


def test_ferplus_is_joined_from_the_pixel_file_of_kaggle_too(tmp_path: Path) -> None:
    root = write_tiny("ferplus-two-csv", tmp_path / "set")
    before = load_split("ferplus", root, "test")[1].sha256
    (root / "fer2013").mkdir()
    (root / "fer2013.csv").rename(root / "fer2013" / "fer2013.csv")
    assert load_split("ferplus", root, "test")[1].sha256 == before
