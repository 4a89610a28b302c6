"""What the README shows runs when pasted, and what it names exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faults
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from ngd_timm.cli import app
from ngd_timm.core.recipe import recipe_names
from ngd_timm.data.synthetic.schematic import draw_face

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


def commands(group: Any, before: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        yield from commands(command, f"{before}{name} ") if hasattr(command, "commands") else [before + name]


def test_the_commands_it_lists_are_those_of_the_command_line() -> None:
    listing = README.split("## Commands")[1].split("Each has `--help`")[0]
    listed = re.findall(r"^    ngd ((?:teacher|prototypes) \w+|\w+)(.*)", listing, flags=re.M)
    assert {words for words, _ in listed} == set(commands(get_command(app)))
    for words, rest in listed:
        shown = CliRunner().invoke(app, [*words.split(), "--help"]).output
        for option in re.findall(r"--[\w-]+", rest):
            assert option in shown, f"ngd {words} {option}"


def test_the_page_of_faults_is_up_to_date() -> None:
    page = Path(__file__).parent.parent / "docs" / "faults.md"
    assert page.read_text(encoding="utf-8") == faults.page(), "python tests/faults.py > docs/faults.md"
