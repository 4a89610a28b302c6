"""The scripts of tests and docs, which nothing else starts: a name that moved must not break them unseen."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPTS = [HERE / "families.py", HERE.parent / "docs" / "make_images.py"]
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
