"""A student from somebody else's checkpoint: a timm backbone's weights, found in what `torch.save` wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.arrays import read_torch
from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.files import require_new_folder, sha256_file
from ngd_timm.core.recipe import StudentConfig
from ngd_timm.models.ngd_models import TimmModel, for_channels, similar_models
from ngd_timm.models.student import NOTES, create_student, read_student, save_student, set_input

PLACES = ("state_dict", "model_state_dict", "model", "student", "net", "state_dict_ema", "model_ema", "ema")
"""The keys of a checkpoint under which its weights are looked for, in this order, at any depth."""

PREFIXES = ("module", "_orig_mod", "model", "student", "backbone", "encoder", "net")
"""What may stand before the backbone's own names, in any order and number."""


def import_checkpoint(
    path: str | Path,
    backbone: str,
    out: str | Path,
    classes: Sequence[str] = CLASSES,
    image_size: int = 224,
    in_chans: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    key: str | None = None,
) -> list[str]:
    """Write a student's folder from a checkpoint of a timm backbone with a classifier.

    Every weight of the backbone must be there. What else is there, such as a projection that served training alone, is
    left out and named; nothing but tensors is unpickled.

    Args:
        path: A file that `torch.save` wrote.
        backbone: Its timm name.
        out: A new or empty folder.
        classes: Class names in the order of the logits, which a checkpoint does not say.
        image_size, in_chans: Of the images that it was trained on.
        mean, std: Of pixels in [0, 1], as they were normalised; None is the backbone's own in timm.
        key: Where the weights are, if not at the first of `PLACES` that is there.

    Returns:
        What was found and assumed, in lines.

    Raises:
        InputError: A checkpoint of another backbone, without a classifier, or that holds objects.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> weights = timm.create_model("test_resnet", num_classes=8).state_dict()
        >>> torch.save({"model": {f"module.{name}": tensor for name, tensor in weights.items()}}, folder / "best.ckpt")
        >>> import_checkpoint(folder / "best.ckpt", "test_resnet", folder / "student")[0]
        "92 weights of test_resnet from 'model', under 'module.'"
    """
    path, out = Path(path), Path(out)
    require_new_folder(out, "--out")
    if not timm.is_model(backbone):
        raise choices("timm backbone", backbone, similar_models(backbone))
    found, place, others = _weights(path, key)
    model = create_student(StudentConfig(backbone=backbone, image_size=image_size, in_chans=in_chans), len(classes))
    published = timm.get_pretrained_cfg(backbone, allow_unregistered=False)
    assert published is not None
    set_input(
        model,
        image_size,
        for_channels(published.mean, in_chans) if mean is None else mean,
        for_channels(published.std, in_chans) if std is None else std,
    )
    prefix = _prefix(found, model.state_dict(), f"{path}: {backbone}")
    own, notes = _own(found, prefix, model)
    left_out = [name for name, tensor in found.items() if not any(tensor is t for t in own.values())]
    _check_weights(own, model, classes, f"{path} and {backbone}", left_out)
    model.load_state_dict({name: own[name] for name in model.state_dict() if name in own})
    setattr(model, NOTES, {"imported_from": path.name, "sha256": sha256_file(path)})
    save_student(model, out, classes)
    read_student(out, str(out))
    cfg = model.pretrained_cfg
    return [
        f"{len(own)} weights of {backbone} from {place}" + (f", under '{prefix}'" if prefix else ""),
        *notes,
        f"left out: {_some(left_out)}" + (f"; also in the file: {', '.join(others)} (--key)" if others else ""),
        f"logits: {', '.join(classes)}",
        f"images: {in_chans} x {image_size} x {image_size}, mean {cfg['mean']}, std {cfg['std']}",
    ]


