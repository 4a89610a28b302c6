"""The batches of the training loop, each with the teacher's logits of its images."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ngd_timm.core.affect import anchors
from ngd_timm.core.devices import send
from ngd_timm.losses.functional import IGNORED
from ngd_timm.models.kd_cache import LogitCache

if TYPE_CHECKING:
    from ngd_timm.data import FaceBatches


class TrainingBatch(NamedTuple):
    """What a training step needs, in the order of the arguments of `NeuroGazeTask`."""

    images: Tensor
    target: Tensor
    valence_arousal: Tensor | None
    teacher_logits: Tensor | None


def on_device(batches: Iterable[Any], device: torch.device) -> Generator[TrainingBatch, None, None]:
    """The batches of a data set on the device, their images in the channels-last format."""
    for batch in batches:
        batch = batch.to(device)
        images = batch.images.to(memory_format=torch.channels_last)
        yield TrainingBatch(images, batch.target, batch.valence_arousal, None)


def without_end(batches: FaceBatches, first: int) -> Iterator[Any]:
    """Batches from number `first` on, counted through epochs of their own."""
    epoch, number = divmod(first, len(batches))
    while True:
        batches.set_epoch(epoch)
        yield from batches.batches(number)
        epoch, number = epoch + 1, 0


def with_unlabelled(batches: Iterable[TrainingBatch], more: Iterable[TrainingBatch]) -> Iterator[TrainingBatch]:
    """Batches with the rows of others behind their own, whose targets count nothing."""
    for batch, others in zip(batches, more, strict=False):
        target, places = batch.target, batch.valence_arousal
        no_class = target.new_full((len(others.images), *target.shape[1:]), IGNORED if target.ndim == 1 else 0)
        if places is not None:
            places = torch.cat([places, places.new_full((len(no_class), 2), torch.nan)])
        images = torch.cat([batch.images, others.images]).to(memory_format=torch.channels_last)
        yield TrainingBatch(images, torch.cat([target, no_class]), places, None)


def with_expected_places(batches: Iterable[TrainingBatch], classes: Sequence[str]) -> Iterator[TrainingBatch]:
    """Give rows without a class the valence and arousal that the teacher expects: its mean over the anchors."""
    for batch in batches:
        logits = batch.teacher_logits
        assert logits is not None
        no_class = batch.target == IGNORED if batch.target.ndim == 1 else batch.target.sum(dim=1) == 0
        places = logits.new_full((len(logits), 2), torch.nan) if (va := batch.valence_arousal) is None else va
        expected = torch.softmax(logits, dim=1) @ send(torch.from_numpy(anchors(classes)), logits.device).to(logits)
        yield batch._replace(valence_arousal=torch.where(no_class[:, None], expected, places))


def with_teacher_logits(
    batches: Iterable[TrainingBatch],
    teacher: Callable[[Tensor], Tensor],
    cache: LogitCache | None = None,
    epoch: int = 0,
    first: int = 0,
) -> Iterator[TrainingBatch]:
    """Add the teacher's logits to an epoch's batches from number `first` on; a whole epoch's are cached."""
    stored = None if cache is None else cache.read(epoch)
    queried: list[Tensor] = []
    for step, batch in enumerate(batches, first):
        if stored is not None:
            logits = send(stored[step], batch.images.device)
        else:
            logits = teacher(batch.images).float()
            if cache is not None:
                queried.append(logits)
                if len(queried) == cache.steps:
                    cache.write(epoch, queried)
        yield batch._replace(teacher_logits=logits)
