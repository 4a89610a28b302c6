"""The wheel holds recipes, grids, students, report templates and the type marker, and no data."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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


def test_everything_that_runs_without_a_checkout_is_in_the_wheel(wheel: dict[str, int]) -> None:
    expected = [f"recipes/{p.name}" for p in (ROOT / "recipes").glob("*.yaml")]
    expected += [f"report/templates/{p.name}" for p in (ROOT / "ngd_timm" / "report" / "templates").glob("*.j2")]
    expected += [f"hub/templates/{p.name}" for p in (ROOT / "hub" / "templates").iterdir()]
    expected += ["hub/space/app.py", "hub/space/requirements.txt", "hub/space/README.md"]
    grid = ("grid.safetensors", "README.md", "LICENSE")
    student = ("model.safetensors", "config.json", "recipe.yaml", "metrics.json", "fingerprint.json", *grid[1:])
    expected += [f"hub/{version}/{name}" for version in grid_versions() for name in grid]
    expected += [f"hub/{version}/{name}" for version in student_versions() for name in student]
    assert len(expected) > 40
    assert [name for name in expected if wheel.get(f"ngd_timm/{name}", 0) == 0] == []
    assert "ngd_timm/py.typed" in wheel


def test_the_wheel_holds_no_tests_no_data_and_stays_small(wheel: dict[str, int]) -> None:
    assert not [n for n in wheel if n.startswith("tests/") or n.endswith((".parquet", ".npz", ".npy", ".csv", ".pkl"))]
    assert not [n for n in wheel if "/hub/web/" in n]
    assert all(size < 4_000_000 for size in wheel.values())
    assert sum(wheel.values()) < 13_000_000


def test_lowest_txt_pins_the_lowest_versions_that_pyproject_admits() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    pinned = [line for line in (ROOT / "lowest.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    lowest = {name: version for name, _, version in (line.partition("==") for line in pinned)}
    for name, _, version in (requirement.partition(">=") for requirement in declared):
        release = version.split(".")
        assert lowest[name].split(".")[: len(release)] == release, name


def test_importing_the_package_leaves_the_recipes_schema_until_it_is_used() -> None:
    code = (
        "import sys, ngd_timm; assert 'pydantic' not in sys.modules, 'imported with the package'; "
        "from ngd_timm import *; missing = set(ngd_timm.__all__) - set(vars()); assert not missing, missing; "
        "ngd_timm.data.load_fer, ngd_timm.evaluate.fer_metrics, ngd_timm.eeg.TopomapOperator; ngd_timm.Predicter"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("AttributeError: module 'ngd_timm' has no attribute 'Predicter'")
    )
