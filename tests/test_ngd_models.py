"""The wrapper: bit-equal logits, one backbone pass, timm's conveniences passed on."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import ngd_timm
from ngd_timm.errors import InputError
from ngd_timm.ngd_models import DistillationWrapper, wrap
from ngd_timm.prototypes import PrototypeGrid

# one of each kind: plain conv, cls token, BN in the head, a classifier that is not the last word (two heads)
FAMILIES = ["test_resnet", "test_vit", "mobilenetv4_conv_small_035", "levit_128s"]


def inputs(model: nn.Module, n: int = 2) -> torch.Tensor:
    return torch.randn(n, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_bit_equal_to_the_bare_student_with_and_without_embedding(name: str) -> None:
    model = wrap(name, embedding_dim=24).eval()
    images = inputs(model)
    bare = model.student(images)
    assert torch.equal(model(images), bare)
    logits, embedding = model(images, return_embedding=True)
    assert torch.equal(logits, bare)
    assert embedding.shape == (2, 24)


def test_registered_resnet18_is_bit_equal_to_its_bare_student() -> None:
    model = timm.create_model("ngd_resnet18", embedding_dim=512, in_chans=1).eval()
    images = torch.randn(2, 1, 64, 64)
    assert isinstance(model, DistillationWrapper)
    assert model.projection is not None
    assert torch.equal(model(images), model.student(images))
    assert torch.equal(model(images, return_embedding=True)[0], model.student(images))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_training_pass_updates_batch_norm_statistics_once(name: str) -> None:
    torch.manual_seed(0)
    model = wrap(name, embedding_dim=24).train()
    images = inputs(model, 4)
    bare = timm.create_model(name, num_classes=8).train()
    bare.load_state_dict(model.student.state_dict())
    bare.forward_head(bare.forward_features(images))
    model(images, return_embedding=True)
    for key, value in bare.state_dict().items():
        assert torch.equal(value, model.student.state_dict()[key]), key


def test_backbone_runs_once_for_logits_and_embedding() -> None:
    model = wrap("test_resnet", embedding_dim=24)
    calls = []
    model.student.conv1.register_forward_hook(lambda *_: calls.append(1))
    model(inputs(model), return_embedding=True)
    assert len(calls) == 1


def test_every_timm_architecture_has_its_ngd_name_and_none_is_exported_by_a_star_import() -> None:
    plain = {n for n in timm.list_models() if not n.startswith("ngd_")}
    assert {f"ngd_{n}" for n in plain} == set(timm.list_models("ngd_*"))
    assert timm.list_models(module="ngd_models")
    from ngd_timm import ngd_models

    assert ngd_models.__all__ == ["DistillationWrapper", "wrap"]


def test_projection_is_there_for_a_grid_even_at_equal_width_and_absent_without_one() -> None:
    plain = wrap("test_resnet")
    assert plain.projection is None
    width = plain.student.head_hidden_size
    assert wrap("test_resnet", grid=PrototypeGrid.random(width)).projection is not None
    assert plain(inputs(plain), return_embedding=True)[1].shape == (2, width)


def test_timm_optimizer_and_layer_decay_see_the_students_own_rules() -> None:
    from timm.optim import create_optimizer_v2

    model = wrap("test_vit", embedding_dim=24)
    undecayed = {f"student.{n}" for n in model.student.no_weight_decay()}
    assert undecayed
    assert model.no_weight_decay() == undecayed
    groups = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5).param_groups
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    assert model.projection is not None
    assert scale[id(model.projection.weight)] == 1
    assert scale[id(model.student.patch_embed.proj.weight)] < 0.5


def test_wrapper_passes_on_what_timm_users_reach_for() -> None:
    model = wrap("test_resnet", num_classes=8, embedding_dim=24)
    assert model.pretrained_cfg is model.student.pretrained_cfg
    model.reset_classifier(5)
    assert model.num_classes == 5
    assert model(inputs(model)).shape == (2, 5)
    model.set_grad_checkpointing()
    assert model.get_classifier() is model.student.get_classifier()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: wrap("resnet81"), "did you mean 'resnet18'"),
        (lambda: wrap("test_resnet", features_only=True), "features_only models have no logits"),
        (lambda: wrap("test_resnet", num_classes=0), "num_classes=0"),
        (lambda: wrap(nn.Linear(2, 2)), "wrap a timm classification model"),
        (lambda: wrap("test_resnet", grid=PrototypeGrid.random(32), embedding_dim=16), "give one of the two"),
        (lambda: wrap(timm.create_model("test_resnet"), in_chans=1), "in_chans can't be applied"),
    ],
)
def test_what_cannot_be_wrapped_is_refused_in_a_sentence(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


def test_public_names_exist() -> None:
    for name in ngd_timm.__all__:
        assert getattr(ngd_timm, name) is not None
