"""The command that started a run, and its recipe, as they are published: names of files without their folders."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Mapping
from typing import Any, TypeVar

import yaml

from ngd_timm.core.hub import PREFIX
from ngd_timm.core.paths import last_part, without_paths
from ngd_timm.core.recipe import StrictModel
from ngd_timm.core.safe_yaml import read_yaml

_NO_PATHS = ("names", "revision", "part")  # options behind a root that have slashes in them
_LOCAL = re.compile(r"(\w[\w.-]*:)?(out|device|kd_cache|data\.cache)=")

RecipeT = TypeVar("RecipeT", bound=StrictModel)


def shown_command(fingerprint: Mapping[str, Any], otherwise: str) -> str:
    """The shell line that started a run, from the "command" in its fingerprint; `otherwise` where that has none."""
    command = _public_command(fingerprint.get("command"))
    return otherwise if command is None else shlex.join(command)


def _public_command(command: Any) -> list[str] | None:
    """A command's arguments with paths cut to their last part, without those that hold for one machine only."""
    if not isinstance(command, list):
        return None
    return [_public(str(argument)) for argument in command if not _LOCAL.match(str(argument))]


def public_fingerprint(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    return {**without_paths(fingerprint), "command": _public_command(fingerprint.get("command"))}


def _public(argument: str) -> str:
    if (option := re.match(r"--[\w-]+=", argument)) is not None:
        return option[0] + _public(argument[option.end() :])
    key, equals, value = argument.partition("=")
    if not equals or re.search(r"[\\/]", key):
        return _public_value(argument)
    if value[:1] in ("[", "{"):
        with contextlib.suppress(yaml.YAMLError):
            return f"{key}={json.dumps(_public_leaves(read_yaml(value)), ensure_ascii=False)}"
    return f"{key}={_public_value(value)}"


def _public_leaves(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _public_leaves(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_public_leaves(entry) for entry in value]
    return _public_value(value) if isinstance(value, str) else value


def _public_value(source: str) -> str:
    """A root with options (`ROOT,key=value`), a recipe, a student or a backbone without folders."""
    if source.startswith(PREFIX):
        return source
    root, *options = re.split(r",(?=\w+=)", source)
    scheme, place = re.fullmatch(r"(local-dir:)?(.*)", root, re.S).groups("")  # type: ignore[union-attr]
    pairs = [option.partition("=")[::2] for option in options]
    shown = [f"{key}={value if key in _NO_PATHS else last_part(value)}" for key, value in pairs]
    return ",".join([scheme + last_part(place), *shown])


def without_folders(recipe: RecipeT) -> RecipeT:
    """The same recipe with paths cut to their last part and without what holds for one machine only."""
    values = _public_leaves(recipe.model_dump(mode="json")) | {"out": None, "device": "auto"}
    if "kd_cache" in values:
        values["kd_cache"] = None
    if "cache" in values["data"]:
        values["data"]["cache"] = True
    return type(recipe).model_validate(values)
