"""Fit a teacher in folds by subject, score it on people it hasn't seen, and build the grid from their embeddings."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ngd_timm.affect import cell_of
from ngd_timm.eeg.bandpower import NORMALISATION, BandPower, log_power_z
from ngd_timm.eeg.baselines import logistic_regression, ridge_regression, trial_number
from ngd_timm.eeg.fitting import Trials, fit_one, group_trials, infer
from ngd_timm.eeg.folds import align, check_split, subject_folds
from ngd_timm.eeg.recipe import TeacherRecipe
from ngd_timm.eeg.scores import score_trials, trial_means
from ngd_timm.eeg.sources import load_eeg
from ngd_timm.eeg.stability import split_half
from ngd_timm.eeg.topomap import TopomapOperator
from ngd_timm.errors import InputError
from ngd_timm.files import atomic_folder, sha256_file, write_json, write_text
from ngd_timm.prototypes import PrototypeGrid, mantel_test
from ngd_timm.recipe import load_recipe, to_yaml
from ngd_timm.version import __version__

__all__ = ["GRID_SIZES", "build_grid", "fit_teacher", "preview_grid"]

logger = logging.getLogger("ngd_timm.eeg")

GRID_SIZES = (3, 5, 7)
_DECODERS = ("teacher", "ridge", "logistic_regression", "trial_number")
_PACKAGES = ("torch", "timm", "mne", "numpy", "scipy", "scikit-learn", "safetensors")


def fit_teacher(recipe: TeacherRecipe, out: Path | None = None) -> Path:
    """Fit one teacher a fold and write the run directory, whole or not at all.

    The directory holds `recipe.yaml`, `fingerprint.json`, `scores.json`, `report.html`, `cells.safetensors` (means over
    people, for pictures) and `embeddings.safetensors` (each teacher's embeddings of every rated window, with subjects:
    keep it where the recordings may be kept). See `build_grid`.

    Args:
        recipe: What to fit on what.
        out: The directory; None takes the recipe's `out`, or `runs/<name>-<seed>`.

    Returns:
        The directory.

    Raises:
        InputError: No data, a directory that isn't empty, a channel or backbone that isn't known.
    """
    run = Path(out or recipe.out or Path("runs") / f"{recipe.name}-{recipe.seed}")
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise InputError(f"{run} exists and is not empty; choose another out= or remove it")
    started = time.monotonic()
    everything, support = _load(recipe)
    operator = TopomapOperator(everything.channels, size=recipe.teacher.image_size)
    z_all = log_power_z(everything)
    rated = everything.rated
    data, z = everything.rows(rated), z_all[rated]
    unrated, z_unrated = everything.subject[~rated], z_all[~rated]
    fold_of = subject_folds(data.subject, recipe.data.folds, recipe.seed)
    for line in _opening(recipe, data, len(z_unrated), support):
        logger.info("%s", line)
    labels = torch.from_numpy(data.valence_arousal)
    embeddings, predictions, seconds = [], [], []
    with Progress(disable=not _terminal(), transient=True) as progress:
        bar = progress.add_task("teacher", total=recipe.data.folds * recipe.optim.epochs)
        for fold in range(recipe.data.folds):
            began = time.monotonic()
            train, held_out = fold_of != fold, fold_of == fold
            check_split(train, held_out, data.subject, data.trial, data.power)
            fitting = Trials(
                torch.from_numpy(z), [r for r in group_trials(data.subject, data.trial) if train[r[0]]], labels
            )
            pools = []
            if support is not None:
                pools.append(_unlabelled(log_power_z(support), support.subject, support.trial))
            # unrated trials of held-out people stay out: the teacher is to meet them for the first time
            known = ~np.isin(unrated, data.subject[held_out])
            if known.any():
                pools.append(_unlabelled(z_unrated[known], unrated[known], everything.trial[~rated][known]))
            teacher = fit_one(recipe, fitting, pools, operator, len(data.bands), fold, lambda: progress.advance(bar))
            embedding, prediction = infer(teacher, torch.from_numpy(z), operator)
            embeddings.append(embedding)
            predictions.append(prediction)
            seconds.append(time.monotonic() - began)
            logger.info("fold %d of %d: %.0f s", fold + 1, recipe.data.folds, seconds[-1])
    fitted = _Fitted(np.stack(embeddings), np.stack(predictions))
    scores = _score(recipe, data, z, fold_of, fitted)
    scores["seconds"] = {"fold": [round(s, 1) for s in seconds], "total": round(time.monotonic() - started, 1)}
    from ngd_timm.report import write_teacher_report

    with atomic_folder(run) as folder:
        write_text(folder / "recipe.yaml", to_yaml(recipe.model_copy(update={"out": str(run)})))
        write_json(folder / "scores.json", scores)
        _write_embeddings(folder / "embeddings.safetensors", data, fold_of, fitted)
        _save(folder / "cells.safetensors", _cells(data, z))
        write_json(folder / "fingerprint.json", _fingerprint(recipe, data, support, folder))
        write_teacher_report(folder)
    for line in _lines(scores):
        logger.info("%s", line)
    logger.info("report: %s", run / "report.html")
    return run


def preview_grid(run: str | Path) -> PrototypeGrid:
    """The 5×5 grid of a teacher run without its Mantel figures, for pictures."""
    _, _, _, stored = _read_run(Path(run))
    aligned, _ = align(stored.embeddings, stored.held_out_fold)
    return PrototypeGrid.build(aligned, stored.valence_arousal, stored.subject)


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
        InputError: A directory that isn't a complete teacher run, or whose embeddings were changed.
    """
    run = Path(run)
    recipe, fingerprint, scores, stored = _read_run(run)
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
            f"{recipe.teacher.backbone} on {recipe.teacher.image_size} px maps, "
            f"{recipe.teacher.embedding_dim}-d embedding"
        ),
        "teacher_recipe_sha256": fingerprint["recipe_sha256"],
        "scores": json.dumps({key: scores[key] for key in _DECODERS if key in scores}),
        "grids": json.dumps(scores["grids"]),
        "preprocessing": json.dumps(fingerprint["notes"]),
        "mantel_r": f"{plain.r:.4f}",
        "mantel_p": f"{plain.p:.4f}",
        "mantel_r_centered": f"{centred.r:.4f}",
        "mantel_p_centered": f"{centred.p:.4f}",
        "mantel_permutations": str(permutations),
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "built_with": f"ngd_timm {__version__}",
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
class _Fitted:
    embeddings: np.ndarray  # (F, N, D)
    predictions: np.ndarray  # (F, N, 2)


