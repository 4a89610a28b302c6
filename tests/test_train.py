"""Whole runs on a handful of drawn faces: the run directory, resuming, and refusals that write nothing."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from ngd_timm.affect import CLASSES
from ngd_timm.errors import InputError
from ngd_timm.evaluate import evaluate
from ngd_timm.export import open_student, save_student
from ngd_timm.kd_teacher import KDTeacher
from ngd_timm.recipe import Recipe
from ngd_timm.train import resume, train


def recipe(faces: Path, out: Path, **changes: Any) -> Recipe:
    base: dict[str, Any] = {
        "name": "tiny",
        "out": str(out),
        "student": {"backbone": "test_resnet", "image_size": 32},
        "data": {"name": "schematic", "root": str(faces), "workers": 0},
        "optim": {"epochs": 2, "batch_size": 16, "lr": 1e-3},
        "share_every": 2,
    }
    return Recipe.model_validate(base | changes)


FULL = {"grid": "random", "loss": {"kd": 0.3, "proto_kd": 0.2, "tau": 0.1, "d_geo": 0.05, "ramp": [0, 1]}}


@pytest.fixture(scope="module")
def baseline(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe(faces, tmp_path_factory.mktemp("runs") / "ce"))


@pytest.fixture(scope="module")
def full(faces: Path, baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "full"
    return train(recipe(faces, out, teacher=str(baseline), **FULL))


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "summary.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def test_a_run_directory_holds_what_the_design_promises(full: Path) -> None:
    names = {p.name for p in full.iterdir()}
    assert {"recipe.yaml", "fingerprint.json", "summary.csv", "student", "last", "metrics.json", "report.html"} <= names
    entry = json.loads((full / "metrics.json").read_text())["schematic:valid"]
    assert entry["n"] == 16
    assert set(entry["8way"]) == set(entry["present"]) == {"acc", "macro_f1", "bacc"}
    fingerprint = json.loads((full / "fingerprint.json").read_text())
    assert len(fingerprint["grid"]) == len(fingerprint["teacher"]) == 64
    assert set(fingerprint["data"]) == {"train", "valid"}


def test_every_component_and_its_share_of_the_gradient_is_logged(full: Path) -> None:
    for row in rows(full):
        shares = [float(row[f"share_{name}"]) for name in ("ce", "kd", "proto_kd", "d_geo")]
        assert sum(shares) == pytest.approx(100, abs=0.01)
        assert shares[0] > 0
        assert float(row["proto_kd"]) > 0
        assert float(row["kd"]) > 0
    assert float(rows(full)[0]["geo_ramp"]) == 0 < float(rows(full)[1]["geo_ramp"])


def test_the_student_loads_with_stock_timm_where_this_package_cannot_be_imported(full: Path, tmp_path: Path) -> None:
    model, _ = open_student(full)
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.save({"images": images, "logits": model(images).detach()}, tmp_path / "expected.pt")
    code = (
        "import sys; sys.modules['ngd_timm'] = None\n"
        "import timm, torch; torch.set_num_threads(1)\n"
        f"saved = torch.load({str(tmp_path / 'expected.pt')!r}, weights_only=True)\n"
        f"model = timm.create_model('local-dir:' + {str(full / 'student')!r}, pretrained=True).eval()\n"
        "assert torch.equal(model(saved['images']), saved['logits'])\n"
        "cfg = {k: tuple(model.pretrained_cfg[k]) for k in ('input_size', 'mean', 'std')}\n"
        "assert cfg == {'input_size': (1, 32, 32), 'mean': (0.5,), 'std': (0.25,)}, cfg\n"
        f"assert tuple(model.pretrained_cfg['label_names']) == {CLASSES!r}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("share", [None, 0.2])
def test_a_run_stopped_between_epochs_and_resumed_ends_in_the_same_student(
    faces: Path, baseline: Path, tmp_path: Path, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**FULL, "loss": {**FULL["loss"], "proto_share": share}, "teacher": str(baseline)}
    whole = train(recipe(faces, tmp_path / "whole", **changes))
    import ngd_timm.train as module

    save = module._save_state

    def die_after_the_first_epoch(*arguments: Any) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_save_state", die_after_the_first_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(faces, tmp_path / "cut", **changes))
    monkeypatch.setattr(module, "_save_state", save)
    cut = resume(tmp_path / "cut")
    first, second = (load_file(run / "student" / "model.safetensors") for run in (whole, cut))
    assert all(torch.equal(first[key], second[key]) for key in first)
    drop = ("seconds", "images_per_second")
    assert [{k: v for k, v in r.items() if k not in drop} for r in rows(whole)] == [
        {k: v for k, v in r.items() if k not in drop} for r in rows(cut)
    ]


def test_a_share_asked_for_is_the_share_that_is_measured(faces: Path, tmp_path: Path) -> None:
    changes = {"grid": "random", "loss": {"proto_share": 0.25}, "optim": {"epochs": 1, "batch_size": 16, "lr": 1e-5}}
    run = train(recipe(faces, tmp_path / "run", share_every=1, **changes))
    assert float(rows(run)[0]["share_proto_kd"]) == pytest.approx(25, abs=6)


def test_ema_tensorboard_flip_and_the_class_aware_sampler_work_together(faces: Path, tmp_path: Path) -> None:
    optim = {"epochs": 1, "batch_size": 16, "ema": 0.9, "warmup": 0.5}
    changes = {"optim": optim, "eval_flip": True, "tensorboard": True}
    data = {"name": "schematic", "root": str(faces), "workers": 0, "sampler": "class_aware"}
    run = train(recipe(faces, tmp_path / "run", data=data, **changes))
    assert json.loads((run / "metrics.json").read_text())["schematic:valid"]["flip"] is True
    assert list((run / "tensorboard").iterdir())


def test_evaluate_scores_several_sets_and_writes_the_metrics_form(baseline: Path, faces: Path, tmp_path: Path) -> None:
    results = evaluate(baseline, [f"schematic={faces}:test", f"schematic={faces}"], tmp_path / "scores.json")
    assert {key: entry["n"] for key, entry in results.items()} == {"schematic:test": 16, "schematic:all": 80}
    assert json.loads((tmp_path / "scores.json").read_text()) == results
    with pytest.raises(InputError, match="same data set twice"):
        evaluate(baseline, [f"schematic={faces}:test"] * 2)


def test_a_directory_in_use_is_refused_and_left_alone(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        train(recipe(faces, tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": {"backbone": "resnet81"}}, "did you mean 'resnet18'"),
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
        train(recipe(faces, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_with_its_name(faces: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"became NaN or infinite by epoch 1, batch \d+"):
        train(recipe(faces, tmp_path / "run", optim={"epochs": 1, "batch_size": 16, "lr": 1e30, "clip_grad": None}))


def test_resume_refuses_a_run_whose_data_changed(faces: Path, baseline: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(baseline, run)
    fingerprint = json.loads((run / "fingerprint.json").read_text())
    fingerprint["data"]["train"]["sha256"] = "0" * 64
    (run / "fingerprint.json").write_text(json.dumps(fingerprint))
    with pytest.raises(InputError, match="data is not what the run began with"):
        resume(run)


def test_resume_refuses_what_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no recipe\.yaml"):
        resume(tmp_path)


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
