"""Students: a folder whose weights, classes or preprocessing don't fit together is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from faults import FOLDER, RAMP, SCORE, encoded, rows, write
from safetensors.torch import load_file, save, save_file

from ngd_timm import save_student
from ngd_timm.core.affect import CLASSES

PREDICT = "predict damaged face.png"
UNREADABLE = "not a readable student"
REMOVED: Any = object()


@pytest.fixture
def damaged(student: Path, tmp_path: Path) -> Path:
    """A copy of a student to be changed, and an image beside it."""
    write(tmp_path, {"face.png": encoded(RAMP)})
    return Path(shutil.copytree(student, tmp_path / "damaged"))


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Values with changes laid over them, section by section."""
    values = dict(values)
    for key, change in changes.items():
        values[key] = changed(values[key], change) if isinstance(change, dict) and key in values else change
    return {key: value for key, value in values.items() if value is not REMOVED}


@rows(
    "name, content, message",
    {
        "a config.json that is no JSON": ("config.json", "{", "not valid JSON"),
        "a config.json that is a list": ("config.json", "[]", "must hold a JSON object"),
        "weights of zero bytes": ("model.safetensors", b"", UNREADABLE),
        "weights of NUL bytes": ("model.safetensors", bytes(5000), UNREADABLE),
        "weights of another model": ("model.safetensors", save({"a": torch.zeros(3)}), UNREADABLE),
    },
)
def test_a_damaged_file(name: str, content: Any, message: str, damaged: Path, refused: Any) -> None:
    write(damaged, {name: content})
    refused(PREDICT, message)


def names(values: list[Any] | None) -> dict[str, Any]:
    return {"label_names": values, "pretrained_cfg": {"label_names": values}}


@rows(
    "config, message",
    {
        "no architecture": ({"architecture": REMOVED}, UNREADABLE),
        "an architecture that timm lacks": ({"architecture": "resnet81"}, UNREADABLE),
        "arguments that the architecture lacks": ({"model_args": {"depth": 3}}, UNREADABLE),
        "nine classes for eight": ({"num_classes": 9}, "which makes a model of 9 classes"),
        "an argument of nine classes": ({"model_args": {"num_classes": 9}}, "makes a model of 9 classes"),
        "nine classes in pretrained_cfg": ({"pretrained_cfg": {"num_classes": 9}}, "pretrained_cfg.num_classes is 9"),
        "a label offset that does not fit": ({"pretrained_cfg": {"label_offset": 1}}, "label_offset"),
        "a std of zero": ({"pretrained_cfg": {"std": [0.0]}}, "std"),
        "a mean in words": ({"pretrained_cfg": {"mean": "grey"}}, "mean"),
        "an input size of zero": ({"pretrained_cfg": {"input_size": [1, 0, 0]}}, "input_size"),
        "an input size in words": ({"pretrained_cfg": {"input_size": "large"}}, UNREADABLE),
        "an input of 60,000 pixels": (
            {"pretrained_cfg": {"input_size": [1, 60000, 60000]}},
            "input_size in config.json holds 60000; 4096 is the most",
        ),
        "fifty million classes": ({"num_classes": 50_000_000}, "num_classes in config.json holds 5e+07; 100000 is"),
        "no way to crop": ({"pretrained_cfg": {"crop_mode": None}}, "center, squash or border"),
        "three means for one channel": ({"pretrained_cfg": {"mean": [0.5, 0.5, 0.5]}}, "mean"),
        "a crop of a millionth": ({"pretrained_cfg": {"crop_pct": 1e-6}}, "crop_pct in config.json must be"),
        "a crop below zero": ({"pretrained_cfg": {"crop_pct": -1}}, "crop_pct in config.json must be"),
        "an unknown crop": ({"pretrained_cfg": {"crop_mode": "middle"}}, "center, squash or border"),
        "an unknown interpolation": ({"pretrained_cfg": {"interpolation": "sinc"}}, "one of nearest, bilinear"),
        "a hundred thousand layers": ({"model_args": {"layers": [100000, 1, 1, 1]}}, "holds 100000; 4096 is the most"),
        "no pooling": ({"model_args": {"global_pool": ""}}, "a model that can't take an image of (1, 32, 32)"),
        "no class names": (names(REMOVED), "does not say what its 8 classes are"),
        "seven class names for eight": (names(list("abcdefg")), "does not say what its 8 classes are"),
        "class names that are numbers": (names([*range(8)]), "label_names"),
        "a temperature of zero": ({"ngd_timm": {"temperature": 0}}, "'temperature': Input should be greater than 0"),
        "a temperature that is true": ({"ngd_timm": {"temperature": True}}, "'temperature': Input should be a valid"),
        "a prior of seven classes": (
            {"ngd_timm": {"prior": dict.fromkeys(CLASSES[:7], 0.1)}},
            "'prior': Dictionary should have at least 8",
        ),
        "a prior of zero": ({"ngd_timm": {"prior": dict.fromkeys(CLASSES, 0)}}, "'prior': Input should be greater"),
        "an adjustment without its prior": ({"ngd_timm": {"logit_adjustment": 0.2}}, "a logit_adjustment and no prior"),
        "a crop rule that is text": (
            {"ngd_timm": {"face_crop": "wide"}},
            "'face_crop': Input should be a valid",
        ),
        "a crop of nothing": ({"ngd_timm": {"face_crop": 0}}, "'face_crop': Input should be greater than 0"),
        "a list in the place of a hash": ({"ngd_timm": {"folded_from": []}}, "'folded_from': Input should be a valid"),
        "a list in the place of a temperature": ({"ngd_timm": [1]}, "ngd_timm in config.json: Input should be"),
    },
)
def test_a_config_that_does_not_fit(config: dict[str, Any], message: str, damaged: Path, refused: Any) -> None:
    path = damaged / "config.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), config)))
    refused(PREDICT, message)


