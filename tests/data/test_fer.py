from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features
from datasets import Image as ImageFeature
from writers import png, random_votes, write_parquet

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError
from ngd_timm.data import load_fer, load_split, parse_spec
from ngd_timm.data.labels import VOTE_COLUMNS, apply_rule

Writer = Callable[..., Path]


def folder_of(root: Path, **images: int) -> Path:
    """Class folders with distinct images; `a__b=3` makes three in a/b."""
    seed = 0
    for name, n in images.items():
        folder = root.joinpath(*name.split("__"))
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(n):
            (folder / f"{i}.png").write_bytes(png(seed))
            seed += 1
    return root


def labelled(folder: Path, labels: list[object]) -> Path:
    return write_parquet(folder / "train.parquet", [png(i) for i in range(len(labels))], label=labels)


def test_ferplus_keeps_what_the_rule_keeps_in_the_files_order(ferplus: Writer) -> None:
    dataset, report = load_split("ferplus", ferplus(), "train")
    label = apply_rule(random_votes(60, seed=60), "majority").label
    assert dataset["label"][:] == label[label >= 0].tolist()
    assert dataset["file_name"][:] == [f"fer{i:07d}.png" for i in np.flatnonzero(label >= 0)]
    assert dataset.features["label"].names == list(CLASSES)
    assert report.read == 60
    assert report.kept + sum(report.dropped.values()) == 60
    assert sum(report.counts.values()) == report.kept == len(dataset)


def test_images_stay_with_their_labels(ferplus: Writer) -> None:
    dataset = load_fer("ferplus", ferplus(), "train")
    for row in dataset:
        number = int(row["file_name"][3:10])
        expected = np.random.default_rng(number).integers(0, 256, (12, 12), dtype=np.uint8)
        np.testing.assert_array_equal(np.asarray(row["image"]), expected)


def test_votes_given_as_shares_are_refused(ferplus: Writer) -> None:
    root = ferplus()
    table = pq.read_table(root / "train.parquet")
    for place, name in enumerate(table.column_names):
        if name in VOTE_COLUMNS:
            table = table.set_column(place, name, pa.array(table[name].to_numpy() / 10))
    pq.write_table(table, root / "train.parquet")
    with pytest.raises(InputError, match=r"vote column '\w+' holds shares; give the number of votes"):
        load_fer("ferplus", root, "train")


def test_votes_come_as_soft_labels_beside_the_counts(ferplus: Writer) -> None:
    dataset, report = load_split("ferplus", ferplus(), "train", label_rule="votes")
    soft, votes = np.array(dataset["soft_label"][:]), np.array(dataset["votes"][:])
    np.testing.assert_allclose(soft, votes / votes.sum(1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(list(report.counts.values()), soft.sum(0), atol=1e-3)
    assert "soft_label" not in load_fer("ferplus", ferplus(), "train").column_names


def test_marked_copies_of_training_images_are_dropped_and_counted(ferplus: Writer) -> None:
    root = ferplus()
    kept, report = load_split("ferplus", root, "valid", label_rule="argmax")
    every, without = load_split("ferplus", root, "valid", label_rule="argmax", drop_duplicates=False)
    assert report.dropped["a copy of a training image"] == len(every) - len(kept) == 2  # row 0 has no vote
    assert "a copy of a training image" not in without.dropped
    assert "dup_of_train" in report.duplicates


def test_unmarked_copies_are_found_by_their_pixels(tmp_path: Path) -> None:
    folder_of(tmp_path, train__happy=3, train__sad=3, test__happy=2)
    copy = tmp_path / "train" / "sad" / "0.png"
    (tmp_path / "test" / "happy" / "copy.png").write_bytes(copy.read_bytes())
    dataset, report = load_split("fer2013", tmp_path, "test")
    assert len(dataset) == 2
    assert report.dropped == {"a copy of a training image": 1}
    assert "copy.png" not in dataset["file_name"][:]


def test_all_rows_come_without_a_split_and_equal_the_splits_together(ferplus: Writer) -> None:
    root = ferplus()
    parts = [load_split("ferplus", root, s)[1] for s in ("train", "valid", "test")]
    every, report = load_split("ferplus", root)
    assert report.kept == len(every) == sum(p.kept for p in parts)
    assert report.read == 110
    assert load_split("ferplus", root, "all")[1].sha256 == report.sha256


def test_limit_takes_the_first_rows_of_each_split(ferplus: Writer) -> None:
    root = ferplus()
    whole = load_fer("ferplus", root, "train")["file_name"][:]
    assert load_fer("ferplus", root, "train", limit=5)["file_name"][:] == whole[:5]
    assert len(load_fer("ferplus", root, limit=5)) == 15


def test_the_hash_depends_on_rows_and_labels_and_on_nothing_else(ferplus: Writer) -> None:
    root = ferplus()
    report = load_split("ferplus", root, "train")[1]
    assert load_split("ferplus", root, "train")[1].sha256 == report.sha256
    assert load_split("ferplus", root, "train", label_rule="argmax")[1].sha256 != report.sha256
    json.dumps(report.as_dict())
    assert any("no majority" in line for line in report.lines())


@pytest.mark.parametrize("how", ["names", "class_label", "bytes"])
def test_labelled_parquet_is_mapped_by_name(tmp_path: Path, how: str) -> None:
    images = [png(i) for i in range(3)]
    records = [{"bytes": b, "path": None} for b in images]
    path = tmp_path / "train.parquet"
    if how == "class_label":
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=["Sad", "Fear", "Angry"])})
        pa.parquet.write_table(pa.table({"image": records, "label": [2, 0, 1]}, schema=features.arrow_schema), path)
    else:
        write_parquet(path, images if how == "bytes" else records, label=["Angry", "Sad", "Fear"])
    dataset = load_fer("fer2013", path, "train", classes=("fear", "sadness", "anger"))
    assert dataset["label"][:] == [2, 1, 0]
    assert np.asarray(dataset[0]["image"]).shape == (12, 12)


