"""Fit a teacher in folds by subject, score it on people it hasn't seen, and write the run directory."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from safetensors.torch import save_file
from timm.optim import list_optimizers

from ngd_timm.core.devices import open_device
from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.files import atomic_files, check_place, remove_leftovers, sha256_file, write_json, write_text
from ngd_timm.core.lock import is_unused, locked
from ngd_timm.core.recipe import to_yaml
from ngd_timm.core.teacher_recipe import TeacherRecipe
from ngd_timm.core.version import __version__
from ngd_timm.eeg.folds import check_split, subject_folds
from ngd_timm.eeg.readers.sources import load_eeg
from ngd_timm.eeg.scores import AXES
from ngd_timm.eeg.signal.bandpower import BandPower, log_power_z
from ngd_timm.eeg.teacher.fitting import Trials, fit_one, group_trials, infer
from ngd_timm.eeg.teacher.held_out import scalp_means, score_run, summary_lines
from ngd_timm.eeg.teacher.model import AffectTeacher
from ngd_timm.eeg.topomap import TopomapOperator

__all__ = ["fit_teacher"]

logger = logging.getLogger("ngd_timm.eeg")

_PACKAGES = ("torch", "timm", "mne", "numpy", "scipy", "scikit-learn", "safetensors")


def fit_teacher(recipe: TeacherRecipe, out: Path | None = None, command: Sequence[str] | None = None) -> Path:
    """Fit one teacher a fold and write the run directory, whole or not at all.

    The directory holds `recipe.yaml`, `fingerprint.json`, `scores.json`, `cells.safetensors` (means over
    people, for pictures), `embeddings.safetensors` (each teacher's embeddings of every rated window, with subjects:
    keep it where the recordings may be kept) and `lock` (empty; held while a process fits). See
    `ngd_timm.eeg.teacher.consolidate.build_grid`.

    Args:
        recipe: What to fit on what.
        out: The directory; None takes the recipe's `out`, or `runs/<name>-<seed>`.
        command: The command line that started the run, for its fingerprint.

    Returns:
        The directory.

    Raises:
        InputError: No data, a directory that isn't empty, can't be written or is another process's, a channel or
            backbone that isn't known.
    """
    run = Path(out or recipe.out or Path("runs") / f"{recipe.name}-{recipe.seed}")
    _refuse_used(run)
    check_place(run / "scores.json")
    _check_settings(recipe)
    started = time.monotonic()
    everything = _load(recipe)
    operator = TopomapOperator(everything.channels, size=recipe.teacher.image_size)
    z_all, rated = log_power_z(everything), everything.rated
    support, z_support = _load_support(recipe, everything, z_all)
    data, z = everything.rows(rated), z_all[rated]
    fold_of = subject_folds(data.subject, recipe.data.folds, recipe.seed)
    _check_sides(data, fold_of)
    # an unrated window belongs to its person's fold; people who rated nothing are never held out
    fold_of_person = dict(zip(data.subject.tolist(), fold_of.tolist(), strict=True))
    fold_of_all = np.array([fold_of_person.get(person, -1) for person in everything.subject.tolist()])
    for fold in range(recipe.data.folds):
        held_out = fold_of_all == fold
        check_split(~held_out, held_out, everything.subject, everything.trial, everything.power)
    if recipe.optim.consistency > 0 and rated.all() and support is None:
        raise InputError(
            "optim.consistency is above 0, and there is nothing unlabelled to agree on: every trial is rated, and "
            "data.support is not set; set it, or optim.consistency=0"
        )
    _check_backbone(recipe, len(data.bands))
    with locked(run):
        _refuse_used(run)  # another may have begun it since
        remove_leftovers(run)
        for line in _opening(recipe, data, int((~rated).sum()), support):
            logger.info("%s", line)
        beside = [] if support is None else [_unlabelled(support, z_support)]
        stacked, predicted, seconds = _fit_folds(recipe, everything, z_all, fold_of_all, beside, operator)
        scores = score_run(recipe, data, z, fold_of, stacked, predicted)
        scores["seconds"] = {"fold": [round(s, 1) for s in seconds], "total": round(time.monotonic() - started, 1)}
        with atomic_files(run) as folder:
            write_text(folder / "recipe.yaml", to_yaml(recipe.model_copy(update={"out": str(run)})))
            write_json(folder / "scores.json", scores)
            _write_embeddings(folder / "embeddings.safetensors", data, fold_of, stacked, predicted)
            _save(folder / "cells.safetensors", scalp_means(data, z))
            fingerprint = {**_fingerprint(recipe, data, support, folder), "command": command}
            write_json(folder / "fingerprint.json", fingerprint)
        for line in summary_lines(scores):
            logger.info("%s", line)
    return run


def _fit_folds(
    recipe: TeacherRecipe,
    everything: BandPower,
    z_all: np.ndarray,
    fold_of_all: np.ndarray,
    beside: list[Trials],
    operator: TopomapOperator,
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Each fold's teacher on every rated window: embeddings (F, N, D), predictions (F, N, 2); and each fold's seconds.

    Args:
        recipe: Folds and how they are fitted.
        everything: Rated and unrated windows, M of them.
        z_all: (M, B, C) their z-scores.
        fold_of_all: (M,) the fold in which each is held out; -1: in none.
        beside: The support set, if there is one.
        operator: Maps of the channels.
    """
    rated = everything.rated
    data, z = everything.rows(rated), torch.from_numpy(z_all[rated])
    fold_of, labels = fold_of_all[rated], torch.from_numpy(data.valence_arousal)
    trials = group_trials(data.subject, data.trial)
    embeddings, predictions, seconds = [], [], []
    with Progress(disable=not _terminal(), transient=True) as progress:
        bar = progress.add_task("teacher", total=recipe.data.folds * recipe.optim.epochs)
        for fold in range(recipe.data.folds):
            began = time.monotonic()
            fitting = Trials(z, [rows for rows in trials if fold_of[rows[0]] != fold], labels)
            unrated = (fold_of_all != fold) & ~rated
            pools = [*beside, _unlabelled(everything.rows(unrated), z_all[unrated])] if unrated.any() else beside
            teacher = fit_one(recipe, fitting, pools, operator, len(data.bands), fold, lambda: progress.advance(bar))
            embedding, prediction = infer(teacher, z, operator)
            embeddings.append(embedding)
            predictions.append(prediction)
            seconds.append(time.monotonic() - began)
            logger.info("fold %d of %d: %.0f s", fold + 1, recipe.data.folds, seconds[-1])
    return np.stack(embeddings), np.stack(predictions), seconds