@rows(
    "weights, message",
    {
        "no classifier": ({"fc.weight": REMOVED}, UNREADABLE),
        "nine rows": ({"fc.weight": torch.zeros(9, 96)}, "fc.weight"),
        "a layer that is missing": ({"layer1.0.conv1.weight": REMOVED}, "layer1.0.conv1.weight"),
        "a tensor too many": ({"extra.weight": torch.zeros(8)}, "extra.weight"),
        "NaN": ({"fc.bias": torch.full((8,), float("nan"))}, "not finite"),
    },
)
def test_weights_that_do_not_fit(weights: dict[str, Any], message: str, damaged: Path, refused: Any) -> None:
    path = damaged / "model.safetensors"
    save_file(changed(load_file(path), weights), path)
    refused(PREDICT, message)


def test_weights_in_a_pickle_alone_are_refused(damaged: Path, refused: Any) -> None:
    torch.save(load_file(damaged / "model.safetensors"), damaged / "pytorch_model.bin")
    (damaged / "model.safetensors").unlink()
    refused(PREDICT, "is neither a run directory")


@rows(
    "files, command, message",
    {
        "an empty folder": ({"e": FOLDER}, "evaluate e --data schematic=faces", "is neither a run directory"),
        "a student of 300 letters": ({}, "evaluate " + "x" * 300 + " --data schematic=faces", "File name too long"),
        "an image cut short": ({"a.png": encoded(RAMP)[:90]}, "predict student a.png", "not a readable image"),
        "an image that is missing": ({}, "predict student gone.png", "gone.png"),
        "a folder without images": ({"e": FOLDER}, "predict student e", "holds no"),
        "a uniform prior of a student without one": ({}, f"{SCORE} --prior uniform", "records no training prior"),
        "a prior of one class": ({}, f"{SCORE} --prior fear=1", "a number above 0 for each of neutral"),
        "a prior in words": ({}, f"{SCORE} --prior fear=much", "CLASS=P,CLASS=P…; got 'fear=much'"),
        "a student against one that is missing": ({}, f"{SCORE} --against gone", "is neither a run directory"),
        "a student against one without a prior": (
            {},
            f"{SCORE.replace('student', 'student-ferplus-fast-v1')} --prior uniform --against student",
            "student: the student records no training prior",
        ),
        "a prior that is none": ({}, f"{SCORE} --prior unifrom", "did you mean 'uniform'"),
        "predictions kept at another prior": ({}, f"{SCORE} --prior uniform --predictions", "leave --predictions or"),
        "five views": ({"a.png": encoded(RAMP)}, "predict student a.png --views 5", "unknown number of views '5'"),
    },
)
def test_nothing_to_predict_with(
    files: dict[str, Any], command: str, message: str, refused: Any, tmp_path: Path
) -> None:
    write(tmp_path, files)
    refused(command, message)


