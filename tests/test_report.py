"""Pages of runs and EEG teachers: whole, self-contained, honest about what is simulated, without paths or faces."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
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
from ngd_timm.report import write_report, write_teacher_report
from ngd_timm.report.plots import plot_scalps

VOID = {"meta", "br", "img", "hr", "link", "input", "path", "use", "image"}
TERMS = ("ce", "kd", "proto_kd", "d_geo")
BANDS, CHANNELS = ["theta", "alpha", "beta"], ["F3", "F4", "C3", "C4", "O1", "O2"]
DISK = "/home/u1234/private"
ODD = r"$\frac$ & <b>"
"""A name with dollars, which is not mathtext, and with markup, which is text."""


class Page(HTMLParser):
    """Collects what the tests look at and fails on tags that don't nest."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.html = file.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.images: list[str] = []
        self.text = ""
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "action", "data")]
        self.ids += [values["id"] or ""] if "id" in values else []
        if tag in ("svg", "img"):
            self.images.append(values.get("aria-label") or values.get("alt") or "")
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

    @property
    def plot_labels(self) -> list[str]:
        return [unescape(text) for text in re.findall(r">([^<]+)</text>", self.html)]

    def check(self, images: int, links: tuple[str, ...] = ()) -> None:
        """A page that is whole, needs no network, and has a text for those who can't see its images."""
        assert self.open == []
        assert [a for a in self.addresses if not a.startswith(("data:image/png;base64,", "#"))] == [*links]
        assert len(self.ids) == len(set(self.ids))
        assert {a.removeprefix("#") for a in self.addresses if a.startswith("#")} <= set(self.ids)
        assert "<script" not in self.html
        assert "mathdefault" not in self.html
        assert len(self.html.encode()) < 3_000_000
        assert len(self.images) == images
        assert all(alt.strip() for alt in self.images)
        for words in ("to identify or watch people", "at work or at school", "EU AI Act", "to diagnose"):
            assert words in self.text


