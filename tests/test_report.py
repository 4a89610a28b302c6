"""The report of a run: whole, self-contained, honest about what is simulated."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ngd_timm.core.affect import CLASSES, cell_of
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import sha256_file, write_json, write_text
from ngd_timm.core.plots import png_figure
from ngd_timm.core.recipe import Recipe, to_yaml
from ngd_timm.core.teacher_recipe import TeacherRecipe
from ngd_timm.eeg.teacher.consolidate import build_grid
from ngd_timm.eeg.topomap import TopomapOperator
from ngd_timm.evaluate.metrics import fer_metrics
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.report import figures, write_report, write_teacher_report
from ngd_timm.report.figures_ablation import Difference, difference_figure
from ngd_timm.report.figures_sets import embedding_figure
from ngd_timm.report.figures_teacher import Score, forest_figure, scalp_figure

VOID = {"meta", "br", "img", "hr", "link", "input", "path", "use", "image"}
TERMS = ("ce", "kd", "proto_kd", "d_geo")


class _Page(HTMLParser):
    """Collects what the tests ask about and fails on tags that don't nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "action", "data")]
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag in ("svg", "img"):
            self.pictures.append(values)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def make_run(
    folder: Path, *, full: bool = True, absent: str | None = None, name: str = "made_up", epochs: int = 6
) -> Path:
    """A run directory with made-up numbers in the layout that `ngd train` writes."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    loss = {"kd": 0.3, "proto_kd": 0.12, "d_geo": 0.012} if full else {}
    recipe = Recipe(
        name="made_up", grid="gameemo-v1" if full else None, teacher="runs/b0_ce-0" if full else None, loss=loss
    )
    write_text(folder / "recipe.yaml", to_yaml(recipe))
    write_json(folder / "fingerprint.json", {"recipe": "ab" * 32, "seed": 0, "data": {"train": {"kept": 25057}}})
    active = TERMS if full else TERMS[:1]
    columns = ["epoch", "lr", "loss", *TERMS, "geo_ramp", *(f"share_{t}" for t in TERMS)]
    columns += ["valid_acc", "valid_macro_f1", "valid_bacc", "seconds", "images_per_second"]
    with open(folder / "summary.csv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, columns)
        writer.writeheader()
        for epoch in range(epochs):
            row: dict[str, object] = dict.fromkeys(columns, "")
            row |= {"epoch": epoch, "lr": 2e-4, "loss": 2.0 / (epoch + 1), "seconds": 95.0, "images_per_second": 260}
            for k, term in enumerate(active):
                row[term] = 2.0 / (epoch + 1) / 5**k if term != "d_geo" or epoch > 1 else 0.0
                row[f"share_{term}"] = (70.0, 20.0, 8.0, 2.0)[k] if full else 100.0
            row |= {"valid_acc": 50 + 5 * epoch, "valid_macro_f1": 30 + 4 * epoch, "valid_bacc": 31 + 4 * epoch}
            writer.writerow(row)
    target = rng.choice(8, size=2948, p=[0.37, 0.27, 0.13, 0.11, 0.09, 0.01, 0.015, 0.005])
    if absent:
        target[target == CLASSES.index(absent)] = 0
    logits = rng.normal(size=(2948, 8)) + 3 * np.eye(8)[target]
    write_json(folder / "metrics.json", {"ferplus:valid": fer_metrics(logits, target, resamples=50)})
    if full:
        va = rng.uniform(-1, 1, size=(300, 2))
        embeddings = np.concatenate([va, 0.5 * np.ones((300, 1)), 0.3 * rng.normal(size=(300, 13))], axis=1)
        grid = PrototypeGrid.build(embeddings, va, metadata={"dataset": "GAMEEMO", "mantel_r_centered": "0.41"})
        grid.save(folder / "grid.safetensors")
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> _Page:
    path = write_report(make_run(tmp_path_factory.mktemp("report") / "run"))
    return _Page(path.read_text(encoding="utf-8"))


def test_the_page_asks_the_network_for_nothing_and_its_tags_nest(page: _Page) -> None:
    assert page.open == []
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in page.addresses)
    assert len(page.ids) == len(set(page.ids))
    assert all(a.removeprefix("#") in page.ids for a in page.addresses if a.startswith("#"))


def test_every_picture_has_a_text_for_those_who_cannot_see_it(page: _Page) -> None:
    assert len(page.pictures) == 6
    assert all((p.get("aria-label") or p.get("alt") or "").strip() for p in page.pictures)


def test_headline_figures_are_those_of_metrics_json_with_interval_and_n(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    entry = json.loads((run / "metrics.json").read_text())["ferplus:valid"]
    text = _Page(write_report(run).read_text(encoding="utf-8")).text
    assert "2,948 pictures" in text
    for protocol in ("8way", "present"):
        for score in ("acc", "macro_f1", "bacc"):
            low, high = entry["ci95"][protocol][score]
            assert f"{entry[protocol][score]:.1f}" in text
            assert f"{low:.1f}–{high:.1f}" in text


def test_confusion_rows_are_shares_of_the_true_class(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    matrix = json.loads((run / "metrics.json").read_text())["ferplus:valid"]["confusion"]
    html = write_report(run).read_text(encoding="utf-8")
    count, n = matrix[1][2], sum(matrix[1])
    cell = re.search(rf'title="happiness called surprise: {count} of {n}">(\d+)<', html)
    assert cell is not None
    assert int(cell[1]) == round(100 * count / n)
    assert len(re.findall(r'<td class="(?:dark )?right"', html)) == 8


def test_an_absent_class_is_named_and_its_row_left_empty(tmp_path: Path) -> None:
    text = write_report(make_run(tmp_path / "run", absent="contempt")).read_text(encoding="utf-8")
    assert "This set has no contempt" in text
    assert 'title="no contempt in this set"' in text


def test_a_runs_page_holds_no_folder_of_the_disk(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    disk = "/home/u1234/private"
    data = {"name": "ferplus", "root": f"{disk}/ferplus"}
    recipe = Recipe(
        name="made_up", data=data, init=f"{disk}/b0_ce-0", eval={"ckplus": f"{disk}/ck:test"}, out=f"{disk}/r"
    )
    write_text(run / "recipe.yaml", to_yaml(recipe))
    write_json(run / "fingerprint.json", {"source": f"{disk}/faces.parquet"})
    html = write_report(run).read_text(encoding="utf-8")
    assert "u1234" not in html
    assert "private" not in html
    assert "b0_ce-0" in html


def test_the_same_files_give_the_same_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_the_page_stays_under_3_mb(tmp_path: Path) -> None:
    assert write_report(make_run(tmp_path / "run", epochs=100)).stat().st_size < 3_000_000


def test_a_run_without_grid_or_teacher_gets_a_report_without_their_parts(tmp_path: Path) -> None:
    page = _Page(write_report(make_run(tmp_path / "run", full=False)).read_text(encoding="utf-8"))
    assert "prototype grid that guided it" not in page.text
    assert "Gradient share" not in page.text
    assert len(page.pictures) == 3


def test_a_run_of_one_epoch_gets_a_report(tmp_path: Path) -> None:
    assert write_report(make_run(tmp_path / "run", epochs=1)).is_file()


def test_simulated_grids_are_called_simulated_and_real_ones_are_not(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "Simulated:" not in write_report(run).read_text(encoding="utf-8")
    grid = PrototypeGrid.load(run / "grid.safetensors")
    notes = {**grid.metadata, "dataset": "simulated"}
    PrototypeGrid(grid.prototypes, grid.counts, grid.centers, grid.size, notes).save(run / "grid.safetensors")
    assert "Simulated:" in write_report(run).read_text(encoding="utf-8")


def test_forbidden_uses_stand_on_every_page(page: _Page) -> None:
    for words in ("identify or watch people", "work or at school", "EU AI Act", "diagnose"):
        assert words in page.text


def test_names_from_outside_cannot_put_markup_on_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_json(run / "fingerprint.json", {"device": "<script>alert(1)</script>"})
    metrics = json.loads((run / "metrics.json").read_text())
    write_json(run / "metrics.json", {'x"><b>:valid': metrics["ferplus:valid"]})
    html = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<b>" not in html


@pytest.mark.parametrize("name", ["recipe.yaml", "fingerprint.json", "summary.csv", "metrics.json"])
def test_a_missing_file_is_named_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(InputError, match=re.escape(name)):
        write_report(run)
    assert not (run / "report.html").exists()


def test_damaged_metrics_are_refused_by_name(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"metrics\.json is not valid JSON"):
        write_report(run)
    write_json(run / "metrics.json", {"ferplus:valid": {"n": 3}})
    with pytest.raises(InputError, match="ferplus:valid"):
        write_report(run)


def test_classes_at_nearly_the_same_place_share_one_label() -> None:
    assert "anger, fear" in figures._places(CLASSES).values()


AXES = ("valence", "arousal")
BANDS, CHANNELS = ["theta", "alpha", "beta"], ["F3", "F4", "C3", "C4", "O1", "O2"]


ODD = r"$\frac$ & <b>"


def test_strings_of_anybody_are_drawn_as_they_are() -> None:
    """Names of bands, classes, sets and runs may hold dollars; as mathtext they would be misread or refused."""
    scores = [Score(ODD, f"{ODD} teacher", 0.6, 0.5, 0.7, 0.5)]
    maps = {f"{ODD} axis": np.ones((1, 8, 8))}
    points, none = np.random.default_rng(0).normal(size=(4, 2)), np.zeros((0, 2))
    drawn = (
        figures.line_figure("a", "", [0, 1], {ODD: [1.0, 2.0]}, f"{ODD} unit"),
        forest_figure("b", "", scores, f"{ODD} score"),
        scalp_figure("c", "", maps, [ODD], np.zeros((1, 2)), f"{ODD} unit"),
        embedding_figure("d", "", points, np.zeros(4, dtype=int), [ODD], none, none),
        difference_figure("e", "", [Difference(ODD, 1.0, (-0.5, 2.5))], f"{ODD} points"),
    )
    written = [unescape(text) for svg in drawn for text in re.findall(r">([^<]+)</text>", svg)]
    assert sum(text.startswith(ODD) for text in written) == 11


def test_a_png_draws_dollars_as_they_are_and_is_not_left_half_written(tmp_path: Path) -> None:
    with png_figure(tmp_path / "a.png", (2, 2)) as drawing:
        drawing.suptitle(ODD)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(KeyError), png_figure(tmp_path / "b.png", (2, 2)):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_logarithmic_axis_has_plain_numbers() -> None:
    svg = figures.line_figure("a", "", [0, 1], {"lr": [1e-5, 1.0]}, "rate", log=True)
    assert "mathdefault" not in svg
    assert ">1e−03</text>" in svg


def figure(value: float, p: float) -> dict[str, object]:
    return {"value": value, "ci95": [value - 0.07, value + 0.08], "chance": 0.49, "p": p}


def make_teacher(folder: Path, *, simulated: bool = False, support: bool = False, people: int = 8) -> Path:
    """A teacher's run directory with made-up numbers in the layout that `ngd teacher fit` writes."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    disk = "/home/u1234/private eeg"
    data: dict[str, object] = {"name": "dreamer", "root": f"{disk}/DREAMER.mat", "folds": 3}
    if support:
        data["support"] = {"name": "mahnob", "root": f"{disk}/MAHNOB-HCI"}
    recipe = TeacherRecipe(name="made_up", out=f"{disk}/runs/made_up-0", data=data, optim={"consistency": 0.5})
    write_text(folder / "recipe.yaml", to_yaml(recipe))

    trials = 20
    subject, trial = np.repeat(np.arange(people), trials), np.tile(np.arange(trials), people)
    va = rng.uniform(-1, 1, (people * trials, 2)).astype(np.float32)
    tensors = {"subject": subject, "trial": trial, "window": np.zeros_like(trial), "valence_arousal": va}
    tensors["held_out_fold"] = subject % 3
    base = np.concatenate([va, 1 + 0.3 * rng.standard_normal((len(va), 6))], axis=1).astype(np.float32)
    for fold in range(3):
        tensors[f"fold{fold}.embedding"], tensors[f"fold{fold}.valence_arousal"] = base, va
    save_file(tensors, folder / "embeddings.safetensors")
    owners = [np.unique(subject[cell_of(va, 5) == cell]) for cell in range(25)]
    cells = {
        "z_mean": rng.normal(0, 0.4, (25, len(BANDS), len(CHANNELS))).astype(np.float32),
        "windows": np.bincount(cell_of(va, 5), minlength=25),
        "subjects": np.array([len(o) for o in owners]),
        "slope": rng.normal(0, 0.1, (2, len(BANDS), len(CHANNELS))).astype(np.float32),
        "slope_people": np.array([people, people]),
    }
    save_file(cells, folder / "cells.safetensors")

    both = {"bacc": figure(0.571, 0.012), "ccc": {**figure(0.113, 0.0004), "chance": -0.004}}
    grids = {
        str(size): {
            "filled": size * size - 1,
            "cells": size * size,
            "mean_cosine": 0.91,
            "mantel": {"r": 0.312, "p": p, "permutations": 2000},
            "mantel_centered": {"r": 0.204, "p": p, "permutations": 2000},
            "stability": {
                "splits": 200,
                "cells": 7.5,
                "cosine": {"value": 0.953, "ci95": [0.93, 0.97]},
                "centered": {"value": 0.42 - size / 20, "ci95": [0.0, 0.5], "chance": 0.02, "p": p},
            },
        }
        for size, p in ((3, 0.001), (5, 0.03), (7, 0.4))
    }
    scores: dict[str, object] = {
        "dataset": "DREAMER (Katsigiannis & Ramzan 2018), 14-channel Emotiv",
        "n": {"subjects": people, "trials": len(va), "windows": 4321},
        "protocol": "leave-subjects-out, 3 folds",
        "teacher": {"valence": both, "arousal": both},
        "ridge": {"valence": both, "arousal": both},
        "logistic_regression": {"valence": {"bacc": figure(0.6, 0.01)}, "arousal": {"bacc": figure(0.5, 0.4)}},
        "trial_number": {"valence": {"bacc": figure(0.683, 0.0004)}, "arousal": {"bacc": figure(0.5, 0.5)}},
        "grids": grids,
        "frame_agreement": [1.0, 0.81, 0.84],
        "seconds": {"fold": [61.0, 62.0, 63.0], "total": 200.0},
    }
    if simulated:
        scores["simulated"] = True
    write_json(folder / "scores.json", scores)
    fingerprint = {
        "dataset": scores["dataset"],
        "simulated": simulated,
        "data_sha256": "ab" * 32,
        "channels": CHANNELS,
        "bands": BANDS,
        "notes": {"artefacts": "211 of 4,532 windows (4.7 %)", "trials dropped": "none", "file": f"{disk}/DREAMER.mat"},
        "trials": len(va),
        "support": {"dataset": "MAHNOB-HCI (Soleymani et al. 2012), 32-channel", "subjects": 24, "windows": 999}
        if support
        else None,
        "recipe_sha256": "cd" * 32,
        "embeddings_sha256": sha256_file(folder / "embeddings.safetensors"),
    }
    write_json(folder / "fingerprint.json", fingerprint)
    return folder


