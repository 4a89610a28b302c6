"""A student from somebody else's checkpoint: a timm backbone's weights, found in what `torch.save` wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.arrays import read_torch
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import atomic_folder, require_new_folder, sha256_file
from ngd_timm.core.recipe import StudentConfig
from ngd_timm.models.ngd_models import TimmModel, for_channels
from ngd_timm.models.student import NOTES, create_student, read_student, save_student, set_input
from ngd_timm.models.timm_folder import published

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
    """Write a student's folder from a checkpoint of a timm backbone with a classifier; return what was found, in lines.

    Every weight of the backbone must be there. Others, such as a projection that served training, are left out.

    Args:
        path: A file that `torch.save` wrote; nothing but tensors and plain values is unpickled.
        backbone: Its timm name.
        out: A new or empty folder.
        classes: Class names in the order of the logits, which a checkpoint does not say.
        image_size, in_chans: Of the images that it was trained on.
        mean, std: Of pixels in [0, 1], as they were normalised; None: the backbone's own in timm.
        key: Where its weights are, such as `model_ema`; None: the first of `PLACES` that is there.

    Raises:
        InputError: A checkpoint of another backbone, without a classifier or with further layers beside it, or that
            holds objects.

    Examples:
        >>> import tempfile
        >>> import timm
        >>> folder = Path(tempfile.mkdtemp())
        >>> weights = timm.create_model("test_resnet", num_classes=8).state_dict()
        >>> torch.save({"model": {f"module.{name}": tensor for name, tensor in weights.items()}}, folder / "best.ckpt")
        >>> import_checkpoint(folder / "best.ckpt", "test_resnet", folder / "student")[0]
        "92 weights of test_resnet from 'model', under 'module.'"
    """
    path, out = Path(path), Path(out)
    require_new_folder(out, "--out")
    backbone, cfg = published(backbone)
    place, found, others = _weights(path, key)
    model = create_student(StudentConfig(backbone=backbone, image_size=image_size, in_chans=in_chans), len(classes))
    mean, std = mean or for_channels(cfg.mean, in_chans), std or for_channels(cfg.std, in_chans)
    set_input(model, image_size, mean, std)
    prefix = _prefix(found, model.state_dict())
    own, head = _own(found, prefix, model)
    left_out = found.keys() - head.values() - {f"{prefix}{name}" for name in own}
    unused = [name for name in found if name in left_out]
    _check(own, model, classes, unused, f"{path} and {backbone}")
    if head:
        _refuse_layers_beside(next(iter(head.values())), unused, f"{path} and {backbone}")
    model.load_state_dict(own)
    setattr(model, NOTES, {"imported_from": path.name, "sha256": sha256_file(path)})
    with atomic_folder(out) as folder:
        read_student(save_student(model, folder, classes), str(out))
    return [
        f"{len(own)} weights of {backbone} from {place}" + (f", under '{prefix}'" if prefix else ""),
        *(f"{ours} is {theirs}, the only one of its shape" for ours, theirs in head.items()),
        f"left out: {_some(unused)}",
        *([f"not read: {', '.join(others)}; --key reads them"] if others else []),
        f"logits: {', '.join(classes)}",
        f"images: {in_chans} x {image_size} x {image_size}, mean {tuple(mean)}, std {tuple(std)}",
    ]


def _weights(path: Path, key: str | None) -> tuple[str, dict[str, Tensor], list[str]]:
    """Where in a checkpoint the weights are, the tensors there by name, and the other places beside it."""
    content, places, others = read_torch(path), list[str](), list[str]()
    for part in key.split(".") if key else []:
        if not isinstance(content, Mapping) or not isinstance(content.get(part), Mapping):
            raise InputError(f"{path} has no '{key}'; it has {_entries(content)}")
        content = content[part]
        places.append(part)
    while isinstance(content, Mapping) and (inner := [p for p in PLACES if isinstance(content.get(p), Mapping)]):
        others += [".".join([*places, p]) for p in inner[1:]]
        content = content[inner[0]]
        places.append(inner[0])
    entries = dict(content) if isinstance(content, Mapping) else {}
    weights = {str(name): tensor for name, tensor in entries.items() if isinstance(tensor, Tensor)}
    if not weights:
        raise InputError(
            f"{path} has no weights at its top or under {', '.join(PLACES)}; it has {_entries(content)}; give --key"
        )
    return f"'{'.'.join(places)}'" if places else "the top", weights, others


def _entries(content: object) -> str:
    return ", ".join(map(str, content))[:200] if isinstance(content, Mapping) and content else type(content).__name__


def _prefix(found: Iterable[str], expected: Mapping[str, Tensor]) -> str:
    """What stands before most of the backbone's own names."""
    counts: Counter[str] = Counter()
    for name in found:
        parts = name.split(".")
        for start in range(len(parts)):
            counts[".".join([*parts[:start], ""])] += ".".join(parts[start:]) in expected
            if parts[start] not in PREFIXES:
                break
    return counts.most_common(1)[0][0]