def _load(recipe: TeacherRecipe) -> tuple[BandPower, BandPower | None]:
    """The recordings, and the support set on the same electrodes and bands."""
    settings = recipe.data
    data = load_eeg(settings, settings.name, settings.root)
    if not data.rated.any():
        raise InputError(f"{data.dataset}: nobody rated anything; a teacher needs rated trials (unrated ones support)")
    if settings.support is None:
        return data, None
    if recipe.optim.consistency == 0:
        raise InputError(
            "data.support is used by optim.consistency only, which is 0; raise it or leave data.support out"
        )
    wanted = settings.model_copy(update={"channels": data.channels, "bands": data.bands})
    support = load_eeg(wanted, settings.support.name, settings.support.root)
    if np.isin(_row_keys(support.power), _row_keys(data.power)).any():
        raise InputError("data.support holds windows of data.root itself; held-out people would be trained on")
    return data, support


def _row_keys(power: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(power).reshape(len(power), -1).view(f"V{power[0].nbytes}").ravel()


def _unlabelled(z: np.ndarray, subject: np.ndarray, trial: np.ndarray) -> Trials:
    return Trials(torch.from_numpy(z), group_trials(subject, trial), torch.empty(0, 2))


def _opening(recipe: TeacherRecipe, data: BandPower, unrated: int, support: BandPower | None) -> Iterator[str]:
    def size(of: BandPower) -> str:
        return (
            f"{len(of)} windows, {len(group_trials(of.subject, of.trial))} trials, {len(np.unique(of.subject))} people"
        )

    yield (
        f"{data.dataset}: {size(data)}, {len(data.bands)} bands, {len(data.channels)} channels, "
        f"{recipe.data.folds} folds by subject"
    )
    if unrated:
        yield f"unrated: {unrated} windows" + ("" if recipe.optim.consistency else ", unused (optim.consistency is 0)")
    if support is not None:
        yield f"support, without its ratings: {support.dataset}: {size(support)}"


def _score(
    recipe: TeacherRecipe, data: BandPower, z: np.ndarray, fold_of: np.ndarray, fitted: _Fitted
) -> dict[str, Any]:
    """All figures of the run; a trial's prediction is the mean over its windows, by the teacher that hasn't seen it."""
    target, subject, first = trial_means(data.valence_arousal, data.subject, data.trial)
    fold_of_trial = fold_of[first]
    prediction, decision = np.empty_like(target), np.empty_like(target)
    for fold in range(recipe.data.folds):
        by_trial, _, _ = trial_means(fitted.predictions[fold], data.subject, data.trial)
        own = fold_of_trial == fold
        prediction[own] = by_trial[own]
        # High or low is told from the middle of what this teacher says of its own training trials.
        decision[own] = by_trial[own] - by_trial[~own].mean(axis=0)

    def scored(decision: np.ndarray, prediction: np.ndarray | None = None) -> dict[str, Any]:
        times = recipe.scores
        return score_trials(
            decision,
            prediction,
            target,
            subject,
            bootstrap=times.bootstrap,
            permutations=times.permutations,
            seed=recipe.seed,
        )

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
    by_number = trial_number(data, fold_of)
    if by_number is not None:
        scores["trial_number"] = scored(by_number)
    aligned, agreement = align(fitted.embeddings, fold_of)
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


def _cells(data: BandPower, z: np.ndarray, size: int = 5) -> dict[str, np.ndarray]:
    """What the grid's cells and the two axes look like on the scalp: aggregates over people, for pictures."""
    by_trial, subject, first = trial_means(z, data.subject, data.trial)
    va = data.valence_arousal[first]
    cells = cell_of(va, size)
    mean = np.zeros((size * size, *z.shape[1:]))
    people = np.zeros(size * size, dtype=np.int64)
    slopes = []
    for person in np.unique(subject):
        own = subject == person
        for cell in np.unique(cells[own]):
            mean[cell] += by_trial[own & (cells == cell)].mean(axis=0)
            people[cell] += 1
        centred = by_trial[own] - by_trial[own].mean(axis=0)
        rating = va[own] - va[own].mean(axis=0)
        spread = np.sqrt((rating**2).sum(axis=0)[:, None, None] * (centred**2).sum(axis=0))
        if (spread > 0).all():  # someone who gave one rating throughout has no correlation
            slopes.append(np.einsum("ta,tbc->abc", rating, centred) / spread)
    mean /= np.maximum(people, 1)[:, None, None]
    slope = np.mean(slopes, axis=0) if slopes else np.zeros((2, *z.shape[1:]))
    return {
        "z_mean": mean.astype(np.float32),
        "windows": np.bincount(cell_of(data.valence_arousal, size), minlength=size * size),
        "subjects": people,
        "slope": slope.astype(np.float32),
    }


def _write_embeddings(path: Path, data: BandPower, fold_of: np.ndarray, fitted: _Fitted) -> None:
    tensors = {
        "subject": data.subject,
        "trial": data.trial,
        "window": data.window,
        "valence_arousal": data.valence_arousal,
        "held_out_fold": fold_of,
    }
    for fold, (embedding, prediction) in enumerate(zip(fitted.embeddings, fitted.predictions, strict=True)):
        tensors[f"fold{fold}.embedding"] = embedding.astype(np.float32)
        tensors[f"fold{fold}.valence_arousal"] = prediction.astype(np.float32)
    _save(path, tensors)


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    save_file({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}, str(path))


def _fingerprint(recipe: TeacherRecipe, data: BandPower, support: BandPower | None, folder: Path) -> dict[str, Any]:
    # Where the data lie and where the run goes don't change what comes out.
    elsewhere: dict[str, Any] = {"out": True, "device": True, "data": {"root": True, "cache": True, "support": {"root"}}}
    settings = recipe.model_dump(mode="json", exclude=elsewhere)
    return {
        "dataset": data.dataset,
        "simulated": data.simulated,
        "data_sha256": data.sha256,
        "channels": list(data.channels),
        "bands": list(data.bands),
        "notes": dict(data.notes),
        "trials": len(group_trials(data.subject, data.trial)),
        "support": None
        if support is None
        else {
            "dataset": support.dataset,
            "sha256": support.sha256,
            "subjects": len(np.unique(support.subject)),
            "windows": len(support),
            "notes": dict(support.notes),
        },
        "recipe_sha256": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "embeddings_sha256": sha256_file(folder / "embeddings.safetensors"),
        "seed": recipe.seed,
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES} | {"ngd_timm": __version__},
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class _Stored:
    embeddings: np.ndarray  # (F, N, D)
    subject: np.ndarray
    trial: np.ndarray
    valence_arousal: np.ndarray
    held_out_fold: np.ndarray


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


def _lines(scores: dict[str, Any]) -> Iterator[str]:
    for who in _DECODERS:
        for axis, metrics in scores.get(who, {}).items():
            for metric, f in metrics.items():
                yield (
                    f"{who.replace('_', ' ')}, {axis} {metric}: {f['value']:.3f} "
                    f"[{f['ci95'][0]:.3f}, {f['ci95'][1]:.3f}], chance {f['chance']:.3f}, p {f['p']:.4f}"
                )
    for size, grid in scores["grids"].items():
        mantel, halves = grid["mantel"], grid["stability"]["centered"]
        yield (
            f"grid {size}x{size}: {grid['filled']} cells filled, mean cosine {grid['mean_cosine']:.3f}, "
            f"Mantel r {mantel['r']:.3f} (p {mantel['p']:.4f}), halves agree {halves['value']:.3f} "
            f"(chance {halves['chance']:.3f}, p {halves['p']:.4f})"
        )


def _terminal() -> bool:
    from rich.console import Console

    return Console().is_terminal