def _refuse_used(run: Path) -> None:
    if not is_unused(run):
        raise InputError(f"{run} exists and is not empty; choose another out= or remove it")


def _load(recipe: TeacherRecipe) -> BandPower:
    data = load_eeg(recipe.data, recipe.data.name, recipe.data.root)
    if not data.rated.any():
        raise InputError(f"{data.dataset}: nobody rated anything; a teacher needs rated trials (unrated ones support)")
    return data


def _load_support(recipe: TeacherRecipe, data: BandPower, z: np.ndarray) -> tuple[BandPower | None, np.ndarray]:
    """The support set on the same electrodes and bands, and its z-scores."""
    settings = recipe.data
    if settings.support is None:
        return None, z[:0]
    if recipe.optim.consistency == 0:
        raise InputError(
            "data.support is used by optim.consistency only, which is 0; raise it or leave data.support out"
        )
    wanted = settings.model_copy(update={"channels": data.channels, "bands": data.bands})
    support = load_eeg(wanted, settings.support.name, settings.support.root)
    z_support = log_power_z(support)
    # z-scores, so that another unit doesn't hide a copy; another filter or window would
    if np.isin(_row_keys(z_support), _row_keys(z)).any():
        raise InputError("data.support holds windows of data.root itself; held-out people would be trained on")
    return support, z_support


def _row_keys(z: np.ndarray) -> np.ndarray:
    rounded = np.ascontiguousarray(z.reshape(len(z), -1).round(2).astype(np.float32) + 0.0)
    return rounded.view(f"V{rounded[0].nbytes}").ravel()


def _unlabelled(data: BandPower, z: np.ndarray) -> Trials:
    return Trials(torch.from_numpy(z), group_trials(data.subject, data.trial), torch.empty(0, 2))


def _check_settings(recipe: TeacherRecipe) -> None:
    open_device(recipe.device)
    if recipe.optim.opt not in list_optimizers():
        raise choices("optim.opt", recipe.optim.opt, list_optimizers())


def _check_backbone(recipe: TeacherRecipe, bands: int) -> None:
    model = recipe.teacher
    with torch.random.fork_rng(devices=[]):
        AffectTeacher(model.backbone, bands, model.embedding_dim, model.image_size, model.drop_rate)


def _check_sides(data: BandPower, fold_of: np.ndarray) -> None:
    """High against low is scored in the end, and a fold that can't be is better known before an hour of fitting."""
    for axis, name in enumerate(AXES):
        high = data.valence_arousal[:, axis] > 0
        for fold in np.unique(fold_of):
            if len(np.unique(high[fold_of != fold])) < 2:
                raise InputError(
                    f"{name}: in fold {fold} every training trial is on one side of the middle of the scale; use fewer "
                    "folds, another seed or more people"
                )


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


def _write_embeddings(
    path: Path, data: BandPower, fold_of: np.ndarray, embeddings: np.ndarray, predictions: np.ndarray
) -> None:
    tensors = {
        "subject": data.subject,
        "trial": data.trial,
        "window": data.window,
        "valence_arousal": data.valence_arousal,
        "held_out_fold": fold_of,
    }
    for fold, (embedding, prediction) in enumerate(zip(embeddings, predictions, strict=True)):
        tensors[f"fold{fold}.embedding"] = embedding.astype(np.float32)
        tensors[f"fold{fold}.valence_arousal"] = prediction.astype(np.float32)
    _save(path, tensors)


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    save_file({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}, str(path))


def _fingerprint(recipe: TeacherRecipe, data: BandPower, support: BandPower | None, folder: Path) -> dict[str, Any]:
    # Where the data lie and where the run goes don't change what comes out.
    elsewhere: dict[str, Any] = {
        "out": True,
        "device": True,
        "data": {"root": True, "cache": True, "support": {"root"}},
    }
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


def _terminal() -> bool:
    from rich.console import Console

    return Console().is_terminal
