"""From a teacher run to the frozen grid: held-out embeddings in one frame, averaged over the plane."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ngd_timm.core.commands import public_fingerprint, shown_command
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import read_json, sha256_file
from ngd_timm.core.paths import without_paths
from ngd_timm.core.recipe import load_recipe
from ngd_timm.core.teacher_recipe import TeacherRecipe
from ngd_timm.core.version import __version__
from ngd_timm.eeg.folds import align
from ngd_timm.eeg.signal.bandpower import NORMALISATION
from ngd_timm.grid.mantel import mantel_test
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.grid.verdict import WHO

_FILES = ("recipe.yaml", "fingerprint.json", "scores.json", "embeddings.safetensors")


@dataclass(frozen=True)
class FittedTeacher:
    """The files of a teacher run."""

    recipe: TeacherRecipe
    fingerprint: dict[str, Any]
    scores: dict[str, Any]
    subject: np.ndarray  # (N,), as the next two
    trial: np.ndarray
    valence_arousal: np.ndarray
    aligned: np.ndarray  # (N, D) held-out embeddings in fold 0's frame
    agreement: list[float]  # of each fold's frame


def preview_grid(teacher: FittedTeacher, min_subjects: int = 3) -> PrototypeGrid | None:
    """The 5×5 grid of a teacher run without its Mantel test, for plots; None if it has fewer than two cells."""
    rows = (teacher.aligned, teacher.valence_arousal, teacher.subject)
    counts = PrototypeGrid.build(*rows).metadata["subjects_per_cell"].split(",")
    if sum(int(count) >= min_subjects for count in counts) < 2:
        return None
    return PrototypeGrid.build(*rows, min_subjects=min_subjects)


def build_grid(run: str | Path, size: int = 5, center: bool = False, min_subjects: int = 1) -> PrototypeGrid:
    """The prototype grid of a teacher run; its metadata say what it was built from, and the scores and Mantel tests."""
    teacher = read_teacher(Path(run))
    try:
        notes = _provenance(teacher)
    except KeyError as error:
        raise InputError(f"{run}: fingerprint.json or scores.json lacks {error}; fit the teacher again") from None
    notes |= _mantel_notes(teacher, size, min_subjects)
    notes |= {
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "built_with": f"ngd_timm {__version__}",
        "command": _commands(teacher, size, min_subjects, center),
    }
    return PrototypeGrid.build(
        teacher.aligned, teacher.valence_arousal, teacher.subject, size, min_subjects, center, notes
    )


def _provenance(teacher: FittedTeacher) -> dict[str, str]:
    recipe, scores = teacher.recipe, teacher.scores
    fingerprint = public_fingerprint(teacher.fingerprint)  # the grid is published, folders are not
    notes = {
        "dataset": fingerprint["dataset"],
        "data_sha256": fingerprint["data_sha256"],
        "subjects": str(len(np.unique(teacher.subject))),
        "trials": str(fingerprint["trials"]),
        "windows": str(len(teacher.subject)),
        "channels": ",".join(fingerprint["channels"]),
        "bands": ",".join(fingerprint["bands"]),
        "normalisation": NORMALISATION,
        "split": f"{recipe.data.folds} folds by subject, seed {recipe.seed}; every embedding is of a held-out subject",
        "frame": "teachers of the folds brought into fold 0's frame by orthogonal Procrustes on shared training data",
        "frame_agreement": ",".join(f"{a:.3f}" for a in teacher.agreement),
        "teacher": (
            f"{without_paths(recipe.teacher.backbone)} on {recipe.teacher.image_size} px maps, "
            f"{recipe.teacher.embedding_dim}-d embedding"
        ),
        "teacher_recipe_sha256": fingerprint["recipe_sha256"],
        "scores": json.dumps({key: scores[key] for key in WHO if key in scores}),
        "grids": json.dumps(scores["grids"]),
        "preprocessing": json.dumps(fingerprint["notes"]),
    }
    if support := fingerprint["support"]:
        subjects, windows = support["subjects"], support["windows"]
        notes["support"] = f"{support['dataset']}, {subjects} subjects, {windows} windows, unlabelled"
    if fingerprint["simulated"]:
        notes["simulated"] = "true"
    return notes


def _mantel_notes(teacher: FittedTeacher, size: int, min_subjects: int) -> dict[str, str]:
    permutations = teacher.recipe.scores.permutations
    rows = (teacher.aligned, teacher.valence_arousal, teacher.subject, teacher.trial)
    notes = {"mantel_permutations": str(permutations)}
    for suffix, center in (("", False), ("_centered", True)):
        test = mantel_test(*rows, size, permutations, teacher.recipe.seed, min_subjects=min_subjects, center=center)
        notes |= {f"mantel_r{suffix}": f"{test.r:.4f}", f"mantel_p{suffix}": f"{test.p:.4f}"}
    return notes


def _commands(teacher: FittedTeacher, size: int, min_subjects: int, center: bool) -> str:
    fit = shown_command(public_fingerprint(teacher.fingerprint), "ngd teacher fit recipe.yaml data.root=…")
    build = f"ngd prototypes build runs/{teacher.recipe.name}-{teacher.recipe.seed} --out grid.safetensors"
    build += f" --size {size}" * (size != 5) + f" --min-subjects {min_subjects}" * (min_subjects != 1)
    return f"{fit}\n{build}{' --center' * center}"


def read_teacher(run: Path, *others: str) -> FittedTeacher:
    """Read a teacher run, which must hold the other files too."""
    missing = [name for name in (*_FILES, *others) if not (run / name).is_file()]
    if missing:
        raise InputError(f"{run} is not a teacher run: no {', '.join(missing)}; make one with: ngd teacher fit RECIPE")
    recipe = load_recipe(TeacherRecipe, run / "recipe.yaml")
    fingerprint, scores = read_json(run / "fingerprint.json"), read_json(run / "scores.json")
    path = run / "embeddings.safetensors"
    if sha256_file(path) != fingerprint.get("embeddings_sha256"):
        raise InputError(f"{path} is not the file that fingerprint.json describes; fit the teacher again")
    try:
        tensors = load_file(path)
        embeddings = np.stack([tensors[f"fold{fold}.embedding"] for fold in range(recipe.data.folds)])
        subject, trial, va = tensors["subject"], tensors["trial"], tensors["valence_arousal"]
        aligned, agreement = align(embeddings, tensors["held_out_fold"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    return FittedTeacher(recipe, fingerprint, scores, subject, trial, va, aligned, agreement)
