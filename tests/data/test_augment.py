from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F

from ngd_timm.core.recipe import AugmentConfig
from ngd_timm.data.augment import AugmentDraw, _erase, _erase_by_mask, draw_augment, plan_batch, render_batch

OFF = AugmentConfig(flip=0, rotate=0, scale=0, shift=0, brightness=0, contrast=0, erase=0)


def random_images(n: int = 6, channels: int = 1, side: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (n, channels, side, side), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def draw(n: int = 6, seed: int = 0, **strengths: float) -> AugmentDraw:
    config = OFF.model_copy(update=strengths)
    return draw_augment(config, n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [16, 24, 64])
def test_rendering_without_augmentation_is_a_bilinear_resize(size: int) -> None:
    images = random_images()
    expected = F.interpolate(images.float() / 255, (size, size), mode="bilinear", align_corners=False)
    torch.testing.assert_close(render_batch(images, size, [0.0], [1.0], draw()), expected, atol=2e-6, rtol=0)


def stripes(n: int, side: int = 32) -> torch.Tensor:
    """Columns of one pixel, black and white in turn: any image of half the side that isn't grey shows aliasing."""
    return (255 * (torch.arange(side) % 2)).to(torch.uint8).repeat(n, 1, side, 1)


@pytest.mark.parametrize("size", [16, 11, 8])
def test_down_scaling_is_antialiased(size: int) -> None:
    scaled = render_batch(stripes(3), size, [0.0], [1.0], draw(3))
    assert float((scaled - 0.5).abs().max()) < 0.2
    zoomed_out = render_batch(stripes(40, 24), 24, [0.0], [1.0], draw(40, scale=0.5))
    zoom = 1 / draw(40, scale=0.5).theta[:, 0, 0]
    contrast = (zoomed_out - 0.5).abs().mean((1, 2, 3))
    assert float(contrast[zoom < 0.6].max()) < 0.2
    assert float(contrast[zoom > 1].min()) > 0.2


def test_an_image_is_rendered_alike_whatever_else_is_in_its_batch() -> None:
    images, params = random_images(12, side=24), draw(12, scale=0.5, rotate=0.2)
    whole = render_batch(images, 16, [0.0], [1.0], params)
    for row in range(12):
        alone = slice(row, row + 1)
        torch.testing.assert_close(render_batch(images[alone], 16, [0.0], [1.0], params[alone]), whole[alone])


def test_flips_mirror_about_half_of_the_images_and_leave_the_rest() -> None:
    images = random_images(64)
    plain = render_batch(images, 16, [0.0], [1.0], draw(64))
    out = render_batch(images, 16, [0.0], [1.0], draw(64, flip=0.5))
    mirrored = (out - plain.flip(-1)).abs().amax((1, 2, 3)) < 1e-5
    same = (out - plain).abs().amax((1, 2, 3)) < 1e-5
    assert bool((mirrored ^ same).all())
    assert 20 <= int(mirrored.sum()) <= 44


def test_the_affine_map_equals_a_slow_one_of_its_formula() -> None:
    images, size = random_images(3, side=12), 16  # larger than the image times the zoom, so one sample a pixel
    params = draw(3, seed=5, rotate=0.4, scale=0.2, shift=0.1)
    out = render_batch(images, size, [0.0], [1.0], params)
    for b in range(3):
        (a, c, tx), (d, e, ty) = params.theta[b].tolist()
        for row in range(size):
            for column in range(size):
                x, y = (2 * column + 1) / size - 1, (2 * row + 1) / size - 1
                at = [((s + 1) * 12 - 1) / 2 for s in (a * x + c * y + tx, d * x + e * y + ty)]
                value = bilinear(images[b, 0].tolist(), *at)
                assert math.isclose(float(out[b, 0, row, column]), value / 255, abs_tol=1e-4)


def bilinear(pixels: list[list[int]], x: float, y: float) -> float:
    side = len(pixels)

    def mirror(v: float) -> float:
        if v < -0.5:
            v = -1 - v
        if v > side - 0.5:
            v = 2 * side - 1 - v
        return min(max(v, 0.0), side - 1)

    x, y = mirror(x), mirror(y)
    x0, y0 = min(int(x), side - 2), min(int(y), side - 2)
    fx, fy = x - x0, y - y0
    top = (1 - fx) * pixels[y0][x0] + fx * pixels[y0][x0 + 1]
    low = (1 - fx) * pixels[y0 + 1][x0] + fx * pixels[y0 + 1][x0 + 1]
    return (1 - fy) * top + fy * low


def test_rotation_zoom_and_shift_stay_within_their_strengths() -> None:
    theta = draw(2000, rotate=0.2, scale=0.15, shift=0.1).theta
    zoom = 1 / theta[:, :, 0].norm(dim=1)
    angle = torch.atan2(theta[:, 1, 0], theta[:, 0, 0])
    for values, middle, reach in ((zoom, 1, 0.15), (angle, 0, 0.2), (theta[:, 0, 2], 0, 0.2), (theta[:, 1, 2], 0, 0.2)):
        spread = (values - middle).abs().max()
        assert 0.95 * reach < float(spread) <= reach + 1e-5


def test_light_scales_about_the_mean_and_stays_in_range() -> None:
    images = random_images()
    params = draw(brightness=0.3, contrast=0.4)
    out = render_batch(images, 16, [0.0], [1.0], params)
    for b in range(6):
        bright = images[b] / 255 * params.brightness[b]
        expected = (bright.mean() + (bright - bright.mean()) * params.contrast[b]).clamp(0, 1)
        torch.testing.assert_close(out[b], expected, atol=1e-5, rtol=0)


def test_erasing_sets_one_box_to_the_mean_and_touches_nothing_else() -> None:
    images = random_images(200)
    plain = render_batch(images, 32, [0.5], [0.25], draw(200))
    out = render_batch(images, 32, [0.5], [0.25], draw(200, erase=1.0))
    changed = (out != plain)[:, 0]
    assert bool((out[:, 0][changed] == 0).all())
    assert bool(changed.flatten(1).any(1).all())
    share = (out[:, 0] == 0).float().mean((1, 2))
    assert float(share.min()) >= 0.01
    assert float(share.max()) <= 0.36
    some = draw(400, erase=0.25).box.sum(1) > 0
    assert 70 <= int(some.sum()) <= 130


def test_switching_one_part_off_leaves_the_others_draws() -> None:
    whole, part = draw(rotate=0.2, brightness=0.2, erase=0.5), draw(brightness=0.2)
    torch.testing.assert_close(whole.brightness, part.brightness)


def test_grey_images_fill_every_channel_with_its_own_mean_and_std() -> None:
    grey = render_batch(random_images(), 20, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7], draw())
    colour = render_batch(random_images().repeat(1, 3, 1, 1), 20, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7], draw())
    torch.testing.assert_close(grey, colour)