@pytest.fixture(scope="module")
def teacher_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, _Page]:
    html = write_teacher_report(make_teacher(tmp_path_factory.mktemp("teacher") / "run")).read_text(encoding="utf-8")
    return html, _Page(html)


def test_a_teachers_page_has_every_part_and_asks_the_network_for_nothing(teacher_page: tuple[str, _Page]) -> None:
    html, page = teacher_page
    assert page.open == []
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in page.addresses)
    assert len(page.ids) == len(set(page.ids))
    assert "<script" not in html
    assert len(html.encode()) < 3_000_000
    assert len(page.pictures) == 7  # two forests, plane, cosines, stability, two sets of maps
    assert all((p.get("aria-label") or "").strip() for p in page.pictures)
    for words in (
        "never seen",
        "ridge regression",
        "trial number alone",
        "7\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}7",
        "split into random halves",
        "nose up",
        "211 of 4,532 windows",
        "3.3 min in all",
        "Do not use this",
        "consistency: 0.5",
    ):
        assert words in page.text


def test_a_teachers_page_shows_the_figures_of_scores_json(teacher_page: tuple[str, _Page]) -> None:
    _, page = teacher_page
    for words in ("0.57", "0.50 to 0.65", "0.68", "< 0.001", "8 of 9", "48 of 49", "0.31", "0.95"):
        assert words in page.text