def _weights(path: Path, key: str | None) -> tuple[dict[str, Tensor], str, list[str]]:
    """The tensors of a checkpoint by name, the place where they are, and other places of tensors."""
    content, place = read_torch(path), "the top"
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}; a dict of weights was expected")
    held = ", ".join(map(str, content))[:200]
    others = [str(name) for name, value in content.items() if _tensors(value)]
    if key is not None:
        if not _tensors(content.get(key)):
            raise InputError(f"{path} has no weights under '{key}'; it has {held}: correct --key")
        content, place = content[key], f"'{key}'"
    while name := next((name for name in PLACES if isinstance(content.get(name), Mapping)), None):
        content, place = content[name], f"'{name}'" if place == "the top" else f"{place[:-1]}.{name}'"
    weights = _tensors(content)
    if not weights:
        raise InputError(f"{path} has no weights under {', '.join(PLACES)}; it has {held}: say where with --key NAME")
    return weights, place, [name for name in others if name != place.strip("'").split(".")[0]]


def _tensors(value: Any) -> dict[str, Tensor]:
    items = value.items() if isinstance(value, Mapping) else ()
    return {str(name): tensor for name, tensor in items if isinstance(tensor, Tensor)}


def _prefix(found: Iterable[str], expected: Mapping[str, Tensor], shown: str) -> str:
    """What stands before most of the backbone's own names."""
    counts: Counter[str] = Counter()
    for name in found:
        parts = name.split(".")
        for start in range(len(parts)):
            counts[".".join([*parts[:start], ""])] += ".".join(parts[start:]) in expected
            if parts[start] not in PREFIXES:
                break
    prefix, number = counts.most_common(1)[0]
    if not number:
        raise InputError(f"{shown} has the weights {_some(expected)}, the checkpoint {_some(found)}: another backbone")
    return prefix


def _own(found: Mapping[str, Tensor], prefix: str, model: TimmModel) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's weights by its own names; a classifier of another name is known by its shape, if it is alone."""
    expected, modules = model.state_dict(), dict(model.named_children())
    own = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
    # of a module that the backbone has, a weight that it lacks is kept, to be refused
    own = {name: tensor for name, tensor in own.items() if name in expected or name.split(".")[0] in modules}
    weight = f"{model.pretrained_cfg['classifier']}.weight"
    if weight in own or weight not in expected:
        return own, []
    taken = {id(tensor) for tensor in own.values()}
    alike = [n for n, t in found.items() if t.shape == expected[weight].shape and id(t) not in taken]
    if len(alike) != 1 or not alike[0].endswith("weight"):
        return own, []
    bias = alike[0].removesuffix("weight") + "bias"
    own |= {weight: found[alike[0]], **({f"{weight[:-6]}bias": found[bias]} if bias in found else {})}
    return own, [f"classifier: {alike[0]}, the only one of shape {tuple(expected[weight].shape)}"]


def _check_weights(
    own: Mapping[str, Tensor], model: TimmModel, classes: Sequence[str], shown: str, left_out: Sequence[str]
) -> None:
    expected = model.state_dict()
    weight = f"{model.pretrained_cfg['classifier']}.weight"
    if weight in own and len(own[weight]) != len(classes):
        raise InputError(
            f"{shown}: the checkpoint has {len(own[weight])} logits, not {len(classes)} ({', '.join(classes)}); give "
            "their order with --classes or --class-map"
        )
    other = [
        f"{n} {tuple(own[n].shape)} for {tuple(t.shape)}"
        for n, t in expected.items()
        if n in own and own[n].shape != t.shape
    ]
    missing = [n for n in expected if n not in own and not n.endswith("num_batches_tracked")]
    strange = [n for n in own if n not in expected]
    if other or missing or strange:
        raise InputError(
            f"{shown} don't fit: of another shape {_some(other)}; missing {_some(missing)}; unexpected "
            f"{_some(strange)}; besides {_some(left_out)}. Give the backbone that it is of, or --channels and --size"
        )
    if wrong := [n for n, t in own.items() if not bool(torch.isfinite(t).all())]:
        raise InputError(f"{shown}: weights that are not finite: {_some(wrong)}; the training diverged")


def _some(names: Iterable[str]) -> str:
    """How many, and the first three."""
    names = list(names)
    return f"{len(names)} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else "none"
