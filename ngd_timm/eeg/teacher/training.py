"""One teacher, a timm backbone on topographic maps, and how it is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.nn.functional import cosine_similarity, mse_loss

from ngd_timm.core.devices import open_device
from ngd_timm.core.errors import InputError, one_line
from ngd_timm.core.small_maps import crop_to_one_size, small_maps_as_products
from ngd_timm.core.teacher_recipe import TeacherAugment, TeacherModel, TeacherOptim, TeacherRecipe
from ngd_timm.eeg.topomap import TopomapOperator


class AffectTeacher(nn.Module):
    """Regress valence and arousal from maps; the grid is built from the embedding before the last layer."""

    def __init__(self, settings: TeacherModel, bands: int):
        super().__init__()
        backbone, size = settings.backbone, settings.image_size
        if not timm.is_model(backbone):
            near = timm.list_models(f"*{backbone.split('_')[0]}*")[:5]
            raise InputError(f"timm has no model '{backbone}'; try for example {', '.join(near) or 'resnet10t'}")
        # Any: nn.Module types every attribute as a tensor or a module.
        model: Any = timm.create_model(backbone, in_chans=bands, num_classes=0)
        self.backbone = model
        self.dropout = nn.Dropout(settings.drop_rate)
        self.embedding = nn.Linear(int(model.head_hidden_size), settings.embedding_dim)
        self.head = nn.Linear(settings.embedding_dim, 2)
        try:
            with torch.no_grad():
                self.eval()(torch.zeros(1, bands, size, size))
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"'{backbone}' can't take maps of {size} x {size} ({one_line(error)})") from None
        self.train()

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, bands, H, W) to valence and arousal (B, 2) in (-1, 1) and embeddings (B, D)."""
        backbone: Any = self.backbone
        features = backbone.forward_head(backbone.forward_features(maps), pre_logits=True)
        embedding = self.embedding(self.dropout(features))
        return torch.tanh(self.head(embedding)), embedding


@dataclass(frozen=True)
class Trials:
    """Rated windows, grouped by trial."""

    z: torch.Tensor  # (N, B, C) z-scored log power
    windows: Sequence[np.ndarray]  # the row indices of each trial
    valence_arousal: torch.Tensor  # (N, 2)


