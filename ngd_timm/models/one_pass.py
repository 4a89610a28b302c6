"""Proof that logits and pre-logits of a timm model can come from one pass, at next to no cost.

The model's graphs are recorded on the meta device, where tensors have shapes and no data, and compared: equal graphs
compute equal bits, whatever the weights (a classifier of zeros would make any two agree) and the size of the model.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from timm.models import get_model_input_config
from torch import Tensor, nn

# torch documents no other place for it; its own flop counter is built on the same two
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ngd_timm.core.errors import InputError

__all__ = ["OnePass", "one_pass"]

# of a graph that needs numbers, which the meta device has not, or of a classifier that takes other pre-logits
_FAILURES = (RuntimeError, NotImplementedError, TypeError, AttributeError, IndexError, ValueError)


class OnePass(NamedTuple):
    """How a model's head is to be called.

    Attributes:
        classifier_is_last: `get_classifier()(pre-logits)` is the model's forward, in eval and in training (dropout).
            Where it is not, logits and pre-logits take a call of `forward_head` each.
        head_norms: Names of the modules whose buffers change on the way to the pre-logits: batch norm in the head.
        width: Of the pre-logits.
    """

    classifier_is_last: bool
    head_norms: tuple[str, ...]
    width: int


def one_pass(model: Any) -> OnePass:
    """Prove that `forward_head(forward_features(x))` is a timm model's forward, and see how its head is to be called.

    Args:
        model: A timm classification model, on any device.

    Raises:
        InputError: No logits, or not one vector of them and of pre-logits a picture, or a forward that its parts don't
            reproduce.

    Example:
        >>> import timm
        >>> one_pass(timm.create_model("test_resnet", num_classes=8))
        OnePass(classifier_is_last=True, head_norms=(), width=96)
        >>> one_pass(timm.create_model("mobilenetv4_conv_small_035", num_classes=8)).head_norms
        ('norm_head',)
    """
    name = type(model).__name__
    if model.num_classes == 0:
        raise InputError(f"{name} has num_classes=0 and so no logits; give num_classes")
    modes = _recorded(model) or _computed(model)
    if not all(mode.parts_are_whole for mode in modes):
        raise InputError(
            f"{name}: forward_head(forward_features(x)) is not its forward(x), so logits and embedding can't come from "
            "one pass; choose another timm backbone"
        )
    for what, shape in (("logits", modes[0].logits_shape), ("pre-logits", modes[0].pre_logits_shape)):
        if len(shape) != 2:
            raise InputError(
                f"{name} gives {what} of shape {shape} for 2 pictures, not (2, …); leave global_pool at its default"
            )
    return OnePass(all(mode.classifier_is_last for mode in modes), modes[-1].head_norms, modes[0].pre_logits_shape[-1])


class _Mode(NamedTuple):
    parts_are_whole: bool
    classifier_is_last: bool
    head_norms: tuple[str, ...]
    logits_shape: tuple[int, ...]
    pre_logits_shape: tuple[int, ...]


def _recorded(model: Any) -> list[_Mode] | None:
    """Eval and training compared as graphs; None where that proves nothing, in either direction."""
    if any(isinstance(m, nn.RNNBase) for m in model.modules()):
        return None  # the meta device unrolls every step: slower than numbers
    meta = _without_data(model)
    images = torch.empty(2, *_input_size(model), dtype=next(model.parameters()).dtype, device="meta")
    try:
        modes = [_record(meta.eval(), images), _record(meta.train(), images)]
    except _FAILURES:
        return None
    return modes if all(mode.parts_are_whole for mode in modes) else None


def _input_size(model: Any) -> tuple[int, int, int]:
    channels, height, width = get_model_input_config(model)["input_size"]
    return channels, height, width


def _without_data(model: Any) -> Any:
    """A copy on the meta device; the weights are not copied on the way."""
    memo: dict[int, Any] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
    for b in model.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    return copy.deepcopy(model, memo)


class _Graph(TorchDispatchMode):
    """Gives every tensor a digest of how it came about, through views, in-place changes and random draws."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.origin: dict[int, int] = {}
        self.kept: list[Tensor] = []  # an id names a tensor only as long as it lives
        self.changed: dict[int, int] = {}
        self.draws = 0
        for name, tensor in (("images", images), *_state(model)):
            self._name(tensor, name)

    def fork(self) -> _Graph:
        other = copy.copy(self)
        other.origin, other.kept, other.changed = dict(self.origin), list(self.kept), dict(self.changed)
        return other

    def digest(self, tensor: Tensor) -> int:
        if id(tensor) not in self.origin:  # made outside the graph: equal to itself and to nothing else
            self._name(tensor, ("constant", id(tensor)))
        return hash((self.origin[id(tensor)], self.changed.get(_storage(tensor))))

    def _name(self, tensor: Tensor, origin: object) -> None:
        self.origin[id(tensor)] = hash(origin)
        self.kept.append(tensor)

    def _seen(self, argument: Any) -> object:
        if isinstance(argument, Tensor):
            return self.digest(argument)
        if isinstance(argument, (list, tuple)):
            return tuple(self._seen(a) for a in argument)
        return repr(argument)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        seen = (self._seen(args), [(name, self._seen(value)) for name, value in kwargs.items()])
        random, written = _traits(func)
        self.draws += random
        operation = hash((func, repr(seen), self.draws))
        outputs = func(*args, **kwargs)
        given = {id(t) for i, name in written for t in tree_leaves(args[i] if i < len(args) else kwargs.get(name))}
        for i, output in enumerate(outputs if isinstance(outputs, (list, tuple)) else (outputs,)):
            if isinstance(output, Tensor) and id(output) not in given:
                self._name(output, (operation, i))
        for i, name in written:
            for t in tree_leaves(args[i] if i < len(args) else kwargs.get(name)):
                if isinstance(t, Tensor):
                    self.changed[_storage(t)] = hash((operation, i, self.changed.get(_storage(t))))
        return outputs


