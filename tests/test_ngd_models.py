"""The wrapper: bit-equal logits, one backbone pass, timm's conveniences passed on; students saved and loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg
from timm.models.resnet import ResNet
from torch import Tensor, nn

import ngd_timm
from ngd_timm.core.errors import InputError
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.models import ngd_models
from ngd_timm.models.head_calls import head_calls
from ngd_timm.models.ngd_models import DistillationWrapper, wrap
from ngd_timm.models.timm_folder import published

# one of each kind: plain conv, cls token, BN in the head, two heads, dropout behind the pre-logits
FAMILIES = ["test_resnet", "test_vit", "mobilenetv4_conv_small_035", "levit_128s", "lcnetv2_small"]


def inputs(model: nn.Module, n: int = 2) -> Tensor:
    return torch.randn(n, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(1))


def of_own_class(model: Any, **methods: Any) -> Any:
    """The same model as an instance of a class that timm doesn't have."""
    model.__class__ = type("Own", (type(model),), methods)
    return model


@pytest.mark.parametrize("return_embedding", [False, True])
def test_a_projection_that_no_loss_uses_gets_a_gradient_of_zero(return_embedding: bool) -> None:
    model = wrap("test_resnet", embedding_dim=24)
    assert model.projection is not None
    nn.init.constant_(model.projection.weight, float("inf"))
    output = model(inputs(model), return_embedding=return_embedding)
    logits = output[0] if return_embedding else output
    logits.sum().backward()
    assert logits.isfinite().all()
    assert model.projection.weight.grad is not None
    assert not model.projection.weight.grad.any()


