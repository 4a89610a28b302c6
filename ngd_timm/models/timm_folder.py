"""A timm model's folder, local or from the Hub, read strictly: config.json describes what model.safetensors holds."""

from __future__ import annotations

import difflib
import json
import math
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import PretrainedCfg, get_deprecated_models, get_model_input_config

from ngd_timm.core.errors import InputError, choices, one_line
from ngd_timm.core.files import read_json
from ngd_timm.core.hub import PREFIX, HubId, fetch, hub_id

FILES = ("config.json", "model.safetensors")
TIMM_ERRORS = (
    RuntimeError,
    ValueError,
    OSError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    SafetensorError,
)
"""What timm raises for a config, weights or images that don't fit."""
_LARGEST, _MOST_CLASSES = 4096, 100_000
_CROP_MODES = ("center", "squash", "border")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


def read_model(folder: str | Path, shown: str) -> Any:
    """The timm model of config.json with all weights of model.safetensors (timm alone takes what doesn't fit)."""
    config, weights = (Path(folder) / name for name in FILES)
    _refuse_huge(read_json(config, shown), shown)
    if not weights.is_file():
        raise InputError(f"{shown}: {weights.name} is missing; restore it, or create it again")
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=False)
        wrong = _wrong_classes(json.loads(config.read_text(encoding="utf-8")), model)
        if wrong is None:
            model.load_state_dict(load_file(weights))
    except TIMM_ERRORS as error:
        wrong = one_line(error)
    if wrong is not None:
        raise InputError(f"{shown}: not a readable student ({wrong}); save it, or fetch it, again")
    return model


def _refuse_huge(config: dict[str, Any], shown: str) -> None:
    """Layers, classes and positions are made before weights are compared, so a huge number would exhaust memory."""
    cfg = config.get("pretrained_cfg")
    parts = (config, cfg if isinstance(cfg, dict) else {})
    for key, most in (("model_args", _LARGEST), ("input_size", _LARGEST), ("num_classes", _MOST_CLASSES)):
        if (number := _largest([part.get(key) for part in parts])) > most:
            raise InputError(f"{shown}: {key} in config.json holds {number:g}; {most} is the most")


def _largest(arguments: Any) -> float:
    """The largest number in a value of JSON."""
    if isinstance(arguments, (dict, list)):
        return max(map(_largest, arguments.values() if isinstance(arguments, dict) else arguments), default=0)
    return arguments if isinstance(arguments, (int, float)) else 0


def published(name: str) -> tuple[str, PretrainedCfg]:
    """A timm name as timm writes it today, and the input and weights that the model was published with."""
    if not timm.is_model(name):
        names = [known for known in timm.list_models() if not known.startswith("ngd_")]
        similar = difflib.get_close_matches(name, names, n=5, cutoff=0.3)
        raise choices("timm model", name, similar or ["any name of timm.list_models()"])
    name = get_deprecated_models().get(name) or name
    try:
        return name, timm.get_pretrained_cfg(name) or PretrainedCfg()
    except RuntimeError:  # a tag that timm doesn't know
        architecture, _, tag = name.partition(".")
        known = [full.partition(".")[2] for full in timm.list_models(f"{architecture}.*", pretrained=True)]
        raise choices(f"tag of {architecture}", tag, known) from None


def backbone_repository(name: str) -> HubId | None:
    """The repository of a backbone as timm writes it, `hf-hub:user/repo@revision`; None for any other name."""
    source, _, repository = name.partition(":")
    return hub_id(PREFIX + repository) if source.lower() in ("hf-hub", "hf_hub") else None


def backbone_folder(name: str, pretrained: bool, cache_dir: str | Path | None = None) -> Path | None:
    """The folder of a backbone, fetched where it is on the Hub (timm would load a pickle too); None for timm's own."""
    repository = backbone_repository(name)
    if repository is not None:
        return fetch(repository, FILES[: 1 + pretrained], cache_dir=cache_dir).folder
    source, _, folder = name.partition(":")
    return Path(folder) if source == "local-dir" else None


