"""What is folded into a trained classifier, a temperature and logit adjustment, and what a teacher reverts of it."""

from __future__ import annotations

import copy
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import load_file
from tiny_runs import tiny_recipe
from torch.nn import functional as F

from ngd_timm import CLASSES, InputError, KDTeacher, adjust_logits, calibrate, load_run, save_student
from ngd_timm.core.files import packaged, sha256_file
from ngd_timm.core.recipe import LossConfig, Recipe
from ngd_timm.evaluate.predictions import prediction_file, read_predictions
from ngd_timm.evaluate.run import check_student
from ngd_timm.evaluate.student import evaluate
from ngd_timm.models.calibration import TEMPERATURES, can_calibrate, fit_temperature, temperature_line
from ngd_timm.models.kd_teacher import open_teacher
from ngd_timm.models.logit_adjustment import logit_shift, prior_shift
from ngd_timm.models.student import load_student, open_student, shipped_student, student_versions
from ngd_timm.publish.card import student_card
from ngd_timm.report import write_report
from ngd_timm.train.loop import train
from ngd_timm.train.setup import prepare

COUNTS = [9098, 7465, 3454, 4125, 2406, 462, 1019, 527]


def underconfident(n: int = 400, factor: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose softmax is right at the temperature `factor`, and targets sampled from it."""
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
    assert fit_temperature(logits.bfloat16(), targets) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize(
    ("targets", "logits", "temperature"),
    [
        ([0, 1, 0, 1], [[3.0, 0.0], [0.0, 3.0]] * 2, TEMPERATURES[0]),  # all predictions right
        ([1, 1, 1, 1], [[0.0, 3.0], [0.0, 2.0]] * 2, TEMPERATURES[0]),  # one class
        ([1, 0, 1, 0], [[3.0, 0.0], [0.0, 3.0]] * 2, TEMPERATURES[1]),  # all predictions wrong
        ([0, 1, 0, 1], [[1.0, 1.0]] * 4, 1.0),  # no prediction at all
    ],
)
def test_images_that_settle_no_temperature_get_a_bounded_one(
    targets: list[int], logits: list[list[float]], temperature: float
) -> None:
    assert fit_temperature(logits, targets) == temperature
    assert ("don't trust it" in temperature_line(temperature, 4)) == (temperature != 1.0)


class Capped(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).tanh()


def capped() -> Any:
    model = timm.create_model("test_resnet", num_classes=8)
    assert can_calibrate(model)
    model.fc = Capped(model.fc.in_features, 8)
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: calibrate(m, [[1.0, float("nan")]], [0]), "logits must be finite"),
        (lambda m: calibrate(m, [[1.0, 0.0]], [2]), "targets lie in 0..1"),
        (lambda m: calibrate(m, [[1.0, 0.0]], [0, 1]), "logits must be"),
        (lambda m: calibrate(m, [[1.0]], [0.5]), "logits must be"),
        (lambda m: calibrate(m, [[1.0, 0.0, 0.0]], [0]), "logits are of 3 classes, the model has 8"),
        (lambda m: calibrate(m, *underconfident()), "not linear in its classifier"),
        (lambda m: adjust_logits(m, COUNTS[:7]), "counts are 7, the model has 8 classes"),
        (lambda m: adjust_logits(m, [*COUNTS[:7], -1]), "from 0"),
        (lambda m: adjust_logits(m, [*COUNTS[:7], float("nan")]), "one number a class"),
        (lambda m: adjust_logits(m, COUNTS, -0.1), "tau must be at least 0"),
    ],
)
def test_what_cannot_be_folded_in_is_refused_and_the_model_is_left_as_it_was(change: Any, message: str) -> None:
    model = capped()
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        change(model)
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_byobnet", "levit_128s"])
@torch.no_grad()
def test_a_folded_temperature_divides_the_logits_of_any_head_and_is_saved_with_the_student(
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
    config = (save_student(opened, tmp_path / "again") / "config.json").read_text()
    assert config == (folder / "config.json").read_text()
    twice = calibrate(opened, logits / temperature, targets)  # nothing is left to divide
    assert twice.ngd_timm["temperature"] == pytest.approx(temperature, rel=1e-3)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_byobnet"])
def test_adjusted_logits_move_by_tau_times_the_log_prior_and_nothing_else_does(name: str) -> None:
    model = timm.create_model(name, num_classes=8).eval()
    images = torch.randn(2, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0))
    before, weights = model(images), {n: t.clone() for n, t in model.state_dict().items()}
    prior = np.array(COUNTS) / sum(COUNTS)
    moved = before - adjust_logits(model, COUNTS, 0.3)(images)
    np.testing.assert_allclose(moved.detach(), np.broadcast_to(0.3 * np.log(prior), (2, 8)), atol=1e-5)
    (changed,) = [n for n, t in model.state_dict().items() if not torch.equal(t, weights[n])]
    assert changed.endswith("bias")


@pytest.mark.parametrize("first", ["adjusted", "calibrated"])
@torch.no_grad()
def test_the_uniform_prior_takes_out_what_the_bias_still_holds_of_the_training_prior(
    first: str, tmp_path: Path
) -> None:
    model = timm.create_model("test_resnet", num_classes=8).eval()
    images, log_prior = torch.randn(2, 3, 160, 160), torch.tensor(np.array(COUNTS) / sum(COUNTS)).log().float()
    learned = model(images)
    logits, targets = underconfident()
    for step in ("adjusted", "calibrated", "adjusted again")[:: 1 if first == "adjusted" else -1]:
        calibrate(model, logits, targets) if step == "calibrated" else adjust_logits(model, COUNTS, 0.1)
    folder = save_student(model, tmp_path / "student")
    opened, classes = open_student(folder)
    uniform = learned / model.ngd_timm["temperature"] - log_prior  # of calibrated logits, in all
    given = dict.fromkeys(CLASSES, 1.0) | {"neutral": 3.0}
    for prior, expected in (
        ("training", opened(images)),
        ("uniform", uniform),
        (given, uniform + torch.tensor([3.0, *[1.0] * 7]).log()),
    ):
        moved = opened(images) + prior_shift(opened, classes, prior)
        torch.testing.assert_close(moved.log_softmax(1), expected.log_softmax(1), rtol=1e-3, atol=1e-4)


def test_the_counts_of_an_own_loop_are_saved_and_two_priors_in_one_bias_are_not_taken_for_one(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=8)
    with pytest.raises(InputError, match="records no training prior"):
        prior_shift(model, CLASSES, "uniform")
    opened, _ = open_student(save_student(model, tmp_path / "student", counts=COUNTS))
    assert prior_shift(opened, CLASSES, "uniform").tolist() == pytest.approx(
        (-np.log(np.array(COUNTS) / sum(COUNTS))).tolist(), rel=1e-4
    )
    adjusted = adjust_logits(copy.deepcopy(opened), COUNTS, 0.1)
    with pytest.raises(InputError, match="counts are of another prior than the one that adjust_logits took out"):
        save_student(adjusted, tmp_path / "other", counts=COUNTS[::-1])
    save_student(adjusted, tmp_path / "same", counts=COUNTS)
    adjust_logits(opened, COUNTS[::-1], 0.1)
    with pytest.raises(InputError, match="records no training prior"):
        prior_shift(opened, CLASSES, "uniform")
    with pytest.raises(InputError, match="counts are 7, the model has 8 classes"):
        save_student(model, tmp_path / "seven", counts=COUNTS[:7])


def test_a_class_that_training_lacks_counts_as_one_image() -> None:
    assert logit_shift([0, 1, 8], 1.0).tolist() == pytest.approx(np.log([0.1, 0.1, 0.8]).tolist())


def recipe(root: Path, out: Path, student: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    student = {"backbone": "test_resnet", "image_size": 32, **(student or {})}
    return tiny_recipe(root, out, student=student, loss={"class_weights": "none"}, **changes)


@pytest.fixture(scope="module")
def runs(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The same run calibrated, as by default; plain; and with logit adjustment."""
    folder = tmp_path_factory.mktemp("runs")
    return (
        train(recipe(faces, folder / "calibrated")),
        train(recipe(faces, folder / "plain", {"calibrate": False})),
        train(recipe(faces, folder / "adjusted", {"calibrate": False, "logit_adjustment": 0.7})),
    )


def saved_weights(*runs: Path, student: str = "student") -> list[dict[str, torch.Tensor]]:
    return [load_file(run / student / "model.safetensors") for run in runs]


def different(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in first if not torch.equal(first[name], second[name])}


def test_a_run_saves_and_scores_its_students_calibrated_and_reports_the_temperature(
    runs: tuple[Path, Path, Path], faces: Path
) -> None:
    calibrated, plain, _ = runs
    raw = read_predictions(prediction_file(plain, "schematic:valid"))
    temperature = fit_temperature(raw.logits, raw.target)
    for student in ("student", "student_best"):
        config = json.loads((calibrated / student / "config.json").read_text())
        weights, exact = saved_weights(calibrated, plain, student=student)
        assert different(weights, exact) == {"fc.weight", "fc.bias"}
        for name in ("fc.weight", "fc.bias"):
            torch.testing.assert_close(weights[name] * config["ngd_timm"]["temperature"], exact[name])
        if student == "student":
            assert (set(config["ngd_timm"]), config["ngd_timm"]["temperature"]) == (
                {"prior", "temperature"},
                temperature,
            )
    assert set(json.loads((plain / "student" / "config.json").read_text())["ngd_timm"]) == {"prior"}
    kept = read_predictions(prediction_file(calibrated, "schematic:valid"))
    torch.testing.assert_close(kept.logits * temperature, raw.logits)
    entries = [json.loads((run / "metrics.json").read_text())["schematic:valid"] for run in (calibrated, plain)]
    assert [entry["student_temperature"] for entry in entries] == [temperature, 1.0]
    assert entries[0]["8way"] == entries[1]["8way"]
    (scored,) = evaluate(calibrated, [f"schematic={faces}:test"], predictions=True).values()  # and last/ fits student/
    assert scored["student_temperature"] == temperature
    assert f"logits divided by {temperature:g}" in write_report(calibrated).read_text(encoding="utf-8")
    card = student_card(load_run(calibrated), "lab/student")
    assert f"| temperature scaling | post hoc | T={temperature:g}" in card
    assert "trained with ngd_timm" not in card  # nothing was distilled


def test_a_run_trains_as_without_logit_adjustment_and_saves_and_scores_the_adjusted_student(
    runs: tuple[Path, Path, Path],
) -> None:
    _, plain, moved = runs
    counts = json.loads((moved / "fingerprint.json").read_text())["data"]["train"]["counts"]
    shift = logit_shift([counts[name] for name in CLASSES], 0.7)
    assert shift.std() > 0
    for run, tau in ((plain, None), (moved, 0.7)):
        notes = json.loads((run / "student" / "config.json").read_text())["ngd_timm"]
        assert notes["prior"] == pytest.approx({name: n / sum(counts.values()) for name, n in counts.items()}, rel=1e-5)
        assert notes.get("logit_adjustment") == tau
    weights, changed = saved_weights(plain, moved)
    assert different(weights, changed) == {"fc.bias"}
    torch.testing.assert_close(weights["fc.bias"] - changed["fc.bias"], shift)
    logits = [read_predictions(prediction_file(run, "schematic:valid")).logits for run in (plain, moved)]
    torch.testing.assert_close(logits[0] - logits[1], shift.expand_as(logits[0]), atol=1e-5, rtol=0)
    assert "| logit adjustment | post hoc | tau=0.7 | A. K. Menon" in student_card(load_run(moved), "lab/student")
    assert "logit adjustment" not in student_card(load_run(plain), "lab/student")
    assert "logits less 0.7 × the log prior" in write_report(moved).read_text(encoding="utf-8")
    assert "Saved with" not in write_report(plain).read_text(encoding="utf-8")


def test_a_teacher_teaches_what_it_learned_alone_and_in_an_ensemble(runs: tuple[Path, Path, Path]) -> None:
    images = torch.randn(4, 1, 32, 32)
    calibrated, plain, moved = (KDTeacher.open(run, CLASSES, (0.5,), (0.25,))(images) for run in runs)
    assert (open_student(runs[0])[0](images) - plain).abs().max() > 0.1
    torch.testing.assert_close(calibrated, plain)
    torch.testing.assert_close(moved, plain)
    torch.testing.assert_close(open_teacher(runs, CLASSES, (0.5,), (0.25,))(images), plain)
    by_model = KDTeacher.open(load_run(runs[0]).student, CLASSES, (0.5,), (0.25,))
    torch.testing.assert_close(by_model(images), plain)


def test_a_run_that_starts_from_a_calibrated_student_starts_from_what_was_learned(
    runs: tuple[Path, Path, Path], faces: Path, tmp_path: Path
) -> None:
    started = prepare(recipe(faces, tmp_path / "run", init=str(runs[0]))).task.trainable_module.student
    torch.testing.assert_close(started.fc.weight, saved_weights(runs[1])[0]["fc.weight"])


def test_after_class_balanced_sampling_the_prior_is_even_and_the_teacher_adds_it_back(
    faces: Path, tmp_path: Path
) -> None:
    rare = tmp_path / "faces"
    shutil.copytree(faces, rare)
    table = pq.read_table(rare / "train.parquet")
    label = np.array(table["label"].to_pylist())
    pq.write_table(table.filter(pa.array((label != 3) | (np.cumsum(label == 3) == 1))), rare / "train.parquet")
    moved = train(
        recipe(
            rare,
            tmp_path / "moved",
            {"calibrate": False, "logit_adjustment": 0.7},
            data={"name": "schematic", "root": str(rare), "workers": 0, "sampler": "class_aware"},
            allow_stacked_balancing=True,
            optim={"epochs": 1, "batch_size": 16},
        )
    )
    images = torch.randn(2, 1, 32, 32)
    learned, saved = KDTeacher.open(moved, CLASSES, (0.5,), (0.25,))(images), open_student(moved)[0](images)
    torch.testing.assert_close(saved - learned, torch.full((2, 8), 0.7 * np.log(8).item()))
    even = pytest.approx([1 / 8] * 8, rel=1e-3)
    assert open_student(moved)[0].ngd_timm["prior"] == even
    weighted = recipe(rare, tmp_path / "weighted").model_copy(update={"loss": LossConfig(class_weights="balanced")})
    counted = recipe(rare, tmp_path / "counted")
    priors = [prepare(one).task.trainable_module.student.ngd_timm["prior"] for one in (weighted, counted)]
    assert priors[0] == even  # as the loss weighs them
    assert min(priors[1]) == pytest.approx(1 / 43, rel=0.03)
    # weights act in cross-entropy alone
    taught = weighted.model_copy(
        update={"loss": LossConfig(class_weights="balanced", ce=0, kd=1), "teacher": str(moved)}
    )
    assert prepare(taught).task.trainable_module.student.ngd_timm["prior"] == priors[1]


def test_a_classifier_without_one_bias_is_refused_before_anything_is_written(faces: Path, tmp_path: Path) -> None:
    student = {"backbone": "levit_128s", "image_size": 224, "logit_adjustment": 0.1}
    with pytest.raises(InputError, match="is no layer with a bias"):
        train(recipe(faces, tmp_path / "run", student))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rule", ["votes", "argmax", "majority"])
def test_whatever_the_label_rule_the_temperature_is_fitted_on_majority_labels(
    faces: Path, tmp_path: Path, rule: str
) -> None:
    for split in ("train", "valid"):
        table = pq.read_table(faces / f"{split}.parquet", columns=["image"])
        votes = np.zeros((len(table), 10), int)
        for row, label in enumerate(np.arange(len(table)) % 8):  # every fourth has no majority
            counts = (4, 3, 3) if row % 4 == 3 else (8, 2, 0)
            votes[row, label], votes[row, (label + 1) % 8], votes[row, (label + 2) % 8] = counts
        for column, name in enumerate((*CLASSES, "unknown", "NF")):
            table = table.append_column(name, pa.array(votes[:, column]))
        pq.write_table(table, tmp_path / f"{split}.parquet")
    data = {"name": "ferplus", "root": str(tmp_path), "workers": 0, "label_rule": rule}
    setup = prepare(recipe(tmp_path, tmp_path / "run", data=data))
    assert setup.calibration is not None
    rows, targets = setup.calibration
    clear = [row for row in range(16) if row % 4 != 3]
    assert rows.tolist() == (list(range(12)) if rule == "majority" else clear)
    assert targets.tolist() == [row % 8 for row in clear]


def test_a_student_whose_logits_cannot_be_divided_stays_uncalibrated(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ngd_timm.train.setup.can_calibrate", lambda model: False)
    with caplog.at_level(logging.WARNING, "ngd_timm"):
        assert prepare(recipe(faces, tmp_path / "run")).calibration is None
    assert "test_resnet: logits not linear in its classifier, so it stays uncalibrated" in caplog.text


def test_the_newest_student_that_is_not_the_fast_one_is_the_default_and_the_first_has_no_notes() -> None:
    assert shipped_student() == "student-ferplus-v3"
    assert load_student("student-ferplus-v1").ngd_timm == {}


@pytest.mark.parametrize("version", [v for v in student_versions() if v != "student-ferplus-v1"])
def test_a_bundled_students_folder_is_consistent(version: str) -> None:
    folder = packaged("hub") / version
    run, notes = load_run(folder), load_student(version).ngd_timm
    drawn = run.fingerprint["data"]["train"]["counts"]
    # these folders' fingerprints are of a time when votes were summed in float32
    assert dict(zip(CLASSES, notes["prior"], strict=True)) == pytest.approx(
        {name: n / sum(drawn.values()) for name, n in drawn.items()}, rel=1e-4
    )
    assert notes["logit_adjustment"] == run.recipe.student.logit_adjustment
    assert check_student(run.metrics, run, "metrics.json") == []
    assert run.metrics["ferplus:test"]["student_temperature"] == notes["temperature"]
    assert run.metrics["ferplus:test"]["ece"] <= 3
    for name, sha256 in run.fingerprint["sha256"].items():
        assert sha256_file(folder / name) == sha256, name
    card = (folder / "README.md").read_text(encoding="utf-8")
    untimed = [re.sub(r"one thread of .*", "", text) for text in (student_card(run, f"ngd-timm/{version}", True), card)]
    assert untimed[0] == untimed[1]
