"""The losses against slow references written from the formulas, and at their edges."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ngd_timm.core.affect import CLASSES, anchors
from ngd_timm.core.errors import InputError
from ngd_timm.core.recipe import LossConfig, Recipe, load_recipe
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.losses import (
    DGeoLoss,
    LogitKDLoss,
    NeuroGazeLoss,
    ProtoKDLoss,
    class_weights,
    cross_entropy,
    logit_kd_loss,
    ramp_weight,
)
from ngd_timm.losses.functional import unit

DIM = 32


@pytest.fixture(scope="module")
def grid() -> PrototypeGrid:
    return PrototypeGrid.random(DIM, seed=3)


def embeddings(n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def slow_softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [p / sum(powers) for p in powers]


def slow_unit(vector: np.ndarray) -> np.ndarray:
    return vector / math.sqrt(sum(float(v) ** 2 for v in vector))


def slow_proto_target(va: np.ndarray, grid: PrototypeGrid, tau: float, sigma: float, target: str) -> list[float]:
    prototypes, centers = grid.prototypes.double().numpy(), grid.centers.double().numpy()
    place = slow_softmax([-float(((va - c) ** 2).sum()) / (2 * sigma**2) for c in centers])
    if target == "va":
        return place
    mean = slow_unit(sum(a * p for a, p in zip(place, prototypes, strict=True)))
    return slow_softmax([float(mean @ p) / tau for p in prototypes])


def slow_proto_kd(z: np.ndarray, q: list[float], grid: PrototypeGrid, tau: float) -> float:
    student = slow_softmax([float(slow_unit(z) @ p) / tau for p in grid.prototypes.double().numpy()])
    return sum(a * math.log(a / b) for a, b in zip(q, student, strict=True) if a > 0)


@pytest.mark.parametrize("target", ["prototype", "va"])
@pytest.mark.parametrize("tau", [0.9, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_proto_kd_equals_the_formula_written_out(
    grid: PrototypeGrid, target: str, tau: float, dtype: torch.dtype
) -> None:
    z, y = embeddings(6, dtype), torch.tensor([0, 1, 4, 6, 7, 1])
    loss = ProtoKDLoss(grid, tau=tau, target=target, sigma=0.4)(z, y)
    va = anchors(CLASSES).astype(np.float64)
    slow = [
        slow_proto_kd(row, slow_proto_target(va[c], grid, tau, 0.4, target), grid, tau)
        for row, c in zip(z.double().numpy(), y.tolist(), strict=True)
    ]
    assert float(loss) == pytest.approx(float(np.mean(slow)), rel=2e-5, abs=2e-6)


def test_where_an_embedding_lies_depends_on_no_precision(grid: PrototypeGrid) -> None:
    loss, embedding = ProtoKDLoss(grid, tau=0.1), torch.randn(3, grid.dim, dtype=torch.float64)
    exact = loss.place(embedding)
    assert exact.dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss.place(embedding.float()).double(), exact, rtol=1e-4, atol=1e-5)


def test_proto_kd_mixes_the_targets_of_soft_labels(grid: PrototypeGrid) -> None:
    loss, z = ProtoKDLoss(grid, tau=0.1), embeddings(1, torch.float32)
    mixed = 0.25 * loss.class_targets[2] + 0.75 * loss.class_targets[5]
    soft = torch.zeros(1, 8)
    soft[0, 2], soft[0, 5] = 0.25, 0.75
    slow = slow_proto_kd(z[0].double().numpy(), mixed.tolist(), grid, 0.1)
    assert float(loss(z, soft)) == pytest.approx(slow, rel=1e-4)
    assert float(loss(z, torch.eye(8)[[3]])) == pytest.approx(float(loss(z, torch.tensor([3]))))


def test_proto_kd_takes_an_images_own_valence_arousal_and_the_class_where_that_is_unknown(grid: PrototypeGrid) -> None:
    loss, z, y = ProtoKDLoss(grid, tau=0.1), embeddings(2, torch.float32), torch.tensor([1, 1])
    own = torch.tensor([[-0.7, 0.2], [math.nan, math.nan]])
    target = slow_proto_target(np.array([-0.7, 0.2]), grid, 0.1, 0.4, "prototype")
    first = slow_proto_kd(z[0].double().numpy(), target, grid, 0.1)
    second = float(loss(z[1:], y[1:]))
    assert float(loss(z, y, own)) == pytest.approx((first + second) / 2, rel=1e-4)


def slow_d_geo(z: np.ndarray, y: list[int], cap: float, margin: float, positive: tuple[int, ...]) -> float:
    units = [slow_unit(row) for row in z]
    present = sorted(set(y))
    means = {c: np.mean([u for u, k in zip(units, y, strict=True) if k == c], axis=0) for c in present}
    caps = []
    for c in positive:
        members = [u for u, k in zip(units, y, strict=True) if k == c]
        if len(members) >= 2:
            variance = np.mean([((u - means[c]) ** 2).sum() for u in members])
            caps.append(max(0.0, float(variance) - cap))
    va = anchors(CLASSES).astype(np.float64)
    longest = max(np.linalg.norm(a - b) for a in va for b in va)
    gaps = []
    for i, a in enumerate(present):
        for b in present[i + 1 :]:
            cosine = float(slow_unit(means[a]) @ slow_unit(means[b]))
            gaps.append(max(0.0, margin * float(np.linalg.norm(va[a] - va[b])) / longest - (1 - cosine)))
    return (float(np.mean(caps)) if caps else 0.0) + (float(np.mean(gaps)) if gaps else 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_d_geo_equals_the_formula_written_out(seed: int) -> None:
    shared = embeddings(1, seed=100 + seed)
    z = embeddings(24, seed=seed) + 2 * shared
    y = torch.randint(0, 8, (24,), generator=torch.Generator().manual_seed(seed))
    loss = DGeoLoss(variance_cap=0.05, margin=0.9)
    assert float(loss(z, y)) > 0
    assert float(loss(z, y)) == pytest.approx(slow_d_geo(z.numpy(), y.tolist(), 0.05, 0.9, (1, 2)), rel=1e-5)


def test_d_geo_separates_classes_by_their_distance_in_the_plane() -> None:
    margins = DGeoLoss(margin=0.5).margins
    happy, sad, anger, fear = (CLASSES.index(c) for c in ("happiness", "sadness", "anger", "fear"))
    assert float(margins[anger, fear]) < 0.06 < float(margins[happy, sad])
    assert float(margins.max()) == pytest.approx(0.5)


def slow_logit_kd(s: list[float], t: list[float], mode: str, temperature: float) -> tuple[float, list[float]]:
    """Of one image: the loss, and its gradient at each of the student's logits."""
    n, T = len(s), temperature
    q, p = slow_softmax([x / T for x in s]), slow_softmax([x / T for x in t])
    gaps = [a - b for a, b in zip(q, p, strict=True)]
    if mode == "mse":
        return sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / n, [
            2 * (a - b) / n for a, b in zip(s, t, strict=True)
        ]
    if mode == "mse_probs":
        mean = sum(a * gap for a, gap in zip(q, gaps, strict=True))
        return T**2 * sum(gap**2 for gap in gaps) / n, [
            2 * T / n * a * (gap - mean) for a, gap in zip(q, gaps, strict=True)
        ]
    return T**2 * sum(b * math.log(b / a) for a, b in zip(q, p, strict=True)), [T * gap for gap in gaps]


