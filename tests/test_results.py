"""ngd results: each score is what the runs' own predictions give, under each rule; refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from ngd_timm.core.errors import InputError
from ngd_timm.core.recipe import Recipe, load_recipe
from ngd_timm.evaluate.comparison import difference_pairs
from ngd_timm.evaluate.student import evaluate
from ngd_timm.experiments.ablation import ablate
from ngd_timm.experiments.results import (
    PAPER,
    PAPER_BEST,
    _by_first_rule,
    results_markdown,
    score_ablation,
    teacher_terms,
)

VOTES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")

SETTINGS = (
    *("student.backbone=test_resnet", "student.image_size=32", "data.workers=0"),
    *("optim.epochs=1", "optim.batch_size=16", "share_every=0"),
)


@pytest.fixture(scope="module")
def ablation(voted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "ablation"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ngd_timm.experiments.ablation.try_page", lambda *_: True)
        patch.setattr("ngd_timm.experiments.ablation.write_ablation_figures", lambda *_: None)
        arguments = ["b0_ce", "b1_kd", *SETTINGS, f"data.root={voted}"]
        command = ["ngd", "ablate", *arguments, "--seeds", "2", "--warm-start", "1", "--out", str(out)]
        ablate(arguments, 2, out, warm_start=1, command=command)
    return out


@pytest.fixture(scope="module")
def results(ablation: Path, voted: Path) -> dict[str, Any]:
    return score_ablation([ablation], [f"ferplus={voted}:valid", f"ferplus={voted}:test"], resamples=200)


def test_each_rule_counts_its_own_images_and_gives_the_scores_that_evaluate_gives(
    results: dict[str, Any], ablation: Path, voted: Path
) -> None:
    assert {name: found["n"] for name, found in results["sets"].items()} == {
        "ferplus:valid, majority": 20,
        "ferplus:valid, argmax": 24,
        "ferplus:test, majority": 20,
        "ferplus:test, argmax": 24,
    }
    for rule in ("majority", "argmax"):
        spec = f"ferplus={voted}:test"
        alone = [evaluate(ablation / "runs" / f"b1_kd-{s}", [spec], label_rule=rule)["ferplus:test"] for s in (0, 1)]
        mean = results["sets"][f"ferplus:test, {rule}"]["recipes"]["b1_kd"]["8way"]
        for metric in ("acc", "macro_f1", "bacc"):
            assert mean[metric]["per_seed"] == pytest.approx([entry["8way"][metric] for entry in alone])


def test_a_warm_start_is_one_run_a_seed_and_validation_is_scored_as_in_the_ablation(
    results: dict[str, Any], ablation: Path
) -> None:
    comparison = json.loads((ablation / "ablation.json").read_text())
    assert sorted(comparison["runs"]) == ["b0_ce", "b1_kd", "warm_start"]
    assert "| warm_start |" in (ablation / "table.md").read_text()
    before, after = comparison["sets"]["ferplus:valid"], results["sets"]["ferplus:valid, majority"]
    for name in ("b0_ce", "b1_kd"):
        for seed in (0, 1):
            recipe = load_recipe(Recipe, ablation / "runs" / f"{name}-{seed}" / "recipe.yaml")
            assert recipe.init == str(ablation / "runs" / f"warm_start-{seed}")
        scores = [found["recipes"][name]["8way"]["acc"]["per_seed"] for found in (before, after)]
        assert scores[1] == pytest.approx(scores[0])


def test_the_command_writes_a_page_with_the_papers_row_differences_runs_beside_and_hashes(
    ablation: Path, voted: Path, tmp_path: Path, ngd: Any
) -> None:
    beside = Path(shutil.copytree(ablation / "runs" / "b0_ce-1", tmp_path / "longer-0"))
    page = tmp_path / "RESULTS.md"
    done = ngd(
        *("results", str(ablation), "--data", f"ferplus={voted}:valid", "--label-rule", "majority"),
        *("--beside", str(beside), "--out", str(page)),
    )
    assert done.returncode == 0
    text, results = page.read_text(), json.loads(page.with_suffix(".json").read_text())
    paper = PAPER["ferplus:valid", "8way"]
    for part in (
        "What each term adds (ferplus:valid, majority",
        "Logit KD was taught by b0_ce-0 (trained with cross-entropy) and b0_ce-1 (trained with cross-entropy).",
        "logit KD (b1_kd − b0_ce)",
        "![Paired differences in macro-F1 with their intervals, a panel a set](RESULTS.png)",
        f"| b0_ce | {paper['b0_ce'][0]:.2f} | ",
        f"| b3_full | {paper['b3_full'][0]:.2f} |  |",
        f"| {PAPER_BEST} | {paper[PAPER_BEST][0]:.2f} |  |",
        "b1_kd − b0_ce",
        "- labels: majority, without flip, training prior; mean over seeds",
        "- longer-0: labels: majority, without flip, training prior",
        "    ngd results ablation --data ferplus=",
        "`ngd ablate ",
    ):
        assert part in text
    assert (tmp_path / "RESULTS.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in text
    (again,) = [line.split() for line in text.splitlines() if line.startswith("    ngd ablate ")]
    settings = {*SETTINGS, f"data.root={voted.name}"}
    assert set(again) == {
        "ngd",
        "ablate",
        "b0_ce",
        "b1_kd",
        *settings,
        *["--seeds", "2", "--warm-start", "1", "--out", "ablation"],
    }
    assert results["students"].keys() == {
        *(f"{name}-{seed}" for name in ("warm_start", "b0_ce", "b1_kd") for seed in (0, 1)),
        "longer-0",
    }
    assert all(sha256 in text for sha256 in results["students"].values())
    entry = results["sets"]["ferplus:valid, majority"]["beside"]["longer-0"]
    confusion = np.array(entry["confusion"])
    target = np.repeat(np.arange(8), confusion.sum(axis=1))
    predicted = np.concatenate([np.repeat(np.arange(8), row) for row in confusion])
    assert entry["8way"]["acc"] == pytest.approx(100 * accuracy_score(target, predicted))
    assert entry["8way"]["bacc"] == pytest.approx(100 * balanced_accuracy_score(target, predicted))
    assert "present" not in entry  # every class is there, so it is the 8-way score again


def test_the_page_says_what_the_teachers_were_trained_with(results: dict[str, Any], tmp_path: Path) -> None:
    assert results["teachers"] == {"b0_ce-0": ["ce"], "b0_ce-1": ["ce"]}
    assert "are taught by a student of" not in results_markdown(results)
    taught = [
        load_recipe(Recipe, "b1_kd", [f"teacher={source}"]) for source in ("student-ferplus-v1", tmp_path / "gone-0")
    ]
    teachers = teacher_terms(taught)
    assert teachers == {"student-ferplus-v1": ["ce", "kd", "proto_kd", "d_geo"], "gone-0": None}
    page = results_markdown({**results, "teachers": teachers})
    assert "student-ferplus-v1 (trained with cross-entropy, logit KD, Proto-KD and D-Geo)" in page
    assert "gone-0 (trained with terms that are not known here)" in page
    assert "rows of logit KD without Proto-KD and D-Geo are taught by a student of Proto-KD and D-Geo too" in page
    assert teacher_terms([load_recipe(Recipe, "b0_ce")]) == {}


def test_the_paper_stands_beside_the_row_of_its_objective_whatever_the_rows_name(results: dict[str, Any]) -> None:
    name = "ferplus:valid, majority"
    found = results["sets"][name]
    renamed = {**found, "recipes": {**found["recipes"], "tau_paper": found["recipes"]["b1_kd"]}}
    page = results_markdown({**results, "recipes": ["b0_ce", "tau_paper"], "sets": {name: renamed}})
    (row,) = [line for line in page.splitlines() if line.startswith("| tau_paper | 81.48 |")]
    assert "| 64.21 |" in row
    assert "tau_paper has the objective of b2_proto, the paper's B2" in page


def test_runs_alone_are_scored_at_the_last_and_at_the_best_epoch_and_one_seed_concludes_nothing(
    ablation: Path, voted: Path, faces: Path, tmp_path: Path, ngd: Any
) -> None:
    runs = [str(ablation / "runs" / f"{name}-0") for name in ("b0_ce", "b1_kd")]
    page = tmp_path / "long.md"
    sets = [f"ferplus={voted}:valid", f"ckplus={faces}:test", f"affectnet={faces}:test", f"mine:ferplus={faces}:test"]
    done = ngd("results", *runs, "--best", "--out", str(page), *(word for spec in sets for word in ("--data", spec)))
    assert (done.returncode, done.stdout.strip()) == (0, str(page))
    text, results = page.read_text(), json.loads(page.with_suffix(".json").read_text())
    # a set that names one class an image is scored once, whatever the rules
    keys = ["ferplus:valid, majority", "ferplus:valid, argmax", "ckplus:test, given", "affectnet:test, given"]
    assert list(results["sets"]) == [*keys, "mine:test, given"]
    rows = ["b0_ce", "b0_ce, best by acc", "b1_kd", "b1_kd, best by acc"]
    for found in results["sets"].values():
        assert list(found["recipes"]) == rows
        assert [(d["a"], d["b"]) for d in found["differences"]] == [
            ("b1_kd", "b0_ce"),
            *[(rows[i + 1], rows[i]) for i in (0, 2)],
        ]
    (alone,) = evaluate(f"{runs[1]}/student_best", [f"mine:ferplus={faces}:test"]).items()
    assert alone[0] == "mine:test"
    best = results["sets"]["mine:test, given"]["recipes"][rows[3]]["8way"]
    assert best["macro_f1"]["mean"] == pytest.approx(alone[1]["8way"]["macro_f1"], abs=1e-4)
    assert f"| {rows[3]} | " in text.partition("at a glance")[2]
    assert "nothing is concluded about any term" in text
    assert "What each term adds" not in text
    # the paper's rows stand there whether or not its recipe does
    assert "| b3_full | 64.93 |  | 49.33 |  | 52.46 |  |" in text
    assert "| b3_full | 55.86 |  | 39.23 |  |  |  |" in text
    assert "| b3_full | 76.30 |  | 75.60 |  | 75.77 |  |" in text
    assert text.count("| b0_ce, best by acc | 78.22 |") == 2, "under either rule"
    assert set(results["commands"]) == {"b0_ce-0", "b1_kd-0", "results"}
    assert "b1_kd-0/student_best" in results["students"]


def test_every_set_is_in_the_plot_and_the_summaries_whichever_comes_first(
    ablation: Path, voted: Path, faces: Path
) -> None:
    specs = [f"ckplus={faces}:test", f"ferplus={voted}:valid"]
    results = score_ablation([ablation], specs, resamples=20)
    names = ["ckplus:test, given", "ferplus:valid, majority"]
    assert list(_by_first_rule(results)) == names
    page = results_markdown(results)
    assert [name for name in results["sets"] if f"What each term adds ({name}" in page] == names


def test_runs_of_one_name_with_other_settings_are_no_seeds_and_a_folder_may_have_its_recipes_name(
    ablation: Path, voted: Path, tmp_path: Path
) -> None:
    shutil.copytree(ablation / "runs" / "b0_ce-0", own := tmp_path / "b0_ce")
    shutil.copytree(ablation / "runs" / "b0_ce-1", longer := tmp_path / "longer")
    spec = [f"ferplus={voted}:valid"]
    assert score_ablation([own], spec, ["majority"], resamples=20)["recipes"] == ["b0_ce"]
    recipe = (longer / "recipe.yaml").read_text().replace("epochs: 1", "epochs: 100")
    (longer / "recipe.yaml").write_text(recipe)
    with pytest.raises(InputError, match="b0_ce and longer are both of the recipe b0_ce, but optim differs"):
        score_ablation([own, longer], spec)

    recipe = recipe.replace("epochs: 100", "epochs: 1").replace(f"root: {voted}", f"root: {voted}/.")
    (longer / "recipe.yaml").write_text(recipe.replace("workers: 0", "workers: 1"))
    assert score_ablation([own, longer], spec, ["majority"], resamples=20)["seeds"] == [0, 1]
    fingerprint = json.loads((longer / "fingerprint.json").read_text())
    fingerprint["data"]["train"]["sha256"] = "0" * 64
    (longer / "fingerprint.json").write_text(json.dumps(fingerprint))
    with pytest.raises(InputError, match="but the sha256 of its training images differs, so they are not its seeds"):
        score_ablation([own, longer], spec)


def test_copies_of_training_images_are_scored_where_the_runs_keep_them(
    ablation: Path, voted: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(voted, tmp_path / "copied"))
    shutil.copy(copied / "train.parquet", copied / "valid.parquet")
    keeps, drops = tmp_path / "keeps", ablation / "runs" / "b1_kd-0"
    recipe = shutil.copytree(ablation / "runs" / "b0_ce-0", keeps) / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("drop_duplicates: true", "drop_duplicates: false"))
    specs = [f"ferplus={copied}:valid"]
    (found,) = score_ablation([keeps], specs, ["majority"], resamples=20)["sets"].values()
    assert found["n"] == 40
    with pytest.raises(InputError, match=r"differ in data\.drop_duplicates"):
        score_ablation([keeps, drops], specs, ["majority"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--label-rule", "mode"), "label rule 'mode'"),
        (("--out", "page.html"), "ends in .md"),
        (("--label-rule", "majority", "--label-rule", "majority"), "twice"),
    ],
)
def test_what_cannot_be_scored_is_one_line_and_writes_nothing(
    arguments: tuple[str, str], message: str, ablation: Path, voted: Path, tmp_path: Path, ngd: Any
) -> None:
    page = tmp_path / "RESULTS.md"
    out = [] if "--out" in arguments else ["--out", str(page)]
    done = ngd("results", str(ablation), "--data", f"ferplus={voted}:valid", *out, *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_scores_never_replace_a_file_that_is_not_a_pages(ablation: Path, voted: Path, ngd: Any) -> None:
    before = (ablation / "ablation.json").read_bytes()
    done = ngd("results", str(ablation), "--data", f"ferplus={voted}:valid", "--out", str(ablation / "ablation.md"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "ablation.json, which is something else" in done.stderr
    assert (ablation / "ablation.json").read_bytes() == before
    assert not (ablation / "ablation.md").exists()
    plot = ablation.parent / "mine.png"
    plot.write_bytes(b"a photograph")
    done = ngd("results", str(ablation), "--data", f"ferplus={voted}:valid", "--out", str(plot.with_suffix(".md")))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "mine.png, which is something else" in done.stderr
    assert plot.read_bytes() == b"a photograph"
    plot.unlink()


def test_two_runs_of_one_name_are_refused_first(
    ablation: Path, voted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ngd_timm.experiments.results.predict", None)
    specs = [f"ferplus={voted}:valid"]
    with pytest.raises(InputError, match="b0_ce-0 names two runs"):
        score_ablation([ablation], specs, beside=[ablation / "runs" / "b0_ce-0"])
    with pytest.raises(InputError, match="twice"):
        score_ablation([ablation], specs * 2)
    with pytest.raises(InputError, match=r"ablation\.json"):
        score_ablation([tmp_path], specs)
    with pytest.raises(InputError, match=r"b0_ce has the seeds \[0, 1\] and b1_kd \[0\]"):
        score_ablation([ablation / "runs" / run for run in ("b0_ce-0", "b0_ce-1", "b1_kd-0")], specs)
    with pytest.raises(InputError, match="'ckplus' in 'ckplus:ferplus=x' is no title"):
        score_ablation([ablation], ["ckplus:ferplus=x"])
    (tmp_path / "ablation.json").write_text("{}")
    with pytest.raises(InputError, match=r"ablation\.json 'recipes': Field required"):
        score_ablation([tmp_path], specs)


def test_the_page_of_results_and_the_differences_in_readme_and_docs_follow_from_results_json() -> None:
    root = Path(__file__).parents[1]
    results = json.loads((root / "docs" / "results.json").read_text(encoding="utf-8"))
    assert results_markdown(results, "results.png") == (root / "docs" / "results.md").read_text(encoding="utf-8")
    with_best = json.loads(json.dumps(results).replace("tau_paper", "b3_t1"))
    page = results_markdown(with_best)
    assert "| b3_t1 | 83.66 | " in page
    assert f"| {PAPER_BEST} |" not in page
    assert "b3_t1 stands for Full (T=1), the paper's best row: that its T is logit KD's is our reading" in page
    (teacher,) = results["teachers"]
    assert f" teacher={teacher} " in results["commands"]["ablate"]
    assert results["teachers"] == {teacher: ["ce"]}
    differences = {(d["a"], d["b"]): d["8way"] for d in results["sets"]["ferplus:test, majority"]["differences"]}
    for page in ("README.md", "docs/method.md"):
        text = (root / page).read_text(encoding="utf-8")
        for pair in (("b1_kd", "b0_ce"), ("b2_share", "b1_kd"), ("b3_share", "b2_share"), ("b2_share", "c_random")):
            for metric in ("acc", "macro_f1"):
                found = differences[pair][metric]
                low, high = (f"{bound:+.1f}".replace("-", "−") for bound in found["ci95"])
                assert f"{found['mean']:+.2f}".replace("-", "−") + f" [{low}, {high}]" in text, (page, pair, metric)


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        # the reference first, and any other order
        (["low_ce", "low_real", "low_random"], [("low_real", "low_ce"), ("low_random", "low_ce")]),
        (["low_random", "low_real", "low_ce"], [("low_real", "low_random"), ("low_ce", "low_random")]),
        (["low_real", "low_ce", "low_random"], [("low_real", "low_ce"), ("low_real", "low_random")]),
    ],
)
def test_a_difference_that_answers_a_question_has_its_direction_in_any_order_of_the_rows(
    names: list[str], pairs: list[tuple[str, str]]
) -> None:
    answers = {("low_real", "low_ce"), ("low_real", "low_random")}
    found = difference_pairs(names)
    assert found[:2] == pairs
    assert answers <= set(found)
    assert len({frozenset(pair) for pair in found}) == len(found)


def test_few_labels_have_their_own_questions_and_no_table_of_the_paper(results: dict[str, Any]) -> None:
    rows = ["low_ce", "low_real", "low_random", "low_both"]
    found = results["sets"]["ferplus:valid, majority"]
    difference = found["differences"][0]
    low = {
        **results,
        "recipes": rows,
        "teachers": {},
        "training": {name: results["training"]["b0_ce"] | {"images": 1427, "epoch_repeats": 10} for name in rows},
        "sets": {
            "ferplus:valid, majority": {
                **found,
                "recipes": dict.fromkeys(rows, found["recipes"]["b0_ce"]),
                "differences": [{**difference, "a": a, "b": b} for a, b in difference_pairs(rows)],
            }
        },
    }
    page = results_markdown(low)
    first, second = (page.index(question) for question in ("Does a prior help", "Does real EEG add"))
    assert "Does a prior help where labels are few? (ferplus:valid, majority, 8-way; paired" in page
    for sentence in ("- Proto-KD (low_real", "- Proto-KD and D-Geo (low_both", "- D-Geo beside Proto-KD (low_both"):
        assert first < page.index(sentence) < second
    assert page.index("- the EEG grid against a random grid (low_real − low_random)") > second
    for absent in ("What each term adds", "better off otherwise", "beside the paper"):
        assert absent not in page
    assert "| 1427 | 1 × 10 passes |" in page


def test_a_set_that_is_missing_is_refused_before_the_others_are_scored(
    ablation: Path, voted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("experiments.results", "evaluate.student"):
        monkeypatch.setattr(f"ngd_timm.{module}.predict", lambda *_: pytest.fail("scored"))
    specs = [f"ferplus={voted}:test", "ckplus=nowhere"]
    with pytest.raises(InputError, match="no data set at nowhere"):
        score_ablation([ablation], specs)
    with pytest.raises(InputError, match="no data set at nowhere"):
        evaluate(ablation / "runs" / "b0_ce-0", specs)
