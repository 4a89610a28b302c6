"""Milliseconds of each step from a photograph to its predictions, beside PyPI's `fer` with its own detector.

    pip install fer 'setuptools<80' scikit-image        # fer imports pkg_resources
    python tests/benchmarks/photographs.py --threads 1
    python tests/benchmarks/photographs.py --folder 1000

Both get the same files: a photograph of one face (scikit-image's astronaut) as JPEGs of several sizes. Contenders take
turns, round by round; a step's figure is the processor time of this process, so neighbours disturb it little.
`fer` is run by its own code: OpenCV's Haar cascade, then its network in TensorFlow. `--folder N` times `ngd predict` on
a folder of N such photographs instead, by one process and by two with half of the files each, by the clock.
"""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import parser
from PIL import Image

from ngd_timm import Predictor
from ngd_timm.core.images import open_image, to_mode
from ngd_timm.predict.faces import FaceDetector, crop_face

SIDES = (512, 1024, 2048)
Step = tuple[str, Callable[[Any], Any]]


def photographs(folder: Path, count: int) -> list[Path]:
    """JPEGs of the astronaut, the sides in turn, each framed a little differently."""
    from skimage.data import astronaut

    image, files = Image.fromarray(astronaut()), []
    for number in range(count):
        side, cut = SIDES[number % len(SIDES)], number % 40
        file = folder / f"{number:04}-{side}.jpg"
        image.crop((cut, 0, 512, 512 - cut)).resize((side, side), Image.Resampling.BICUBIC).save(file, quality=90)
        files.append(file)
    return files


def ours() -> list[Step]:
    """`Predictor.photo`, step by step."""
    predictor, detect = Predictor(device="cpu"), FaceDetector()

    def crops(image: Image.Image) -> torch.Tensor:
        return torch.stack([predictor.transform(crop_face(image, face)) for face in found[0]])

    found: list[Any] = []

    def faces(image: Image.Image) -> Image.Image:
        found[:] = [detect(image)]
        return image

    @torch.inference_mode()
    def classify(pixels: torch.Tensor) -> list[float]:
        return predictor.model(predictor.transform.normalize(pixels)).softmax(dim=1).tolist()

    return [
        ("decode", lambda file: to_mode(open_image(file), "RGB")),
        ("detect", faces),
        ("crop", crops),
        ("classify", classify),
    ]


def theirs() -> list[Step] | None:
    """`fer`'s own `detect_emotions`, step by step; it crops and classifies in one."""
    if importlib.util.find_spec("fer") is None:
        return None
    import cv2
    from fer.fer import FER

    model = FER()

    def found(image: Any) -> tuple[Any, Any]:
        return image, model.find_faces(image)

    return [
        ("decode", lambda file: cv2.imread(str(file))),
        ("detect", found),
        ("crop and classify", lambda both: model.detect_emotions(both[0], face_rectangles=both[1])),
    ]


def steps(rounds: int, threads: int) -> None:
    """Print the median milliseconds of each step and size."""
    import cv2

    cv2.setNumThreads(threads)
    contenders = {"ngd predict": ours(), "fer": theirs()}
    if contenders["fer"] is None:
        print("fer is left out: pip install fer 'setuptools<80'")
    spent: dict[tuple[str, int, str], list[float]] = {}
    faces: dict[tuple[str, int], int] = {}
    with tempfile.TemporaryDirectory() as name:
        files = photographs(Path(name), len(SIDES))
        for number in range(rounds + 1):
            for title, parts in contenders.items():
                for side, file in zip(SIDES, files, strict=True):
                    value: Any = file
                    for step, run in parts or ():
                        began = time.process_time()
                        value = run(value)
                        if number:  # the first round warms up
                            spent.setdefault((title, side, step), []).append(1000 * (time.process_time() - began))
                    faces[title, side] = len(value) if parts else 0
    print(f"{threads} thread(s), {rounds} rounds, milliseconds of processor time, median (least to most)")
    for title, parts in contenders.items():
        for side in SIDES if parts else ():
            rows = {step: spent[title, side, step] for step, _ in parts or ()}
            told = ", ".join(f"{s} {statistics.median(t):.1f} ({min(t):.1f} to {max(t):.1f})" for s, t in rows.items())
            total = sum(statistics.median(t) for t in rows.values())
            print(f"{title}, {side} px, faces {faces[title, side]}: {total:.1f}: {told}")


def folder(count: int) -> None:
    """Print photographs a second of `ngd predict`, start-up included, with one process and with two."""
    with tempfile.TemporaryDirectory() as name:
        parts = [Path(name) / part for part in "ab"]
        for part in parts:
            part.mkdir()
            photographs(part, count // 2)
        command = [sys.executable, "-m", "ngd_timm.cli", "predict", "--csv"]
        for processes in ([parts], [[part] for part in parts]):
            began = time.perf_counter()
            running = [
                subprocess.Popen([*command, *map(str, part)], stdout=subprocess.PIPE, text=True) for part in processes
            ]
            rows = sum(len(process.communicate()[0].splitlines()) - 1 for process in running)
            seconds = time.perf_counter() - began
            print(
                f"{len(processes)} process(es): {count // 2 * 2} photographs, {rows} faces in {seconds:.1f} s, "
                f"{count / seconds:.1f} a second"
            )


def main() -> None:
    arguments = parser(__doc__, threads=1, rounds=20)
    arguments.add_argument("--folder", type=int, metavar="N", help="time ngd predict on N photographs instead")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    if options.folder:
        folder(options.folder)
    else:
        steps(options.rounds, options.threads)


if __name__ == "__main__":
    main()
