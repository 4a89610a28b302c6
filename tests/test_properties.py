"""Properties that hold for any input: losses, metrics, grids, names and recipes."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ngd_timm.core.affect import CLASSES, anchors, cell_of
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import packaged
from ngd_timm.core.hub import hub_id
from ngd_timm.core.paths import without_paths
from ngd_timm.core.recipe import (
    AugmentConfig,
    DataConfig,
    LossConfig,
    OptimConfig,
    Recipe,
    StudentConfig,
    load_recipe,
    to_yaml,
)
from ngd_timm.data import parse_spec
from ngd_timm.data.labels import DATASETS, SPLITS
from ngd_timm.evaluate.metrics import fer_metrics
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.losses import COMPONENTS, DGeoLoss, LogitKDLoss, NeuroGazeLoss, ProtoKDLoss, cross_entropy
from ngd_timm.losses.logit_kd import KDMode

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

DIM, GRID = 12, PrototypeGrid.random(12, size=3, seed=0)
seeds = st.integers(0, 2**31 - 1)
dtypes = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embeddings(seed: int, rows: int) -> torch.Tensor:
    return torch.randn(rows, DIM, generator=generator(seed), dtype=torch.float64)


def labels(seed: int, rows: int) -> torch.Tensor:
    return torch.randint(0, 8, (rows,), generator=generator(seed + 1))


def rotation(seed: int) -> torch.Tensor:
    noise = torch.randn(DIM, DIM, generator=generator(seed + 2), dtype=torch.float64)
    return torch.linalg.qr(noise)[0]


def rotated(grid: PrototypeGrid, by: torch.Tensor) -> PrototypeGrid:
    rows = torch.nn.functional.normalize(grid.prototypes.double() @ by, dim=1).float()
    return PrototypeGrid(rows, grid.counts, grid.centers, grid.size, grid.metadata)


# ── losses ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@st.composite
def any_numbers(draw: st.DrawFn, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Finite numbers of every size that the type has, zeros and its extremes among them."""
    largest = torch.finfo(dtype).max
    scale = draw(st.sampled_from([0.0, float(torch.finfo(dtype).tiny), 1e-3, 1.0, 1e4, largest]))
    noise = torch.rand(rows, columns, generator=generator(draw(seeds)), dtype=torch.float64) * 2 - 1
    numbers = (noise * scale).clamp(-largest, largest).to(dtype)
    for row, column in draw(st.lists(st.tuples(st.integers(0, rows - 1), st.integers(0, columns - 1)), max_size=3)):
        numbers[row, column] = draw(st.sampled_from([0.0, -0.0, largest, -largest, float(torch.finfo(dtype).tiny)]))
    return numbers


@quick
@given(data=st.data(), dtype=dtypes, rows=st.integers(1, 9), seed=seeds)
def test_proto_kd_and_d_geo_are_finite_with_finite_gradients_for_any_finite_embedding(
    data: st.DataObject, dtype: torch.dtype, rows: int, seed: int
) -> None:
    z = data.draw(any_numbers(rows, DIM, dtype)).requires_grad_()
    target = labels(seed, rows)
    losses = (ProtoKDLoss(GRID, tau=0.1), ProtoKDLoss(GRID, tau=0.1, target="va"), DGeoLoss())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sum(one(z, target) for one in losses)
    loss.backward()
    assert loss.isfinite()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert z.grad is not None
    assert z.grad.isfinite().all()


@quick
@given(data=st.data(), rows=st.integers(1, 9), seed=seeds, smoothing=st.sampled_from([0.0, 0.055]))
def test_cross_entropy_and_logit_kd_are_finite_for_any_logits_of_half_precision(
    data: st.DataObject, rows: int, seed: int, smoothing: float
) -> None:
    dtype = torch.float16
    s, t = (data.draw(any_numbers(rows, 8, dtype)).requires_grad_() for _ in range(2))
    terms = [cross_entropy(s, labels(seed, rows), None, smoothing), LogitKDLoss()(s, t), LogitKDLoss("kl", 2.0)(s, t)]
    terms.append(LogitKDLoss("mse_probs", 2.0)(s, t))
    sum(terms).backward()  # type: ignore[union-attr]
    assert all(term.isfinite() for term in terms)
    assert t.grad is None  # the teacher gets none
    assert terms[0] >= 0
    assert terms[2] >= -1e-4


