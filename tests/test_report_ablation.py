"""The page of an ablation: the tables, the differences with both intervals, a verdict by rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_report import ODD, Page

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import write_json, write_text
from ngd_timm.evaluate.metrics import mean_over_seeds, paired_difference
from ngd_timm.grid.verdict import difference_verdict
from ngd_timm.report import write_ablation_report
from ngd_timm.report.figures import figure_folder


def make_ablation(folder: Path, seeds: int = 3, present: int = 8) -> dict[str, Any]:
    """What `ngd ablate` writes, of students that are better the further down they stand."""
    rng = np.random.default_rng(0)
    recipes = ["b0_ce", "b1_kd", ODD]
    target = rng.integers(0, present, 600)
    logits = {
        name: [rng.normal(size=(600, 8)) + (0.8 + 0.8 * i) * np.eye(8)[target] for _ in range(seeds)]
        for i, name in enumerate(recipes)
    }
    pairs = [("b1_kd", "b0_ce"), (ODD, "b0_ce")]
    runs = {name: [f"{name if i < 2 else 'odd'}-{seed}" for seed in range(seeds)] for i, name in enumerate(recipes)}
    for name in (name for names in runs.values() for name in names):
        lines = ["epoch,valid_macro_f1,seconds", *(f"{e},{20 + 3 * e + rng.random()},4" for e in range(4))]
        write_text(folder / "runs" / name / "summary.csv", "\n".join(lines) + "\n")
    write_text(folder / "runs" / "b0_ce-0" / "report.html", "<p>")
    training = {"share": {"ce": 90.0, "kd": 8.0, "proto_kd": 2.0, "d_geo": None}, "lambda_proto_kd": 0.5}
    comparison = {
        "recipes": recipes,
        "seeds": list(range(seeds)),
        "warm_start": False,
        "runs": runs,
        "sets": {
            "ferplus:valid": {
                "n": 600,
                "classes": list(CLASSES),
                "present_classes": list(CLASSES[:present]),
                "recipes": {name: mean_over_seeds(by_seed, target, resamples=200) for name, by_seed in logits.items()},
                "differences": [
                    {"a": a, "b": b, **paired_difference(logits[a], logits[b], target, resamples=200)} for a, b in pairs
                ],
            }
        },
        "training": {name: {**training, "epochs": 4, "minutes": 1.0} for name in recipes},
    }
    write_json(folder / "ablation.json", comparison)
    return comparison


def test_the_page_shows_every_mean_and_difference_and_links_to_the_reports_that_are_there(tmp_path: Path) -> None:
    comparison = make_ablation(tmp_path)
    page = Page(write_ablation_report(tmp_path))
    page.check(images=3 + 1 + 3, links=("runs/b0_ce-0/report.html",))
    found = comparison["sets"]["ferplus:valid"]
    for name in comparison["recipes"]:
        assert f"{found['recipes'][name]['8way']['acc']['mean']:.2f} [" in page.text
    for difference in found["differences"]:
        assert f"{difference['8way']['macro_f1']['mean']:+.2f} [" in page.text
    assert f"{ODD} − b0_ce: above 0 in accuracy, macro-F1 and balanced accuracy." in page.text
    assert page.plot_labels.count(f"{ODD} − b0_ce") == 3


def test_figures_that_would_make_the_page_too_large_are_links(tmp_path: Path) -> None:
    make_ablation(tmp_path)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8))
    for name in ("embeddings_pca", "va_plane"):
        place = figure_folder(tmp_path, "ferplus:valid") / f"{name}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        (noise if name == "va_plane" else noise.resize((40, 40))).save(place)
    page = write_ablation_report(tmp_path).read_text(encoding="utf-8")
    assert re.findall('<img src="([^,"]+)', page) == ["data:image/png;base64"]
    assert '</h3><a href="figures/ferplus-valid/va_plane.png">figures/ferplus-valid/va_plane.png</a>' in page


def test_a_set_that_lacks_classes_shows_both_protocols_and_one_seed_has_no_interval_over_seeds(tmp_path: Path) -> None:
    make_ablation(tmp_path, seeds=1, present=5)
    text = Page(write_ablation_report(tmp_path)).text
    assert "What differs: ferplus:valid, 8-way" in text
    assert "What differs: ferplus:valid, present-only" in text
    assert "with one seed" in text
    assert "interval over seeds" not in text


@pytest.mark.parametrize(
    ("ci95", "seed_ci95", "says"),
    [
        ([0.2, 2.0], [0.1, 2.2], "above 0 in accuracy."),
        ([-2.0, -0.2], [-3.0, -0.1], "below 0 in accuracy."),
        ([0.2, 2.0], [-3.0, 5.0], "above 0 for these students in accuracy, which other seeds might not show."),
        ([-0.2, 2.0], [0.1, 2.2], "no difference shown in accuracy."),
        ([0.2, 2.0], None, "above 0 in accuracy, with one seed."),
    ],
)
def test_the_verdict_follows_the_intervals(ci95: list[float], seed_ci95: list[float] | None, says: str) -> None:
    scores = {"acc": {"ci95": ci95, "seed_ci95": seed_ci95}}
    assert difference_verdict("a − b", scores, {"acc": "accuracy"}) == f"a − b: {says}"


def test_the_command_writes_the_page_again_and_names_what_is_missing(tmp_path: Path, ngd: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"ablation\.json is missing"):
        write_ablation_report(tmp_path)
    comparison = make_ablation(tmp_path, seeds=1)
    assert ngd("report", str(tmp_path)).stdout.strip() == str(tmp_path / "report.html")
    refused = ngd("report", str(tmp_path), "--mistakes", "3")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    del comparison["sets"]["ferplus:valid"]["differences"]
    write_json(tmp_path / "ablation.json", comparison)
    refused = ngd("report", str(tmp_path))
    assert refused.returncode == 2
    assert "ablation.json 'sets': Field required at ferplus:valid.differences" in refused.stderr
