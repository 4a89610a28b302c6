"""What the losses share: targets as weights, unit vectors without a singular gradient, gathering across ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ngd_timm.core.affect import anchors
from ngd_timm.core.distributed import distributed
from ngd_timm.core.errors import InputError

IGNORED = -100  # the class index of a row that counts nothing, as in torch's cross_entropy
_ZERO = 1e-3


def at_least_float32(x: Tensor) -> Tensor:
    """float64 stays, everything narrower becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def unit(x: Tensor) -> Tensor:
    """Rows of `x` (..., D) scaled to length 1, in at least float32; one without an entry above 1e-3 becomes 0.

    Such a row gets no gradient, which grows as 1/length and would overflow in fp16.
    """
    x = at_least_float32(x)
    scale = x.detach().abs().amax(dim=-1, keepdim=True)
    nonzero = scale > _ZERO
    x = torch.where(nonzero, x / torch.where(nonzero, scale, 1), 0)
    length = torch.linalg.vector_norm(torch.where(nonzero, x, 1), dim=-1, keepdim=True)
    return torch.where(nonzero, x / length, 0)


def class_weight_matrix(target: Tensor, num_classes: int, like: Tensor) -> Tensor:
    """Targets (B,) or (B, C) as a (B, C) matrix of weights in the dtype of `like`; -100 gives a row of zeros."""
    if target.ndim == 1 and not target.is_floating_point():
        index = target.long()
        counted = index != IGNORED
        rows = torch.nn.functional.one_hot(torch.where(counted, index, 0), num_classes)
        return (rows * counted[:, None]).to(like.dtype)
    if target.ndim == 2 and target.shape[1] == num_classes:
        return target.to(like.dtype)
    raise InputError(
        f"target must be class indices (B,) or weights (B, {num_classes}), got {target.dtype} {tuple(target.shape)}"
    )


def class_places(classes: Sequence[str], given: Tensor | None) -> Tensor:
    """(C, 2) valence/arousal of the classes: those `given`, else `affect.anchors`."""
    places = torch.from_numpy(anchors(classes)) if given is None else given.float()
    if places.shape != (len(classes), 2):
        raise InputError(f"class_anchors must be ({len(classes)}, 2), got {tuple(places.shape)}")
    return places


def mean_by(total: Tensor, weight: Tensor, gather_distributed: bool = False) -> Tensor:
    """A sum over the batch divided by its weight (0 where that is 0), or by the mean weight of all ranks.

    Losses and gradients, averaged over the ranks as DistributedDataParallel does, are then those of the joined batch.
    """
    weight = weight.detach()
    if gather_distributed and distributed():
        weight = weight.clone()
        dist.all_reduce(weight)
        weight = weight / dist.get_world_size()
    return total / torch.where(weight > 0, weight, 1)


class _Gather(torch.autograd.Function):
    """Rows of all ranks; a rank's gradient is the sum of what all ranks' losses have for its rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padding = x.new_zeros(max(counts) - x.shape[0], *x.shape[1:])
        padded = torch.cat([x, padding]).contiguous()
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.split(ctx.counts)[dist.get_rank()], None


def gather_with_gradient(x: Tensor) -> Tensor:
    """Concatenate `x` (B_r, ...) of all ranks; `dist.all_gather` by itself would cut the graph."""
    sizes = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([x.shape[0]], device=x.device))
    return _Gather.apply(x, [int(size) for size in sizes])
