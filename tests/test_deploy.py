"""Exports give PyTorch's logits on batches of any size, and carry the preprocessing of their input."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from ngd_timm import set_input
from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import sha256_file
from ngd_timm.core.recipe import StudentConfig
from ngd_timm.data import load_fer
from ngd_timm.data.synthetic.schematic import draw_face
from ngd_timm.evaluate.student import face_batches
from ngd_timm.models.student import create_student, open_student, save_student
from ngd_timm.predict.predictor import Predictor
from ngd_timm.publish import export as deploy
from ngd_timm.publish.export import export_student


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_student(StudentConfig(backbone="test_resnet", image_size=48), 8)
    return save_student(model, tmp_path_factory.mktemp("student") / "student")


def logits(student: Path, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return open_student(student)[0](images)


def test_an_onnx_file_gives_the_students_logits_for_any_batch_and_carries_its_preprocessing(
    student: Path, tmp_path: Path
) -> None:
    import onnxruntime

    file = export_student(student, "onnx", tmp_path / "student.onnx", grey=True)
    session = onnxruntime.InferenceSession(str(file))
    for batch in (1, 7):
        images = torch.randn(batch, 1, 48, 48)
        (out,) = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(out, logits(student, images).numpy(), atol=1e-4)
    notes = json.loads(session.get_modelmeta().custom_metadata_map["ngd"])
    assert notes["label_names"] == list(CLASSES)
    assert (notes["mode"], notes["input_size"], notes["mean"], notes["std"]) == ("L", [1, 48, 48], [0.5], [0.25])


def test_a_pt2_program_gives_the_students_logits_and_carries_its_preprocessing(student: Path, tmp_path: Path) -> None:
    file = export_student(student, "pt2", tmp_path / "student.pt2", grey=True)
    extra = {"ngd.json": ""}
    run = torch.export.load(file, extra_files=extra).module()
    images = torch.randn(7, 1, 48, 48)
    torch.testing.assert_close(run(images), logits(student, images))
    assert json.loads(extra["ngd.json"])["interpolation"] == "bilinear"


def test_a_timm_export_is_the_student_itself(student: Path, tmp_path: Path) -> None:
    folder = export_student(student, "timm", tmp_path / "out", grey=True)
    images = torch.randn(2, 1, 48, 48)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(again(images), logits(student, images))


def luminance(images: torch.Tensor) -> torch.Tensor:
    return (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1, keepdim=True)


@pytest.mark.parametrize("weights", ["float32", "float16"])
def test_a_grey_student_is_exported_for_rgb_and_answers_by_luminance(weights: str, tmp_path: Path) -> None:
    import onnxruntime

    model = create_student(StudentConfig(backbone="test_resnet", image_size=48), 8)
    grey = save_student(model, tmp_path / "student", weights=weights)
    images = torch.randn(2, 3, 48, 48)
    expected = logits(grey, luminance(images))
    folder = export_student(grey, "timm", tmp_path / "rgb")
    torch.testing.assert_close(logits(folder, images), expected, atol=1e-5, rtol=0)
    program = torch.export.load(export_student(grey, "pt2", tmp_path / "a.pt2")).module()
    torch.testing.assert_close(program(images), expected, atol=1e-4, rtol=0)
    file = export_student(grey, "onnx", tmp_path / "a.onnx", input_name="pixel_values")
    (out,) = onnxruntime.InferenceSession(str(file)).run(None, {"pixel_values": images.numpy()})
    np.testing.assert_allclose(out, expected.numpy(), atol=1e-4)
    config = json.loads((folder / "config.json").read_text())
    assert config["ngd_timm"]["folded_from"] == sha256_file(grey / "model.safetensors")


def test_a_convolution_that_standardizes_its_weights_is_not_folded(tmp_path: Path, ngd: Callable[..., Any]) -> None:
    model = create_student(StudentConfig(backbone="resnetv2_50x1_bit", image_size=48), 8)
    student = save_student(model, tmp_path / "student")
    done = ngd("export", str(student), "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stderr.count("\n"), (tmp_path / "out").exists()) == (2, 1, False)
    assert "can't be folded into; keep it grey with --grey" in done.stderr


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_an_export_names_no_file_of_the_machine_that_wrote_it(form: str, student: Path, tmp_path: Path) -> None:
    content = export_student(student, form, tmp_path / f"student.{form}").read_bytes()
    for private in (b'File "', b"site-packages", str(tmp_path).encode(), b"ngd_timm/models", b".student."):
        assert private not in content


def test_transformers_loads_what_is_saved_and_exported(student: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = export_student(student, "timm", tmp_path / "rgb")
    for place in (student, folder):
        model = transformers.AutoModelForImageClassification.from_pretrained(place)
        images = torch.randn(2, *model.config.pretrained_cfg["input_size"])
        with torch.no_grad():
            torch.testing.assert_close(model(images).logits, logits(place, images), atol=1e-5, rtol=0)
        assert list(model.config.id2label.values()) == list(CLASSES)
    face = draw_face("fear", seed=1, image_size=60).convert("RGB")
    expected = Predictor(folder)(face).probabilities
    found = transformers.pipeline("image-classification", model=str(folder), top_k=8)(face)
    assert {row["label"]: row["score"] for row in found} == pytest.approx(expected, abs=1e-4)


def test_a_saved_student_claims_nothing_of_the_weights_that_timm_names(student: Path) -> None:
    text = (student / "config.json").read_text()
    for claim in ("tag", "paper", "license", "url", "hf_hub_id", "a1_in1k", "huggingface"):
        assert claim not in text


def test_an_int8_export_is_smaller_and_says_what_it_costs(
    student: Path, faces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = export_student(student, "onnx", tmp_path / "a.onnx")
    with caplog.at_level("INFO"):
        small = export_student(student, "onnx", tmp_path / "b.onnx", quantize=f"schematic={faces}:train")
    assert small.stat().st_size < plain.stat().st_size / 2
    assert re.search(r"int8, calibrated on \d+ images of schematic; on \d+ others accuracy [\d.]+ %, in", caplog.text)


def test_an_int8_export_is_calibrated_and_scored_on_all_classes_of_a_sorted_set(
    student: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = load_fer("schematic", faces, "test").sort("label")
    for number, row in enumerate(test):
        folder = tmp_path / "sorted" / "test" / CLASSES[row["label"]]
        folder.mkdir(parents=True, exist_ok=True)
        row["image"].save(folder / f"{number:02}.png")
    seen: list[set[int]] = []

    def recorded(*arguments: Any) -> list[Any]:
        batches = list(face_batches(*arguments))
        seen.append({label for batch in batches for label in batch.target.tolist()})
        return batches

    monkeypatch.setattr("ngd_timm.publish.onnx_file._SCORED", 8)
    monkeypatch.setattr("ngd_timm.publish.onnx_file.face_batches", recorded)
    export_student(student, "onnx", tmp_path / "b.onnx", quantize=f"mine:schematic={tmp_path / 'sorted'}:test")
    assert [len(labels) >= 3 for labels in seen] == [True, True]


def test_an_int8_export_needs_two_images(student: Path, tmp_path: Path) -> None:
    (tmp_path / "one" / "happiness").mkdir(parents=True)
    draw_face("happiness", seed=0, image_size=48).save(tmp_path / "one" / "happiness" / "a.png")
    with pytest.raises(InputError, match="has one image; int8 needs some to be calibrated on"):
        export_student(student, "onnx", tmp_path / "b.onnx", quantize=f"mine:schematic={tmp_path / 'one'}")
    assert not (tmp_path / "b.onnx").exists()


def test_transformers_js_answers_as_the_predictor(student: Path, tmp_path: Path) -> None:
    folder = export_student(student, "transformersjs", tmp_path / "js")
    config = json.loads((folder / "config.json").read_text())
    assert list(config["id2label"].values()) == list(CLASSES)
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == [
        "config.json",
        "model.onnx",
        "preprocessor_config.json",
    ]
    cropped, _ = open_student(student)
    set_input(cropped, image_size=96)
    cropped.pretrained_cfg["crop_pct"] = 0.9
    export_student(save_student(cropped, tmp_path / "cropped"), "transformersjs", tmp_path / "other")
    timms = timm.data.create_transform(**timm.data.resolve_model_data_config(cropped))
    resize = json.loads((tmp_path / "other" / "preprocessor_config.json").read_text())["size"]["shortest_edge"]
    assert resize == timms.transforms[0].size
    node = os.environ.get("NGD_TRANSFORMERS_JS")
    if node is None:
        pytest.skip("set NGD_TRANSFORMERS_JS to a folder where npm installed @huggingface/transformers")
    face = draw_face("fear", seed=1, image_size=48).convert("RGB")
    face.save(tmp_path / "face.png")
    script = Path(node) / "classify.mjs"
    script.write_text(CLASSIFY)
    done = subprocess.run(
        ["node", script, folder, tmp_path / "face.png"], capture_output=True, text=True, check=True, timeout=120
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert {row["label"]: row["score"] for row in found} == pytest.approx(
        Predictor(student)(face).probabilities, abs=1e-4
    )


CLASSIFY = """\
import { env, pipeline } from '@huggingface/transformers';
import path from 'node:path';
const [, , folder, image] = process.argv;
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder) + '/';
const classify = await pipeline('image-classification', path.basename(folder));
console.log(JSON.stringify(await classify(image, { top_k: 8 })));
"""


def test_an_export_that_differs_from_pytorch_is_not_written(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "_write_pt2", lambda model, file: None)
    monkeypatch.setattr(deploy, "_read_pt2", lambda file: lambda images: logits(student, images) + 0.01)
    (tmp_path / "student.pt2").write_bytes(b"an earlier one")
    with pytest.raises(InputError, match=r"differ from PyTorch's by 0\.01"):
        export_student(student, "pt2", tmp_path / "student.pt2", grey=True)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"an earlier one"]


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_a_model_that_the_exporter_or_the_runtime_cannot_take_is_one_line(
    form: str, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ngd: Callable[..., Any]
) -> None:
    def invalid(file: Path, **more: Any) -> None:
        raise RuntimeError(f"Load model from {file} failed:\nnode input is not an output of a previous node")

    def broken(images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("Guard failed: images.size()[0] >= 2")

    out = tmp_path / f"student.{form}"
    names = ("write_onnx", "read_onnx") if form == "onnx" else ("_write_pt2", "_read_pt2")
    monkeypatch.setattr(deploy, names[0], lambda *arguments: None)
    for read, message in (
        (lambda file, **more: broken, "AssertionError: Guard failed"),
        (invalid, f"by torch {torch.__version__} (RuntimeError: Load model from {out.name} failed: node input"),
    ):
        monkeypatch.setattr(deploy, names[1], read)
        done = ngd("export", str(student), "--format", form, "--out", str(out))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert f"test_resnet can't be exported to {form}" in done.stderr
        assert message in done.stderr
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"interpolation": "lanczos"}, {"crop_mode": "squash"}])
def test_transformersjs_refuses_a_student_whose_images_it_prepares_otherwise(
    change: dict[str, str], student: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(student, tmp_path / "student"))
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"crops the centre and resizes by .*; export onnx instead"):
        export_student(folder, "transformersjs", tmp_path / "js")
    assert not (tmp_path / "js").exists()


def test_a_missing_package_a_wrong_format_or_place_is_one_line(
    student: Path, tmp_path: Path, ngd: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for form, out, message in (
        ("onnx", "a.onnx", "needs onnxscript: pip install 'ngd-timm[onnx]'"),
        ("onxx", "a", "did you mean 'onnx'"),
        ("timm", "full", "not empty"),
        ("pt2", "full", "is a folder"),
        ("transformersjs --grey", "a", "transformers.js feeds three channels; leave --grey out"),
        ("pt2 --quantize ferplus=faces", "a", "--quantize is for --format onnx or transformersjs, got pt2"),
        ("timm --input-name x", "a", "--input-name is for --format onnx, got timm"),
    ):
        done = ngd("export", str(student), "--format", *form.split(), "--out", str(tmp_path / out))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_an_export_that_is_ended_leaves_nothing_behind(student: Path, tmp_path: Path) -> None:
    script = f"""
import os, signal, sys, ngd_timm.cli, torch
torch.export.save = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)  # with the temporary file begun
sys.argv = ["ngd", "export", {str(student)!r}, "--format", "pt2", "--out", {str(tmp_path / "a.pt2")!r}]
ngd_timm.cli.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "")
    assert list(tmp_path.iterdir()) == []
