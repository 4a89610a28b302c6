"""The batches of the training loop, each with the teacher's logits of its images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ngd_timm.models.kd_cache import LogitCache


class TrainingBatch(NamedTuple):
    """What a training step needs, in the order of the arguments of `NeuroGazeTask`."""

    images: Tensor
    target: Tensor
    valence_arousal: Tensor | None
    teacher_logits: Tensor | None


def on_device(batches: Iterable[Any], device: torch.device) -> Iterator[TrainingBatch]:
    """The batches of a data set on the device, their images in the channels-last format."""
    for batch in batches:
        batch = batch.to(device)
        images = batch.images.to(memory_format=torch.channels_last)
        yield TrainingBatch(images, batch.target, batch.valence_arousal, None)


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
            logits = stored[step].to(batch.images.device)
        else:
            logits = teacher(batch.images).float()
            if cache is not None:
                queried.append(logits)
                if len(queried) == cache.steps:
                    cache.write(epoch, queried)
        yield batch._replace(teacher_logits=logits)
