"""Shared fixtures: drawn faces, a student and a run trained on them, and the command; one core a test process."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # as for `ngd predict`; FFmpeg reads it once a process
settings.register_profile("long", max_examples=10_000, deadline=None)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """After a long run, what the fuzz tests counted."""
    if terminalreporter.config.getoption("--hypothesis-profile") == "long":
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
            for name, line in report.user_properties:
                if name == "fuzz":
                    terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, valid and test parquet of drawn faces."""
    from ngd_timm.data.synthetic.schematic import write_schematic

    folder = tmp_path_factory.mktemp("faces")
    write_schematic(folder, "pencil", n_train=48, n_valid=16, n_test=16, seed=0, image_size=32)
    return folder


@pytest.fixture(scope="session")
def voted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FER+ as parquet: drawn faces, most with a clear vote, every sixth without a majority."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ngd_timm.data.labels import VOTE_COLUMNS
    from ngd_timm.data.synthetic.tiny import tiny_face

    folder = tmp_path_factory.mktemp("voted")
    for seed, (split, count) in enumerate((("train", 48), ("valid", 24), ("test", 24))):
        rows: dict[str, list[Any]] = {"image": [], "file_name": [], **{name: [] for name in VOTE_COLUMNS}}
        for number in range(count):
            votes = np.zeros(10, int)
            votes[number % 8] = 8
            votes[(number + 1) % 8] = 2
            if number % 6 == 5:
                votes[:8] = 0
                votes[number % 8], votes[(number + 1) % 8], votes[(number + 2) % 8] = 4, 3, 3
            file = folder / "face.png"
            tiny_face(VOTE_COLUMNS[number % 8], number, seed=seed).save(file)
            rows["image"].append({"bytes": file.read_bytes(), "path": None})
            rows["file_name"].append(f"{split}{number}.png")
            for name, vote in zip(VOTE_COLUMNS, votes.tolist(), strict=True):
                rows[name].append(vote)
            file.unlink()
        pq.write_table(pa.table(rows), folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained student of eight classes, which tests copy and never change."""
    from ngd_timm.core.recipe import StudentConfig
    from ngd_timm.models.student import create_student, save_student

    model = create_student(StudentConfig(backbone="test_resnet", image_size=32), 8)
    return save_student(model, tmp_path_factory.mktemp("students") / "mine")


@pytest.fixture(scope="session")
def trained_run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch, which tests copy and never change."""
    from ngd_timm.core.recipe import Recipe, load_recipe
    from ngd_timm.train.loop import train

    keys = ["data.name=schematic", "student.backbone=test_resnet", "student.image_size=32", "data.workers=0"]
    keys += ["optim.epochs=1", "optim.batch_size=16", f"data.root={faces}"]
    return train(load_recipe(Recipe, "b0_ce", [*keys, f"out={tmp_path_factory.mktemp('runs') / 'run'}"]))


class Outcome(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def ngd(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run the command in this process; what it logs is not captured, so stderr is what a user sees at the end."""

    from ngd_timm.cli import main

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["ngd", *arguments])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(
    ngd: Callable[..., Outcome], student: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], None]:
    """Run a command line beside `student` and `faces`: it ends with one line and code 2, and changes no file."""
    from faults import contents, modes_bind_root

    (tmp_path / "student").symlink_to(student)
    (tmp_path / "faces").symlink_to(faces)
    monkeypatch.chdir(tmp_path)

    def run(command: str, message: str) -> None:
        before = contents(tmp_path)
        with modes_bind_root():
            outcome = ngd(*shlex.split(command))
        assert (outcome.returncode, outcome.stdout) == (2, "")
        assert outcome.stderr.startswith("ngd: ")
        assert message in outcome.stderr
        assert outcome.stderr.count("\n") == 1
        assert len(outcome.stderr) < 1000
        assert contents(tmp_path) == before

    return run
