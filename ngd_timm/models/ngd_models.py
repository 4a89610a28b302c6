"""Any timm backbone with an embedding beside its logits, and the same under registered names `ngd_<architecture>`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import timm
import torch
from timm.models import (
    DefaultCfg,
    get_arch_pretrained_cfgs,
    get_model_input_config,
    group_parameters,
    register_model,
)
from timm.optim import auto_group_layers
from torch import Tensor, nn

from ngd_timm.core.errors import InputError, choices
from ngd_timm.models.head_calls import head_calls
from ngd_timm.models.timm_folder import (
    FILES,
    backbone_folder,
    backbone_repository,
    open_backbone,
    published,
    read_model,
)

if TYPE_CHECKING:
    from ngd_timm.grid.prototypes import PrototypeGrid

__all__ = ["DistillationWrapper", "wrap"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

# a timm model's attributes (pretrained_cfg, num_classes, forward_head, ...) are unknown to nn.Module's type
TimmModel: TypeAlias = Any


class DistillationWrapper(nn.Module):
    """A timm model (`.student`) and, where there is a grid, a linear projection of its pre-logits (`.projection`).

    Called plainly it is the student, bit for bit. With `return_embedding=True` the same single pass of the backbone
    also gives the embedding, with `return_features=True` the pre-logits as a third. Only the student is saved, exported
    and deployed. A projection that no loss uses gets a gradient of zero, so DistributedDataParallel needs no
    `find_unused_parameters`.

    Args:
        student: A timm classification model.
        embedding_dim: Width of the projection; None leaves it out and the embedding is the pre-logits.

    Shape:
        images (B, C, H, W); logits (B, num_classes); embedding (B, embedding_dim or head_hidden_size); features (B,
        head_hidden_size).

    Raises:
        InputError: A model without `forward_features` and `forward_head`, or whose parts don't reproduce its logits.

    Examples:
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
        self._find_head_calls()
        self.projection = None if embedding_dim is None else nn.Linear(self._width, embedding_dim, bias=False)
        self.embedding_dim = embedding_dim or self._width

    def _find_head_calls(self) -> None:
        self.classifier_is_last, self._head_norms, self._width = head_calls(self.student)

    def forward(self, images: Tensor, return_embedding: bool = False, return_features: bool = False) -> Any:
        """Logits; with `return_embedding` (logits, embedding); with `return_features` (logits, embedding, features)."""
        if not (return_embedding or return_features):
            return self._tied(self.student(images))
        logits, embedding, features = self.heads(self.student.forward_features(images))
        return (self._tied(logits), embedding, features)[: 3 if return_features else 2]

    def _tied(self, logits: Any) -> Any:
        """The same logits, through which the projection gets a gradient of zero."""
        if self.projection is None or not torch.is_grad_enabled():
            return logits
        zero = self.projection.weight[:0].sum()  # of no element, so that not even an infinite weight shows
        return logits + zero if isinstance(logits, Tensor) else tuple(part + zero for part in logits)

    def heads(self, features: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, embedding and pre-logits from what the student's `forward_features` gave."""
        if self.classifier_is_last:
            pre_logits = self.student.forward_head(features, pre_logits=True)
            logits = self.student.get_classifier()(pre_logits)
        else:
            logits = self.student.forward_head(features)
            norms = [self.student.get_submodule(name) for name in self._head_norms]
            # where there is no batch norm in the head, nothing stands in the way of torch.compile
            with batch_norm_statistics_kept(norms) if norms else nullcontext():
                pre_logits = self.student.forward_head(features, pre_logits=True)
        return logits, pre_logits if self.projection is None else self.projection(pre_logits), pre_logits

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        return self.student.pretrained_cfg

    @property
    def num_classes(self) -> int:
        return self.student.num_classes

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
        """Give the student a new classifier; the projection stays."""
        if num_classes == 0:
            raise InputError("num_classes=0 would leave no logits to distil into; give num_classes")
        self.student.reset_classifier(num_classes, *args, **kwargs)
        self._find_head_calls()

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
    projection: Literal["linear", "none"] = "linear",
    **kwargs: Any,
) -> DistillationWrapper:
    """Wrap a timm backbone for distillation.

    The paper aligns "student features" with the prototypes. Their widths differ as a rule, so by default a learned
    linear projection lies between, which is thrown away at deployment: our reading.

    Args:
        model: A timm name (tags and `hf-hub:` / `local-dir:` sources work; from the Hub only safetensors), a timm
            model, or transformers' `TimmWrapperForImageClassification`, whose `timm_model` is wrapped.
        num_classes: Classes of the logits; for a name the default is 8, a model keeps its own.
        grid: Its width becomes the embedding's.
        embedding_dim: Width of the embedding without a grid.
        projection: "none" makes the pre-logits themselves the embedding, which a grid must then be as wide as.
        **kwargs: For `timm.create_model`, where `model` is a name.

    Raises:
        InputError: An unknown name, arguments that disagree, or no projection between different widths.

    Examples:
        >>> model = wrap("resnet10t", num_classes=8, embedding_dim=64, in_chans=1)
        >>> model.student.__class__.__name__
        'ResNet'
        >>> wrap("resnet10t", embedding_dim=512, projection="none").projection is None
        True
    """
    if projection not in ("linear", "none"):
        raise choices("projection", projection, ("linear", "none"))
    if grid is not None:
        if embedding_dim not in (None, grid.dim):
            raise InputError(f"embedding_dim={embedding_dim} but the grid has {grid.dim}; give one of the two")
        embedding_dim = grid.dim
    if isinstance(model, str):
        if ":" not in model:
            model, _ = published(model)
        pretrained = bool(kwargs.get("pretrained"))
        folder = backbone_folder(model, pretrained, kwargs.get("cache_dir"))
        # what is adapted to other classes or channels fits its own config first
        if folder is not None and backbone_repository(model):
            open_backbone(folder, pretrained, model)
            model = f"local-dir:{folder}"
        elif folder is not None and pretrained and (folder / FILES[1]).is_file():
            read_model(folder, str(folder))
        model = timm.create_model(model, num_classes=8 if num_classes is None else num_classes, **kwargs)
    elif kwargs:
        raise InputError(f"{', '.join(kwargs)} can't be applied to a model that exists; give its timm name instead")
    else:
        model = model.timm_model if hasattr(model, "timm_model") else model
        _require_classifier(model)
        if num_classes is not None and num_classes != model.num_classes:
            model.reset_classifier(num_classes)
    if projection == "linear":
        return DistillationWrapper(model, embedding_dim)
    wrapper = DistillationWrapper(model)
    if embedding_dim not in (None, wrapper.head_hidden_size):
        width = wrapper.head_hidden_size
        raise InputError(
            f"projection=none needs a grid as wide as the backbone's features, which is {width}, got {embedding_dim}; "
            f"build one from an EEG teacher of teacher.embedding_dim={width}, or leave projection at linear"
        )
    return wrapper


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
    """Mean and std a channel; a grey model with a colour model's config takes their mean."""
    channels = input_channels(model)
    return for_channels(model.pretrained_cfg["mean"], channels), for_channels(model.pretrained_cfg["std"], channels)


def for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One value a channel: these, or their mean where the number of channels is another."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


@contextmanager
def batch_norm_statistics_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Keep running statistics within the block, where batch norm in training normalises by the batch as usual."""
    layers = [m for m in modules if isinstance(m, _BATCH_NORMS) and m.training and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def _register(architecture: str) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> DistillationWrapper:
        kwargs.setdefault("num_classes", 8)
        return wrap(architecture, pretrained=pretrained, **kwargs)

    name = f"ngd_{architecture}"
    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"timm's {architecture} in a DistillationWrapper."
    entrypoint.__module__ = __name__
    cfgs = {full.partition(".")[2]: cfg for full, cfg in get_arch_pretrained_cfgs(architecture).items()}
    if cfgs:
        default_cfgs[name] = DefaultCfg(tags=deque(cfgs), cfgs=cfgs)
    register_model(entrypoint)


# register_model looks here for a name's pretrained tags
default_cfgs: dict[str, DefaultCfg] = {}
for _name in timm.list_models():
    if not _name.startswith("ngd_"):
        _register(_name)
# register_model adds every name to __all__; a star import of 1,400 functions helps nobody
__all__ = ["DistillationWrapper", "wrap"]
