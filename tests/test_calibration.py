"""Temperature scaling: the least negative log-likelihood, folded into the classifier, divided out where it teaches."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from ngd_timm import CLASSES, InputError, KDTeacher, calibrate, load_run, save_student
from ngd_timm.core.files import packaged, sha256_file
from ngd_timm.core.recipe import Recipe
from ngd_timm.evaluate.predictions import prediction_file, read_predictions
from ngd_timm.evaluate.run import check_student
from ngd_timm.evaluate.student import evaluate
from ngd_timm.models.calibration import TEMPERATURES, can_calibrate, fit_temperature, temperature_line
from ngd_timm.models.kd_teacher import open_teacher
from ngd_timm.models.student import load_student, open_student, shipped_student
from ngd_timm.publish.card import student_card
from ngd_timm.report import write_report
from ngd_timm.train.loop import train
from ngd_timm.train.setup import prepare


def underconfident(n: int = 400, factor: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose softmax is right at the temperature `factor`, and targets drawn from it."""
    generator = torch.Generator().manual_seed(0)
    right = 2 * torch.randn(n, 8, generator=generator)
    return right * factor, torch.multinomial(right.softmax(1), 1, generator=generator)[:, 0]


def test_the_temperature_has_the_least_negative_log_likelihood() -> None:
    logits, targets = underconfident()
    grid = np.geomspace(*TEMPERATURES, 2000)
    losses = [F.cross_entropy(logits.double() / t, targets).item() for t in grid]
    temperature = fit_temperature(logits, targets)
    assert temperature == pytest.approx(grid[int(np.argmin(losses))], rel=0.005)
    assert temperature == pytest.approx(0.3, rel=0.15)
    assert fit_temperature(7 * logits.numpy(), targets.numpy()) == pytest.approx(7 * temperature, rel=1e-3)


@pytest.mark.parametrize(
    ("targets", "logits", "temperature"),
    [
        ([0, 1, 0, 1], [[3.0, 0.0], [0.0, 3.0]] * 2, TEMPERATURES[0]),  # all answers right
        ([1, 1, 1, 1], [[0.0, 3.0], [0.0, 2.0]] * 2, TEMPERATURES[0]),  # one class
        ([1, 0, 1, 0], [[3.0, 0.0], [0.0, 3.0]] * 2, TEMPERATURES[1]),  # all answers wrong
        ([0, 1, 0, 1], [[1.0, 1.0]] * 4, 1.0),  # no answer at all
    ],
)
def test_images_that_settle_no_temperature_get_a_bounded_one(
    targets: list[int], logits: list[list[float]], temperature: float
) -> None:
    assert fit_temperature(logits, targets) == temperature
    assert ("don't trust it" in temperature_line(temperature, 4)) == (temperature != 1.0)


def test_what_cannot_be_fitted_is_refused() -> None:
    for logits, targets in (
        ([[1.0, float("nan")]], [0]),
        ([[1.0, 0.0]], [2]),
        ([[1.0, 0.0]], [0, 1]),
        ([[1.0]], [0.5]),
    ):
        with pytest.raises(InputError, match="logits must be"):
            fit_temperature(logits, targets)
    with pytest.raises(InputError, match="logits are of 3 classes, the model has 8"):
        calibrate(timm.create_model("test_resnet", num_classes=8), [[1.0, 0.0, 0.0]], [0])


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_byobnet", "levit_128s", "efficientformer_l1"])
@torch.no_grad()
def test_a_folded_temperature_divides_the_logits_of_any_head_and_travels_with_the_student(
    name: str, tmp_path: Path
) -> None:
    model = timm.create_model(name, num_classes=8).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    images = torch.randn(2, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0))
    logits, targets = underconfident()
    temperature = fit_temperature(logits, targets)
    before = model(images)
    torch.testing.assert_close(calibrate(model, logits, targets)(images), before / temperature, rtol=1e-3, atol=1e-4)
    folder = save_student(model, tmp_path / "student")
    assert json.loads((folder / "config.json").read_text())["ngd_timm"] == {"temperature": temperature}
    stock = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(stock(images), model(images))
    opened, _ = open_student(folder)
    assert opened.ngd_timm == {"temperature": temperature}
    config = (save_student(opened, tmp_path / "again") / "config.json").read_text()
    assert config == (folder / "config.json").read_text()
    twice = calibrate(opened, logits / temperature, targets)  # which has nothing left to do
    assert twice.ngd_timm["temperature"] == pytest.approx(temperature, rel=1e-3)