def open_backbone(folder: Path, pretrained: bool, shown: str) -> Any:
    """The timm model as config.json describes it: only weights that fit there are adapted to a recipe afterwards."""
    try:
        with torch.random.fork_rng(devices=[]):  # what is trained draws its own weights as ever
            return timm.create_model(f"local-dir:{folder}", pretrained=pretrained)
    except TIMM_ERRORS as error:
        raise InputError(f"{shown}: timm can't open it ({one_line(error)}); give one that timm saved") from None


def _wrong_classes(config: dict[str, Any], model: Any) -> str | None:
    """What config.json says of the classes and the model doesn't have, in words."""
    if model.pretrained_cfg.get("label_offset"):
        return "label_offset in config.json takes rows from its classifier"
    parts = {"": config} | {f"{key}.": config[key] for key in ("model_args", "pretrained_cfg") if key in config}
    for where, part in parts.items():
        number = part.get("num_classes", model.num_classes)
        if number != model.num_classes:
            return f"{where}num_classes is {number} in config.json, which makes a model of {model.num_classes} classes"
    return None


def check_input(model: Any, shown: str) -> None:
    """Refuse a `pretrained_cfg` that describes no images, or larger ones than any student takes."""
    cfg = model.pretrained_cfg
    size, crop = cfg.get("input_size"), cfg.get("crop_pct")
    sized = isinstance(size, (list, tuple)) and len(size) == 3 and all(type(n) is int for n in size)

    def numbers(key: str, least: float) -> bool:
        values = cfg.get(key)
        listed = isinstance(values, (list, tuple)) and sized and len(values) in (1, size[0])
        return listed and all(isinstance(v, (int, float)) and math.isfinite(v) and v > least for v in values)

    for key, valid, allowed in (
        ("input_size", sized and min(size) > 0 and max(size) <= _LARGEST, f"three of 1 to {_LARGEST}"),
        ("mean", numbers("mean", -math.inf), "one number, or one a channel"),
        ("std", numbers("std", 0), "one number above 0, or one a channel"),
        ("crop_pct", isinstance(crop, (int, float)) and 0.1 <= crop <= 2, "a number from .1 to 2"),
        ("crop_mode", cfg.get("crop_mode") in _CROP_MODES, "center, squash or border"),
        ("interpolation", cfg.get("interpolation") in _INTERPOLATIONS, f"one of {', '.join(_INTERPOLATIONS)}"),
    ):
        if not valid:
            raise InputError(f"{shown}: {key} in config.json must be {allowed}, got {str(cfg.get(key))[:80]}")


def check_output(model: Any, classes: int, shown: str) -> None:
    """Refuse a model in eval mode that gives no logits for an image of its own size."""
    size = tuple(get_model_input_config(model)["input_size"])
    try:
        with torch.inference_mode():
            shape = tuple(model(torch.zeros(1, *size)).shape)
    except TIMM_ERRORS as error:
        raise InputError(
            f"{shown}: config.json describes a model that can't take an image of {size} ({one_line(error)})"
        ) from None
    if shape != (1, classes):
        raise InputError(f"{shown}: the model gives {shape} for one image instead of {(1, classes)} logits")


def label_names(model: Any, shown: str) -> tuple[str, ...]:
    """Class names that a timm model carries, as many as it has logits."""
    names = model.pretrained_cfg.get("label_names")
    if names and not (isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names)):
        raise InputError(f"{shown}: label_names in config.json must be a list of names, got {str(names)[:80]}")
    if names and len(set(names)) < len(names):
        raise InputError(f"{shown}: label_names in config.json has a name twice: {', '.join(names)[:200]}")
    if not names or len(names) != model.num_classes:
        raise InputError(
            f"{shown}: the model does not say what its {model.num_classes} classes are (label_names in config.json); "
            "use a student saved with save_student"
        )
    return tuple(names)
