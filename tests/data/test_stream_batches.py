"""A stream's batches: the buffer's order, counts, hash and report. `test_batches.py` tests what all batches share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from writers import png, write_parquet

from ngd_timm.core.errors import InputError
from ngd_timm.core.recipe import Recipe
from ngd_timm.data import FaceBatches, FaceStream, class_counts, load_fer, load_split, load_stream
from ngd_timm.train.loop import train

Writer = Callable[..., Path]


def stream(root: Path, rule: str = "majority", **options: Any) -> FaceStream:
    rows = load_fer("ferplus", root, "train", label_rule=rule, streaming=True)
    return FaceStream(rows, **{"image_size": 12, "batch_size": 4, "buffer": 10, **options})


@pytest.mark.parametrize("buffer", [1, 7, 1000])
def test_rows_are_shuffled_within_the_buffer_and_come_at_most_once(ferplus: Writer, buffer: int) -> None:
    root = ferplus()
    result = stream(root, buffer=buffer)
    index = torch.cat([b.index for b in result])
    rows = len(load_fer("ferplus", root, "train"))
    assert len(index) == len(set(index.tolist())) == 4 * len(result) == rows // 4 * 4
    assert (index.tolist() != sorted(index.tolist())) == (buffer > 1)
    assert bool((index < torch.arange(len(index)) + buffer + 1).all())


@pytest.mark.parametrize("rule", ["majority", "votes"])
def test_a_stream_has_images_targets_counts_and_report_of_the_whole_set(ferplus: Writer, rule: str) -> None:
    root = ferplus()
    dataset, report = load_split("ferplus", root, "train", label_rule=rule)
    every = next(iter(FaceBatches(dataset, image_size=12, batch_size=100)))
    rows, tally = load_stream("ferplus", root, "train", label_rule=rule)
    result = FaceStream(rows, image_size=12, batch_size=4)
    for batch in result:
        torch.testing.assert_close(batch.images, every.images[batch.index], atol=1e-5, rtol=0)
        torch.testing.assert_close(batch.target, every.target[batch.index])
    np.testing.assert_allclose(result.counts, class_counts(dataset), rtol=1e-6)
    streamed = result.report("ferplus", "train", tally)
    assert streamed.layout == "parquet, streamed"
    assert {**streamed.as_dict(), "layout": "", "sha256": ""} == {**report.as_dict(), "layout": "", "sha256": ""}


def test_a_stream_that_is_another_one_in_a_later_epoch_is_refused(ferplus: Writer) -> None:
    result = stream(ferplus())
    ferplus(n_train=90)
    with pytest.raises(InputError, match="the stream gave"):
        list(result)


def test_a_recipe_with_streaming_trains_and_its_fingerprint_names_the_stream(tmp_path: Path, ferplus: Writer) -> None:
    data = {"root": str(ferplus()), "streaming": True, "shuffle_buffer": 20, "workers": 0}
    run: dict[str, Any] = {
        "name": "streamed",
        "out": str(tmp_path / "run"),
        "student": {"backbone": "test_resnet", "image_size": 32},
        "data": data,
        "optim": {"epochs": 1, "batch_size": 8},
    }
    fingerprint = json.loads((train(Recipe.model_validate(run)) / "fingerprint.json").read_text())
    assert fingerprint["data"]["train"]["layout"] == "parquet, streamed"
    assert fingerprint["data"]["train"]["kept"] == len(load_fer("ferplus", data["root"], "train"))


def test_other_valence_is_other_data_streamed_or_not(tmp_path: Path) -> None:
    hashes = []
    for valence in (0.5, None, 0.25):
        columns = {"label": ["sad"] * 2, "valence": [0.5, valence], "arousal": [0.0, 0.0]}
        path = write_parquet(tmp_path / "train.parquet", [png(0), png(1)], **columns)
        streamed = FaceStream(load_fer("ckplus", path, streaming=True), image_size=16, batch_size=1)
        hashes += [streamed.sha256, load_split("ckplus", path)[1].sha256]
    assert len(set(hashes)) == 6


def test_a_streams_hash_is_of_its_image_files_not_of_their_names(tmp_path: Path) -> None:
    hashes = []
    for seed, folder in enumerate((tmp_path / "a", tmp_path / "b", tmp_path / "b")):
        folder.mkdir(exist_ok=True)
        (folder / "0.png").write_bytes(png(min(seed, 1)))
        path = write_parquet(folder / "train.parquet", [{"bytes": None, "path": "0.png"}], label=["sad"])
        hashes.append(FaceStream(load_fer("ckplus", path, streaming=True), image_size=16, batch_size=1).sha256)
        (folder / "0.png").rename(folder / "1.png")
    moved = write_parquet(tmp_path / "train.parquet", [{"bytes": None, "path": "b/1.png"}], label=["sad"])
    hashes.append(FaceStream(load_fer("ckplus", moved, streaming=True), image_size=16, batch_size=1).sha256)
    assert hashes[0] != hashes[1] == hashes[2] == hashes[3]


@pytest.mark.parametrize("option", [{"sampler": "class_aware"}, {"in_memory": True}])
def test_streaming_refuses_what_needs_the_whole_set(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="streaming"):
        Recipe.model_validate({"name": "x", "data": {"streaming": True, **option}})
