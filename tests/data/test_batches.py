from __future__ import annotations

import io
import multiprocessing
import random
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import png, write_parquet
from datasets import Dataset
from PIL import Image

from ngd_timm.core.errors import InputError
from ngd_timm.core.recipe import AugmentConfig
from ngd_timm.data import Batch, FaceBatches, class_counts, load_fer

NAMES = ["neutral", "happy", "sad"]


@pytest.fixture
def faces(tmp_path: Path) -> Callable[..., Dataset]:
    def make(n: int = 21, damage: int | None = None, size: tuple[int, int] = (12, 12), mode: str = "L") -> Dataset:
        images = [{"bytes": png(i, size, mode), "path": f"{i}.png"} for i in range(n)]
        if damage is not None:
            data = bytes(images[damage]["bytes"])  # type: ignore[arg-type]
            images[damage]["bytes"] = data[: len(data) // 2]
        path = write_parquet(tmp_path / "train.parquet", images, label=[NAMES[i % 3] for i in range(n)])
        return load_fer("schematic", path, "train")

    return make


def batches(dataset: Dataset, **options: object) -> FaceBatches:
    settings: dict[str, object] = {
        "image_size": 16,
        "batch_size": 4,
        "train": True,
        "augment": AugmentConfig(),
        **options,
    }
    return FaceBatches(dataset, **settings)  # type: ignore[arg-type]


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images) and torch.equal(a.index, b.index) and torch.equal(a.target, b.target)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_same_seed_and_epoch_give_the_same_batches_whatever_else_draws_random_numbers(
    faces: Callable[..., Dataset], in_memory: bool
) -> None:
    dataset = faces()
    one, two = batches(dataset, in_memory=in_memory), batches(dataset, in_memory=in_memory)
    first = list(one)
    torch.manual_seed(99)
    random.seed(99)
    assert equal(first, list(two))
    assert equal(first, list(one))
    two.set_epoch(1)
    assert not equal(first, list(two))
    assert not equal(first, list(batches(dataset, in_memory=in_memory, seed=1)))


@pytest.mark.parametrize("in_memory", [True, False])
def test_making_batches_leaves_the_global_random_state_alone(faces: Callable[..., Dataset], in_memory: bool) -> None:
    made = batches(faces(), in_memory=in_memory)
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(3), random.random()
    torch.manual_seed(5)
    random.seed(5)
    list(made)
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("sampler", ["random", "class_aware"])
def test_starting_at_a_batch_equals_the_tail_of_the_epoch(
    faces: Callable[..., Dataset], in_memory: bool, sampler: str
) -> None:
    made = batches(faces(), in_memory=in_memory, sampler=sampler)
    made.set_epoch(3)
    assert equal(list(made.batches(start=2)), list(made)[2:])


def test_workers_change_nothing_in_the_per_image_path(faces: Callable[..., Dataset]) -> None:
    dataset = faces(n=9)
    alone, helped = batches(dataset, in_memory=False), batches(dataset, in_memory=False, workers=1)
    assert equal(list(alone), list(helped))


@pytest.mark.parametrize("in_memory", [True, False])
def test_batches_made_ahead_are_the_same_batches(faces: Callable[..., Dataset], in_memory: bool) -> None:
    dataset = faces()
    plain, early = (batches(dataset, in_memory=in_memory, ahead=ahead) for ahead in (False, True))
    assert equal(list(plain), list(early))
    assert equal(list(plain.batches(start=3)), list(early.batches(start=3)))


def test_an_error_while_making_batches_ahead_surfaces_where_the_batch_would_have_come(
    faces: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = batches(faces(), ahead=True)
    render, calls = made._render, []

    def failing(*arguments: object) -> object:
        for number, images in enumerate(render(*arguments)):  # type: ignore[arg-type]
            if number == 2:
                raise InputError("the disk is gone")
            calls.append(number)
            yield images

    monkeypatch.setattr(made, "_render", failing)
    iteration = iter(made)
    next(iteration), next(iteration)
    with pytest.raises(InputError, match="the disk is gone"):
        next(iteration)
    assert calls == [0, 1]
    assert not [t for t in threading.enumerate() if t.name == "ngd_timm.ahead"]


def test_a_broken_off_iteration_leaves_no_thread_and_the_next_one_is_whole(faces: Callable[..., Dataset]) -> None:
    dataset = faces()
    made = batches(dataset, ahead=True)
    iteration = iter(made)
    next(iteration)
    iteration.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name == "ngd_timm.ahead"]
    assert equal(list(made), list(batches(dataset)))


def test_workers_stay_between_epochs_and_give_each_epoch_its_own_batches(faces: Callable[..., Dataset]) -> None:
    dataset = faces(n=12)
    alone, helped = batches(dataset, in_memory=False), batches(dataset, in_memory=False, workers=1)
    workers = []
    for epoch in range(2):
        for made in (alone, helped):
            made.set_epoch(epoch)
        assert equal(list(alone), list(helped))
        workers.append([p.pid for p in multiprocessing.active_children()])
    assert len(workers[0]) == 1
    assert workers[0] == workers[1]
    del made, helped
    assert not multiprocessing.active_children()


