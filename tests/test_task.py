"""The timm task contract."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from ngd_timm import CLASSES, InputError, NeuroGazeLoss, NeuroGazeTask, PrototypeGrid, save_student, wrap


def make(**options: float) -> NeuroGazeTask:
    torch.manual_seed(0)
    grid = PrototypeGrid.random(32)
    model = wrap("test_resnet", grid=grid, in_chans=1)
    return NeuroGazeTask(model, NeuroGazeLoss(grid, epochs=4, ramp=(0, 1), **options), verbose=False)


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
    with pytest.raises(InputError, match="does not say what its 8 classes are"):
        NeuroGazeTask(model, NeuroGazeLoss(grid), timm.create_model("test_resnet", num_classes=8))


def test_ema_and_eval_model_are_the_bare_student() -> None:
    task = make()
    assert task.get_eval_model() is task.trainable_module.student
    task.setup_ema(decay=0.5)
    task.update_ema()
    ema = task.get_eval_model(ema=True)
    assert ema is not task.get_eval_model()
    assert ema(batch()[0]).shape == (8, 8)


def test_measuring_the_gradient_leaves_no_trace() -> None:
    task = make()
    before = {k: v.clone() for k, v in task.state_dict().items()}
    random = torch.get_rng_state()
    norms = task.gradient_norms(*batch())
    assert set(norms) == {"ce", "proto_kd", "d_geo"}
    assert all(torch.equal(v, before[k]) for k, v in task.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in task.parameters())


def test_shares_are_those_of_the_weighted_gradient_norms() -> None:
    task = make(ce=1.0, proto_kd=2.0, d_geo=0.0, kd=0.0)
    shares = task.gradient_shares({"ce": 3.0, "proto_kd": 0.5})
    assert shares == pytest.approx({"ce": 75, "proto_kd": 25})


def test_norms_equal_those_of_autograd_on_the_features_themselves() -> None:
    task = make()
    images, target = batch()
    model = task.trainable_module
    features = model.student.forward_features(images).detach().requires_grad_()
    logits, embedding = model.heads(features)
    terms = task.criterion.components(logits, embedding, target)
    expected = torch.autograd.grad(terms["proto_kd"], features)[0].norm()
    assert task.gradient_norms(images, target)["proto_kd"] == pytest.approx(float(expected), rel=1e-5)