def make_run(folder: Path, *, full: bool = True, absent: str | None = None, epochs: int = 6) -> Path:
    """A run directory with made-up numbers in the layout that `ngd train` writes."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    recipe = Recipe(name="made_up")
    if full:
        loss = {"kd": 0.3, "proto_kd": 0.12, "d_geo": 0.012}
        recipe = Recipe(name="made_up", grid="gameemo-v1", teacher="runs/b0_ce-0", loss=loss)
    write_text(folder / "recipe.yaml", to_yaml(recipe))
    write_json(folder / "fingerprint.json", {"recipe": "ab" * 32, "seed": 0, "data": {"train": {"kept": 25057}}})
    columns = ["epoch", "lr", "loss", *TERMS, "geo_ramp", *(f"share_{t}" for t in TERMS)]
    columns += ["valid_acc", "valid_macro_f1", "valid_bacc", "seconds", "images_per_second"]
    with open(folder / "summary.csv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, columns)
        writer.writeheader()
        for epoch in range(epochs):
            row = {"epoch": epoch, "lr": 2e-4, "loss": 2.0 / (epoch + 1), "seconds": 95.0, "images_per_second": 260}
            for k, term in enumerate(TERMS if full else TERMS[:1]):
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
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page(write_report(run))


def test_a_runs_page_is_whole_and_needs_no_network(page: Page) -> None:
    page.check(images=6)
    assert "Simulated:" not in page.html
    assert "anger, fear" in page.plot_labels, "anchors at nearly the same place share a label"


def test_headline_scores_are_those_of_metrics_json_with_interval_and_n(run: Path, page: Page) -> None:
    entry = json.loads((run / "metrics.json").read_text())["ferplus:valid"]
    assert "2,948 images" in page.text
    for protocol in ("8way", "present"):
        for score in ("acc", "macro_f1", "bacc"):
            low, high = entry["ci95"][protocol][score]
            assert f"{entry[protocol][score]:.1f}" in page.text
            assert f"{low:.1f}–{high:.1f}" in page.text


def test_confusion_rows_are_shares_of_the_true_class(run: Path, page: Page) -> None:
    matrix = json.loads((run / "metrics.json").read_text())["ferplus:valid"]["confusion"]
    count, n = matrix[1][2], sum(matrix[1])
    (cell,) = re.findall(rf'title="happiness called surprise: {count} of {n}">(\d+)<', page.html)
    assert int(cell) == round(100 * count / n)
    assert len(re.findall(r'<td class="(?:dark )?right"', page.html)) == 8


def test_a_short_run_of_cross_entropy_lacks_what_it_has_not_and_shows_no_markup_and_no_path(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", full=False, absent="contempt", epochs=1)
    data = {"name": "ferplus", "root": f"{DISK}/ferplus"}
    sources = {"init": f"{DISK}/b0_ce-0", "eval": {"ckplus": f"{DISK}/ck:test"}, "out": f"{DISK}/r"}
    write_text(run / "recipe.yaml", to_yaml(Recipe(name="made_up", data=data, **sources)))
    write_json(run / "fingerprint.json", {"source": f"{DISK}/faces.parquet", "device": "<script>alert(1)</script>"})
    metrics = json.loads((run / "metrics.json").read_text())
    write_json(run / "metrics.json", {'x"><b>:valid': metrics["ferplus:valid"]})
    page = Page(write_report(run))
    page.check(images=3)
    assert "prototype grid that guided it" not in page.text
    assert "Gradient share" not in page.text
    assert "This set has no contempt" in page.text
    assert 'title="no contempt in this set"' in page.html
    assert "<b>" not in page.html
    assert "u1234" not in page.html
    assert "private" not in page.html
    assert "b0_ce-0" in page.text


def test_a_simulated_grid_is_called_simulated(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    grid = PrototypeGrid.load(run / "grid.safetensors")
    for notes, called in ({"simulated": "true"}, True), ({"dataset": "own embeddings (unsimulated)"}, False):
        notes = {**grid.metadata, **notes}
        PrototypeGrid(grid.prototypes, grid.counts, grid.centers, grid.size, notes).save(run / "grid.safetensors")
        assert ("Simulated:" in write_report(run).read_text(encoding="utf-8")) == called


def test_damaged_metrics_are_refused_by_name(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", full=False)
    (run / "metrics.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"metrics\.json is not valid JSON"):
        write_report(run)
    write_json(run / "metrics.json", {"ferplus:valid": {"n": 3}})
    with pytest.raises(InputError, match="ferplus:valid"):
        write_report(run)


def test_a_png_draws_dollars_as_they_are_and_is_not_left_half_written(tmp_path: Path) -> None:
    with png_figure(tmp_path / "a.png", (2, 2)) as figure:
        figure.suptitle(ODD)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(KeyError), png_figure(tmp_path / "b.png", (2, 2)):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


# EEG teachers


def score(value: float, p: float) -> dict[str, Any]:
    return {"value": value, "ci95": [value - 0.07, value + 0.08], "chance": 0.49, "p": p}


def make_teacher(
    folder: Path,
    *,
    simulated: bool = False,
    support: bool = False,
    people: int = 8,
    bands: list[str] = BANDS,
) -> Path:
    """A teacher's run directory with made-up numbers in the layout that `ngd teacher fit` writes."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    data: dict[str, object] = {"name": "dreamer", "root": f"{DISK} eeg/DREAMER.mat", "folds": 3}
    if support:
        data["support"] = {"name": "mahnob", "root": f"{DISK} eeg/MAHNOB-HCI"}
    recipe = TeacherRecipe(name="made_up", out=f"{DISK} eeg/made_up-0", data=data, optim={"consistency": 0.5})
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
    cells = {
        "z_mean": rng.normal(0, 0.4, (25, len(bands), len(CHANNELS))).astype(np.float32),
        "windows": np.bincount(cell_of(va, 5), minlength=25),
        "subjects": np.array([len(np.unique(subject[cell_of(va, 5) == cell])) for cell in range(25)]),
        "slope": rng.normal(0, 0.1, (2, len(bands), len(CHANNELS))).astype(np.float32),
        "slope_people": np.array([people, people]),
    }
    save_file(cells, folder / "cells.safetensors")

    both = {"bacc": score(0.571, 0.012), "ccc": {**score(0.113, 0.0004), "chance": -0.004}}
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
        "logistic_regression": {"valence": {"bacc": score(0.6, 0.01)}, "arousal": {"bacc": score(0.5, 0.4)}},
        "trial_number": {"valence": {"bacc": score(0.683, 0.0004)}, "arousal": {"bacc": score(0.5, 0.5)}},
        "grids": grids,
        "frame_agreement": [1.0, 0.81, 0.84],
        "seconds": {"fold": [61.0, 62.0, 63.0], "total": 200.0},
    }
    write_json(folder / "scores.json", {**scores, "simulated": True} if simulated else scores)
    notes = {"artefacts": "211 of 4,532 windows (4.7 %)", "trials dropped": "none", "file": f"{DISK} eeg/DREAMER.mat"}
    mahnob = {"dataset": "MAHNOB-HCI (Soleymani et al. 2012), 32-channel", "subjects": 24, "windows": 999}
    fingerprint = {
        "dataset": scores["dataset"],
        "simulated": simulated,
        "data_sha256": "ab" * 32,
        "channels": CHANNELS,
        "bands": bands,
        "notes": notes,
        "trials": len(va),
        "support": mahnob if support else None,
        "recipe_sha256": "cd" * 32,
        "embeddings_sha256": sha256_file(folder / "embeddings.safetensors"),
    }
    write_json(folder / "fingerprint.json", fingerprint)
    return folder