@pytest.mark.parametrize("mode", ["mse", "mse_probs", "kl"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logit_kd_and_its_gradient_equal_the_formulas_written_out(mode: Any, temperature: float) -> None:
    s, t = torch.randn(5, 8, dtype=torch.float64, requires_grad=True), torch.randn(5, 8, dtype=torch.float64)
    loss = logit_kd_loss(s, t, mode, temperature)
    loss.backward()
    slow = [slow_logit_kd(a, b, mode, temperature) for a, b in zip(s.tolist(), t.tolist(), strict=True)]
    assert loss.item() == pytest.approx(float(np.mean([value for value, _ in slow])), rel=1e-9)
    assert s.grad is not None
    np.testing.assert_allclose(s.grad.numpy(), np.array([gradient for _, gradient in slow]) / 5, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: logit_kd_loss(x, t, mode, temperature), s)


@pytest.mark.parametrize(("mode", "share"), [("mse_probs", 1 / 64), ("kl", 1 / 2)])
def test_at_a_high_temperature_kd_is_its_share_of_the_squared_error_of_centred_logits(mode: Any, share: float) -> None:
    s, t = (x - x.mean(dim=1, keepdim=True) for x in torch.randn(2, 5, 8, dtype=torch.float64))
    values = []
    for each, temperature in ((mode, 1e5), ("mse", 1.0)):
        leaf = s.clone().requires_grad_()
        loss = logit_kd_loss(leaf, t, each, temperature)
        values.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    for limit, mse in zip(*values, strict=True):
        torch.testing.assert_close(limit, share * mse, rtol=1e-3, atol=1e-6)


def every_loss(grid: PrototypeGrid) -> dict[str, nn.Module]:
    return {
        "prototype": ProtoKDLoss(grid, tau=0.1),
        "va": ProtoKDLoss(grid, tau=0.1, target="va"),
        "d_geo": DGeoLoss(variance_cap=0.05, margin=1.5),
    }


@pytest.mark.parametrize("name", ["prototype", "va", "d_geo"])
def test_gradients_agree_with_finite_differences_in_float64(grid: PrototypeGrid, name: str) -> None:
    loss, y = every_loss(grid)[name].double(), torch.tensor([1, 1, 2, 2, 5, -100])
    z = embeddings(6).requires_grad_()
    assert torch.autograd.gradcheck(lambda e: loss(e, y), (z,))


def test_a_zero_embedding_gets_no_gradient_and_leaves_the_others_theirs() -> None:
    z = torch.stack([torch.zeros(4), torch.ones(4)]).requires_grad_()
    unit(z)[:, 0].sum().backward()
    assert z.grad is not None
    assert z.grad[0].tolist() == [0, 0, 0, 0]
    assert z.grad[1].abs().sum() > 0


@pytest.mark.parametrize("counts", [[0, 0, 0], [1, -1], [1, math.nan], [1, math.inf], [], [[1, 2]]])
@pytest.mark.parametrize("rule", ["balanced", "effective_number"])
def test_counts_that_give_no_class_weights_are_refused(counts: list[float], rule: str) -> None:
    with pytest.raises(InputError, match="0 or more and not all 0, got"):
        class_weights(counts, rule)


@pytest.mark.parametrize("kind", ["indices", "empty"])
def test_losses_with_ignored_rows_compile_to_one_graph_which_reads_no_value(grid: PrototypeGrid, kind: str) -> None:
    criterion = NeuroGazeLoss(grid, epochs=1, ramp=(0, 0), class_weights=torch.linspace(0.5, 2, 8))
    compiled = torch.compile(criterion, backend="aot_eager", fullgraph=True)
    target = torch.tensor([1, -100, 1, 2, 7, -100])
    rows = 0 if kind == "empty" else 6
    values = torch.randn(6, 8)[:rows], embeddings(6, torch.float32)[:rows], target[:rows], 1
    results = []
    for loss in (criterion, compiled):
        z, logits = values[1].clone().requires_grad_(), values[0].clone().requires_grad_()
        losses = loss(logits, z, values[2], 1, teacher_logits=values[0].flip(1))
        losses["loss"].backward()
        results.append((losses["loss"], losses["kd"], z.grad, logits.grad))
    torch.testing.assert_close(results[0], results[1])


def test_the_ramp_is_zero_then_half_a_cosine_then_one_in_shares_of_the_run(grid: PrototypeGrid) -> None:
    assert [ramp_weight(e, 20, 60) for e in (0, 20, 60, 100)] == [0, 0, 1, 1]
    assert ramp_weight(30, 20, 60) == pytest.approx(0.5 - 0.5 * math.cos(math.pi / 4))
    assert ramp_weight(0, 0, 0) == 1
    criterion = NeuroGazeLoss(grid, epochs=100, ramp=(0.2, 0.6))
    assert [criterion.ramp_at(e) for e in range(100)] == [ramp_weight(e, 20, 60) for e in range(100)]


@pytest.mark.parametrize(
    "ramp", [(20, 60), (0.2, 2), (0.6, 0.2), (-0.1, 0.5), (0.2, math.nan), (0.2,), ("a", "b"), 0.2]
)
def test_a_ramp_that_is_not_two_shares_is_refused_with_an_example(grid: PrototypeGrid, ramp: object) -> None:
    with pytest.raises(InputError, match=r"0 <= start <= end <= 1, got .*: epochs 20 to 60 of 100 are \(0\.2, 0\.6\)"):
        NeuroGazeLoss(grid, ramp=ramp)  # type: ignore[arg-type]


def test_class_weights_come_from_a_tensor_or_from_counts_and_favour_rare_classes(grid: PrototypeGrid) -> None:
    counts = [1000, 10, 30, 40, 50, 60, 70, 0]
    weight = NeuroGazeLoss(grid, class_weights=("effective_number", counts)).class_weights
    assert weight is not None
    assert weight[1] > weight[0] > weight[7] == 0
    assert float(weight.sum()) == pytest.approx(7)
    assert NeuroGazeLoss(grid, class_weights=("none", counts)).class_weights is None
    for wrong in ("effective_number", ("balanced", counts[:7]), torch.ones(7), [1.0] * 8):
        with pytest.raises(InputError, match=r"a tensor \(8,\), a rule with 8 counts"):
            NeuroGazeLoss(grid, class_weights=wrong)  # type: ignore[arg-type]


def terms(grid: PrototypeGrid, loss: LossConfig, **options: Any) -> dict[str, torch.Tensor]:
    """The objective's terms and total at the second of ten epochs, where a ramp (0, 0.4) is at a half."""
    criterion = NeuroGazeLoss.from_config(
        loss, grid, classes=CLASSES, epochs=10, class_counts=[1, 2, 3, 4, 5, 6, 7, 8], **options
    )
    return criterion(*BATCH, epoch=2, teacher_logits=BATCH[0].flip(1))


BATCH = (
    torch.randn(6, 8, generator=torch.Generator().manual_seed(1)),
    embeddings(6, torch.float32),
    torch.tensor([1, 1, 2, 2, 0, -100]),
)


def test_the_objective_of_a_loss_section_is_the_weighted_sum_of_its_terms(grid: PrototypeGrid) -> None:
    config = LossConfig(ce=0.7, kd=0.3, proto_kd=0.2, d_geo=0.5, ramp=(0, 0.4), variance_cap=0.01, tau=0.2)
    logits, z, y = BATCH
    expected = {
        "ce": 0.7 * cross_entropy(logits, y, class_weights(range(1, 9), "effective_number"), 0.055),
        # a row without a label is still taught by the teacher
        "kd": 0.3 * LogitKDLoss()(logits, logits.flip(1)),
        "proto_kd": 0.2 * ProtoKDLoss(grid, tau=0.2)(z, y),
        "d_geo": 0.5 * 0.5 * DGeoLoss(variance_cap=0.01)(z, y),
    }
    assert float(terms(grid, config)["loss"]) == pytest.approx(float(sum(expected.values())), rel=1e-5)
    assert "kd" not in NeuroGazeLoss(grid)(logits, z, y)
    assert set(terms(grid, LossConfig(proto_share=0.05))) == {"loss", "ce", "proto_kd"}


def test_every_default_is_the_papers_recipe(grid: PrototypeGrid) -> None:
    recipe = load_recipe(Recipe, "b3_full").loss
    settings = recipe.model_dump(exclude={"proto_share", "class_weights"})
    default = inspect.signature(NeuroGazeLoss).parameters
    assert {name: default[name].default for name in settings} == settings
    # the single losses have defaults of their own
    names = {LogitKDLoss: {"mode": "kd_mode", "temperature": "temperature"}, ProtoKDLoss: {}, DGeoLoss: {}}
    names[ProtoKDLoss] = {name: name for name in ("tau", "sigma", "target")}
    names[DGeoLoss] = {name: name for name in ("positive_classes", "variance_cap", "margin")}
    for loss, keys in names.items():
        for argument, key in keys.items():
            assert inspect.signature(loss).parameters[argument].default == settings[key], (loss, argument)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda grid: ProtoKDLoss(grid)(torch.randn(2, DIM + 1), torch.tensor([0, 1])), "projection of that width"),
        (lambda grid: DGeoLoss(positive_classes=("hapiness",)), "did you mean 'happiness'"),
        (lambda grid: DGeoLoss(class_anchors=torch.zeros(1, 2)), r"class_anchors must be \(8, 2\), got \(1, 2\)"),
        (lambda grid: NeuroGazeLoss(grid, num_classes=7), r"classes=\[...\]"),
        (lambda grid: NeuroGazeLoss(None), "needs a grid"),
        (lambda grid: LogitKDLoss("mmse"), "unknown KD mode 'mmse'; did you mean 'mse'"),
        (lambda grid: LogitKDLoss("kl", 0), "temperature must be above 0, got 0"),
        (lambda grid: DGeoLoss()(torch.randn(2, 4), torch.randn(2, 3)), "class indices"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(
    grid: PrototypeGrid, call: Callable[[PrototypeGrid], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        call(grid)