class Capped(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).tanh()


def test_logits_that_are_not_linear_in_the_classifier_are_left_alone() -> None:
    model = timm.create_model("test_resnet", num_classes=8)
    assert can_calibrate(model)
    model.fc = Capped(model.fc.in_features, 8)
    exact = model.fc.weight.clone()
    with pytest.raises(InputError, match="not linear in its classifier"):
        calibrate(model, *underconfident())
    assert torch.equal(model.fc.weight, exact)


@pytest.fixture(scope="module")
def voted(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn faces with votes: every fourth image without a majority, and led by another class than it shows."""
    folder = tmp_path_factory.mktemp("voted")
    for split in ("train", "valid"):
        table = pq.read_table(faces / f"{split}.parquet", columns=["image"])
        votes = np.zeros((len(table), 10), int)
        for row, label in enumerate(np.arange(len(table)) % 8):
            votes[row, label], votes[row, (label + 1) % 8], votes[row, (label + 2) % 8] = (
                (4, 3, 3) if row % 4 == 3 else (8, 2, 0)
            )
        for column, name in enumerate((*CLASSES, "unknown", "NF")):
            table = table.append_column(name, pa.array(votes[:, column]))
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


def recipe(root: Path, out: Path, student: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    base: dict[str, Any] = {
        "name": "tiny",
        "out": str(out),
        "student": {"backbone": "test_resnet", "image_size": 32, **(student or {})},
        "data": {"name": "schematic", "root": str(root), "workers": 0},
        "optim": {"epochs": 2, "batch_size": 16, "lr": 1e-3},
    }
    return Recipe.model_validate(base | changes)


@pytest.fixture(scope="module")
def runs(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run calibrated, as by default, and not."""
    folder = tmp_path_factory.mktemp("runs")
    return (
        train(recipe(faces, folder / "calibrated")),
        train(recipe(faces, folder / "plain", {"calibrate": False})),
    )


def test_a_run_saves_its_students_calibrated_and_says_at_which_temperature(
    runs: tuple[Path, Path], faces: Path
) -> None:
    calibrated, plain = runs
    raw = read_predictions(prediction_file(plain, "schematic:valid"))
    temperature = fit_temperature(raw.logits, raw.target)
    for student in ("student", "student_best"):
        config = json.loads((calibrated / student / "config.json").read_text())
        weights, exact = (load_file(run / student / "model.safetensors") for run in runs)
        assert {name for name in weights if not torch.equal(weights[name], exact[name])} == {"fc.weight", "fc.bias"}
        for name in ("fc.weight", "fc.bias"):
            torch.testing.assert_close(weights[name] * config["ngd_timm"]["temperature"], exact[name])
        if student == "student":
            assert config["ngd_timm"] == {"temperature": temperature}
    assert "ngd_timm" not in json.loads((plain / "student" / "config.json").read_text())
    kept = read_predictions(prediction_file(calibrated, "schematic:valid"))
    torch.testing.assert_close(kept.logits * temperature, raw.logits)
    assert torch.equal(kept.logits.argsort(1), raw.logits.argsort(1))
    entries = [json.loads((run / "metrics.json").read_text())["schematic:valid"] for run in runs]
    assert [entry["student_temperature"] for entry in entries] == [temperature, 1.0]
    assert entries[0]["8way"] == entries[1]["8way"]
    (scored,) = evaluate(calibrated, [f"schematic={faces}:test"], predictions=True).values()  # and last/ fits student/
    assert scored["student_temperature"] == temperature
    assert f"logits divided by {temperature:g}" in write_report(calibrated).read_text(encoding="utf-8")
    assert f"| temperature scaling | post hoc | T={temperature:g}" in student_card(load_run(calibrated), "lab/student")
    for run in runs:
        assert "trained with ngd_timm" not in student_card(load_run(run), "lab/student")  # nothing was distilled


def test_a_calibrated_teacher_teaches_what_it_learned_alone_and_in_an_ensemble(runs: tuple[Path, Path]) -> None:
    images = torch.randn(4, 1, 32, 32)
    calibrated, plain = (KDTeacher.open(run, CLASSES, (0.5,), (0.25,))(images) for run in runs)
    assert (open_student(runs[0])[0](images) - plain).abs().max() > 0.1
    torch.testing.assert_close(calibrated, plain)
    torch.testing.assert_close(open_teacher(runs, CLASSES, (0.5,), (0.25,))(images), plain)
    by_model = KDTeacher.open(load_run(runs[0]).student, CLASSES, (0.5,), (0.25,))
    torch.testing.assert_close(by_model(images), plain)


def test_a_run_that_starts_from_a_calibrated_student_starts_from_what_was_learned(
    runs: tuple[Path, Path], faces: Path, tmp_path: Path
) -> None:
    started = prepare(recipe(faces, tmp_path / "run", init=str(runs[0]))).task.trainable_module.student
    torch.testing.assert_close(started.fc.weight, load_file(runs[1] / "student" / "model.safetensors")["fc.weight"])


@pytest.mark.parametrize("rule", ["votes", "argmax", "majority"])
def test_whatever_the_label_rule_the_temperature_is_fitted_on_majority_labels(
    voted: Path, tmp_path: Path, rule: str
) -> None:
    data = {"name": "ferplus", "root": str(voted), "workers": 0, "label_rule": rule}
    setup = prepare(recipe(voted, tmp_path / "run", data=data))
    assert setup.calibration is not None
    rows, targets = setup.calibration
    clear = [row for row in range(16) if row % 4 != 3]
    assert rows.tolist() == (list(range(12)) if rule == "majority" else clear)
    assert targets.tolist() == [row % 8 for row in clear]


def test_the_bundled_student_is_v1_at_a_temperature_and_its_folder_is_consistent() -> None:
    folders = [packaged("hub") / f"student-ferplus-v{version}" for version in (1, 2)]
    assert shipped_student() == folders[1].name
    exact, weights = (load_file(folder / "model.safetensors") for folder in folders)
    assert {name for name in exact if not torch.equal(exact[name], weights[name])} == {"fc.weight", "fc.bias"}
    temperature = load_student().ngd_timm["temperature"]
    for name in ("fc.weight", "fc.bias"):
        torch.testing.assert_close(weights[name].float() * temperature, exact[name].float(), rtol=1e-3, atol=1e-6)
    assert load_student("student-ferplus-v1").ngd_timm == {}
    images = torch.randn(4, 1, 64, 64)
    taught = [KDTeacher.open(folder.name, CLASSES, (0.5,), (0.25,))(images) for folder in folders]
    torch.testing.assert_close(*taught, rtol=1e-3, atol=5e-3)

    run = load_run(folders[1])
    assert check_student(run.metrics, run, "metrics.json") == []
    assert run.metrics["ferplus:test"]["student_temperature"] == temperature
    assert run.metrics["ferplus:test"]["ece"] <= 3
    for name, sha256 in run.fingerprint["sha256"].items():
        assert sha256_file(folders[1] / name) == sha256, name
    card = (folders[1] / "README.md").read_text(encoding="utf-8")
    assert student_card(run, f"ngd-timm/{folders[1].name}", plot=True) == card


def test_a_student_whose_logits_cannot_be_divided_is_trained_and_stays_uncalibrated(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ngd_timm.train.setup.can_calibrate", lambda model: False)
    with caplog.at_level(logging.WARNING, "ngd_timm"):
        run = train(recipe(faces, tmp_path / "run", optim={"epochs": 1, "batch_size": 16}))
    assert "test_resnet: logits not linear in its classifier, so it stays uncalibrated" in caplog.text
    assert "ngd_timm" not in json.loads((run / "student" / "config.json").read_text())
