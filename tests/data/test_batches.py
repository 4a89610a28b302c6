"""Batches: seeded, resumable, the same in memory, an image at a time, in workers, ahead and from a stream."""

from __future__ import annotations

import io
import multiprocessing
import random
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from PIL import Image
from writers import encoded, png, write_parquet

from ngd_timm.core.errors import InputError
from ngd_timm.core.recipe import AugmentConfig
from ngd_timm.data import Batch, FaceBatches, FaceStream, class_counts, load_fer
from ngd_timm.data.ahead import ahead

NAMES = ["neutral", "happy", "sad"]
OFF = AugmentConfig(flip=0, rotate=0, scale=0, shift=0, brightness=0, contrast=0, erase=0)
VA = np.random.default_rng(0).uniform(-1, 1, (21, 2)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """21 images of 12 px, three classes in turn, with valence and arousal."""
    images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(21)]
    labels = [NAMES[i % 3] for i in range(21)]
    return write_parquet(tmp_path / "a.parquet", images, label=labels, valence=VA[:, 0], arousal=VA[:, 1])


def faces(folder: Path, images: list[bytes]) -> Dataset:
    return load_fer("ckplus", write_parquet(folder / "b.parquet", images, label=["sad"] * len(images)))


def batches(dataset: Dataset, **options: object) -> FaceBatches:
    settings: dict[str, object] = {"image_size": 16, "batch_size": 4, "train": True, "augment": AugmentConfig()}
    return FaceBatches(dataset, **{**settings, **options})  # type: ignore[arg-type]


def memory(path: Path, **options: object) -> FaceBatches:
    return batches(load_fer("affectnet", path), in_memory=True, **options)


def per_image(path: Path, **options: object) -> FaceBatches:
    return batches(load_fer("affectnet", path), in_memory=False, **options)


def stream(path: Path, **options: object) -> FaceStream:
    settings: dict[str, object] = {"image_size": 16, "batch_size": 4, "buffer": 10, "augment": AugmentConfig()}
    rows = load_fer("affectnet", path, streaming=True)
    return FaceStream(rows, **{**settings, **options})  # type: ignore[arg-type]


KINDS = pytest.mark.parametrize("kind", [memory, per_image, stream])
Kind = Callable[..., FaceBatches | FaceStream]


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images) and torch.equal(a.index, b.index) and torch.equal(a.target, b.target)
        for a, b in zip(first, second, strict=True)
    )


@KINDS
def test_batches_depend_on_seed_and_epoch_alone_and_leave_the_global_random_state(kind: Kind, path: Path) -> None:
    one, two = kind(path), kind(path)
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(3), random.random()
    torch.manual_seed(5)
    random.seed(5)
    first = list(one)
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]
    assert equal(first, list(two))
    assert equal(first, list(one))
    two.set_epoch(1)
    assert not equal(first, list(two))
    assert not equal(first, list(kind(path, seed=1)))


@KINDS
@pytest.mark.parametrize("early", [False, True])
def test_starting_at_a_batch_equals_the_tail_of_the_epoch_made_ahead_or_not(
    kind: Kind, path: Path, early: bool
) -> None:
    result, plain = kind(path, ahead=early), kind(path)
    for each in (result, plain):
        each.set_epoch(3)
    assert equal(list(result.batches(start=2)), list(plain)[2:])
    assert equal(list(result), list(plain))


@pytest.mark.parametrize("kind", [memory, per_image])
def test_the_class_aware_sampler_resumes_too(kind: Kind, path: Path) -> None:
    result = kind(path, sampler="class_aware")
    assert equal(list(result.batches(start=2)), list(result)[2:])


@KINDS
def test_valence_and_arousal_travel_with_their_rows(kind: Kind, path: Path) -> None:
    for batch in kind(path):
        np.testing.assert_allclose(batch.valence_arousal, VA[batch.index])


