"""A teacher run read back, every file of it checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ngd_timm.core.citations import dataset_name
from ngd_timm.core.errors import InputError, one_line
from ngd_timm.core.files import sha256_file
from ngd_timm.core.recipe import load_recipe
from ngd_timm.core.schema import Amount, Count, by_key, listed, read_checked, record
from ngd_timm.core.teacher_recipe import TeacherRecipe
from ngd_timm.eeg.folds import align, cells
from ngd_timm.eeg.signal.bandpower import SET
from ngd_timm.grid.mantel import HeldOut
from ngd_timm.grid.metadata import GRIDS, SCORES_NEEDED, SCORES_OPTIONAL, SIZE, Unit
from ngd_timm.grid.verdict import FOLDS

_FILES = ("recipe.yaml", "fingerprint.json", "scores.json", "embeddings.safetensors")
_AGAIN = "fit the teacher again"

_SUPPORT = record({"dataset": str, "subjects": Count, "windows": Count}, {"notes": dict[str, Any]})
_NAMED: dict[str, Any] = dict.fromkeys(("dataset", "data_sha256", "recipe_sha256", "embeddings_sha256"), str)
_NAMED |= {"simulated": bool, "channels": listed(str, 1), "bands": listed(str, 1), "notes": dict, "trials": Count}
_FINGERPRINT = record(_NAMED, {"sets": listed(str), "support": _SUPPORT | None, "command": list[str] | None})
_NEEDED = {**SCORES_NEEDED, "dataset": str, "protocol": str, "grids": GRIDS}
_NEEDED |= {"n": by_key(Count, ("subjects", "trials", "windows"), 3)}
_NEEDED |= {"seconds": record({"fold": listed(Amount, 1), "total": Amount})}
_OPTIONAL = {
    **SCORES_OPTIONAL,
    "frame_agreement": listed(Unit),
    "simulated": bool,
    "stimuli_of_one_subject": listed(str),
}
_OPTIONAL |= {"folds_not_scored": by_key(str, tuple(FOLDS)), "grids_not_scored": by_key(str, SIZE)}
_SCORES = record(_NEEDED, _OPTIONAL)


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
    held_out: HeldOut | None  # where stimuli are

    @property
    def set_names(self) -> list[str]:
        """A description of each rated set."""
        return self.fingerprint.get("sets") or [self.fingerprint["dataset"]]

    @property
    def set_number(self) -> np.ndarray:
        """(N,) the place in `set_names` of each row's set."""
        return self.subject // SET - 1 if self.fingerprint.get("sets") else np.zeros_like(self.subject)

    @property
    def ratings(self) -> list[tuple[str, set[tuple[float, ...]]]]:
        """Each set's name, and the subject, number and rating of its trials."""
        rows = np.column_stack([self.set_number, self.subject % SET, self.trial % SET, self.valence_arousal])
        trials = np.unique(rows, axis=0).tolist()
        names = map(dataset_name, self.set_names)
        return [(name, {tuple(row[1:]) for row in trials if row[0] == k}) for k, name in enumerate(names)]


def read_teacher(run: Path, *others: str) -> FittedTeacher:
    """Read a teacher run, which must hold the other files too."""
    missing = [name for name in (*_FILES, *others) if not (run / name).is_file()]
    if missing:
        raise InputError(f"{run} is not a teacher run: no {', '.join(missing)}; make one with: ngd teacher fit RECIPE")
    recipe = load_recipe(TeacherRecipe, run / "recipe.yaml")
    fingerprint = read_checked(_FINGERPRINT, run / "fingerprint.json", fix=_AGAIN)
    scores = read_checked(_SCORES, run / "scores.json", fix=_AGAIN)
    path = run / "embeddings.safetensors"
    if sha256_file(path) != fingerprint["embeddings_sha256"]:
        raise InputError(f"{path} is not the file that fingerprint.json describes; {_AGAIN}")
    try:
        tensors = load_file(path)
        held_out, rated = tensors["held_out_fold"], tensors["valence_arousal"]
        subject, trial = tensors["subject"], tensors["trial"]
        n, whole = len(subject), all(part.dtype == np.int64 for part in (subject, trial, held_out))
        whole &= subject.shape == trial.shape == (n,) and rated.shape == (n, 2) and bool((np.abs(rated) <= 1).all())
        stimuli = None if recipe.data.folds_by == "subject" else HeldOut(tensors["stimulus"], held_out)
        whole &= stimuli is None or (stimuli.stimulus.shape == (n,) and stimuli.stimulus.dtype == np.int64)
        if not whole or len(held_out) != n or held_out.ndim > 2 or (held_out < 0).any():
            raise ValueError("subject, trial, stimulus, held_out_fold and valence_arousal don't fit together")
        embeddings = np.stack([tensors[f"fold{fold}.embedding"] for fold, _ in enumerate(cells(held_out))])
        if embeddings.ndim != 3 or embeddings.shape[1] != n or embeddings.dtype.kind != "f":
            raise ValueError(f"embeddings are not of {n} windows")
        aligned, agreement = align(embeddings, held_out)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: {one_line(error)}; {_AGAIN}") from None
    return FittedTeacher(recipe, fingerprint, scores, subject, trial, rated, aligned, agreement, stimuli)
