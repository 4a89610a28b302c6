"""The code for a GPU on a machine without one, on CUDA tensors that have a device and a shape and no values.

`FakeTensorMode` raises where tensors of two devices meet, and where the host needs a value of the device (`.item()`, a
boolean index), for which a GPU would be waited for. `Watch` raises where a copy waits. PyTorch's backward engine needs
a driver even then, so `backward` here calls the graph's nodes one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import tiny_recipe
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from ngd_timm import CLASSES, KDTeacher, NeuroGazeLoss, Predictor, PrototypeGrid, wrap
from ngd_timm.core.recipe import AugmentConfig, StudentConfig
from ngd_timm.data import FaceBatches, load_split
from ngd_timm.data.augment import AugmentDraw
from ngd_timm.eeg import TopomapOperator
from ngd_timm.evaluate.predictions import predict
from ngd_timm.evaluate.student import face_batches
from ngd_timm.models.student import create_student
from ngd_timm.train import loop
from ngd_timm.train.checkpoint import Checkpoints, Progress, RunningMeans
from ngd_timm.train.gradient_share import GradientShare
from ngd_timm.train.setup import Setup, build_optimizer, build_scheduler, build_task
from ngd_timm.train.task import NeuroGazeTask

CUDA = torch.device("cuda", 0)
GRID = PrototypeGrid.random(64)
aten = torch.ops.aten


class Waited(AssertionError):
    """A copy for which the host waits."""


class Watch(TorchDispatchMode):
    """Refuse copies that wait: from the device, where they are not counted as `allowed`, and blocking ones to it."""

    def __init__(self, allowed: int = 0) -> None:
        super().__init__()
        self.allowed = allowed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (aten._to_copy.default, aten.copy_.default):
            source = args[0] if func is aten._to_copy.default else args[1]
            waits = not (kwargs or {}).get("non_blocking", args[2] if len(args) > 2 else False)
            if (source.device.type, out.device.type) == ("cuda", "cpu"):
                self.allowed -= 1
                if self.allowed < 0:
                    raise Waited("a copy from the device")
            elif source.device.type != out.device.type and waits:
                raise Waited("a blocking copy to the device")
        return out


def gradients(root: Any, gradient: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Leaves and their gradients, by calling the nodes of a graph as the engine does."""
    waiting: dict[Any, int] = {}
    todo, seen = [root], set()
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            following = [n for n, _ in node.next_functions if n is not None]
            todo += following
            for n in following:
                waiting[n] = waiting.get(n, 0) + 1
    received: dict[Any, dict[int, Tensor]] = {root: {0: gradient}}
    ready = [root]
    while ready:
        node = ready.pop()
        got = received.pop(node, {})
        if hasattr(node, "variable"):
            if got:
                yield node.variable, got[0]
            continue
        sent: Any = (None,) * len(node.next_functions)
        if got:
            arguments = [got.get(i) for i in range(len(node._input_metadata))]
            own = isinstance(node, torch.autograd.function.BackwardCFunction)
            sent = node.apply(*arguments) if own else node(*arguments)
            sent = sent if isinstance(sent, tuple) else (sent,)
        for (n, i), value in zip(node.next_functions, sent, strict=True):
            if n is None:
                continue
            if value is not None:
                place = n._input_metadata[i]
                value = value if value.shape == place.shape else value.sum_to_size(place.shape)
                inputs = received.setdefault(n, {})
                inputs[i] = inputs[i] + value if i in inputs else value.to(place.dtype)
            waiting[n] -= 1
            if not waiting[n]:
                ready.append(n)


@torch.no_grad()
def backward(loss: Tensor) -> None:
    for leaf, gradient in gradients(loss.grad_fn, torch.ones_like(loss)):
        assert (leaf.device, leaf.shape) == (gradient.device, gradient.shape)
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


