"""Several processes that train one student: joining torchrun's, agreeing, writing once, and ending together."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

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
    "part_of",
    "processes",
    "rank",
    "world_size",
]

_POLL_SECONDS, _FAREWELL_SECONDS = 0.2, 10.0


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
    if 0 < gpus <= local:
        raise InputError(f"process {local} of this machine has no GPU: there are {gpus}; give --nproc-per-node {gpus}")
    init_distributed_device_so("cuda" if gpus else "cpu", "cpu:gloo,cuda:nccl" if gpus else "gloo")


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Within the block torchrun's processes work together, and an error in one of them ends all of them.

    The first process says what it was; the others stay silent and exit with 2. A process that is stuck in a collective
    whose partner is gone is ended too, so nothing hangs.
    """
    if not _launched():
        yield
        return
    alarm = _Alarm()
    try:
        join()
        yield
    except Exception as error:
        alarm.raise_for_all(str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")
        raise
    finally:
        alarm.stop()
    if dist.is_initialized():
        dist.destroy_process_group()


def _launched() -> bool:
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ


class _Alarm(threading.Thread):
    """Watches, over a connection of its own, for a process that failed: the main thread may be stuck waiting for it."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="ngd-alarm")
        self.number, self.count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.over = threading.Event()
        self.leaving = threading.Lock()
        self.store: dist.Store | None = None
        self.start()

    def run(self) -> None:
        store = self._connect()
        while store is not None and not self.over.wait(_POLL_SECONDS):
            try:
                if store.check(["message"]):
                    self._leave(store)
            except RuntimeError:
                return  # whoever held the store has ended; torchrun, or the broken connection, ends this one

    def _connect(self) -> dist.Store | None:
        host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
        if host is None or port is None:
            return None
        try:
            store = dist.TCPStore(host, int(port), None, False, timedelta(minutes=5), wait_for_workers=False)
        except RuntimeError:
            return None  # without a meeting place there is no joining either, and that says why
        attempt = f"{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self.store = dist.PrefixStore(f"ngd/{attempt}", store)
        return self.store

    def _leave(self, store: dist.Store) -> None:
        if not self.leaving.acquire(blocking=False):
            return
        if self.number == 0:
            print(f"ngd: {store.get('message').decode()}", file=sys.stderr, flush=True)
        store.add("heard", 1)
        os._exit(2)

    def raise_for_all(self, message: str) -> None:
        """Tell the others, and wait a moment for them: torchrun ends them, unheard, as soon as this process is gone."""
        store = self.store
        if store is None or not self.leaving.acquire(blocking=False):
            return
        if threading.current_thread() is threading.main_thread():
            # torchrun ends the rest once one is gone; this process is about to end by itself, with its own code
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with contextlib.suppress(RuntimeError):
            if store.add("failed", 1) == 1:
                store.set("message", message)
            store.add("heard", 1)
            deadline = time.monotonic() + _FAREWELL_SECONDS
            while store.add("heard", 0) < self.count and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS / 4)

    def stop(self) -> None:
        self.over.set()
        if self.is_alive() and self.store is not None:
            self.join(timeout=2 * _POLL_SECONDS)
