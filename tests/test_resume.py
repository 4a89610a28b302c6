"""Runs that are killed or stopped at any moment and resumed end in the same bits."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import killed_after, killed_at
from tiny_runs import tiny_recipe

import ngd_timm.train.loop as training
from ngd_timm.core.errors import InputError
from ngd_timm.core.lock import locked
from ngd_timm.core.recipe import Recipe, to_yaml
from ngd_timm.data.synthetic.schematic import write_schematic
from ngd_timm.evaluate.student import evaluate
from ngd_timm.train.checkpoint import Checkpoints
from ngd_timm.train.fingerprint import resume_command
from ngd_timm.train.loop import resume, train

TIMINGS = ("seconds", "images_per_second")
EVERY_STEP = 1e-9


def recipe(faces: Path, out: Path, **changes: Any) -> Recipe:
    base: dict[str, Any] = {
        # dropout, so that the random state matters
        "student": {"backbone": "test_resnet", "image_size": 32, "drop_rate": 0.2},
        "optim": {"epochs": 3, "batch_size": 12, "lr": 1e-3},
        "share_every": 3,
        "save_every": EVERY_STEP,
    }
    return tiny_recipe(faces, out, **base | changes)


@pytest.fixture(scope="module")
def plain(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe(faces, tmp_path_factory.mktemp("plain") / "run", save_every=0))


def everything(faces: Path, out: Path, teacher: Path, **changes: Any) -> Recipe:
    """EMA, the class-aware sampler, a teacher, Proto-KD at a share, D-Geo, a student altered when saved."""
    student = {"backbone": "test_resnet", "image_size": 32, "drop_rate": 0.2}
    settings: dict[str, Any] = {
        "student": {**student, "weights": "float16", "logit_adjustment": 0.3},
        "data": {"name": "schematic", "root": str(faces), "workers": 0, "sampler": "class_aware"},
        "optim": {"epochs": 3, "batch_size": 12, "lr": 1e-3, "ema": 0.9, "warmup": 0.3},
        "grid": "gameemo-v2",
        "grid_control": "random",
        "teacher": str(teacher),
        "loss": {"kd": 0.3, "proto_share": 0.2, "tau": 0.1, "d_geo": 0.05, "ramp": [0, 0.6]},
        "allow_stacked_balancing": True,
        "eval": {"schematic": f"{faces}:test"},
        "best_on": ["schematic"],
    }
    return recipe(faces, out, **settings | changes)


@pytest.fixture(scope="module")
def full(faces: Path, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(everything(faces, tmp_path_factory.mktemp("full") / "run", plain, save_every=0))


def levers(faces: Path, out: Path, teacher: Path, **changes: Any) -> Recipe:
    """Weights averaged over the last epochs, images without labels, few labels in two passes, every augmentation."""
    augment = {"gamma": 0.4, "stretch": 0.3, "blur": 0.02, "downscale": 0.5}
    data = {"name": "schematic", "root": str(faces), "workers": 0, "label_fraction": 0.8, "epoch_repeats": 2}
    data["augment"] = augment
    settings: dict[str, Any] = {
        "data": {**data, "unlabelled": [f"{faces}:test"], "unlabelled_share": 0.5},
        "optim": {"epochs": 4, "batch_size": 12, "lr": 1e-3, "swa": 0.75},
        "grid": "gameemo-v2",
        "teacher": str(teacher),
        "loss": {"kd": 0.3, "proto_share": 0.2, "tau": 0.1},
    }
    return recipe(faces, out, **settings | changes)


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "summary.csv", newline="") as handle:
        return [{k: v for k, v in row.items() if k not in TIMINGS} for row in csv.DictReader(handle)]


def assert_same_end(run: Path, whole: Path) -> None:
    for student in ("student", "student_best"):
        files = [folder / student / "model.safetensors" for folder in (run, whole)]
        assert files[0].read_bytes() == files[1].read_bytes(), student
    assert rows(run) == rows(whole)
    assert (run / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    states = [torch.load(folder / "last" / "state.pt", weights_only=True) for folder in (run, whole)]
    assert torch.equal(states[0]["random"][0], states[1]["random"][0])
    # no half-written file stays, and no checkpoint within a finished epoch
    names = [{str(p.relative_to(folder)) for p in folder.rglob("*")} for folder in (run, whole)]
    names = [found - {"report.html"} for found in names]  # the command writes it, `train` leaves it to its caller
    assert names[0] == names[1]


def test_killed_at_any_time_it_ends_in_the_same_bits(faces: Path, plain: Path, tmp_path: Path) -> None:
    planned = recipe(faces, tmp_path / "run")
    # a whole run takes about 0.7 s; a fast machine may finish before the last kill
    ends = [killed_after(planned, seconds) for seconds in (0.02, 0.08, 0.14, 0.2)]
    assert ends[0] == -signal.SIGKILL
    assert set(ends) <= {-signal.SIGKILL, 0}
    resume(tmp_path / "run")
    assert_same_end(tmp_path / "run", plain)


# `after student` of a second life is between the two renames that replace a folder
MOMENTS = ("before fingerprint.json", "after fingerprint.json", "half of step.pt", "after step.pt", "half of state.pt")
MOMENTS += ("after state.pt", "after student", "before summary.csv", "half of step.pt", "before metrics.json")


def test_killed_inside_its_writes_it_ends_in_the_same_bits(
    faces: Path, plain: Path, full: Path, tmp_path: Path
) -> None:
    planned = everything(faces, tmp_path / "run", plain)
    for moment in MOMENTS:
        assert killed_at(planned, moment) == -signal.SIGKILL, moment
    resume(tmp_path / "run")
    assert_same_end(tmp_path / "run", full)


def test_killed_while_it_averages_and_takes_unlabelled_images_it_ends_in_the_same_bits(
    faces: Path, plain: Path, tmp_path: Path
) -> None:
    whole = train(levers(faces, tmp_path / "whole", plain, save_every=0, kd_cache=str(tmp_path / "cache")))
    planned = levers(faces, tmp_path / "run", plain)
    for moment in (
        "after step.pt",
        "half of state.pt",
        *["after state.pt"] * 2,
        "after step.pt",
        "before metrics.json",
    ):
        assert killed_at(planned, moment) == -signal.SIGKILL, moment
    resume(tmp_path / "run")
    assert_same_end(tmp_path / "run", whole)


def test_a_run_killed_before_it_began_is_begun_by_train_and_by_resume(faces: Path, plain: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".recipe.yaml.ab12cd_9.yaml").write_text("half")
    (run / "lock").touch()
    planned = recipe(faces, run, save_every=0)
    train(planned)
    assert_same_end(run, plain)
    shutil.rmtree(run)
    run.mkdir()
    (run / "recipe.yaml").write_text(to_yaml(planned))
    (run / ".fingerprint.json.ab12cd_9.json").write_text("{")
    resume(run)
    assert_same_end(run, plain)


def test_while_one_process_trains_it_another_is_refused_until_the_first_is_gone_even_killed(
    plain: Path, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    run = Path(shutil.copytree(plain, tmp_path / "run"))
    ready, tell = os.pipe()
    holder = os.fork()
    if not holder:
        with locked(run):
            if not os.fork():  # a process that loads images notices only later that its run is gone
                os.write(tell, str(os.getpid()).encode())
            signal.pause()
    loader = int(os.read(ready, 20))
    try:
        done = ngd("train", "--resume", str(run))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith(f"ngd: {run} is being written by another process")
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        assert ngd("train", "--resume", str(run)).returncode == 0
    finally:
        os.kill(loader, signal.SIGKILL)
    assert_same_end(run, plain)


def test_the_later_of_two_processes_that_begin_one_run_is_refused(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, prepare = tmp_path / "run", training.prepare

    def prepare_while_another_trains(planned: Recipe) -> Any:
        monkeypatch.setattr(training, "prepare", prepare)
        train(planned)
        return prepare(planned)

    monkeypatch.setattr(training, "prepare", prepare_while_another_trains)
    with pytest.raises(InputError, match="is not empty; choose another"):
        train(recipe(faces, run, save_every=0))
    assert (run / "metrics.json").is_file()


def test_where_nothing_can_be_locked_it_trains_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path):
        assert "can't be locked (No locks available); let no other process continue it" in caplog.text


@pytest.mark.parametrize(
    ("number", "code", "where"),
    [
        (signal.SIGINT, 130, "within an epoch"),
        (signal.SIGTERM, 143, "while it is validated"),
        (signal.SIGINT, 130, "while it is scored"),
    ],
)
def test_a_signal_stops_it_with_a_state_and_one_line_that_says_how_to_go_on(
    faces: Path,
    plain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ngd: Callable[..., Any],
    number: int,
    code: int,
    where: str,
) -> None:
    run, calls = tmp_path / "run", []
    owner, name = {
        "within an epoch": (Checkpoints, "due"),
        "while it is validated": (training, "predict"),
        "while it is scored": (training, "_write_metrics"),
    }[where]
    original = getattr(owner, name)

    def signalled(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == (6 if where == "within an epoch" else 1):
            signal.raise_signal(number)
        return original(*arguments)

    monkeypatch.setattr(owner, name, signalled)
    (tmp_path / "tiny.yaml").write_text(to_yaml(recipe(faces, run, save_every=0)))
    done = ngd("train", str(tmp_path / "tiny.yaml"))
    monkeypatch.setattr(owner, name, original)
    assert done.returncode == code
    after = {"within an epoch": "1, batch 3", "while it is validated": "0, batch 4", "while it is scored": "3, batch 0"}
    expected = f"ngd: {run} stopped after epoch {after[where]} of the next; continue with: ngd train --resume {run}"
    assert done.stderr.strip().splitlines()[-1] == expected
    assert ngd("train", "--resume", str(run)).returncode == 0
    assert_same_end(run, plain)


def test_a_signal_to_the_whole_process_group_is_left_to_the_process_that_writes_the_checkpoint(
    plain: Path, tmp_path: Path
) -> None:
    write_schematic(tmp_path / "faces", "pencil", n_train=24, n_valid=8, n_test=8, seed=0, image_size=112)
    data = {"name": "schematic", "root": str(tmp_path / "faces"), "workers": 1}
    optim = {"epochs": 500, "batch_size": 4, "lr": 1e-3}
    run = tmp_path / "run"
    (tmp_path / "long.yaml").write_text(to_yaml(recipe(plain, run, data=data, optim=optim, save_every=0)))
    command = [sys.executable, "-m", "ngd_timm.cli", "train", str(tmp_path / "long.yaml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any(line.startswith("epoch 1/500") for line in lines)
        os.killpg(process.pid, signal.SIGTERM)
        *_, last = lines
        assert process.wait() == 143
    assert f"continue with: ngd train --resume {run}" in last
    assert (run / "last").is_dir()


def test_checkpoints_within_an_epoch_cost_their_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("ngd_timm.train.checkpoint.time.monotonic", lambda: clock[0])
    states = {every: Checkpoints(tmp_path, every) for every in ("auto", 0, 2.0)}
    states["auto"].cost = 3.0
    due = {every: [] for every in states}
    for clock[0] in (119.0, 121.0, 299.0, 301.0):
        for every, files in states.items():
            due[every].append(files.due())
    assert due == {"auto": [False, False, False, True], 0: [False] * 4, 2.0: [False, True, True, True]}


@pytest.mark.parametrize("damage", ["cut short", "without the optimizer"])
def test_where_a_checkpoint_is_damaged_the_one_before_it_serves_to_the_same_bits(
    damage: str, plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Path(shutil.copytree(plain, tmp_path / "run"))
    (run / "metrics.json").unlink()
    file = run / "last" / "state.pt"
    if damage == "cut short":
        file.write_bytes(file.read_bytes()[:2000])
    else:
        state = torch.load(file, weights_only=True)
        torch.save({key: value for key, value in state.items() if key != "optimizer"}, file)
    resume(run)
    assert re.search(r"state\.pt is not a (readable|whole) checkpoint .*an earlier one serves", caplog.text)
    weights = [(folder / "student" / "model.safetensors").read_bytes() for folder in (run, plain)]
    assert weights[0] == weights[1]
    assert len({len((folder / "summary.csv").read_text().splitlines()) for folder in (run, plain)}) == 1


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_by_name(faces: Path, plain: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(plain, tmp_path / "run"))
    for file in (run / "last").glob("*.pt"):
        file.write_bytes(b"half")
    with pytest.raises(InputError, match=r"\.pt is not a readable checkpoint .*; start a new run"):
        resume(run)
    with pytest.raises(InputError, match=r"state\.pt is not a readable checkpoint"):
        evaluate(run, [f"schematic={faces}:train"], predictions=True)


def test_a_run_that_is_removed_while_it_trains_ends_at_its_next_checkpoint(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr("ngd_timm.train.loop._write_epoch", lambda *_: shutil.rmtree(out))
    with pytest.raises(InputError, match="run was removed while it trained"):
        train(recipe(faces, out, save_every=0))
    assert not out.exists()


def test_a_finished_run_of_an_altered_student_is_scored_again_with_its_further_sets(full: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(full, tmp_path / "run"))
    resume(run)
    before, after = (json.loads((folder / "metrics.json").read_text()) for folder in (full, run))
    assert list(after) == ["schematic:valid", "schematic:test"]
    assert after == before


def test_a_student_is_not_evaluated_with_the_projection_of_another_epoch(
    faces: Path, full: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(full, tmp_path / "run"))
    state = torch.load(run / "last" / "state.pt", weights_only=True)
    torch.save({**state, "epoch": state["epoch"] + 1}, run / "last" / "state.pt")
    with pytest.raises(InputError, match="student/ and last/ are of different epochs"):
        evaluate(run, [f"schematic={faces}:train"], predictions=True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data", {"train": {"sha256": "another"}}, "data is not what the run began with"),
        ("best_on", {"ckplus": "another"}, "best_on is not what the run began with"),
        ("teacher_config", ["ab" * 32], r"the teacher's config\.json is not what the run began with"),
        ("precision", "float16", r"begun in float16, here it would go on in \w+ .*start a new run"),
        ("processes", 2, r"begun by 2 process.*torchrun --nproc-per-node 2 -m ngd_timm\.cli train"),
    ],
)
def test_a_run_is_continued_only_as_it_began(
    key: str, value: object, message: str, plain: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(plain, tmp_path / "run"))
    fingerprint = json.loads((run / "fingerprint.json").read_text())
    (run / "fingerprint.json").write_text(json.dumps({**fingerprint, key: value}))
    with pytest.raises(InputError, match=message):
        resume(run)


def test_a_finished_run_keeps_its_scores_where_a_set_of_eval_is_gone(faces: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(faces, tmp_path / "faces"))
    run = train(
        recipe(faces, tmp_path / "run", eval={"schematic": f"{elsewhere}:test"}, optim={"epochs": 1, "batch_size": 12})
    )
    scores = (run / "metrics.json").read_bytes()
    elsewhere.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="no data set at"):
        resume(run)
    assert (run / "metrics.json").read_bytes() == scores
    (tmp_path / "moved").rename(elsewhere)
    resume(run)
    assert (run / "metrics.json").read_bytes() == scores


def test_resume_refuses_what_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no recipe\.yaml"):
        resume(tmp_path)


def test_the_command_that_continues_a_run_can_be_pasted_whatever_its_folder_is_called() -> None:
    assert resume_command(Path("my run-0")) == "ngd train --resume 'my run-0'"
