"""Any timm backbone with an embedding beside its logits, and the same under registered names `ngd_<architecture>`."""

from __future__ import annotations

import copy
import difflib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.models import DefaultCfg, get_model_input_config, group_parameters, model_entrypoint, register_model
from timm.optim import auto_group_layers
from torch import Tensor, nn

from ngd_timm.core.errors import InputError, choices
from ngd_timm.models.one_pass import one_pass

if TYPE_CHECKING:
    from ngd_timm.grid.prototypes import PrototypeGrid

__all__ = ["DistillationWrapper", "wrap"]

# a timm model's attributes (pretrained_cfg, num_classes, forward_head, ...) are unknown to nn.Module's type
TimmModel: TypeAlias = Any

TIMM_ERRORS = (
    RuntimeError,
    ValueError,
    OSError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    AssertionError,
    SafetensorError,
)
"""What timm raises on a config or weights that don't fit."""


class DistillationWrapper(nn.Module):
    """A timm model (`.student`) and, where a grid is to be met, a linear projection of its pre-logits (`.projection`).

    Called plainly it is the student, bit for bit. With `return_embedding=True` the same single pass of the backbone
    also gives the embedding. Only the student is saved, exported and deployed.

    A projection that no loss uses gets a gradient of zero, so every parameter takes part in every step and
    DistributedDataParallel needs no `find_unused_parameters`, also where only the logits are used.

    Args:
        student: A timm classification model.
        embedding_dim: Width of the projection; None leaves it out and the embedding is the pre-logits.

    Shape:
        images (B, C, H, W); logits (B, num_classes); embedding (B, embedding_dim or head_hidden_size).

    Raises:
        InputError: A model without `forward_features` and `forward_head`, or whose parts don't reproduce its logits.

    Example:
        >>> model = DistillationWrapper(timm.create_model("resnet10t", num_classes=8), embedding_dim=64)
        >>> logits, embedding = model(torch.randn(2, 3, 32, 32), return_embedding=True)
        >>> tuple(logits.shape), tuple(embedding.shape)
        ((2, 8), (2, 64))
    """

    student: TimmModel

    def __init__(self, student: TimmModel, embedding_dim: int | None = None) -> None:
        super().__init__()
        if isinstance(student, DistillationWrapper):
            raise InputError("this model is wrapped already; use it as it is, or wrap its .student")
        _require_classifier(student)
        self.student = student
        self._see_head()
        self.projection = None if embedding_dim is None else nn.Linear(self._width, embedding_dim, bias=False)
        self.embedding_dim = embedding_dim or self._width

    def _see_head(self) -> None:
        self.classifier_is_last, self._head_norms, self._width = one_pass(self.student)

    def forward(self, images: Tensor, return_embedding: bool = False) -> Any:
        if not return_embedding:
            return self._tied(self.student(images))
        logits, embedding = self.heads(self.student.forward_features(images))
        return self._tied(logits), embedding

    def _tied(self, logits: Any) -> Any:
        """The same logits, through which the projection gets a gradient of zero."""
        if self.projection is None or not torch.is_grad_enabled():
            return logits
        zero = self.projection.weight[:0].sum()  # of no element, so that not even an infinite weight shows
        return logits + zero if isinstance(logits, Tensor) else tuple(part + zero for part in logits)

    def heads(self, features: Any) -> tuple[Tensor, Tensor]:
        """Logits and embedding from what the student's `forward_features` gave."""
        if self.classifier_is_last:
            pre_logits = self.student.forward_head(features, pre_logits=True)
            logits = self.student.get_classifier()(pre_logits)
        else:
            logits = self.student.forward_head(features)
            norms = [self.student.get_submodule(name) for name in self._head_norms]
            # where there is no batch norm in the head, nothing stands in the way of torch.compile
            with batch_norm_statistics_kept(norms) if norms else nullcontext():
                pre_logits = self.student.forward_head(features, pre_logits=True)
        return logits, pre_logits if self.projection is None else self.projection(pre_logits)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        return self.student.pretrained_cfg

    @property
    def num_classes(self) -> int:
        return self.student.num_classes

    @property
    def num_features(self) -> int:
        return self.student.num_features

    @property
    def head_hidden_size(self) -> int:
        return self._width

    @property
    def in_chans(self) -> int:
        return input_channels(self.student)

    def get_classifier(self) -> nn.Module:
        """The student's classifier."""
        return self.student.get_classifier()

    def reset_classifier(self, num_classes: int, *args: Any, **kwargs: Any) -> None:
        """A new classifier for the student; the projection stays.

        Raises:
            InputError: `num_classes=0`, or a head that leaves no single vector a picture.
        """
        if num_classes == 0:
            raise InputError("num_classes=0 would leave no logits to distil into; give num_classes")
        self.student.reset_classifier(num_classes, *args, **kwargs)
        self._see_head()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in the student."""
        self.student.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """The student's parameters without weight decay, under their names here."""
        names = self.student.no_weight_decay() if hasattr(self.student, "no_weight_decay") else ()
        return {f"student.{name}" for name in names}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """The student's layer groups, the projection in the last one (as timm's feature distillation task does)."""
        if hasattr(self.student, "group_matcher"):
            layers = group_parameters(self.student, self.student.group_matcher(coarse=coarse), reverse=True)
        else:  # what timm does for such a model
            layers = auto_group_layers(self.student)
        last = max(layers.values(), default=0)
        return lambda name: layers.get(name.removeprefix("student."), last) if name.startswith("student.") else last


