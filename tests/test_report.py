"""The report of a run: whole, self-contained, honest about what is simulated."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ngd_timm import figures
from ngd_timm.affect import CLASSES
from ngd_timm.errors import InputError
from ngd_timm.files import write_json, write_text
from ngd_timm.metrics import fer_metrics
from ngd_timm.prototypes import PrototypeGrid
from ngd_timm.recipe import Recipe, to_yaml
from ngd_timm.report import write_report

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
        grid = PrototypeGrid.build(embeddings, va, metadata={"dataset": "GAMEEMO", "mantel_r": "0.41"})
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
    assert len(page.pictures) == 5
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


def test_the_same_files_give_the_same_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_the_page_stays_under_3_mb(tmp_path: Path) -> None:
    assert write_report(make_run(tmp_path / "run", epochs=100)).stat().st_size < 3_000_000


def test_a_run_without_grid_or_teacher_gets_a_report_without_their_parts(tmp_path: Path) -> None:
    page = _Page(write_report(make_run(tmp_path / "run", full=False)).read_text(encoding="utf-8"))
    assert "prototype grid that guided it" not in page.text
    assert "Gradient share" not in page.text
    assert len(page.pictures) == 2


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