def test_the_plane_says_how_many_windows_and_people_fill_each_cell(teacher_page: tuple[str, _Page]) -> None:
    html, page = teacher_page
    assert 20 < len(re.findall(r">\d+ \([3-8]\)</text>", html)) <= 25
    assert not re.search(r">\d+ \([12]\)</text>", html)
    assert "of people in brackets" in page.text


def test_a_teachers_page_judges_by_rule(teacher_page: tuple[str, _Page]) -> None:
    _, page = teacher_page
    assert "tells high from low valence and arousal, weakly" in page.text
    assert "order of trials is confounded with ratings" in page.text
    assert "own size, 5 x 5; p 0.0300) the grid follows the valence/arousal plane" in page.text
    assert "Holm's correction for 8 tests: p is below .05 for Mantel as it is (3 x 3)" in page.text
    assert "p 0.030, declared" in page.text
    assert "p 0.001, Holm 0.008" in page.text


def test_a_teachers_page_holds_no_path_and_only_data_that_are_simulated_are_called_so(tmp_path: Path) -> None:
    real = write_teacher_report(make_teacher(tmp_path / "real", support=True)).read_text(encoding="utf-8")
    made_up = write_teacher_report(make_teacher(tmp_path / "made_up", simulated=True)).read_text(encoding="utf-8")
    assert "u1234" not in real
    assert "private eeg" not in real
    assert str(tmp_path) not in real
    assert "DREAMER.mat" in real
    assert "24 people, 999 windows, without their ratings" in real
    assert "Simulated:" not in real
    assert "Simulated:" in made_up


