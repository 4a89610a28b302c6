"""Exports of a student, each written only if its logits equal PyTorch's."""

from __future__ import annotations

import io
import json
import logging
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ngd_timm.core.errors import InputError, choices, one_line
from ngd_timm.core.files import atomic_folder, atomic_path, require_new_folder, write_json
from ngd_timm.models.ngd_models import TimmModel, input_channels
from ngd_timm.models.rgb import published_student
from ngd_timm.models.student import STUDENT_FILES, read_student, student_files
from ngd_timm.publish.onnx_file import quantize_onnx, read_onnx, require_onnx, write_onnx

logger = logging.getLogger("ngd_timm.publish")

FORMATS = ("timm", "onnx", "pt2", "transformersjs")
_BATCHES = (1, 2, 5)
_TOLERANCE = 1e-4
_RESAMPLE = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # PIL's numbers


def export_student(
    source: str | Path,
    form: str,
    out: str | Path,
    *,
    grey: bool = False,
    input_name: str | None = None,
    quantize: str | None = None,
) -> Path:
    """Write a student as a timm folder, an ONNX file, a torch.export program or a folder for transformers.js.

    It takes RGB images in batches of any size; `grey` keeps a grey student's one channel. The files carry
    `preprocessing` as metadata `ngd` (ONNX) or the extra file `ngd.json` (pt2). `input_name` names the input of an ONNX
    file, `quantize` the data set, as `name=root[:split]`, on whose images it is made int8.
    """
    if form not in FORMATS:
        raise choices("export format", form, FORMATS)
    for option, value, forms in (
        ("--input-name", input_name, ("onnx",)),
        ("--quantize", quantize, ("onnx", "transformersjs")),
    ):
        if value is not None and form not in forms:
            raise InputError(f"{option} is for --format {' or '.join(forms)}, got {form}; leave it out")
    out = Path(out)
    if form in ("timm", "transformersjs"):
        require_new_folder(out, "--out")
    elif out.is_dir():
        raise InputError(f"{out} is a folder; give the file to write, for example {out / f'student.{form}'}")
    with (
        published_student(student_files(source), str(source), keep=grey) as folder,
        atomic_folder(out) if form in ("timm", "transformersjs") else atomic_path(out) as temporary,
    ):
        model, _ = read_student(folder, str(source))
        if form == "timm":
            for name in STUDENT_FILES:
                shutil.copyfile(folder / name, temporary / name)
        elif form == "transformersjs":
            write_transformersjs(model, temporary, str(source), quantize)
        elif form == "onnx":
            _export_onnx(model, str(source), temporary, out, input_name or "images", quantize)
        else:
            _write_checked(model, str(source), form, temporary, out, _write_pt2, _read_pt2)
    return out


def write_transformersjs(model: TimmModel, folder: Path, source: str, quantize: str | None = None) -> None:
    """Write the files that transformers.js loads a classifier from: two of JSON and onnx/model.onnx.

    Transformers and timm read another config.json, so that these are a folder, or a repository, of their own.
    """
    cfg = model.pretrained_cfg
    if input_channels(model) == 1:
        raise InputError(f"{source}: transformers.js feeds three channels; leave --grey out")
    if cfg.get("crop_mode") not in (None, "center") or cfg["interpolation"] not in _RESAMPLE:
        raise InputError(
            f"{source}: transformers.js crops the centre and resizes by {', '.join(_RESAMPLE)}; this student has "
            f"crop_mode {cfg.get('crop_mode')} and {cfg['interpolation']}; export onnx instead"
        )
    names = dict(enumerate(cfg["label_names"]))
    write_json(
        folder / "config.json",
        {
            "model_type": "resnet",  # any classifier that takes pixel_values and gives logits; timm models have no name
            "architecture": cfg["architecture"],
            "id2label": names,
            "label2id": {name: i for i, name in names.items()},
            "transformers.js_config": {"dtype": "fp32" if quantize is None else "q8"},
        },
    )
    height, width = cfg["input_size"][1:]
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": math.floor(min(height, width) / cfg["crop_pct"])},
            "resample": _RESAMPLE[cfg["interpolation"]],
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(cfg["mean"]),
            "image_std": list(cfg["std"]),
        },
    )
    (folder / "onnx").mkdir()
    file = folder / "onnx" / ("model.onnx" if quantize is None else "model_quantized.onnx")
    _export_onnx(model, source, file, file, "pixel_values", quantize)