def move(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which can't swap fake parameters."""
    for child in module.children():
        child._apply(function)
    for name, value in module._parameters.items():
        if value is not None:
            module._parameters[name] = nn.Parameter(function(value.detach()), value.requires_grad)
    for name, value in module._buffers.items():
        if value is not None:
            module._buffers[name] = function(value)
    return module


def copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """A copy of a fake tensor without one of its mode."""
    new = tensor.detach().clone()
    memo[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
    return memo[id(tensor)]


def on_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """What the host decides, by real values: the order of the images, and the numbers that augment them."""

    def run(*arguments: Any) -> Any:
        with _disable_current_modes():
            return function(*arguments)

    return run


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here: tests/gpu runs the same on it")
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator())
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(nn.Module, "_apply", move)
    monkeypatch.setattr(FakeTensor, "__deepcopy__", copied, raising=False)
    for name in ("batches.epoch_order", "batches.draw_augment", "batches.generator_for", "augment.plan_batch"):
        module, _, function = f"ngd_timm.data.{name}".rpartition(".")
        monkeypatch.setattr(f"{module}.{function}", on_host(getattr(__import__(module, fromlist=[""]), function)))
    monkeypatch.setattr(AugmentDraw, "__getitem__", on_host(AugmentDraw.__getitem__))


def make(recipe: Any, faces: Path, precision: torch.dtype | None, seen: list[str]) -> Setup:
    """A run's parts on the device, by the functions that make them for `ngd train`."""
    images = load_split("schematic", faces, "train")[0]
    model = wrap(on_host(create_student)(recipe.student, 8), grid=GRID)
    counts = [3.0, 1, 2, 9, 4, 5, 6, 7]
    criterion = NeuroGazeLoss.from_config(recipe.loss, GRID, classes=CLASSES, epochs=4, class_counts=counts)
    task = build_task(recipe, model, criterion, CUDA)
    optimizer = build_optimizer(recipe.optim, task.trainable_module)
    teacher = KDTeacher(
        on_host(create_student)(StudentConfig(backbone="test_resnet", in_chans=3), 8), CLASSES, CLASSES, [0.5], [0.25]
    )
    share = GradientShare(task, None, 2)
    shares = {"ce": 100.0}
    share.task = SimpleNamespace(gradient_norms=lambda *_: seen.append("share"), gradient_shares=lambda _: shares)
    return Setup(
        recipe=recipe,
        device=CUDA,
        precision=precision,
        batches=FaceBatches(
            images,
            image_size=recipe.student.image_size,
            batch_size=8,
            train=True,
            augment=AugmentConfig(gamma=0.2, stretch=0.5, blur=0.05, downscale=0.3),
            device=CUDA,
        ),
        unlabelled=None,
        valid=None,
        best_on={},
        task=task,
        teacher=teacher.to(CUDA),
        logit_cache=None,
        gradient_share=share,
        optimizer=optimizer,
        scheduler=build_scheduler(recipe.optim, optimizer, 6),
        scaler=torch.amp.GradScaler("cuda", enabled=precision == torch.float16),
        grid=GRID,
        calibration=None,
        fingerprint={},
    )


def run_epoch(
    faces: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    backbone: str,
    precision: torch.dtype | None,
    size: int = 64,
) -> tuple[Setup, Progress, list[str]]:
    """An epoch of six steps of the whole objective, and what was done that waits, with the step before it."""
    recipe = tiny_recipe(
        faces,
        out,
        student={"backbone": backbone, "image_size": size},
        grid="gameemo-v2",
        teacher="none is opened",
        loss={"kd": 0.3, "proto_kd": 0.1, "d_geo": 0.1, "ramp": [0, 0]},
        optim={"epochs": 4, "batch_size": 8, "ema": 0.9},
    )
    seen, progress = list[str](), Progress()
    monkeypatch.setattr(loop, "_CHECK_EVERY", 4)
    monkeypatch.setattr(loop, "_refuse_nonfinite", lambda *_: seen.append(f"finite {progress.step}"))
    monkeypatch.setattr(RunningMeans, "means", lambda _: {})
    with FakeTensorMode(allow_non_fake_inputs=True):
        setup = make(recipe, faces, precision, seen)
        with Watch():
            loop._train_epoch(setup, progress, Checkpoints(out, 0), SimpleNamespace(number=0))
    return setup, progress, seen


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("backbone", "precision", "size"),
    [
        ("resnet18", torch.bfloat16, 64),
        ("resnet18", torch.float16, 64),
        ("resnet18", None, 64),
        ("vit_tiny_patch16_224", torch.bfloat16, 224),
        ("vit_tiny_patch16_224", torch.float16, 224),
        ("convnext_atto", torch.bfloat16, 64),
        ("convnext_atto", torch.float16, 64),
    ],
)
def test_a_training_step_stays_on_its_gpu_and_waits_for_it_only_as_scheduled(
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backbone: str,
    precision: torch.dtype | None,
    size: int,
) -> None:
    setup, progress, seen = run_epoch(faces, tmp_path, monkeypatch, backbone, precision, size)
    assert progress.step == 6
    assert seen == ["share", "share", "finite 4", "share", "finite 6"]
    task = setup.task
    tensors = [*task.parameters(), *task.buffers(), *setup.teacher._held[0].parameters(), *setup.teacher.buffers()]
    tensors += [p.grad for p in task.trainable_module.parameters()]
    tensors += [value for state in setup.optimizer.state.values() for value in state.values()]
    means = [item for kept in (progress.means.sums, progress.means.seen) for item in kept.items()]
    tensors += [mean for names, mean in means if names != ("share_ce",)]  # which is a number anyway
    assert {str(t.device) for t in tensors} == {"cuda:0"}
    assert setup.scaler.is_enabled() == (precision == torch.float16)
    kernels = [p for p in task.trainable_module.parameters() if p.ndim == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


FAULTS: dict[str, tuple[Callable[[Tensor], Any], type[Exception] | tuple[type[Exception], ...]]] = {
    "item": (lambda loss: loss.item(), DataDependentOutputException),
    "a branch": (lambda loss: 1 if loss > 3 else 2, DataDependentOutputException),
    "a boolean index": (lambda loss: loss[None][loss[None] > 3], DynamicOutputShapeException),
    "a CPU tensor": (lambda loss: loss + torch.ones(8), RuntimeError),
    "a copy to the host": (lambda loss: loss.cpu(), Waited),
    "a blocking copy": (lambda loss: torch.ones(8).to(loss.device), Waited),
    "a constant": (lambda loss: torch.tensor([1.0, 2.0], device=loss.device), Waited),
}


@pytest.mark.usefixtures("cuda")
def test_means_go_on_from_a_checkpoint_wherever_it_left_them() -> None:
    with FakeTensorMode():
        cpu, losses = RunningMeans(), {"loss": torch.ones((), device=CUDA)}
        cpu.add({"loss": torch.ones(())})
        cpu.add({"share_ce": torch.ones(())})
        cpu.first_bad = {}  # which no checkpoint keeps
        progress = Progress(means=cpu)
        progress.finish_step(losses, {"ce": 100.0}, 4)
        devices = {names: sums.device.type for names, sums in progress.means.sums.items()}
    assert devices == {("loss",): "cuda", ("share_ce",): "cpu"}


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("fault", FAULTS)
def test_what_would_make_a_step_wait_or_mix_devices_is_found(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    do, error = FAULTS[fault]
    forward = NeuroGazeTask.forward

    def with_fault(task: NeuroGazeTask, *batch: Any) -> dict[str, Tensor]:
        losses = forward(task, *batch)
        do(losses["loss"])
        return losses

    monkeypatch.setattr(NeuroGazeTask, "forward", with_fault)
    with pytest.raises(error):
        run_epoch(faces, tmp_path, monkeypatch, "test_resnet", torch.bfloat16)


@pytest.mark.usefixtures("cuda")
def test_a_larger_set_is_decoded_on_the_host_and_augmented_on_the_gpu(faces: Path) -> None:
    images = load_split("schematic", faces, "train")[0]
    options: dict[str, Any] = {"image_size": 24, "batch_size": 8, "train": True, "in_memory": False, "device": CUDA}
    with FakeTensorMode(allow_non_fake_inputs=True):
        batches = FaceBatches(images, augment=AugmentConfig(), **options)
        with Watch():
            made = list(batches)
    assert len(made) == 6
    assert {str(t.device) for batch in made for t in (batch.images, batch.target, batch.index)} == {"cuda:0"}


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("backbone", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_scoring_copies_logits_and_embeddings_to_the_host_and_nothing_else(faces: Path, backbone: str) -> None:
    config = StudentConfig(backbone=backbone, image_size=64)
    batches = face_batches(create_student(config, 8), load_split("schematic", faces, "test")[0], batch_size=8)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = wrap(on_host(create_student)(config, 8), grid=GRID).to(CUDA)
        with Watch(allowed=2 * 2) as watch:
            predicted = predict(model, batches, CUDA, flip=True)
    assert watch.allowed == 0
    assert (predicted.logits.shape, predicted.embedding.shape) == ((16, 8), (16, 64))


@pytest.mark.usefixtures("cuda")
def test_a_predictor_waits_once_a_batch(student: Path) -> None:
    predictor = Predictor(student, "cpu", prior="training", views=2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        predictor.device, predictor.model = CUDA, predictor.model.to(CUDA)
        with Watch(allowed=1) as watch, torch.no_grad():
            logits = predictor._logits(torch.zeros(5, 1, 32, 32, dtype=torch.uint8))
    assert watch.allowed == 0
    assert (logits.shape, logits.device.type) == ((5, 8), "cpu")


@pytest.mark.usefixtures("cuda")
def test_topographic_maps_wait_for_no_copy_after_the_first() -> None:
    operator = TopomapOperator(["Fz", "Cz", "Pz", "C3", "C4"], size=16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        values = torch.randn(3, 5, device=CUDA, dtype=torch.bfloat16)
        operator(values)
        with Watch():
            maps = operator(values)
    assert (maps.shape, maps.dtype, maps.device) == ((3, 16, 16), torch.bfloat16, CUDA)
