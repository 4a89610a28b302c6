"""All scores of a teacher run, on subjects or stimuli that the teachers have not seen."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from ngd_timm.core.affect import AXES, cell_of
from ngd_timm.core.errors import InputError
from ngd_timm.core.teacher_recipe import TeacherRecipe
from ngd_timm.eeg.folds import FOLDS_BY, align, cells, fold_windows, held_out_rows, shared_stimuli
from ngd_timm.eeg.scores import score_trials, trial_means
from ngd_timm.eeg.signal.bandpower import NORMALISATION, SET, BandPower
from ngd_timm.eeg.teacher.baselines import logistic_regression, ridge_regression, trial_number
from ngd_timm.eeg.teacher.stability import split_half
from ngd_timm.grid.averages import trial_index
from ngd_timm.grid.mantel import HeldOut, mantel_test
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.grid.verdict import score_rows

logger = logging.getLogger("ngd_timm.eeg")

_GRID_SIZES = (3, 5, 7)
_LEFT_OUT = {"subject": "subjects", "stimulus": "stimuli", "both": "subjects and stimuli"}


def score_run(
    recipe: TeacherRecipe,
    data: BandPower,
    z: np.ndarray,
    held_out_fold: np.ndarray,
    embeddings: np.ndarray,
    predictions: np.ndarray,
) -> dict[str, Any]:
    """The content of scores.json; `embeddings` (F, N, D) and `predictions` (F, N, 2) are of N rated windows."""
    target, subject, _ = trial_means(data.valence_arousal, data.subject, data.trial)
    prediction, decision = _held_out_trials(data, held_out_fold, predictions)
    by, controls = recipe.data.folds_by, _controls(data, held_out_fold)
    score = _scorer(recipe, data, held_out_fold, by, controls)
    ridge, ridge_decision = ridge_regression(data, z, held_out_fold, by)
    permuted = "within subject" if by == "subject" else "within folds, of stimuli the means"
    scores: dict[str, Any] = {
        "dataset": data.dataset,
        "n": {"subjects": len(np.unique(subject)), "trials": len(target), "windows": len(data)},
        "protocol": (
            f"leave-{_LEFT_OUT[by].replace(' ', '-')}-out, {recipe.data.folds} folds; a trial is the mean over its "
            f"windows; 95 % intervals over subjects, chance and p by permuting ratings {permuted}; {NORMALISATION}"
        ),
        "folds_by": by,
        "kind": recipe.teacher.kind,
        "teacher": score(decision, prediction),
        "ridge": score(ridge_decision, ridge),
        "logistic_regression": score(logistic_regression(data, z, held_out_fold), None),
    }
    for number, name in enumerate(data.sets, start=1):
        own = subject // SET == number
        if ((target[own] > 0).all(axis=0) | (target[own] <= 0).all(axis=0)).any():
            logger.warning("%s: all trials on one side of the middle of a scale, so it has no scores of its own", name)
            continue
        part = partial(score, target=target[own], subject=subject[own], number=None, **_rows_of(score, own))
        scores.setdefault("sets", {})[name] = {"teacher": part(decision[own], prediction[own])}
    scores |= _score_controls(score, controls)
    aligned, agreement = align(embeddings, held_out_fold)
    held_out = None if by == "subject" or data.stimulus is None else HeldOut(data.stimulus, held_out_fold)
    scores["grids"] = {}
    for size in _GRID_SIZES:
        try:
            scores["grids"][str(size)] = _score_grid(recipe, data, aligned, size, held_out)
        except InputError as error:  # few subjects leave too few cells to compare; the scores above still hold
            scores.setdefault("grids_not_scored", {})[str(size)] = str(error)
            logger.warning("grid %dx%d is not scored: %s", size, size, error)
    scores["frame_agreement"] = [round(a, 4) for a in agreement]
    if data.simulated:
        scores["simulated"] = True
    return scores


def ridge_in_other_folds(recipe: TeacherRecipe, data: BandPower, z: np.ndarray) -> dict[str, Any]:
    """`folds` of scores.json: the ridge's scores in the folds that no teacher is fitted in, and the controls there.

    `folds_not_scored` says why some are left out, `stimuli_of_one_subject` which stimuli are left to subject folds.
    """
    out: dict[str, Any] = {"folds": {}}
    if data.stimulus is not None and (data.stimulus != "").all():
        alone = sorted(set(data.stimulus.tolist()) - set(shared_stimuli(data.stimulus, data.subject)))
        if alone:
            out["stimuli_of_one_subject"] = alone
            logger.warning("met by one subject only, and left to folds by subject: stimulus %s", ", ".join(alone[:10]))
    for by in FOLDS_BY:
        if by == recipe.data.folds_by:
            continue
        try:
            fold = fold_windows(data, by, recipe.data.folds, recipe.seed)
            out["folds"][by] = _score_ridge(recipe, data, z, fold, by)
        except InputError as error:  # the recipe's own folds can be scored nevertheless
            out.setdefault("folds_not_scored", {})[by] = str(error)
            logger.info("not scored in folds by %s: %s", by, error)
    return out


def _score_ridge(recipe: TeacherRecipe, data: BandPower, z: np.ndarray, fold: np.ndarray, by: str) -> dict[str, Any]:
    own = held_out_rows(fold)
    data, z, fold = data.rows(own), z[own], fold[own]
    high = data.valence_arousal > 0
    if (high.all(axis=0) | ~high.any(axis=0)).any():
        raise InputError("all trials that can be held out are on one side of the middle of a scale")
    controls = _controls(data, fold)
    score = _scorer(recipe, data, fold, by, controls)
    prediction, decision = ridge_regression(data, z, fold, by)
    return {"ridge": score(decision, prediction), **_score_controls(score, controls)}


def _controls(data: BandPower, fold: np.ndarray) -> dict[str, np.ndarray]:
    """Decisions (T, 2) without any EEG, of those that are known: from the trial's number and from the stimulus."""
    known = data.stimulus is not None and (data.stimulus != "").all()
    decisions = {
        "trial_number": trial_number(data, fold),
        "stimulus_alone": trial_number(data, fold, data.stimulus) if known else None,
    }
    return {who: decision for who, decision in decisions.items() if decision is not None}


