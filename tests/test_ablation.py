"""An ablation: its table, what is not trained twice, what is refused."""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ngd_timm.core.affect import anchors
from ngd_timm.core.errors import InputError
from ngd_timm.core.recipe import Recipe, load_recipe, to_yaml
from ngd_timm.evaluate import read_predictions
from ngd_timm.experiments.ablation import _load, _warm_start, ablate
from ngd_timm.experiments.sweep import read_sweeps, swept_rows
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.report import try_page
from ngd_timm.report.figures import class_centers
from ngd_timm.train.interruption import Stopped
from ngd_timm.train.loop import train

# the reference is taught by a recipe that is named after it
RECIPES = ("b1_kd", "b0_ce", "b3_share")


def settings(faces: Path) -> list[str]:
    return [
        "student.backbone=test_resnet",
        "student.image_size=32",
        "data.name=schematic",
        f"data.root={faces}",
        "data.workers=0",
        "optim.epochs=2",
        "optim.batch_size=16",
        "optim.lr=3e-3",
        "share_every=2",
    ]


@pytest.fixture(scope="module")
def whole(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "ablation"
    with pytest.MonkeyPatch.context() as patch:  # one run's page is enough
        one = "b1_kd-1"
        patch.setattr(
            "ngd_timm.experiments.ablation.try_page",
            lambda run, *draw: try_page(run, *draw) if draw or run.name == one else True,
        )
        ablate([*RECIPES, *settings(faces)], 2, out)
    return out


def found(out: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((out / "ablation.json").read_text())
    return result


def entries(out: Path, recipe: str) -> list[dict[str, Any]]:
    files = [out / "runs" / f"{recipe}-{seed}" / "metrics.json" for seed in (0, 1)]
    return [json.loads(file.read_text())["schematic:valid"] for file in files]


def test_rows_are_means_of_the_runs_scores_and_differences_are_paired_by_seed(whole: Path) -> None:
    on = found(whole)["sets"]["schematic:valid"]
    for protocol in ("8way", "present"):
        for metric in ("acc", "macro_f1", "bacc"):
            scores = {r: [e[protocol][metric] for e in entries(whole, r)] for r in RECIPES}
            for recipe in RECIPES:
                row = on["recipes"][recipe][protocol][metric]
                assert row["per_seed"] == pytest.approx(scores[recipe])
                assert row["mean"] == pytest.approx(np.mean(scores[recipe]))
            for difference in on["differences"]:
                a, b = scores[difference["a"]], scores[difference["b"]]
                assert difference[protocol][metric]["per_seed"] == pytest.approx(np.subtract(a, b))
    assert [(d["a"], d["b"]) for d in on["differences"]] == [("b1_kd", "b0_ce"), ("b3_share", "b1_kd")]


def test_the_tables_name_every_recipe_difference_share_lambda_and_time(whole: Path) -> None:
    markdown, latex = (whole / "table.md").read_text(), (whole / "table.tex").read_text()
    for recipe in RECIPES:
        assert markdown.count(f"| {recipe} |") == 2
        assert recipe.replace("_", r"\_") in latex
    assert "| b3_share − b1_kd |" in markdown
    training = found(whole)["training"]
    assert training["b3_share"]["share"]["proto_kd"] == pytest.approx(5, abs=2.5)
    assert f"{training['b3_share']['lambda_proto_kd']:.3g}" in markdown
    assert training["b0_ce"]["share"] == {"ce": 100, "kd": None, "proto_kd": None, "d_geo": None}
    assert "| λ Proto-KD | images | epochs | minutes |" in markdown
    assert {row["images"] for row in training.values()} == {48}
    assert "- few images: neutral 2, happiness 2," in markdown.replace("labels: given, ", "")
    for line in latex.splitlines():
        if line.endswith(r"\\"):
            assert line.count(" & ") in (3, 8)
    assert (whole / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert 'href="runs/b1_kd-1/report.html"' in (whole / "report.html").read_text(encoding="utf-8")


def test_the_figures_of_the_paper_lie_beside_it_as_png_and_pdf_and_are_on_the_page(whole: Path) -> None:
    names = [f"confmat{p}{d}" for p in ("", "_present") for d in ("", "_difference")]
    names += ["embeddings_pca", "embeddings_tsne", "va_plane"]
    files = {file.name: file.read_bytes() for file in (whole / "figures" / "schematic-valid").iterdir()}
    assert files.keys() == {f"{name}.{form}" for name in names for form in ("png", "pdf")}
    assert all(content.startswith(b"\x89PNG" if name.endswith("png") else b"%PDF") for name, content in files.items())
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == 5, "all but the present-only ones of a set with every class"
    assert 'href="figures/schematic-valid/embeddings_tsne.pdf"' in page


def test_a_classs_place_is_the_expected_cell_under_the_students_q(whole: Path) -> None:
    run = whole / "runs" / "b3_share-0"
    predictions = read_predictions(run / "predictions" / "schematic-valid.safetensors")
    note, places, aims = class_centers([run], [predictions])
    grid, tau = PrototypeGrid.load(run / "grid.safetensors"), load_recipe(Recipe, run / "recipe.yaml").loss.tau
    assert note == f"τ {tau:g}"
    assert aims is not None
    for c in range(8):
        slow = []
        for z in predictions.embedding[predictions.target == c].numpy():  # type: ignore[index]
            q = np.exp(grid.prototypes.numpy() @ z / np.linalg.norm(z) / tau)
            slow.append(q / q.sum() @ grid.centers.numpy())
        assert places[c] == pytest.approx(np.mean(slow, axis=0), abs=1e-5)
    note, places, aims = class_centers([whole / "runs" / "b0_ce-0"], [predictions])
    assert (note, places.tolist(), aims) == ("no Proto-KD: the anchors", anchors().tolist(), None)


def test_each_seeds_images_are_placed_on_its_own_grid(whole: Path, tmp_path: Path) -> None:
    runs = [Path(shutil.copytree(whole / "runs" / f"b3_share-{seed}", tmp_path / str(seed))) for seed in (0, 1)]
    for seed, run in enumerate(runs):
        PrototypeGrid.random(64, 5, seed).save(run / "grid.safetensors")
    kept = [read_predictions(run / "predictions" / "schematic-valid.safetensors") for run in runs]
    alone = [class_centers([run], [predictions])[1] for run, predictions in zip(runs, kept, strict=True)]
    assert class_centers(runs, kept)[1] == pytest.approx(np.mean(alone, axis=0))
    assert alone[1] != pytest.approx(class_centers(runs[:1], kept[1:])[1], abs=1e-4)


def test_the_teacher_is_the_same_seeds_run(whole: Path) -> None:
    for seed in (0, 1):
        recipe = load_recipe(Recipe, whole / "runs" / f"b1_kd-{seed}" / "recipe.yaml")
        assert recipe.teacher == str(whole / "runs" / f"b0_ce-{seed}")
        assert recipe.seed == seed


def test_a_run_of_an_ablation_is_the_run_that_train_makes_alone(whole: Path, faces: Path, tmp_path: Path) -> None:
    alone = train(load_recipe(Recipe, "b0_ce", [*settings(faces), "seed=1", f"out={tmp_path / 'run'}"]))
    weights = [run / "student" / "model.safetensors" for run in (alone, whole / "runs" / "b0_ce-1")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_stopped_and_run_again_it_repeats_nothing_that_is_done_and_ends_in_the_same_scores(
    whole: Path,
    faces: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "ngd_timm.experiments.ablation.try_page", lambda run, *draw: try_page(run, *draw) if draw else True
    )
    monkeypatch.setattr("ngd_timm.experiments.ablation.write_ablation_figures", lambda *_: None)
    caplog.set_level("INFO", logger="ngd_timm.experiments")
    arguments, runs = [*RECIPES, *settings(faces)], tmp_path / "runs"
    # what a kill leaves of a run without a fingerprint is begun again
    (runs / "b0_ce-0").mkdir(parents=True)
    recipe = load_recipe(Recipe, "b0_ce", [*settings(faces), f"out={runs / 'b0_ce-0'}"])
    (runs / "b0_ce-0" / "recipe.yaml").write_text(to_yaml(recipe))
    (runs / "b0_ce-0" / ".fingerprint.json.x1.json").write_text("{")

    def stop_in_the_second_run() -> None:
        while not (runs / "b1_kd-0" / "last").exists():
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=stop_in_the_second_run, daemon=True).start()
    with pytest.raises((KeyboardInterrupt, Stopped)):
        ablate(arguments, 1, tmp_path)
    done = [file.parent for file in runs.glob("*/metrics.json")]
    assert 1 <= len(done) < 3
    before = {file: file.stat().st_mtime_ns for run in done for file in run.rglob("*") if file.is_file()}
    caplog.clear()
    ablate(arguments, 1, tmp_path)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    lines = [r.getMessage() for r in caplog.records if r.name == "ngd_timm.experiments"]
    order = ("b0_ce", "b1_kd", "b3_share")
    assert [line.split(": ")[0] for line in lines] == [f"[{i}/3] {name}, seed 0" for i, name in enumerate(order, 1)]
    assert sum(line.endswith("done before") for line in lines) == len(done)
    for name in RECIPES:
        metrics = [(out / "runs" / f"{name}-0" / "metrics.json").read_bytes() for out in (tmp_path, whole)]
        assert metrics[0] == metrics[1]
    for mean in found(tmp_path)["sets"]["schematic:valid"]["recipes"].values():
        assert mean["8way"]["acc"]["seed_ci95"] is None, "one seed has no interval over seeds"


def test_finished_runs_give_their_table_again_without_training(
    whole: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ngd_timm.experiments.ablation.train", None)
    monkeypatch.setattr("ngd_timm.experiments.ablation.resume", None)
    monkeypatch.setattr("ngd_timm.experiments.ablation.write_ablation_figures", lambda *_: None)
    before = found(whole)
    ablate([*RECIPES, *settings(faces)], 2, whole)
    assert found(whole) == before
    shutil.copytree(whole / "runs", tmp_path / "runs")
    ablate(["b0_ce", *settings(faces)], 1, tmp_path)
    assert found(tmp_path)["recipes"] == ["b0_ce"]
    assert not (tmp_path / "ablation.png").exists(), "one recipe has no differences"


def test_a_table_of_more_seeds_stays_until_a_new_row_has_as_many(
    whole: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "ablation"))

    def train_or_stop(recipe: Recipe, command: Any) -> Path:
        if recipe.seed == 1:
            raise Stopped(signal.SIGTERM, "stopped")
        return train(recipe, command)

    monkeypatch.setattr("ngd_timm.experiments.ablation.train", train_or_stop)
    monkeypatch.setattr("ngd_timm.experiments.ablation.try_page", lambda *_: True)
    with pytest.raises(Stopped):
        ablate([*RECIPES, "c_va", *settings(faces)], 2, out)
    assert (out / "ablation.json").read_bytes() == (whole / "ablation.json").read_bytes()
    monkeypatch.undo()
    monkeypatch.setattr("ngd_timm.experiments.ablation.try_page", lambda *_: True)
    ablate([*RECIPES, "c_va", *settings(faces)], 2, out)
    assert (found(out)["recipes"], found(out)["seeds"]) == ([*RECIPES, "c_va"], [0, 1])


def test_another_setting_in_the_same_folder_is_refused_in_one_line(whole: Path, faces: Path) -> None:
    with pytest.raises(InputError, match=r"b1_kd-0 was begun with loss\.kd=0\.3, now it is 0\.5") as caught:
        ablate([*RECIPES, *settings(faces), "b1_kd:loss.kd=0.5"], 2, whole)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"optim\.lr=0\.003, now it is 0\.001"):
        ablate([*RECIPES, *settings(faces), "optim.lr=1e-3"], 2, whole)


def test_a_run_whose_teacher_changed_is_refused(whole: Path, faces: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "runs", tmp_path / "ablation" / "runs")
    teacher = tmp_path / "ablation" / "runs" / "b0_ce-0"
    shutil.copyfile(
        whole / "runs" / "b0_ce-1" / "student" / "model.safetensors", teacher / "student" / "model.safetensors"
    )
    for _ in ("a finished run", "one that goes on"):
        with pytest.raises(InputError, match="b1_kd-0 was trained with another teacher"):
            ablate([*RECIPES, *settings(faces)], 2, tmp_path / "ablation")
        (tmp_path / "ablation" / "runs" / "b1_kd-0" / "metrics.json").unlink(missing_ok=True)


def test_runs_on_other_data_are_not_mixed_into_a_table(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ngd_timm.experiments.ablation.try_page", lambda run, *draw: try_page(run, *draw) if draw else True
    )
    monkeypatch.setattr("ngd_timm.experiments.ablation.write_ablation_figures", lambda *_: None)
    own, out = tmp_path / "faces", tmp_path / "out"
    shutil.copytree(faces, own)
    arguments = ["b0_ce", *settings(own), "optim.epochs=1"]
    ablate(arguments, 1, out)
    arguments += ["c_va", "c_va:loss.kd=0", "c_va:teacher=null"]
    before = (out / "ablation.json").read_bytes()
    whole = pq.read_table(own / "train.parquet")
    mirrored = pa.array([-v for v in whole["valence"].to_pylist()], pa.float32())
    fewer = whole.slice(1)
    for changed in (fewer, whole.set_column(whole.column_names.index("valence"), "valence", mirrored)):
        pq.write_table(changed, own / "train.parquet")
        with pytest.raises(InputError, match=r"b0_ce-0 was trained on other train data .* choose another --out") as e:
            ablate(arguments, 1, out)
        assert "\n" not in str(e.value)
        assert not (out / "runs" / "c_va-0").exists(), "nothing is trained for a table that can't be"

    def train_on_fewer(recipe: Recipe, *_: Any) -> Path:
        pq.write_table(fewer, own / "train.parquet")
        return train(recipe)

    pq.write_table(whole, own / "train.parquet")
    monkeypatch.setattr("ngd_timm.experiments.ablation.train", train_on_fewer)
    with pytest.raises(InputError, match=r"c_va-0 was trained on other train data"):
        ablate(arguments, 1, out)
    assert (out / "ablation.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.root=x"], "needs recipes"),
        (["b0_ce", "b0_ce"], "'b0_ce' stands twice"),
        (["b0_ce", "b1_kdd"], "did you mean 'b1_kd'"),
        (["b0_ce", "b1:optim.lr=1"], "unknown recipe in 'b1:optim.lr=1' 'b1'"),
        (["b0_ce", "out=elsewhere"], "names its runs itself"),
        (["b1_kd"], r"b1_kd's teacher \{run: b0_ce\} is not among the recipes b1_kd; name b0_ce too"),
        (["b1_kd", "kd_kl", "b1_kd:teacher={run: kd_kl}", "kd_kl:teacher={run: b1_kd}"], "each other's teachers"),
        (["b0_ce", "ce_fast"], "can't be paired: data.label_rule is majority and votes; give data.label_rule"),
        (["ce_fast", "student_small"], "can't be paired: eval_flip is True and False; give eval_flip=… for all"),
        (["b0_ce", "b1_kd:seed=3", "b1_kd"], "can't be paired: seed is 0 and 3"),
        (
            ["b0_ce", "b2_proto", "tau_paper"],
            "b2_proto and tau_paper are the same recipe .*; leave one out",
        ),
        (["b2_share", "c_va", "b0_ce", "b2_share:grid_control=va"], "b2_share and c_va are the same recipe"),
        (["b0_ce", "g3", "g3:grid=gameemo-v2"], "grid=gameemo-v2 is 5x5, grid_size asks for 3"),
        (["b0_ce", "b1_kd", "b1_kd:teacher=nowhere"], "nowhere is neither a run"),
        (["b0_ce", "b2_proto", "b1_kd", "b2_proto:student.projection=none"], "needs a grid as wide as"),
        (["b0_ce", "b1_kd", "b1_kd:student.backbone=resnet81"], "did you mean 'resnet18"),
        (["b0_ce", "b1_kd", "b1_kd:optim.opt=adamx"], "optim.opt=adamx"),
    ],
)
def test_what_cannot_be_a_table_is_refused_before_anything_is_trained(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ablate(arguments, 1, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_sweep_is_a_grid_of_rows_whose_names_say_their_values_and_what_the_recipe_is_anyway_leads() -> None:
    sweeps = read_sweeps(["b3_full:loss.d_geo=.006,.012", "b3_full:loss.ramp=[0,0],[.2,.6]"], ["b0_ce", "b3_full"])
    rows = swept_rows("b3_full", ["teacher=x"], sweeps["b3_full"])
    assert [recipe.name for recipe, _ in rows] == [
        "b3_full",
        "b3_full-d_geo.006-ramp0_0",
        "b3_full-d_geo.006-ramp.2_.6",
        "b3_full-d_geo.012-ramp0_0",
    ]
    for recipe, values in rows:
        assert (recipe.loss.d_geo, list(recipe.loss.ramp)) == (values["loss.d_geo"], values["loss.ramp"])
        Recipe.model_validate(recipe.model_dump())
    names = [
        recipe.name
        for recipe, _ in swept_rows("b0_ce", [], {"student.backbone": ["resnet34", "a/b c"], "init": [None, "x"]})
    ]
    assert names == [f"b0_ce-backbone_{b}-init_{i}" for b in ("resnet34", "a_b_c") for i in ("null", "x")]


def test_a_swept_ablation_trains_each_value_once_and_says_which_row_either_choice_takes(
    faces: Path, tmp_path: Path, ngd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ngd_timm.experiments.ablation.try_page", lambda run, *draw: try_page(run, *draw) if draw else True
    )
    monkeypatch.setattr("ngd_timm.experiments.ablation.write_ablation_figures", lambda *_: None)
    words = ["b0_ce", *settings(faces), "optim.epochs=1", f"eval.affectnet={faces}:test", "--seeds", "1"]
    sweep = ["--set", "loss.label_smoothing=.1,.055,0", "--choose", "macro_f1=affectnet"]
    done = ngd("ablate", *words, *sweep, "--out", str(tmp_path))
    assert done.returncode == 0
    names = ["b0_ce", "b0_ce-label_smoothing.1", "b0_ce-label_smoothing0"]
    assert sorted(run.name for run in (tmp_path / "runs").iterdir()) == sorted(f"{name}-0" for name in names)
    comparison = found(tmp_path)
    assert comparison["recipes"] == list(comparison["swept"]) == names
    scores = {
        key: {name: on["recipes"][name]["8way"]["macro_f1"]["mean"] for name in names}
        for key, on in comparison["sets"].items()
    }
    (table,) = [part for part in done.stdout.split("\n\n") if part.startswith("the choice of a row by macro-F1")]
    _, _, *choices, _, note = table.splitlines()
    for line, key in zip(choices, scores, strict=True):
        best = max(names, key=lambda name: scores[key][name])
        assert re.split(r" {2,}", line)[1:] == [
            best,
            *(f"{on[best]:.2f}" for on in scores.values()),
            f"{scores['affectnet:test'][best]:.2f}",
        ]
    assert "scores on sets that chose are optimistic" in note
    assert (tmp_path / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'alt="Sensitivity to what was swept"' in page


def test_recipes_of_other_shares_of_the_labels_are_no_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="label_fraction"):
        ablate(["b0_ce", "data.root=faces"], 1, tmp_path / "out", sweeps=["data.label_fraction=.05,.2"])


def test_a_warm_start_takes_no_unlabelled_images(tmp_path: Path) -> None:
    words = ["b1_kd", "teacher=student-ferplus-v1", "data.root=faces", "data.unlabelled=[crops]"]
    recipes, _ = _load(words, [])
    start = _warm_start(recipes, 0, tmp_path, 1)
    assert Recipe.model_validate(start.model_dump()).data.unlabelled == ()


def test_recipes_of_different_students_cannot_share_a_warm_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="different students"):
        ablate(["b0_ce", "b1_kd", "b1_kd:student.backbone=resnet34"], 1, tmp_path / "out", warm_start=1)
    with pytest.raises(InputError, match=r"data\.root is not set"):  # a projection has no part in the start
        ablate(["b0_ce", "b1_kd", "b1_kd:student.projection=none"], 1, tmp_path / "out", warm_start=1)
    with pytest.raises(InputError, match="leave that or --warm-start out"):
        ablate(["b0_ce", "init=hf-hub:user/student"], 1, tmp_path / "out", warm_start=1)
