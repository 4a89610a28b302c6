"""Hub ids, and data sets read a few rows at a time: the same rows and columns as the whole."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from hub_server import HubServer
from writers import png

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError
from ngd_timm.data import load_fer, load_split
from ngd_timm.data.layouts import parquet
from ngd_timm.data.synthetic.tiny import write_tiny

Writer = Callable[..., Path]


def same(streamed: Any, whole: Dataset) -> None:
    rows = list(streamed)
    assert set(streamed.features) == set(whole.column_names)
    assert streamed.features["label"].names == whole.features["label"].names
    assert len(rows) == len(whole)
    for ours, theirs in zip(rows, whole, strict=True):
        np.testing.assert_array_equal(np.asarray(ours.pop("image")), np.asarray(theirs.pop("image")))
        assert ours == theirs


@pytest.mark.parametrize("rule", ["majority", "argmax", "votes"])
@pytest.mark.parametrize("split", ["train", "valid", None])
def test_streamed_parquet_has_the_rows_and_columns_of_the_whole(ferplus: Writer, rule: str, split: str | None) -> None:
    root = ferplus(n_train=300)  # more than one block
    same(
        load_fer("ferplus", root, split, label_rule=rule, streaming=True),
        load_fer("ferplus", root, split, label_rule=rule),
    )


def test_streaming_keeps_limit_classes_and_duplicates_as_the_whole_does(ferplus: Writer) -> None:
    root = ferplus()
    some: dict[str, Any] = {"classes": CLASSES[:4], "limit": 3}
    same(load_fer("ferplus", root, streaming=True, **some), load_fer("ferplus", root, **some))
    every = {"drop_duplicates": False, "label_rule": "argmax"}
    same(load_fer("ferplus", root, "valid", streaming=True, **every), load_fer("ferplus", root, "valid", **every))  # type: ignore[call-overload]


def test_streaming_finds_unmarked_copies_by_their_pixels(tmp_path: Path) -> None:
    rows = {"image": [png(i) for i in range(4)], "label": ["sad", "fear", "sad", "fear"]}
    for split, start in (("train", 0), ("test", 2)):
        images = [*rows["image"][start : start + 2], rows["image"][0]]
        Dataset.from_dict({"image": images, "label": ["sad"] * 3}).to_parquet(tmp_path / f"{split}.parquet")
    streamed = load_fer("fer2013", tmp_path, "test", streaming=True)
    same(streamed, load_fer("fer2013", tmp_path, "test"))
    assert len(list(streamed)) == 2


def test_a_stream_can_be_read_again(ferplus: Writer) -> None:
    streamed = load_fer("ferplus", ferplus(), "valid", streaming=True)
    assert [r["file_name"] for r in streamed] == [r["file_name"] for r in streamed]


def test_a_stream_says_at_its_end_what_it_dropped(ferplus: Writer, caplog: pytest.LogCaptureFixture) -> None:
    root = ferplus()
    report = load_split("ferplus", root, "valid")[1]
    with caplog.at_level("INFO", logger="ngd_timm.data"):
        list(load_fer("ferplus", root, "valid", streaming=True))
    assert f"{report.kept} of {report.read} images streamed" in caplog.text
    for reason, n in report.dropped.items():
        assert f"{n} {reason}" in caplog.text


@pytest.mark.parametrize("layout", ["npz", "ferplus-export", "ferplus-two-csv"])
def test_a_layout_that_cannot_stream_says_so(layout: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be streamed, only parquet files and Hub ids; leave streaming out"):
        load_fer("ferplus", write_tiny(layout, tmp_path / "set"), streaming=True)


def test_damage_further_on_is_refused_while_streaming(ferplus: Writer) -> None:
    path = ferplus() / "valid.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is not a whole parquet file"):
        load_fer("ferplus", path.parent, "valid", streaming=True)


@pytest.fixture
def hub(data_hub: HubServer) -> HubServer:
    """A Hub with a data set of five faces, tagged v1.0, and its newest commit without them."""
    features = Features(
        {"image": ImageFeature(), "label": ClassLabel(names=["angry", "happy"]), "subject": Value("string")}
    )
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(5)], "label": [0, 1, 1, 0, 1]}
    data = Dataset.from_dict({**rows, "subject": list("abcab")}, features=features)
    files = {}
    for split, part in (("train", range(3)), ("validation", range(3, 5))):
        data.select(part).to_parquet(buffer := io.BytesIO())
        files[f"data/{split}.parquet"] = buffer.getvalue()
    commit = data_hub.put("somebody/faces", {"README.md": b"", **files})
    data_hub.repos["somebody/faces"].branches["v1.0"] = commit
    return data_hub


def test_a_hub_id_is_loaded_at_its_revision_and_mapped_by_name(hub: HubServer) -> None:
    hub.put("somebody/faces", {"data/train.parquet": b"not what v1.0 is"})
    dataset, report = load_split("fer2013", "somebody/faces@v1.0", "train")
    assert dataset["label"][:] == [CLASSES.index(c) for c in ("anger", "happiness", "happiness")]
    assert dataset["subject"][:] == ["a", "b", "c"]
    assert report.layout == "Hub data set"
    assert load_split("fer2013", "somebody/faces,revision=v1.0", "valid")[1].kept == 2


def test_a_hub_id_is_streamed(hub: HubServer) -> None:
    rows = list(load_fer("fer2013", "somebody/faces", "train", streaming=True))
    assert [CLASSES[r["label"]] for r in rows] == ["anger", "happiness", "happiness"]
    assert rows[0]["image"].size == (12, 12)
    assert list(rows[0]["source"].split()) == ["somebody/faces", "train", "row", "0"]


def test_a_hub_id_that_cannot_be_loaded_is_one_line_that_names_it(hub: HubServer) -> None:
    with pytest.raises(InputError, match="'nobody/faces' is no path here, and as a dataset on the Hub") as caught:
        load_fer("fer2013", "nobody/faces")
    assert "\n" not in str(caught.value)


def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for root in ("data/ferplus", "./faces/fer", "faces", str(tmp_path / "faces")):
        with pytest.raises(InputError, match="the path doesn't exist"):
            load_fer("ferplus", root)
    assert hub.requests == []


def test_a_list_is_not_streamed_as_its_images_can_only_be_counted_at_the_end(tmp_path: Path, ferplus: Writer) -> None:
    (tmp_path / "list.txt").write_text("a.png\n")
    sha256 = hashlib.sha256(b"a.png\n").hexdigest()
    root = f"{ferplus() / 'train.parquet'},list={tmp_path / 'list.txt'},sha256={sha256}"
    with pytest.raises(InputError, match="can't tell whether it holds all of a list; leave streaming or list out"):
        load_fer("ferplus", root, streaming=True)


def test_labels_in_the_place_of_votes_are_warned_of_once_a_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = {"image": [png(0)] * 600, "label": ["sad"] * 600}  # several blocks
    Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    streamed = load_fer("ferplus", tmp_path, "train", label_rule="votes", streaming=True)
    assert len(list(streamed)) == 600
    load_fer("ferplus", tmp_path, "train", label_rule="votes")
    assert caplog.text.count("has no votes but one label an image") == 2


def test_the_splits_beside_a_stream_are_neither_downloaded_nor_held(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, report = load_split("fer2013", "somebody/faces", "valid")

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the whole set is read")

    monkeypatch.setattr("datasets.DatasetBuilder.download_and_prepare", refuse)
    beside, same_report = load_split("fer2013", "somebody/faces", "valid", download=False)
    same(beside, whole)
    assert same_report == report
    folder = tmp_path / "set"
    folder.mkdir()
    for split, images in (("train", [png(0), png(1)]), ("valid", [png(1), png(2)])):
        Dataset.from_dict({"image": images, "label": ["sad"] * 2}).to_parquet(folder / f"{split}.parquet")
    read = parquet._read
    monkeypatch.setattr(parquet, "_read", lambda path, reader: refuse() if "train" in path.name else read(path, reader))
    assert load_split("fer2013", folder, "valid")[1].dropped == {"a copy of a training image": 1}