@KINDS
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 50}, "21 images are fewer than one batch of 50"),
        ({"in_chans": 2}, "in_chans must be 1"),
        ({"mean": (0.1, 0.2)}, "mean must be one number or 1"),
        ({"std": 0.0}, "std must be above 0"),
        ({"image_size": 0}, "image_size"),
    ],
)
def test_wrong_settings_and_sets_smaller_than_a_batch_are_refused(
    kind: Kind, path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        kind(path, **options)


def test_settings_of_one_kind_are_checked_too(path: Path) -> None:
    with pytest.raises(InputError, match="sampler"):
        memory(path, sampler="rnd")
    with pytest.raises(InputError, match="buffer must be at least 1"):
        stream(path, buffer=0)


@pytest.mark.parametrize("augment", [AugmentConfig(scale=0, erase=1), None])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_of_the_input_size_are_the_same_on_all_paths_and_in_all_processes(
    tmp_path: Path, mode: str, augment: AugmentConfig | None
) -> None:
    dataset = faces(tmp_path, [png(i, (16, 16), mode) for i in range(8)])
    options = {"augment": augment, "in_chans": 3, "mean": (0.4, 0.5, 0.6), "std": 0.2}
    whole = list(batches(dataset, in_memory=True, **options))
    for in_memory, part in ((False, (0, 1)), (True, (1, 2)), (False, (1, 2))):
        rows = slice(2 * part[0], None)
        for one, other in zip(whole, batches(dataset, in_memory=in_memory, part=part, **options), strict=True):
            torch.testing.assert_close(other.images, one.images[rows], atol=1e-5, rtol=0)
            assert torch.equal(other.index, one.index[rows])


def test_an_exception_while_making_items_ahead_comes_where_the_item_would_have_come() -> None:
    def items() -> Generator[int, None, None]:
        yield from (0, 1)
        raise InputError("the disk is gone")

    early = ahead(items())
    assert [next(early), next(early)] == [0, 1]
    with pytest.raises(InputError, match="the disk is gone"):
        next(early)
    assert not [t for t in threading.enumerate() if t.name.startswith("ngd_timm.ahead")]


def test_a_broken_off_iteration_leaves_no_thread_and_the_next_one_is_whole(path: Path) -> None:
    result = memory(path, ahead=True)
    iteration = iter(result)
    next(iteration)
    iteration.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("ngd_timm.ahead")]
    assert equal(list(result), list(memory(path)))


def test_workers_stay_between_epochs_and_iterations_do_not_disturb_each_other(path: Path) -> None:
    alone, helped = per_image(path), per_image(path, workers=1)
    workers = []
    for epoch in range(2):
        for result in (alone, helped):
            result.set_epoch(epoch)
        assert equal(list(alone), list(helped))
        workers.append([p.pid for p in multiprocessing.active_children()])
    assert len(workers[0]) == 1
    assert workers[0] == workers[1]
    pairs = list(zip(iter(helped), iter(helped), strict=True))
    assert equal([a for a, _ in pairs], list(alone))
    assert equal([b for _, b in pairs], list(alone))
    broken = iter(helped)
    next(broken)
    broken.close()  # type: ignore[attr-defined]
    assert equal(list(helped), list(alone))
    del result, helped, broken
    assert not multiprocessing.active_children()


def test_large_jpegs_are_decoded_small_and_look_the_same(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:400, 0:600]
    pixels = np.stack([rows * 255 / 400, columns * 255 / 600, 255 - rows * 255 / 400], axis=2).astype(np.uint8)
    dataset = faces(tmp_path, [encoded(Image.fromarray(pixels), "JPEG", quality=95)])
    options: dict[str, object] = {"image_size": 50, "batch_size": 1, "mean": 0.0, "std": 1.0, "in_memory": False}
    for in_chans in (1, 3):
        drawn, plain = (
            next(iter(batches(dataset, augment=augment, in_chans=in_chans, **options))).images
            for augment in (OFF, None)
        )
        assert float((drawn - plain).abs().max()) < 5 / 255


def test_evaluation_is_a_bilinear_resize_in_the_sets_order(path: Path) -> None:
    result = memory(path, train=False, mean=0.4, std=0.2)
    got = list(result)
    assert len(got) == len(result) == 6
    assert torch.cat([b.index for b in got]).tolist() == list(range(21))
    pixels = torch.stack([torch.from_numpy(np.array(row["image"])) for row in result.dataset])[:, None]
    expected = (F.interpolate(pixels / 255, (16, 16), mode="bilinear", align_corners=False) - 0.4) / 0.2
    rounding = 1.01 / 255 / 0.2
    torch.testing.assert_close(torch.cat([b.images for b in got]), expected, atol=rounding, rtol=0)
    assert torch.cat([b.target for b in got]).tolist() == result.dataset["label"][:]


