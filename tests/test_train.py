"""Whole runs on a handful of drawn faces: the run directory, resuming, and refusals that write nothing."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import tiny_recipe

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import packaged, read_json, sha256_file
from ngd_timm.core.recipe import Recipe
from ngd_timm.data import load_split
from ngd_timm.data.synthetic.schematic import draw_face
from ngd_timm.evaluate.metrics import METRICS
from ngd_timm.evaluate.predictions import predict, prediction_file, read_predictions
from ngd_timm.evaluate.run_log import epoch_line, present_column, read_rows
from ngd_timm.evaluate.student import evaluate, face_batches
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.models.kd_teacher import KDTeacher, open_teacher
from ngd_timm.models.student import load_student, open_student, save_student, shipped_student
from ngd_timm.report import write_report
from ngd_timm.train.checkpoint import weights_are_finite
from ngd_timm.train.loop import resume, train
from ngd_timm.train.setup import open_grid, prepare
from ngd_timm.train.task import NeuroGazeTask

FULL = {
    "grid": "gameemo-v2",
    "grid_control": "random",
    "loss": {"kd": 0.3, "proto_kd": 0.2, "tau": 0.1, "d_geo": 0.05, "ramp": [0, 1]},
}


@pytest.fixture(scope="module")
def baseline(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny_recipe(faces, tmp_path_factory.mktemp("runs") / "ce"))


@pytest.fixture(scope="module")
def full(faces: Path, baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "full"
    return train(tiny_recipe(faces, out, teacher=str(baseline), **FULL))


def test_a_run_directory_holds_what_the_design_promises(full: Path) -> None:
    names = {p.name for p in full.iterdir()}
    assert {"recipe.yaml", "fingerprint.json", "summary.csv", "student", "last", "metrics.json"} <= names
    entry = read_json(full / "metrics.json")["schematic:valid"]
    assert entry["n"] == 16
    assert set(entry["8way"]) == set(entry["present"]) == {"acc", "macro_f1", "bacc"}
    fingerprint = read_json(full / "fingerprint.json")
    assert len(fingerprint["grid"]) == len(fingerprint["teacher"]) == 64
    assert set(fingerprint["data"]) == {"train", "valid"}


def test_every_component_and_its_share_of_the_gradient_is_logged(full: Path) -> None:
    rows = read_rows(full / "summary.csv")
    for row in rows:
        shares = [float(row[f"share_{name}"]) for name in ("ce", "kd", "proto_kd", "d_geo")]
        assert sum(shares) == pytest.approx(100, abs=0.01)
        assert min(shares[0], float(row["proto_kd"]), float(row["kd"])) > 0
    assert float(rows[0]["geo_ramp"]) == 0 < float(rows[1]["geo_ramp"])


def test_the_student_loads_with_stock_timm_as_it_is_predicted_with(full: Path) -> None:
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    student = timm.create_model(f"local-dir:{full / 'student'}", pretrained=True).eval()
    assert torch.equal(student(images), open_student(full)[0](images))
    cfg = {key: tuple(student.pretrained_cfg[key]) for key in ("input_size", "mean", "std", "label_names")}
    assert cfg == {"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.25,), "label_names": CLASSES}


def test_a_student_stored_in_float16_is_half_the_file_and_is_scored_as_stored(faces: Path, tmp_path: Path) -> None:
    student = {**tiny_recipe(faces, tmp_path).student.model_dump(), "calibrate": False}
    optim = {"epochs": 1, "batch_size": 16}
    baseline = train(tiny_recipe(faces, tmp_path / "exact", student=student, optim=optim))
    run = train(tiny_recipe(faces, tmp_path / "run", student={**student, "weights": "float16"}, optim=optim))
    exact, stored = (load_file(folder / "student" / "model.safetensors") for folder in (baseline, run))
    halves = {name: tensor.half() if "weight" in name and tensor.ndim > 1 else tensor for name, tensor in exact.items()}
    assert {name: tensor.dtype for name, tensor in stored.items()} == {n: t.dtype for n, t in halves.items()}
    # and so training went on from the exact weights
    assert all(torch.equal(stored[name], tensor) for name, tensor in halves.items())
    sizes = [(folder / "student" / "model.safetensors").stat().st_size for folder in (baseline, run)]
    assert sizes[1] < 0.55 * sizes[0]
    assert "matrices in float16" in write_report(run).read_text(encoding="utf-8")
    assert len({path.stat().st_mode for path in (run / "student").iterdir()}) == 1  # readable by whom the config is
    kept, unrounded = (read_predictions(prediction_file(at, "schematic:valid")).logits for at in (run, baseline))
    loaded = open_student(run)[0]
    valid, _ = load_split("schematic", str(faces), "valid")
    again = predict(loaded, face_batches(loaded, valid), torch.device("cpu")).logits
    assert (kept - again).abs().max() < 1e-6 < 1e-5 < (kept - unrounded).abs().max()
    copy = save_student(loaded, tmp_path / "copy", CLASSES, "float16")
    assert sha256_file(copy / "model.safetensors") == sha256_file(run / "student" / "model.safetensors")


def test_weights_beyond_float16_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=8, in_chans=1)
    with torch.no_grad():
        model.conv1[0].weight[0, 0, 0, 0] = 1e5
    with pytest.raises(InputError, match=r"conv1\.0\.weight .* float16 can't hold"):
        save_student(model, tmp_path / "student", CLASSES, "float16")
    with pytest.raises(InputError, match="float8"):
        save_student(model, tmp_path / "student", CLASSES, "float8")
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("control", ["none", "shuffled", "random", "va"])
def test_a_control_is_made_of_the_grid_that_the_recipe_names(control: str, center: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    own = PrototypeGrid.build(rng.normal(1, 1, (60, 128)), rng.uniform(-1, 1, (60, 2)), size=3)
    own.save(tmp_path / "own.safetensors")
    changes = {"grid": str(tmp_path / "own.safetensors"), "grid_center": center, "grid_control": control, "seed": 3}
    grid = open_grid(Recipe.model_validate({"name": "mine", **changes}))
    assert grid is not None
    assert (grid.dim, grid.size) == (128, 3)
    real = own.centered() if center else own
    ordered = [sorted(g.prototypes.tolist()) for g in (grid, real)]
    assert (ordered[0] == ordered[1]) == (control in ("none", "shuffled"))
    assert torch.equal(grid.prototypes, real.prototypes) == (control == "none")
    assert grid.metadata.get("control", "none") == {"va": "random"}.get(control, control)


def test_a_share_holds_while_the_gradients_change(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in {"_EARLY": 4, "_EVERY_EARLY": 1, "_EVERY_LATER": 2}.items():
        monkeypatch.setattr(f"ngd_timm.train.gradient_share.{name}", number)
    changes = {
        "grid": "gameemo-v2",
        "grid_control": "random",
        "loss": {"proto_share": 0.25},
        "optim": {"epochs": 12, "batch_size": 16, "lr": 1e-2},
    }
    first, *_, last = read_rows(train(tiny_recipe(faces, tmp_path / "run", **changes)) / "summary.csv")
    assert float(last["lambda_proto_kd"]) > 1.5 * float(first["lambda_proto_kd"])
    assert float(last["share_proto_kd"]) == pytest.approx(25, abs=6)


def test_ema_flip_the_class_aware_sampler_and_a_long_warm_up_work_together(faces: Path, tmp_path: Path) -> None:
    optim = {"epochs": 1, "batch_size": 16, "ema": 0.9, "warmup": 0.9}  # which rounds to all three steps
    changes = {"optim": optim, "eval_flip": True, "loss": {"class_weights": "none"}}
    data = {"name": "schematic", "root": str(faces), "workers": 0, "sampler": "class_aware"}
    run = train(tiny_recipe(faces, tmp_path / "run", data=data, **changes))
    assert json.loads((run / "metrics.json").read_text())["schematic:valid"]["flip"] is True


@pytest.mark.parametrize(("schedule", "warmup"), [("cosine", 0), ("cosine", 0.25), ("constant", 1)])
def test_the_learning_rate_warms_up_in_a_line_and_then_follows_the_schedule(
    schedule: str, warmup: float, faces: Path, tmp_path: Path
) -> None:
    optim = {"epochs": 4, "batch_size": 16, "lr": 1e-3, "schedule": schedule, "warmup": warmup}
    setup = prepare(tiny_recipe(faces, tmp_path / "run", optim=optim))
    updates, warm = 4 * 3, 3 if warmup else 0
    rates = []
    for update in range(updates):
        setup.scheduler.step_update(update)
        rates.append(setup.optimizer.param_groups[0]["lr"])
    low = 1e-3 / 25
    expected = [low + (1e-3 - low) * update / warm for update in range(warm)]
    for update in range(updates - warm):
        falling = 0.5 * (1 + math.cos(math.pi * update / (updates - warm)))
        expected.append(1e-3 * (falling if schedule == "cosine" else 1))
    assert rates == pytest.approx(expected)


def test_gradients_are_clipped_to_the_norm_that_the_recipe_names(faces: Path, tmp_path: Path) -> None:
    moved = {}
    for norm in (1e-3, 2e-3):
        optim = {"epochs": 1, "batch_size": 48, "lr": 1.0, "opt": "momentum", "weight_decay": 0.0, "clip_grad": norm}
        student = {"backbone": "test_resnet", "image_size": 32, "calibrate": False}
        recipe = tiny_recipe(faces, tmp_path / str(norm), optim=optim, student=student)
        before = prepare(recipe).task.trainable_module.student.named_parameters()
        after = open_student(train(recipe))[0].state_dict()
        moved[norm] = math.sqrt(sum(float((after[name] - p.detach()).square().sum()) for name, p in before))
    assert moved == pytest.approx({1e-3: 1e-3, 2e-3: 2e-3}, rel=0.05)


@pytest.mark.parametrize("metric", ["acc", "macro_f1"])
def test_the_best_student_is_that_of_the_epoch_with_the_highest_metric(
    metric: str, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([{"acc": 30.0, "macro_f1": 10.0, "bacc": 0.0}, {"acc": 20.0, "macro_f1": 20.0, "bacc": 0.0}])
    monkeypatch.setattr("ngd_timm.train.loop.fer_metrics", lambda *_, **__: {"8way": next(scores)})
    run = train(tiny_recipe(faces, tmp_path / "run", best_metric=metric))
    last, best = (sha256_file(run / name / "model.safetensors") for name in ("student", "student_best"))
    assert (last == best) == (metric == "macro_f1")


def test_a_student_is_chosen_by_sets_that_it_does_not_train_on_and_the_run_says_so(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def entry(**scores: float) -> dict[str, dict[str, float]]:
        return {key: {"acc": 0.0, "macro_f1": score, "bacc": 0.0} for key, score in {"8way": 0.0, **scores}.items()}

    # by epoch validation, then the two sets, whose mean falls
    scores = iter([entry(**{"8way": 10.0}), entry(present=60.0), entry(present=30.0)])
    later = iter([entry(**{"8way": 20.0}), entry(present=50.0), entry(present=36.0)])
    monkeypatch.setattr("ngd_timm.train.loop.fer_metrics", lambda *_, **__: next(scores, None) or next(later))
    sets = {"schematic": f"{faces}:test", "ferplus": f"{faces}:valid"}
    changes = {"eval": sets, "best_on": ["schematic", "ferplus"], "best_metric": "macro_f1"}
    with caplog.at_level("INFO", logger="ngd_timm.train"):
        run = train(tiny_recipe(faces, tmp_path / "run", **changes))
    last, best = (sha256_file(run / name / "model.safetensors") for name in ("student", "student_best"))
    assert last != best
    rows = read_rows(run / "summary.csv")
    assert [[float(row[f"{name}_present_macro_f1"]) for name in sets] for row in rows] == [[60, 30], [50, 36]]
    note = "student_best/ was chosen by its present-only macro-F1 on schematic and ferplus, so its scores there are opt"
    assert note in caplog.text
    assert "schematic present-only acc 0.00 macro-F1 60.00 bACC 0.00  ferplus present-only acc 0.00" in caplog.text
    caplog.clear()
    evaluate(run / "student_best", [f"schematic={faces}:test"])
    assert note in caplog.text
    page = write_report(run).read_text(encoding="utf-8")
    assert note in page
    table = page[page.index("What choosing an epoch is worth") :]
    found = re.findall(r'<th scope="row">([^<]+)</th><td>(\d)</td>', table[: table.index("</table>")])
    ways = {"validation": "1", "schematic": "0", "ferplus": "1", "schematic and ferplus": "0"}
    assert found == [*((f"best by {way}", epoch) for way, epoch in ways.items()), ("last epoch", "1")]


def test_a_damaged_image_of_a_set_that_is_scored_last_is_found_first(faces: Path, tmp_path: Path) -> None:
    for name in CLASSES[:2]:
        (tmp_path / "faces" / name).mkdir(parents=True)
        Image.new("L", (32, 32), 90).save(tmp_path / "faces" / name / "a.png")
    whole = (tmp_path / "faces" / CLASSES[0] / "a.png").read_bytes()
    (tmp_path / "faces" / CLASSES[0] / "a.png").write_bytes(whole[:50])
    with pytest.raises(InputError, match=r"neutral/a\.png.*decoded \(image file is truncated"):
        train(tiny_recipe(faces, tmp_path / "run", eval={"mine:affectnet": str(tmp_path / "faces")}))
    assert not (tmp_path / "run").exists()


def test_a_teacher_without_a_weight_is_said_to_have_no_part(
    faces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tiny_recipe(faces, tmp_path / "run", teacher="student-ferplus-v3"))
    assert "the teacher (student-ferplus-v3) has no part, since loss.kd is 0" in caplog.text


def test_an_epochs_line_names_a_set_by_its_title_whatever_that_is() -> None:
    row = {"epoch": 0, "seconds": 1.0, "images_per_second": 9.0, **{f"valid_{m}": 1.0 for m in METRICS}}
    row |= {present_column("a_present_b", m): 50.0 for m in METRICS}
    assert "  a_present_b present-only acc 50.00 " in epoch_line(row, 1)


def test_a_run_without_a_projection_keeps_the_students_own_features(faces: Path, tmp_path: Path) -> None:
    student = {"backbone": "test_resnet", "image_size": 32, "projection": "none"}
    width = timm.create_model("test_resnet").head_hidden_size
    PrototypeGrid.random(width).save(tmp_path / "wide.safetensors")
    loss = {"proto_kd": 0.2, "tau": 0.1, "d_geo": 0.05, "ramp": [0, 0], "d_geo_on": "features"}
    changes = {"student": student, "grid": str(tmp_path / "wide.safetensors"), "loss": loss}
    run = train(tiny_recipe(faces, tmp_path / "run", **changes))
    model, _ = open_student(run)
    evaluate(run, [f"schematic={faces}:test"], predictions=True)
    for split in ("valid", "test"):
        images = face_batches(model, load_split("schematic", str(faces), split)[0])
        with torch.no_grad():
            features = torch.cat(
                [model.forward_head(model.forward_features(b.images), pre_logits=True) for b in images]
            )
        kept = read_predictions(prediction_file(run, f"schematic:{split}")).embedding
        torch.testing.assert_close(kept, features, rtol=1e-4, atol=1e-5)
    assert float(read_rows(run / "summary.csv")[-1]["share_d_geo"]) > 0
    assert "Rimmed marks" in write_report(run).read_text(encoding="utf-8")  # its embeddings lie in the grid's space


def test_evaluate_scores_several_sets_and_writes_the_metrics_form(baseline: Path, faces: Path, tmp_path: Path) -> None:
    results = evaluate(baseline, [f"schematic={faces}:test", f"schematic={faces}"], tmp_path / "scores.json")
    assert {key: entry["n"] for key, entry in results.items()} == {"schematic:test": 16, "schematic:all": 80}
    assert json.loads((tmp_path / "scores.json").read_text()) == results
    sha256 = sha256_file(baseline / "student" / "model.safetensors")
    assert {(e["student_sha256"], e["drop_duplicates"]) for e in results.values()} == {(sha256, True)}
    (kept,) = evaluate(baseline / "student_best", [f"schematic={faces}"], drop_duplicates=False).values()
    assert kept["student_sha256"] == sha256_file(baseline / "student_best" / "model.safetensors")
    assert kept["drop_duplicates"] is False
    with pytest.raises(InputError, match="same data set twice"):
        evaluate(baseline, [f"schematic={faces}:test"] * 2)


def test_one_student_is_scored_by_one_rule_whatever_it_is_called(voted: Path, tmp_path: Path) -> None:
    votes = {"name": "ferplus", "root": str(voted), "workers": 0, "label_rule": "votes"}
    optim = {"epochs": 1, "batch_size": 16}
    run = train(tiny_recipe(voted, tmp_path / "run", data=votes, optim=optim, eval_flip=True))
    for source in (run, run / "student", run / "student_best"):
        (entry,) = evaluate(source, [f"ferplus={voted}:test"]).values()
        assert (entry["label_rule"], entry["flip"]) == ("votes", True), source
    shutil.copytree(run / "student", tmp_path / "bare" / "student")
    (tmp_path / "bare" / "recipe.yaml").write_text("flour: 500 g", encoding="utf-8")
    (entry,) = evaluate(tmp_path / "bare" / "student", [f"ferplus={voted}:test"]).values()
    assert (entry["label_rule"], entry["flip"]) == ("majority", False)
    bundled = packaged("hub") / "student-ferplus-v1"
    for source in (bundled, bundled.name):
        (entry,) = evaluate(source, [f"ferplus={voted}:test"]).values()
        assert entry["label_rule"] == "votes", source
    for source in (run / "student", bundled.name):
        with pytest.raises(InputError, match="is not a run directory"):
            evaluate(source, [f"ferplus={voted}:test"], predictions=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": {"backbone": "resnet81"}}, "did you mean 'resnet18'"),
        ({"student": {"backbone": "resnet18.a9_in1k"}}, "unknown tag of resnet18 'a9_in1k'; did you mean 'a3_in1k'"),
        ({"grid": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"teacher": "nowhere", "loss": {"kd": 0.3}}, "nowhere"),
        ({"init": "nowhere"}, "nowhere"),
        ({"device": "tpu9"}, "device"),
        ({"optim": {"batch_size": 400}}, "lower batch_size"),
        ({"optim": {"opt": "adamm", "batch_size": 16}}, "adamm"),
        ({"data": {"name": "schematic"}}, "data.root is not set"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    faces: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(tiny_recipe(faces, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_with_its_name_and_batch_and_keeps_the_last_good_checkpoint(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = NeuroGazeTask.forward, []

    def nan_at_the_fifth(task: NeuroGazeTask, *batch: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        result = forward(task, *batch)
        factor = torch.nan if len(calls) == 5 else 1
        return {name: value * factor if name in ("ce", "loss") else value for name, value in result.items()}

    monkeypatch.setattr(NeuroGazeTask, "forward", nan_at_the_fifth)
    run = tmp_path / "run"
    message = "ce became NaN or infinite in epoch 2, batch 2; .* kept: after epoch 1, batch 1 of the next"
    with pytest.raises(InputError, match=message):
        train(tiny_recipe(faces, run, save_every=1e-9))
    state = torch.load(run / "last" / "step.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 1)
    assert all(v.isfinite().all() for v in state["checkpoint"]["state_dict"].values())
    assert len(read_rows(run / "summary.csv")) == 1


def test_weights_that_are_not_finite_are_never_saved(faces: Path, tmp_path: Path) -> None:
    optim = {"epochs": 1, "batch_size": 16, "lr": 1e38, "weight_decay": 10, "clip_grad": None, "opt": "sgd"}
    with pytest.raises(InputError, match="a weight became NaN or infinite in epoch 1, batch 1"):
        train(tiny_recipe(faces, tmp_path / "run", optim=optim, save_every=1e-9))
    assert not (tmp_path / "run" / "last").exists()


def test_a_limit_without_bound_is_no_spoilt_weight_and_a_spoilt_average_is_one() -> None:
    model = timm.create_model("test_resnet")
    model.register_buffer("clip_min", torch.tensor(-math.inf))
    setup: Any = SimpleNamespace(task=SimpleNamespace(trainable_module=model))
    assert weights_are_finite(setup)
    next(b for name, b in model.named_buffers() if name.endswith("running_var")).fill_(math.inf)
    assert not weights_are_finite(setup)


def test_training_is_refused_on_devices_that_it_was_not_written_for(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ngd_timm.train.setup.open_device", torch.device)
    with pytest.raises(InputError, match="device=mps: training is written for cpu and cuda"):
        train(tiny_recipe(faces, tmp_path / "run", device="mps"))
    assert not (tmp_path / "run").exists()


def test_a_fingerprint_changes_with_the_teachers_class_order_and_with_valence_and_arousal(
    faces: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(faces, tmp_path / "faces"))
    model = timm.create_model("test_resnet", num_classes=8, in_chans=1)
    teacher = save_student(model, tmp_path / "teacher", CLASSES)
    planned = tiny_recipe(own, tmp_path / "run", teacher=str(teacher), loss={"kd": 0.3})
    before = prepare(planned).fingerprint
    config = json.loads((teacher / "config.json").read_text())
    config["label_names"].reverse()
    (teacher / "config.json").write_text(json.dumps(config))
    table = pq.read_table(own / "train.parquet")
    mirrored = pa.array([-v for v in table["valence"].to_pylist()], pa.float32())
    pq.write_table(table.set_column(table.column_names.index("valence"), "valence", mirrored), own / "train.parquet")
    after = prepare(planned).fingerprint
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"teacher_config", "data"}
    assert before["data"]["valid"] == after["data"]["valid"]


def test_the_kd_teacher_is_read_by_class_name_at_its_own_size_and_stays_out_of_every_state(tmp_path: Path) -> None:
    shuffled = tuple(reversed(CLASSES))
    model = timm.create_model("test_resnet", num_classes=8, in_chans=3).eval()
    folder = save_student(model, tmp_path / "teacher", shuffled)
    teacher = KDTeacher.open(str(folder), CLASSES, (0.5,), (0.25,))
    assert (list(teacher.parameters()), dict(teacher.state_dict())) == ([], {})
    teacher.train()
    assert not teacher.model.training
    grey = torch.rand(2, 1, 48, 48)
    cfg = model.pretrained_cfg
    expected = torch.nn.functional.interpolate(
        (grey.expand(-1, 3, -1, -1) - torch.tensor(cfg["mean"]).view(1, 3, 1, 1))
        / torch.tensor(cfg["std"]).view(1, 3, 1, 1),
        cfg["input_size"][1:],
        mode="bilinear",
        antialias=True,
    )
    torch.testing.assert_close(teacher((grey - 0.5) / 0.25), model(expected).flip(1), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="does not know joy"):
        KDTeacher.open(str(folder), ("joy",), (0.5,), (0.25,))


def test_a_teachers_logit_adjustment_is_taken_back_and_a_shipped_student_can_teach(
    faces: Path, baseline: Path, tmp_path: Path
) -> None:
    student = {"backbone": "test_resnet", "image_size": 32, "logit_adjustment": 0.5}
    stacked = {"student": student, "allow_stacked_balancing": True}
    plain, adjusted = baseline, train(tiny_recipe(faces, tmp_path / "adjusted", **stacked))
    images = torch.randn(4, 1, 32, 32)
    logits_of = {
        source: KDTeacher.open(source, CLASSES, (0.5,), (0.25,))(images)
        for source in (str(plain), str(adjusted), str(adjusted / "student"))
    }
    assert (open_student(adjusted)[0](images) - logits_of[str(plain)]).abs().max() > 0.1
    for logits in logits_of.values():
        torch.testing.assert_close(logits, logits_of[str(plain)])

    best = KDTeacher.open(adjusted / "student_best", CLASSES, (0.5,), (0.25,))
    assert best.adjustments == open_teacher([str(adjusted)], CLASSES, (0.5,), (0.25,)).adjustments == (0.5,)
    alone = tmp_path / "proj" / "student"
    shutil.copytree(adjusted / "student", alone)
    (tmp_path / "proj" / "recipe.yaml").write_text("flour: 500 g", encoding="utf-8")
    for source in (alone, open_student(alone)[0]):
        teacher = KDTeacher.open(source, CLASSES, (0.5,), (0.25,))
        assert teacher.adjustments == (0.5,)
        torch.testing.assert_close(teacher(images), logits_of[str(plain)])
    taught = [
        tiny_recipe(faces, tmp_path / "taught", teacher=str(source), kd_cache="kd", loss={"kd": 0.3})
        for source in (adjusted, alone)
    ]
    assert len({prepare(each).logit_cache.folder for each in taught}) == 1, "they teach the same logits"

    fingerprint = json.loads((adjusted / "fingerprint.json").read_text(encoding="utf-8"))
    del fingerprint["data"]["train"]["counts"]["fear"]
    (adjusted / "fingerprint.json").write_text(json.dumps(fingerprint), encoding="utf-8")
    with pytest.raises(InputError, match=r"fingerprint\.json lacks the counts"):
        KDTeacher.open(adjusted, CLASSES, (0.5,), (0.25,))

    shipped = KDTeacher.open(shipped_student(), CLASSES, (0.5,), (0.25,))
    counts = json.loads((packaged("hub") / shipped_student() / "fingerprint.json").read_text(encoding="utf-8"))
    prior = np.array([counts["data"]["train"]["counts"][name] for name in CLASSES])
    taken = (load_student().get_classifier().bias - shipped.model.get_classifier().bias).detach().numpy()
    np.testing.assert_allclose(taken * shipped.temperature, -0.2 * np.log(prior / prior.sum()), atol=1e-5)
    with pytest.raises(InputError, match="student-ferplus-v1"):
        KDTeacher.open("student-ferplus", CLASSES, (0.5,), (0.25,))


def test_several_teachers_are_an_ensemble_whose_logits_are_the_mean_of_theirs(faces: Path, tmp_path: Path) -> None:
    folders = []
    for name in ("a", "b"):
        model = timm.create_model("test_resnet", num_classes=8, in_chans=1)
        folders.append(str(save_student(model, tmp_path / name, CLASSES)))
    assert isinstance(open_teacher(Path(folders[0]), CLASSES, (0.5,), (0.25,)), KDTeacher)
    ensemble = open_teacher(folders, CLASSES, (0.5,), (0.25,))
    images = torch.randn(3, 1, 48, 48)
    each = [KDTeacher.open(folder, CLASSES, (0.5,), (0.25,))(images) for folder in folders]
    torch.testing.assert_close(ensemble(images), (each[0] + each[1]) / 2)
    assert (list(ensemble.parameters()), dict(ensemble.state_dict())) == ([], {})

    setup = prepare(tiny_recipe(faces, tmp_path / "run", teacher=folders, loss={"kd": 0.3}))
    hashes = [sha256_file(Path(folder) / "model.safetensors") for folder in folders]
    assert setup.fingerprint["teacher"] == hashes
    (batch, *_) = setup.training_batches(epoch=0, first=0)
    torch.testing.assert_close(batch.teacher_logits, ensemble(batch.images), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"opt": "adahessian", "batch_size": 16}}, "optim.opt=adahessian needs second derivatives"),
        (
            {"student": {"backbone": "vgg11", "image_size": 32, "drop_path_rate": 0.1}},
            "student: vgg11 can't be made with image_size=32, drop_path_rate=0.1",
        ),
        ({"student": {"backbone": "xcit_nano_12_p8_224", "image_size": 50}}, "can't be made with image_size=50"),
        (
            {"eval": {"a:schematic": "{faces}:test", "a:ferplus": "{faces}:test"}},
            "the same data set twice: a:test, a:test",
        ),
        ({"eval": {"fer2013": "{strange}"}}, "unknown fer2013 class name 'bored'"),
    ],
)
def test_what_could_only_fail_later_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, faces: Path, tmp_path: Path
) -> None:
    (tmp_path / "strange" / "bored").mkdir(parents=True)
    draw_face("fear", seed=0, image_size=32).save(tmp_path / "strange" / "bored" / "a.png")
    if "eval" in changes:
        places = {"faces": faces, "strange": tmp_path / "strange"}
        changes = {"eval": {name: root.format(**places) for name, root in changes["eval"].items()}}
    with pytest.raises(InputError, match=message):
        train(tiny_recipe(faces, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_arguments_of_the_backbone_travel_from_the_recipe_to_the_student(faces: Path, tmp_path: Path) -> None:
    narrow = {"backbone": "test_resnet", "image_size": 32, "model_args": {"channels": [8, 8, 16, 24]}}
    run = train(tiny_recipe(faces, tmp_path / "run", student=narrow, optim={"epochs": 1, "batch_size": 16}))
    student = timm.create_model(f"local-dir:{run / 'student'}", pretrained=True)
    assert student.num_features == 24
    with pytest.raises(InputError, match=r"student: test_resnet can't be made with image_size=32, chanels=3 \("):
        train(tiny_recipe(faces, tmp_path / "bad", student=narrow | {"model_args": {"chanels": 3}}))
    with pytest.raises(ValueError, match=r"model_args: in_chans is no argument to give here; write student\.in_chans"):
        tiny_recipe(faces, tmp_path / "bad", student=narrow | {"model_args": {"in_chans": 3}})
    with pytest.raises(ValueError, match="model_args: checkpoint_path is no argument to give here; write init"):
        tiny_recipe(faces, tmp_path / "bad", student=narrow | {"model_args": {"checkpoint_path": "x.pth"}})
    assert not (tmp_path / "bad").exists()


def test_a_compiled_run_trains_and_resumes_as_an_eager_one(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def by_graph(task: NeuroGazeTask) -> None:
        # inductor's kernels take a minute to build, and round otherwise; the graph and what is around it are the same
        task.trainable_module = torch.compile(task.trainable_module, backend="eager")
        compiled.append(task.trainable_module)

    monkeypatch.setattr(NeuroGazeTask, "compile", by_graph)
    optim = {"epochs": 2, "batch_size": 16, "lr": 1e-3, "ema": 0.5}
    runs = [tiny_recipe(faces, tmp_path / str(on), optim={**optim, "compile": on}) for on in (False, True)]
    weights = [(train(run) / "student" / "model.safetensors").read_bytes() for run in runs]
    assert len(compiled) == 1
    assert weights[0] == weights[1]
    shutil.rmtree(tmp_path / "True" / "student")
    resume(tmp_path / "True")
    assert (tmp_path / "True" / "student" / "model.safetensors").read_bytes() == weights[0]
