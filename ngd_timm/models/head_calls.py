"""Whether one call of a timm model's head gives logits and pre-logits, or each of them needs a call of its own."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from timm.layers import AttentionPool2d, RotAttentionPool2d
from timm.models import get_model_input_config
from torch import Tensor, nn

from ngd_timm.core.errors import InputError, one_line
from ngd_timm.models.timm_folder import TIMM_ERRORS

_ONE_CALL = """
    beit byoanet byobnet cait coat convit convmixer convnext cpubone csatv2 cspnet cspnext davit deepseek_vit deit
    densenet edgenext efficientnet efficientvit_mit eva fasternet fastvit focalnet gcvit gemma4_vit ghostnet hardcorenas
    hgnet hiera hieradet_sam2 hrnet iformer inception_next inception_resnet_v2 inception_v3 inception_v4 lowformer
    mambaout maxxvit metaformer mlp_mixer mobilenetv3 mobilenetv5 mobilevit naflexvit nasnet nest nextvit nfnet pit
    pnasnet pvt_v2 qwen3_vit rdnet regnet repghost repvit res2net resnest resnet rexnet selecsls senet sknet starnet
    swin_transformer swin_transformer_v2 swin_transformer_v2_cr tiny_vit tnt tresnet twins vgg visformer
    vision_transformer vision_transformer_hybrid vision_transformer_relpos vitamin vovnet xception xception_aligned xcit
"""
_TWO_CALLS = """
    crossvit dla dpn efficientformer efficientformer_v2 efficientvim efficientvit_msra lcnetv2 levit mvitv2 resnetv2
    shvit swiftformer vision_transformer_sam volo
"""
ONE_CALL, TWO_CALLS = frozenset(_ONE_CALL.split()), frozenset(_TWO_CALLS.split())
"""Modules of timm whose classifier, applied to the pre-logits, gives the model's logits, and those where it doesn't.

tests/families.py verifies both. In lcnetv2 and mvitv2 dropout lies between the two. No module of TWO_CALLS has batch
norm before its pre-logits. In neither set: sequencer, whose LSTM takes longer on the meta device than by numbers, and
what later versions of timm add.
"""


class HeadCalls(NamedTuple):
    """How a model's head is to be called."""

    classifier_is_last: bool
    """`get_classifier()(pre-logits)` gives the logits. If not, logits and pre-logits take a call of the head each."""
    norms: tuple[str, ...]
    """Names of the batch-norm modules that two such calls would update twice."""
    width: int
    """Of the pre-logits."""


def head_calls(model: Any) -> HeadCalls:
    """Check that `forward_head(forward_features(x))` is a model's forward, and find how its head is to be called.

    Classes of timm are looked up in the sets above and run on the meta device for their shapes, others by numbers.
    """
    name, size = type(model).__name__, tuple(get_model_input_config(model)["input_size"])
    if model.num_classes == 0:
        raise InputError(f"{name} has num_classes=0 and so no logits; give num_classes")
    package, _, family = type(model).__module__.rpartition(".")
    replaced = {"forward", "forward_features", "forward_head"} & vars(model).keys()
    seen = None
    if package == "timm.models" and family in ONE_CALL | TWO_CALLS and not replaced:
        with suppress(*TIMM_ERRORS):
            seen = _run(_without_data(model), size)
    try:
        parts_are_whole, classifier_is_last, norms, shapes = seen or _run(_perturbed(model), size)
    except TIMM_ERRORS as error:
        raise InputError(
            f"{name} can't run on images of its own input size {size} ({one_line(error)}); choose another "
            "in_chans, img_size, global_pool or backbone"
        ) from None
    if not parts_are_whole:
        raise InputError(
            f"{name}: forward_head(forward_features(x)) is not its forward(x), so logits and embedding can't come from "
            "one pass; choose another timm backbone"
        )
    for what, shape in shapes.items():
        if len(shape) != 2:
            raise InputError(f"{name} gives {what} of shape {shape}, not (2, …); leave global_pool at its default")
    # CLIP's ResNets compute logits at every place and pool them then, which rounds otherwise
    pooled = any(isinstance(module, (AttentionPool2d, RotAttentionPool2d)) for module in model.modules())
    is_last = classifier_is_last and not pooled and not (seen and family in TWO_CALLS)
    return HeadCalls(is_last, norms, shapes["pre-logits"][1])


def _without_data(model: nn.Module) -> Any:
    """A copy on the meta device; the weights are not copied on the way."""
    memo: dict[int, Any] = {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
    return copy.deepcopy(model, memo)


@torch.no_grad()
def _perturbed(model: nn.Module) -> Any:
    """A copy on the CPU with noise on its weights: a classifier of zeros would make any two logits equal."""
    probe = copy.deepcopy(model).cpu().float()
    generator = torch.Generator().manual_seed(0)
    for p in probe.parameters():
        p.add_(0.02 * torch.randn(p.shape, generator=generator))
    return probe


@torch.no_grad()
def _run(probe: Any, size: tuple[int, ...]) -> tuple[bool, bool, tuple[str, ...], dict[str, tuple[int, ...]]]:
    """Whether the parts are the whole, whether the classifier is last, batch norm of the head, and shapes."""
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(1)).to(next(probe.parameters()))
    parts_are_whole, classifier_is_last, norms = True, True, set[str]()
    with torch.random.fork_rng(devices=[]):
        # shapes are those of evaluation, and all that the meta device shows
        for training in (False,) if images.is_meta else (True, False):
            probe.train(training)
            random = torch.get_rng_state()
            logits = probe(images)
            torch.set_rng_state(random)
            features = probe.forward_features(images)
            random = torch.get_rng_state()
            parts_are_whole &= _equal(probe.forward_head(features), logits)
            torch.set_rng_state(random)
            before = {name: b.clone() for name, b in probe.named_buffers()}
            pre_logits = probe.forward_head(features, pre_logits=True)
            norms |= {name.rpartition(".")[0] for name, b in probe.named_buffers() if not _equal(b, before[name])}
            try:
                classifier_is_last &= _equal(probe.get_classifier()(pre_logits), logits)
            except TIMM_ERRORS:
                classifier_is_last = False
    shapes = {"logits": tuple(logits.shape), "pre-logits": tuple(pre_logits.shape)}
    return parts_are_whole, classifier_is_last, tuple(sorted(norms)), shapes


def _equal(a: Any, b: Any) -> bool:
    """Whether two outputs, of one head or of several, are equal to the bit; on the meta device, of one shape."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and (a.is_meta or torch.equal(a, b))
    return type(a) is type(b) and len(a) == len(b) and all(map(_equal, a, b))