@functools.cache
def _traits(func: Any) -> tuple[bool, tuple[tuple[int, str], ...]]:
    """Whether an operation draws random numbers, and the places and names of the arguments that it writes to."""
    written = tuple(
        (i, a.name) for i, a in enumerate(func._schema.arguments) if a.alias_info is not None and a.alias_info.is_write
    )
    return torch.Tag.nondeterministic_seeded in func.tags, written


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _features_on_the_way(model: Any, images: Tensor, snapshot: Callable[[], Any]) -> tuple[Any, Any, Any]:
    """One forward: the logits, what `forward_features` gave in it, and the snapshot taken then."""
    inner, calls = model.forward_features, []
    alone = _arguments(inner, images)

    def watched(*args: Any, **kwargs: Any) -> Any:
        given = _arguments(inner, *args, **kwargs)  # an argument at its default is as good as none
        features = inner(*args, **kwargs)
        calls.append((all(given[name] is alone[name] for name in alone), features, snapshot()))
        return features

    model.forward_features = watched
    try:
        logits = model(images)
    finally:
        del model.forward_features
    if len(calls) != 1 or not calls[0][0]:
        raise RuntimeError("forward does not call forward_features once, with the pictures")
    return logits, calls[0][1], calls[0][2]


def _arguments(function: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


@torch.no_grad()
def _record(model: Any, images: Tensor) -> _Mode:
    with _Graph(model, images) as whole:
        logits, features, parts = _features_on_the_way(model, images, whole.fork)
    wanted = _digests(whole, logits)
    with parts.fork() as head:
        parts_are_whole = _digests(head, model.forward_head(features)) == wanted
    with parts.fork() as way:
        pre_logits = model.forward_head(features, pre_logits=True)
        changed = {storage for storage, digest in way.changed.items() if parts.changed.get(storage) != digest}
        try:
            classifier_is_last = _digests(way, model.get_classifier()(pre_logits)) == wanted
        except _FAILURES:
            classifier_is_last = False
    norms = tuple(
        name
        for name, module in model.named_modules()
        if any(_storage(b) in changed for b in module.buffers(recurse=False))
    )
    return _Mode(parts_are_whole, classifier_is_last, norms, _shape(logits), _shape(pre_logits))


def _digests(graph: _Graph, outputs: Any) -> list[int]:
    return [graph.digest(t) for t in tree_leaves(outputs)]


def _shape(outputs: Any) -> tuple[int, ...]:
    """Of a tensor, or of the first of several (two heads in training)."""
    return tuple(tree_leaves(outputs)[0].shape)


@torch.no_grad()
def _computed(model: Any) -> list[_Mode]:
    """Eval and training compared by numbers, on a copy with perturbed weights, where the meta device can't tell."""
    probe = copy.deepcopy(model).cpu().float()
    generator = torch.Generator().manual_seed(0)
    for p in probe.parameters():
        p.add_(0.02 * torch.randn(p.shape, generator=generator))
    size = _input_size(model)
    images = torch.randn(2, *size, generator=generator)
    try:
        with torch.random.fork_rng(devices=[]):
            return [_compute(probe.eval(), images), _compute(probe.train(), images)]
    except RuntimeError as error:
        raise InputError(
            f"{type(model).__name__} can't run on pictures of its own input size {size} "
            f"({str(error).splitlines()[0]}); choose another in_chans, img_size, global_pool or backbone"
        ) from None


def _compute(probe: Any, images: Tensor) -> _Mode:
    torch.manual_seed(0)
    logits = probe(images)
    torch.manual_seed(0)
    features = probe.forward_features(images)
    random = torch.get_rng_state()
    parts_are_whole = _equal(probe.forward_head(features), logits)
    torch.set_rng_state(random)
    before = {name: b.clone() for name, b in probe.named_buffers()}
    pre_logits = probe.forward_head(features, pre_logits=True)
    norms = {name.rpartition(".")[0] for name, b in probe.named_buffers() if not torch.equal(b, before[name])}
    try:
        classifier_is_last = _equal(probe.get_classifier()(pre_logits), logits)
    except _FAILURES:
        classifier_is_last = False
    return _Mode(parts_are_whole, classifier_is_last, tuple(sorted(norms)), _shape(logits), _shape(pre_logits))


def _equal(a: Any, b: Any) -> bool:
    first, second = tree_leaves(a), tree_leaves(b)
    return len(first) == len(second) and all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