def test_no_cell_of_fewer_than_three_people_is_drawn(tmp_path: Path) -> None:
    html = write_teacher_report(make_teacher(tmp_path / "run", people=4)).read_text(encoding="utf-8")
    assert not re.search(r"\((?:1|2) people\)", html)
    cells = make_teacher(tmp_path / "two", people=4) / "cells.safetensors"
    shape = (25, len(BANDS), len(CHANNELS))
    tensors = {"z_mean": np.ones(shape, np.float32), "slope": np.ones((2, *shape[1:]), np.float32)}
    counts = {"windows": np.full(25, 9), "subjects": np.full(25, 2), "slope_people": np.array([4, 4])}
    save_file({**tensors, **counts}, cells)
    assert (
        "so no cell's map is shown: it would be a person's"
        in _Page(write_teacher_report(cells.parent).read_text(encoding="utf-8")).text
    )


@pytest.mark.parametrize(("people", "hidden"), [((4, 2), ["arousal"]), ((2, 3), ["valence"]), ((1, 0), [*AXES])])
def test_no_slope_of_fewer_than_three_people_is_drawn(
    tmp_path: Path, people: tuple[int, int], hidden: list[str]
) -> None:
    cells = make_teacher(tmp_path / "run") / "cells.safetensors"
    save_file({**load_file(cells), "slope_people": np.array(people)}, cells)
    page = _Page(write_teacher_report(cells.parent).read_text(encoding="utf-8"))
    for axis in AXES:
        assert (f"Fewer than three people have a slope for {axis}" in page.text) == (axis in hidden)
    drawn = [p["aria-label"] or "" for p in page.pictures if "correlation of band power" in (p["aria-label"] or "")]
    assert [axis for axis in AXES if any(f"with {axis}" in label for label in drawn)] == [
        axis for axis in AXES if axis not in hidden
    ]