def test_a_student_against_one_of_other_classes_is_refused(student: Path, tmp_path: Path, refused: Any) -> None:
    save_student(timm.create_model(f"local-dir:{student}"), tmp_path / "other", [*CLASSES[1:], CLASSES[0]])
    refused(f"{SCORE} --against other", "compare students of the same classes in one order")


IMPORT = "import-checkpoint best.ckpt --backbone test_resnet --size 32 --channels 1 --out new"
WEIGHTS, OF_SEVEN = (
    timm.create_model("test_resnet", num_classes=classes, in_chans=1).state_dict() for classes in (8, 7)
)
PROJECTION = {"proj.weight": torch.ones(64, 96)}


@rows(
    "content, options, message",
    {
        "another backbone": (
            timm.create_model("test_vit", num_classes=8).state_dict(),
            "",
            "missing 77 (conv1.0.weight",
        ),
        "one layer too many": (WEIGHTS | {"layer4.1.conv1.weight": torch.ones(2)}, "", "unexpected 1 (layer4.1.conv1"),
        "one layer too few": (
            {n: t for n, t in WEIGHTS.items() if not n.startswith("layer4.0.bn2")},
            "",
            "missing 4 (layer4.0.bn2",
        ),
        "images of another channel": (WEIGHTS, "--channels 3", "of another shape 1 (conv1.0.weight (16, 1, 3, 3) for"),
        "seven logits": (OF_SEVEN, "", "has 7 logits, not 8"),
        "no classifier": (
            {n: t for n, t in WEIGHTS.items() if not n.startswith("fc.")} | PROJECTION,
            "",
            "no single layer of the shape (8, 96) is there for the classifier (fc.weight); besides 1 (proj.weight)",
        ),
        "a classifier of several layers": (
            {n: t for n, t in WEIGHTS.items() if not n.startswith("fc.")}
            | {"head.0.weight": torch.ones(96, 96)}
            | {f"head.3.{part}": WEIGHTS[f"fc.{part}"] for part in ("weight", "bias")},
            "",
            "the classifier head.3.weight comes with other layers' weights, 1 (head.0.weight)",
        ),
        "a place that is not there": ({"model": WEIGHTS}, "--key model_ema", "has no 'model_ema'; it has model"),
        "weights with NaN": (WEIGHTS | {"fc.bias": torch.full((8,), float("nan"))}, "", "not finite: 1 (fc.bias)"),
        "no weights": ({"epoch": 3, "optimizer": {"lr": 1}}, "", "ema; it has epoch, optimizer"),
        "a list": ([torch.ones(2)], "", "ema; it has list"),
        "an object": ({"model": WEIGHTS, "args": Path("x")}, "", "it holds a pathlib"),
        "a backbone that timm lacks": (WEIGHTS, "--backbone resnet81", "did you mean 'resnet18"),
        "two channels": (WEIGHTS, "--channels 2", "unknown number of channels '2'"),
        "a std of zero": (WEIGHTS, "--std 0", "std must be above 0 to 1, of pixels in [0, 1], got [0.0]"),
        "a mean of bytes": (WEIGHTS, "--mean 127", "mean must be from 0 to 1, of pixels in [0, 1], got [127.0]"),
        "an unknown class": (WEIGHTS, "--classes fera,happy", "did you mean 'fear'"),
        "a class twice": (WEIGHTS, "--classes fear,scared", "has a class twice"),
    },
)
def test_a_checkpoint_that_does_not_fit(content: Any, options: str, message: str, refused: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "best.ckpt")
    refused(f"{IMPORT} {options}", message)


def test_a_map_that_does_not_begin_at_0_is_no_order_of_logits(refused: Any, tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "best.ckpt")
    write(tmp_path, {"map.json": json.dumps(dict(enumerate(CLASSES, start=1)))})
    refused(f"{IMPORT} --classes map.json", "numbers classes 1, 2, 3, 4, 5, 6, 7, 8; logits are numbered from 0")