def test_iterations_that_are_broken_off_or_run_side_by_side_do_not_disturb_each_other(
    faces: Callable[..., Dataset],
) -> None:
    dataset = faces(n=16)
    expected = list(batches(dataset, in_memory=False))
    helped = batches(dataset, in_memory=False, workers=1)
    first, second = iter(helped), iter(helped)
    pairs = list(zip(first, second, strict=True))
    assert equal([a for a, _ in pairs], expected)
    assert equal([b for _, b in pairs], expected)
    broken = iter(helped)
    next(broken)
    broken.close()  # type: ignore[attr-defined]
    assert equal(list(helped), expected)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_both_paths_augment_alike(faces: Callable[..., Dataset], mode: str) -> None:
    dataset = faces(n=8, size=(16, 16), mode=mode)
    options = {"augment": AugmentConfig(scale=0, erase=1), "in_chans": 3}
    memory, single = (list(batches(dataset, in_memory=m, **options)) for m in (True, False))
    for one, other in zip(memory, single, strict=True):
        torch.testing.assert_close(one.images, other.images, atol=1e-5, rtol=0)


def test_large_jpegs_are_decoded_small_and_look_the_same(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:400, 0:600]
    pixels = np.stack([rows * 255 / 400, columns * 255 / 600, 255 - rows * 255 / 400], axis=2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=95)
    path = write_parquet(tmp_path / "train.parquet", [buffer.getvalue()], label=["sad"])
    options: dict[str, object] = {"image_size": 50, "batch_size": 1, "mean": 0.0, "std": 1.0, "in_memory": False}
    still = AugmentConfig(flip=0, rotate=0, scale=0, shift=0, brightness=0, contrast=0, erase=0)
    for in_chans in (1, 3):
        drawn, plain = (
            next(iter(batches(load_fer("ckplus", path), augment=a, in_chans=in_chans, **options))).images
            for a in (still, None)
        )
        assert float((drawn - plain).abs().max()) < 5 / 255


@pytest.mark.parametrize("in_memory", [True, False])
def test_without_augmentation_training_differs_from_evaluation_by_the_order_alone(
    faces: Callable[..., Dataset], in_memory: bool
) -> None:
    dataset = faces(n=8)
    evaluated = torch.cat([b.images for b in batches(dataset, train=False, in_memory=in_memory)])
    for batch in batches(dataset, augment=None, in_memory=in_memory):
        torch.testing.assert_close(batch.images, evaluated[batch.index])


def test_evaluation_is_a_bilinear_resize_in_the_sets_order(faces: Callable[..., Dataset]) -> None:
    dataset = faces()
    made = batches(dataset, train=False, mean=0.4, std=0.2)
    got = list(made)
    assert len(got) == len(made) == 6
    assert torch.cat([b.index for b in got]).tolist() == list(range(21))
    pixels = torch.stack([torch.from_numpy(np.array(row["image"])) for row in dataset])[:, None]
    expected = (F.interpolate(pixels / 255, (16, 16), mode="bilinear", align_corners=False) - 0.4) / 0.2
    rounding = 1.01 / 255 / 0.2
    torch.testing.assert_close(torch.cat([b.images for b in got]), expected, atol=rounding, rtol=0)
    assert torch.cat([b.target for b in got]).tolist() == dataset["label"][:]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_both_paths_evaluate_the_same_images_alike(faces: Callable[..., Dataset], mode: str) -> None:
    dataset = faces(n=4, size=(16, 16), mode=mode)
    options = {"train": False, "in_chans": 3, "mean": (0.4, 0.5, 0.6), "std": 0.2}
    memory, single = (torch.cat([b.images for b in batches(dataset, in_memory=m, **options)]) for m in (True, False))
    assert memory.shape == (4, 3, 16, 16)
    torch.testing.assert_close(memory, single, atol=1e-5, rtol=0)


def test_small_images_of_one_size_are_held_in_memory_and_others_are_not(
    faces: Callable[..., Dataset], tmp_path: Path
) -> None:
    assert batches(faces()).in_memory
    assert not batches(faces(n=4, size=(100, 100))).in_memory
    mixed = write_parquet(tmp_path / "m" / "train.parquet", [png(0), png(1, (14, 12))], label=["sad", "sad"])
    dataset = load_fer("ckplus", mixed)
    assert not batches(dataset, batch_size=2).in_memory
    with pytest.raises(InputError, match="row 0 is 12x12 and row 1 is 14x12"):
        batches(dataset, batch_size=2, in_memory=True)


