"""Shared fixtures: one core a test process, a few dozen drawn faces for whole runs, and the command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, valid and test parquet of drawn faces."""
    from ngd_timm.data.synthetic.schematic import write_schematic

    folder = tmp_path_factory.mktemp("faces")
    write_schematic(folder, "pencil", n_train=48, n_valid=16, n_test=16, seed=0, image_size=32)
    return folder


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
