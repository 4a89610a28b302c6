"""Robustness: the scores are right, all students see the same corrupted images, and wrong input leaves no trace."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from ngd_timm import CLASSES
from ngd_timm.core.errors import InputError
from ngd_timm.core.recipe import Recipe, StudentConfig
from ngd_timm.data import load_fer
from ngd_timm.data.synthetic.corruptions import CORRUPTIONS, corrupt
from ngd_timm.data.synthetic.schematic import draw_face, write_schematic
from ngd_timm.evaluate.metrics import METRICS, metrics_of_versions, paired_difference
from ngd_timm.evaluate.predictions import predict
from ngd_timm.evaluate.student import evaluate, face_batches
from ngd_timm.experiments.robustness import robustness
from ngd_timm.models.student import create_student, open_student, save_student, shipped_student


def make_student(folder: Path, seed: int, **settings: Any) -> Path:
    torch.manual_seed(seed)
    config = StudentConfig(backbone="test_resnet", **{"image_size": 32, **settings})
    model = create_student(config, 8)
    faces = [np.asarray(draw_face(name, seed=i, image_size=config.image_size)) for i, name in enumerate(CLASSES)]
    images = (torch.from_numpy(np.stack(faces))[:, None].expand(-1, config.in_chans, -1, -1) / 255 - 0.5) / 0.25
    with torch.no_grad():
        # an untrained student predicts one class for all faces, unless what they have in common is taken away
        for _ in range(30):
            model.train()(images)
        model.get_classifier().bias.sub_(model.eval()(images).mean(dim=0))
    return save_student(model, folder)


def make_run(folder: Path, name: str, seed: int, **data: Any) -> Path:
    make_student(folder / "student", 10 * seed + len(name))
    recipe = Recipe(name=name, seed=seed, data={"name": "schematic", "root": "faces", **data})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    (folder / "fingerprint.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of recipe one, two of recipe another, and a bare student that is one's first."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("one", "another"):
        for seed in (0, 1):
            make_run(root / f"{name}-{seed}", name, seed)
    shutil.copytree(root / "one-0" / "student", root / "bare")
    return root


def score(*arguments: Any, **settings: Any) -> dict[str, Any]:
    """What `robustness` returns, without the second that drawing takes."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("write_robustness_plot", "write_framing_plot"):
            patch.setattr(f"ngd_timm.experiments.robustness.{name}", lambda results, path: None)
        return robustness(*arguments, **settings)[0]


def to_png(pixels: np.ndarray) -> dict[str, bytes]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue()}