def test_a_student_that_gives_two_logits_in_training_gives_them_through_the_wrapper() -> None:
    model = wrap("levit_128s", embedding_dim=24).train()
    model.student.set_distilled_training(True)
    logits = model(inputs(model, 4))
    assert [tuple(part.shape) for part in logits] == [(4, 8), (4, 8)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_class_that_timm_lacks_is_checked_by_numbers_with_timms_result(name: str) -> None:
    model = timm.create_model(name, num_classes=8, drop_rate=0.5)
    for p in model.parameters():
        nn.init.zeros_(p)  # any two logits of zeros are equal
    known = head_calls(model)
    own = head_calls(of_own_class(model))
    assert (own.classifier_is_last, own.width) == (known.classifier_is_last, known.width)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("replaced", [True, False])
def test_a_forward_that_does_more_than_its_parts_in_either_mode_is_refused(mode: bool, replaced: bool) -> None:
    model = timm.create_model("test_resnet", num_classes=8)

    def forward(self: Any, x: Tensor) -> Tensor:
        return ResNet.forward(self, x) * (2 if self.training is mode else 1)

    if replaced:
        model.forward = forward.__get__(model)
    else:
        model = of_own_class(model, forward=forward)
    with pytest.raises(InputError, match=r": forward_head\(forward_features\(x\)\) is not its forward"):
        wrap(model)


def test_a_model_is_checked_without_its_weights_and_left_as_it_was() -> None:
    with torch.device("meta"):
        assert wrap("vit_giant_patch14_224", num_classes=8).classifier_is_last
    model = timm.create_model("test_resnet", num_classes=8)
    for checked in (model, of_own_class(model)):
        weights = {k: v.clone() for k, v in checked.state_dict().items()}
        random = torch.get_rng_state()
        head_calls(checked)
        assert checked.training
        assert all(torch.equal(v, weights[k]) for k, v in checked.state_dict().items())
        assert torch.equal(random, torch.get_rng_state())


def test_a_model_that_has_its_own_input_size_or_precision_is_wrapped_as_it_is() -> None:
    model = wrap("vit_tiny_patch16_224", embedding_dim=24, img_size=32, in_chans=1).eval()
    assert model(torch.randn(1, 1, 32, 32), return_embedding=True)[1].shape == (1, 24)
    assert wrap(timm.create_model("test_resnet", num_classes=8).to(torch.bfloat16)).classifier_is_last


def test_backbone_runs_once_for_logits_and_embedding() -> None:
    model = wrap("test_resnet", embedding_dim=24)
    calls = []
    model.student.conv1.register_forward_hook(lambda *_: calls.append(1))
    model(inputs(model), return_embedding=True)
    assert len(calls) == 1


def test_every_timm_architecture_has_its_ngd_name_with_the_same_pretrained_weights() -> None:
    plain = {n for n in timm.list_models() if not n.startswith("ngd_")}
    assert {f"ngd_{n}" for n in plain} == set(timm.list_models("ngd_*"))
    assert timm.list_models(module="ngd_models")
    assert ngd_models.__all__ == ["DistillationWrapper", "wrap"]  # a star import brings none of them
    registered, names = timm.list_pretrained("ngd_*"), timm.list_pretrained(exclude_filters="ngd_*")
    assert [name.removeprefix("ngd_") for name in registered] == names
    for name in names:
        cfg, expected = get_pretrained_cfg(f"ngd_{name}"), get_pretrained_cfg(name)
        assert (cfg.hf_hub_id, cfg.url, cfg.file, cfg.tag) == (
            expected.hf_hub_id,
            expected.url,
            expected.file,
            expected.tag,
        )


@pytest.mark.parametrize("tag", ["a1_in1k", "tv_in1k"])
def test_create_model_with_a_tag_loads_that_tags_weights(tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queried = []

    def load(model: nn.Module, pretrained_cfg: dict[str, Any], **_: Any) -> None:
        queried.append(pretrained_cfg["hf_hub_id"])

    monkeypatch.setattr("timm.models._builder.load_pretrained", load)
    model = timm.create_model(f"ngd_resnet18.{tag}", pretrained=True)
    assert isinstance(model, DistillationWrapper)
    assert queried == [f"timm/resnet18.{tag}"]
    assert (model.pretrained_cfg["architecture"], model.pretrained_cfg["tag"]) == ("resnet18", tag)
    with pytest.raises(RuntimeError, match="Invalid pretrained tag"):
        timm.create_model("ngd_resnet18.no_such_tag", pretrained=True)


def test_projection_is_there_for_a_grid_even_at_equal_width_and_absent_without_one() -> None:
    plain = wrap("test_resnet")
    assert plain.projection is None
    width = plain.student.head_hidden_size
    assert wrap("test_resnet", grid=PrototypeGrid.random(width)).projection is not None
    assert plain(inputs(plain), return_embedding=True)[1].shape == (2, width)


def test_without_a_projection_the_embedding_is_the_features_and_any_model_gives_them_from_the_same_pass() -> None:
    grid = PrototypeGrid.random(wrap("test_resnet").head_hidden_size)
    bare = timm.create_model("ngd_test_resnet", grid=grid, projection="none").eval()
    projected = wrap(bare.student, grid=grid).eval()
    images = inputs(bare)
    expected = bare.student.forward_head(bare.student.forward_features(images), pre_logits=True)
    for model in (bare, projected):
        logits, embedding, features = model(images, return_features=True)
        assert torch.equal(logits, model(images))
        assert torch.equal(features, expected)
        assert torch.equal(embedding, model(images, return_embedding=True)[1])
        assert torch.equal(embedding, features) == (model is bare)


def test_wrapper_passes_on_what_timm_users_reach_for() -> None:
    model = wrap("test_resnet", num_classes=8, embedding_dim=24)
    assert model.pretrained_cfg is model.student.pretrained_cfg
    model.reset_classifier(5)
    assert model.num_classes == 5
    model.set_grad_checkpointing()
    assert model.get_classifier() is model.student.get_classifier()
    assert model.head_hidden_size == model.student.head_hidden_size
    assert wrap("test_resnet", in_chans=1).in_chans == 1
    with pytest.raises(InputError, match="would leave no logits"):
        model.reset_classifier(0)
    assert model(inputs(model)).shape == (2, 5)
    with pytest.raises(InputError, match="leave global_pool at its default"):
        wrap("test_vit", embedding_dim=24).reset_classifier(8, global_pool="")


def encoder() -> nn.Module:
    with torch.device("meta"):
        return timm.create_model("qwen3_vit_88m_enc")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: wrap("resnet81"), "did you mean 'resnet18'"),
        (lambda: wrap("test_resnet", features_only=True), "FeatureListNet has no forward_features"),
        (lambda: wrap("test_resnet", num_classes=0), "num_classes=0"),
        (lambda: wrap("test_vit", global_pool=""), "leave global_pool at its default"),
        (lambda: wrap("test_resnet", global_pool=""), "choose another in_chans, img_size, global_pool"),
        (lambda: wrap("csatv2", in_chans=1), r"can't run on images of its own input size \(1, 512, 512\)"),
        (lambda: wrap("ngd_test_resnet"), "wrapped already"),
        (lambda: wrap("resnet18.a9_in1k"), "unknown tag of resnet18 'a9_in1k'; did you mean 'a3_in1k'"),
        (lambda: wrap(nn.Linear(2, 2), num_classes=8), "wrap a timm classification model"),
        (lambda: wrap(timm.create_model("test_vit", features_only=True), 8), "FeatureGetterNet has no"),
        (lambda: wrap(encoder()), "Qwen3VitEncoder has no get_classifier.*not an encoder"),
        (lambda: wrap("test_resnet", grid=PrototypeGrid.random(32), embedding_dim=16), "give one of the two"),
        (lambda: wrap(timm.create_model("test_resnet"), in_chans=1), "in_chans can't be applied"),
        (lambda: wrap("resnet18", grid=PrototypeGrid.random(64), projection="none"), "which is 512, got 64; build one"),
        (lambda: wrap("test_resnet", projection="mlp"), "unknown projection 'mlp'.* Allowed: linear, none"),
    ],
)
@pytest.mark.filterwarnings("ignore:CSATv2")
def test_what_cannot_be_wrapped_is_refused_in_a_sentence(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


def test_a_name_that_timm_has_changed_stands_for_the_new_one() -> None:
    name, cfg = published("tf_efficientnet_b0_ns")
    assert (name, bool(cfg.has_weights)) == ("tf_efficientnet_b0.ns_jft_in1k", True)


def test_a_student_whose_modules_are_used_twice_is_saved_and_loaded_by_timm(tmp_path: Path) -> None:
    student = timm.create_model("test_resnet", num_classes=8).eval()
    student.layer1[0].conv2 = student.layer1[0].conv1
    images = inputs(student)
    folder = ngd_timm.save_student(student, tmp_path / "student")
    assert student.layer1[0].conv2 is student.layer1[0].conv1
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(loaded(images), student(images))


def test_a_student_replaces_a_student_and_nothing_else(tmp_path: Path) -> None:
    student = timm.create_model("test_resnet", num_classes=8)
    folder = ngd_timm.save_student(student, tmp_path / "student")
    ngd_timm.save_student(student, folder)
    (folder / "README.md").write_text("mine")
    with pytest.raises(InputError, match=r"not a student \(README.md\) and would be lost; choose an empty"):
        ngd_timm.save_student(student, folder)
    assert (folder / "README.md").read_text() == "mine"
    (folder / "README.md").rename(folder / ".DS_Store")  # what a file manager leaves stops no training
    ngd_timm.save_student(student, folder)
    with pytest.raises(InputError, match=r"config\.json is a file; choose an empty or new folder"):
        ngd_timm.save_student(student, folder / "config.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda model: ngd_timm.set_input(model, 64),
        lambda model: ngd_timm.calibrate(model, torch.eye(8), torch.arange(8)),
        lambda model: ngd_timm.adjust_logits(model, [1] * 8),
    ],
    ids=["set_input", "calibrate", "adjust_logits"],
)
def test_what_is_noted_of_a_student_is_not_noted_of_its_wrapper(change: Callable[[object], object]) -> None:
    with pytest.raises(InputError, match=r"takes the bare student: pass model\.student"):
        change(wrap("test_resnet", num_classes=8, embedding_dim=16))


def test_a_timm_model_in_transformers_wrapper_is_taken_out_of_it() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmWrapperConfig(architecture="test_resnet", num_labels=8, do_pooling=False)
    outer = transformers.TimmWrapperForImageClassification(config).eval()
    model = wrap(outer, embedding_dim=16).eval()
    assert model.student is outer.timm_model
    images = torch.randn(2, 3, 32, 32)
    logits, embedding = model(images, return_embedding=True)
    torch.testing.assert_close(logits, outer(images).logits)
    assert embedding.shape == (2, 16)
