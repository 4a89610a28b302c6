"""Batches from a stream: shuffled, seeded, resumable, and the images that the set holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import png, write_parquet

from ngd_timm.core.errors import InputError
from ngd_timm.core.recipe import AugmentConfig, Recipe
from ngd_timm.data import Batch, FaceBatches, FaceStream, class_counts, load_fer, load_split, load_stream
from ngd_timm.data.synthetic.schematic import write_schematic
from ngd_timm.train.loop import train

Writer = Callable[..., Path]


def stream(root: Path, rule: str = "majority", **options: object) -> FaceStream:
    settings: dict[str, object] = {
        "image_size": 16,
        "batch_size": 4,
        "buffer": 10,
        "augment": AugmentConfig(),
        **options,
    }
    return FaceStream(load_fer("ferplus", root, "train", label_rule=rule, streaming=True), **settings)  # type: ignore[arg-type]


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images) and torch.equal(a.index, b.index) and torch.equal(a.target, b.target)
        for a, b in zip(first, second, strict=True)
    )


def test_an_epoch_gives_every_row_at_most_once_and_leaves_out_less_than_a_batch(ferplus: Writer) -> None:
    root = ferplus()
    made = stream(root)
    index = torch.cat([b.index for b in made])
    rows = len(load_fer("ferplus", root, "train"))
    assert len(index) == len(set(index.tolist())) == 4 * len(made) == rows // 4 * 4
    assert index.tolist() != sorted(index.tolist())


@pytest.mark.parametrize("buffer", [1, 7, 1000])
def test_no_row_comes_before_it_was_read_into_the_buffer(ferplus: Writer, buffer: int) -> None:
    index = torch.cat([b.index for b in stream(ferplus(), buffer=buffer)])
    assert bool((index < torch.arange(len(index)) + buffer + 1).all())


def test_batches_depend_on_seed_and_epoch_alone(ferplus: Writer) -> None:
    root = ferplus()
    one, two = stream(root), stream(root)
    first = list(one)
    torch.manual_seed(3)
    assert equal(first, list(two))
    assert equal(first, list(one))
    two.set_epoch(1)
    assert not equal(first, list(two))
    assert not equal(first, list(stream(root, seed=1)))


@pytest.mark.parametrize("ahead", [False, True])
def test_starting_at_a_batch_equals_the_tail_of_the_epoch(ferplus: Writer, ahead: bool) -> None:
    root = ferplus()
    made, plain = stream(root, ahead=ahead), stream(root)
    for batches in (made, plain):
        batches.set_epoch(2)
    assert equal(list(made.batches(start=3)), list(plain)[3:])


@pytest.mark.parametrize("rule", ["majority", "votes"])
def test_a_streams_rows_have_the_images_and_targets_of_the_whole_set(ferplus: Writer, rule: str) -> None:
    root = ferplus()
    whole = FaceBatches(
        load_fer("ferplus", root, "train", label_rule=rule), image_size=12, batch_size=100, in_memory=True
    )
    every = next(iter(whole))
    made = stream(root, rule, augment=None, image_size=12)
    for batch in made:
        torch.testing.assert_close(batch.images, every.images[batch.index], atol=1e-5, rtol=0)
        torch.testing.assert_close(batch.target, every.target[batch.index])
    np.testing.assert_allclose(made.counts, class_counts(whole), rtol=1e-6)


def test_valence_and_arousal_travel_with_their_rows(tmp_path: Path) -> None:
    va = np.random.default_rng(0).uniform(-1, 1, (8, 2)).astype(np.float32)
    path = write_parquet(
        tmp_path / "a.parquet", [png(i) for i in range(8)], label=["sad"] * 8, valence=va[:, 0], arousal=va[:, 1]
    )
    for batch in FaceStream(load_fer("affectnet", path, streaming=True), image_size=16, batch_size=4):
        np.testing.assert_allclose(batch.valence_arousal, va[batch.index])


def test_a_streams_report_says_what_the_whole_sets_report_says(ferplus: Writer) -> None:
    root = ferplus()
    rows, tally = load_stream("ferplus", root, "train")
    report = FaceStream(rows, image_size=16, batch_size=4).report("ferplus", "train", tally)
    whole = load_split("ferplus", root, "train")[1]
    same = ("name", "split", "labels", "read", "dropped", "kept", "counts", "duplicates")
    assert [getattr(report, f) for f in same] == [getattr(whole, f) for f in same]
    assert report.layout == "parquet, streamed"


def test_a_damaged_image_is_named_by_its_row_when_a_batch_asks_for_it(tmp_path: Path) -> None:
    images = [png(i) for i in range(8)]
    images[5] = images[5][: len(images[5]) // 2]
    path = write_parquet(tmp_path / "train.parquet", images, label=["sad"] * 8)
    made = FaceStream(load_fer("ckplus", path, streaming=True), image_size=16, batch_size=4)
    with pytest.raises(InputError, match=r"train\.parquet row 5: the image can't be decoded"):
        list(made)


def test_a_stream_that_is_another_one_in_a_later_epoch_is_refused(ferplus: Writer) -> None:
    root = ferplus()
    made = stream(root)
    ferplus(n_train=90)
    with pytest.raises(InputError, match="the stream gave"):
        list(made)


def test_streams_smaller_than_a_batch_and_wrong_settings_are_refused(ferplus: Writer) -> None:
    root = ferplus()
    for options, message in [
        ({"batch_size": 500}, "fewer than one batch of 500"),
        ({"in_chans": 2}, "in_chans must be 1"),
        ({"buffer": 0}, "buffer must be at least 1"),
    ]:
        with pytest.raises(InputError, match=message):
            stream(root, **options)


def test_a_recipe_with_streaming_trains_and_says_that_it_streamed(tmp_path: Path) -> None:
    root = write_schematic(tmp_path / "faces", "pencil", n_train=40, n_valid=8, n_test=8, seed=0, image_size=24)
    data = {"name": "schematic", "root": str(root), "streaming": True, "shuffle_buffer": 20, "workers": 0}
    run: dict[str, Any] = {
        "name": "streamed",
        "out": str(tmp_path / "run"),
        "student": {"backbone": "test_resnet", "image_size": 32},
        "data": data,
        "optim": {"epochs": 2, "batch_size": 16},
    }
    out = train(Recipe.model_validate(run))
    fingerprint = json.loads((out / "fingerprint.json").read_text())
    assert fingerprint["data"]["train"]["layout"] == "parquet, streamed"
    assert fingerprint["data"]["train"]["kept"] == 40


def test_other_valence_is_other_data_streamed_or_not(tmp_path: Path) -> None:
    hashes = []
    for valence in (0.5, None, 0.25):
        columns = {"label": ["sad"] * 2, "valence": [0.5, valence], "arousal": [0.0, 0.0]}
        path = write_parquet(tmp_path / "train.parquet", [png(0), png(1)], **columns)
        streamed = FaceStream(load_fer("ckplus", path, streaming=True), image_size=16, batch_size=1)
        hashes += [streamed.sha256, load_split("ckplus", path)[1].sha256]
    assert len(set(hashes)) == 6


@pytest.mark.parametrize("option", [{"sampler": "class_aware"}, {"in_memory": True}])
def test_streaming_refuses_what_needs_the_whole_set(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="streaming"):
        Recipe.model_validate({"name": "x", "data": {"streaming": True, **option}})
