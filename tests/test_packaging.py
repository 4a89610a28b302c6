"""The wheel holds recipes, grids, students, report templates and the type marker, and no data."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from ngd_timm.grid.prototypes import grid_versions
from ngd_timm.models.student import student_versions

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Names and sizes of the files in a freshly built wheel."""
    from hatchling.build import build_wheel

    folder = tmp_path_factory.mktemp("wheel")
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        name = build_wheel(str(folder))
    finally:
        os.chdir(before)
    with zipfile.ZipFile(folder / name) as archive:
        return {info.filename: info.file_size for info in archive.infolist()}


def test_every_recipe_of_the_checkout_is_in_the_wheel(wheel: dict[str, int]) -> None:
    recipes = sorted(p.name for p in (ROOT / "recipes").glob("*.yaml"))
    assert recipes
    assert [n for n in recipes if f"ngd_timm/recipes/{n}" not in wheel] == []


def test_every_grid_is_in_the_wheel_beside_its_card_and_licence(wheel: dict[str, int]) -> None:
    grids = grid_versions()
    assert grids
    for grid in grids:
        for name in ("grid.safetensors", "README.md", "LICENSE"):
            assert wheel.get(f"ngd_timm/hub/{grid}/{name}", 0) > 0


def test_every_student_is_in_the_wheel_whole_and_small(wheel: dict[str, int]) -> None:
    students = student_versions()
    assert students
    for student in students:
        for name in ("config.json", "recipe.yaml", "metrics.json", "fingerprint.json", "README.md", "LICENSE"):
            assert wheel.get(f"ngd_timm/hub/{student}/{name}", 0) > 0
        assert 0 < wheel[f"ngd_timm/hub/{student}/model.safetensors"] < 4_000_000


def test_report_templates_and_the_type_marker_are_in_the_wheel(wheel: dict[str, int]) -> None:
    templates = list((ROOT / "ngd_timm" / "report" / "templates").glob("*.j2"))
    assert len(templates) > 3
    for path in templates:
        assert f"ngd_timm/report/templates/{path.name}" in wheel
    assert "ngd_timm/py.typed" in wheel


def test_the_wheel_holds_no_tests_no_data_and_stays_small(wheel: dict[str, int]) -> None:
    assert not [n for n in wheel if n.startswith("tests/") or n.endswith((".parquet", ".npz", ".npy", ".csv", ".pkl"))]
    assert sum(wheel.values()) < 10_000_000
