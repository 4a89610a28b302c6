"""All figures of a teacher run, on people that the teachers have not seen."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from ngd_timm.core.affect import cell_of
from ngd_timm.core.errors import InputError
from ngd_timm.core.teacher_recipe import TeacherRecipe
from ngd_timm.eeg.folds import align
from ngd_timm.eeg.scores import AXES, score_trials, trial_means
from ngd_timm.eeg.signal.bandpower import NORMALISATION, BandPower
from ngd_timm.eeg.teacher.baselines import logistic_regression, ridge_regression, trial_number
from ngd_timm.eeg.teacher.stability import split_half
from ngd_timm.grid.mantel import mantel_test
from ngd_timm.grid.prototypes import PrototypeGrid

__all__ = ["DECODERS", "GRID_SIZES", "scalp_means", "score_run", "summary_lines"]

logger = logging.getLogger("ngd_timm.eeg")

DECODERS = ("teacher", "ridge", "logistic_regression", "trial_number")
GRID_SIZES = (3, 5, 7)


def score_run(
    recipe: TeacherRecipe,
    data: BandPower,
    z: np.ndarray,
    fold_of: np.ndarray,
    embeddings: np.ndarray,
    predictions: np.ndarray,
) -> dict[str, Any]:
    """What goes into scores.json; a trial is the mean over its windows, by the teacher that has not seen it.

    Args:
        recipe: Folds, resamples, permutations, seed.
        data: N windows, all rated.
        z: (N, B, C) z-scored log power.
        fold_of: (N,) the fold in which each window is held out.
        embeddings: (F, N, D), each fold's teacher on every window.
        predictions: (F, N, 2), likewise.
    """
    target, subject, first = trial_means(data.valence_arousal, data.subject, data.trial)
    fold_of_trial = fold_of[first]
    prediction, decision = np.empty_like(target), np.empty_like(target)
    for fold in range(recipe.data.folds):
        by_trial, _, _ = trial_means(predictions[fold], data.subject, data.trial)
        own = fold_of_trial == fold
        prediction[own] = by_trial[own]
        # High or low is told from the middle of what this teacher says of its own training trials.
        decision[own] = by_trial[own] - by_trial[~own].mean(axis=0)

    by_number = trial_number(data, fold_of)
    shared = None if by_number is None else data.trial[first]

    def scored(
        decision: np.ndarray, prediction: np.ndarray | None = None, number: np.ndarray | None = shared
    ) -> dict[str, Any]:
        times = {"bootstrap": recipe.scores.bootstrap, "permutations": recipe.scores.permutations}
        return score_trials(decision, prediction, target, subject, **times, seed=recipe.seed, number=number)

    ridge, ridge_decision = ridge_regression(data, z, fold_of)
    scores: dict[str, Any] = {
        "dataset": data.dataset,
        "n": {"subjects": len(np.unique(subject)), "trials": len(target), "windows": len(data)},
        "protocol": (
            f"leave-subjects-out, {recipe.data.folds} folds; a trial is the mean over its windows; 95 % intervals over "
            f"subjects, chance and p by permuting ratings within subject; {NORMALISATION}"
        ),
        "teacher": scored(decision, prediction),
        "ridge": scored(ridge_decision, ridge),
        "logistic_regression": scored(logistic_regression(data, z, fold_of)),
    }
    if by_number is not None:
        scores["trial_number"] = scored(by_number, number=None)
    aligned, agreement = align(embeddings, fold_of)
    scores["grids"] = {}
    for size in GRID_SIZES:
        try:
            scores["grids"][str(size)] = _score_grid(recipe, data, aligned, size)
        except InputError as error:  # few people leave too few cells to compare; the scores above still hold
            scores.setdefault("grids_not_scored", {})[str(size)] = str(error)
            logger.warning("grid %dx%d is not scored: %s", size, size, error)
    scores["frame_agreement"] = [round(a, 4) for a in agreement]
    if data.simulated:
        scores["simulated"] = True
    return scores


def _score_grid(recipe: TeacherRecipe, data: BandPower, aligned: np.ndarray, size: int) -> dict[str, Any]:
    va, permutations, seed = data.valence_arousal, recipe.scores.permutations, recipe.seed
    grid = PrototypeGrid.build(aligned, va, data.subject, size)
    halves = split_half(aligned, va, data.subject, data.trial, size, permutations=min(permutations, 500), seed=seed)
    out: dict[str, Any] = {"filled": grid.filled, "cells": size * size, "mean_cosine": round(grid.mean_cosine, 4)}
    for key, center in (("mantel", False), ("mantel_centered", True)):
        found = mantel_test(aligned, va, data.subject, data.trial, size, permutations, seed, center=center)
        out[key] = {"r": round(found.r, 4), "p": round(found.p, 5), "permutations": found.permutations}
    out["stability"] = {
        "splits": halves.splits,
        "cells": round(halves.cells, 1),
        "cosine": {"value": round(halves.cosine, 4), "ci95": [round(v, 4) for v in halves.cosine_range]},
        "centered": {
            "value": round(halves.centered, 4),
            "ci95": [round(v, 4) for v in halves.centered_range],
            "chance": round(halves.chance, 4),
            "p": round(halves.p, 5),
        },
    }
    return out


def scalp_means(data: BandPower, z: np.ndarray, size: int = 5, min_subjects: int = 3) -> dict[str, np.ndarray]:
    """What the grid's cells and the two axes look like on the scalp: averages over people, for pictures.

    Args:
        data: N windows, all rated.
        z: (N, B, C) z-scored log power.
        size: S, cells along an axis.
        min_subjects: Cells of fewer people stay 0, for they would be a person's own.

    Returns:
        `z_mean` (S*S, B, C) a cell's mean z-score, subjects weighing equally; `windows` and `subjects` (S*S,) their
        counts; `slope` (2, B, C) the correlation of a trial's mean z-score with its valence and its arousal within a
        person, averaged over the people whose ratings vary; `slope_people` (2,) their number.
    """
    by_trial, subject, first = trial_means(z, data.subject, data.trial)
    va = data.valence_arousal[first]
    cells = cell_of(va, size)
    mean = np.zeros((size * size, *z.shape[1:]))
    people = np.zeros(size * size, dtype=np.int64)
    slope = np.zeros((len(AXES), *z.shape[1:]))
    slope_people = np.zeros(len(AXES), dtype=np.int64)
    for person in np.unique(subject):
        own = subject == person
        for cell in np.unique(cells[own]):
            mean[cell] += by_trial[own & (cells == cell)].mean(axis=0)
            people[cell] += 1
        centred = by_trial[own] - by_trial[own].mean(axis=0)
        rating = va[own] - va[own].mean(axis=0)
        for axis in range(len(AXES)):
            spread = np.sqrt((rating[:, axis] ** 2).sum() * (centred**2).sum(axis=0))
            if (spread > 0).all():
                slope[axis] += np.einsum("t,tbc->bc", rating[:, axis], centred) / spread
                slope_people[axis] += 1
    mean /= np.maximum(people, 1)[:, None, None]
    mean[people < min_subjects] = 0
    return {
        "z_mean": mean.astype(np.float32),
        "windows": np.bincount(cell_of(data.valence_arousal, size), minlength=size * size),
        "subjects": people,
        "slope": (slope / np.maximum(slope_people, 1)[:, None, None]).astype(np.float32),
        "slope_people": slope_people,
    }


def summary_lines(scores: dict[str, Any]) -> Iterator[str]:
    """A line a figure, for the log."""
    for who in DECODERS:
        for axis, metrics in scores.get(who, {}).items():
            for metric, f in metrics.items():
                yield (
                    f"{who.replace('_', ' ')}, {axis} {metric}: {f['value']:.3f} "
                    f"[{f['ci95'][0]:.3f}, {f['ci95'][1]:.3f}], chance {f['chance']:.3f}, p {f['p']:.4f}"
                )
    for size, grid in scores["grids"].items():
        mantel, halves = grid["mantel_centered"], grid["stability"]["centered"]
        yield (
            f"grid {size}x{size}: {grid['filled']} cells filled, mean cosine {grid['mean_cosine']:.3f}, "
            f"Mantel r, centred, {mantel['r']:.3f} (p {mantel['p']:.4f}), halves agree {halves['value']:.3f} "
            f"(chance {halves['chance']:.3f}, p {halves['p']:.4f})"
        )