def test_a_run_that_does_not_say_how_many_people_are_behind_a_slope_is_to_be_fitted_again(tmp_path: Path) -> None:
    cells = make_teacher(tmp_path / "run") / "cells.safetensors"
    save_file({key: value for key, value in load_file(cells).items() if key != "slope_people"}, cells)
    with pytest.raises(InputError, match=r"cells\.safetensors: 'slope_people'; fit again"):
        write_teacher_report(cells.parent)


def test_a_grid_of_cells_of_one_person_is_not_drawn(tmp_path: Path) -> None:
    run = make_teacher(tmp_path / "run", people=3)
    tensors = load_file(run / "embeddings.safetensors")
    quarter = np.array([[-0.8, -0.8], [0.8, -0.8], [0.8, 0.8]], np.float32)
    tensors["valence_arousal"] = quarter[tensors["subject"]]
    save_file(tensors, run / "embeddings.safetensors")
    told = json.loads((run / "fingerprint.json").read_text())
    write_json(run / "fingerprint.json", {**told, "embeddings_sha256": sha256_file(run / "embeddings.safetensors")})
    page = _Page(write_teacher_report(run).read_text(encoding="utf-8"))
    assert "so the grid is not drawn" in page.text
    assert not [p for p in page.pictures if "prototypes" in (p["aria-label"] or "")]


