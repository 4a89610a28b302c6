"""Fit a teacher in folds: recordings, band power, maps, a teacher a fold, held-out embeddings and scores."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, cpu_count, delayed
from rich.console import Console
from rich.progress import Progress
from safetensors.numpy import save_file
from timm.optim import get_optimizer_info, list_optimizers

from ngd_timm.core.affect import AXES
from ngd_timm.core.devices import open_device
from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.files import atomic_files, check_place, remove_leftovers, sha256_file, write_json, write_text
from ngd_timm.core.lock import is_unused, locked
from ngd_timm.core.recipe import to_yaml
from ngd_timm.core.teacher_recipe import TeacherRecipe
from ngd_timm.core.version import __version__
from ngd_timm.eeg.folds import cells, check_split, fold_windows, held_out_rows
from ngd_timm.eeg.readers.sources import load_cospectra, load_eeg, load_rated
from ngd_timm.eeg.signal.bandpower import BandPower, group_trials, log_power_z
from ngd_timm.eeg.signal.cospectra import require_pyriemann, tangent_z
from ngd_timm.eeg.teacher.held_out import log_scores, ridge_in_other_folds, scalp_means, score_run
from ngd_timm.eeg.teacher.linear import fit_linear
from ngd_timm.eeg.teacher.training import AffectTeacher, Trials, infer, train_teacher
from ngd_timm.eeg.topomap import TopomapOperator
from ngd_timm.grid.averages import numbered

logger = logging.getLogger("ngd_timm.eeg")

_PACKAGES = ("torch", "timm", "mne", "numpy", "scipy", "scikit-learn", "safetensors")

_WORTH = 30.0  # seconds of work left, from which on processes pay, which take some five seconds to start
_MOST = 8  # processes, of half a gigabyte each

_Advance = Callable[[], None]
_Fold = Callable[[int, np.ndarray, _Advance], tuple[np.ndarray, np.ndarray]]
"""A fold's number and the rows (N,) its teacher may see, to embeddings and predictions of all rated rows."""


def fit_teacher(recipe: TeacherRecipe, out: Path | None = None, command: Sequence[str] | None = None) -> Path:
    """Fit one teacher a fold and write the run directory, whole or not at all.

    It holds `recipe.yaml`, `fingerprint.json`, `scores.json`, `cells.safetensors` (means over subjects),
    `embeddings.safetensors` (of every rated window, with subjects) and `lock` (held while a process fits).
    """
    began = time.monotonic()
    run = Path(out or recipe.out or Path("runs") / f"{recipe.name}-{recipe.seed}")
    _check_unused(run)
    check_place(run / "scores.json")
    open_device(recipe.device)
    optimizers = [name for name in list_optimizers() if not get_optimizer_info(str(name)).second_order]
    if recipe.optim.opt not in optimizers:
        raise choices("optim.opt", recipe.optim.opt, optimizers)
    if recipe.teacher.kind == "riemann":
        require_pyriemann()
    power = load_rated(recipe.data)
    operator = TopomapOperator(power.channels, size=recipe.teacher.image_size)
    z = log_power_z(power)
    fold = _assign_folds(recipe, power)
    support = _load_support(recipe, power, z)
    _check_model(recipe, power)
    features = None if recipe.teacher.kind == "topomap" else _linear_features(recipe, power, z)
    with locked(run):
        _check_unused(run)  # another process may have begun it since
        remove_leftovers(run)
        _log_sizes(recipe, power, support)
        if features is None:
            epochs, fit_fold = recipe.optim.epochs, partial(_fit_network, recipe, power, z, support, operator)
        else:
            epochs, fit_fold = 1, partial(_fit_linear, recipe, power, features)
        alone = features is not None or open_device(recipe.device).type != "cpu"
        embeddings, predictions, seconds = _fit_folds(list(cells(fold, power.rated)), epochs, fit_fold, alone)
        everything, z, fold = power.rows(power.rated), z[power.rated], fold[power.rated]
        others = ridge_in_other_folds(recipe, everything, z)
        held_out = held_out_rows(fold)
        rated, z, fold = everything.rows(held_out), z[held_out], fold[held_out]
        # safetensors writes memory as it lies, and numpy may lay [:, held_out] out otherwise
        embeddings, predictions = (np.stack([own[held_out] for own in rows]) for rows in (embeddings, predictions))
        scores = {**score_run(recipe, rated, z, fold, embeddings, predictions), **others}
        scores["seconds"] = {"fold": [round(s, 1) for s in seconds], "total": round(time.monotonic() - began, 1)}
        with atomic_files(run) as folder:
            write_text(folder / "recipe.yaml", to_yaml(recipe.model_copy(update={"out": str(run)})))
            write_json(folder / "scores.json", scores)
            save_file(_embedding_tensors(rated, fold, embeddings, predictions), folder / "embeddings.safetensors")
            save_file(scalp_means(rated, z), folder / "cells.safetensors")
            fingerprint = {
                **_fingerprint(recipe, rated, support, folder),
                # of all windows, also unrated ones: the same in other folds, which may hold out fewer
                "data_sha256": power.sha256,
                "command": command,
            }
            write_json(folder / "fingerprint.json", fingerprint)
        log_scores(scores)
    return run


