"""The timm task contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.utils import NativeScaler
from torch import nn

from ngd_timm import CLASSES, InputError, NeuroGazeLoss, NeuroGazeTask, PrototypeGrid, save_student, wrap
from ngd_timm.core import devices


def make(**options: Any) -> NeuroGazeTask:
    torch.manual_seed(0)
    grid = PrototypeGrid.random(32)
    model = wrap("test_resnet", grid=grid, in_chans=1)
    return NeuroGazeTask(model, NeuroGazeLoss(grid, epochs=4, ramp=(0, 0.25), **options), verbose=False)


def test_the_criterion_goes_where_the_model_is() -> None:
    grid = PrototypeGrid.random(32)
    criterion = NeuroGazeLoss(grid)
    task = NeuroGazeTask(wrap("test_resnet", grid=grid, in_chans=1).to("meta"), criterion, verbose=False)
    assert {task.device.type, criterion.proto_kd.prototypes.device.type} == {"meta"}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(8)


def test_a_step_reaches_backbone_and_projection_with_finite_gradients() -> None:
    task = make()
    task.set_epoch(2)
    result = task(*batch())
    result["loss"].backward()
    assert {"loss", "output", "ce", "proto_kd", "d_geo"} <= set(result)
    for name, p in task.trainable_module.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name


def test_checkpoints_hold_bare_timm_keys_and_the_projection_apart() -> None:
    task = make()
    task.set_epoch(3)
    state = task.get_checkpoint_state()
    assert set(state["state_dict"]) == set(task.get_eval_model().state_dict())
    assert set(state["task_state"]["projection"]) == {"weight"}
    other = make()
    torch.nn.init.zeros_(other.trainable_module.projection.weight)
    other.load_checkpoint_state(state["state_dict"], state["task_state"])
    assert other.epoch == 3
    assert torch.equal(other.trainable_module.projection.weight, task.trainable_module.projection.weight)


def test_a_timm_model_or_a_folder_will_do_as_teacher(tmp_path: Path) -> None:
    folder = save_student(timm.create_model("test_resnet", num_classes=8), tmp_path / "teacher", CLASSES)
    named = timm.create_model(f"local-dir:{folder}", pretrained=True)
    losses = []
    for teacher in (str(folder), named):
        torch.manual_seed(0)
        grid = PrototypeGrid.random(32)
        model = wrap("test_resnet", grid=grid, in_chans=1).eval()
        losses.append(float(NeuroGazeTask(model, NeuroGazeLoss(grid), teacher, verbose=False)(*batch())["kd"]))
    assert losses[0] == losses[1] > 0
    task = NeuroGazeTask(model, NeuroGazeLoss(grid), named, verbose=False)
    images, target = batch()
    for values in (task, task.gradient_norms):  # logits that come with the batch are taken instead
        assert values(images, target, None, torch.zeros(8, 8))["kd"] != values(images, target)["kd"]
    with pytest.raises(InputError, match="does not say what its 8 classes are"):
        NeuroGazeTask(model, NeuroGazeLoss(grid), timm.create_model("test_resnet", num_classes=8))


def test_measuring_the_gradient_changes_nothing() -> None:
    task = make()
    before = {k: v.clone() for k, v in task.state_dict().items()}
    random = torch.get_rng_state()
    norms = task.gradient_norms(*batch())
    assert set(norms) == {"ce", "proto_kd", "d_geo"}
    assert all(torch.equal(v, before[k]) for k, v in task.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in task.parameters())


def test_norms_equal_those_of_autograd_on_the_features_themselves() -> None:
    task = make()
    images, target = batch()
    model = task.trainable_module
    features = model.student.forward_features(images).detach().requires_grad_()
    logits, embedding, _ = model.heads(features)
    terms = task.criterion.components(logits, embedding, target)
    expected = torch.autograd.grad(terms["proto_kd"], features)[0].norm()
    assert task.gradient_norms(images, target)["proto_kd"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_d_geo_on_the_features_leaves_the_projection_to_proto_kd(compiled: bool) -> None:
    task, images, target = make(d_geo_on="features", margin=9.0), *batch()
    model, d_geo = task.trainable_module, task.criterion.d_geo
    features = model(images, return_features=True)[2].detach()
    if compiled:
        task.compile(backend="aot_eager", fullgraph=True)
    task.set_epoch(2)
    torch.testing.assert_close(task(images, target)["d_geo"], d_geo(features, target))
    assert task.gradient_norms(images, target)["d_geo"] > 0
    task.criterion.weights |= {"ce": 0.0, "proto_kd": 0.0}
    task(images, target)["loss"].backward()
    assert not model.projection.weight.grad.any()
    assert any(p.grad is not None and p.grad.any() for p in model.student.parameters())
    with pytest.raises(InputError, match="needs features=…: call the model with return_features=True"):
        task.criterion(*model(images, return_embedding=True), target)


def grads(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_a_compiled_task_gives_the_same_losses_and_gradients_in_one_graph() -> None:
    plain, compiled = make().train(), make().train()
    compiled.compile(backend="aot_eager", fullgraph=True)
    results = []
    for task in (plain, compiled):
        task.set_epoch(2)
        result = task(*batch())
        result["loss"].backward()
        results.append(result)
    for name in ("loss", "ce", "proto_kd", "d_geo", "output"):
        torch.testing.assert_close(results[0][name], results[1][name])
    expected, found = grads(plain.get_eval_model()), grads(compiled.get_eval_model())
    assert found.keys() == expected.keys() != set()
    for name, g in found.items():
        torch.testing.assert_close(g, expected[name], rtol=1e-4, atol=1e-6)
    assert set(compiled.get_checkpoint_state()["state_dict"]) == set(plain.get_checkpoint_state()["state_dict"])


@pytest.mark.parametrize("name", ["resnetv2_18", "mobilenetv4_conv_small_035"])
def test_logits_and_embedding_are_one_graph_for_the_compiler_however_the_head_is_called(name: str) -> None:
    model = wrap(name, embedding_dim=8).eval()
    images = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for output, expected in zip(
        compiled(images, return_embedding=True), model(images, return_embedding=True), strict=True
    ):
        assert torch.equal(output, expected)


def test_measuring_under_autocast_leaves_every_weight_its_gradient() -> None:
    task = make()
    task.set_epoch(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        task.gradient_norms(*batch())
        task(*batch())["loss"].backward()
    assert all(p.grad is not None for p in task.trainable_module.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_backbone_runs_low_and_the_losses_in_float32(dtype: torch.dtype) -> None:
    task, reference = make().eval(), make().eval()
    for t in (task, reference):
        t.set_epoch(2)
    with torch.autocast("cpu", dtype=dtype):
        result = task(*batch())
    expected = reference(*batch())
    assert result["output"].dtype == dtype
    for name in ("loss", "ce", "proto_kd", "d_geo"):
        assert result[name].dtype == torch.float32
        torch.testing.assert_close(result[name], expected[name], rtol=0.02, atol=0.02)


def test_timms_loss_scaler_steps_an_fp16_task_with_its_clipping() -> None:
    task = make()
    task.set_epoch(2)
    optimizer = torch.optim.SGD(task.trainable_module.parameters(), lr=0.1)
    before = [p.detach().clone() for p in task.trainable_module.parameters()]
    with torch.autocast("cpu", dtype=torch.float16):
        loss = task(*batch())["loss"]
    NativeScaler(device="cpu")(loss, optimizer, clip_grad=1.0, parameters=task.get_clip_parameters())
    after = list(task.trainable_module.parameters())
    assert all(p.isfinite().all() for p in after)
    assert sum(float((p - q).detach().square().sum()) for p, q in zip(after, before, strict=True)) ** 0.5 <= 0.1001
    assert any(not torch.equal(p, q) for p, q in zip(after, before, strict=True))


def test_channels_last_reaches_the_student_and_changes_the_losses_by_rounding_only() -> None:
    plain, last = make().eval(), make().eval()
    last.to(memory_format=torch.channels_last)
    assert last.get_eval_model().conv1[3].weight.is_contiguous(memory_format=torch.channels_last)
    images, target = batch()
    result = last(images.to(memory_format=torch.channels_last), target)
    torch.testing.assert_close(result["loss"], plain(images, target)["loss"])


def test_the_ema_student_is_the_average_of_the_students_and_keeps_its_own_projection() -> None:
    task = make()
    start = {k: v.clone() for k, v in task.get_eval_model().state_dict().items()}
    assert task.get_eval_model() is task.trainable_module.student
    task.setup_ema(decay=0.75)
    optimizer = torch.optim.SGD(task.trainable_module.parameters(), lr=0.1)
    task(*batch())["loss"].backward()
    optimizer.step()
    task.update_ema()
    now, ema = task.get_eval_model().state_dict(), task.get_eval_model(ema=True).state_dict()
    moved = 0
    for name, value in now.items():
        if value.is_floating_point():
            torch.testing.assert_close(ema[name], 0.75 * start[name] + 0.25 * value)
            moved += not torch.equal(value, start[name])
    assert moved
    state = task.get_checkpoint_state(ema=True)
    assert set(state["state_dict_ema"]) == set(now)
    projection = task.trainable_module.projection.weight
    assert not torch.equal(state["task_state_ema"]["projection"]["weight"], projection)


def test_gradients_accumulated_over_two_halves_are_those_of_the_whole_batch() -> None:
    # batch norm fixed and D-Geo out: both look across the batch, and no accumulation can give them one they don't see
    whole, halves = make(d_geo=0.0).eval(), make(d_geo=0.0).eval()
    images, target = batch()
    whole(images, target)["loss"].backward()
    for part in (slice(0, 4), slice(4, 8)):
        with halves.no_sync():
            (halves(images[part], target[part])["loss"] / 2).backward()
    expected, found = grads(whole), grads(halves)
    assert found.keys() == expected.keys() != set()
    for name, g in found.items():
        torch.testing.assert_close(g, expected[name], rtol=1e-4, atol=1e-6)


def test_clipping_without_the_head_leaves_out_classifier_and_projection_and_no_more() -> None:
    task = make()
    wrapper = task.trainable_module
    left_out = [*wrapper.get_classifier().parameters(), wrapper.projection.weight]
    clipped = {id(p) for p in task.get_clip_parameters(exclude_head=True)}
    assert clipped == {id(p) for p in wrapper.parameters()} - {id(p) for p in left_out}
    assert len(list(task.get_clip_parameters())) == len(list(wrapper.parameters()))
    two_heads = NeuroGazeTask(wrap("levit_128s"), NeuroGazeLoss(None, proto_kd=0, d_geo=0), verbose=False)
    names = {id(p): n for n, p in two_heads.trainable_module.named_parameters()}
    kept = {names[id(p)] for p in two_heads.get_clip_parameters(exclude_head=True)}
    assert {n.split(".")[1] for n in set(names.values()) - kept} == {"head", "head_dist"}


@pytest.mark.parametrize(
    ("processor", "able", "groups", "chosen"),
    [
        ("AMD EPYC", {"avx512_bf16": True}, 1, torch.bfloat16),
        ("AMD EPYC", {"avx512_bf16": True}, 4, None),
        ("AMD EPYC", {}, 1, None),
        ("Intel(R) Xeon(R)", {"avx512_bf16": True}, 1, None),
        ("Intel(R) Xeon(R)", {"avx512_bf16": True, "amx_bf16": True}, 1, torch.bfloat16),
    ],
)
def test_auto_precision_goes_by_processor_and_model(
    processor: str, able: dict[str, bool], groups: int, chosen: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(devices, "processor_name", lambda: processor)
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=groups))
    assert devices.autocast_type("auto", torch.device("cpu"), model) is chosen
