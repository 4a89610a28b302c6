"""Fit one teacher: augmented maps in, valence and arousal out, agreement with itself on unlabelled trials."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch.nn.functional import cosine_similarity, mse_loss

from ngd_timm.core.devices import open_device
from ngd_timm.core.teacher_recipe import TeacherAugment, TeacherRecipe
from ngd_timm.eeg.signal.bandpower import trial_index
from ngd_timm.eeg.teacher.model import AffectTeacher, ccc_loss
from ngd_timm.eeg.topomap import TopomapOperator

__all__ = ["Trials", "fit_one", "group_trials", "infer"]


@dataclass(frozen=True)
class Trials:
    """Windows grouped by trial.

    Args:
        z: (N, B, C) float32, z-scored log power.
        windows: One array of row indices a trial.
        valence_arousal: (N, 2) float32 in [-1, 1]; unused where trials are unlabelled.
    """

    z: torch.Tensor
    windows: Sequence[np.ndarray]
    valence_arousal: torch.Tensor

    def __len__(self) -> int:
        return len(self.windows)


def group_trials(subject: np.ndarray, trial: np.ndarray) -> list[np.ndarray]:
    """Row indices of each trial's windows, by subject and trial."""
    _, index = trial_index(subject, trial)
    return np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])


def fit_one(
    recipe: TeacherRecipe,
    labelled: Trials,
    unlabelled: Sequence[Trials],
    operator: TopomapOperator,
    bands: int,
    fold: int,
    done_epoch: Callable[[], None],
) -> AffectTeacher:
    """Train one teacher for the recipe's epochs; nothing is chosen on the way.

    The loss is `optim.ccc` (1 - CCC) + `optim.mse` MSE on labelled trials, plus `optim.consistency` times the
    disagreement of the teacher with itself on two views of the same unlabelled trial: MSE of the two predictions and
    1 - cosine of the two embeddings.

    Args:
        recipe: Model, augmentation, optimizer, seed.
        labelled: The training trials.
        unlabelled: Pools of trials whose ratings are not used; a batch draws from all of them alike.
        operator: Maps of the channels.
        bands: B.
        fold: Goes into the seed.
        done_epoch: Called after each epoch.

    Returns:
        The teacher, in eval mode, on the recipe's device.
    """
    optim = recipe.optim
    device = open_device(recipe.device)
    with one_thread(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed * 1000 + fold)
        rng = np.random.default_rng([recipe.seed, fold])
        model = recipe.teacher
        teacher = AffectTeacher(model.backbone, bands, model.embedding_dim, model.image_size, model.drop_rate)
        # a fifth faster than the default layout, for convolutions on a CPU too
        teacher = teacher.to(memory_format=torch.channels_last).to(device)
        # more samples than windows would be the same ones again, at their full cost
        samples = np.minimum([len(rows) for rows in labelled.windows], optim.samples_per_trial)
        steps = max(1, int(samples.sum()) // optim.batch_size)
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
        pool = [(trials, rows) for trials in unlabelled for rows in trials.windows] if optim.consistency > 0 else []
        for epoch in range(optim.epochs):
            teacher.train()
            order = rng.permutation(np.repeat(np.arange(len(labelled)), samples))
            for step in range(steps):
                chosen = order[step * optim.batch_size : (step + 1) * optim.batch_size]
                sample, target = _mix(
                    _view(recipe.augment, [(labelled.z, labelled.windows[i]) for i in chosen], rng),
                    labelled.valence_arousal[[int(labelled.windows[i][0]) for i in chosen]],
                    recipe.augment.mixup,
                    rng,
                )
                views = [_disturb(recipe.augment, sample, rng)]
                if pool:
                    drawn = [pool[i] for i in rng.integers(0, len(pool), len(chosen))]
                    pairs = [(trials.z, rows) for trials, rows in drawn]
                    views += [_disturb(recipe.augment, _view(recipe.augment, pairs, rng), rng) for _ in range(2)]
                prediction, embedding = teacher(operator(torch.cat(views).to(device)))
                said, target = prediction[: len(chosen)], target.to(device)
                loss = optim.ccc * ccc_loss(said, target) + optim.mse * mse_loss(said, target)
                if pool:
                    one, other = prediction[len(chosen) :].chunk(2)
                    left, right = embedding[len(chosen) :].chunk(2)
                    disagreement = mse_loss(one, other) + (1 - cosine_similarity(left, right)).mean()
                    loss = loss + optim.consistency * disagreement
                optimizer.zero_grad()
                loss.backward()
                if optim.clip_grad is not None:
                    torch.nn.utils.clip_grad_norm_(teacher.parameters(), optim.clip_grad)
                optimizer.step()
                scheduler.step_update(epoch * steps + step + 1)
            done_epoch()
        return teacher.eval()


@torch.inference_mode()
def infer(teacher: AffectTeacher, z: torch.Tensor, operator: TopomapOperator) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) embeddings and (N, 2) predictions of (N, B, C) z-scores."""
    device = next(teacher.parameters()).device
    predictions, embeddings = [], []
    with one_thread():
        for batch in z.split(256):
            prediction, embedding = teacher(operator(batch.to(device)))
            predictions.append(prediction.cpu())
            embeddings.append(embedding.cpu())
    return torch.cat(embeddings).numpy(), torch.cat(predictions).numpy()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    # Another number of threads adds in another order, and so would give another grid on another machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _view(
    augment: TeacherAugment, trials: Sequence[tuple[torch.Tensor, np.ndarray]], rng: np.random.Generator
) -> torch.Tensor:
    """(T, B, C): of each trial the mean of a few of its windows, drawn anew each time."""
    drawn = []
    for z, rows in trials:
        count = int(rng.integers(1, min(augment.average, len(rows)) + 1))
        drawn.append(z[rng.choice(rows, count, replace=False)].mean(dim=0))
    return torch.stack(drawn)


def _mix(
    sample: torch.Tensor, target: torch.Tensor, alpha: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    if alpha == 0:
        return sample, target
    share = torch.from_numpy(rng.beta(alpha, alpha, len(sample)).astype(np.float32))
    other = torch.from_numpy(rng.permutation(len(sample)))
    sample = share[:, None, None] * sample + (1 - share[:, None, None]) * sample[other]
    return sample, share[:, None] * target + (1 - share[:, None]) * target[other]


def _disturb(augment: TeacherAugment, sample: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    if augment.noise > 0:
        sample = sample + augment.noise * torch.from_numpy(rng.standard_normal(sample.shape, dtype=np.float32))
    if augment.channel_drop > 0:
        kept = rng.random((len(sample), 1, sample.shape[-1])) >= augment.channel_drop
        sample = sample * torch.from_numpy(kept)
    return sample
