"""A teacher's logits are asked for once, read back to the last bit, and never taken from a damaged or foreign file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from ngd_timm.core.errors import InputError
from ngd_timm.core.recipe import Recipe
from ngd_timm.models.kd_cache import CachedTeacher
from ngd_timm.models.kd_teacher import KDTeacher
from ngd_timm.train.loop import train

KEY = {"teacher": "ab" * 32, "seed": 0}


@pytest.fixture(scope="module")
def teacher() -> KDTeacher:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=8, in_chans=1)
    return KDTeacher(model, range(8), range(8), (0.5,), (0.25,))


def batches(epoch: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(epoch)
    return [torch.randn(4, 1, 32, 32, generator=generator) for _ in range(3)]


def run(teacher: CachedTeacher, epochs: int = 2, first: int = 0) -> list[torch.Tensor]:
    said = []
    for epoch in range(epochs):
        for step, images in enumerate(batches(epoch)):
            if epoch or step >= first:
                teacher.at(epoch, step)
                said.append(teacher(images))
                assert torch.equal(teacher(images), said[-1])  # gradients are measured on the same batch
    return said


def test_a_second_run_reads_what_the_first_one_asked_for_to_the_last_bit(teacher: KDTeacher, tmp_path: Path) -> None:
    first, second = (CachedTeacher(teacher, tmp_path, KEY, steps=3) for _ in range(2))
    asked, read = run(first), run(second)
    assert (first.queries, second.queries) == (6, 0)
    for one, two, images in zip(asked, read, batches(0) + batches(1), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, teacher(images))


def test_runs_with_a_cold_a_warm_and_no_cache_end_in_the_same_student(faces: Path, tmp_path: Path) -> None:
    base: dict[str, Any] = {
        "name": "tiny",
        "student": {"backbone": "test_resnet", "image_size": 32},
        "data": {"name": "schematic", "root": str(faces), "workers": 0},
        "optim": {"epochs": 2, "batch_size": 16, "lr": 1e-3},
        "share_every": 2,
    }
    taught_by = train(Recipe.model_validate(base | {"out": str(tmp_path / "ce")}))
    taught = base | {"teacher": str(taught_by), "loss": {"kd": 0.3}}
    cache = str(tmp_path / "cache")
    runs = {
        "none": train(Recipe.model_validate(taught | {"out": str(tmp_path / "none")})),
        "cold": train(Recipe.model_validate(taught | {"out": str(tmp_path / "cold"), "kd_cache": cache})),
        "warm": train(Recipe.model_validate(taught | {"out": str(tmp_path / "warm"), "kd_cache": cache})),
    }
    (folder,) = (tmp_path / "cache").iterdir()
    assert sorted(p.name for p in folder.glob("*.npy")) == ["epoch-0000.npy", "epoch-0001.npy"]
    weights = {name: (run / "student" / "model.safetensors").read_bytes() for name, run in runs.items()}
    assert weights["none"] == weights["cold"] == weights["warm"]
    other = Recipe.model_validate(taught | {"out": str(tmp_path / "other"), "kd_cache": cache, "seed": 1})
    train(other)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_another_key_has_a_folder_of_its_own(teacher: KDTeacher, tmp_path: Path) -> None:
    run(CachedTeacher(teacher, tmp_path, KEY, steps=3))
    other = CachedTeacher(teacher, tmp_path, {**KEY, "seed": 1}, steps=3)
    run(other)
    assert other.queries == 6
    assert len(list(tmp_path.iterdir())) == 2


def test_an_epoch_that_was_entered_midway_is_not_written(teacher: KDTeacher, tmp_path: Path) -> None:
    resumed = CachedTeacher(teacher, tmp_path, KEY, steps=3)
    run(resumed, first=1)
    assert sorted(p.name for p in resumed.folder.glob("*.npy")) == ["epoch-0001.npy"]
    again = CachedTeacher(teacher, tmp_path, KEY, steps=3)
    run(again)
    assert again.queries == 3


def test_it_leaves_no_entry_in_a_state_dict(teacher: KDTeacher, tmp_path: Path) -> None:
    assert not CachedTeacher(teacher, tmp_path, KEY, steps=3).state_dict()


@pytest.mark.parametrize("damage", ["truncate", "alter", "pickle"])
def test_a_damaged_file_is_refused_by_name(teacher: KDTeacher, tmp_path: Path, damage: str) -> None:
    cache = CachedTeacher(teacher, tmp_path, KEY, steps=3)
    run(cache)
    file = cache.folder / "epoch-0001.npy"
    data = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(data[:-40])
    elif damage == "alter":
        data[-2] ^= 1
        file.write_bytes(data)
    else:
        np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"epoch-0001\.npy") as excinfo:
        run(CachedTeacher(teacher, tmp_path, KEY, steps=3))
    assert "remove" in str(excinfo.value)


def test_a_kill_before_the_name_is_given_leaves_no_epoch(
    teacher: KDTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ngd_timm.models import kd_cache

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kd_cache, "sha256_file", killed)
    cache = CachedTeacher(teacher, tmp_path, KEY, steps=3)
    with pytest.raises(KeyboardInterrupt):
        run(cache)
    monkeypatch.undo()
    again = CachedTeacher(teacher, tmp_path, KEY, steps=3)
    run(again)
    assert again.queries == 6