def test_small_images_of_one_size_are_held_in_memory_and_others_are_not(tmp_path: Path) -> None:
    assert batches(faces(tmp_path, [png(i) for i in range(4)])).in_memory
    assert not batches(faces(tmp_path, [png(i, (100, 100)) for i in range(4)])).in_memory
    mixed = faces(tmp_path, [png(0), png(1, (14, 12))])
    assert not batches(mixed, batch_size=2).in_memory
    with pytest.raises(InputError, match="row 0 is 12x12 and row 1 is 14x12"):
        batches(mixed, batch_size=2, in_memory=True)


@pytest.mark.parametrize("in_memory", [None, False])
@pytest.mark.parametrize("augment", [AugmentConfig(), None])
def test_a_damaged_image_in_the_middle_is_named_before_the_first_batch(
    tmp_path: Path, augment: AugmentConfig | None, in_memory: bool | None
) -> None:
    images = [{"bytes": png(i)[: 60 if i == 11 else None], "path": f"{i}.png"} for i in range(21)]
    dataset = load_fer("ckplus", write_parquet(tmp_path / "train.parquet", images, label=["sad"] * 21))
    with pytest.raises(InputError, match=r"train\.parquet row 11 \('11\.png'\): the \w+ can't be decoded") as caught:
        batches(dataset, in_memory=in_memory, augment=augment)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("in_memory", [None, False])
def test_pixels_of_a_scale_that_is_not_taken_are_named_before_the_first_batch(
    tmp_path: Path, in_memory: bool | None
) -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((120, 120), 0.5, np.float32)).save(file, "TIFF")
    images = [png(0), file.getvalue(), *map(png, range(2, 8))]
    dataset = load_fer("ckplus", write_parquet(tmp_path / "train.parquet", images, label=["sad"] * 8))
    with pytest.raises(InputError, match=r"row 1: the image can't be \w+ \(pixels of floats up to 1"):
        batches(dataset, in_memory=in_memory, augment=AugmentConfig())


def test_a_stream_names_a_damaged_image_when_its_batch_is_made(tmp_path: Path) -> None:
    images = [png(i)[: 60 if i == 5 else None] for i in range(8)]
    result = stream(write_parquet(tmp_path / "train.parquet", images, label=["sad"] * 8))
    with pytest.raises(InputError, match=r"train\.parquet row 5: the image can't be decoded"):
        list(result)


def test_a_path_in_a_parquet_is_relative_to_the_parquet_and_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.png").write_bytes(png(7))
    path = write_parquet(tmp_path / "train.parquet", [{"bytes": None, "path": "x/a.png"}], label=["sad"])
    assert len(list(batches(load_fer("ckplus", path), batch_size=1))) == 1
    (tmp_path / "x" / "a.png").unlink()
    with pytest.raises(InputError, match=r"x/a\.png can't be read"):
        load_fer("ckplus", path)


def test_training_images_are_scaled_down_with_antialiasing_on_both_paths(tmp_path: Path) -> None:
    stripes = encoded(Image.fromarray(np.tile(np.arange(90, dtype=np.uint8) % 2 * 255, (90, 1))))
    zoom = OFF.model_copy(update={"scale": 0.2})
    for in_memory in (True, False):
        result = batches(faces(tmp_path, [stripes] * 4), image_size=24, augment=zoom, in_memory=in_memory, std=1.0)
        assert float(next(iter(result)).images.abs().max()) < 0.1


def test_soft_labels_become_soft_targets_and_their_sums_the_counts(ferplus: Callable[..., Path]) -> None:
    dataset = load_fer("ferplus", ferplus(), "train", label_rule="votes")
    result = batches(dataset, train=False)
    target = torch.cat([b.target for b in result])
    assert target.dtype == torch.float32
    torch.testing.assert_close(target.sum(1), torch.ones(len(dataset)))
    np.testing.assert_allclose(class_counts(result), target.sum(0).numpy(), rtol=1e-5)
    np.testing.assert_allclose(class_counts(dataset), class_counts(result))


def test_class_counts_cover_absent_classes(path: Path) -> None:
    assert class_counts(memory(path)).tolist() == [7, 7, 0, 7, 0, 0, 0, 0]