@quick
@given(seed=seeds, rows=st.integers(1, 8), tau=st.floats(0.05, 2), target=st.sampled_from(["prototype", "va"]))
def test_losses_are_never_negative_and_soft_labels_that_are_one_hot_equal_indices(
    seed: int, rows: int, tau: float, target: Any
) -> None:
    z, y = embeddings(seed, rows), labels(seed, rows)
    for loss in (ProtoKDLoss(GRID, tau, target), DGeoLoss(variance_cap=0.05)):
        value = loss(z, y)
        assert value >= -1e-6
        torch.testing.assert_close(loss(z, torch.nn.functional.one_hot(y, 8).double()), value)


@quick
@given(seed=seeds, tau=st.floats(0.05, 2), label=st.integers(0, 7))
def test_proto_kd_is_zero_where_the_embedding_points_along_the_classes_place(seed: int, tau: float, label: int) -> None:
    loss = ProtoKDLoss(rotated(GRID, rotation(seed)), tau)
    place = torch.from_numpy(anchors(CLASSES))[label]
    weight = torch.softmax(-(place - loss.cell_centers).square().sum(1) / (2 * loss.sigma**2), 0)
    best = (weight @ loss.prototypes)[None] * 3
    assert abs(float(loss(best, torch.tensor([label])))) < 1e-6


@quick
@given(seed=seeds, rows=st.integers(1, 10), exponent=st.floats(-1, 3))
def test_the_lengths_of_embeddings_do_not_matter(seed: int, rows: int, exponent: float) -> None:
    z, y = embeddings(seed, rows), labels(seed, rows)
    scales = 10**exponent * (0.5 + torch.rand(rows, 1, generator=generator(seed), dtype=torch.float64))
    assume(float((z * scales).abs().amax(1).min()) > 1e-2)  # below 1e-3 an embedding counts as none
    for loss in (ProtoKDLoss(GRID, 0.2), DGeoLoss()):
        torch.testing.assert_close(loss(z * scales, y), loss(z, y))


