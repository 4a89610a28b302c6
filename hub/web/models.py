"""Writes what the page needs of ngd-timm into a folder: both models, their licences, examples, and the rules as JSON.

Usage: python models.py OUT [STUDENT]
"""

import math
import shutil
import sys
from pathlib import Path

from ngd_timm import ANCHORS, Predictor
from ngd_timm.core.citations import FORBIDDEN
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import packaged, write_json, write_text
from ngd_timm.core.images import image_limit
from ngd_timm.core.plots import STYLES
from ngd_timm.models.logit_adjustment import prior_shift
from ngd_timm.models.student import shipped_student, student_files
from ngd_timm.predict import faces, predictor
from ngd_timm.publish.export import export_student


def main(out: Path, student: str) -> None:
    hub = packaged("hub")
    export_student(student, "onnx", out / "student.onnx")
    shutil.copyfile(hub / "detector" / faces._MODEL, out / faces._MODEL)
    shutil.copyfile(hub / "detector" / "LICENSE", out / "LICENSE-detector.txt")
    licence = student_files(student) / "LICENSE"
    terms = licence.read_text(encoding="utf-8") if licence.is_file() else "Ask whoever trained this student.\n"
    write_text(out / "LICENSE-student.txt", terms)
    shutil.copytree(hub / "space" / "examples", out / "examples")
    write_json(out / "settings.json", settings(out, student))


def settings(out: Path, student: str) -> dict[str, object]:
    """The numbers that `ngd predict` goes by."""
    opened = Predictor(student, "cpu")
    cfg = opened.model.pretrained_cfg
    _, height, width = opened.transform.size
    if (cfg["interpolation"], cfg["crop_mode"], height) != ("bilinear", "center", width):
        raise InputError(f"{student}: the page resizes bilinearly to a square, centred; this student does otherwise")
    return {
        "detector": {
            "file": faces._MODEL,
            "bytes": (out / faces._MODEL).stat().st_size,
            "threshold": faces.THRESHOLD,
            "overlap": faces._OVERLAP,
            "first": faces._FIRST,
            "full": faces._FULL,
            "range": faces._RANGE,
        },
        "student": {
            "file": "student.onnx",
            "bytes": (out / "student.onnx").stat().st_size,
            "classes": list(opened.classes),
            "size": width,
            "resize": math.floor(width / cfg["crop_pct"]),
            "mean": list(cfg["mean"]) * (3 // len(cfg["mean"])),
            "std": list(cfg["std"]) * (3 // len(cfg["std"])),
            # what the default prior adds to the logits
            "shift": prior_shift(opened.model, opened.classes, opened.prior).tolist(),
        },
        "crop": {
            "face": opened.face_crop,
            "fills": faces._FILLS,
            "aspect": faces._ASPECT,
            "small": faces._CROP,
        },
        "notes": {"smallest": predictor._SMALLEST, "square": predictor._SQUARE},
        "megapixels": image_limit(),
        "anchors": dict(ANCHORS),
        "colors": [color for color, _ in STYLES],
        "examples": sorted(file.name for file in (out / "examples").iterdir()),
        "forbidden": FORBIDDEN,
    }


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else shipped_student())
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