def train_teacher(
    recipe: TeacherRecipe,
    labelled: Trials,
    unlabelled: Sequence[tuple[torch.Tensor, np.ndarray]],
    operator: TopomapOperator,
    fold: int,
    after_epoch: Callable[[], None],
) -> AffectTeacher:
    """Train one teacher for the recipe's epochs; nothing is selected on the way.

    The loss is `optim.ccc` (1 - CCC) + `optim.mse` MSE on labelled trials, plus `optim.consistency` times the
    disagreement on two views of the same unlabelled trial: MSE of the predictions and 1 - cosine of the embeddings. The
    paper names MAHNOB-HCI as unlabelled support; what is done with it, and the rest of the loss, is our reading.
    """
    optim, augment = recipe.optim, recipe.augment
    device = open_device(recipe.device)
    with _one_thread(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed * 1000 + fold)
        rng = np.random.default_rng([recipe.seed, fold])
        # a fifth faster than the default layout, for convolutions on a CPU too
        teacher = AffectTeacher(recipe.teacher, labelled.z.shape[1]).to(memory_format=torch.channels_last).to(device)
        fused: dict[str, Any] = {}
        if optim.fast:
            crop_to_one_size(small_maps_as_products(teacher), operator(labelled.z[:1].to(device)))
            fused = {"fused": True} if optim.opt in ("adam", "adamw", "sgd") else {}
        # more samples than windows would be the same ones again, at their full cost
        samples = np.minimum([len(rows) for rows in labelled.windows], optim.samples_per_trial)
        steps = max(1, int(samples.sum()) // optim.batch_size)
        optimizer = create_optimizer_v2(teacher, opt=optim.opt, lr=optim.lr, weight_decay=optim.weight_decay, **fused)
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
            order = rng.permutation(np.repeat(np.arange(len(samples)), samples))
            for step in range(steps):
                batch = order[step * optim.batch_size : (step + 1) * optim.batch_size]
                views, target = _labelled_batch(augment, labelled, batch, rng)
                if unlabelled and optim.consistency > 0:
                    pairs = [unlabelled[i] for i in rng.integers(0, len(unlabelled), len(batch))]
                    twice = [_disturb(augment, _view(augment, pairs, rng), rng) for _ in range(2)]
                    views = torch.cat([views, *twice])
                prediction, embedding = teacher(operator(views.to(device)))
                loss = _loss(optim, prediction, embedding, target.to(device))
                optimizer.zero_grad()
                loss.backward()
                if optim.clip_grad is not None:
                    torch.nn.utils.clip_grad_norm_(teacher.parameters(), optim.clip_grad)
                optimizer.step()
                scheduler.step_update(epoch * steps + step + 1)
            after_epoch()
        return teacher.eval()


@torch.inference_mode()
def infer(teacher: AffectTeacher, z: torch.Tensor, operator: TopomapOperator) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) embeddings and (N, 2) predictions of (N, B, C) z-scores."""
    device = next(teacher.parameters()).device
    with _one_thread():
        pairs = [teacher(operator(batch.to(device))) for batch in z.split(256)]
    predictions, embeddings = zip(*pairs, strict=True)
    return torch.cat(embeddings).cpu().numpy(), torch.cat(predictions).cpu().numpy()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    # Another number of threads adds in another order, and so would give another grid on another machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _labelled_batch(
    augment: TeacherAugment, labelled: Trials, batch: np.ndarray, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, B, C) samples of the trials of a batch, with (T, 2) targets."""
    windows = [labelled.windows[i] for i in batch]
    sample = _view(augment, [(labelled.z, rows) for rows in windows], rng)
    target = labelled.valence_arousal[[int(rows[0]) for rows in windows]]
    if augment.mixup > 0:
        share = torch.from_numpy(rng.beta(augment.mixup, augment.mixup, len(sample)).astype(np.float32))
        other = torch.from_numpy(rng.permutation(len(sample)))
        sample = share[:, None, None] * sample + (1 - share[:, None, None]) * sample[other]
        target = share[:, None] * target + (1 - share[:, None]) * target[other]
    return _disturb(augment, sample, rng), target


def _view(
    augment: TeacherAugment, trials: Sequence[tuple[torch.Tensor, np.ndarray]], rng: np.random.Generator
) -> torch.Tensor:
    """(T, B, C): the mean of a few random windows of each trial."""
    means = []
    for z, rows in trials:
        count = int(rng.integers(1, min(augment.average, len(rows)) + 1))
        means.append(z[rng.choice(rows, count, replace=False)].mean(dim=0))
    return torch.stack(means)


def _disturb(augment: TeacherAugment, sample: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    if augment.noise > 0:
        sample = sample + augment.noise * torch.from_numpy(rng.standard_normal(sample.shape, dtype=np.float32))
    if augment.channel_drop > 0:
        kept = rng.random((len(sample), 1, sample.shape[-1])) >= augment.channel_drop
        sample = sample * torch.from_numpy(kept)
    return sample


def _loss(optim: TeacherOptim, prediction: torch.Tensor, embedding: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Of the labelled rows, which come first, and of the two views of unlabelled trials, if there are any."""
    count = len(target)
    labelled = prediction[:count]  # one slice: two would sum the gradient in another order
    loss = optim.ccc * ccc_loss(labelled, target) + optim.mse * mse_loss(labelled, target)
    if len(prediction) > count:
        one, other = prediction[count:].chunk(2)
        left, right = embedding[count:].chunk(2)
        disagreement = mse_loss(one, other) + (1 - cosine_similarity(left, right)).mean()
        loss = loss + optim.consistency * disagreement
    return loss


def ccc_loss(prediction: torch.Tensor, target: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """1 - Lin's concordance correlation (1989) over the batch of (B, K), mean over the columns."""
    mean_p, mean_t = prediction.mean(dim=0), target.mean(dim=0)
    covariance = ((prediction - mean_p) * (target - mean_t)).mean(dim=0)
    variances = prediction.var(dim=0, correction=0) + target.var(dim=0, correction=0)
    return (1 - 2 * covariance / (variances + (mean_p - mean_t) ** 2 + eps)).mean()