@pytest.mark.parametrize("in_memory", [None, False])
def test_a_damaged_image_in_the_middle_is_named_before_the_first_batch(
    faces: Callable[..., Dataset], in_memory: bool | None
) -> None:
    with pytest.raises(InputError, match=r"train\.parquet row 11 \('11\.png'\): the \w+ can't be") as caught:
        batches(faces(damage=11), in_memory=in_memory)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_image_and_files_that_are_gone_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [png(0), b"hello"], label=["sad", "sad"])
    with pytest.raises(InputError, match=r"row 1: the \w+ can't be decoded \(not a PNG, JPEG, .* or PPM image\)"):
        batches(load_fer("ckplus", tmp_path), batch_size=1)
    record = {"bytes": png(0), "path": "a"}, {"bytes": None, "path": "gone.png"}
    write_parquet(tmp_path / "b" / "train.parquet", list(record), label=["sad", "sad"])
    with pytest.raises(InputError, match=r"gone\.png"):
        batches(load_fer("ckplus", tmp_path / "b"), batch_size=1)


def test_a_path_in_a_parquet_is_relative_to_the_parquet(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.png").write_bytes(png(7))
    write_parquet(tmp_path / "train.parquet", [{"bytes": None, "path": "x/a.png"}], label=["sad"])
    dataset = load_fer("ckplus", tmp_path)
    assert len(list(batches(dataset, batch_size=1))) == 1


def test_training_images_are_scaled_down_with_antialiasing_on_both_paths(tmp_path: Path) -> None:
    stripes = Image.fromarray(np.tile(np.arange(90, dtype=np.uint8) % 2 * 255, (90, 1)))
    buffer = io.BytesIO()
    stripes.save(buffer, format="PNG")
    dataset = load_fer("ckplus", write_parquet(tmp_path / "train.parquet", [buffer.getvalue()] * 4, label=["sad"] * 4))
    zoom = AugmentConfig(flip=0, rotate=0, scale=0.2, shift=0, brightness=0, contrast=0, erase=0)
    for in_memory in (True, False):
        (batch,) = batches(dataset, image_size=24, augment=zoom, in_memory=in_memory, mean=0.5, std=1.0)
        assert float(batch.images.abs().max()) < 0.1


def test_sixteen_bit_transparent_and_rotated_images_are_read_as_they_look(tmp_path: Path) -> None:
    def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, format=form, **options)
        return buffer.getvalue()

    deep = Image.fromarray(np.full((12, 12), 32768, dtype=np.uint16))
    clear = Image.new("RGBA", (12, 12), (0, 0, 0, 0))
    half = Image.new("L", (12, 12), 0)
    half.paste(255, (0, 0, 12, 6))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(half, "JPEG", exif=exif, quality=100)
    images = [encoded(deep), encoded(clear), turned]
    dataset = load_fer("ckplus", write_parquet(tmp_path / "a.parquet", images, label=["sad"] * 3))
    out = next(iter(batches(dataset, train=False, image_size=12, mean=0.0, std=1.0))).images
    assert abs(float(out[0].mean()) - 128 / 255) < 1e-5
    assert float(out[1].min()) == 1.0
    assert float(out[2, 0, :, 7:].min()) > 0.9  # the white upper half lies on the right once upright
    assert float(out[2, 0, :, :5].max()) < 0.1


def test_soft_labels_become_soft_targets_and_their_sums_the_counts(ferplus: Callable[..., Path]) -> None:
    dataset = load_fer("ferplus", ferplus(), "train", label_rule="votes")
    made = batches(dataset, train=False)
    target = torch.cat([b.target for b in made])
    assert target.dtype == torch.float32
    torch.testing.assert_close(target.sum(1), torch.ones(len(dataset)))
    np.testing.assert_allclose(class_counts(made), target.sum(0).numpy(), rtol=1e-5)
    np.testing.assert_allclose(class_counts(dataset), class_counts(made))


def test_class_counts_cover_absent_classes(faces: Callable[..., Dataset]) -> None:
    assert class_counts(faces()).tolist() == [7, 7, 0, 7, 0, 0, 0, 0]


def test_valence_and_arousal_travel_with_their_rows(tmp_path: Path) -> None:
    va = np.random.default_rng(0).uniform(-1, 1, (8, 2)).astype(np.float32)
    path = write_parquet(
        tmp_path / "a.parquet", [png(i) for i in range(8)], label=["sad"] * 8, valence=va[:, 0], arousal=va[:, 1]
    )
    for batch in batches(load_fer("affectnet", path)):
        np.testing.assert_array_equal(batch.valence_arousal, va[batch.index])


def test_sets_smaller_than_a_batch_and_wrong_settings_are_refused(faces: Callable[..., Dataset]) -> None:
    dataset = faces(n=3)
    for options, message in [
        ({}, "3 images are fewer than one batch of 4"),
        ({"in_chans": 2}, "in_chans must be 1"),
        ({"mean": (0.1, 0.2)}, "mean must be one number or 1"),
        ({"std": 0.0}, "std must be above 0"),
        ({"sampler": "rnd"}, "sampler"),
        ({"image_size": 0}, "image_size"),
    ]:
        with pytest.raises(InputError, match=message):
            batches(dataset, **options)
