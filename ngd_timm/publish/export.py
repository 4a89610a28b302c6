"""Exports of a student, each written only if its logits equal PyTorch's."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.files import atomic_folder, atomic_path, require_new_folder
from ngd_timm.models.ngd_models import TimmModel, input_channels
from ngd_timm.models.student import STUDENT_FILES, read_student, student_files

FORMATS = ("timm", "onnx", "pt2")
_BATCHES = (1, 2, 5)
_TOLERANCE = 1e-4


def export_student(source: str | Path, form: str, out: str | Path) -> Path:
    """Write a student as a timm folder, an ONNX file or a torch.export program, for batches of any size.

    The files carry `preprocessing` as metadata `ngd` (ONNX) or the extra file `ngd.json` (pt2).
    """
    if form not in FORMATS:
        raise choices("export format", form, FORMATS)
    out = Path(out)
    folder = student_files(source)
    model, _ = read_student(folder, str(source))
    if form == "timm":
        require_new_folder(out, "--out")
        with atomic_folder(out) as temporary:
            for name in STUDENT_FILES:
                shutil.copyfile(folder / name, temporary / name)
        return out
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the file to write, for example {out / f'student.{form}'}")
    with atomic_path(out) as temporary:
        write, read = (_write_onnx, _read_onnx) if form == "onnx" else (_write_pt2, _read_pt2)
        try:
            write(model, temporary)
            _check(model, read(temporary), out)
        except InputError:
            raise
        except Exception as error:  # exporters and runtimes raise errors of their own, of no common kind
            if isinstance(error, OSError) and error.errno:
                raise  # of the disk
            reason = " ".join(str(error).replace(str(temporary), out.name).split())[:300]
            raise InputError(
                f"{source}: {model.pretrained_cfg['architecture']} can't be exported to {form} by torch "
                f"{torch.__version__} ({type(error).__name__}: {reason}); use another format"
            ) from None
    return out


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


def _images(model: TimmModel, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, *model.pretrained_cfg["input_size"], generator=generator)


def _check(model: TimmModel, run: Callable[[Tensor], Tensor], out: Path) -> None:
    for batch in _BATCHES:
        images = _images(model, batch)
        with torch.no_grad():
            expected = model(images)
            worst = float((run(images) - expected).abs().max())
        if not worst <= _TOLERANCE * max(1.0, float(expected.abs().max())):
            raise InputError(
                f"{out}: its logits differ from PyTorch's by {worst:.2g} on a batch of {batch}; use another format"
            )


def _write_onnx(model: TimmModel, file: Path) -> None:
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"exporting to ONNX needs {', '.join(missing)}: pip install 'ngd-timm[onnx]'")
    import onnx

    with _quiet():
        program = torch.onnx.export(
            model,
            (_images(model, 2),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {"ngd": json.dumps(preprocessing(model))})
    file.write_bytes(proto.SerializeToString())


def _read_onnx(file: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _write_pt2(model: TimmModel, file: Path) -> None:
    with _quiet():
        program = torch.export.export(model, (_images(model, 2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, file, extra_files={"ngd.json": json.dumps(preprocessing(model))})


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
