"""Stages runs and packaged artifacts for the Hub, with card and licence and without paths, and pushes them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from ngd_timm.core.commands import public_fingerprint, without_folders
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import packaged, sha256_file, write_json, write_text
from ngd_timm.core.hub import hub_id, target
from ngd_timm.core.paths import without_paths
from ngd_timm.core.recipe import to_yaml
from ngd_timm.evaluate.run import Run, check_student
from ngd_timm.grid.card import card_header, render_card
from ngd_timm.grid.prototypes import GRID_FILE, PrototypeGrid, grid_versions
from ngd_timm.grid.push import PLOT, stage_grid, unfit_to_publish
from ngd_timm.models.rgb import published_student
from ngd_timm.models.student import PUBLISHED_FORMAT, STUDENT_FILES, read_student, student_versions
from ngd_timm.publish.card import last_share, student_card, student_licence, write_eval_results, write_examples
from ngd_timm.publish.export import write_transformersjs

logger = logging.getLogger("ngd_timm.publish")


def stage_run(
    run: Run, folder: str | Path, repo_id: str, metrics: Mapping[str, Any] | None = None, grey: bool = False
) -> None:
    """Write the files of a run that are published, without paths; the grid where it may be.

    The student takes RGB images; `grey` keeps a grey one's single channel.
    """
    target(repo_id)
    metrics = metrics or {}
    unnamed = check_student(run.metrics, run, "metrics.json") + check_student(metrics, run, "the further metrics")
    if unnamed:
        logger.warning(f"the metrics of {', '.join(unnamed)} don't name their student; they are taken for this one's")
    if twice := sorted(set(run.metrics) & set(metrics)):
        raise InputError(f"{', '.join(twice)} is in the run's metrics.json already; leave it out of further metrics")
    folder, name = Path(folder), repo_id.partition("/")[2]
    folder.mkdir(parents=True, exist_ok=True)
    with published_student(run.student_folder, run.source, keep=grey) as student:
        for file in STUDENT_FILES:
            shutil.copyfile(student / file, folder / file)
    merged = {**run.metrics, **metrics}
    run = replace(run, recipe=without_folders(run.recipe), metrics=merged, student_folder=folder)
    with_grid = run.grid is not None and unfit_to_publish(run.grid) is None
    if run.grid is not None and with_grid:
        replace(run.grid, metadata=without_paths(run.grid.metadata)).save(folder / GRID_FILE)
        run.grid.plot(folder / PLOT)
        if not _named(run.recipe.grid):
            run = replace(run, recipe=run.recipe.model_copy(update={"grid": GRID_FILE, "grid_center": False}))
    write_text(folder / "recipe.yaml", to_yaml(run.recipe))
    write_json(folder / "metrics.json", without_paths(run.metrics))
    hashed = sorted(p.name for p in folder.iterdir() if p.name != PLOT)
    fingerprint = {
        **public_fingerprint(run.fingerprint),
        "format_version": PUBLISHED_FORMAT,
        "sha256": {file: sha256_file(folder / file) for file in hashed},
    }
    if run.recipe.loss.proto_share and (share := last_share(run)) is not None:
        fingerprint["share_proto_kd"] = share
    write_json(folder / "fingerprint.json", fingerprint)
    write_examples(folder)
    write_text(folder / "README.md", student_card(run, repo_id, plot=with_grid))
    write_text(folder / "LICENSE", student_licence(run, name))
    write_eval_results(run, folder)


def onnx_repo(repo_id: str) -> str:
    """Where the student of a repository is published for transformers.js, whose config.json is another one."""
    return f"{repo_id}-ONNX"


def stage_onnx(run: Run, folder: Path, repo_id: str) -> None:
    """Write a run's student for transformers.js, with a card that leads to its repository `repo_id`."""
    folder.mkdir(parents=True, exist_ok=True)
    with published_student(run.student_folder, run.source) as student:
        model, classes = read_student(student, run.source)
    write_transformersjs(model, folder, run.source)
    header = card_header(
        library_name="transformers.js",
        pipeline_tag="image-classification",
        base_model=repo_id,
        tags=["onnx", "facial-expression-recognition"],
        datasets=[],
    )
    card = render_card("onnx_card.md", header=header, repo_id=repo_id, own_id=onnx_repo(repo_id), classes=classes)
    write_text(folder / "README.md", card)
    write_text(folder / "LICENSE", student_licence(run, onnx_repo(repo_id).partition("/")[2]))


def packaged_artifacts(space: str) -> dict[str, Callable[[Path], object]]:
    """The packaged grids and students: repository name under `space`, and a function that stages its folder."""
    artifacts: dict[str, Callable[[Path], object]] = {}
    for version in grid_versions():
        artifacts[f"{space}/{version}"] = partial(_stage_packaged_grid, version, f"{space}/{version}")
    for version in student_versions():
        artifacts[f"{space}/{version}"] = partial(_stage_packaged_student, version, space)
    return artifacts


def packaged_spaces(space: str) -> dict[str, tuple[str, Callable[[Path], object]]]:
    """The Spaces: repository name under `space`, its SDK, and a function that stages its folder.

    The page that needs no server is among them in a checkout where `npm run build` has written it.
    """
    stage: Callable[[Path], object] = partial(_stage_space, packaged("hub") / "space", space)
    spaces = {f"{space}/expressions": ("gradio", stage)}
    page = packaged("hub") / "web" / "dist"
    if (page / "index.html").is_file():
        spaces[f"{space}/expressions-in-the-browser"] = ("static", partial(_stage_space, page, space))
    return spaces


def _stage_space(source: Path, space: str, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    write_text(folder / "README.md", (source / "README.md").read_text(encoding="utf-8").replace("NAMESPACE", space))


def _stage_packaged_grid(version: str, repo_id: str, folder: Path) -> None:
    stage_grid(PrototypeGrid.default(version), folder, repo_id)


def _stage_packaged_student(version: str, space: str, folder: Path) -> None:
    """The folder that was staged from its run when it was packaged, with its own card's names for it."""
    shutil.copytree(packaged("hub") / version, folder, dirs_exist_ok=True)
    card = (folder / "README.md").read_text(encoding="utf-8")
    write_text(folder / "README.md", card.replace(f"{namespace()}/{version}", f"{space}/{version}"))


def namespace() -> str:
    """The account under which the packaged artifacts are published: the end of the URL "Hub" in pyproject.toml."""
    for line in metadata("ngd-timm").get_all("Project-URL") or []:
        label, _, url = line.partition(", ")
        if label == "Hub":
            return url.rstrip("/").rpartition("/")[2]
    raise InputError("the installed ngd-timm names no Hub in its project URLs; install it again, or name the namespace")


def _named(spec: str | None) -> bool:
    """Whether a recipe's grid can be opened anywhere by that name."""
    return spec is None or spec in grid_versions() or hub_id(spec) is not None
