"""Two gloo processes against one process on the joined batch."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.metrics import accuracy_score, f1_score, recall_score

from ngd_timm.losses import DGeoLoss, cross_entropy
from ngd_timm.metrics import fer_metrics, gather_rows


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


def label_set(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Logits, targets of some of the classes, people, and how many rows the first of two processes has."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    target = torch.from_numpy(rng.choice(rng.choice(8, rng.integers(1, 9), replace=False), n))
    logits = torch.from_numpy(rng.normal(size=(n, 8)) + 1.5 * np.eye(8)[target]).float()
    return logits, target, torch.from_numpy(rng.integers(0, 5, n)), int(rng.integers(0, n + 1))


def score_a_part(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    entries = []
    for logits, target, people, first in map(label_set, range(40)):
        order = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))
        index = order[:first] if rank == 0 else order[first:]
        # as a sampler pads its last batch
        index = torch.cat([index, order[:1]])
        whole = [gather_rows(rows[index], index) for rows in (logits, target, people)]
        entries.append(
            [fer_metrics(*whole[:2], resamples=20), fer_metrics(*whole[:2], subjects=whole[2], resamples=20)]
        )
    Path(folder, f"{rank}.json").write_text(json.dumps(entries))
    dist.destroy_process_group()


def test_two_ranks_give_the_figures_of_one_process_to_the_last_bit_and_those_of_scikit_learn() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(score_a_part, (folder,), nprocs=2)
        ranks = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in (0, 1)]
    for number, (logits, target, people, _) in enumerate(map(label_set, range(40))):
        alone = [fer_metrics(logits, target, resamples=20), fer_metrics(logits, target, subjects=people, resamples=20)]
        assert ranks[0][number] == ranks[1][number] == alone
        seen, answer = target.unique().tolist(), logits.argmax(1)
        for protocol, labels in (("8way", list(range(8))), ("present_unmasked", seen)):
            expected = {
                "acc": accuracy_score(target, answer),
                "macro_f1": f1_score(target, answer, labels=labels, average="macro", zero_division=0),
                "bacc": recall_score(target, answer, labels=labels, average="macro", zero_division=0),
            }
            for metric, value in expected.items():
                assert abs(ranks[0][number][0][protocol][metric] - 100 * value) < 1e-9