@pytest.fixture(scope="module")
def results(runs: Path, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("out")
    sources = [runs / name for name in ("one-1", "another-0", "one-0", "another-1", "bare")]
    return score(sources, f"schematic={faces}:test", out, severities=[4, 2], resamples=200)


def test_a_cell_has_scikit_learns_scores_of_the_students_predictions(
    runs: Path, faces: Path, results: dict[str, Any]
) -> None:
    dataset = load_fer("schematic", faces, "test")
    pixels = np.stack([np.asarray(image.convert("L")) for image in dataset["image"]])
    model, _ = open_student(runs / "another-0")
    for name in ("snow", "impulse_noise", "jpeg_compression"):
        changed = dataset.remove_columns("image").add_column("image", [to_png(x) for x in corrupt(pixels, name, 4)])
        predictions = predict(model, face_batches(model, changed.cast(dataset.features)), torch.device("cpu"))
        truth, predicted = predictions.target.numpy(), predictions.logits.numpy().argmax(axis=1)
        cell = results["students"][1]["corrupted"][name]["4"]
        assert cell["n"] == 16
        assert len(set(predicted)) > 2
        assert cell["acc"] == pytest.approx(100 * accuracy_score(truth, predicted))
        assert cell["bacc"] == pytest.approx(100 * balanced_accuracy_score(truth, predicted))
        f1 = f1_score(truth, predicted, labels=range(8), average="macro", zero_division=0)
        assert cell["macro_f1"] == pytest.approx(100 * f1)


def test_a_crop_has_the_scores_of_images_that_were_cropped_so_before(runs: Path, faces: Path, results: Any) -> None:
    dataset = load_fer("schematic", faces, "test")
    pixels = [np.asarray(image.convert("L")) for image in dataset["image"]]  # 32 px
    model, _ = open_student(runs / "another-0")
    for name, level, crop in (
        ("crop_scale", "0.8", lambda x: x[3:29, 3:29]),
        ("crop_scale", "1.1", lambda x: np.pad(x, ((2, 1), (2, 1)), mode="edge")),
        ("shift_down", "0.15", lambda x: np.concatenate([x[5:], x[-1:].repeat(5, axis=0)])),
        ("shift_right", "-0.075", lambda x: np.concatenate([x[:, :1].repeat(2, axis=1), x[:, :-2]], axis=1)),
    ):
        changed = dataset.remove_columns("image").add_column("image", [to_png(crop(x)) for x in pixels])
        predictions = predict(model, face_batches(model, changed.cast(dataset.features)), torch.device("cpu"))
        accuracy = 100 * accuracy_score(predictions.target.numpy(), predictions.logits.numpy().argmax(axis=1))
        assert results["students"][1]["framed"][name][level]["acc"] == pytest.approx(accuracy)
        row = results["recipes"]["another"][f"{name} {level}"]["acc"]["per_seed"]
        assert row[0] == pytest.approx(accuracy)


def test_runs_of_one_recipe_are_its_seeds_in_order_and_a_bare_student_stands_for_itself(
    results: dict[str, Any],
) -> None:
    assert list(results["recipes"]) == ["one", "another", "bare"]
    assert [(s["student"], s["recipe"], s["seed"]) for s in results["students"]] == [
        ("one-1", "one", 1),
        ("another-0", "another", 0),
        ("one-0", "one", 0),
        ("another-1", "another", 1),
        ("bare", "bare", None),
    ]
    clean = [s["clean"]["acc"] for s in results["students"]]
    assert results["recipes"]["one"]["clean"]["acc"]["per_seed"] == [clean[2], clean[0]]
    seen = results["students"][0]["corrupted"]
    assert list(seen) == list(CORRUPTIONS)
    assert [list(levels) for levels in seen.values()] == [["2", "4"]] * 15
    fog, every = results["recipes"]["bare"]["fog"]["acc"], results["recipes"]["bare"]["mean"]["acc"]
    own = {
        name: np.mean([levels[s]["acc"] for s in levels])
        for name, levels in results["students"][4]["corrupted"].items()
    }
    assert fog["mean"] == pytest.approx(own["fog"])
    assert every["mean"] == pytest.approx(np.mean(list(own.values())))
    assert fog["ci95"][0] <= fog["mean"] <= fog["ci95"][1]
    json.dumps(results, allow_nan=False)


def test_what_is_no_seed_of_a_recipe_stands_for_itself_and_equal_students_differ_by_nothing(
    runs: Path, faces: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "one-0" / "student", tmp_path / "one")
    sources = [tmp_path / "one", runs / "one-0", tmp_path / "one", runs / "one-0" / "student"]
    results = score(sources, f"schematic={faces}:test", tmp_path / "out", severities=[3], resamples=50)
    assert list(results["recipes"]) == ["one (2)", "one", "one (3)", "student"]
    assert [s["seed"] for s in results["students"]] == [None, 0, None, None]
    for difference in results["differences"]:
        assert difference["b"] == "one (2)"
        for row in (*CORRUPTIONS, "mean", "clean"):
            for metric in METRICS:
                assert (difference[row][metric]["mean"], difference[row][metric]["ci95"]) == (0, [0, 0])


def test_published_students_of_one_recipe_stand_for_themselves(faces: Path, tmp_path: Path) -> None:
    names = ["student-ferplus-v1", shipped_student()]
    options = {"severities": [1], "resamples": 20, "label_rule": "votes"}
    assert list(score(names, f"schematic={faces}:test", tmp_path / "out", **options)["recipes"]) == names


def test_a_runs_student_folder_is_scored_by_the_runs_rule(voted: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "voted-0", "voted", 0, label_rule="votes")
    results = score([run / "student"], f"ferplus={voted}:test", tmp_path / "out", severities=[1], resamples=20)
    assert results["data"]["label_rule"] == "votes"
    assert "labels: votes, without flip, training prior" in (tmp_path / "out" / "table.md").read_text()


def test_runs_of_one_name_with_other_settings_are_not_its_seeds(runs: Path, faces: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "one-5", "one", 5, label_rule="argmax")
    with pytest.raises(InputError, match="one-0 and one-5 are both of the recipe one, but data differs"):
        score([runs / "one-0", tmp_path / "one-5"], f"schematic={faces}:test", tmp_path / "out")


def test_a_difference_is_paired_by_seed_where_both_have_the_same_and_else_of_means(results: dict[str, Any]) -> None:
    another, bare = results["differences"]
    assert (another["a"], another["b"], bare["a"], bare["b"]) == ("another", "one", "bare", "one")
    means = results["recipes"]
    for row in ("snow", "mean", "clean"):
        a, b = means["another"][row]["macro_f1"]["per_seed"], means["one"][row]["macro_f1"]["per_seed"]
        assert another[row]["macro_f1"]["per_seed"] == pytest.approx(np.subtract(a, b))
        assert another[row]["macro_f1"]["seed_ci95"] is not None
        difference = means["bare"][row]["macro_f1"]["mean"] - means["one"][row]["macro_f1"]["mean"]
        assert bare[row]["macro_f1"]["mean"] == pytest.approx(difference)
        assert bare[row]["macro_f1"]["seed_ci95"] is None


@pytest.mark.parametrize(
    "settings", [{"in_chans": 3, "image_size": 48}, {"in_chans": 1, "image_size": 40}], ids=["colour", "grey"]
)
def test_clean_scores_are_those_of_evaluate_for_small_and_for_mixed_images(
    settings: dict[str, int], tmp_path: Path
) -> None:
    student = make_student(tmp_path / "student", 0, **settings)
    write_schematic(tmp_path / "small", "paint", n_train=8, n_valid=8, n_test=24, seed=1, image_size=32)
    for number, side in enumerate((100, 120, 80, 64) * 2):
        folder = tmp_path / "mixed" / CLASSES[number]
        folder.mkdir(parents=True)
        draw_face(CLASSES[number], domain="paint", seed=number, image_size=side).save(folder / "face.png")
    for spec in (f"schematic={tmp_path / 'small'}:test", f"schematic={tmp_path / 'mixed'}"):
        (expected,) = evaluate(student, [spec], flip=True).values()
        results = score([student], spec, tmp_path / "out", severities=[1], flip=True, resamples=5)
        assert {m: results["students"][0]["clean"][m] for m in METRICS} == expected["8way"]
        assert results["differences"] == []


def test_in_low_precision_the_scores_are_nearly_the_same(
    runs: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    types, linear = set(), torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *args: types.add((y := linear(*args)).dtype) or y)
    both = [
        score([runs / "one-0"], f"schematic={faces}:test", tmp_path / "out", severities=[2], resamples=5, amp=amp)
        for amp in ("off", "bf16")
    ]
    assert [results["settings"]["precision"] for results in both] == ["float32", "bfloat16"]
    assert types == {torch.float32, torch.bfloat16}
    assert "arithmetic is bfloat16" in (tmp_path / "out" / "table.md").read_text()
    means = [[results["recipes"]["one"][row]["acc"]["mean"] for row in (*CORRUPTIONS, "clean")] for results in both]
    assert np.abs(np.subtract(*means)).max() < 15
    assert np.abs(np.subtract(*means)).mean() < 3


@pytest.mark.parametrize("side", [32, 100])
def test_scores_do_not_depend_on_how_many_images_are_held_at_once(
    side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = make_student(tmp_path / "student", 0)
    write_schematic(tmp_path / "faces", "pencil", n_train=8, n_valid=8, n_test=16, seed=1, image_size=side)
    spec = f"schematic={tmp_path / 'faces'}:test"
    at_once = score([student], spec, tmp_path / "out", severities=[3], resamples=5)
    for name in ("_BATCH", "_LARGE_BATCH"):
        monkeypatch.setattr(f"ngd_timm.experiments.robustness.{name}", 7)
    assert score([student], spec, tmp_path / "out", severities=[3], resamples=5) == at_once


def test_resamples_agree_with_the_paired_difference_of_two_recipes_and_with_a_loop() -> None:
    rng = np.random.default_rng(0)
    target, predictions = rng.integers(0, 8, 400), rng.integers(0, 8, (3, 2, 400))
    predictions[0, 1] = np.where(rng.random(400) < 0.3, target, predictions[0, 1])
    scores, redrawn = metrics_of_versions(predictions, target, 8, resamples=2000)
    reference = paired_difference(np.eye(8)[predictions[0, 1]], np.eye(8)[predictions[0, 0]], target)["8way"]
    for metric in METRICS:
        assert scores[metric][0, 1] - scores[metric][0, 0] == pytest.approx(reference[metric]["mean"])
        interval = np.percentile(redrawn[metric][0, 1] - redrawn[metric][0, 0], [2.5, 97.5])
        assert interval == pytest.approx(reference[metric]["ci95"], abs=0.7)
    draw = np.random.default_rng(5).multinomial(400, np.full(400, 1 / 400), size=3)
    _, redrawn = metrics_of_versions(predictions, target, 8, resamples=3, seed=5)
    for resample, times in enumerate(draw):
        sample = np.repeat(np.arange(400), times)
        for version in range(3):
            truth, predicted = target[sample], predictions[version, 1, sample]
            f1 = f1_score(truth, predicted, labels=range(8), average="macro", zero_division=0)
            assert redrawn["macro_f1"][version, 1, resample] == pytest.approx(100 * f1)


def test_a_subjects_images_are_resampled_together() -> None:
    target, subjects = np.repeat([0, 1], 50), np.repeat(np.arange(10), 10)
    predictions = np.zeros((1, 1, 100), dtype=np.uint8)
    _, redrawn = metrics_of_versions(predictions, target, 2, subjects, resamples=100)
    assert set(redrawn["acc"][0, 0]) <= {10.0 * k for k in range(11)}


def test_the_command_writes_scores_tables_and_a_plot(
    runs: Path, faces: Path, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    out = tmp_path / "out"
    arguments = ["robustness", *(str(runs / n) for n in ("one-0", "another-0"))]
    arguments += ["--data", f"schematic={faces}:test", "--severities", "1, 5", "--out", str(out)]
    done = ngd(*arguments)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in out.iterdir()) == ["framing.png", "robustness.json", "robustness.png", "table.md"]
    table = (out / "table.md").read_text()
    assert "| corruption | one acc | one macro-F1 | another acc | another macro-F1 |" in table
    assert "| corruption | another − one acc | another − one macro-F1 |" in table
    for row in (*CORRUPTIONS, "mean", "clean"):
        assert table.count(f"\n| {row} | ") == 2 + (row == "clean")
        assert done.stdout.count(f"\n{row} ") == 2 + (row == "clean")
    for row in ("crop scale 0.8", "crop scale 1.2", "shift right -0.15", "shift down 0.075"):
        assert table.count(f"\n| {row} | ") == done.stdout.count(f"\n{row} ") == 1
    assert "mean over severities 1, 5" in table
    with Image.open(out / "robustness.png") as plot:
        assert plot.width > 1000
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    shown = ngd(*arguments, "--json").stdout
    assert json.loads(shown) == json.loads(before["robustness.json"])
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert str(runs) not in shown
    assert str(faces) not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{runs}/one-0", "--severities", "1,6"], "severities must be different ones of 1, 2, 3, 4, 5, got 1, 6"),
        (["{runs}/one-0", "--severities", "1,1"], "got 1, 1"),
        (["{runs}/one-0", "--severities", "two"], "such as 1,3,5; got 'two'"),
        (["{runs}/one-0", "--severities", ""], "such as 1,3,5; got ''"),
        (["{runs}/one-0", "--amp", "bf8"], "precision 'bf8'"),
        (["{runs}/none"], "neither a run directory"),
        (["{runs}/one-0", "{runs}/one-0"], "are both seed 0 of the recipe one"),
        (["{runs}/one-0", "{votes}"], "label_rule is majority and votes; give --label-rule"),
        (["{runs}/one-0", "{seven}"], "can't be compared: classes is"),
        (["{runs}/one-0", "--out", "{file}"], "is a file; choose a folder"),
        (["{runs}/one-0", "--out", "{ablation}"], "holds an ablation, whose table.md would be lost; choose another"),
        (["{runs}/one-0", "--out", "{file}/new"], "can't be written (Not a directory); choose another place"),
        (["{runs}/one-0", "--data", "schematic={tiny}"], "a side of 6 px"),
        (["{runs}/one-0", "--data", "schematic={runs}/nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_two_and_writes_nothing(
    arguments: list[str],
    message: str,
    runs: Path,
    faces: Path,
    tmp_path: Path,
    ngd: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    places = {"runs": runs, "votes": tmp_path / "votes", "seven": tmp_path / "seven", "tiny": tmp_path / "tiny"}
    places |= {"file": tmp_path / "file", "ablation": tmp_path / "ablation"}
    places["file"].write_text("mine")
    places["ablation"].mkdir()
    (places["ablation"] / "ablation.json").write_text("{}")
    make_run(places["votes"], "votes", 0, label_rule="votes")
    save_student(create_student(StudentConfig(backbone="test_resnet"), 7), places["seven"], CLASSES[:7])
    for name in ("fear", "anger"):
        (places["tiny"] / name).mkdir(parents=True)
        draw_face(name).resize((6, 9)).save(places["tiny"] / name / "face.png")
    options = [a.format(**places) for a in arguments]
    options += [] if "--data" in options else ["--data", f"schematic={faces}:test"]
    done = ngd("robustness", *options, *([] if "--out" in options else ["--out", "out"]))
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("ngd: ")] == lines[-1:]
    assert message in lines[-1]
    assert list(work.iterdir()) == []
    assert places["file"].read_text() == "mine"
