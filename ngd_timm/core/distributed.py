"""Helpers for several processes that train one student under torchrun."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so
from torch import Tensor

from ngd_timm.core.errors import InputError


def distributed() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """How many processes train together; 1 without torchrun."""
    return dist.get_world_size() if distributed() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if distributed() else 0


def is_first() -> bool:
    """Whether this process writes and logs; known from torchrun's variables before `join`."""
    return (rank() if distributed() else int(os.environ.get("RANK", 0)) if _launched() else 0) == 0


def part_of(size: int, number: int, count: int) -> slice:
    """The rows of a global batch that process `number` of `count` takes: contiguous, of equal size up to one."""
    base, more = divmod(size, count)
    start = number * base + min(number, more)
    return slice(start, start + base + (number < more))


def agree(*values: int) -> tuple[int, ...]:
    """The largest of each value over all processes."""
    if not distributed():
        return values
    # on the CPU: a GPU would be stalled at every step
    together = torch.tensor(values)
    dist.all_reduce(together, op=dist.ReduceOp.MAX)
    return tuple(together.tolist())


def average(values: Tensor) -> Tensor:
    """Mean over all processes, the same bits on each."""
    if distributed():
        dist.all_reduce(values)
        values = values / dist.get_world_size()
    return values


def gather(value: Any) -> list[Any]:
    """The values of all processes, by rank."""
    if not distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def join() -> None:
    """Initialise torch.distributed under torchrun, once: gloo for CPU tensors, NCCL for those of a GPU."""
    if dist.is_available() and dist.is_initialized():
        if distributed() and "gloo" not in str(dist.get_backend_config()):
            raise InputError(
                f"torch.distributed was started with {dist.get_backend_config()}, training needs gloo too; start it "
                "with backend='cpu:gloo,cuda:nccl', or leave it to ngd_timm"
            )
        return
    if not _launched():
        return
    gpus, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", 0))
    count = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
    if 0 < gpus < count:
        raise InputError(f"{count} processes on this machine and {gpus} GPU(s); give --nproc-per-node {gpus}")
    init_distributed_device_so("cuda" if gpus else "cpu", "cpu:gloo,cuda:nccl" if gpus else "gloo")


def leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _launched() -> bool:
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ
