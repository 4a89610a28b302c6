"""The parts of a run's page that need its predictions, and the thumbnails that only come on request."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, precision_score, recall_score
from tiny_runs import tiny_recipe

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import write_json, write_text
from ngd_timm.evaluate.metrics import fer_metrics
from ngd_timm.evaluate.predictions import Predictions, prediction_file, read_predictions, write_predictions
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.report import write_report
from ngd_timm.report.sets import class_intervals, embedding_map, stratified
from ngd_timm.train.loop import train


@pytest.fixture(scope="module")
def run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {"grid": "gameemo-v2", "loss": {"proto_kd": 0.1}, "optim": {"epochs": 1, "batch_size": 16}}
    return train(tiny_recipe(faces, tmp_path_factory.mktemp("runs") / "run", **changes))


def predicted(n: int, dim: int, absent: int | None = None) -> Predictions:
    rng = np.random.default_rng(0)
    target = rng.choice(8, n, p=[0.37, 0.27, 0.13, 0.11, 0.09, 0.01, 0.015, 0.005])
    target[target == absent] = 0
    logits = rng.normal(size=(n, 8)) + 3 * np.eye(8)[target]
    embedding = rng.normal(size=(n, dim)) + 2 * rng.normal(size=(8, dim))[target]
    return Predictions(
        torch.tensor(logits).float(),
        torch.tensor(target),
        torch.tensor(embedding).float(),
        classes=CLASSES,
        data_sha256="0" * 64,
    )


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_a_trained_runs_page_has_every_part_and_is_the_same_twice(run: Path) -> None:
    html = write_report(run).read_text(encoding="utf-8")
    for words in ("F1 of each class", "Is it as sure as it is right?", "Which images look alike to it"):
        assert words in html
    assert "places on the grid" in html
    assert "This page holds faces" not in html
    assert "No predictions of single images" not in html
    assert write_report(run).read_text(encoding="utf-8") == html


def test_a_page_of_3000_images_with_an_absent_class_shows_both_matrices_and_stays_small(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ngd_timm.report.sets.embedding_map", lambda rows: rows[:, :2])  # t-SNE takes seconds
    predictions = predicted(2948, PrototypeGrid.default().dim, absent=7)
    write_predictions(prediction_file(copy, "schematic:valid"), predictions)
    write_json(copy / "metrics.json", {"schematic:valid": predictions.entry()})
    html = write_report(copy).read_text(encoding="utf-8")
    assert len(html.encode()) < 1_000_000
    assert "What is taken for what, all classes allowed" in html
    assert "What is taken for what, present classes only" in html
    assert "1,500 of 2,948" in html


def test_a_run_without_predictions_names_what_is_left_out(copy: Path) -> None:
    shutil.rmtree(copy / "predictions")
    html = write_report(copy).read_text(encoding="utf-8")
    assert "No predictions of single images are kept for schematic:valid" in html
    assert "Which images look alike to it" not in html
    with pytest.raises(InputError, match="keeps no predictions"):
        write_report(copy, mistakes=3)


def test_mistakes_are_shown_on_request_the_most_confident_first_on_a_page_that_says_it_holds_faces(copy: Path) -> None:
    found = read_predictions(prediction_file(copy, "schematic:valid"))
    html = write_report(copy, mistakes=4).read_text(encoding="utf-8")
    assert "This page holds faces" in html
    assert html.count('alt="a face labelled') == 4
    wrong = found.logits.argmax(1) != found.target
    surest = found.logits.softmax(1).max(1).values[wrong].sort(descending=True).values[:4]
    shown = [int(s) for s in re.findall(r"predicted \w+ \((\d+) %\)", html)]
    assert shown == [round(100 * float(s)) for s in surest]
    write_predictions(prediction_file(copy, "schematic:valid"), replace(found, data_sha256="1" * 64))
    with pytest.raises(InputError, match="are not those that the run was scored on"):
        write_report(copy, mistakes=4)
    write_predictions(prediction_file(copy, "schematic:valid"), predicted(20, 64))
    with pytest.raises(InputError, match=r"about 20 images"):
        write_report(copy)


def test_intervals_of_a_class_hold_scikit_learns_scores_and_narrow_with_more_images() -> None:
    rng = np.random.default_rng(1)
    widths = []
    for n in (200, 5000):
        target = rng.choice(3, n, p=[0.6, 0.3, 0.1])
        guess = np.where(rng.random(n) < 0.7, target, rng.integers(0, 3, n))
        found = class_intervals(target, guess, 4)
        assert found[3] is None
        for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
            for c, value in enumerate(score(target, guess, average=None, labels=[0, 1, 2])):
                interval = found[c]
                assert interval is not None
                assert interval[name][0] <= 100 * value <= interval[name][1]
        widths.append(found[2]["f1"][1] - found[2]["f1"][0])  # type: ignore[index]
    assert widths[1] < widths[0] / 3


def test_intervals_over_subjects_are_wider_where_a_subjects_images_go_together() -> None:
    rng = np.random.default_rng(2)
    subject = np.repeat(np.arange(20), 50)
    target = rng.integers(0, 2, 1000)
    guess = np.where(np.repeat(rng.random(20) < 0.7, 50), target, 1 - target)  # right or wrong as a subject
    one, many = (class_intervals(target, guess, 2, s)[0] for s in (None, subject))
    assert one is not None
    assert many is not None
    assert many["recall"][1] - many["recall"][0] > 3 * (one["recall"][1] - one["recall"][0])


def test_a_class_is_resampled_as_the_headline_scores_are() -> None:
    rng = np.random.default_rng(4)
    # with images of one class only, recall is accuracy
    target, guess, subject = np.zeros(300, dtype=np.int64), rng.integers(0, 3, 300), rng.integers(0, 12, 300)
    for subjects in (None, subject):
        (first, *_) = class_intervals(target, guess, 8, subjects)
        assert first is not None
        scores = fer_metrics(np.eye(8)[guess], target, subjects=subjects)
        assert first["recall"] == pytest.approx(scores["ci95"]["8way"]["acc"])


def test_a_map_keeps_rare_classes_whole_and_groups_apart() -> None:
    predictions = predicted(3000, 16)
    target = predictions.target.numpy()
    sample = stratified(target, 400)
    assert len(sample) == 400
    rare = int((target == 7).sum())
    assert (target[sample] == 7).sum() == rare
    rng = np.random.default_rng(3)
    rows = np.concatenate([rng.normal(size=(60, 8)) + 6 * np.eye(8)[0], rng.normal(size=(60, 8)) + 6 * np.eye(8)[1]])
    places = embedding_map(rows)
    assert places is not None
    first, second = places[:60], places[60:]
    assert np.linalg.norm(first.mean(0) - second.mean(0)) > first.std() + second.std()
    assert embedding_map(np.ones((50, 4))) is None


def test_a_run_that_is_evaluated_later_gets_the_confusion_matrices_of_that_set_and_a_published_student_none(
    trained_run: Path, student: Path, faces: Path, tmp_path: Path, ngd: Any
) -> None:
    without = shutil.ignore_patterns("figures")  # which another test may have left in the run that they share
    run = shutil.copytree(trained_run, tmp_path / "run", ignore=without)
    bare = shutil.copytree(student, tmp_path / "student")
    published = shutil.copytree(trained_run, tmp_path / "published", ignore=without)
    (published / "summary.csv").unlink()
    for source in (run, bare, published):
        assert ngd("evaluate", str(source), "--data", f"schematic={faces}:test").returncode == 0
    written = {file.name for file in (run / "figures" / "schematic-test").iterdir()}
    assert written == {f"{name}.{form}" for name in ("confmat", "confmat_present") for form in ("png", "pdf")}
    assert not (bare / "figures").exists()
    assert not (published / "figures").exists()


def test_a_run_that_is_not_finished_gets_no_page(tmp_path: Path) -> None:
    write_text(tmp_path / "recipe.yaml", "name: a")
    with pytest.raises(InputError, match="is not a finished run"):
        write_report(tmp_path)