def change_json(file: Path, **changes: Any) -> None:
    """Replace keys of a JSON file; None removes one."""
    entries = {**json.loads(file.read_text()), **changes}
    write_json(file, {key: value for key, value in entries.items() if value is not None})


@pytest.fixture(scope="module")
def teacher_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_teacher_report(make_teacher(tmp_path_factory.mktemp("teacher") / "run", support=True)))


def test_a_teachers_page_has_every_part_and_needs_no_network(teacher_page: Page) -> None:
    teacher_page.check(images=7)  # two forests, plane, cosines, stability, two sets of maps
    for words in (
        *("never seen", "ridge regression", "trial number alone", "7\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}7"),
        *("split into random halves", "nose up", "211 of 4,532 windows", "3.3 min in all", "consistency: 0.5"),
        "24 people, 999 windows, without their ratings",
    ):
        assert words in teacher_page.text
    for numbers in ("0.57", "0.50 to 0.65", "0.68", "< 0.001", "8 of 9", "48 of 49", "0.31", "0.95"):
        assert numbers in teacher_page.text


def test_a_teachers_page_judges_by_rule(teacher_page: Page) -> None:
    for words in (
        "tells high from low valence and arousal, weakly",
        "order of trials is confounded with ratings",
        "own size, 5 x 5; p 0.0300) the grid follows the valence/arousal plane",
        "Holm's correction for 8 tests: p is below .05 for Mantel as it is (3 x 3)",
        "p 0.030, declared",
        "p 0.001, Holm 0.008",
    ):
        assert words in teacher_page.text


def test_a_teachers_page_holds_no_path_and_counts_people_by_cell(teacher_page: Page) -> None:
    assert "u1234" not in teacher_page.html
    assert "private" not in teacher_page.html
    assert "DREAMER.mat" in teacher_page.text
    assert "Simulated:" not in teacher_page.text
    cells = [label for label in teacher_page.plot_labels if re.fullmatch(r"\d+ \([3-8]\)", label)]
    assert 20 < len(cells) <= 25
    assert not [label for label in teacher_page.plot_labels if re.fullmatch(r"\d+ \([12]\)", label)]
    assert "of people in brackets" in teacher_page.text


