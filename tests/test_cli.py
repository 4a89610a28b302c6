"""The command: exit codes, one-line errors, nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, faces: Path) -> Path:
    """Data sets and grids, each with one thing wrong."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ngd_timm.grid.prototypes import PrototypeGrid

    root = tmp_path_factory.mktemp("broken")
    for name in ("truncated", "corrupt"):
        (root / name).mkdir()
        for split in ("train", "valid"):
            (root / name / f"{split}.parquet").write_bytes((faces / f"{split}.parquet").read_bytes())
    whole = (root / "truncated" / "train.parquet").read_bytes()
    (root / "truncated" / "train.parquet").write_bytes(whole[: len(whole) // 2])
    table = pq.read_table(root / "corrupt" / "train.parquet")
    images = table.column("image").to_pylist()
    images[20] = {**images[20], "bytes": images[20]["bytes"][:40]}
    field = table.schema.get_field_index("image")
    table = table.set_column(field, table.schema.field(field), pa.array(images, table.schema.field(field).type))
    pq.write_table(table, root / "corrupt" / "train.parquet")
    PrototypeGrid.random(16).save(root / "grid.safetensors")
    data = bytearray((root / "grid.safetensors").read_bytes())
    data[-200] ^= 0x10
    (root / "grid.safetensors").write_bytes(bytes(data))
    return root


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["b0_ce", "optim.epoch=3"], "did you mean 'optim.epochs'"),
        (["b3_full", "data.root=x"], "there is no teacher"),
        (["b0_ce", "data.classes=[neutral, hapiness]"], "did you mean 'happiness'"),
        (["b0_ce", "data.name=schematic", "data.root={broken}/truncated"], "train.parquet"),
        (["b0_ce", "data.name=schematic", "data.root={broken}/corrupt"], "20"),
        (["b0_ce", "data.root=x", "grid={broken}/grid.safetensors", "loss.proto_kd=0.1"], "grid.safetensors"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two_and_writes_nothing(
    arguments: list[str],
    message: str,
    broken: Path,
    tmp_path: Path,
    ngd: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = ngd("train", *[a.replace("{broken}", str(broken)) for a in arguments])
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("ngd: ")] == lines[-1:]
    assert message in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_the_installed_command_exits_with_two_and_one_line() -> None:
    done = subprocess.run([sys.executable, "-m", "ngd_timm.cli", "train", "b3_ful"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "did you mean 'b3_full'" in done.stderr


def test_a_full_directory_is_refused(faces: Path, tmp_path: Path, ngd: Callable[..., Any]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    done = ngd("train", "b0_ce", "data.name=schematic", f"data.root={faces}", f"out={tmp_path}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is not empty" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ngd_timm.core.recipe import StudentConfig
    from ngd_timm.models.student import create_student, save_student

    model = create_student(StudentConfig(backbone="test_resnet", image_size=32), 8)
    return save_student(model, tmp_path_factory.mktemp("students") / "mine")


def test_evaluate_prints_text_markdown_latex_and_json_of_several_sets(
    student: Path, faces: Path, ngd: Callable[..., Any]
) -> None:
    arguments = ["evaluate", str(student), "--data", f"schematic={faces}:test", "--data", f"schematic={faces}"]
    text, markdown, latex, as_json, alias = (
        ngd(*arguments, *form).stdout
        for form in ([], ["--format", "markdown"], ["--format", "latex"], ["--format", "json"], ["--json"])
    )
    assert text.startswith("schematic:test (n = 16, labels: majority, without flip): 8-way acc ")
    assert "labels: majority, without flip" in markdown
    assert "| mine |" in markdown
    assert "schematic:all 8-way acc" in markdown
    assert r"\begin{tabular}" in latex
    assert as_json == alias
    assert list(json.loads(alias)) == ["schematic:test", "schematic:all"]
    wrong = ngd(*arguments, "--format", "html")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "unknown format 'html'" in wrong.stderr


def test_a_temperature_is_recorded_and_moves_calibration_alone(
    student: Path, faces: Path, ngd: Callable[..., Any]
) -> None:
    arguments = ["evaluate", str(student), "--data", f"schematic={faces}:test", "--json"]
    (plain,) = json.loads(ngd(*arguments).stdout).values()
    (warm,) = json.loads(ngd(*arguments, "--temperature", "0.2").stdout).values()
    assert (plain["temperature"], warm["temperature"]) == (1.0, 0.2)
    assert warm["ece"] != plain["ece"]
    assert (warm["8way"], warm["ci95"]) == (plain["8way"], plain["ci95"])


def test_ablate_refuses_in_one_line_and_writes_nothing(tmp_path: Path, ngd: Callable[..., Any]) -> None:
    done = ngd("ablate", "b0_ce", "b1_kd", "optim.epoch=1", "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "did you mean 'optim.epochs'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_show_prints_the_packaged_grid_for_people_and_for_programs(tmp_path: Path, ngd: Callable[..., Any]) -> None:
    done = ngd("prototypes", "show", "--picture", str(tmp_path / "grid.png"))
    assert done.returncode == 0, done.stderr
    assert "GAMEEMO" in done.stdout
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    shown = json.loads(ngd("prototypes", "show", "gameemo-v2", "--json").stdout)
    assert shown["size"] == 5
    assert shown["sha256"] in done.stdout


@pytest.mark.parametrize(
    "command",
    [[], ["demo"], ["train"], ["evaluate"], ["robustness"], ["ablate"], ["teacher", "fit"], ["prototypes", "build"]],
)
def test_every_command_has_help_with_an_example(command: list[str]) -> None:
    from typer.testing import CliRunner

    from ngd_timm.cli import app

    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert not command or f"ngd {' '.join(command)}" in result.output
