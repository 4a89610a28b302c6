"""From a teacher run to the frozen grid: held-out embeddings in one frame, averaged over the plane."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ngd_timm.core.commands import build_commands
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import sha256_file
from ngd_timm.core.paths import without_paths
from ngd_timm.core.recipe import load_recipe
from ngd_timm.core.teacher_recipe import TeacherRecipe
from ngd_timm.core.version import __version__
from ngd_timm.eeg.folds import align
from ngd_timm.eeg.signal.bandpower import NORMALISATION
from ngd_timm.eeg.teacher.held_out import DECODERS
from ngd_timm.grid.mantel import mantel_test
from ngd_timm.grid.prototypes import PrototypeGrid

__all__ = ["build_grid", "preview_grid"]

_FINGERPRINT = (
    "dataset",
    "simulated",
    "data_sha256",
    "channels",
    "bands",
    "notes",
    "trials",
    "support",
    "recipe_sha256",
)
_SUPPORT = ("dataset", "subjects", "windows")


def preview_grid(run: str | Path, min_subjects: int = 3) -> PrototypeGrid | None:
    """The 5×5 grid of a teacher run without its Mantel figures, for pictures; None if it has fewer than two cells.

    Raises:
        InputError: As `build_grid`.
    """
    _, _, _, stored = _read_run(Path(run))
    aligned, _ = align(stored.embeddings, stored.held_out_fold)
    grid = PrototypeGrid.build(aligned, stored.valence_arousal, stored.subject)
    people = [int(n) for n in grid.metadata["subjects_per_cell"].split(",")]
    if sum(n >= min_subjects for n in people) < 2:
        return None
    return PrototypeGrid.build(aligned, stored.valence_arousal, stored.subject, min_subjects=min_subjects)


def build_grid(run: str | Path, size: int = 5, center: bool = False, min_subjects: int = 1) -> PrototypeGrid:
    """The prototype grid of a teacher run: held-out embeddings in fold 0's frame, averaged over the plane.

    Args:
        run: A directory that `fit_teacher` wrote.
        size: S, cells along an axis.
        center: As in `PrototypeGrid.build`.
        min_subjects: A cell of fewer people counts as empty; a grid that is published needs 3.

    Returns:
        The grid; its metadata say what it was built from, how the teacher scored, and the Mantel figures.

    Raises:
        InputError: A directory that isn't a complete teacher run, or is one of an older version, or whose embeddings
            were changed.
    """
    run = Path(run)
    recipe, fingerprint, scores, stored = _read_run(run)
    _check_layout(run, fingerprint, scores)
    fingerprint = without_paths(fingerprint)  # the grid is published, folders are not
    subject, trial, va = stored.subject, stored.trial, stored.valence_arousal
    aligned, agreement = align(stored.embeddings, stored.held_out_fold)
    permutations = recipe.scores.permutations
    plain, centred = (
        mantel_test(
            aligned, va, subject, trial, size, permutations, recipe.seed, min_subjects=min_subjects, center=flag
        )
        for flag in (False, True)
    )
    notes = {
        "dataset": fingerprint["dataset"],
        "data_sha256": fingerprint["data_sha256"],
        "subjects": str(len(np.unique(subject))),
        "trials": str(fingerprint["trials"]),
        "windows": str(len(subject)),
        "channels": ",".join(fingerprint["channels"]),
        "bands": ",".join(fingerprint["bands"]),
        "normalisation": NORMALISATION,
        "split": f"{recipe.data.folds} folds by subject, seed {recipe.seed}; every embedding is of a held-out subject",
        "frame": "teachers of the folds brought into fold 0's frame by orthogonal Procrustes on shared training data",
        "frame_agreement": ",".join(f"{a:.3f}" for a in agreement),
        "teacher": (
            f"{without_paths(recipe.teacher.backbone)} on {recipe.teacher.image_size} px maps, "
            f"{recipe.teacher.embedding_dim}-d embedding"
        ),
        "teacher_recipe_sha256": fingerprint["recipe_sha256"],
        "scores": json.dumps({key: scores[key] for key in DECODERS if key in scores}),
        "grids": json.dumps(scores["grids"]),
        "preprocessing": json.dumps(fingerprint["notes"]),
        "mantel_r": f"{plain.r:.4f}",
        "mantel_p": f"{plain.p:.4f}",
        "mantel_r_centered": f"{centred.r:.4f}",
        "mantel_p_centered": f"{centred.p:.4f}",
        "mantel_permutations": str(permutations),
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "built_with": f"ngd_timm {__version__}",
        "command": build_commands(recipe, size, min_subjects, center),
    }
    if fingerprint["support"] is not None:
        support = fingerprint["support"]
        notes["support"] = (
            f"{support['dataset']}, {support['subjects']} people, {support['windows']} windows, unlabelled"
        )
    if fingerprint["simulated"]:
        notes["simulated"] = "true"
    return PrototypeGrid.build(aligned, va, subject, size, min_subjects, center, notes)


@dataclass(frozen=True)
class _Stored:
    embeddings: np.ndarray  # (F, N, D)
    subject: np.ndarray
    trial: np.ndarray
    valence_arousal: np.ndarray
    held_out_fold: np.ndarray


def _check_layout(run: Path, fingerprint: dict[str, Any], scores: dict[str, Any]) -> None:
    lacking = [f"fingerprint.json's {key}" for key in _FINGERPRINT if key not in fingerprint]
    lacking += [f"scores.json's {key}" for key in ("teacher", "grids") if key not in scores]
    lacking += [
        f"fingerprint.json's support.{key}" for key in _SUPPORT if key not in (fingerprint.get("support") or _SUPPORT)
    ]
    if lacking:
        raise InputError(f"{run} was made by an older version: no {', '.join(lacking)}; fit the teacher again")


def _read_run(run: Path) -> tuple[TeacherRecipe, dict[str, Any], dict[str, Any], _Stored]:
    names = ("recipe.yaml", "fingerprint.json", "scores.json", "embeddings.safetensors")
    missing = [name for name in names if not (run / name).is_file()]
    if missing:
        raise InputError(f"{run} is not a teacher run: no {', '.join(missing)}; make one with: ngd teacher fit RECIPE")
    recipe = load_recipe(TeacherRecipe, run / "recipe.yaml")
    try:
        fingerprint = json.loads((run / "fingerprint.json").read_text(encoding="utf-8"))
        scores = json.loads((run / "scores.json").read_text(encoding="utf-8"))
        expected = fingerprint["embeddings_sha256"]
        if not isinstance(scores, dict):
            raise TypeError
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise InputError(f"{run}: fingerprint.json or scores.json is damaged; fit the teacher again") from None
    path = run / "embeddings.safetensors"
    if sha256_file(path) != expected:
        raise InputError(f"{path} is not the file that fingerprint.json describes; fit the teacher again")
    try:
        with safe_open(str(path), framework="np") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
        stacked = np.stack([tensors[f"fold{fold}.embedding"] for fold in range(recipe.data.folds)])
        stored = _Stored(stacked, *(tensors[k] for k in ("subject", "trial", "valence_arousal", "held_out_fold")))
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    return recipe, fingerprint, scores, stored