def wrap(
    model: str | TimmModel,
    num_classes: int | None = None,
    grid: PrototypeGrid | None = None,
    embedding_dim: int | None = None,
    **kwargs: Any,
) -> DistillationWrapper:
    """Wrap a timm backbone for distillation.

    Args:
        model: A timm name (tags and `hf-hub:` / `local-dir:` sources work) or a timm model.
        num_classes: Classes of the logits; for a name the default is 8, a model keeps its own.
        grid: Its width becomes the embedding's.
        embedding_dim: Width of the embedding without a grid.
        **kwargs: For `timm.create_model`, where `model` is a name.

    Raises:
        InputError: An unknown name, a grid and an `embedding_dim` that disagree, options given along with a model, a
            `local-dir:` whose weights and config.json disagree.

    Example:
        >>> model = wrap("resnet10t", num_classes=8, embedding_dim=64, in_chans=1)
        >>> model.student.__class__.__name__
        'ResNet'
    """
    if grid is not None:
        if embedding_dim not in (None, grid.dim):
            raise InputError(f"embedding_dim={embedding_dim} but the grid has {grid.dim}; give one of the two")
        embedding_dim = grid.dim
    if isinstance(model, str):
        if kwargs.get("features_only"):
            raise InputError("features_only models have no logits to distil; leave features_only out")
        if ":" not in model and not timm.is_model(model):
            raise choices("timm model", model, similar_models(model))
        source, _, folder = model.partition(":")
        if source == "local-dir" and kwargs.get("pretrained") and (Path(folder) / "model.safetensors").is_file():
            model_for_weights(folder, folder)  # what is adapted to other classes or channels fits its own config first
        model = timm.create_model(model, num_classes=8 if num_classes is None else num_classes, **kwargs)
    elif kwargs:
        raise InputError(f"{', '.join(kwargs)} can't be applied to a model that exists; give its timm name instead")
    else:
        _require_classifier(model)
        if num_classes is not None and num_classes != model.num_classes:
            model.reset_classifier(num_classes)
    return DistillationWrapper(model, embedding_dim)


def similar_models(name: str) -> list[str]:
    """Up to five timm names like this one, for an error message."""
    names = [n for n in timm.list_models() if not n.startswith("ngd_")]
    return difflib.get_close_matches(name, names, n=5, cutoff=0.3) or ["any name of timm.list_models()"]


def model_for_weights(folder: str | Path, shown: str) -> TimmModel:
    """The timm model that config.json describes, with random weights, once model.safetensors beside it fits.

    timm alone takes much that doesn't: with another `num_classes` it drops the classifier and loads what else it finds.

    Raises:
        InputError: A broken file, or the two files disagree; messages call the folder `shown`.
    """
    config, weights = (Path(folder) / name for name in ("config.json", "model.safetensors"))
    try:
        model: TimmModel = timm.create_model(f"local-dir:{folder}", pretrained=False)
        parts = _with_classes(json.loads(config.read_text(encoding="utf-8")))
        with safe_open(weights, framework="pt") as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except TIMM_ERRORS as error:
        raise unreadable(shown, error) from None
    reason = "label_offset in config.json takes rows from it" if model.pretrained_cfg.get("label_offset") else None
    for where, number in parts.items():
        if number != model.num_classes:
            reason = f"{where} is {number} in config.json, which makes a model of {model.num_classes} classes"
    reason = reason or _tensors_differ(stored, {name: tuple(t.shape) for name, t in model.state_dict().items()})
    if reason:
        raise InputError(f"{shown}: not a readable student ({reason}); save it, or fetch it, again")
    return model


