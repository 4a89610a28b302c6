"""What only a GPU can show: `pytest -n 0 -m gpu tests/gpu`. NGD_GPU_DEVICE=cpu rehearses it on a processor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny_runs import tiny_recipe

from ngd_timm import DistillationWrapper, NeuroGazeLoss, NeuroGazeTask, Predictor, PrototypeGrid, wrap
from ngd_timm.core.recipe import AugmentConfig, Recipe
from ngd_timm.data import FaceBatches, load_split
from ngd_timm.eeg import TopomapOperator
from ngd_timm.evaluate.run_log import read_rows
from ngd_timm.train import loop
from ngd_timm.train.checkpoint import Checkpoints, RunningMeans
from ngd_timm.train.interruption import Stopped

NAME = os.environ.get("NGD_GPU_DEVICE", "cuda")
DEVICE = torch.device(NAME)
ON_GPU = DEVICE.type == "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        ON_GPU and not torch.cuda.is_available(),
        reason="there is no GPU here that PyTorch can use; NGD_GPU_DEVICE=cpu rehearses without one",
    ),
]
GRID = PrototypeGrid.random(64)


@pytest.fixture(autouse=True)
def repeatable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def recipe(faces: Path, out: Path, **changes: Any) -> Recipe:
    optim = {"epochs": 2, "batch_size": 16, "lr": 1e-3, "ema": 0.5, **changes.pop("optim", {})}
    return tiny_recipe(faces, out, optim=optim, device=NAME, **changes)


def step_parts(**options: Any) -> tuple[DistillationWrapper, NeuroGazeTask, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = wrap("test_resnet", grid=GRID, in_chans=1).to(DEVICE).to(memory_format=torch.channels_last)
    task = NeuroGazeTask(model, NeuroGazeLoss(GRID, **options), device=DEVICE, verbose=False)
    images = torch.randn(16, 1, 32, 32, device=DEVICE).to(memory_format=torch.channels_last)
    return model, task, images, torch.arange(16, device=DEVICE) % 8


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_stopped_run_ends_in_the_bits_of_a_whole_one(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amp: str
) -> None:
    if amp == "fp16" and not ON_GPU:
        pytest.skip("fp16 is for a GPU")
    whole, cut = (recipe(faces, tmp_path / name, optim={"amp": amp}) for name in ("whole", "cut"))
    loop.train(whole)
    due, calls = Checkpoints.due, []

    def stop(checkpoints: Checkpoints) -> bool:
        calls.append(1)
        if len(calls) == 5:
            raise Stopped(15)
        return due(checkpoints) or len(calls) == 4

    monkeypatch.setattr(Checkpoints, "due", stop)
    with pytest.raises(Stopped):
        loop.train(cut)
    monkeypatch.setattr(Checkpoints, "due", due)
    loop.resume(tmp_path / "cut")
    weights = [(tmp_path / name / "student" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_losses_under_autocast_are_those_of_float32(precision: torch.dtype) -> None:
    if precision == torch.float16 and not ON_GPU:
        pytest.skip("fp16 is for a GPU")
    _, task, images, target = step_parts()
    expected = task(images, target)
    with torch.autocast(DEVICE.type, dtype=precision):
        losses = task(images, target)
    for name in ("loss", "ce", "proto_kd", "d_geo"):
        torch.testing.assert_close(losses[name], expected[name], rtol=0.03, atol=0.01, msg=name)


def test_a_compiled_step_has_the_losses_and_gradients_of_an_eager_one() -> None:
    gradients = []
    for compiled in (False, True):
        model, task, images, target = step_parts()
        if compiled:
            task.compile(backend="inductor" if ON_GPU else "aot_eager")
        task(images, target)["loss"].backward()
        gradients.append([p.grad for p in model.parameters()])
    for eager, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, eager, rtol=1e-3, atol=1e-4)


def test_a_step_waits_for_the_gpu_only_where_it_is_checked(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ON_GPU:
        pytest.skip("only a GPU is waited for; tests/test_fake_cuda.py shows the same without one")

    def strict(function: Any, mode: str) -> Any:
        def run(*arguments: Any) -> Any:
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode(mode)
            try:
                return function(*arguments)
            finally:
                torch.cuda.set_sync_debug_mode(before)

        return run

    for name, mode in (("_train_epoch", "error"), ("_refuse_nonfinite", "default")):
        monkeypatch.setattr(loop, name, strict(getattr(loop, name), mode))
    monkeypatch.setattr(RunningMeans, "means", strict(RunningMeans.means, "default"))
    loop.train(recipe(faces, tmp_path / "run", share_every=0, grid="gameemo-v2", loss={"proto_kd": 0.1, "d_geo": 0.1}))


@pytest.mark.parametrize("in_memory", [True, False])
def test_batches_augmented_on_the_gpu_are_those_of_the_processor(faces: Path, in_memory: bool) -> None:
    images = load_split("schematic", faces, "train")[0]
    options: dict[str, Any] = {"image_size": 24, "batch_size": 16, "train": True, "in_memory": in_memory}
    augment = AugmentConfig(gamma=0.2, stretch=0.5, blur=0.05, downscale=0.3)
    here = FaceBatches(images, augment=augment, **options)
    there = FaceBatches(images, augment=augment, device=DEVICE, ahead=True, **options)
    for one, other in zip(here, there, strict=True):
        assert other.images.device.type == other.target.device.type == DEVICE.type
        torch.testing.assert_close(other.images.cpu(), one.images, rtol=1e-3, atol=1e-3)
        assert torch.equal(other.target.cpu(), one.target)


def test_predictions_and_maps_are_those_of_the_processor(student: Path, faces: Path) -> None:
    from ngd_timm.data.synthetic.schematic import draw_face

    drawn = [draw_face("fear", seed=number) for number in range(5)]
    here, there = (Predictor(student, device)(drawn) for device in ("cpu", NAME))
    for one, other in zip(here, there, strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-3)
    operator, values = TopomapOperator(["Fz", "Cz", "Pz", "C3", "C4"], size=16), torch.randn(7, 5)
    torch.testing.assert_close(operator(values.to(DEVICE)).cpu(), operator(values), rtol=1e-4, atol=1e-4)


def test_one_process_trains_under_nccl(tmp_path: Path) -> None:
    dist.init_process_group(
        "nccl" if ON_GPU else "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        _, task, images, target = step_parts(gather_distributed=True)
        task.prepare_distributed([0] if ON_GPU else None)
        task(images, target)["loss"].backward()
        assert all(bool(p.grad.isfinite().all()) for p in task.get_clip_parameters())
    finally:
        dist.destroy_process_group()


def test_several_processes_with_one_batch_norm_have_the_losses_of_one(faces: Path, tmp_path: Path) -> None:
    count = torch.cuda.device_count() if ON_GPU else 2
    if count < 2:
        pytest.skip("there is one GPU here; several processes under NCCL need one each")
    keys = ["data.name=schematic", f"data.root={faces}", "data.workers=0", "optim.epochs=1", "optim.batch_size=16"]
    keys += ["student.image_size=32", 'optim.amp="off"', f"device={NAME}"]
    # SyncBN is for GPUs; without one a backbone that has no batch norm shows the same
    keys += ["student.backbone=test_resnet", "optim.sync_bn=true"] if ON_GPU else ["student.backbone=test_vit"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    for name, start in (("one", []), ("several", launcher)):
        out = f"out={tmp_path / name}"
        command = [sys.executable, *start, "-m", "ngd_timm.cli", "train", "b0_ce", *keys, out]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    one, several = (read_rows(tmp_path / name / "summary.csv")[-1] for name in ("one", "several"))
    assert float(several["loss"]) == pytest.approx(float(one["loss"]), rel=1e-2)
