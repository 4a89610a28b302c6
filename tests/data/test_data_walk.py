"""Between the disk and a batch every file is opened once, and every image decoded once."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from writers import png, write_parquet

from ngd_timm.core.errors import InputError
from ngd_timm.core.recipe import AugmentConfig, Recipe, load_recipe
from ngd_timm.data import FaceBatches, load_split, load_splits, write_tiny
from ngd_timm.data.layouts import rows
from ngd_timm.train.setup import data_hashes

_watched: list[Path] = []
_opened: Counter[str] = Counter()


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watched and str(arguments[0]).startswith(str(_watched[0])):
        _opened[str(arguments[0])] += 1


sys.addaudithook(_watch)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Counter[str]]:
    """How often each file below `tmp_path` is opened from now on."""
    _opened.clear()
    _watched[:] = [tmp_path]
    yield _opened
    _watched.clear()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for every image that PIL opens."""
    images: list[None] = []
    original = Image.open

    def count(*arguments: Any, **options: Any) -> Any:
        images.append(None)
        return original(*arguments, **options)

    monkeypatch.setattr(Image, "open", count)
    return images


@pytest.mark.parametrize("in_memory", [None, False])
@pytest.mark.parametrize("augment", [AugmentConfig(), None])
def test_training_opens_and_decodes_each_image_file_once(
    tmp_path: Path, opened: Counter[str], decoded: list[None], augment: AugmentConfig | None, in_memory: bool | None
) -> None:
    root = write_tiny("fer2013-folders", tmp_path / "set")
    opened.clear()
    dataset, _ = load_split("fer2013", root, "train")
    batches = FaceBatches(
        dataset, image_size=32, batch_size=4, train=True, augment=augment, in_memory=in_memory, workers=0
    )
    images = {str(path) for path in (root / "train").rglob("*.jpg")}
    assert opened == dict.fromkeys(images, 1)
    assert len(decoded) == len(images) == 14
    list(batches)
    assert opened == dict.fromkeys(images, 1)
    assert in_memory is False or len(decoded) == 14


@pytest.mark.parametrize("hold_out", [False, True])
def test_training_and_validation_images_are_read_once_also_where_copies_are_searched(
    tmp_path: Path, opened: Counter[str], hold_out: bool
) -> None:
    root = write_tiny("sfew", tmp_path / "set")
    (root / "Val").rename(root / ("more" if hold_out else "Val"))
    opened.clear()
    loaded = load_splits("sfew", f"{root},hold_out=0.3" if hold_out else root, ["train", "valid"])
    for dataset, _ in loaded.values():
        FaceBatches(dataset, image_size=32, batch_size=4)
    assert sum(opened.values()) == len(opened) == (14 if hold_out else 28)


def test_a_parquet_is_read_once_for_training_and_the_search_for_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    for split, first in (("train", 0), ("valid", 2)):
        write_parquet(tmp_path / f"{split}.parquet", [png(first + i) for i in range(4)], label=["sad"] * 4)
    reads: list[str] = []
    original = pq.read_table
    monkeypatch.setattr(pq, "read_table", lambda path, **options: reads.append(path.name) or original(path, **options))
    loaded = load_splits("fer2013", tmp_path, ["train", "valid"])
    assert sorted(reads) == ["train.parquet", "valid.parquet"]
    reads.clear()
    recipe = load_recipe(Recipe, "b0_ce", ["data.name=fer2013", f"data.root={tmp_path}"])
    assert data_hashes(recipe) == {split: report.sha256 for split, (_, report) in loaded.items()}
    assert sorted(reads) == ["train.parquet", "valid.parquet"]
    assert [len(dataset) for dataset, _ in loaded.values()] == [4, 2]
    for split, (dataset, report) in loaded.items():
        alone, expected = load_split("fer2013", tmp_path, split)
        assert report == expected
        assert dataset["source"][:] == alone["source"][:]


def test_a_set_too_large_to_hold_stays_on_disk_with_the_same_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_tiny("fer2013-folders", tmp_path / "set")
    held, report = load_split("fer2013", root, "test")
    monkeypatch.setattr(rows, "_HELD_BYTES", 1000)
    on_disk, same = load_split("fer2013", root, "test")
    assert report == same
    encoded = [data.with_format("arrow")[:]["image"].to_pylist() for data in (held, on_disk)]
    assert all(record["bytes"] for record in encoded[0])
    assert not any(record["bytes"] for record in encoded[1])
    assert [r["path"] for r in encoded[0]] == [r["path"] for r in encoded[1]]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("held", [True, False])
def test_an_image_deleted_after_loading_is_held_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool, workers: int
) -> None:
    root = write_tiny("fer2013-folders", tmp_path / "set")
    if not held:
        monkeypatch.setattr(rows, "_HELD_BYTES", 0)
    dataset, _ = load_split("fer2013", root, "train")
    batches = FaceBatches(dataset, image_size=32, batch_size=4, in_memory=False, workers=workers)
    (root / "train" / "fear" / "6.jpg").unlink()
    if held:
        assert len(list(batches)) == 4
    else:
        with pytest.raises(InputError, match=r"can't be loaded any more \(.*6\.jpg.*; leave the data set alone"):
            list(batches)