def unreadable(shown: str, error: Exception) -> InputError:
    """The one line for what timm raised on a student's folder."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(f"{shown}: not a readable student ({reason})")


def _with_classes(config: dict[str, Any]) -> dict[str, Any]:
    """Every number of classes in config.json, by its place."""
    places = {"num_classes": config}
    places |= {f"{key}.num_classes": config[key] for key in ("model_args", "pretrained_cfg") if key in config}
    return {where: part["num_classes"] for where, part in places.items() if "num_classes" in part}


def _tensors_differ(stored: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> str | None:
    """The first tensor that differs and how many do, in words."""
    for names, what in (
        ([name for name in wanted if name not in stored], "model.safetensors lacks {}, which config.json's model has"),
        ([name for name in stored if name not in wanted], "model.safetensors has {}, which config.json's model lacks"),
    ):
        if names:
            others = f" and {len(names) - 1} other tensors" if len(names) > 1 else ""
            return what.format(f"{names[0]}{others}")
    other = [name for name in wanted if stored[name] != wanted[name]]
    if not other:
        return None
    name = other[0]
    others = f", and {len(other) - 1} other tensors differ" if len(other) > 1 else ""
    return f"{name} is {stored[name]} in model.safetensors, {wanted[name]} by config.json{others}"


def _require_classifier(model: TimmModel) -> None:
    for part in ("forward_features", "forward_head", "get_classifier", "num_classes", "pretrained_cfg"):
        if not hasattr(model, part):
            raise InputError(
                f"{type(model).__name__} has no {part}: wrap a timm classification model (not features_only, not an "
                "encoder), for example timm.create_model('resnet18', num_classes=8)"
            )


def input_channels(model: TimmModel) -> int:
    """Channels that a timm model takes, whatever its pretrained_cfg was written for."""
    return int(get_model_input_config(model)["input_size"][0])


def normalisation(model: TimmModel) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation a channel; a grey model with a colour model's config takes their mean."""
    cfg, channels = model.pretrained_cfg, input_channels(model)
    mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
    if len(mean) == channels:
        return mean, std
    return (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels


@contextmanager
def batch_norm_statistics_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block batch norm in training normalises by the batch as usual, but its running statistics stay."""
    layers = [
        m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training and m.track_running_stats
    ]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def _register(architecture: str) -> None:
    def entrypoint(
        pretrained: bool = False, grid: PrototypeGrid | None = None, embedding_dim: int | None = None, **kwargs: Any
    ) -> DistillationWrapper:
        kwargs.setdefault("num_classes", 8)
        return wrap(architecture, grid=grid, embedding_dim=embedding_dim, pretrained=pretrained, **kwargs)

    name = f"ngd_{architecture}"
    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"timm's {architecture} in a DistillationWrapper."
    entrypoint.__module__ = __name__
    source = getattr(sys.modules[model_entrypoint(architecture).__module__], "default_cfgs", {}).get(architecture)
    if isinstance(source, DefaultCfg):
        default_cfgs[name] = _same_weights(architecture, source)
    register_model(entrypoint)


def _same_weights(architecture: str, source: DefaultCfg) -> DefaultCfg:
    """timm's tags for a name of ours: 'timm/' stands for a repository of the model's own name, so it is spelt out."""
    cfgs = {}
    for tag, cfg in source.cfgs.items():
        if cfg.hf_hub_id == "timm/":
            cfg = copy.copy(cfg)
            cfg.hf_hub_id = f"timm/{architecture}.{tag}" if tag else f"timm/{architecture}"
        cfgs[tag] = cfg
    return DefaultCfg(tags=source.tags, cfgs=cfgs, is_pretrained=source.is_pretrained)


# register_model looks here for a name's pretrained tags
default_cfgs: dict[str, DefaultCfg] = {}
for _name in timm.list_models():
    if not _name.startswith("ngd_"):
        _register(_name)
# register_model adds every name to __all__; a star import of 1,400 functions helps nobody
__all__ = ["DistillationWrapper", "wrap"]
