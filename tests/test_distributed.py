"""Two gloo processes against one process on the joined batch."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ngd_timm.losses import DGeoLoss, cross_entropy


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(10, 16, generator=generator, dtype=torch.float64)
    return (
        z,
        torch.tensor([1, 1, 2, 2, 1, 0, 3, 2, 1, 6]),
        torch.rand(8, generator=generator, dtype=torch.float64) + 0.1,
    )


def objective(z: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    geo = DGeoLoss(variance_cap=0.05, margin=1.5, gather_distributed=True)
    return geo(z, y) + cross_entropy(z[:, :8], y, weight, 0.1)


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    z, y, weight = batch()
    # unequal parts: the last batch of an epoch
    part = slice(0, 7) if rank == 0 else slice(7, 10)
    z = z[part].requires_grad_()
    objective(z, y[part], weight).backward()
    torch.save(z.grad, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_give_the_gradient_of_one_process_on_the_joined_batch() -> None:
    z, y, weight = batch()
    z.requires_grad_()
    objective(z, y, weight).backward()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, (folder,), nprocs=2)
        parts = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    # DistributedDataParallel averages over ranks
    torch.testing.assert_close(torch.cat(parts) / 2, z.grad)
