"""What can't be read is refused in one line that says what was given, what is allowed and what to do."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from writers import png

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError
from ngd_timm.data import load_fer, load_split
from ngd_timm.data.synthetic.tiny import write_tiny


def edit(path: Path, change: Callable[[list[list[str]]], list[list[str]]]) -> None:
    with open(path, newline="") as handle:
        rows = list(csv.reader(handle))
    with open(path, "w", newline="") as handle:
        csv.writer(handle).writerows(change(rows))


def refused(message: str, name: str, root: Path, split: str | None = None, **options: object) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_fer(name, root, split, options=options or None)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_ferplus_refuses_missing_images_and_missing_votes(tmp_path: Path) -> None:
    root = write_tiny("ferplus-export", tmp_path / "a")
    for path in sorted((root / "FER2013Valid").iterdir())[:4]:
        path.unlink()
    refused(r"fer2013new\.csv: 4 of 16 images aren't there \(first: .*fer0000115\.png.*generate", "ferplus", root)
    path = root / "fer2013new.csv"
    path.write_text(path.read_text().replace("PublicTest", "Training"))
    refused(r"16 of 32 images aren't there", "ferplus", root, "train")
    path.unlink()
    refused("has no label.csv, and there is no fer2013new.csv", "ferplus", root)
    root = write_tiny("ferplus-two-csv", tmp_path / "b")
    (root / "fer2013new.csv").unlink()
    refused("FER2013's labels, not FER\\+'s votes; put Microsoft's fer2013new.csv beside", "ferplus", root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], r"has 49 rows and fer2013new\.csv 48; they are joined by row"),
        (lambda rows: [rows[0], *reversed(rows[1:])], r"row 0 has Usage Training, fer2013new\.csv has PrivateTest"),
        (lambda rows: [[*r[:3], "x", *r[4:]] if i == 5 else r for i, r in enumerate(rows)], "row 4: happiness must be"),
        (lambda rows: [r[:-1] for r in rows], "has no column 'NF'"),
        (lambda rows: [["Usage" if i else "usage", *r[1:]] for i, r in enumerate(rows)], "has no column 'Usage'"),
    ],
)
def test_two_csv_files_that_disagree_are_refused(
    tmp_path: Path, change: Callable[[list[list[str]]], list[list[str]]], message: str
) -> None:
    root = write_tiny("ferplus-two-csv", tmp_path / "set")
    edit(root / "fer2013new.csv", change)
    refused(message, "ferplus", root)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["3", "1 2 3", "Training"], r"fer2013\.csv row 42: 3 pixels, expected 48x48 = 2304"),
        (["3", " ".join(["256"] * 2304), "Training"], r"rows 0 to 42: a pixel is no whole number from 0 to 255"),
        (["3", " ".join(["1.5"] * 2304), "Training"], r"a pixel is no whole number from 0 to 255"),
        (["7", " ".join(["1"] * 2304), "Training"], r"emotion 7 is none of this layout's \(0 anger, 1 disgust"),
        (["happy", " ".join(["1"] * 2304), "Training"], r"row 42: emotion must be a whole number, got 'happy'"),
        (["3", " ".join(["1"] * 2304), "Trial"], r"row 42: Usage 'Trial' is unknown; write Training"),
        (["3", "1"], r"fer2013\.csv is damaged or not a CSV"),
    ],
)
def test_a_damaged_row_of_pixels_is_refused(tmp_path: Path, row: list[str], message: str) -> None:
    root = write_tiny("fer2013-csv", tmp_path / "set")
    edit(root / "fer2013.csv", lambda rows: [*rows, row])
    refused(message, "fer2013", root)


def test_emotion_numbers_mean_nothing_for_other_sets(tmp_path: Path) -> None:
    root = write_tiny("fer2013-csv", tmp_path / "set")
    refused(
        "emotion numbers, which are fixed for fer2013 and ckplus only, not for rafdb", "rafdb", root / "fer2013.csv"
    )


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array("happy"), r"16_exp\.npy does not hold one number"),
        (np.array(["1", "2"]), r"16_exp\.npy does not hold one number \(an array of shape"),
        (np.array({"a": 1}, dtype=object), r"16_exp\.npy does not hold one number \(.*pickle"),
        (np.array("11"), r"val_set row 0: expression 11 is none of this layout's"),
    ],
)
def test_a_damaged_annotation_of_affectnet_is_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    root = write_tiny("affectnet-folders", tmp_path / "set")
    np.save(root / "val_set" / "annotations" / "16_exp.npy", array, allow_pickle=True)
    refused(message, "affectnet", root, "valid")


def test_affectnet_refuses_images_without_annotations_and_lists_without_images(tmp_path: Path) -> None:
    root = write_tiny("affectnet-folders", tmp_path / "a")
    (root / "val_set" / "annotations" / "20_aro.npy").unlink()
    refused(r"1 annotations of 16 images aren't there \(first: 20_aro\.npy", "affectnet", root, "valid")
    root = write_tiny("affectnet-lists", tmp_path / "b")
    (root / "Manually_Annotated_Images").rename(root / "somewhere")
    refused(r"validation\.csv: 16 of 16 images aren't there", "affectnet", root, "valid")


def test_affectnet_refuses_a_valence_outside_the_plane(tmp_path: Path) -> None:
    root = write_tiny("affectnet-lists", tmp_path / "set")
    edit(root / "validation.csv", lambda rows: [rows[0], [*rows[1][:7], "1.5", "0"], *rows[2:]])
    refused(r"validation\.csv row 0: valence must lie in \[-1, 1\], got 1\.5", "affectnet", root, "valid")


def test_ck_plus_refuses_what_its_sequences_cannot_give(tmp_path: Path) -> None:
    root = write_tiny("ckplus-sequences", tmp_path / "set", n=1)
    refused("has 5 frames, fewer than apex_frames=6; lower", "ckplus", root, apex_frames=6)
    refused("fewer than apex_frames=5 and a neutral one", "ckplus", root, apex_frames=5, neutral_frame=True)
    refused("apex_frames must be a whole number from 1 on, got '0'", "ckplus", root, apex_frames=0)
    refused("did you mean 'apex_frames'", "ckplus", root, apex_frame=2)
    notes = root / "Emotion" / "S005" / "001" / "S005_001_00000005_emotion.txt"
    notes.write_text("happy")
    refused("does not hold one number, as 3.0000000e\\+00", "ckplus", root)
    notes.write_text("   9.0000000e+00\n")
    refused("emotion 9 is none of this layout's", "ckplus", root)
    notes.write_text("   3.0000000e+00\n")
    (root / "cohn-kanade-images" / "S005" / "001" / "S005_001_00000005.png").unlink()
    refused("lacks S005_001_00000005.png, which its emotion file names", "ckplus", root)
    (root / "Emotion").rename(root / "emotions")
    refused("has cohn-kanade-images but no folder Emotion", "ckplus", root)


def test_rafdb_refuses_a_list_or_folders_that_are_not_its_own(tmp_path: Path) -> None:
    root = write_tiny("rafdb-list", tmp_path / "a")
    path = root / "EmoLabel" / "list_patition_label.txt"
    lines = path.read_text()
    path.write_text(lines.replace(" 7", " 0"))
    refused(r"label 0 is none of this layout's \(1 surprise", "rafdb", root)
    path.write_text("train_00001.jpg\n" + lines)
    refused("row 0: 'train_00001.jpg' is not a file name and a number", "rafdb", root)
    path.write_text("valid_00001.jpg 5\n".replace("valid", "image"))
    refused("begins with neither train_ nor test_", "rafdb", root)
    root = write_tiny("rafdb-kaggle", tmp_path / "b")
    (root / "DATASET" / "test" / "7").rename(root / "DATASET" / "test" / "0")
    refused("folder '0' is none of RAF-DB's \\(1 surprise", "rafdb", root)


def test_rafdb_refuses_a_table_that_contradicts_the_folders(tmp_path: Path) -> None:
    root = write_tiny("rafdb-kaggle", tmp_path / "set")
    edit(root / "test_labels.csv", lambda rows: [rows[0], [rows[1][0], "2"], *rows[2:]])
    refused("test_labels.csv gives test_00015_aligned.jpg the label 2, but it lies in folder 7", "rafdb", root, "test")


def test_jaffe_refuses_other_images_among_its_own(tmp_path: Path) -> None:
    root = write_tiny("jaffe", tmp_path / "set")
    (root / "KA.XX1.99.tiff").write_bytes(png(0))
    refused("1 images aren't named as JAFFE's.*KA.XX1.99.tiff", "jaffe", root)


def manifest(folder: Path, header: str, *rows: str) -> Path:
    for i in range(3):
        (folder / f"{i}.png").write_bytes(png(i))
    path = folder / "faces.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("path,label", ["0.png,3"], r"column 'label' holds plain integers.*faces\.classes\.json"),
        ("path,label_id", ["0.png,3"], r"column 'label_id' holds plain integers"),
        ("path,label_id", ["0.png,3.0", "1.png,1.05"], r"row 1: label_id must be a whole number, got '1\.05'"),
        ("path,label", ["0.png,"], "column 'label' is empty in 1 rows"),
        ("path,label,split", ["0.png,fear,trian"], "row 0: split 'trian' is unknown; write train, valid or test"),
        ("path,label,valence,arousal", ["0.png,fear,x,0"], "valence must be a number or empty, got 'x'"),
        ("picture,label", ["0.png,fear"], r"faces\.csv needs a path column \(image_path, path"),
    ],
)
def test_a_manifest_that_says_too_little_is_refused(tmp_path: Path, header: str, rows: list[str], message: str) -> None:
    refused(message, "affectnet", manifest(tmp_path, header, *rows))


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (
            "path,label",
            ["0.png,fear", "1.png,fear", "", "./0.png,anger"],
            "label 'fear' in line 2 and 'anger' in line 5",
        ),
        ("path,label", ["0.png,fear", "0.png,hapiness"], "faces.csv: unknown affectnet class name 'hapiness'"),
        ("path,label,split", ["0.png,fear,train", "0.png,anger,test"], "label 'fear' in line 2 and 'anger' in line 3"),
        ("path,label,subject", ["0.png,fear,a", "0.png,happy,a", "1.png,fear,b"], "'happy' in line 3; keep the row"),
        ("path,label,subject", ["0.png,fear,a", "0.png,fear,b"], "subject 'a' in line 2 and 'b' in line 3"),
        (
            "path,label,valence,arousal",
            ["0.png,fear,.5,0", "0.png,fear,0.5,0.0", "0.png,fear,-.5,0"],
            "valence '.5' in line 2 and '-.5' in line 4",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_names_the_image_and_both_lines(
    tmp_path: Path, header: str, rows: list[str], message: str
) -> None:
    path = manifest(tmp_path, header, *rows)
    refused(
        message if "unknown" in message else rf"faces\.csv lists (\./)?0\.png twice, with .*{message}",
        "affectnet",
        path,
    )


def test_two_manifests_of_a_folder_that_list_an_image_for_one_split_are_refused(tmp_path: Path) -> None:
    path = manifest(tmp_path, "path,label", "0.png,fear")
    (path.parent / "newer.csv").write_text("path,label\n./0.png,anger\n")
    refused(r"faces\.csv and newer\.csv both list 0\.png for no split", "affectnet", path.parent)
    (path.parent / "newer.csv").write_text("path,label,split\n0.png,fear,test\n")
    assert len(load_fer("affectnet", path.parent, drop_duplicates=False)) == 2


def test_a_manifest_says_how_many_images_are_missing_and_shows_three(tmp_path: Path) -> None:
    path = manifest(tmp_path, "path,label", "0.png,fear", *(f"{c}.png,fear" for c in "abcd"))
    first = r"4 of 5 images aren't there, or are empty \(first: \S*a\.png, \S*b\.png, \S*c\.png\)"
    refused(rf"{first}; paths are relative.*missing=drop", "ckplus", path)
    report = load_split("ckplus", f"{path},missing=drop")[1]
    assert (report.kept, report.dropped) == (1, {"not there, or empty": 4})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must map numbers to class names"),
        ('{"3": "fear", "sad": 4}', "must map numbers to class names"),
        ('{"fear": true}', "must map numbers to class names"),
        ('{"4": "fear"}', "label 3 is not in the class map, which has 4 fear"),
    ],
)
def test_a_class_map_that_maps_nothing_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = manifest(tmp_path, "path,label", "0.png,3")
    (tmp_path / "class_map.json").write_text(text)
    refused(message, "ckplus", path)


def test_a_class_map_that_the_names_beside_the_numbers_contradict_is_refused(tmp_path: Path) -> None:
    path = manifest(tmp_path, "path,label_id,class,target", "0.png,3,sadness,0.7")
    (tmp_path / "class_map.json").write_text('{"3": "sad"}')
    assert load_fer("ckplus", path)["label"][:] == [CLASSES.index("sadness")]
    (tmp_path / "class_map.json").write_text('{"3": "fear"}')
    refused("line 2: column 'label_id' means fear, 'class' sadness; correct the class map", "ckplus", path)


PIXELS = np.zeros((2, 8, 8), np.uint8)


def test_a_class_map_is_refused_where_it_is_missing_or_of_no_use(tmp_path: Path) -> None:
    path = manifest(tmp_path, "path,label", "0.png,3")
    refused("no class map at .*map.json; give a JSON", "ckplus", path, class_map="map.json")
    np.savez(tmp_path / "own.npz", X=PIXELS, y=[0, 1], classes=["fear", "sad"])
    refused(
        "has 'classes' of its own, .* beside which no names=… or class_map=",
        "ckplus",
        tmp_path / "own.npz",
        class_map="map.json",
    )
    root = write_tiny("fer2013-csv", tmp_path / "pixels")
    refused("read as .*, which takes no class_map", "fer2013", root, class_map="map.json")


def test_columns_that_differ_in_capitals_alone_are_refused(tmp_path: Path) -> None:
    refused("twice but for capitals", "ckplus", manifest(tmp_path, "path,label,Label", "0.png,fear,fear"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": PIXELS, "y": np.array([0, 1])}, "no array 'classes' of names, and the labels are plain integers"),
        (
            {"X": PIXELS, "y": np.array([0, 2]), "classes": np.array(["fear", "sad"])},
            "0 to 2, but 'classes' names 2",
        ),
        ({"X": PIXELS, "y": np.array([0.0, 1.0])}, "labels must be names or whole numbers, got float64"),
        ({"X": PIXELS.astype(float), "y": np.array(["sad", "fear"])}, "images must be uint8 of shape"),
        ({"X": PIXELS[0], "y": np.array(["sad", "fear"])}, r"got uint8 of \(8, 8\)"),
        (
            {"X": PIXELS, "images": PIXELS, "y": np.array(["sad", "fear"])},
            "its images under 'X' or 'x' or 'images', one of",
        ),
        ({"y": np.array(["sad", "fear"])}, "must have its images under 'X' or 'x' or 'images'"),
        ({"X_val": PIXELS, "Y": np.array(["sad", "fear"])}, "labels under 'y_val' or 'labels_val'.*it has: X_val, Y"),
        ({"X_val": PIXELS, "X": PIXELS, "y": np.array([0, 1])}, "one pair of images and labels a split"),
        ({"X": PIXELS, "y": np.array(["sad", "fear"]), "split": np.array(["a", "b"])}, "row 0: split 'a' is unknown"),
    ],
)
def test_an_npz_that_says_too_little_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "faces.npz", **arrays)
    refused(message, "fer2013", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "header"),
    [
        ("fer2013", "fer2013.csv", "emotion,pixels,Usage"),
        ("affectnet", "training.csv", "subDirectory_filePath,expression,valence,arousal"),
    ],
)
def test_an_empty_file_and_one_of_a_header_alone_are_refused(tmp_path: Path, name: str, file: str, header: str) -> None:
    (tmp_path / file).write_text(header + "\n")
    refused("has no rows|no image left of 0", name, tmp_path)
    (tmp_path / file).write_bytes(b"")
    refused("is empty|holds neither parquet", name, tmp_path)


def test_numbered_folders_are_classes_for_rafdb_only(tmp_path: Path) -> None:
    root = write_tiny("rafdb-kaggle", tmp_path / "set") / "DATASET"
    assert load_split("rafdb", root)[1].kept == 28
    refused("unknown affectnet class name '1'", "affectnet", root)


def class_folders(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        (root / name / f"{number}.png").write_bytes(png(number))
    return root


def test_folders_that_are_no_classes_are_refused_with_the_way_in(tmp_path: Path) -> None:
    refused(
        r"set: unknown ckplus class name 'CK\+48'.*nor is any other name one of ckplus's; give the folder",
        "ckplus",
        class_folders(tmp_path / "set", "CK+48/anger", "CK+48/fear"),
    )
    refused("unknown=drop drops such rows", "ckplus", class_folders(tmp_path / "some", "anger", "calm"))
    numbered = class_folders(tmp_path / "numbered", "train/0", "train/1")
    refused("say which number is which class: ROOT,names=", "affectnet", numbered)
    refused(
        "folder 1 is not in the class map, which has 0 neutral, 2 sad", "affectnet", numbered, names="neutral/-/sad"
    )
    named = class_folders(tmp_path / "named", "anger", "fear")
    refused("has class folders with names, which take no names", "affectnet", named, names="anger/fear")


def test_what_datasets_saved_to_disk_is_refused_by_that_name(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "saved", "train/fear")
    (root / "dataset_dict.json").write_text("{}")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "state.json").write_text("{}")
    for saved in (root, tmp_path / "one"):
        refused("was written by save_to_disk, which is not read; write it with to_parquet", "ferplus", saved)


def test_ck_plus_refuses_emotions_whose_images_are_missing(tmp_path: Path) -> None:
    root = write_tiny("ckplus-sequences", tmp_path / "set")
    folder = root / "Emotion" / "S099" / "001"
    folder.mkdir(parents=True)
    (folder / "S099_001_00000005_emotion.txt").write_text("3.0000000e+00\n")
    refused(r"lacks the images of 1 sequences with an emotion \(first: S099/001\); unpack it whole", "ckplus", root)


def test_sfew_refuses_two_folders_of_aligned_faces(tmp_path: Path) -> None:
    root = class_folders(tmp_path, "Train_Aligned_Faces/Angry", "Train_Aligned_Faces_SAN/Angry")
    refused("Train_Aligned_Faces and .*Train_Aligned_Faces_SAN are both faces of 'train'; remove one", "sfew", root)
