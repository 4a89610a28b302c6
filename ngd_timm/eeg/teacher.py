"""Fit a teacher in folds by subject, score it on people it hasn't seen, and build the grid from their embeddings."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from ngd_timm.eeg.bandpower import NORMALISATION, BandPower, load_bandpower, log_power_z
from ngd_timm.eeg.folds import align, check_split, subject_folds
from ngd_timm.eeg.model import AffectTeacher, ccc_loss
from ngd_timm.eeg.recipe import TeacherRecipe
from ngd_timm.eeg.scores import AXES, score_trials, trial_means
from ngd_timm.eeg.topomap import TopomapOperator
from ngd_timm.errors import InputError
from ngd_timm.files import atomic_folder, sha256_file, write_json, write_text
from ngd_timm.prototypes import PrototypeGrid, mantel_test
from ngd_timm.recipe import load_recipe, to_yaml
from ngd_timm.version import __version__

__all__ = ["build_grid", "fit_teacher"]

logger = logging.getLogger("ngd_timm.eeg")

_PACKAGES = ("torch", "timm", "mne", "numpy", "scipy", "scikit-learn", "safetensors")


def fit_teacher(recipe: TeacherRecipe, out: Path | None = None) -> Path:
    """Fit one teacher a fold and write the run directory, whole or not at all.

    The directory holds `recipe.yaml`, `fingerprint.json`, `scores.json` and `embeddings.safetensors` (each teacher's
    embeddings of every recording, with subjects: keep it where the recordings may be kept). See `build_grid`.

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
    if recipe.data.root is None:
        raise InputError("data.root is not set; give the recordings, for example data.root=gameemo_bandpower.npz")
    started = time.monotonic()
    data = load_bandpower(recipe.data.root, recipe.data.name).pick(recipe.data.bands, recipe.data.channels)
    z = torch.from_numpy(log_power_z(data))
    operator = TopomapOperator(data.channels, size=recipe.teacher.image_size)
    fold_of = subject_folds(data.subject, recipe.data.folds, recipe.seed)
    logger.info(
        "%s: %d windows, %d trials, %d subjects, %d bands, %d channels, %d folds by subject",
        data.dataset,
        len(data),
        len(_trials(data)),
        len(np.unique(data.subject)),
        len(data.bands),
        len(data.channels),
        recipe.data.folds,
    )
    embeddings, predictions, seconds = [], [], []
    with Progress(disable=not _terminal(), transient=True) as progress:
        bar = progress.add_task("teacher", total=recipe.data.folds * recipe.optim.epochs)
        for fold in range(recipe.data.folds):
            began = time.monotonic()
            held_out = fold_of == fold
            check_split(~held_out, held_out, data.subject)
            with _one_thread():
                embedding, prediction = _fit_fold(
                    recipe, data, z, operator, ~held_out, fold, lambda: progress.advance(bar)
                )
            embeddings.append(embedding)
            predictions.append(prediction)
            seconds.append(time.monotonic() - began)
            logger.info("fold %d of %d: %.0f s", fold + 1, recipe.data.folds, seconds[-1])
    stacked, predicted = np.stack(embeddings), np.stack(predictions)
    scores = _scores(recipe, data, z.numpy(), fold_of, stacked, predicted)
    scores["seconds"] = {"fold": [round(s, 1) for s in seconds], "total": round(time.monotonic() - started, 1)}
    with atomic_folder(run) as folder:
        write_text(folder / "recipe.yaml", to_yaml(recipe.model_copy(update={"out": str(run)})))
        write_json(folder / "scores.json", scores)
        _write_embeddings(folder / "embeddings.safetensors", data, fold_of, stacked, predicted)
        write_json(folder / "fingerprint.json", _fingerprint(recipe, data, folder))
    for line in _lines(scores):
        logger.info("%s", line)
    return run


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
    stacked, subject, trial, va, fold_of = stored
    aligned, agreement = align(stacked, fold_of)
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
        "scores": json.dumps({key: scores[key] for key in ("teacher", "logistic_regression")}),
        "mantel_r": f"{plain.r:.4f}",
        "mantel_p": f"{plain.p:.4f}",
        "mantel_r_centered": f"{centred.r:.4f}",
        "mantel_p_centered": f"{centred.p:.4f}",
        "mantel_permutations": str(permutations),
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "built_with": f"ngd_timm {__version__}",
    }
    if fingerprint["simulated"]:
        notes["simulated"] = "true"
    return PrototypeGrid.build(aligned, va, subject, size, min_subjects, center, notes)


