"""Several processes that train one student: joining torchrun's, agreeing, and writing once."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so
from torch import Tensor

from ngd_timm.core.errors import InputError

__all__ = [
    "agree",
    "average",
    "distributed",
    "gather_bytes",
    "is_first",
    "join",
    "leave",
    "part_of",
    "rank",
    "world_size",
]


def distributed() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """How many processes train together; 1 without torchrun.

    Example:
        >>> world_size(), rank(), is_first()
        (1, 0, True)
    """
    return dist.get_world_size() if distributed() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if distributed() else 0


def is_first() -> bool:
    """Whether this is the process that writes and speaks; known from torchrun's variables before they have met."""
    return (rank() if distributed() else int(os.environ.get("RANK", 0)) if _launched() else 0) == 0


def part_of(size: int, number: int, count: int) -> slice:
    """The rows of a global batch that process `number` of `count` takes: contiguous, all of them, equal up to one.

    Example:
        >>> [part_of(5, number, 2) for number in (0, 1)]
        [slice(0, 3, None), slice(3, 5, None)]
    """
    base, more = divmod(size, count)
    start = number * base + min(number, more)
    return slice(start, start + base + (number < more))


def agree(*values: int) -> tuple[int, ...]:
    """The largest of each value over all processes: what one of them asks for, all of them do.

    Example:
        >>> agree(0, 15)
        (0, 15)
    """
    if not distributed():
        return values
    # on the CPU: asking a GPU for the answer would stall it at every step
    together = torch.tensor(values)
    dist.all_reduce(together, op=dist.ReduceOp.MAX)
    return tuple(together.tolist())


def average(values: Tensor) -> Tensor:
    """Mean over all processes, the same bits on each."""
    if distributed():
        dist.all_reduce(values)
        values = values / dist.get_world_size()
    return values


def gather_bytes(state: Tensor) -> list[Tensor]:
    """A uint8 tensor of every process, in the order of their numbers, on the CPU."""
    if not distributed():
        return [state.cpu()]
    parts = [torch.empty_like(state, device="cpu") for _ in range(dist.get_world_size())]
    dist.all_gather(parts, state.cpu())
    return parts


def join() -> None:
    """Meet the processes that torchrun started, once; nothing to do where there is one.

    CPU tensors travel by gloo, those of a GPU by NCCL.

    Raises:
        InputError: More processes than GPUs, or a group that somebody else started without gloo.
    """
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
    """Take leave of the processes that `join` met."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _launched() -> bool:
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ
