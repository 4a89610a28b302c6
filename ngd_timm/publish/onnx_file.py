"""A student as an ONNX file, in float32 or int8."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import atomic_path
from ngd_timm.evaluate.student import face_batches
from ngd_timm.models.ngd_models import TimmModel

_CALIBRATION, _SCORED = 256, 5000  # images


def require_onnx() -> None:
    """Refuse where a package that writes or runs ONNX files is missing."""
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"exporting to ONNX needs {', '.join(missing)}: pip install 'ngd-timm[onnx]'")


def write_onnx(model: TimmModel, images: Tensor, file: Path, input_name: str, notes: Mapping[str, str]) -> None:
    """Write a model for batches like `images` of any size, with notes as its metadata and no stack traces."""
    import onnx

    program = torch.onnx.export(
        model,
        (images,),
        input_names=[input_name],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    for part in (proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.value_info):
        part.ClearField("metadata_props")  # stack traces
    onnx.helper.set_model_props(proto, dict(notes))
    file.write_bytes(proto.SerializeToString())


def read_onnx(file: Path, input_name: str) -> Callable[[Tensor], Tensor]:
    """The logits of an ONNX file on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {input_name: images.numpy()})[0])


def quantize_onnx(model: TimmModel, file: Path, spec: str, input_name: str) -> str:
    """Make a float32 file int8, calibrated on images of a data set; the accuracy on its other images, in a sentence."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from ngd_timm.data import load_split, parse_spec

    name, root, split, _ = parse_spec(spec)
    dataset, _ = load_split(name, root, split or "all", classes=tuple(model.pretrained_cfg["label_names"]))
    if len(dataset) < 2:
        raise InputError(f"{spec} has one image; int8 needs some to be calibrated on, and others to be scored on")
    # over all of it: many sets lie class by class
    rows = _spread(len(dataset), _SCORED)
    chosen = rows[_spread(len(rows), min(_CALIBRATION, len(rows) // 2))]
    images = torch.cat([batch.images for batch in face_batches(model, dataset.select(chosen))])
    versions = [read_onnx(file, input_name)]

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows: Iterator[Any] = iter(images.numpy())

        def get_next(self) -> dict[str, Any] | None:
            row = next(self.rows, None)
            return None if row is None else {input_name: row[None]}

    with tempfile.TemporaryDirectory() as folder, atomic_path(file) as quantized:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(file), str(prepared))
        quantize_static(
            str(prepared), str(quantized), Reader(), per_channel=True, weight_type=QuantType.QInt8, reduce_range=True
        )
    versions.append(read_onnx(file, input_name))
    others = dataset.select(np.setdiff1d(rows, chosen))
    right = torch.zeros(len(versions))
    for batch in face_batches(model, others):
        right += torch.tensor([int((run(batch.images).argmax(dim=1) == batch.target).sum()) for run in versions])
    before, after = (100 * right / len(others)).tolist()
    return (
        f"int8, calibrated on {len(images)} images of {name}; on {len(others)} others accuracy {after:.2f} %, in "
        f"float32 {before:.2f} %"
    )


def _spread(count: int, most: int) -> np.ndarray:
    """Up to so many of `count` rows, evenly spaced."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(int)
