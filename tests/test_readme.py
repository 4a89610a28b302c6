"""What the README shows runs when pasted, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ngd_timm.cli import app
from ngd_timm.data.schematic import draw_face
from ngd_timm.recipe import recipe_names

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_python_blocks_run_one_after_the_other_when_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # the one about the Hub is pasted in test_hub.py, where there is one
    blocks = [block for block in re.findall(r"```python\n(.*?)```", README, flags=re.S) if '"user/' not in block]
    assert len(blocks) == 5
    draw_face("happiness", seed=0).save("face.png")
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "student" / "model.safetensors").is_file()
    assert (tmp_path / "mine.npz").is_file()


def test_the_recipe_table_lists_the_recipes_in_the_wheel_and_no_others() -> None:
    table = README.split("## Recipes")[1].split("##")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, flags=re.M)) == recipe_names()


def test_the_commands_it_lists_are_those_of_the_command_line() -> None:
    listed = README.split("## Commands")[1].split("##")[0]
    for words in re.findall(r"^    ngd ((?:teacher|prototypes) \w+|\w+)", listed, flags=re.M):
        result = CliRunner().invoke(app, [*words.split(), "--help"])
        assert result.exit_code == 0, words