def _scorer(
    recipe: TeacherRecipe, data: BandPower, fold: np.ndarray, by: str, controls: Mapping[str, np.ndarray]
) -> partial[dict[str, Any]]:
    target, subject, first = trial_means(data.valence_arousal, data.subject, data.trial)
    return partial(
        score_trials,
        target=target,
        subject=subject,
        bootstrap=recipe.scores.bootstrap,
        permutations=recipe.scores.permutations,
        seed=recipe.seed,
        number=data.trial[first] if "trial_number" in controls else None,
        stimulus=None if data.stimulus is None or "" in data.stimulus[first] else data.stimulus[first],
        fold=None if by == "subject" else fold[first],
    )


def _rows_of(score: partial[dict[str, Any]], own: np.ndarray) -> dict[str, Any]:
    """Stimulus and fold of some trials, where they are known."""
    return {key: score.keywords[key][own] for key in ("stimulus", "fold") if score.keywords[key] is not None}


def _score_controls(score: partial[dict[str, Any]], controls: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A control orders nothing among the trials of one name, so that it isn't scored there."""
    plain = {"number": None} if score.keywords["fold"] is not None else {"number": None, "stimulus": None}
    return {who: score(decision, None, **plain) for who, decision in controls.items()}


def _held_out_trials(
    data: BandPower, held_out_fold: np.ndarray, predictions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(T, 2) predictions of the teachers that have not seen the trials, and (T, 2) decisions, above 0 for high."""
    trial_fold = held_out_fold[trial_index(data.subject, data.trial)[0]]
    prediction, decision = np.empty((2, len(trial_fold), len(AXES)))
    for by_window, (own, seen) in zip(predictions, cells(trial_fold), strict=True):
        by_trial, _, _ = trial_means(by_window, data.subject, data.trial)
        prediction[own] = by_trial[own].clip(-1, 1)  # a ridge may go further
        # high or low: against this teacher's mean prediction of its own training trials
        decision[own] = by_trial[own] - by_trial[seen].mean(axis=0)
    return prediction, decision


def _score_grid(
    recipe: TeacherRecipe, data: BandPower, aligned: np.ndarray, size: int, held_out: HeldOut | None
) -> dict[str, Any]:
    rows = (aligned, data.valence_arousal, data.subject, data.trial)
    common: dict[str, Any] = {"seed": recipe.seed, "held_out": held_out}
    grid = PrototypeGrid.build(*rows[:3], size)
    out: dict[str, Any] = {"filled": grid.filled, "cells": size * size, "mean_cosine": round(grid.mean_cosine, 4)}
    for key, center in (("mantel", False), ("mantel_centered", True)):
        test = mantel_test(*rows, size, recipe.scores.permutations, center=center, **common)
        out[key] = {"r": round(test.r, 4), "p": round(test.p, 5), "permutations": test.permutations}
    out["stability"] = split_half(*rows, size, permutations=min(recipe.scores.permutations, 500), **common)
    return out


def scalp_means(data: BandPower, z: np.ndarray, size: int = 5, min_subjects: int = 3) -> dict[str, np.ndarray]:
    """The grid's cells and the two axes on the scalp, averaged over subjects.

    `z_mean` (S*S, B, C) is a cell's mean z-score, 0 for fewer than `min_subjects`; `slope` (2, B, C) the correlation of
    a trial's mean z-score with its rating within a subject.
    """
    by_trial, subject, first = trial_means(z, data.subject, data.trial)
    va = data.valence_arousal[first]
    cells = cell_of(va, size)
    mean, slope = np.zeros((size * size, *z.shape[1:])), np.zeros((len(AXES), *z.shape[1:]))
    subjects, slope_subjects = np.zeros(size * size, dtype=np.int64), np.zeros(len(AXES), dtype=np.int64)
    for number in np.unique(subject):
        own = subject == number
        for cell in np.unique(cells[own]):
            mean[cell] += by_trial[own & (cells == cell)].mean(axis=0)
            subjects[cell] += 1
        centred = by_trial[own] - by_trial[own].mean(axis=0)
        rating = va[own] - va[own].mean(axis=0)
        for axis in range(len(AXES)):
            norm = np.sqrt((rating[:, axis] ** 2).sum() * (centred**2).sum(axis=0))
            if (norm > 0).all():
                slope[axis] += np.einsum("t,tbc->bc", rating[:, axis], centred) / norm
                slope_subjects[axis] += 1
    mean /= np.maximum(subjects, 1)[:, None, None]
    mean[subjects < min_subjects] = 0
    return {
        "z_mean": mean.astype(np.float32),
        "windows": np.bincount(cell_of(data.valence_arousal, size), minlength=size * size),
        "subjects": subjects,
        "slope": (slope / np.maximum(slope_subjects, 1)[:, None, None]).astype(np.float32),
        "slope_people": slope_subjects,
    }


def log_scores(scores: dict[str, Any]) -> None:
    """One line a score."""
    for row in score_rows(scores):
        logger.info(
            f"{row['who'].replace('_', ' ')}, {row['axis']} {row['metric']}: {row['value']:.3f} "
            f"[{row['ci95'][0]:.3f}, {row['ci95'][1]:.3f}], chance {row['chance']:.3f}, p {row['p']:.4f}"
        )
    for by, others in scores.get("folds", {}).items():
        for row in score_rows({"ridge": others["ridge"]}):
            logger.info(
                f"ridge held out by {by}, {row['axis']} {row['metric']}: {row['value']:.3f}, chance "
                f"{row['chance']:.3f}, p {row['p']:.4f}"
            )
    for size, grid in scores["grids"].items():
        mantel, halves = grid["mantel_centered"], grid["stability"]["centered"]
        logger.info(
            f"grid {size}x{size}: {grid['filled']} cells filled, mean cosine {grid['mean_cosine']:.3f}, "
            f"Mantel r, centred, {mantel['r']:.3f} (p {mantel['p']:.4f}), halves agree {halves['value']:.3f} "
            f"(chance {halves['chance']:.3f}, p {halves['p']:.4f})"
        )
