"""A finished training run, read from its directory or from the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ngd_timm.core.errors import InputError
from ngd_timm.core.hub import fetch, hub_id
from ngd_timm.core.recipe import Recipe, load_recipe
from ngd_timm.evaluate.metrics import METRICS
from ngd_timm.evaluate.predictions import Predictions, prediction_file, read_predictions
from ngd_timm.evaluate.run_log import Row, present_column, read_rows
from ngd_timm.evaluate.schema import read_entries, read_fingerprint
from ngd_timm.grid.prototypes import GRID_FILE, PrototypeGrid
from ngd_timm.models.ngd_models import TimmModel
from ngd_timm.models.student import (
    STUDENT_FILES,
    check_published,
    notes_of,
    read_student,
    student_folder,
    weights_sha256,
)

RUN_FILES = ("fingerprint.json", "recipe.yaml", "metrics.json")
_SUMMARY = "summary.csv"


@dataclass(frozen=True)
class Run:
    """A finished run; its student, rows and predictions are read when they are first used."""

    source: str  # its directory, or hf-hub:user/repo@commit
    folder: Path
    student_folder: Path  # of config.json and model.safetensors
    recipe: Recipe  # from the Hub without paths
    fingerprint: dict[str, Any]  # hashes of recipe, grid and data; versions; seed
    metrics: dict[str, Any]
    grid: PrototypeGrid | None  # None also where the repository doesn't hold it

    @property
    def student(self) -> TimmModel:
        """The bare timm model, in eval mode."""
        return self._opened[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the student's logits."""
        return self._opened[1]

    @cached_property
    def _opened(self) -> tuple[TimmModel, tuple[str, ...]]:
        return read_student(self.student_folder, self.source)

    @cached_property
    def student_sha256(self) -> str:
        """Of the student's weights, as in the entries of metrics.json."""
        return weights_sha256(self.student_folder)

    @property
    def known_sha256(self) -> set[str]:
        """Of the student's weights, and of the grey ones that an RGB student was made of: both score alike."""
        return {self.student_sha256, notes_of(self.student).get("folded_from", self.student_sha256)}

    @cached_property
    def rows(self) -> list[Row]:
        """summary.csv, a row an epoch; it is never on the Hub."""
        sets, metrics = self.recipe.best_on, METRICS if self.recipe.best_on else ()
        chosen_by = [present_column(name, metric) for name in sets for metric in metrics]
        return read_rows(self.folder / _SUMMARY, [*(f"valid_{metric}" for metric in metrics), *chosen_by])

    @cached_property
    def predictions(self) -> dict[str, Predictions]:
        """The predictions behind metrics.json, of the data sets whose file is there."""
        kept = {key: file for key in self.metrics if (file := prediction_file(self.folder, key)).is_file()}
        return {key: _predictions(file, self.recipe, self.metrics[key]) for key, file in kept.items()}


def load_run(source: str | Path, revision: str | None = None, **options: Any) -> Run:
    """Read a finished run, its student too.

    Args:
        source: A run directory, or `user/repo[@revision]` on the Hub that `ngd push` filled.
        revision: A branch, tag or commit on the Hub.
        options: `cache_dir`, `token` and `local_files_only`, as `huggingface_hub.hf_hub_download` takes them.

    Raises:
        InputError: Something is missing, damaged or not what fingerprint.json says; it is named.

    Examples:
        `run = load_run("runs/b3_full-0")`, then `wrap(run.student, grid=run.grid)` and your own loop, or
        `init: runs/b3_full-0` in a recipe.
    """
    repository = hub_id(source, revision)
    if repository is None:
        run = _read(Path(source), student_folder(source), str(source), RUN_FILES)
    else:
        snapshot = fetch(repository, [*RUN_FILES, *STUDENT_FILES], [GRID_FILE], **options)
        check_published(snapshot)
        run = _read(snapshot.folder, snapshot.folder, str(snapshot.id), RUN_FILES)
    _ = run.student  # a damaged one is refused here
    return run


def read_run(folder: str | Path) -> Run:
    """Read a run directory; the student is opened when it is first used."""
    folder = Path(folder)
    return _read(folder, folder / "student", str(folder), (*RUN_FILES, _SUMMARY))


def read_metrics(files: Sequence[str | Path], run: Run) -> dict[str, Any]:
    """The entries of several files of `ngd evaluate RUN --out FILE` as one."""
    together: dict[str, Any] = {}
    for file in map(Path, files):
        if not file.is_file():
            raise InputError(f"no metrics file {file}; write one with: ngd evaluate RUN --data SPEC --out {file}")
        entries = read_entries(file)
        check_student(entries, run, str(file))
        if twice := sorted(set(entries) & set(together)):
            raise InputError(f"{file}: {', '.join(twice)} stands in an earlier file too; leave one out")
        together |= entries
    return together


def check_student(metrics: Mapping[str, Any], run: Run, shown: str) -> list[str]:
    """Refuse metrics of another student than the run's, under the name `shown`; the sets that name no student."""
    unnamed = []
    for key, entry in metrics.items():
        sha256 = entry.get("student_sha256")
        if sha256 is None:
            unnamed.append(key)
        elif not {sha256, entry.get("folded_from")} & run.known_sha256:
            raise InputError(
                f"{shown}: {key} is about another student (sha256 {str(sha256)[:12]}…) than that of {run.source} "
                f"({run.student_sha256[:12]}…); score this one: ngd evaluate {run.source} --data SPEC --out FILE"
            )
    return unnamed


def _read(folder: Path, student_at: Path, shown: str, needed: Sequence[str]) -> Run:
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{shown} is not a finished run: {', '.join(missing)} missing; train it to its end first")
    grid_file, recipe = folder / GRID_FILE, load_recipe(Recipe, folder / "recipe.yaml")
    metrics = read_entries(folder / "metrics.json", shown)
    for key, entry in metrics.items():
        if tuple(entry["per_class"]) != recipe.data.classes:
            raise InputError(
                f"{shown}: metrics.json has {key} of other classes than recipe.yaml; evaluate the run again"
            )
    return Run(
        source=shown,
        folder=folder,
        student_folder=student_at,
        recipe=recipe,
        fingerprint=read_fingerprint(folder / "fingerprint.json", shown),
        metrics=metrics,
        grid=PrototypeGrid.load(grid_file) if grid_file.is_file() else None,
    )


def _predictions(file: Path, recipe: Recipe, entry: dict[str, Any]) -> Predictions:
    found = read_predictions(file)
    if found.classes != recipe.data.classes or len(found.target) != entry["n"]:
        raise InputError(
            f"{file} is about {len(found.target)} images of {', '.join(found.classes)}, metrics.json about "
            f"{entry['n']} of {', '.join(recipe.data.classes)}; evaluate the run again"
        )
    return found