def _fit_fold(
    recipe: TeacherRecipe,
    data: BandPower,
    z: torch.Tensor,
    operator: TopomapOperator,
    train: np.ndarray,
    fold: int,
    done_epoch: Callable[[], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Train one teacher; its (N, D) embeddings and (N, 2) predictions of every recording."""
    optim = recipe.optim
    device = _device(recipe.device)
    windows = [rows for rows in _trials(data) if train[rows[0]]]
    targets = torch.from_numpy(data.valence_arousal)
    steps = max(1, len(windows) * optim.samples_per_trial // optim.batch_size)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed * 1000 + fold)
        rng = np.random.default_rng([recipe.seed, fold])
        teacher = AffectTeacher(
            recipe.teacher.backbone,
            len(data.bands),
            recipe.teacher.embedding_dim,
            recipe.teacher.image_size,
            recipe.teacher.drop_rate,
        ).to(device)
        optimizer = create_optimizer_v2(teacher, opt=optim.opt, lr=optim.lr, weight_decay=optim.weight_decay)
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="cosine",
            num_epochs=optim.epochs,
            warmup_epochs=min(optim.warmup, optim.epochs - 1),
            warmup_prefix=True,
            step_on_epochs=False,
            updates_per_epoch=steps,
        )
        for epoch in range(optim.epochs):
            teacher.train()
            order = rng.permutation(np.repeat(np.arange(len(windows)), optim.samples_per_trial))
            for step in range(steps):
                chosen = order[step * optim.batch_size : (step + 1) * optim.batch_size]
                sample, target = _sample(recipe, z, targets, [windows[i] for i in chosen], rng)
                prediction, _ = teacher(operator(sample.to(device)))
                target = target.to(device)
                loss = optim.ccc * ccc_loss(prediction, target)
                loss = loss + optim.mse * torch.nn.functional.mse_loss(prediction, target)
                optimizer.zero_grad()
                loss.backward()
                if optim.clip_grad is not None:
                    torch.nn.utils.clip_grad_norm_(teacher.parameters(), optim.clip_grad)
                optimizer.step()
                scheduler.step_update(epoch * steps + step + 1)
            done_epoch()
        return _infer(teacher, z, operator, device)


def _sample(
    recipe: TeacherRecipe, z: torch.Tensor, targets: torch.Tensor, trials: list[np.ndarray], rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """One augmented batch: (B, bands, channels) z-scores and (B, 2) ratings."""
    augment = recipe.augment
    drawn = []
    for rows in trials:
        count = int(rng.integers(1, min(augment.average, len(rows)) + 1))
        drawn.append(z[rng.choice(rows, count, replace=False)].mean(dim=0))
    sample, target = torch.stack(drawn), targets[[int(rows[0]) for rows in trials]]
    if augment.mixup > 0:
        share = torch.from_numpy(rng.beta(augment.mixup, augment.mixup, len(trials)).astype(np.float32))
        other = torch.from_numpy(rng.permutation(len(trials)))
        sample = share[:, None, None] * sample + (1 - share[:, None, None]) * sample[other]
        target = share[:, None] * target + (1 - share[:, None]) * target[other]
    if augment.noise > 0:
        sample = sample + augment.noise * torch.from_numpy(rng.standard_normal(sample.shape, dtype=np.float32))
    if augment.channel_drop > 0:
        kept = rng.random((len(trials), 1, sample.shape[-1])) >= augment.channel_drop
        sample = sample * torch.from_numpy(kept)
    return sample, target


@torch.inference_mode()
def _infer(
    teacher: AffectTeacher, z: torch.Tensor, operator: TopomapOperator, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    teacher.eval()
    predictions, embeddings = [], []
    for batch in z.split(256):
        prediction, embedding = teacher(operator(batch.to(device)))
        predictions.append(prediction.cpu())
        embeddings.append(embedding.cpu())
    return torch.cat(embeddings).numpy(), torch.cat(predictions).numpy()


def _scores(
    recipe: TeacherRecipe,
    data: BandPower,
    z: np.ndarray,
    fold_of: np.ndarray,
    embeddings: np.ndarray,
    predictions: np.ndarray,
) -> dict[str, Any]:
    """All figures of the run; a trial's prediction is the mean over its windows, by the teacher that hasn't seen it."""
    target, subject, first = trial_means(data.valence_arousal, data.subject, data.trial)
    fold_of_trial = fold_of[first]
    prediction, decision = np.empty_like(target), np.empty_like(target)
    for fold in range(recipe.data.folds):
        by_trial, _, _ = trial_means(predictions[fold], data.subject, data.trial)
        own = fold_of_trial == fold
        prediction[own] = by_trial[own]
        # High or low is told from the middle of what this teacher says of its own training trials.
        decision[own] = by_trial[own] - by_trial[~own].mean(axis=0)
    settings = {
        "bootstrap": recipe.scores.bootstrap,
        "permutations": recipe.scores.permutations,
        "seed": recipe.seed,
    }
    scores: dict[str, Any] = {
        "dataset": data.dataset,
        "n": {"subjects": len(np.unique(subject)), "trials": len(target), "windows": len(data)},
        "protocol": (
            f"leave-subjects-out, {recipe.data.folds} folds; a trial is the mean over its windows; 95 % intervals over "
            f"subjects, chance and p by permuting ratings within subject; {NORMALISATION}"
        ),
        "teacher": score_trials(decision, prediction, target, subject, **settings),
        "logistic_regression": score_trials(_logistic_regression(data, z, fold_of), None, target, subject, **settings),
    }
    aligned, agreement = align(embeddings, fold_of)
    va = data.valence_arousal
    for key, center in (("mantel", False), ("mantel_centered", True)):
        found = mantel_test(
            aligned, va, data.subject, data.trial, 5, recipe.scores.permutations, recipe.seed, center=center
        )
        scores[key] = {"r": round(found.r, 4), "p": round(found.p, 5), "permutations": found.permutations}
    scores["mean_cosine"] = round(PrototypeGrid.build(aligned, va, data.subject).mean_cosine, 4)
    scores["frame_agreement"] = [round(a, 4) for a in agreement]
    if data.simulated:
        scores["simulated"] = True
    return scores


def _logistic_regression(data: BandPower, z: np.ndarray, fold_of: np.ndarray) -> np.ndarray:
    """Decisions (T, 2) of a logistic regression on the windows' z-scores, in the teacher's folds."""
    from sklearn.linear_model import LogisticRegression

    features, high = z.reshape(len(z), -1), data.valence_arousal > 0
    decision = np.empty(high.shape)
    for fold in np.unique(fold_of):
        train = fold_of != fold
        for axis, name in enumerate(AXES):
            if len(np.unique(high[train, axis])) < 2:
                raise InputError(f"fold {fold}: every training trial is on one side of the middle in {name}")
            fitted = LogisticRegression(class_weight="balanced", max_iter=2000).fit(features[train], high[train, axis])
            decision[~train, axis] = fitted.decision_function(features[~train])
    return trial_means(decision, data.subject, data.trial)[0]


def _trials(data: BandPower) -> list[np.ndarray]:
    """Row indices of each trial's windows, by subject and trial."""
    _, index = np.unique(np.stack([data.subject, data.trial], axis=1), axis=0, return_inverse=True)
    order = np.argsort(index.reshape(-1), kind="stable")
    return np.split(order, np.cumsum(np.bincount(index.reshape(-1)))[:-1])


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
    for fold in range(len(embeddings)):
        tensors[f"fold{fold}.embedding"] = embeddings[fold].astype(np.float32)
        tensors[f"fold{fold}.valence_arousal"] = predictions[fold].astype(np.float32)
    save_file({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()}, str(path))


def _fingerprint(recipe: TeacherRecipe, data: BandPower, folder: Path) -> dict[str, Any]:
    # Where the data lie and where the run goes don't change what comes out.
    settings = recipe.model_dump(mode="json", exclude={"out": True, "device": True, "data": {"root"}})
    return {
        "dataset": data.dataset,
        "simulated": data.simulated,
        "data_sha256": data.sha256,
        "channels": list(data.channels),
        "bands": list(data.bands),
        "trials": len(_trials(data)),
        "recipe_sha256": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "embeddings_sha256": sha256_file(folder / "embeddings.safetensors"),
        "seed": recipe.seed,
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES} | {"ngd_timm": __version__},
        "python": platform.python_version(),
    }


_Stored = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


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
        stored = (stacked, *(tensors[k] for k in ("subject", "trial", "valence_arousal", "held_out_fold")))
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    return recipe, fingerprint, scores, stored


def _lines(scores: dict[str, Any]) -> Iterator[str]:
    for who in ("teacher", "logistic_regression"):
        for axis, metrics in scores[who].items():
            for metric, f in metrics.items():
                yield (
                    f"{who.replace('_', ' ')}, {axis} {metric}: {f['value']:.3f} "
                    f"[{f['ci95'][0]:.3f}, {f['ci95'][1]:.3f}], chance {f['chance']:.3f}, p {f['p']:.4f}"
                )
    for key in ("mantel", "mantel_centered"):
        yield f"{key.replace('_', ', ')}: r {scores[key]['r']:.3f}, p {scores[key]['p']:.4f}"
    yield f"mean cosine between prototypes: {scores['mean_cosine']:.3f}"


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    # Another number of threads adds in another order, and so would give another grid on another machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device '{name}'; write auto, cpu or cuda") from None


def _terminal() -> bool:
    from rich.console import Console

    return Console().is_terminal
