"""A grid of named rows: every combination of the values that some keys of a recipe take."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import yaml

from ngd_timm.core.errors import InputError, choices, quoted
from ngd_timm.core.recipe import Recipe, load_recipe
from ngd_timm.core.safe_yaml import read_yaml

Sweep = Mapping[str, Sequence[Any]]
"""By key of a recipe the values that it takes."""


def read_sweeps(options: Sequence[str], recipes: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """Read `[RECIPE:]KEY=VALUE,VALUE…`, of which commas within brackets and quotes belong to a value; by recipe.

    Examples:
        >>> read_sweeps(["loss.ramp=[0, 0],[.2, .6]"], ["b3_full"])
        {'b3_full': {'loss.ramp': [[0, 0], [0.2, 0.6]]}}
    """
    sweeps: dict[str, dict[str, list[Any]]] = {}
    for option in options:
        key, _, raw = option.partition("=")
        recipe, colon, key = key.rpartition(":")
        if colon and recipe not in recipes:
            raise choices(f"recipe in '{option}'", recipe, recipes)
        if not colon and len(recipes) > 1:
            raise InputError(
                f"--set {quoted(option)} doesn't say which of {', '.join(recipes)} it is for; write for example "
                f"--set {recipes[-1]}:{quoted(option)}"
            )
        if key in ("name", "out", "seed"):
            raise InputError(f"--set {quoted(option)}: an ablation sets {key} itself; sweep another key")
        try:
            values = read_yaml(f"[{raw}]")
        except yaml.YAMLError:
            values = []
        if not key or len(values) < 2 or len({*map(_text, values)}) < len(values):
            raise InputError(
                f"--set {quoted(option)} is not KEY=VALUE,VALUE,… with two different values or more; write for "
                "example --set loss.d_geo=.006,.012"
            )
        own = sweeps.setdefault(recipe or recipes[0], {})
        if key in own:
            raise InputError(f"--set {key} is given twice; give all of its values in one")
        own[key] = values
    return sweeps


def swept_rows(name: str, overrides: Sequence[str], sweep: Sweep) -> list[tuple[Recipe, dict[str, Any]]]:
    """A recipe by every combination of a sweep's values, each under a name of its own, with its values.

    The combination that the recipe has without the sweep keeps the recipe's name and comes first.
    """
    plain = load_recipe(Recipe, name, overrides)
    rows = []
    for values in product(*sweep.values()) if sweep else ():
        settings = dict(zip(sweep, values, strict=True))
        recipe = load_recipe(Recipe, name, [*overrides, *(f"{key}={_text(v)}" for key, v in settings.items())])
        if recipe.model_dump() != plain.model_dump():
            parts = [_short(key, value) for key, value in settings.items()]
            recipe = recipe.model_copy(update={"name": "-".join([plain.name, *parts])})
        rows.append((recipe, settings))
    return sorted(rows, key=lambda row: row[0].name != plain.name) or [(plain, {})]


def _short(key: str, value: Any) -> str:
    """`loss.d_geo` and 0.006: d_geo.006, of which file names can be made."""
    text = value if isinstance(value, str) else _text(value)
    text = re.sub(r"(?<![\d.])0(?=\.\d)", "", text)
    text = re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_")
    return key.rpartition(".")[2] + ("" if re.match(r"[\d.]", text) else "_") + text


def _text(value: Any) -> str:
    """A value as JSON, which is YAML; of a date as its text."""
    return json.dumps(value, default=str)