def _own(found: Mapping[str, Tensor], prefix: str, model: TimmModel) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The backbone's weights by its own names; and if its classifier has another name, theirs by ours."""
    expected, modules = model.state_dict(), dict(model.named_children())
    own = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
    # of a module that the backbone has, a weight that it lacks is kept, to be refused
    own = {name: tensor for name, tensor in own.items() if name in expected or name.split(".")[0] in modules}
    weight, bias = (f"{model.pretrained_cfg['classifier']}.{part}" for part in ("weight", "bias"))
    if weight in own or weight not in expected:
        return own, {}
    rest = [name for name in found if name.endswith("weight") and name.removeprefix(prefix) not in own]
    alike = [name for name in rest if found[name].shape == expected[weight].shape]
    if len(alike) != 1:
        return own, {}
    head = {weight: alike[0], bias: f"{alike[0].removesuffix('weight')}bias"}
    head = {ours: theirs for ours, theirs in head.items() if theirs in found}
    return own | {ours: found[theirs] for ours, theirs in head.items()}, head


def _refuse_layers_beside(classifier: str, unused: Sequence[str], shown: str) -> None:
    """Refuse a classifier's weight that is one of several layers, such as `head.3.weight` after `head.0.weight`."""
    parent = classifier.split(".")[:-2]
    if {*parent} <= {*PREFIXES}:
        return
    if beside := [name for name in unused if name.startswith(".".join([*parent, ""]))]:
        raise InputError(
            f"{shown}: the classifier {classifier} comes with other layers' weights, {_some(beside)}, without which "
            "its logits are others; only a single layer after the backbone can be imported"
        )


def _check(
    own: Mapping[str, Tensor], model: TimmModel, classes: Sequence[str], unused: Sequence[str], shown: str
) -> None:
    expected, weight = model.state_dict(), f"{model.pretrained_cfg['classifier']}.weight"
    if weight in own and len(own[weight]) != len(classes):
        raise InputError(
            f"{shown}: the checkpoint has {len(own[weight])} logits, not {len(classes)} ({', '.join(classes)}); give "
            "the order of its logits with --classes"
        )
    shared = [name for name in expected if name in own and own[name].shape != expected[name].shape]
    other = [f"{name} {tuple(own[name].shape)} for {tuple(expected[name].shape)}" for name in shared]
    # batch counters, which torch fills in, are absent from old files
    missing = [name for name in expected if name not in own and not name.endswith("num_batches_tracked")]
    strange = [name for name in own if name not in expected]
    if not other and not strange and missing and weight in missing and len(missing) <= 2:
        raise InputError(
            f"{shown}: no single layer of the shape {tuple(expected[weight].shape)} is there for the classifier "
            f"({weight}); besides {_some(unused)}. A student needs one layer from the backbone's features to the logits"
        )
    if other or missing or strange:
        raise InputError(
            f"{shown} don't fit: of another shape {_some(other)}; missing {_some(missing)}; unexpected "
            f"{_some(strange)}; besides {_some(unused)}. Give the backbone that it is of, or --channels and --size; "
            f"before its names may stand {', '.join(PREFIXES)}"
        )
    if wrong := [name for name, tensor in own.items() if not bool(torch.isfinite(tensor).all())]:
        raise InputError(f"{shown}: weights that are not finite: {_some(wrong)}; the training diverged")


def _some(names: Iterable[str]) -> str:
    """How many, and the first ten."""
    names = list(names)
    return f"{len(names)} ({', '.join(names[:10])}{', …' if len(names) > 10 else ''})" if names else "none"