def preprocessing(model: TimmModel) -> dict[str, Any]:
    """The metadata of an export: how an image becomes the model's input, and the names of its logits."""
    cfg = model.pretrained_cfg
    return {
        "label_names": list(cfg["label_names"]),
        "input_size": list(cfg["input_size"]),
        "mode": "L" if input_channels(model) == 1 else "RGB",
        "mean": list(cfg["mean"]),
        "std": list(cfg["std"]),
        "interpolation": cfg["interpolation"],
        "crop_pct": cfg["crop_pct"],
        "crop_mode": cfg["crop_mode"],
    }


def _export_onnx(model: TimmModel, source: str, file: Path, shown: Path, input_name: str, quantize: str | None) -> None:
    require_onnx()
    notes = {"ngd": json.dumps(preprocessing(model))}

    def write(model: TimmModel, file: Path) -> None:
        write_onnx(model, _images(model, 2), file, input_name, notes)

    _write_checked(model, source, "onnx", file, shown, write, partial(read_onnx, input_name=input_name))
    if quantize is not None:
        with _one_line(model, source, "int8 ONNX", file, shown):
            sentence = quantize_onnx(model, file, quantize, input_name)
        logger.info(sentence)


def _write_checked(
    model: TimmModel,
    source: str,
    form: str,
    file: Path,
    shown: Path,
    write: Callable[[TimmModel, Path], None],
    read: Callable[[Path], Callable[[Tensor], Tensor]],
) -> None:
    """Write a file, and refuse it if its logits differ."""
    with _one_line(model, source, form, file, shown):
        with _quiet():
            write(model, file)
        _check(model, read(file), shown)


@contextmanager
def _one_line(model: TimmModel, source: str, form: str, file: Path, shown: Path) -> Iterator[None]:
    """What exporters and runtimes raise is one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of no common kind
        if isinstance(error, OSError) and error.errno:
            raise  # of the disk
        reason = one_line(str(error).replace(str(file), shown.name))
        raise InputError(
            f"{source}: {model.pretrained_cfg['architecture']} can't be exported to {form} by torch "
            f"{torch.__version__} ({type(error).__name__}: {reason}); use another format"
        ) from None


def _check(model: TimmModel, run: Callable[[Tensor], Tensor], shown: Path) -> None:
    for batch in _BATCHES:
        images = _images(model, batch)
        with torch.no_grad():
            expected = model(images)
            worst = float((run(images) - expected).abs().max())
        if not worst <= _TOLERANCE * max(1.0, float(expected.abs().max())):
            raise InputError(
                f"{shown}: its logits differ from PyTorch's by {worst:.2g} on a batch of {batch}; use another format"
            )


def _images(model: TimmModel, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, *model.pretrained_cfg["input_size"], generator=generator)


def _write_pt2(model: TimmModel, file: Path) -> None:
    program = torch.export.export(model, (_images(model, 2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:  # which names the files of this machine
        node.meta.pop("stack_trace", None)
    buffer = io.BytesIO()  # a file's name would stand within
    torch.export.save(program, buffer, extra_files={"ngd.json": json.dumps(preprocessing(model))})
    file.write_bytes(buffer.getvalue())


def _read_pt2(file: Path) -> Callable[[Tensor], Tensor]:
    run: Callable[[Tensor], Tensor] = torch.export.load(file).module()
    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' warnings and logs."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
