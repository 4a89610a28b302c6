"""The demo, small: every stage once, and a report that calls simulated what is simulated."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import timm

from ngd_timm.core.errors import InputError
from ngd_timm.experiments.demo import DemoSizes, run_demo
from ngd_timm.grid.prototypes import PrototypeGrid

TINY = DemoSizes(
    subjects=6, trials=8, windows=2, teacher_epochs=1, permutations=20, train=192, valid=32, test=32, epochs=2
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    assert run_demo(out, seed=1, sizes=TINY) == out / "report.html"
    return out


def test_every_stage_leaves_its_folder(demo: Path) -> None:
    names = {p.name for p in demo.iterdir()}
    assert names == {"eeg", "teacher", "grid.safetensors", "faces", "baseline", "run", "report.html"}


def test_the_grid_says_that_it_is_simulated(demo: Path) -> None:
    assert "simulated" in str(PrototypeGrid.load(demo / "grid.safetensors").metadata)


def test_both_students_are_scored_on_both_styles(demo: Path) -> None:
    for student in ("baseline", "run"):
        scores = json.loads((demo / student / "test.json").read_text())
        assert {key: entry["n"] for key, entry in scores.items()} == {"pencil:test": 32, "paint:test": 32}


def test_the_student_loads_with_timm_alone(demo: Path) -> None:
    student = timm.create_model(f"local-dir:{demo / 'run' / 'student'}", pretrained=True)
    assert student.num_classes == 8


def test_the_report_calls_eeg_and_faces_simulated_and_needs_no_network(demo: Path) -> None:
    html = (demo / "report.html").read_text(encoding="utf-8")
    assert "the EEG is simulated" in html
    assert "the faces are drawn by a program" in html
    assert not re.search(r'(?:src|href)="(?!data:|#|teacher/report\.html")', html)
    assert "<script" not in html
    assert len(html.encode()) < 3_000_000


def test_the_report_shows_the_measured_figures(demo: Path) -> None:
    html = (demo / "report.html").read_text(encoding="utf-8")
    for student in ("baseline", "run"):
        for entry in json.loads((demo / student / "test.json").read_text()).values():
            assert f"{entry['8way']['acc']:.1f}" in html
    scores = json.loads((demo / "teacher" / "scores.json").read_text())
    assert f"{scores['teacher']['valence']['ccc']['value']:.2f}" in html


def test_a_folder_that_holds_something_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="is not empty"):
        run_demo(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