@quick
@given(seed=seeds, rows=st.integers(1, 10), tau=st.floats(0.1, 1))
def test_turning_embeddings_and_grid_together_changes_nothing(seed: int, rows: int, tau: float) -> None:
    z, y, by = embeddings(seed, rows), labels(seed, rows), rotation(seed)
    proto, turned = ProtoKDLoss(GRID, tau), ProtoKDLoss(rotated(GRID, by), tau)
    torch.testing.assert_close(turned(z @ by, y), proto(z, y), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(DGeoLoss()(z @ by, y), DGeoLoss()(z, y))


@quick
@given(seed=seeds, rows=st.integers(2, 10))
def test_the_order_of_a_batch_does_not_matter(seed: int, rows: int) -> None:
    z, y = embeddings(seed, rows), labels(seed, rows)
    order = torch.randperm(rows, generator=generator(seed))
    logits = torch.randn(rows, 8, generator=generator(seed), dtype=torch.float64)
    criterion = NeuroGazeLoss(GRID, ramp=(0, 0))
    one, two = (
        criterion(logits[i], z[i], y[i], 1, teacher_logits=logits[i].roll(1, 1)) for i in (torch.arange(rows), order)
    )
    for name in ("loss", *COMPONENTS):
        torch.testing.assert_close(one[name], two[name])


@quick
@given(seed=seeds, rows=st.integers(1, 16), order=st.permutations(range(8)))
def test_d_geo_does_not_depend_on_the_order_of_the_classes(seed: int, rows: int, order: list[int]) -> None:
    z, y = embeddings(seed, rows), labels(seed, rows)
    moved = DGeoLoss(classes=[CLASSES[i] for i in order])
    torch.testing.assert_close(moved(z, torch.tensor([order.index(int(label)) for label in y])), DGeoLoss()(z, y))


@st.composite
def partly_labelled(draw: st.DrawFn, rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets of which any number of rows are ignored, as indices or as weights, and which rows count."""
    counted = torch.tensor(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), dtype=torch.bool)
    seed = draw(seeds)
    if draw(st.booleans()):
        return torch.where(counted, labels(seed, rows), -100), counted
    soft = torch.rand(rows, 8, generator=generator(seed), dtype=torch.float64).softmax(1).to(dtype)
    return soft * counted[:, None], counted


def every_loss(
    z: torch.Tensor, logits: torch.Tensor, target: torch.Tensor, va: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Every loss of labels, of embeddings (B, DIM), logits (B, 8) and valence/arousal (B, 2)."""
    weight = torch.linspace(0.5, 2, 8)
    return {
        "ce": cross_entropy(logits, target, weight, label_smoothing=0.1),
        "proto_kd": ProtoKDLoss(GRID, tau=0.1)(z, target),
        "proto_kd of va": ProtoKDLoss(GRID, tau=0.1, target="va")(z, target, va),
        "d_geo": DGeoLoss(variance_cap=0.05, margin=1.5)(z, target),
        "sum": NeuroGazeLoss(GRID, class_weights=weight)(logits, z, target, epoch=99)["loss"],
    }


def batch_of(seed: int, rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings, logits, and valence/arousal that is known of every second row."""
    z, logits = embeddings(seed, rows), embeddings(seed + 1, rows)[:, :8]
    va = torch.where(torch.arange(rows)[:, None] % 2 == 0, embeddings(seed + 2, rows)[:, :2].tanh(), torch.nan)
    return z.to(dtype).requires_grad_(), logits.to(dtype).requires_grad_(), va


def gradients(loss: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


@quick
@given(data=st.data(), dtype=dtypes, rows=st.integers(0, 6), seed=seeds)
def test_an_ignored_row_counts_in_no_loss_and_gets_no_gradient(
    data: st.DataObject, dtype: torch.dtype, rows: int, seed: int
) -> None:
    target, counted = data.draw(partly_labelled(rows, dtype))
    z, logits, va = batch_of(seed, rows, dtype)
    va = torch.where(counted[:, None], va, torch.nan)  # a row with a place of its own counts in Proto-KD
    kept = [x.detach()[counted].requires_grad_() for x in (z, logits)]
    whole, rest = every_loss(z, logits, target, va), every_loss(*kept, target[counted], va[counted])
    for name, loss in whole.items():
        torch.testing.assert_close(loss, rest[name], msg=name)
        for all_rows, kept_rows in zip(gradients(loss, z, logits), gradients(rest[name], *kept), strict=True):
            torch.testing.assert_close(all_rows[counted], kept_rows, msg=name)
            assert not all_rows[~counted].any(), name


@quick
@given(dtype=dtypes, rows=st.integers(0, 4), seed=seeds, soft=st.booleans(), mode=st.sampled_from(get_args(KDMode)))
def test_a_batch_in_which_nothing_counts_costs_zero_and_moves_nothing(
    dtype: torch.dtype, rows: int, seed: int, soft: bool, mode: Any
) -> None:
    z, logits, va = batch_of(seed, rows, dtype)
    target = torch.zeros(rows, 8, dtype=dtype) if soft else torch.full((rows,), -100)
    losses = every_loss(z, logits, target, torch.full_like(va, torch.nan))
    if rows == 0:
        losses["kd"] = LogitKDLoss(mode)(logits, logits.detach())
    for name, loss in losses.items():
        assert loss.requires_grad, name
        assert not loss.any(), name
        assert not any(g.any() for g in gradients(loss, z, logits)), name


@quick
@given(
    data=st.data(), rows=st.integers(1, 8), seed=seeds, smoothing=st.sampled_from([0.0, 0.1]), weighted=st.booleans()
)
def test_cross_entropy_of_indices_ignores_the_rows_that_torchs_ignores(
    data: st.DataObject, rows: int, seed: int, smoothing: float, weighted: bool
) -> None:
    target, counted = data.draw(partly_labelled(rows, torch.float64))
    assume(target.ndim == 1 and counted.any())
    logits = embeddings(seed, rows)[:, :8]
    weight = torch.linspace(0.5, 2, 8, dtype=torch.float64) if weighted else None
    expected = torch.nn.functional.cross_entropy(logits, target, weight, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, target, weight, smoothing), expected)


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def logits_and_target(seed: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((images, 8)) * 3, rng.integers(0, 8, images)


@quick
@given(seed=seeds, images=st.integers(1, 40), present=st.integers(1, 8))
def test_masking_absent_classes_never_costs_a_right_prediction(seed: int, images: int, present: int) -> None:
    logits, target = logits_and_target(seed, images)
    target = target % present
    entry = fer_metrics(logits, target, resamples=0)
    # a right prediction stays right once others are out of the way, so accuracy and recalls can only gain;
    # macro-F1 can fall: a wrong one moves from an absent class to a present one, and costs that one's precision
    assert entry["present"]["acc"] >= entry["8way"]["acc"] - 1e-9
    assert entry["present"]["bacc"] >= entry["present_unmasked"]["bacc"] - 1e-9
    assert entry["present_unmasked"]["macro_f1"] >= entry["8way"]["macro_f1"] - 1e-9
    assert entry["present_unmasked"]["acc"] == entry["8way"]["acc"]


# ── grids ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@st.composite
def recordings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    rng = np.random.default_rng(draw(seeds))
    rows = draw(st.integers(3, 40))
    who = rng.integers(0, draw(st.integers(1, 6)), rows)
    return rng.standard_normal((rows, 7)) + 1.0, rng.uniform(-1, 1, (rows, 2)), who, draw(st.integers(2, 5))


@quick
@given(recorded=recordings(), seed=seeds)
def test_a_grid_depends_neither_on_the_order_of_rows_nor_on_the_names_of_subjects(recorded: Any, seed: int) -> None:
    rows, va, who, size = recorded
    rng = np.random.default_rng(seed)
    order, names = rng.permutation(len(rows)), rng.permutation(10)
    one = PrototypeGrid.build(rows, va, who, size)
    two = PrototypeGrid.build(rows[order], va[order], np.array([f"subject {names[i]}" for i in who[order]]), size)
    torch.testing.assert_close(one.prototypes, two.prototypes)
    assert one.counts.tolist() == two.counts.tolist()
    assert one.metadata == two.metadata


@quick
@given(recorded=recordings(), seed=seeds, center=st.booleans())
def test_a_grid_turns_with_its_embeddings(recorded: Any, seed: int, center: bool) -> None:
    rows, va, who, size = recorded
    by = np.linalg.qr(np.random.default_rng(seed).standard_normal((7, 7)))[0]
    try:
        one = PrototypeGrid.build(rows, va, who, size, center=center)
    except InputError:
        assume(False)
    two = PrototypeGrid.build(rows @ by, va, who, size, center=center)
    torch.testing.assert_close(
        two.prototypes.double(), one.prototypes.double() @ torch.from_numpy(by), atol=1e-4, rtol=0
    )
    assert one.mean_cosine == pytest.approx(two.mean_cosine, abs=1e-5)


@quick
@given(recorded=recordings(), fewest=st.integers(1, 4))
def test_no_cell_of_fewer_subjects_than_required_counts_as_filled(recorded: Any, fewest: int) -> None:
    rows, va, who, size = recorded
    try:
        grid = PrototypeGrid.build(rows, va, who, size, min_subjects=fewest)
    except InputError:
        cells = cell_of(va, size)
        assert all(len(set(who[cells == cell])) < fewest for cell in range(size * size))
        return
    held = [int(n) for n in grid.metadata["subjects_per_cell"].split(",")]
    assert all(n == 0 or n >= fewest for n in held)
    assert [n > 0 for n in held] == (grid.counts > 0).tolist()
    assert int(grid.counts.sum()) <= len(rows)


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────

words = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=8).filter(lambda w: w[0].isalnum())


@quick
@given(user=words, repo=words, revision=st.none() | words)
def test_a_printed_hub_id_is_read_as_itself(user: str, repo: str, revision: str | None) -> None:
    found = hub_id(f"hf-hub:{user}/{repo}" + (f"@{revision}" if revision else ""))
    assert found is not None
    assert (found.repo, found.revision) == (f"{user}/{repo}", revision)
    assert hub_id(str(found)) == found


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=30))
def test_any_text_is_a_hub_id_or_a_path_or_refused_in_one_line(text: str) -> None:
    for source in (text, f"hf-hub:{text}"):
        try:
            found = hub_id(source)
        except InputError:
            assert source.startswith("hf-hub:")
            continue
        assert found is None or hub_id(str(found)) == found


@quick
@given(name=st.sampled_from(sorted(DATASETS)), root=words, split=st.none() | st.sampled_from([*SPLITS, "all"]))
def test_a_spec_is_read_as_it_is_written(name: str, root: str, split: str | None) -> None:
    for place in (f"/data/{root}", f"C:\\{root}", f"{root}=x,y"):
        spec = f"{name}={place}" + (f":{split}" if split else "")
        assert parse_spec(spec) == (name, place, split, f"{name}:{split or 'all'}")


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=30))
def test_any_text_is_a_spec_or_refused(text: str) -> None:
    for spec in (text, f"ferplus={text}"):
        try:
            name, root, split, key = parse_spec(spec)
        except InputError:
            continue
        assert (name in DATASETS, bool(root), key) == (True, True, f"{name}:{split or 'all'}")


around = st.sampled_from(["", "read ", "source=", "(", "from: ", '"', "see "])
behind = st.sampled_from(["", " and more", ", twice", ")", '"', "\nnext line"])


@settings(max_examples=200, deadline=None)
@given(before=around, folders=st.lists(words, min_size=1, max_size=4), name=words, after=behind)
def test_no_home_folder_survives_and_a_second_pass_changes_nothing(
    before: str, folders: list[str], name: str, after: str
) -> None:
    text = f"{before}/home/{'/'.join(folders)}/{name}.mat{after}"
    cut = without_paths(text)
    assert "/home/" not in cut
    assert "/" not in cut
    assert f"{name}.mat" in cut
    assert without_paths(cut) == cut
    assert without_paths({text: [text]}) == {cut: [cut]}


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────────────────────

shares = st.floats(0, 1)
texts = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn")), max_size=12)
classes = st.lists(st.sampled_from(CLASSES), min_size=2, unique=True).map(tuple)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    names = draw(classes)
    epochs = draw(st.integers(2, 300))
    fractions = draw(st.lists(shares, min_size=2, max_size=2).map(sorted))
    kd, proto = draw(st.floats(0, 5)), draw(st.floats(0, 5))
    return Recipe(
        name=draw(words),
        seed=draw(st.integers(0, 2**31 - 1)),
        out=draw(st.none() | texts),
        student=StudentConfig(
            backbone=draw(texts),
            pretrained=draw(st.booleans()),
            image_size=draw(st.integers(16, 1024)),
            in_chans=draw(st.sampled_from([1, 3])),
            mean=draw(st.none() | shares),
            drop_rate=draw(st.floats(0, 1, exclude_max=True)),
        ),
        data=DataConfig(
            root=draw(st.none() | texts),
            label_rule=draw(st.sampled_from(["majority", "argmax", "votes"])),
            limit=draw(st.none() | st.integers(1, 10**9)),
            classes=names,
            augment=AugmentConfig(flip=draw(shares), erase=draw(shares), scale=draw(st.floats(0, 1, exclude_max=True))),
        ),
        grid=draw(texts) if proto else draw(st.none() | texts),
        teacher=draw(texts | words.map(lambda run: {"run": run})) if kd else draw(st.none() | texts),  # type: ignore[arg-type]
        loss=LossConfig(
            kd=kd,
            proto_kd=proto,
            tau=draw(st.floats(1e-6, 1e6)),
            ramp=tuple(fractions),  # type: ignore[arg-type]
            positive_classes=names[:1],
        ),
        optim=OptimConfig(
            epochs=epochs,
            lr=draw(st.floats(1e-12, 1e3)),
            warmup=draw(st.integers(0, epochs - 1) | st.floats(0, 1, exclude_max=True)),
            clip_grad=draw(st.none() | st.floats(1e-3, 1e3)),
        ),
        eval=draw(st.dictionaries(st.sampled_from(sorted(DATASETS)), texts, max_size=3)),
    )


@quick
@given(recipe=recipes())
def test_every_recipe_survives_its_own_yaml(recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(to_yaml(recipe), encoding="utf-8")
    assert load_recipe(Recipe, file) == recipe


# ── damaged files ────────────────────────────────────────────────────────────────────────────────────────────────────

TOKENS = "name: a|seed: |optim:|\n  |lr: |- |? |[|]|{|}|, |&a |*a|<<: |!!set |!!bool |---\n|~|1e999|.nan|0xff|"
TOKENS += "!!python/name:os.system |2024-13-45|\\ud800|'|\"|\t|# |% |顔|\ufeff"


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with up to three pieces cut out, replaced or put in."""
    changed = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(changed)))
        changed[at : at + draw(st.integers(0, 64))] = draw(st.binary(max_size=12))
    return bytes(changed)


def assert_loads_or_is_refused(load: Any, file: Path, content: bytes) -> None:
    file.write_bytes(content)
    message = ""
    try:
        load(file)
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 2000


@settings(quick, max_examples=150)
@given(data=st.data())
def test_a_damaged_grid_loads_or_is_refused_in_one_line(data: st.DataObject, tmp_path: Path) -> None:
    file = tmp_path / "grid.safetensors"
    PrototypeGrid.random(4, size=3, seed=0).save(file)
    assert_loads_or_is_refused(PrototypeGrid.load, file, data.draw(damaged(file.read_bytes())))


@settings(quick, max_examples=300)
@given(
    content=st.lists(st.sampled_from(TOKENS.split("|"))).map(lambda parts: "".join(parts).encode())
    | damaged((packaged("recipes") / "b3_full.yaml").read_bytes())
)
def test_a_damaged_or_invented_recipe_loads_or_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    assert_loads_or_is_refused(lambda file: load_recipe(Recipe, file), tmp_path / "recipe.yaml", content)
