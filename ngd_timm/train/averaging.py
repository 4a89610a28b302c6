"""Averages of the weights: over the steps (EMA), or over the last epochs (stochastic weight averaging)."""

from __future__ import annotations

from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from timm.utils import unwrap_model
from torch.optim.swa_utils import update_bn

from ngd_timm.train.batches import on_device

if TYPE_CHECKING:
    from ngd_timm.train.setup import Setup

_BATCHES = 64  # thousands of images, enough for the means of any channel


def update_average(setup: Setup, update: int) -> None:
    """Take the weights after a step into their average: after every one with `ema`, after an epoch's last with `swa`.

    The average of `swa` is a moving one whose decay is n / (n + 1) after n epochs, the equal mean of all; before the
    first of them n is 0, and the average is the weights themselves. Done within the last step, it is done once,
    wherever a run is stopped and resumed.
    """
    task, optim = setup.task, setup.recipe.optim
    if optim.swa is None:
        task.update_ema(update)
        return
    epoch, step = divmod(update, len(setup.batches))
    if step + 1 == len(setup.batches):
        n = optim.averaged_before(epoch)
        average: Any = task.get_trainable_module(ema=True)
        average.decay = n / (n + 1)
        task.update_ema()


def renew_batch_norm(setup: Setup, epoch: int) -> None:
    """Estimate the batch norm statistics of averaged weights on an epoch's first images, as it augmented them.

    In float32, as students are scored. Weights that are not the mean of several epochs keep the statistics that they
    were trained with. Random numbers stay as they were.
    """
    if setup.recipe.optim.swa is None or not setup.recipe.optim.averaged_before(epoch):
        return
    setup.batches.set_epoch(epoch)
    devices = [setup.device] if setup.device.type == "cuda" else []
    model = unwrap_model(setup.task.get_trainable_module(ema=True))
    batches = on_device(setup.batches.batches(), setup.device)
    with closing(batches), torch.random.fork_rng(devices):
        update_bn((batch.images for batch in islice(batches, _BATCHES)), model)
