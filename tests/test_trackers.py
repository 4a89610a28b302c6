"""Trackers of the user's: each epoch is logged once, a resumed run goes on in the same one, no path is logged."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import tiny_recipe

from ngd_timm.train.loop import resume, train


@pytest.fixture
def tracked(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Train two epochs with a tracker: the process dies after it logged the first, and the run is resumed."""

    def run(tracker: str) -> Path:
        out = tmp_path / "my run"

        def die(*_: Any) -> str:
            raise ZeroDivisionError

        recipe = tiny_recipe(faces, out, tracker=tracker)
        with monkeypatch.context() as patch:
            patch.setattr("ngd_timm.train.loop.epoch_line", die)
            with pytest.raises(ZeroDivisionError):
                train(recipe)
        resume(out)
        assert json.loads((out / "tracker.json").read_text())["epochs"] == 2
        return out

    return run


def test_tensorboard_has_each_epoch_once_and_the_recipe_without_paths(
    tracked: Callable[[str], Path], faces: Path
) -> None:
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    read = events.EventAccumulator(str(tracked("tensorboard") / "tensorboard"))
    read.Reload()
    assert [event.step for event in read.Scalars("valid_acc")] == [0, 1]
    (recipe,) = read.Tensors("recipe/text_summary")
    assert b"backbone: test_resnet" in recipe.tensor_proto.string_val[0]
    assert str(faces.parent).encode() not in recipe.tensor_proto.string_val[0]


def test_wandb_goes_on_in_the_same_run_when_it_is_offline(
    tracked: Callable[[str], Path], faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'ngd-timm[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    out = tracked("wandb")
    identity = json.loads((out / "tracker.json").read_text())["id"]
    parts = list((out / "wandb").glob("offline-run-*/*.wandb"))  # by the second in which each began
    assert {part.name for part in parts} == {f"run-{identity}.wandb"}
    for part in parts:
        assert b"valid_acc" in part.read_bytes()
        assert str(faces).encode() not in part.read_bytes()


def test_trackio_has_each_epoch_once_in_one_run(
    tracked: Callable[[str], Path], faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    pytest.importorskip("trackio", reason="trackio is not installed: pip install 'ngd-timm[trackio]'")
    out = tracked("trackio")
    name = f"my run-{json.loads((out / 'tracker.json').read_text())['id']}"
    with sqlite3.connect(tmp_path / "trackio" / "ngd-timm.db") as base:
        rows = base.execute("select run_name, step, metrics from metrics order by step").fetchall()
        configs = base.execute("select config from configs").fetchall()
    assert [(run, step) for run, step, _ in rows] == [(name, 0), (name, 1)]
    assert "valid_acc" in json.loads(rows[0][2])
    assert configs
    assert str(faces) not in str(configs)