def test_an_oblong_image_gives_its_central_square() -> None:
    images = torch.zeros(1, 1, 8, 16, dtype=torch.uint8)
    images[:, :, :, 4:12] = random_images(1, side=8)
    whole, middle = (render_batch(part, 8, [0.0], [1.0], draw(1)) for part in (images, images[..., 4:12]))
    torch.testing.assert_close(whole, middle, atol=1e-5, rtol=0)


def test_large_images_are_made_in_parts_with_the_result_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    images, params = random_images(7, channels=3), draw(7, rotate=0.2, brightness=0.2, erase=0.5, flip=0.5)
    whole = render_batch(images, 32, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7], params)
    monkeypatch.setattr("ngd_timm.data.augment._IN_CACHE", 2 * 3 * 32 * 32)
    assert torch.equal(render_batch(images, 32, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7], params), whole)


@pytest.mark.parametrize("size", [48, 64])
def test_lost_resolution_is_an_antialiased_resize_down_and_up_again(size: int) -> None:
    images, params = random_images(8, side=size), draw(8, downscale=0.7)
    out = render_batch(images, size, [0.0], [1.0], params)
    for row, lost in enumerate(params.downscale.tolist()):
        small = F.interpolate(images[row : row + 1] / 255, round(size * (1 - lost)), mode="bilinear", antialias=True)
        again = F.interpolate(small, size, mode="bilinear", antialias=True)
        torch.testing.assert_close(out[row : row + 1], again, atol=1e-5, rtol=0)
    assert float(params.downscale.max()) > 0.5


def test_blur_is_a_gaussian_of_its_share_of_the_side() -> None:
    from scipy.ndimage import gaussian_filter

    images, params = random_images(8, side=48), draw(8, blur=0.04)
    out = render_batch(images, 48, [0.0], [1.0], params)
    for row, share in enumerate(params.blur.tolist()):
        expected = gaussian_filter(images[row, 0].numpy() / 255, 48 * share, truncate=6)
        inside = slice(12, -12)  # borders are weighted anew, where scipy mirrors
        assert float((out[row, 0] - torch.from_numpy(expected).float())[inside, inside].abs().max()) < 1e-3


def test_gamma_bends_the_grey_values_by_exponents_on_both_sides_of_one() -> None:
    images, params = random_images(200), draw(200, gamma=0.5)
    out = render_batch(images, 16, [0.0], [1.0], params)
    torch.testing.assert_close(out, (images / 255) ** params.gamma[:, None, None, None], atol=1e-5, rtol=0)
    assert 0.6 < float(params.gamma.min()) < 0.65
    assert 1.55 < float(params.gamma.max()) < 1.65


def test_stretching_gives_pale_images_the_whole_range_and_flat_ones_no_noise() -> None:
    images = (random_images(200, side=32) // 4 + 100).to(torch.uint8)
    images[7] = 90
    params = draw(200, stretch=0.5)
    out = render_batch(images, 32, [0.0], [1.0], params)
    wide = out.amax((1, 2, 3)) - out.amin((1, 2, 3)) > 0.9
    assert torch.equal(wide[params.stretch], torch.arange(200)[params.stretch] != 7)
    assert 70 <= int(params.stretch.sum()) <= 130
    torch.testing.assert_close(out[~params.stretch], images[~params.stretch] / 255, atol=1e-5, rtol=0)


def test_further_parts_change_nothing_of_what_was_drawn_before() -> None:
    plain, more = draw(flip=0.5, erase=0.5), draw(flip=0.5, erase=0.5, gamma=0.5, stretch=1, blur=0.02, downscale=0.5)
    for name in ("theta", "brightness", "contrast", "box"):
        assert torch.equal(getattr(plain, name), getattr(more, name))
    images = random_images()
    assert not torch.equal(*(render_batch(images, 32, [0.0], [1.0], d) for d in (plain, more)))


def test_what_a_gpu_does_in_one_operation_is_what_slices_do() -> None:
    params = draw(40, erase=0.7)
    plain = random_images(40).float()
    boxes = plan_batch(params, 16, 16).erased
    torch.testing.assert_close(_erase_by_mask(plain.clone(), boxes), _erase(plain.clone(), boxes))


def test_a_draw_goes_to_a_device_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ngd_timm.data.augment.send", lambda values, _: values)
    params = draw(5, gamma=0.3, stretch=0.5, blur=0.1, downscale=0.4)
    moved = params.to(torch.device("cuda"))
    for field in fields(params):
        assert torch.equal(getattr(moved, field.name), getattr(params, field.name)), field.name
