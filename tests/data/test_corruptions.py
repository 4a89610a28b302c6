"""Corrupted images: reproducible, whatever the batch; stronger with the severity; alike at other sizes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError
from ngd_timm.data.synthetic.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from ngd_timm.data.synthetic.schematic import draw_face


@pytest.fixture(scope="module")
def grey() -> np.ndarray:
    return np.stack([np.asarray(draw_face(CLASSES[i], seed=i)) for i in range(8)])


@pytest.fixture(scope="module")
def colour() -> np.ndarray:
    return np.stack([np.asarray(draw_face(CLASSES[i], domain="paint", seed=i)) for i in range(8)])


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) root mean square differences on the scale 0-255."""
    return np.sqrt(((a.astype(float) - b) ** 2).reshape(len(a), -1).mean(axis=1))


def test_there_are_the_fifteen_of_the_paper() -> None:
    kinds = {"noise": 3, "blur": 4, "snow": 1, "frost": 1, "fog": 1, "brightness": 1, "contrast": 1}
    assert len(CORRUPTIONS) == len(set(CORRUPTIONS)) == 15
    assert {kind: sum(name.endswith(kind) for name in CORRUPTIONS) for kind in kinds} == kinds


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_in_any_batch_and_with_the_same_seed_only(name: str, colour: np.ndarray) -> None:
    for images in (colour, colour[..., 1]):
        before = images.copy()
        whole = corrupt(images, name, 4, seed=7)
        assert np.array_equal(images, before)
        parts = [corrupt(images[a:b], name, 4, seed=7, first=a) for a, b in ((0, 1), (1, 6), (6, 8))]
        assert np.array_equal(whole, np.concatenate(parts))
    random = name not in (
        "defocus_blur",
        "zoom_blur",
        "brightness",
        "contrast",
        "pixelate",
        "jpeg_compression",
    )
    assert np.array_equal(whole, corrupt(images, name, 4, seed=8)) != random
    alike = corrupt(np.stack([images[0]] * 2), name, 4)
    assert np.array_equal(alike[0], alike[1]) != random


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_severity_is_further_from_the_clean_image(name: str, grey: np.ndarray, colour: np.ndarray) -> None:
    for images in (grey, colour):
        away = [0.0]
        for severity in SEVERITIES:
            changed = corrupt(images, name, severity)
            assert (changed.shape, changed.dtype) == (images.shape, np.uint8)
            away.append(float(distance(changed, images).mean()))
        assert np.all(np.diff(away) > 0.2), away


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_any_size_and_layout_is_taken_and_a_grey_channel_is_a_grey_image(name: str, grey: np.ndarray) -> None:
    for shape in ((2, 32, 32), (2, 100, 70, 3), (2, 8, 9), (0, 48, 48)):
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        changed = corrupt(images, name, 5)
        assert (changed.shape, changed.dtype) == (shape, np.uint8)
    assert np.array_equal(corrupt(grey[..., None], name, 3)[..., 0], corrupt(grey, name, 3))
    for flat in (0, 255):
        corrupt(np.full((1, 48, 48, 3), flat, dtype=np.uint8), name, 5)


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "jpeg_compression"])
def test_an_image_four_times_as_large_is_hurt_alike(name: str) -> None:
    faces = [draw_face(CLASSES[i % 8], domain="paint", seed=i, image_size=192) for i in range(6)]
    # as a small image that was enlarged, so that no detail is lost in one and kept in the other
    small = np.stack([np.asarray(face.resize((48, 48), Image.Resampling.BOX)) for face in faces])
    large = np.stack([np.asarray(Image.fromarray(x).resize((192, 192), Image.Resampling.BICUBIC)) for x in small])
    for severity in (2, 5):
        changed = corrupt(large, name, severity)
        reduced = changed.reshape(6, 48, 4, 48, 4, 3).mean(axis=(2, 4))
        plain = large.reshape(6, 48, 4, 48, 4, 3).mean(axis=(2, 4))
        ratio = distance(reduced, plain).mean() / distance(corrupt(small, name, severity), small).mean()
        assert 0.6 < ratio < 1.5, (severity, ratio)


def test_noise_has_the_deviation_that_it_is_said_to_have() -> None:
    plain = np.full((4, 48, 48), 128, dtype=np.uint8)
    assert corrupt(plain, "gaussian_noise", 3).std() / 255 == pytest.approx(0.09, rel=0.05)
    # a Poisson number's variance is its mean
    assert corrupt(plain, "shot_noise", 3).std() / 255 == pytest.approx(np.sqrt(128 / 255 / 60), rel=0.05)
    assert (corrupt(plain, "impulse_noise", 5) != 128).mean() == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fogg", 1), "did you mean 'fog'"),
        (("fog", 0), "severity must be one of 1, 2, 3, 4, 5, got 0"),
        (("fog", 6), "got 6"),
        (("fog", True), "got True"),
        (("fog", 2.0), "got 2.0"),
        (("fog", 1, -1), "0 or more"),
    ],
)
def test_a_wrong_name_or_number_is_refused_with_what_is_allowed(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        corrupt(np.zeros((1, 48, 48), dtype=np.uint8), *arguments)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 48, 48), dtype=np.float32), "uint8, got float32"),
        ([[0]], "uint8, got list"),
        (np.zeros((48, 48), dtype=np.uint8), r"got \(48, 48\)"),
        (np.zeros((1, 48, 48, 4), dtype=np.uint8), r"got \(1, 48, 48, 4\)"),
        (np.zeros((1, 7, 48), dtype=np.uint8), "at least 8 px"),
    ],
)
def test_what_is_no_array_of_images_is_refused(images: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        corrupt(images, "fog", 1)  # type: ignore[arg-type]
