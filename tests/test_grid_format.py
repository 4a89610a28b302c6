"""The published format of grids, and grids that are built from other things than EEG."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

from ngd_timm.core.errors import InputError
from ngd_timm.grid import metadata
from ngd_timm.grid.card import grid_card
from ngd_timm.grid.metadata import GridMetadata
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.grid.table import classical_scaling, grid_of_table


def test_the_schema_in_the_package_is_that_of_the_class_that_checks_files() -> None:
    schema = (Path(metadata.__file__).parent / "metadata-v1.schema.json").read_text()
    assert json.loads(schema) == GridMetadata.model_json_schema()
    assert json.loads(schema)["required"] == ["format_version", "sha256", "metadata_sha256"]


def test_a_grid_is_validated_from_the_shell(ngd: Callable[..., Any], tmp_path: Path) -> None:
    outcome = ngd("prototypes", "validate", "gameemo-v2")
    assert (outcome.returncode, "a valid grid, format version 1: 5x5 prototypes of 64" in outcome.stdout) == (0, True)
    assert "not fit to publish" not in outcome.stdout
    PrototypeGrid.random(8).save(tmp_path / "random.safetensors")
    found = json.loads(ngd("prototypes", "validate", str(tmp_path / "random.safetensors"), "--json").stdout)
    assert found["dim"] == 8
    assert "it is a control" in found["not_fit_to_publish"]


def test_metadata_that_could_not_be_loaded_again_are_not_saved(tmp_path: Path) -> None:
    grid = PrototypeGrid.build(np.eye(2), np.array([[-1, -1], [1, 1]]), metadata={"scores": "good"})
    with pytest.raises(InputError, match="metadata 'scores'"):
        grid.save(tmp_path / "grid.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_table_gives_the_grid_of_its_rows_and_says_where_it_is_from(ngd: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    va, who = rng.uniform(-1, 1, (90, 2)).round(3), np.arange(90) % 3
    rows = (va @ rng.normal(size=(2, 6)) + rng.normal(0, 0.3, (90, 6))).round(4)
    lines = [",".join(map(str, [*r, f"s{s}", v, a])) for r, s, (v, a) in zip(rows, who, va, strict=True)]
    names = ["voxel 1", *(f"f{k}" for k in range(5)), "subject", "valence", "arousal"]
    (tmp_path / "fmri.csv").write_text("\n".join([",".join(names), *lines]))
    out, card = tmp_path / "grid.safetensors", tmp_path / "card.md"
    outcome = ngd(*f"prototypes build {tmp_path}/fmri.csv --size 3 --out {out} --card {card}".split())
    assert outcome.returncode == 0
    grid = PrototypeGrid.load(out)
    assert grid.sha256 == PrototypeGrid.build(rows, va, who, 3).sha256
    assert float(grid.metadata["mantel_p_centered"]) < 0.01
    text = card.read_text()
    assert "averaged from the rows of a table, not from EEG." in text
    assert "own embeddings (fmri)" in text
    assert str(tmp_path) not in text
    assert "  - eeg" not in text.split("---")[1]


def test_a_table_without_subjects_permutes_over_all_rows(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).uniform(-1, 1, (40, 5))
    np.savetxt(tmp_path / "t.csv", rows, delimiter=",", header="valence,arousal,a,b,c", comments="")
    grid = grid_of_table(tmp_path / "t.csv", size=3, permutations=50)
    assert float(grid.metadata["mantel_p"]) > 0.05
    assert "subjects_per_cell" not in grid.metadata


def test_a_card_that_cannot_be_written_leaves_no_grid_behind(ngd: Callable[..., Any], tmp_path: Path) -> None:
    np.savetxt(
        tmp_path / "t.csv",
        np.vstack([np.full(4, 0.5), np.full(4, -0.5), [0.5, -0.5, 1, 2]]),
        delimiter=",",
        header="valence,arousal,a,b",
        comments="",
    )
    outcome = ngd(*f"prototypes build {tmp_path}/t.csv --out {tmp_path}/g.safetensors --card {tmp_path}/c.md".split())
    assert outcome.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize(
    "outputs",
    ["--out t.csv", "--out g.safetensors --card g.safetensors", "--out grid.png --card c.md", "--out g --card t.csv"],
)
def test_a_grid_takes_the_place_of_nothing_that_is_read_or_written(
    outputs: str, ngd: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = "valence,arousal,a,b\n0.5,0.5,1,2\n-0.5,-0.5,2,1\n0.5,-0.5,1,1\n"
    Path("t.csv").write_text(table)
    done = ngd("prototypes", "build", "t.csv", *outputs.split())
    assert done.returncode == 2
    assert "is read, or written, already; give each file a name of its own" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
    assert Path("t.csv").read_text() == table


def test_blank_lines_of_a_table_are_no_rows_and_count_in_what_is_named(tmp_path: Path) -> None:
    table = "valence,arousal,a,b\n\n0.5,0.5,1,2\n-0.5,-0.5,2,1\n0.5,-0.5,1,1\n\n"
    (tmp_path / "t.csv").write_text(table)
    assert grid_of_table(tmp_path / "t.csv", size=3, permutations=5).filled == 3
    (tmp_path / "t.csv").write_text(table.replace("2,1", "2,x"))
    with pytest.raises(InputError, match="row 4: b must be a finite number, got 'x'"):
        grid_of_table(tmp_path / "t.csv")


def test_a_grids_plot_is_a_png_by_its_name_too(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"p\.jpg: the plot is a PNG; give a file that ends in \.png"):
        PrototypeGrid.random(8).plot(tmp_path / "p.jpg")


def test_classical_scaling_gives_back_points_up_to_a_turn() -> None:
    points = np.random.default_rng(0).normal(size=(12, 3))
    found, lost = classical_scaling(squareform(pdist(points)))
    assert found.shape == (12, 3)
    assert lost < 1e-9
    np.testing.assert_allclose(pdist(found), pdist(points), atol=1e-9)
    bent, share = classical_scaling(squareform(pdist(points, "cityblock")))
    assert bent.shape[0] == 12
    assert 0.01 < share < 0.5


def test_distances_on_the_plane_give_a_grid_that_follows_it() -> None:
    va = np.random.default_rng(0).uniform(-1, 1, (60, 2))
    grid = PrototypeGrid.from_distances(squareform(pdist(va)), va, size=3)
    assert grid.mantel_r > 0.6
    assert "0.0 % not Euclidean" in grid.metadata["provenance"]
    with pytest.raises(InputError, match="metadata lack dataset, subjects_per_cell"):
        grid_card(grid, "mine")
