"""The demo, small: every stage once, and a page that calls simulated what is simulated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
from test_report import Page

from ngd_timm.core.errors import InputError
from ngd_timm.experiments.demo import DemoSizes, run_demo
from ngd_timm.grid.prototypes import PrototypeGrid

TINY = DemoSizes(
    subjects=6, trials=8, windows=2, teacher_epochs=1, permutations=20, train=96, valid=16, test=32, epochs=1
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    assert run_demo(out, seed=1, sizes=TINY) == out / "report.html"
    return out


def test_every_stage_leaves_its_folder_and_a_student_that_timm_alone_loads(demo: Path) -> None:
    names = {p.name for p in demo.iterdir()}
    assert names == {"eeg", "teacher", "grid.safetensors", "faces", "baseline", "run", "report.html"}
    student = timm.create_model(f"local-dir:{demo / 'run' / 'student'}", pretrained=True)
    assert student.num_classes == 8
    assert "simulated" in str(PrototypeGrid.load(demo / "grid.safetensors").metadata)


def test_the_page_calls_eeg_and_faces_simulated_and_shows_the_scores_without_a_network(demo: Path) -> None:
    page = Page(demo / "report.html")
    page.check(images=5 + 16, links=("teacher/report.html",))
    assert "the EEG is simulated" in page.text
    assert "the faces are drawn by a program" in page.text
    for student in ("baseline", "run"):
        scores = json.loads((demo / student / "test.json").read_text())
        assert {key: entry["n"] for key, entry in scores.items()} == {"pencil:test": 32, "paint:test": 32}
        for entry in scores.values():
            assert f"{entry['8way']['acc']:.1f}" in page.text
    teacher = json.loads((demo / "teacher" / "scores.json").read_text())["teacher"]
    assert f"{teacher['valence']['ccc']['value']:.2f}" in page.text


def test_a_folder_that_holds_something_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="is not empty"):
        run_demo(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
