"""Convolutions on tiny maps as products: the convolution's values and gradients, and nothing else changed."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from ngd_timm.core.small_maps import SmallMapConv2d, _Products, crop_to_one_size, small_maps_as_products


@pytest.mark.parametrize(("side", "stride"), [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (4, 2), (5, 3)])
def test_values_and_gradients_are_the_convolutions(side: int, stride: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, side, side, dtype=torch.float64, requires_grad=True)
    w = torch.randn(7, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    ours, theirs = _Products.apply(x, w, (stride, stride)), F.conv2d(x, w, stride=stride, padding=1)
    torch.testing.assert_close(ours, theirs)
    g = torch.randn_like(theirs)
    for a, b in zip(torch.autograd.grad(ours, (x, w), g), torch.autograd.grad(theirs, (x, w), g), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_training_step_of_a_resnet_is_the_same_up_to_rounding(bf16: bool) -> None:
    torch.manual_seed(0)
    plain = timm.create_model("resnet10t", num_classes=8, in_chans=1, zero_init_last=False).train()
    fast = small_maps_as_products(copy.deepcopy(plain))
    assert sum(isinstance(m, SmallMapConv2d) for m in fast.modules()) > 3
    images = torch.randn(8, 1, 64, 64)
    losses = []
    for model in (plain, fast):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            losses.append(F.cross_entropy(model(images).float(), torch.arange(8)))
        losses[-1].backward()
    tolerance = 3e-2 if bf16 else 1e-4
    torch.testing.assert_close(losses[1], losses[0], rtol=tolerance, atol=tolerance)
    a, b = (model.layer4[0].conv1.weight.grad.flatten() for model in (plain, fast))
    assert float(F.cosine_similarity(a, b, dim=0)) > (0.98 if bf16 else 0.9999)


@pytest.mark.parametrize(("side", "share"), [(16, 0.3), (32, 0.5), (64, 1.0)])
def test_a_model_cropped_to_one_size_computes_and_learns_the_same_with_fewer_weights(side: int, share: float) -> None:
    torch.manual_seed(0)
    plain = timm.create_model("resnet10t", num_classes=8, in_chans=5, zero_init_last=False).double()
    images = torch.randn(4, 5, side, side, dtype=torch.float64)
    cropped = crop_to_one_size(small_maps_as_products(copy.deepcopy(plain)), images[:1])
    assert cropped.training
    few, many = (sum(p.numel() for p in model.parameters()) for model in (cropped, plain))
    assert few <= share * many
    for model in (plain, cropped):
        F.cross_entropy(model(images), torch.arange(4)).backward()
    for (name, ours), theirs in zip(cropped.named_parameters(), plain.parameters(), strict=True):
        grad, first = theirs.grad, 1 if ours.shape != theirs.shape else 0
        assert grad is not None
        size = ours.shape[-1]
        kept = grad[..., first : first + size, first : first + size] if grad.ndim == 4 else grad
        torch.testing.assert_close(ours.grad, kept, msg=name)
        torch.testing.assert_close(kept.square().sum(), grad.square().sum())  # the other taps learn nothing
    torch.testing.assert_close(cropped.eval()(images), plain.eval()(images))


def test_evaluation_state_dict_and_copies_are_untouched() -> None:
    plain = timm.create_model("resnet10t", num_classes=8).eval()
    fast = small_maps_as_products(copy.deepcopy(plain))
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(fast(images), plain(images))
    assert list(fast.state_dict()) == list(plain.state_dict())
    copied = copy.deepcopy(fast)
    assert isinstance(copied.layer4[0].conv1, SmallMapConv2d)
    assert copied.layer4[0].conv1.weight is not fast.layer4[0].conv1.weight


def test_convolutions_of_another_kind_are_left_alone() -> None:
    others = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, bias=True),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(4, 4, 1, bias=False),
    )
    assert not any(isinstance(m, SmallMapConv2d) for m in small_maps_as_products(others).modules())