def _check_model(recipe: TeacherRecipe, power: BandPower) -> None:
    """Refuse a backbone that isn't known or can't take the maps, and an embedding wider than a ridge's features."""
    kind, dim, bands, channels = (
        recipe.teacher.kind,
        recipe.teacher.embedding_dim,
        len(power.bands),
        len(power.channels),
    )
    if kind == "topomap":
        with torch.random.fork_rng(devices=[]):
            AffectTeacher(recipe.teacher, bands)
    elif dim > (count := bands * (channels if kind == "ridge" else channels * (channels + 1) // 2)):
        raise InputError(
            f"teacher.embedding_dim={dim} is more than the {count} features that teacher.kind={kind} has of {bands} "
            f"bands and {channels} channels; set teacher.embedding_dim={count} or less"
        )


def _linear_features(recipe: TeacherRecipe, power: BandPower, z: np.ndarray) -> np.ndarray:
    """What a ridge reads of every window: (N, K)."""
    if recipe.teacher.kind == "ridge":
        return z.reshape(len(z), -1)
    return tangent_z(load_cospectra(recipe.data, power), power.subject)


def _fit_linear(
    recipe: TeacherRecipe, power: BandPower, features: np.ndarray, number: int, seen: np.ndarray, advance: _Advance
) -> tuple[np.ndarray, np.ndarray]:
    training = seen & power.rated
    dim, by = recipe.teacher.embedding_dim, recipe.data.folds_by
    teacher = fit_linear(features[training], power.rows(training), dim, by)
    advance()
    return teacher(features[power.rated])


def _fit_network(
    recipe: TeacherRecipe,
    power: BandPower,
    z: np.ndarray,
    support: BandPower | None,
    operator: TopomapOperator,
    number: int,
    seen: np.ndarray,
    advance: _Advance,
) -> tuple[np.ndarray, np.ndarray]:
    everything, rated = torch.from_numpy(z), power.rated
    training = [rows for rows in group_trials(power.subject, power.trial) if seen[rows[0]]]
    labels = torch.from_numpy(power.valence_arousal)
    labelled = Trials(everything, [rows for rows in training if rated[rows[0]]], labels)
    unlabelled = [(everything, rows) for rows in training if not rated[rows[0]]]
    if support is not None:
        unrated = torch.from_numpy(log_power_z(support))
        unlabelled = [*((unrated, rows) for rows in group_trials(support.subject, support.trial)), *unlabelled]
    teacher = train_teacher(recipe, labelled, unlabelled, operator, number, advance)
    return infer(teacher, everything[torch.from_numpy(rated)], operator)


def _fit_folds(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], epochs: int, fit_fold: _Fold, alone: bool
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Each fold's teacher on every rated window: embeddings (F, N, D), predictions (F, N, 2), seconds (F)."""
    embeddings, predictions, seconds = [], [], []
    with Progress(disable=not Console().is_terminal, transient=True) as progress:
        bar = progress.add_task("teacher", total=len(parts) * epochs)
        folds = _fitted(fit_fold, [seen for _, seen in parts], lambda: progress.advance(bar), alone)
        for number, (embedding, prediction, spent) in enumerate(folds, start=1):
            progress.update(bar, completed=number * epochs)
            embeddings.append(embedding)
            predictions.append(prediction)
            seconds.append(spent)
            logger.info("fold %d of %d: %.0f s", number, len(parts), spent)
    return np.stack(embeddings), np.stack(predictions), seconds


def _fitted(
    fit_fold: _Fold, seen: Sequence[np.ndarray], advance: _Advance, alone: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """The folds in order: the first here, the others, unless `alone`, side by side where its time says that it pays."""
    first = _timed(fit_fold, 0, seen[0], advance)
    yield first
    rest = list(enumerate(seen))[1:]
    processes = min(torch.get_num_threads(), cpu_count(), _MOST, len(rest))
    alone = alone or threading.current_thread() is not threading.main_thread()  # which alone may handle signals
    if alone or processes < 2 or first[-1] * len(rest) < _WORTH:
        yield from (_timed(fit_fold, number, own, advance) for number, own in rest)
        return
    # Loky's are new processes: forks would wait for ever for OpenMP's threads. They inherit that Ctrl-C is ignored; the
    # fit, which it ends, ends them. Mapped arrays (max_nbytes) would be read-only, of which PyTorch warns.
    pool = Parallel(processes, "loky", return_as="generator", max_nbytes=None, idle_worker_timeout=30)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stay = partial(_end_without, os.getpid())
        results = pool(delayed(_timed)(fit_fold, number, own, stay) for number, own in rest)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield from results
    except BrokenProcessPool:
        said = (
            "a process that fitted a fold was killed, perhaps for want of memory; with OMP_NUM_THREADS=1 there are none"
        )
        raise InputError(said) from None


def _end_without(parent: int) -> None:
    if os.getppid() != parent:  # it was killed, and the result would wait for ever to be read
        os._exit(1)


def _timed(fit_fold: _Fold, number: int, seen: np.ndarray, advance: _Advance) -> tuple[np.ndarray, np.ndarray, float]:
    began = time.monotonic()
    embedding, prediction = fit_fold(number, seen, advance)
    return embedding, prediction, time.monotonic() - began


def _check_unused(run: Path) -> None:
    killed = any(run.glob(".files.*")) and not (run / "fingerprint.json").exists()  # while its files moved up
    if not (killed or is_unused(run)):
        raise InputError(f"{run} exists and is not empty; choose another out= or remove it")


def _assign_folds(recipe: TeacherRecipe, power: BandPower) -> np.ndarray:
    """The fold of each window, as `cells` takes it, with every fold fit to be trained on."""
    rated = power.rated
    if not rated.any():
        raise InputError(f"{power.dataset}: nobody rated anything; a teacher needs rated trials (unrated ones support)")
    by = recipe.data.folds_by
    fold = fold_windows(power, by, recipe.data.folds, recipe.seed)
    scored = rated & held_out_rows(fold)  # what folds are aligned on and regressions learn from
    parts = list(cells(fold, rated))
    for number, (held_out, seen) in enumerate(parts):
        check_split(seen, held_out, power.subject, power.trial, power.power, power.stimulus, by)
        if not (scored & seen & parts[0][1]).any():
            raise InputError(
                f"folds 0 and {number} share no training trial to align them on; use data.folds_by=subject"
            )
        for axis, name in enumerate(AXES):
            if len(np.unique(power.valence_arousal[scored & seen, axis] > 0)) < 2:
                raise InputError(
                    f"{name}: in fold {number} every training trial is on one side of the middle of the scale; use "
                    f"fewer folds, another seed or more {'subjects' if by == 'subject' else 'stimuli'}"
                )
    return fold


def _load_support(recipe: TeacherRecipe, power: BandPower, z: np.ndarray) -> BandPower | None:
    """The support set on the same electrodes and bands."""
    settings = recipe.data
    if settings.support is None:
        if recipe.optim.consistency > 0 and power.rated.all():
            raise InputError(
                "optim.consistency is above 0, and there is nothing unlabelled to agree on: every trial is rated, and "
                "data.support is not set; set it, or optim.consistency=0"
            )
        return None
    if recipe.optim.consistency == 0:
        raise InputError(
            "data.support is used by optim.consistency only, which is 0; raise it or leave data.support out"
        )
    same = settings.model_copy(update={"channels": power.channels, "bands": power.bands})
    support = load_eeg(same, settings.support.name, settings.support.root)
    # z-scores, so that another unit doesn't hide a copy; another filter or window would
    if np.isin(_row_keys(log_power_z(support)), _row_keys(z)).any():
        raise InputError("data.support holds windows of data.root itself; held-out subjects would be trained on")
    return support


def _row_keys(z: np.ndarray) -> np.ndarray:
    rounded = np.ascontiguousarray(z.reshape(len(z), -1).round(2).astype(np.float32) + 0.0)
    return rounded.view(f"V{rounded[0].nbytes}").ravel()


def _log_sizes(recipe: TeacherRecipe, power: BandPower, support: BandPower | None) -> None:
    def size(power: BandPower) -> str:
        trials = len(group_trials(power.subject, power.trial))
        return f"{len(power)} windows, {trials} trials, {len(np.unique(power.subject))} subjects"

    logger.info(
        f"{power.dataset}: {size(power.rows(power.rated))}, {len(power.bands)} bands, {len(power.channels)} channels, "
        f"{recipe.data.folds} folds, by {recipe.data.folds_by}"
    )
    if unrated := int((~power.rated).sum()):
        unused = "" if recipe.optim.consistency else ", unused (optim.consistency is 0)"
        logger.info(f"unrated: {unrated} windows{unused}")
    if support is not None:
        logger.info(f"support, without its ratings: {support.dataset}: {size(support)}")


def _embedding_tensors(
    rated: BandPower, fold: np.ndarray, embeddings: np.ndarray, predictions: np.ndarray
) -> dict[str, np.ndarray]:
    tensors = {
        "subject": rated.subject,
        "trial": rated.trial,
        "window": rated.window,
        "valence_arousal": rated.valence_arousal,
        "held_out_fold": fold,
    }
    if rated.stimulus is not None:
        tensors["stimulus"] = numbered(rated.stimulus)
    tensors |= {f"fold{number}.embedding": rows for number, rows in enumerate(embeddings)}
    return tensors | {f"fold{number}.valence_arousal": rows for number, rows in enumerate(predictions)}


def _fingerprint(recipe: TeacherRecipe, rated: BandPower, support: BandPower | None, folder: Path) -> dict[str, Any]:
    # Where the data lie and where the run goes don't change what comes out.
    elsewhere: dict[str, Any] = dict.fromkeys(("root", "cache", "ratings"), True)
    elsewhere |= {"support": {"root"}, "also": {"__all__": {"root"}}}
    settings = recipe.model_dump(mode="json", exclude={"out": True, "device": True, "data": elsewhere})
    packages = (*_PACKAGES, "pyriemann") if recipe.teacher.kind == "riemann" else _PACKAGES
    return {
        "dataset": rated.dataset,
        "sets": list(rated.sets),
        "simulated": rated.simulated,
        "channels": list(rated.channels),
        "bands": list(rated.bands),
        "notes": dict(rated.notes),
        "trials": len(group_trials(rated.subject, rated.trial)),
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
        "packages": {name: importlib.metadata.version(name) for name in packages} | {"ngd_timm": __version__},
        "python": platform.python_version(),
    }
