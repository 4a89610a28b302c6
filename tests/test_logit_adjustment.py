"""Post-hoc logit adjustment is a constant a class, in the bias, and nowhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import load_file
from sklearn.metrics import balanced_accuracy_score

from ngd_timm import CLASSES, InputError, adjust_logits, load_run
from ngd_timm.core.recipe import Recipe
from ngd_timm.evaluate.predictions import prediction_file, read_predictions
from ngd_timm.models.kd_teacher import KDTeacher
from ngd_timm.models.logit_adjustment import adjusted, logit_shift
from ngd_timm.publish.card import student_card
from ngd_timm.report import write_report
from ngd_timm.train.loop import train

COUNTS = [9098, 7465, 3454, 4125, 2406, 462, 1019, 527]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_byobnet"])
def test_logits_move_by_tau_times_the_log_prior_and_nothing_else_does(name: str) -> None:
    model = timm.create_model(name, num_classes=8).eval()
    images = torch.randn(2, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0))
    before, weights = model(images), {n: t.clone() for n, t in model.state_dict().items()}
    prior = np.array(COUNTS) / sum(COUNTS)
    moved = before - adjust_logits(model, COUNTS, 0.3)(images)
    np.testing.assert_allclose(moved.detach(), np.broadcast_to(0.3 * np.log(prior), (2, 8)), atol=1e-5)
    changed = [n for n, t in model.state_dict().items() if not torch.equal(t, weights[n])]
    assert len(changed) == 1
    assert changed[0].endswith("bias")


def test_with_tau_one_it_is_the_bayes_answer_for_balanced_accuracy() -> None:
    rng = np.random.default_rng(0)
    prior = np.array([0.9, 0.08, 0.02])
    target = rng.choice(3, size=20_000, p=prior)
    seen = rng.normal(target, 1.0)
    likelihood = -0.5 * (seen[:, None] - np.arange(3)) ** 2  # of each class, up to a constant
    logits = likelihood + np.log(prior)
    plain, fair = logits.argmax(1), (logits - logit_shift(prior * 1e6, 1.0).numpy()).argmax(1)
    assert np.array_equal(fair, likelihood.argmax(1))
    assert balanced_accuracy_score(target, fair) > balanced_accuracy_score(target, plain) + 0.1


def test_a_class_that_training_lacks_counts_as_one_picture() -> None:
    assert logit_shift([0, 1, 8], 1.0).tolist() == pytest.approx(np.log([0.1, 0.1, 0.8]).tolist())


def test_a_model_held_adjusted_comes_back_to_the_bit() -> None:
    model = timm.create_model("test_resnet", num_classes=8)
    torch.nn.init.normal_(model.fc.bias)
    exact = model.fc.bias.clone()
    with adjusted(model, logit_shift(COUNTS, 0.5)):
        assert (model.fc.bias - exact).abs().min() > 0.1
    assert torch.equal(model.fc.bias, exact)


@pytest.mark.parametrize(
    ("counts", "tau", "message"),
    [
        (COUNTS[:7], 1.0, "counts are 7, the model has 8 classes"),
        ([*COUNTS[:7], -1], 1.0, "from 0"),
        ([*COUNTS[:7], float("nan")], 1.0, "one number a class"),
        (COUNTS, -0.1, "tau at least 0"),
    ],
)
def test_wrong_counts_are_refused(counts: list[float], tau: float, message: str) -> None:
    model = timm.create_model("test_resnet", num_classes=8)
    exact = model.fc.bias.clone()
    with pytest.raises(InputError, match=message):
        adjust_logits(model, counts, tau)
    assert torch.equal(model.fc.bias, exact)


def tiny(faces: Path, out: Path, sampler: str = "random", **student: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny",
            "out": str(out),
            "student": {"backbone": "test_resnet", "image_size": 32, "calibrate": False, **student},
            "data": {"name": "schematic", "root": str(faces), "workers": 0, "sampler": sampler},
            "allow_stacked_balancing": sampler != "random",
            "loss": {"class_weights": "none"},
            "optim": {"epochs": 1, "batch_size": 16, "lr": 1e-3},
        }
    )


def test_a_run_trains_as_without_it_and_saves_and_scores_the_adjusted_student(faces: Path, tmp_path: Path) -> None:
    plain = train(tiny(faces, tmp_path / "plain"))
    moved = train(tiny(faces, tmp_path / "moved", logit_adjustment=0.7))
    counts = json.loads((moved / "fingerprint.json").read_text())["data"]["train"]["counts"]
    shift = logit_shift([counts[name] for name in CLASSES], 0.7)
    assert shift.std() > 0
    weights, changed = (load_file(run / "student" / "model.safetensors") for run in (plain, moved))
    assert [name for name in weights if not torch.equal(weights[name], changed[name])] == ["fc.bias"]
    torch.testing.assert_close(weights["fc.bias"] - changed["fc.bias"], shift)
    logits = [read_predictions(prediction_file(run, "schematic:valid")).logits for run in (plain, moved)]
    torch.testing.assert_close(logits[0] - logits[1], shift.expand_as(logits[0]), atol=1e-5, rtol=0)
    assert "| logit adjustment | post hoc | tau=0.7 | A. K. Menon" in student_card(load_run(moved), "lab/student")
    assert "logit adjustment" not in student_card(load_run(plain), "lab/student")
    assert "logits less 0.7 × the log prior" in write_report(moved).read_text(encoding="utf-8")
    assert "Saved with" not in write_report(plain).read_text(encoding="utf-8")


def test_after_a_sampler_that_balances_the_classes_the_prior_is_even_and_the_teacher_gives_back_as_much(
    faces: Path, tmp_path: Path
) -> None:
    rare = tmp_path / "faces"
    shutil.copytree(faces, rare)
    table = pq.read_table(rare / "train.parquet")
    label = np.array(table["label"].to_pylist())
    pq.write_table(table.filter(pa.array((label != 3) | (np.cumsum(label == 3) == 1))), rare / "train.parquet")
    plain = train(tiny(rare, tmp_path / "plain", "class_aware"))
    moved = train(tiny(rare, tmp_path / "moved", "class_aware", logit_adjustment=0.7))
    bias = [load_file(run / "student" / "model.safetensors")["fc.bias"] for run in (plain, moved)]
    torch.testing.assert_close(bias[1] - bias[0], torch.full((8,), 0.7 * np.log(8).item()))
    images = torch.randn(2, 1, 32, 32)
    said = [KDTeacher.open(run, CLASSES, (0.5,), (0.25,))(images) for run in (plain, moved)]
    torch.testing.assert_close(said[0], said[1])


def test_a_classifier_without_one_bias_is_refused_before_anything_is_written(faces: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not one layer with a bias"):
        train(tiny(faces, tmp_path / "run", backbone="levit_128s", image_size=224, logit_adjustment=0.1))
    assert not (tmp_path / "run").exists()
