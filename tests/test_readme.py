"""What the docs list exists. (That their code blocks run is tested by conftest.py at the root.)"""

from __future__ import annotations

import importlib
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

DOCS = Path(__file__).parent.parent / "docs"


def test_the_recipe_table_lists_the_bundled_recipes_and_no_others() -> None:
    table = (DOCS / "training.md").read_text(encoding="utf-8").split("## The bundled recipes")[1].split("##")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, flags=re.M)) == recipe_names()


def commands(group: Any, before: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        yield from commands(command, f"{before}{name} ") if hasattr(command, "commands") else [before + name]


def test_the_commands_it_lists_are_those_of_the_command_line() -> None:
    listing = (DOCS / "commands.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `ngd ((?:teacher|prototypes|data) \w+|[\w-]+)(.*)", listing, flags=re.M)
    assert {words for words, _ in listed} == set(commands(get_command(app)))
    for words, rest in listed:
        shown = re.sub(r"\x1b\[[\d;]*m", "", CliRunner().invoke(app, [*words.split(), "--help"]).output)
        assert f"Example: ngd {words}" in " ".join(shown.split())
        for option in re.findall(r"--[\w-]+", rest):
            assert option in shown, f"ngd {words} {option}"


def test_the_page_of_faults_is_up_to_date() -> None:
    assert (DOCS / "faults.md").read_text(encoding="utf-8") == faults.page(), "python tests/faults.py > docs/faults.md"


def test_every_call_on_the_page_of_the_design_is_in_the_file_that_it_names() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([\w/]+)\.py` \|", (DOCS / "design.md").read_text(encoding="utf-8"), flags=re.M)
    assert len(rows) > 20
    for name, file in rows:
        assert hasattr(importlib.import_module(f"ngd_timm.{file.replace('/', '.')}"), name), (name, file)


def test_the_list_of_our_readings_names_the_files_that_say_so_and_no_others() -> None:
    section = (DOCS / "method.md").read_text(encoding="utf-8").split("\n## Our reading\n")[1].split("\n## ")[0]
    listed = set(re.findall(r"`([\w/]+\.(?:py|yaml))`", section))
    package, marked = DOCS.parent / "ngd_timm", set()
    for folder, base in ((package, package), (DOCS.parent / "recipes", DOCS.parent)):
        for file in (path for path in folder.rglob("*") if path.suffix in (".py", ".yaml")):
            # a line may break between the words
            if re.search(r"our[\s#]+reading", file.read_text(encoding="utf-8"), flags=re.I):
                marked.add(file.relative_to(base).as_posix())
    assert listed == marked


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_link_to_a_file_leads_to_one(page: str) -> None:
    text = (DOCS.parent / page).read_text(encoding="utf-8")
    links = [link for pair in re.findall(r'\]\(([^)#]+)[^)]*\)|src="([^"]+)"', text) for link in pair if link]
    files = [link for link in links if "://" not in link]
    assert files
    assert [link for link in files if not (DOCS.parent / link).exists()] == []
