"""The command: exit codes, one-line errors, nothing written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_the_installed_command_exits_with_two_and_one_line() -> None:
    done = subprocess.run([sys.executable, "-m", "ngd_timm.cli", "train", "b3_ful"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "did you mean 'b3_full'" in done.stderr


def test_ctrl_c_while_it_starts_ends_in_one_line() -> None:
    when_torch_is_imported = (
        "import os, signal, sys, ngd_command\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job starts with it ignored
        "class Interrupt:\n"
        "    def find_spec(name, *_):\n"
        "        if name == 'torch': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt)\n"
        "ngd_command.main()"
    )
    done = subprocess.run([sys.executable, "-c", when_torch_is_imported], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "ngd: interrupted\n")


def test_a_page_that_cannot_be_drawn_costs_no_run_and_ends_with_one(
    tmp_path: Path, ngd: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ngd_timm.train.loop.resume", lambda run, command: run)
    done = ngd("train", "--resume", str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (1, f"{tmp_path}\n", "")
    assert caplog.messages == [
        f"report.html is not written (InputError: {tmp_path} is not a finished run: fingerprint.json, recipe.yaml, "
        f"metrics.json, summary.csv missing; train it to its end first); try again: ngd report {tmp_path}"
    ]


def test_evaluate_prints_text_markdown_latex_and_json_of_several_sets(
    student: Path, faces: Path, ngd: Callable[..., Any]
) -> None:
    arguments = ["evaluate", str(student), "--data", f"schematic={faces}:test", "--data", f"schematic={faces}"]
    text, markdown, latex, as_json, alias = (
        ngd(*arguments, *form).stdout
        for form in ([], ["--format", "markdown"], ["--format", "latex"], ["--format", "json"], ["--json"])
    )
    assert text.startswith("schematic:test (n = 16, labels: given, without flip, training prior): 8-way acc ")
    assert "labels: given, without flip" in markdown
    assert "| mine |" in markdown
    assert "schematic:all 8-way acc" in markdown
    assert r"\begin{tabular}" in latex
    assert as_json == alias
    assert list(json.loads(alias)) == ["schematic:test", "schematic:all"]
    wrong = ngd(*arguments, "--format", "html")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "unknown format 'html'" in wrong.stderr


def test_a_temperature_is_recorded_and_moves_calibration_alone(
    student: Path, faces: Path, ngd: Callable[..., Any]
) -> None:
    arguments = ["evaluate", str(student), "--data", f"schematic={faces}:test", "--json"]
    (plain,) = json.loads(ngd(*arguments).stdout).values()
    (warm,) = json.loads(ngd(*arguments, "--temperature", "0.2").stdout).values()
    assert (plain["temperature"], warm["temperature"]) == (1.0, 0.2)
    assert warm["ece"] != plain["ece"]
    assert (warm["8way"], warm["ci95"]) == (plain["8way"], plain["ci95"])


def test_scores_at_another_prior_say_so_and_are_those_of_the_predictor(faces: Path, ngd: Callable[..., Any]) -> None:
    import torch

    from ngd_timm import Predictor
    from ngd_timm.data import load_fer
    from ngd_timm.models.logit_adjustment import prior_shift
    from ngd_timm.models.student import open_student

    arguments = ["evaluate", "student-ferplus-v3", "--data", f"schematic={faces}:test", "--prior"]
    assert "labels: given, without flip, uniform prior)" in ngd(*arguments, "uniform").stdout
    (entry,) = json.loads(ngd(*arguments, "uniform", "--json").stdout).values()
    dataset = load_fer("schematic", faces, "test")
    predictions = Predictor("student-ferplus-v3")(dataset["image"])
    names = dataset.features["label"].names
    right = [p.label == names[label] for p, label in zip(predictions, dataset["label"], strict=True)]
    assert entry["prior"] == predictions[0].prior == "uniform"
    assert entry["8way"]["acc"] == pytest.approx(100 * sum(right) / len(right))
    # another temperature divides the logits, not what the prior adds
    (hotter,) = json.loads(ngd(*arguments, "uniform", "--temperature", "3", "--json").stdout).values()
    student, _ = open_student("student-ferplus-v3")
    trained = Predictor("student-ferplus-v3", prior="training")(dataset["image"])
    logits = torch.tensor([list(p.probabilities.values()) for p in trained]).log()
    chosen = (logits / 3 + prior_shift(student, names, "uniform")).argmax(1).tolist()
    right = [c == label for c, label in zip(chosen, dataset["label"], strict=True)]
    assert hotter["8way"]["acc"] == pytest.approx(100 * sum(right) / len(right))
    given = ",".join(f"{name}={1 + (name == 'fear')}" for name in names)
    assert "without flip, a prior that was given)" in ngd(*arguments, given).stdout


def test_a_student_against_another_shows_the_paired_differences_of_their_scores(
    faces: Path, ngd: Callable[..., Any]
) -> None:
    arguments = ["evaluate", "student-ferplus-fast-v1", "--data", f"schematic={faces}:test"]
    (alone,) = json.loads(ngd("evaluate", "student-ferplus-v1", *arguments[2:], "--json").stdout).values()
    arguments += ["--against", "student-ferplus-v1"]
    (entry,) = json.loads(ngd(*arguments, "--json").stdout).values()
    found = entry["against"]
    assert (found["student"], found["student_sha256"]) == ("student-ferplus-v1", alone["student_sha256"])
    for metric, difference in found["8way"].items():
        assert difference["mean"] == pytest.approx(entry["8way"][metric] - alone["8way"][metric])
        assert difference["ci95"][0] <= difference["mean"] <= difference["ci95"][1]
    shown = f"{found['8way']['acc']['mean']:+.2f} ["
    assert f"minus student-ferplus-v1 on the same images: 8-way acc {shown}" in ngd(*arguments).stdout
    table = ngd(*arguments, "--format", "markdown").stdout
    assert f"| student-ferplus-fast-v1 − student-ferplus-v1 | {shown.replace('-', '−')}" in table


def test_copies_of_training_images_are_scored_where_the_option_says_so(tmp_path: Path, ngd: Callable[..., Any]) -> None:
    from ngd_timm.data.synthetic.schematic import write_schematic

    write_schematic(tmp_path, "pencil", n_train=16, n_valid=8, n_test=8, seed=0, image_size=32)
    shutil.copy(tmp_path / "train.parquet", tmp_path / "test.parquet")
    arguments = ("evaluate", "student-ferplus-fast-v1", "--data", f"schematic={tmp_path}:test")
    assert "no image left of 16" in ngd(*arguments).stderr
    assert "schematic:test (n = 16," in ngd(*arguments, "--keep-duplicates").stdout


def test_simulated_ratings_are_shuffled_where_the_option_says_so(tmp_path: Path, ngd: Callable[..., Any]) -> None:
    from ngd_timm.eeg.readers.gameemo import read_gameemo

    rated = []
    for name, options in (("as they are", []), ("again", []), ("shuffled", ["--shuffled"])):
        command = ("teacher", "simulate", "gameemo", str(tmp_path / name), "--subjects", "2", "--seconds", "2")
        assert ngd(*command, *options).returncode == 0
        rated.append([r.valence_arousal for r in read_gameemo(tmp_path / name).read()])
    assert rated[0] == rated[1] != rated[2]
    for first in (0, 4):  # of each subject
        assert sorted(rated[0][first : first + 4]) == sorted(rated[2][first : first + 4])


def test_ablate_refuses_in_one_line_and_writes_nothing(tmp_path: Path, ngd: Callable[..., Any]) -> None:
    done = ngd("ablate", "b0_ce", "b1_kd", "optim.epoch=1", "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "did you mean 'optim.epochs'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_show_prints_the_packaged_grid_for_people_and_for_programs(tmp_path: Path, ngd: Callable[..., Any]) -> None:
    done = ngd("prototypes", "show", "--plot", str(tmp_path / "grid.png"))
    assert done.returncode == 0, done.stderr
    assert "GAMEEMO" in done.stdout
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    shown = json.loads(ngd("prototypes", "show", "gameemo-v2", "--json").stdout)
    assert shown["size"] == 5
    assert shown["sha256"] in done.stdout