@pytest.mark.parametrize(
    ("slope_people", "hidden"), [((3, 2), ["arousal"]), ((2, 3), ["valence"]), ((1, 0), ["valence", "arousal"])]
)
def test_nothing_is_drawn_of_fewer_than_three_people(
    tmp_path: Path, slope_people: tuple[int, int], hidden: list[str]
) -> None:
    run = make_teacher(tmp_path / "run", people=3, simulated=True, bands=[ODD, "alpha"])
    cells = load_file(run / "cells.safetensors")
    few = {"subjects": np.full(25, 2), "slope_people": np.array(slope_people)}
    save_file({**cells, **few}, run / "cells.safetensors")
    tensors = load_file(run / "embeddings.safetensors")
    quarter = np.array([[-0.8, -0.8], [0.8, -0.8], [0.8, 0.8]], np.float32)
    tensors["valence_arousal"] = quarter[tensors["subject"]]
    save_file(tensors, run / "embeddings.safetensors")
    change_json(run / "fingerprint.json", embeddings_sha256=sha256_file(run / "embeddings.safetensors"))
    change_json(run / "scores.json", trial_number=None)
    page = Page(write_teacher_report(run))
    page.check(images=3 + (len(hidden) < 2))
    assert "Simulated:" in page.text
    assert "no trial number is shared between people, so this control is not there" in page.text
    assert "so no cell's map is shown: it would be a person's" in page.text
    assert "so the grid is not drawn" in page.text
    maps = " ".join(alt for alt in page.images if "correlation of band power" in alt)
    for axis in ("valence", "arousal"):
        assert (f"Fewer than three people have a slope for {axis}" in page.text) == (axis in hidden)
        assert (f"with {axis}" in maps) == (axis not in hidden)
    assert (ODD in page.plot_labels) == bool(maps)


def test_maps_are_drawn_with_the_front_of_the_head_at_the_top() -> None:
    operator = TopomapOperator(CHANNELS, size=32)
    front = operator(np.array([[1.0, 1.0, 0.0, 0.0, -1.0, -1.0]]))
    svg = plot_scalps("front", "a map", {"front": front}, ["alpha"], operator.positions, "z")
    tag = next(t for t in re.findall(r"<image[^>]*>", svg, re.DOTALL) if "base64" in t)
    (encoded,) = re.findall(r"base64,([^\"]+)", tag)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"), dtype=float)
    if re.search(r"matrix\(\S+ \S+ \S+ -", tag):  # stored from the bottom up, and turned over when drawn
        pixels = pixels[::-1]
    red = pixels[..., 0] - pixels[..., 2]
    half = len(red) // 2
    assert red[:half].mean() > 20 > -20 > red[half:].mean()


def test_a_grid_built_from_a_run_carries_no_path_and_an_older_run_is_to_be_fitted_again(tmp_path: Path) -> None:
    run = make_teacher(tmp_path / "run", support=True)
    fingerprint = json.loads((run / "fingerprint.json").read_text())
    notes = {**fingerprint["notes"], "source": "../anna/private/x.bdf"}
    support = {**fingerprint["support"], "dataset": "mine, /home/u1234/b.npz"}
    change_json(run / "fingerprint.json", notes=notes, support=support)
    metadata = build_grid(run).metadata
    everything = " ".join(metadata.values())
    assert not [word for word in ("u1234", "private", "anna") if word in everything]
    assert json.loads(metadata["preprocessing"])["source"] == "x.bdf"
    assert "DREAMER.mat" in everything

    grids = json.loads((run / "scores.json").read_text())["grids"]
    change_json(run / "scores.json", grids=None)
    with pytest.raises(InputError, match="'grids': Field required; fit the teacher again") as e:
        build_grid(run)
    assert "\n" not in str(e.value)
    with pytest.raises(InputError, match=r"scores\.json 'grids': Field required; fit the teacher again"):
        write_teacher_report(run)
    change_json(run / "scores.json", grids=grids)
    cells = load_file(run / "cells.safetensors")
    del cells["slope_people"]
    save_file(cells, run / "cells.safetensors")
    with pytest.raises(InputError, match=r"cells\.safetensors: 'slope_people'; fit again"):
        write_teacher_report(run)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("run", name) for name in ("recipe.yaml", "fingerprint.json", "summary.csv", "metrics.json")),
        *(("teacher", name) for name in ("recipe.yaml", "fingerprint.json", "scores.json")),
        *(("teacher", name) for name in ("embeddings.safetensors", "cells.safetensors")),
    ],
)
def test_a_missing_file_is_named_and_nothing_is_written(tmp_path: Path, kind: str, name: str) -> None:
    folder = (make_run if kind == "run" else make_teacher)(tmp_path / "run")
    (folder / name).unlink()
    with pytest.raises(InputError, match=re.escape(name)):
        (write_report if kind == "run" else write_teacher_report)(folder)
    assert not (folder / "report.html").exists()
