"""A grey student as one for RGB images: the first convolution weighs the channels as PIL's mode "L" does."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import read_json, write_json, write_refusals
from ngd_timm.core.images import LUMINANCE
from ngd_timm.models.ngd_models import input_channels
from ngd_timm.models.student import NOTES, STUDENT_FILES, published_config, read_student, weights_sha256

_TOLERANCE = 1e-4


@contextmanager
def published_student(source: Path, shown: str, keep: bool = False) -> Iterator[Path]:
    """A temporary folder of a student as it is published: for RGB images, unless a grey one is kept."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not keep and input_channels(read_student(source, shown)[0]) == 1:
            write_rgb(source, folder, shown)
        else:
            config, weights = STUDENT_FILES
            write_json(folder / config, published_config(read_json(source / config, shown)))
            shutil.copyfile(source / weights, folder / weights)
        yield folder


def write_rgb(source: Path, folder: Path, shown: str) -> None:
    """Write a grey student's files into an existing folder, for RGB images; its hash is kept as `folded_from`.

    Raises:
        InputError: The model has no convolution that three channels can be folded into.
    """
    grey, _ = read_student(source, shown)
    config = published_config(read_json(source / STUDENT_FILES[0], shown))
    cfg = config["pretrained_cfg"]
    config["model_args"]["in_chans"] = 3
    cfg |= {key: [3, *cfg[key][1:]] for key in ("input_size", "test_input_size", "min_input_size") if cfg.get(key)}
    cfg |= {key: cfg[key] * 3 for key in ("mean", "std")}
    config[NOTES] = {**config.get(NOTES, {}), "folded_from": weights_sha256(source)}
    write_json(folder / STUDENT_FILES[0], config)
    rgb: Any = timm.create_model(f"local-dir:{folder}", pretrained=False).eval()
    shapes = {name: tensor.shape for name, tensor in rgb.state_dict().items()}
    weights = load_file(source / STUDENT_FILES[1])
    weights = {name: _folded(tensor, shapes[name]) for name, tensor in weights.items()}
    if any(tensor.shape != shapes[name] for name, tensor in weights.items()):
        raise _unfoldable(shown, grey)
    rgb.load_state_dict(weights)
    if not _alike(grey, rgb):
        raise _unfoldable(shown, grey)
    with write_refusals(folder):
        save_file(weights, folder / STUDENT_FILES[1], metadata={"format": "pt"})
    (folder / STUDENT_FILES[1]).chmod((folder / STUDENT_FILES[0]).stat().st_mode)


def grey_weights(weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The weights of an RGB model for one of the given shapes that takes grey: on a grey image, all channels alike."""
    return {
        name: tensor.sum(dim=1, keepdim=True) if tensor.ndim == 4 and shapes[name][1] == 1 else tensor
        for name, tensor in weights.items()
    }


def _folded(weight: Tensor, shape: torch.Size) -> Tensor:
    """A convolution (O, 1, H, W) as (O, 3, H, W) where the model has that shape; in float16 it would cost up to .04."""
    if weight.ndim != 4 or weight.shape[1] != 1 or shape != (len(weight), 3, *weight.shape[2:]):
        return weight
    return weight.float() * torch.tensor(LUMINANCE)[:, None, None]


@torch.no_grad()
def _alike(grey: Any, rgb: Any) -> bool:
    images = torch.randn(2, *rgb.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0))
    luminance = (images * torch.tensor(LUMINANCE)[:, None, None]).sum(dim=1, keepdim=True)
    expected = grey(luminance)
    return bool((rgb(images) - expected).abs().max() <= _TOLERANCE * max(1.0, float(expected.abs().max())))


def _unfoldable(shown: str, model: Any) -> InputError:
    return InputError(
        f"{shown}: {model.pretrained_cfg['architecture']} takes one channel in a way that RGB can't be folded into; "
        "keep it grey with --grey, or train it with student.in_chans=3"
    )
