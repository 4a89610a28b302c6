"""The scripts of tests and docs, which nothing else starts: a name that moved must not break them unseen."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
SCRIPTS = [HERE / "families.py", HERE.parent / "docs" / "make_images.py"]
SCRIPTS += [HERE / "gpu" / "report.py"]
SCRIPTS += [path for path in sorted((HERE / "benchmarks").glob("*.py")) if path.name != "measuring.py"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_starts_and_prints_how_it_is_called(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(script.parent)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert stop.value.code in (0, None)
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, on which it would run for minutes")
def test_the_script_for_a_gpu_says_that_there_is_none(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("NGD_GPU_DEVICE", None)
    command = ["bash", str(HERE / "gpu" / "run.sh"), str(tmp_path / "report")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("skipped: there is no GPU here that PyTorch can use")
    assert not (tmp_path / "report").exists()
