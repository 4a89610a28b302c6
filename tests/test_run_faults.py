"""Runs and numbers: a run that is damaged or unfinished is refused, and so is a loss or a score that is not finite."""

from __future__ import annotations

import functools
import operator
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import SCORE, TRAIN, rows, write
from safetensors.torch import load_file, save_file

from ngd_timm.core.errors import InputError
from ngd_timm.evaluate.metrics import fer_metrics
from ngd_timm.losses import logit_kd_loss


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be changed."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


@rows(
    "name, content, command, message",
    {
        "a fingerprint of one brace": ("fingerprint.json", "{", "train --resume run", "is not valid JSON"),
        "metrics that are no JSON": ("metrics.json", "{nan}", "report run", "metrics.json is not valid JSON"),
        "metrics in a list": ("metrics.json", "[]", "report run", "must hold a JSON object, got list"),
        "metrics of another form": (
            "metrics.json",
            '{"a": 1}',
            "report run",
            "metrics.json 'a': Input should be a valid dictionary",
        ),
        "a summary of other bytes": ("summary.csv", b"epoch,lr\n\xff", "report run", "summary.csv is not text"),
        "weights that are a device": (
            "student/model.safetensors",
            Path("/dev/zero"),
            "evaluate run --data schematic=faces",
            "model.safetensors",
        ),
        "a summary cut short": ("summary.csv", "epoch,lr\n0", "report run", "row 1 is not whole"),
    },
)
def test_a_damaged_run(name: str, content: Any, command: str, message: str, run: Path, refused: Any) -> None:
    (run / name).unlink()
    write(run, {name: content})
    refused(command, message)


@rows(
    "name, command, message",
    {
        "a run without a student": ("student", "push run u/r --dry-run", "is neither a run directory"),
        "a run that is not finished": ("metrics.json", "push run u/r --dry-run", "is not a finished run"),
        "no further metrics": ("run.log", "push run u/r --dry-run --metrics gone.json", "no metrics file"),
        "no name of a repository": ("run.log", "push run ../up --dry-run", "is no name to push to"),
    },
)
def test_a_run_with_a_part_missing(name: str, command: str, message: str, run: Path, refused: Any) -> None:
    shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink(missing_ok=True)
    refused(command, message)


@rows(
    "place, message",
    {
        "weights that are not finite": (("checkpoint", "state_dict"), "its weights are not finite"),
        "a log without its times": (("rows",), "its log: row 1 is not whole"),
    },
)
def test_a_checkpoint_that_can_not_be_continued(place: tuple[str, ...], message: str, run: Path, refused: Any) -> None:
    (run / "metrics.json").unlink()
    state = torch.load(run / "last" / "state.pt", weights_only=True)
    part = functools.reduce(operator.getitem, place, state)
    if isinstance(part, dict):
        next(value for value in part.values() if value.is_floating_point()).fill_(torch.nan)
    else:
        del part[0]["seconds"]
    torch.save(state, run / "last" / "state.pt")
    refused("train --resume run", message)


def test_a_checkpoint_without_the_projection_is_refused(run: Path, refused: Any) -> None:
    state = torch.load(run / "last" / "state.pt", weights_only=True)
    torch.save({**state, "checkpoint": {}, "checkpoint_ema": None}, run / "last" / "state.pt")
    refused("evaluate run --data schematic=faces:test --predictions", "holds no projection of this student (KeyError)")


def test_predictions_cut_short_are_refused(run: Path, refused: Any) -> None:
    next((run / "predictions").iterdir()).write_bytes(b"x" * 100)
    refused("report run", "is not a readable safetensors file")


@rows(
    "command, message",
    {
        "a run that is not there": ("train --resume gone", "is not a run that can be continued"),
        "a run into a folder that holds something": (f"{TRAIN} out=full", "is not empty"),
        "scores into a folder": (f"{SCORE} --out full", "full can't be written (Is a directory)"),
        "a temperature of zero": ("evaluate student --data schematic=faces:test --temperature 0", "must be above 0"),
    },
)
def test_no_run_to_begin_with(command: str, message: str, refused: Any, tmp_path: Path) -> None:
    write(tmp_path, {"full/notes.txt": "mine"})
    refused(command, message)


@rows(
    "tracker, message",
    {f"{name} as a tracker": (name, f"pip install 'ngd-timm[{name}]'") for name in ("tensorboard", "wandb", "trackio")},
)
def test_a_library_that_is_not_installed(
    tracker: str, message: str, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(f"{TRAIN} tracker={tracker}", message)


def write_student_with_nan(folder: Path, student: Path) -> None:
    weights = load_file(shutil.copytree(student, folder) / "model.safetensors")
    weights["fc.bias"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors")


def test_a_student_with_nan_in_its_weights_is_refused(student: Path, tmp_path: Path, refused: Any) -> None:
    write_student_with_nan(tmp_path / "nan", student)
    refused("evaluate nan --data schematic=faces:test", "are not finite")


@rows(
    "keys, message",
    {
        "a rate so high that the loss overflows": (
            "optim.lr=1e30 optim.epochs=3 optim.warmup=0",
            "became NaN or infinite",
        ),
        "a teacher with NaN in its weights": ("loss.kd=.3 teacher=nan", "NaN"),
    },
)
@pytest.mark.usefixtures("refused")  # for the folder with `faces`
def test_training_that_ends(keys: str, message: str, student: Path, tmp_path: Path, ngd: Any) -> None:
    write_student_with_nan(tmp_path / "nan", student)
    done = ngd(*f"{TRAIN} {keys} out=run".split())
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr
    assert not (tmp_path / "run" / "student").exists()


@rows("value", {"NaN": (np.nan,), "infinity": (np.inf,)})
def test_metrics_of_logits_with(value: float) -> None:
    logits = np.eye(8)
    logits[3, 3] = value
    with pytest.raises(InputError, match="1 of 8 rows of logits are not finite"):
        fer_metrics(logits, np.arange(8))


@rows("mode", {"mean squares": ("mse",), "KL": ("kl",)})
def test_a_teacher_with_equal_logits_gives_a_finite_loss_and_gradient(mode: Any) -> None:
    logits = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = logit_kd_loss(logits, torch.full((4, 8), 3.0), mode)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