def test_valence_arousal_and_subject_are_passed_on(tmp_path: Path) -> None:
    columns = {"valence": [0.5, -1.0], "arousal": [0.0, 1.0], "subject": [1, 2]}
    write_parquet(tmp_path / "a.parquet", [png(0), png(1)], label=["sad", "happy"], **columns)
    dataset = load_fer("affectnet", tmp_path)
    assert dataset["valence"][:] == [0.5, -1.0]
    assert dataset["subject"][:] == ["1", "2"]


def test_class_folders_are_read_with_and_without_splits(tmp_path: Path) -> None:
    split = folder_of(tmp_path / "a", train__happy=3, val__happy=1, val__Anger=2)
    assert load_fer("ckplus", split, "valid")["label"][:] == [CLASSES.index("anger")] * 2 + [1]
    flat = folder_of(tmp_path / "b", happy=2, surprise=1)
    assert load_fer("ckplus", flat)["label"][:] == [1, 1, 2]


def test_rows_of_other_classes_are_dropped_and_counted(tmp_path: Path) -> None:
    root = folder_of(tmp_path, happy=2, contempt=3)
    dataset, report = load_split("ckplus", root, classes=CLASSES[:7])
    assert len(dataset) == 2
    assert report.dropped == {"a class outside `classes`": 3}


@pytest.mark.parametrize(
    ("write", "arguments", "message"),
    [
        (
            lambda w, at: labelled(at, ["contempt"] * 2),
            {"classes": CLASSES[:7]},
            "no image left of 2.*2 a class outside",
        ),
        (lambda w, at: w() / "train.parquet", {"split": "valid"}, "no split 'valid'.*splits found: train"),
        (lambda w, at: w(), {"split": "trian"}, "did you mean 'train'"),
        (lambda w, at: w(), {"label_rule": "majoirty"}, "did you mean 'majority'"),
        (lambda w, at: w(), {"classes": ("neutral", "hapiness")}, "did you mean 'happiness'"),
        (lambda w, at: w(), {"classes": ("fear", "fear")}, "two different names"),
        (lambda w, at: w(), {"limit": 0}, "limit must be at least 1"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(
    ferplus: Writer, tmp_path: Path, write: Callable[..., Path], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_fer(**{"name": "ferplus", "root": write(ferplus, tmp_path), **arguments})
    assert "\n" not in str(caught.value)


def test_the_rule_votes_changes_nothing_in_sets_of_single_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = labelled(tmp_path, ["sad"])
    assert load_split("fer2013", root, label_rule="votes")[1].labels == "given"
    assert "has no votes" not in caplog.text
    assert load_split("ferplus", root, label_rule="votes")[1].labels == "given"
    assert "train.parquet: has no votes but one label an image, which is taken as given" in caplog.text


def test_a_spec_is_name_root_and_split() -> None:
    assert parse_spec("ckplus=/a/b c:test") == ("ckplus", "/a/b c", "test", "ckplus:test")
    assert parse_spec("ckplus=C:/data") == ("ckplus", "C:/data", None, "ckplus:all")
    assert parse_spec("ckplus=x:all")[3] == "ckplus:all"
    for bad, message in [
        ("ckplus", "not name=root"),
        ("ckpuls=x", "did you mean 'ckplus'"),
        ("ckplus=x:tset", "'test'"),
    ]:
        with pytest.raises(InputError, match=message):
            parse_spec(bad)


COUNTS = {
    ("train", "argmax"): [10387, 7539, 3588, 3548, 2477, 194, 656, 167],
    ("train", "majority"): [8739, 7287, 3149, 3013, 2099, 119, 532, 119],
    ("valid", "argmax"): [1347, 899, 459, 418, 320, 36, 75, 25],
    ("valid", "majority"): [1182, 865, 415, 351, 287, 24, 62, 13],
    ("test", "argmax"): [1277, 929, 446, 448, 326, 23, 94, 29],
    ("test", "majority"): [1089, 893, 396, 384, 273, 18, 83, 16],
}


@pytest.mark.skipif("NGD_DATA" not in os.environ, reason="NGD_DATA does not name a folder that holds ferplus/")
def test_real_ferplus_gives_the_published_counts() -> None:
    root = Path(os.environ["NGD_DATA"]) / "ferplus"
    for (split, rule), counts in COUNTS.items():
        report = load_split("ferplus", root, split, label_rule=rule, drop_duplicates=False)[1]
        assert list(report.counts.values()) == counts, (split, rule)
    assert [len(load_fer("ferplus", root, s)) for s in ("train", "valid", "test")] == [25057, 2948, 2893]
