"""What goes to the Hub: whole folders of an artifact, its card and its licence, in which no path and no person is."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from ngd_timm.core.commands import public_fingerprint, without_folders
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import packaged, sha256_file, write_json, write_text
from ngd_timm.core.hub import Published, hub_id, target, upload
from ngd_timm.core.paths import without_paths
from ngd_timm.core.recipe import to_yaml
from ngd_timm.evaluate.run import Run, check_student
from ngd_timm.grid.prototypes import GRID_FILE, PrototypeGrid, grid_versions
from ngd_timm.grid.push import PICTURE, stage_grid, unfit_to_publish
from ngd_timm.models.student import PUBLISHED_FORMAT, STUDENT_FILES, student_versions
from ngd_timm.publish.card import last_share, student_card, student_licence

__all__ = ["listing", "namespace", "packaged_artifacts", "push_run", "stage_run"]

logger = logging.getLogger("ngd_timm.publish")


def push_run(run: Run, repo_id: str, metrics: Mapping[str, Any] | None = None, **options: Any) -> Published:
    """Publish a run's student with card, licence, recipe, fingerprint and metrics, in one commit.

    `timm.create_model("hf-hub:user/repo", pretrained=True)` loads it without this package, `load_run` all of it.

    Args:
        run: From `load_run`.
        repo_id: `user/repo`; made if it is missing.
        metrics: Further entries in metrics.json's form, of a test set say.
        **options: `private`, `revision`, `commit_message`, `create_pr`, `token`, as in `ngd_timm.core.hub.upload`.

    Raises:
        InputError: One line that says what can't be published or what went wrong.
    """
    return upload(lambda folder: stage_run(run, folder, repo_id, metrics), repo_id, **options)


def stage_run(run: Run, folder: str | Path, repo_id: str, metrics: Mapping[str, Any] | None = None) -> None:
    """Write what goes to the Hub of a run.

    config.json and model.safetensors as timm wants them; recipe.yaml, metrics.json and fingerprint.json (with each
    file's sha256) without paths; README.md and LICENSE; the grid where it is one that may be published.

    Raises:
        InputError: Metrics that name a set twice, figures of another student, or an incomplete run.
    """
    target(repo_id)
    unsaid = check_student(run.metrics, run, "metrics.json") + check_student(metrics or {}, run, "the further metrics")
    if unsaid:
        logger.warning(f"the figures of {', '.join(unsaid)} don't say of which student they are; taken for this one's")
    twice = sorted(set(run.metrics) & set(metrics or {}))
    if twice:
        raise InputError(
            f"{', '.join(twice)} is in the run's metrics.json already; leave it out of the further metrics"
        )
    run = replace(run, recipe=without_folders(run.recipe), metrics={**run.metrics, **(metrics or {})})
    folder, name = Path(folder), repo_id.partition("/")[2]
    folder.mkdir(parents=True, exist_ok=True)
    for file in STUDENT_FILES:
        shutil.copyfile(run.student_folder / file, folder / file)
    picture = run.grid is not None and unfit_to_publish(run.grid) is None
    if run.grid is not None and picture:
        replace(run.grid, metadata=without_paths(run.grid.metadata)).save(folder / GRID_FILE)
        run.grid.picture(folder / PICTURE)
        if not _named(run.recipe.grid):
            run = replace(run, recipe=run.recipe.model_copy(update={"grid": GRID_FILE, "grid_center": False}))
    write_text(folder / "recipe.yaml", to_yaml(run.recipe))
    write_json(folder / "metrics.json", without_paths(run.metrics))
    hashed = sorted(p.name for p in folder.iterdir() if p.name != PICTURE)
    share = last_share(run) if run.recipe.loss.proto_share else None
    fingerprint = {
        **public_fingerprint(run.fingerprint),
        **({} if share is None else {"share_proto_kd": share}),
        "format_version": PUBLISHED_FORMAT,
        "sha256": {file: sha256_file(folder / file) for file in hashed},
    }
    write_json(folder / "fingerprint.json", fingerprint)
    write_text(folder / "README.md", student_card(run, repo_id, picture))
    write_text(folder / "LICENSE", student_licence(run, name))


def packaged_artifacts(space: str) -> dict[str, Callable[[Path], None]]:
    """Everything in `hub/` that is published: repository name, and what writes its folder.

    Args:
        space: A user or an organisation.
    """

    def grid(version: str) -> Callable[[Path], None]:
        return lambda folder: stage_grid(PrototypeGrid.default(version), folder, f"{space}/{version}")

    def student(version: str) -> Callable[[Path], None]:
        def copy(folder: Path) -> None:  # it was staged from its run when it was put there
            shutil.copytree(packaged("hub") / version, folder, dirs_exist_ok=True)

        return copy

    grids = {f"{space}/{version}": grid(version) for version in grid_versions()}
    return grids | {f"{space}/{version}": student(version) for version in student_versions()}


def namespace() -> str:
    """Under whose name the packaged artifacts are published: the end of the project URL "Hub" in pyproject.toml.

    Raises:
        InputError: The installed package's metadata name none.
    """
    for line in metadata("ngd-timm").get_all("Project-URL") or []:
        label, _, url = line.partition(", ")
        if label == "Hub":
            return url.rstrip("/").rpartition("/")[2]
    raise InputError("the installed ngd-timm names no Hub in its project URLs; install it again, or name the namespace")


def listing(stage: Callable[[Path], None]) -> list[tuple[str, int, str]]:
    """Name, bytes and sha256 of every file that would go up; nothing does."""
    with tempfile.TemporaryDirectory() as folder:
        stage(Path(folder))
        return [(p.name, p.stat().st_size, sha256_file(p)) for p in sorted(Path(folder).iterdir())]


def _named(spec: str | None) -> bool:
    """Whether a recipe's grid is one that everybody can open by that name."""
    return spec is None or spec in grid_versions() or hub_id(spec) is not None