def test_without_the_trial_number_the_page_says_that_the_control_is_not_there(tmp_path: Path) -> None:
    run = make_teacher(tmp_path / "run")
    scores = json.loads((run / "scores.json").read_text())
    write_json(run / "scores.json", {key: value for key, value in scores.items() if key != "trial_number"})
    text = _Page(write_teacher_report(run).read_text(encoding="utf-8")).text
    assert "no trial number is shared between people, so this control is not there" in text


def test_maps_are_drawn_with_the_front_of_the_head_at_the_top() -> None:
    from PIL import Image

    operator = TopomapOperator(CHANNELS, size=32)
    front = operator(np.array([[1.0, 1.0, 0.0, 0.0, -1.0, -1.0]]))
    svg = scalp_figure("front", "a map", {"front": front}, ["alpha"], operator.positions, "z")
    tag = next(t for t in re.findall(r"<image[^>]*>", svg, re.DOTALL) if "base64" in t)
    pixels = base64.b64decode(re.search(r"base64,([^\"]+)", tag)[1])  # type: ignore[index]
    picture = np.asarray(Image.open(io.BytesIO(pixels)).convert("RGB"), dtype=float)
    if re.search(r"matrix\(\S+ \S+ \S+ -", tag):  # stored from the bottom up, and turned over when drawn
        picture = picture[::-1]
    red = picture[..., 0] - picture[..., 2]
    half = len(red) // 2
    assert red[:half].mean() > 20 > -20 > red[half:].mean()


def test_a_grid_built_from_a_run_carries_no_path_and_an_older_run_is_to_be_fitted_again(tmp_path: Path) -> None:
    run = make_teacher(tmp_path / "run", support=True)
    told = json.loads((run / "fingerprint.json").read_text())
    told["notes"]["source"] = "../anna/private/x.bdf"
    told["support"]["dataset"] = "mine, /home/u1234/b.npz"
    write_json(run / "fingerprint.json", told)
    notes = build_grid(run).metadata
    everything = " ".join(notes.values())
    assert not [word for word in ("u1234", "private", "anna") if word in everything]
    assert json.loads(notes["preprocessing"])["source"] == "x.bdf"
    assert "DREAMER.mat" in everything

    write_json(run / "fingerprint.json", {key: told[key] for key in told if key not in ("notes", "support")})
    scores = json.loads((run / "scores.json").read_text())
    write_json(run / "scores.json", {key: scores[key] for key in scores if key != "grids"})
    with pytest.raises(InputError, match="lacks 'grids'; fit the teacher again") as e:
        build_grid(run)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "name", ["recipe.yaml", "fingerprint.json", "scores.json", "embeddings.safetensors", "cells.safetensors"]
)
def test_a_file_missing_from_a_teacher_run_is_named(tmp_path: Path, name: str) -> None:
    run = make_teacher(tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(InputError, match=re.escape(name)):
        write_teacher_report(run)
    assert not (run / "report.html").exists()


def test_scores_of_another_layout_are_refused_by_name(tmp_path: Path) -> None:
    run = make_teacher(tmp_path / "run")
    write_json(run / "scores.json", {"teacher": {}})
    with pytest.raises(InputError, match=r"scores\.json or fingerprint\.json lacks 'grids'"):
        write_teacher_report(run)
