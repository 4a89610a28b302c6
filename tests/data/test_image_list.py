"""A published list names the images that are meant, and its hash says that it is that list."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ngd_timm.core.errors import InputError
from ngd_timm.data import load_fer, load_split, parse_spec, write_subset
from ngd_timm.data.layouts.image_list import write_list
from ngd_timm.data.synthetic.tiny import write_tiny

MINI = [f"val_set/images/{i}.jpg" for i in (16, 20, 21)]


@pytest.fixture
def affectnet(tmp_path: Path) -> Path:
    root = write_tiny("affectnet-folders", tmp_path / "AffectNet")
    write_list(root / "mini.txt", MINI)
    return root


def test_only_the_images_on_the_list_are_the_data_set(affectnet: Path) -> None:
    dataset, report = load_split("affectnet", f"{affectnet},list=mini.txt", "valid")
    assert sorted(dataset["source"][:]) == MINI
    assert report.dropped == {"not on the list of images": 13}
    assert load_fer("affectnet", affectnet, options={"list": "mini.txt"})["source"][:] == dataset["source"][:]


def test_a_spec_carries_the_list_and_its_hash(affectnet: Path) -> None:
    digest = (affectnet / "mini.txt.sha256").read_text().split()[0]
    (affectnet / "mini.txt.sha256").unlink()
    name, root, split, key = parse_spec(f"affectnet={affectnet},list=mini.txt,sha256={digest}:valid")
    assert load_split(name, root, split)[1].kept == 3
    assert key == "affectnet:valid"


@pytest.mark.parametrize("split", ["valid", "all"])
def test_a_list_of_images_in_a_file_that_lacks_some_is_refused_for_a_split_too(
    split: str, faces: Path, tmp_path: Path
) -> None:
    faces = Path(shutil.copytree(faces, tmp_path / "faces"))
    names = load_fer("schematic", faces, "valid")["file_name"]
    write_list(faces / "mini.txt", [*names[:3], "gone.png"])
    with pytest.raises(InputError, match="only 3 of the 4 images on the list are in this data set"):
        load_split("schematic", f"{faces},list=mini.txt", split)
    write_list(faces / "mini.txt", names[:3])
    assert load_split("schematic", f"{faces},list=mini.txt", split)[1].kept == 3


@pytest.mark.parametrize("where", ["beside", "given"])
def test_a_list_with_another_hash_is_refused(affectnet: Path, where: str) -> None:
    other = "0" * 64
    (affectnet / "mini.txt.sha256").write_text(f"{other}  mini.txt\n")
    options = {"list": "mini.txt"} | ({"sha256": other} if where == "given" else {})
    with pytest.raises(InputError, match=rf"mini\.txt has sha256 [0-9a-f]{{64}}, expected {other}: it is not the file"):
        load_fer("affectnet", affectnet, options=options)


def test_one_changed_name_changes_the_hash(affectnet: Path) -> None:
    path = affectnet / "mini.txt"
    path.write_text(path.read_text().replace("20.jpg", "22.jpg"))
    with pytest.raises(InputError, match="it is not the file that was published"):
        load_fer("affectnet", affectnet, options={"list": "mini.txt"})


def test_a_list_without_a_hash_is_refused_and_its_hash_shown(affectnet: Path) -> None:
    (affectnet / "mini.txt.sha256").unlink()
    digest = hashlib.sha256((affectnet / "mini.txt").read_bytes()).hexdigest()
    with pytest.raises(InputError, match=f"has no hash to check it by; write it into mini.txt.sha256.*{digest}"):
        load_fer("affectnet", affectnet, options={"list": "mini.txt"})


def test_a_list_of_which_images_are_missing_is_refused(affectnet: Path) -> None:
    write_list(affectnet / "mini.txt", [*MINI, "val_set/images/x.jpg", "val_set/images/y.jpg"])
    with pytest.raises(InputError, match=r"2 of 5 images aren't below .*first: val_set/images/x\.jpg"):
        load_fer("affectnet", affectnet, "valid", options={"list": "mini.txt"})
    write_list(affectnet / "mini.txt", ["16.jpg", "20.jpg"])
    with pytest.raises(InputError, match="only 0 of the 2 images on the list are in this data set"):
        load_fer("affectnet", affectnet, options={"list": "mini.txt"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"list": "other.txt"}, r"no list of images at .*other\.txt"),
        ({"list": "mini.txt", "sha256": "abc"}, "sha256 must be 64 hex digits, got 'abc'"),
        ({"sha256": "0" * 64}, "sha256=… is the hash of a list or of a file"),
        ({"lst": "mini.txt"}, "unknown layout option 'lst'; did you mean 'list'"),
    ],
)
def test_options_that_make_no_sense_are_refused(affectnet: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_fer("affectnet", affectnet, options=options)


def test_a_list_may_be_a_csv_and_names_images_within_a_file(tmp_path: Path) -> None:
    root = write_tiny("ferplus-two-csv", tmp_path / "fer")
    names = load_fer("ferplus", root, "valid")["file_name"][2:5]
    path = root.parent / "few.csv"
    path.write_text("filename\n" + "\n".join(names) + "\n")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    kept = load_fer("ferplus", root, options={"list": str(path), "sha256": digest})
    assert kept["file_name"][:] == names


def test_a_manifest_with_its_hash_beside_it_must_match(tmp_path: Path) -> None:
    root = write_tiny("manifest", tmp_path / "set")
    digest = hashlib.sha256((root / "manifest.csv").read_bytes()).hexdigest()
    (root / "manifest.csv.sha256").write_text(f"{digest}  manifest.csv\n")
    assert load_split("affectnet", root, "valid")[1].kept == 16
    (root / "manifest.csv").write_text((root / "manifest.csv").read_text() + "\n")
    with pytest.raises(InputError, match=r"manifest\.csv has sha256"):
        load_fer("affectnet", root)
    (root / "manifest.csv.sha256").unlink()
    with pytest.raises(InputError, match=f"expected {digest}"):
        load_fer("affectnet", root / "manifest.csv", options={"sha256": digest})


def smallest(names: list[str], seed: int, n: int) -> set[str]:
    return set(sorted(names, key=lambda name: hashlib.sha256(f"{seed} {Path(name).name}".encode()).digest())[:n])


@pytest.mark.parametrize("layout", ["affectnet-folders", "affectnet-lists"])
def test_a_subset_holds_the_images_of_each_class_and_split_whose_names_hash_smallest(
    layout: str, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    root = write_tiny(layout, tmp_path / "AffectNet", n=5)
    out = tmp_path / "affectnet-mini.txt"
    shown = ngd("data", "subset", f"affectnet={root}", "--per-class", "2", "--seed", "7", "--out", str(out))
    assert shown.returncode == 0
    assert hashlib.sha256(out.read_bytes()).hexdigest() in shown.stdout
    assert out.read_text().startswith("# affectnet, seed 7: of each class and split the 2 images")
    assert str(tmp_path) not in out.read_text()
    for split in ("train", "valid"):
        whole = load_fer("affectnet", root, split, drop_duplicates=False)
        part, report = load_split("affectnet", f"{root},list={out}", split, drop_duplicates=False)
        assert set(report.counts.values()) == {2}
        for label in range(8):
            every, drawn = (
                [s for s, own in zip(d["source"][:], d["label"][:], strict=True) if own == label] for d in (whole, part)
            )
            assert set(drawn) == smallest(every, 7, 2)


def test_a_subset_is_the_same_wherever_the_data_lie_and_another_by_another_seed(tmp_path: Path) -> None:
    lists = []
    for folder, seed in (("a", 0), ("b/c", 0), ("a", 1)):
        root = write_tiny("affectnet-folders", tmp_path / folder, n=5)
        write_subset("affectnet", root, tmp_path / "mini.txt", 2, seed, "valid")
        lists.append((tmp_path / "mini.txt").read_bytes())
    assert lists[0] == lists[1]
    assert lists[2].splitlines()[2:] != lists[0].splitlines()[2:]


def test_a_class_of_fewer_images_is_taken_whole(tmp_path: Path) -> None:
    root = write_tiny("affectnet-folders", tmp_path / "set", n=3)
    for what in ("exp", "val", "aro"):
        (root / "val_set" / "annotations" / f"24_{what}.npy").unlink()
    (root / "val_set" / "images" / "24.jpg").unlink()
    lines = write_subset("affectnet", root, root / "mini.txt", 3, split="valid")
    assert lines[1].startswith("valid: neutral 2, happiness 3, ")
    assert load_split("affectnet", f"{root},list=mini.txt", "valid")[1].kept == 23
