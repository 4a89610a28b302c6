"""Exports give PyTorch's logits on batches of any size, and carry the preprocessing of their input."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError
from ngd_timm.core.recipe import StudentConfig
from ngd_timm.models.student import create_student, open_student, save_student
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

    file = export_student(student, "onnx", tmp_path / "student.onnx")
    session = onnxruntime.InferenceSession(str(file))
    for batch in (1, 7):
        images = torch.randn(batch, 1, 48, 48)
        (out,) = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(out, logits(student, images).numpy(), atol=1e-4)
    notes = json.loads(session.get_modelmeta().custom_metadata_map["ngd"])
    assert notes["label_names"] == list(CLASSES)
    assert (notes["mode"], notes["input_size"], notes["mean"], notes["std"]) == ("L", [1, 48, 48], [0.5], [0.25])


def test_a_pt2_program_gives_the_students_logits_and_carries_its_preprocessing(student: Path, tmp_path: Path) -> None:
    file = export_student(student, "pt2", tmp_path / "student.pt2")
    extra = {"ngd.json": ""}
    run = torch.export.load(file, extra_files=extra).module()
    images = torch.randn(7, 1, 48, 48)
    torch.testing.assert_close(run(images), logits(student, images))
    assert json.loads(extra["ngd.json"])["interpolation"] == "bilinear"


def test_a_timm_export_is_the_student_itself(student: Path, tmp_path: Path) -> None:
    folder = export_student(student, "timm", tmp_path / "out")
    images = torch.randn(2, 1, 48, 48)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(again(images), logits(student, images))


def test_an_export_that_differs_from_pytorch_is_not_written(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "_write_pt2", lambda model, file: None)
    monkeypatch.setattr(deploy, "_read_pt2", lambda file: lambda images: logits(student, images) + 0.01)
    (tmp_path / "student.pt2").write_bytes(b"an earlier one")
    with pytest.raises(InputError, match=r"differ from PyTorch's by 0\.01"):
        export_student(student, "pt2", tmp_path / "student.pt2")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"an earlier one"]


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_a_model_that_the_exporter_or_the_runtime_cannot_take_is_one_line(
    form: str, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ngd: Callable[..., Any]
) -> None:
    def invalid(file: Path) -> None:
        raise RuntimeError(f"Load model from {file} failed:\nnode input is not an output of a previous node")

    def broken(images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("Guard failed: images.size()[0] >= 2")

    out = tmp_path / f"student.{form}"
    monkeypatch.setattr(deploy, f"_write_{form}", lambda model, file: None)
    for read, message in (
        (lambda file: broken, "AssertionError: Guard failed"),
        (invalid, f"by torch {torch.__version__} (RuntimeError: Load model from {out.name} failed: node input"),
    ):
        monkeypatch.setattr(deploy, f"_read_{form}", read)
        done = ngd("export", str(student), "--format", form, "--out", str(out))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert f"test_resnet can't be exported to {form}" in done.stderr
        assert message in done.stderr
        assert not list(tmp_path.iterdir())


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
    ):
        done = ngd("export", str(student), "--format", form, "--out", str(tmp_path / out))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["full"]
