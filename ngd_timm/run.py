"""A finished training run read back whole: from its directory, or from the Hub, where it was checked on the way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngd_timm.errors import InputError
from ngd_timm.export import STUDENT_FILES, check_published, load_student, student_folder
from ngd_timm.hub import fetch, hub_id
from ngd_timm.ngd_models import TimmModel
from ngd_timm.prototypes import GRID_FILE, PrototypeGrid
from ngd_timm.recipe import Recipe, load_recipe

__all__ = ["RUN_FILES", "Run", "load_run", "read_json", "read_metrics"]

RUN_FILES = ("fingerprint.json", "recipe.yaml", "metrics.json")
"""What a run holds beside its student."""
_LARGEST_JSON = 16 << 20


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        source: Its directory, or `hf-hub:user/repo@commit`.
        student_folder: Where config.json and model.safetensors lie.
        student: The bare timm model, in eval mode.
        classes: Class names in the order of the logits.
        recipe: What it was trained by; one from the Hub names no paths.
        fingerprint: Hashes of recipe, grid and data; versions; seed.
        metrics: metrics.json.
        grid: The grid it was distilled from, None where it had none or the repository doesn't hold it.
    """

    source: str
    student_folder: Path
    student: TimmModel
    classes: tuple[str, ...]
    recipe: Recipe
    fingerprint: dict[str, Any]
    metrics: dict[str, Any]
    grid: PrototypeGrid | None


def load_run(
    source: str | Path,
    revision: str | None = None,
    *,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Run:
    """Read a run back for further training or a closer look.

    Args:
        source: A finished run directory, or `user/repo[@revision]` on the Hub that `ngd push` filled.
        revision: A branch, tag or commit on the Hub.
        cache_dir: Instead of the usual cache of the Hub.
        token: Instead of the one that is logged in; False for none.
        local_files_only: Take what the cache has, without the network.

    Raises:
        InputError: Something is missing, damaged or not what fingerprint.json says; it is named.

    Example:
        `run = load_run("runs/b3_full-0")`, then `wrap(run.student, grid=run.grid)` and your own loop, or
        `init: runs/b3_full-0` in a recipe.
    """
    repository = hub_id(source, revision)
    if repository is None:
        return _read(Path(source), student_folder(source), str(source))
    snapshot = fetch(
        repository,
        [*RUN_FILES, *STUDENT_FILES],
        [GRID_FILE],
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
    )
    check_published(snapshot)
    return _read(snapshot.folder, snapshot.folder, str(snapshot.id))


def read_metrics(files: Sequence[str | Path]) -> dict[str, Any]:
    """The entries of several files in metrics.json's form as one.

    Raises:
        InputError: A file that can't be read, or a set that stands in two.
    """
    together: dict[str, Any] = {}
    for file in map(Path, files):
        if not file.is_file():
            raise InputError(f"no metrics file {file}; write one with: ngd evaluate RUN --data SPEC --out {file}")
        entries = read_json(file, str(file.parent))
        if twice := sorted(set(entries) & set(together)):
            raise InputError(f"{file}: {', '.join(twice)} stands in an earlier file too; leave one out")
        together |= entries
    return together


def _read(folder: Path, student_at: Path, shown: str) -> Run:
    missing = [name for name in RUN_FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{shown} is not a finished run: {', '.join(missing)} missing; train it to its end first")
    student, classes = load_student(student_at, shown)
    grid_file = folder / GRID_FILE
    return Run(
        source=shown,
        student_folder=student_at,
        student=student,
        classes=classes,
        recipe=load_recipe(Recipe, folder / "recipe.yaml"),
        fingerprint=read_json(folder / "fingerprint.json", shown),
        metrics=read_json(folder / "metrics.json", shown),
        grid=PrototypeGrid.load(grid_file) if grid_file.is_file() else None,
    )


def read_json(file: Path, shown: str) -> dict[str, Any]:
    """A JSON object of a run's folder.

    Raises:
        InputError: Too large, no JSON, or no object; messages call the folder `shown`.
    """
    try:
        if file.stat().st_size > _LARGEST_JSON:
            raise ValueError("too large")
        value = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{shown}: {file.name} is not readable JSON ({' '.join(str(error).split())[:120]})") from None
    return value
