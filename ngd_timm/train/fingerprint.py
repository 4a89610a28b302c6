"""What a run is known by: hashes of its recipe, data, grid and teacher, kept in fingerprint.json."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ngd_timm.core.devices import precision_name
from ngd_timm.core.distributed import world_size
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import sha256_file
from ngd_timm.core.hub import fetch, hub_id, pin
from ngd_timm.core.recipe import Recipe, StudentConfig, to_yaml
from ngd_timm.evaluate.schema import read_fingerprint
from ngd_timm.grid.prototypes import GRID_FILE, PrototypeGrid
from ngd_timm.models.student import STUDENT_FILES, student_files, weights_sha256
from ngd_timm.models.timm_folder import FILES, backbone_repository

_PACKAGES = ("ngd-timm", "torch", "torchvision", "timm", "numpy", "datasets", "safetensors", "pillow")
_PINNED = {"grid": GRID_FILE, "teacher": STUDENT_FILES[0], "init": STUDENT_FILES[0]}


def fingerprint_of(
    recipe: Recipe,
    reports: Mapping[str, Any],
    grid: PrototypeGrid | None,
    precision: torch.dtype | None,
    device: torch.device,
) -> dict[str, Any]:
    """The content of fingerprint.json; `reports` holds each split's `LoadReport`, `precision` is autocast's."""
    return {
        "recipe": hashlib.sha256(to_yaml(recipe).encode()).hexdigest(),
        "seed": recipe.seed,
        "data": {split: report.as_dict() for split, report in reports.items()},
        "grid": None if grid is None else grid.sha256,
        "teacher": teacher_hash(recipe),
        "teacher_config": teacher_config_hash(recipe),
        "init": student_hash(recipe.init),
        "backbone": backbone_hash(recipe.student),
        "hub": _hub_ids(recipe),
        "precision": precision_name(precision),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": world_size(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def refuse_changes(out: Path, fingerprint: Mapping[str, Any]) -> None:
    """Refuse to continue a run with other processes, precision, recipe, data, grid, teacher, init or backbone."""
    before = read_fingerprint(out / "fingerprint.json", str(out))
    processes = before.get("processes", 1)
    if processes != world_size():
        raise InputError(
            f"{out} was begun by {processes} process(es), now there are {world_size()}, and each has random numbers of "
            f"its own; continue it with: {resume_command(out, processes)}"
        )
    precision = fingerprint["precision"]
    if before.get("precision", precision) != precision:
        raise InputError(
            f"{out} was begun in {before['precision']}, here it would go on in {precision} (optim.amp goes by the "
            "machine); continue it where it was begun, or start a new run"
        )
    for key in ("recipe", "data", "best_on", "grid", "teacher", "teacher_config", "init", "backbone"):
        if _content(before.get(key)) != _content(json.loads(json.dumps(fingerprint.get(key)))):
            what = "the teacher's config.json" if key == "teacher_config" else key
            raise InputError(f"{out}: {what} is not what the run began with (see fingerprint.json); start a new run")


def _content(entry: Any) -> Any:
    """An entry without the commits of Hub data sets: a new one may hold the same images, as their hash shows."""
    if not isinstance(entry, dict):
        return entry
    return {key: _content(value) for key, value in entry.items() if key != "dataset_id"}


def resume_command(out: Path, processes: int | None = None) -> str:
    count = processes or world_size()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    where = f"--nnodes {count // local} --rdzv-backend c10d --rdzv-endpoint HOST:PORT " if 0 < local < count else ""
    launcher = f"torchrun {where}--nproc-per-node {min(local, count)} -m ngd_timm.cli" if count > 1 else "ngd"
    return f"{launcher} train --resume {shlex.quote(str(out))}"


def pinned(recipe: Recipe) -> Recipe:
    """The recipe with the Hub's models and grids at their present commits, so that a resumed run gets the same bytes.

    Data sets are compared by the hash of their images instead.
    """
    changes: dict[str, Any] = {}
    for key, filename in _PINNED.items():
        source = getattr(recipe, key)
        if isinstance(source, str):
            changes[key] = pin(source, filename)
        elif isinstance(source, tuple):
            changes[key] = tuple(pin(each, filename) for each in source)
    if repository := backbone_repository(recipe.student.backbone):
        update = {"backbone": pin(str(repository), FILES[0])}
        changes["student"] = recipe.student.model_copy(update=update)
    return recipe.model_copy(update=changes)


def backbone_hash(student: StudentConfig) -> str | None:
    """sha256 of the weights of a backbone from the Hub; None where none of the Hub's are loaded."""
    repository = backbone_repository(student.backbone) if student.pretrained else None
    return None if repository is None else weights_sha256(fetch(repository, FILES).folder)


def student_hash(source: str | None) -> str | None:
    """sha256 of a student's weights; None without a source."""
    return None if source is None else weights_sha256(student_files(source))


def teacher_hash(recipe: Recipe) -> str | list[str] | None:
    """sha256 of the teacher's weights, of an ensemble's one each; None without logit KD."""
    hashes = [weights_sha256(student_files(source)) for source in recipe.teacher_sources]
    return hashes if len(hashes) > 1 else next(iter(hashes), None)


def teacher_config_hash(recipe: Recipe) -> list[str]:
    """sha256 of each teacher's config.json, which holds the order of its logits and its input."""
    return [sha256_file(student_files(source) / STUDENT_FILES[0]) for source in recipe.teacher_sources]


def _hub_ids(recipe: Recipe) -> dict[str, Any]:
    sources = {key: getattr(recipe, key) for key in _PINNED}
    named = {key: source for key, source in sources.items() if isinstance(source, (str, tuple))}
    backbone = {"student.backbone": recipe.student.backbone} if backbone_repository(recipe.student.backbone) else {}
    return backbone | {key: s for key, s in named.items() if any(map(hub_id, [s] if isinstance(s, str) else s))}
