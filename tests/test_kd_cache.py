"""A teacher's logits are computed once, read back to the last bit, and never taken from a damaged or foreign file."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tiny_recipe

from ngd_timm.core.errors import InputError
from ngd_timm.models import kd_cache
from ngd_timm.models.kd_cache import LogitCache
from ngd_timm.train.batches import TrainingBatch, with_teacher_logits
from ngd_timm.train.loop import train

KEY = {"teacher": "ab" * 32, "seed": 0}


class Teacher:
    """Any function of the images, which counts its queries."""

    queries = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.queries += 1
        return images.flatten(1)[:, :8].sin().bfloat16()


def batches(epoch: int, first: int = 0) -> Iterator[TrainingBatch]:
    generator = torch.Generator().manual_seed(epoch)
    whole = [torch.randn(4, 1, 3, 3, generator=generator) for _ in range(3)]
    return (TrainingBatch(images, torch.arange(4), None, None) for images in whole[first:])


def logits_of_two_epochs(cache: LogitCache | None, first: int = 0) -> tuple[list[torch.Tensor], int]:
    """The logits of every batch, and how many of them were queried."""
    teacher, logits = Teacher(), []
    for epoch in range(2):
        start = first if epoch == 0 else 0
        taught = with_teacher_logits(batches(epoch, start), teacher, cache, epoch, start)
        logits += [batch.teacher_logits for batch in taught]
    return logits, teacher.queries


def cache_in(folder: Path, **key: Any) -> LogitCache:
    return LogitCache(folder, KEY | key, steps=3)


def test_a_second_run_reads_what_the_first_one_queried_to_the_last_bit(tmp_path: Path) -> None:
    expected, queries = logits_of_two_epochs(None)
    first, second, other_seed = (cache_in(tmp_path, **key) for key in ({}, {}, {"seed": 1}))
    for cache, asks in ((first, 6), (second, 0), (other_seed, 6)):
        logits, queries = logits_of_two_epochs(cache)
        assert queries == asks
        assert all(torch.equal(*pair) for pair in zip(logits, expected, strict=True))
        assert logits[0].dtype == torch.float32
    assert len(list(tmp_path.iterdir())) == 2


def test_an_epoch_that_was_entered_midway_is_not_cached(tmp_path: Path) -> None:
    resumed = cache_in(tmp_path)
    logits_of_two_epochs(resumed, first=1)
    assert sorted(p.name for p in resumed.folder.glob("epoch*")) == ["epoch-0001.safetensors"]
    # and a cached epoch may be entered midway
    assert torch.equal(logits_of_two_epochs(resumed)[0][-1], logits_of_two_epochs(None)[0][-1])
    assert logits_of_two_epochs(resumed, first=1)[1] == 0


@pytest.mark.parametrize("damage", ["truncate", "alter", "pickle"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    cache = cache_in(tmp_path)
    logits_of_two_epochs(cache)
    file = cache.folder / "epoch-0001.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(data[:-40])
    elif damage == "alter":
        data[-2] ^= 1
        file.write_bytes(data)
    else:
        file.write_bytes(pickle.dumps({"logits": 1}))
    with pytest.raises(InputError, match=r"epoch-0001\.safetensors.*remove"):
        logits_of_two_epochs(cache_in(tmp_path))


def test_a_kill_before_the_file_has_its_name_leaves_no_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(tensors: dict[str, torch.Tensor], file: Path, _: object) -> None:
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(kd_cache, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        logits_of_two_epochs(cache_in(tmp_path))
    monkeypatch.undo()
    assert logits_of_two_epochs(cache_in(tmp_path))[1] == 6


def test_of_two_runs_that_share_a_cache_the_last_one_writes_a_whole_epoch(tmp_path: Path) -> None:
    first, second = cache_in(tmp_path), cache_in(tmp_path)
    for cache, offset in ((first, 0.0), (second, 1e-6)):  # as processors and numbers of threads round
        cache.write(0, [torch.ones(2, 8) + offset] * 3)
    assert torch.equal(torch.cat(cache_in(tmp_path).read(0) or ()), torch.ones(6, 8) + 1e-6)
    assert len(list(first.folder.glob("epoch*"))) == 1


def test_runs_with_a_cold_a_warm_and_no_cache_end_in_the_same_student(faces: Path, tmp_path: Path) -> None:
    teacher, weights = train(tiny_recipe(faces, tmp_path / "ce")), []
    for name, cache in (("none", None), ("cold", str(tmp_path / "cache")), ("warm", str(tmp_path / "cache"))):
        run = train(tiny_recipe(faces, tmp_path / name, teacher=str(teacher), loss={"kd": 0.3}, kd_cache=cache))
        weights.append((run / "student" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] == weights[2]
    (folder,) = (tmp_path / "cache").iterdir()
    assert sorted(p.stem for p in folder.glob("*.safetensors")) == ["epoch-0000", "epoch-0001"]
