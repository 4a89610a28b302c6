"""Recipes: every packaged one is valid, every mistake is one line that helps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import packaged
from ngd_timm.core.recipe import Recipe, load_recipe, recipe_names, to_yaml
from ngd_timm.core.teacher_recipe import TeacherRecipe

BUILT_FIRST = ("g3", "g7")  # their grids are not packaged
TRAINING = [n for n in recipe_names() if not n.startswith("teacher_")]


@pytest.mark.parametrize("name", TRAINING)
def test_every_packaged_recipe_loads_and_survives_its_own_yaml(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(Recipe, name, ["grid=grid.safetensors"] if name in BUILT_FIRST else [])
    assert recipe.name == name
    file = tmp_path / "resolved.yaml"
    file.write_text(to_yaml(recipe))
    assert load_recipe(Recipe, file) == recipe


def test_b3_full_holds_the_authors_settings() -> None:
    recipe = load_recipe(Recipe, "b3_full", ["teacher=a_run"])
    loss, optim = recipe.loss, recipe.optim
    assert (loss.kd, loss.proto_kd, loss.tau, loss.d_geo, loss.variance_cap) == (0.30, 0.12, 0.90, 0.012, 0.2)
    assert (optim.lr, optim.weight_decay, optim.batch_size, optim.epochs, optim.clip_grad) == (
        2e-4,
        0.05,
        128,
        100,
        1.0,
    )
    assert loss.label_smoothing == 0.055


D_GEO = {"d_geo": 0.1, "ramp": (0, 0), "variance_cap": 0.05, "margin": 1.0}


@pytest.mark.parametrize("control", ["random", "shuffled", "va"])
@pytest.mark.parametrize(("prefix", "controlled"), [("c", "b2_share"), ("low", "low_real")])
def test_a_control_differs_from_what_it_controls_in_one_key(prefix: str, controlled: str, control: str) -> None:
    name = f"{prefix}_{control}"
    assert f"grid_control: {control}" in (packaged("recipes") / f"{name}.yaml").read_text()
    real, recipe = load_recipe(Recipe, controlled), load_recipe(Recipe, name)
    assert recipe.loss.target == ("va" if control == "va" else "prototype")
    loss = recipe.loss.model_copy(update={"target": "prototype"})
    assert recipe.model_copy(update={"name": controlled, "grid_control": "none", "loss": loss}) == real


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["grid=random"], "grid=random is a control, not a grid; write grid: gameemo-v2 .* with grid_control: random"),
        (["grid=shuffled"], "grid: gameemo-v2 .* with grid_control: shuffled"),
        (["grid_control=mixed"], "'none', 'shuffled', 'random' or 'va'"),
        (["grid=null", "grid_control=random", "loss.proto_share=null"], "grid_control=random needs a grid"),
        (
            ["grid_control=va", "loss.target=prototype"],
            "aimed at the plane .* leave loss.target out",
        ),
        (["grid_control=random", "loss.target=va"], "grid_control=random with loss.target=va is grid_control=va"),
    ],
)
def test_a_control_that_contradicts_the_recipe_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_recipe(Recipe, "b2_share", overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "base", "changes"),
    [
        ("b3_share", "b2_share", {"d_geo": 0.012}),
        ("tau_paper", "b2_share", {"proto_share": None, "proto_kd": 0.12, "tau": 0.9}),
        ("tau_paper", "b2_proto", {}),
        ("g3", "b2_share", {}),
        ("g7", "b2_share", {}),
        ("kd_kl", "b1_kd", {"kd_mode": "kl"}),
        ("b3_t1", "b3_full", {"kd_mode": "kl", "temperature": 1.0}),
        ("b3_t5", "b3_full", {"kd_mode": "kl", "temperature": 5.0}),
        ("d_geo_epoch0", "b3_full", {"ramp": (0, 0)}),
        ("low_both", "low_real", {**D_GEO, "d_geo_on": "features"}),
        ("low_geo", "low_ce", {**D_GEO, "d_geo_on": "features"}),
        ("d_geo_no_separation", "b3_full", {"margin": 0}),
    ],
)
def test_a_variant_differs_from_its_twin_in_what_its_name_says(
    name: str, base: str, changes: dict[str, object]
) -> None:
    grid = ["grid=grid.safetensors"]
    variant, twin = load_recipe(Recipe, name, grid), load_recipe(Recipe, base, grid)
    assert variant.loss == twin.loss.model_copy(update=changes)
    same = {"name": base, "loss": twin.loss, "grid_size": None}
    assert variant.model_copy(update=same) == twin


@pytest.mark.parametrize("name", BUILT_FIRST)
def test_a_recipe_whose_grid_is_not_packaged_says_how_to_build_it(name: str) -> None:
    with pytest.raises(InputError, match=rf"prototypes build TEACHER_RUN --size {name[1]} .* grid=grid{name[1]}"):
        load_recipe(Recipe, name)


def test_a_teacher_of_an_ablation_is_refused_in_a_single_run_with_what_to_give() -> None:
    recipe = load_recipe(Recipe, "b1_kd")
    with pytest.raises(InputError, match=r"give teacher=RUN_DIRECTORY \(a finished b0_ce, say runs/b0_ce-0\)"):
        _ = recipe.teacher_sources
    assert load_recipe(Recipe, "b1_kd", ["teacher=a_run"]).teacher_sources == ("a_run",)
    assert load_recipe(Recipe, "b1_kd", ["loss.kd=0"]).teacher_sources == ()


def test_off_and_a_list_of_one_are_written_as_words() -> None:
    recipe = load_recipe(Recipe, "b1_kd", ["optim.amp=off", "data.unlabelled=crops", "eval.ckplus=x", "best_on=ckplus"])
    assert (recipe.optim.amp, recipe.data.unlabelled, recipe.best_on) == ("off", ("crops",), ("ckplus",))
    assert load_recipe(Recipe, "b1_kd", ["teacher=[a, b]"]).teacher_sources == ("a", "b")
    with pytest.raises(InputError, match="a list of at least two of them"):
        load_recipe(Recipe, "b1_kd", ["teacher=[a]"])


def test_a_weight_beside_a_share_is_refused() -> None:
    with pytest.raises(InputError, match=r"proto_kd=0\.5 has no effect beside proto_share=0\.05, which sets"):
        load_recipe(Recipe, "b2_share", ["loss.proto_kd=.5", "teacher=a_run"])


def test_overrides_are_read_as_yaml_and_keep_their_types() -> None:
    recipe = load_recipe(Recipe, "b0_ce", ["optim.lr=1e-3", "loss.ramp=[0, 1]", "data.root=a b", "seed=3"])
    assert (recipe.optim.lr, recipe.loss.ramp, recipe.data.root, recipe.seed) == (1e-3, (0.0, 1.0), "a b", 3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim=3", "optim"),
        ("name=null", "name: "),
        ("optim.epochs=0", "optim.epochs"),
        ("loss.kd=0.3", "there is no teacher"),
        ("teacher={runn: b0_ce}", "teacher: teacher must be a run directory"),
        ("teacher=3", "teacher must be a run directory"),
        ("loss.proto_kd=0.1", "there is no grid"),
        ("loss.ramp=[0.6, 0.2]", "loss.ramp: ramp must be two shares of the run"),
        ("loss.ramp=[20, 60]", r"got \[20, 60\]; .* epochs 20 to 60 of 100 are \(0.2, 0.6\)"),
        ("data.classes=[neutral, hapiness]", "did you mean 'happiness'"),
        ("data.label_rule=most", "'majority', 'argmax' or 'votes'"),
        ("student.in_chans=2", "in_chans"),
        ("save_every=-1", "save_every: Input should be 'auto' or Input should be greater than or equal to 0, got -1"),
        ("optim.warmup=soon", "optim.warmup: Input should be a valid integer.* or Input should be a valid number"),
    ],
)
def test_a_mistake_is_named_in_one_line(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_recipe(Recipe, "b0_ce", [override])
    assert "\n" not in str(caught.value)


SAMPLER, WEIGHTS, ADJUSTMENT = "data.sampler=class_aware", "loss.class_weights=balanced", "student.logit_adjustment=0.3"


@pytest.mark.parametrize(
    "stacked", [(SAMPLER, WEIGHTS), (SAMPLER, ADJUSTMENT), (WEIGHTS, ADJUSTMENT), (SAMPLER, WEIGHTS, ADJUSTMENT)]
)
def test_two_corrections_of_class_imbalance_are_refused_unless_the_recipe_allows_them(stacked: tuple[str, ...]) -> None:
    plain = ["loss.class_weights=none"]
    with pytest.raises(InputError, match="allow_stacked_balancing") as caught:
        load_recipe(Recipe, "b0_ce", [*plain, *stacked])
    assert [one for one in (SAMPLER, WEIGHTS, ADJUSTMENT) if one in str(caught.value)] == list(stacked)
    assert "\n" not in str(caught.value)
    load_recipe(Recipe, "b0_ce", [*plain, *stacked, "allow_stacked_balancing=true"])
    for one in stacked:
        load_recipe(Recipe, "b0_ce", [*plain, one])


def test_a_temperature_that_the_kd_mode_does_not_have_is_refused_where_there_is_kd() -> None:
    with pytest.raises(InputError, match=r"loss: temperature=1 has no effect on kd_mode=mse, .* write kd_mode=kl or"):
        load_recipe(Recipe, "b1_kd", ["loss.temperature=1"])
    for overrides in (["loss.kd_mode=mse_probs"], ["loss.kd_mode=kl"], ["loss.kd=0"]):
        load_recipe(Recipe, "b1_kd", ["loss.temperature=1", *overrides])
    load_recipe(Recipe, "b1_kd", ["loss.temperature=5"])


def test_class_weights_of_a_cross_entropy_that_weighs_nothing_correct_nothing() -> None:
    load_recipe(Recipe, "b1_kd", ["loss.ce=0", WEIGHTS, SAMPLER])


def test_a_recipe_is_its_base_but_for_the_keys_it_sets(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nbase: b2_share\nloss: {tau: .2}\noptim: {epochs: 5}\n")
    (tmp_path / "child.yaml").write_text("name: child\nbase: mine.yaml\ngrid_control: va\n")
    base, child = load_recipe(Recipe, "b2_share"), load_recipe(Recipe, tmp_path / "child.yaml", ["optim.lr=0.1"])
    assert (child.name, child.grid_control, child.loss.target) == ("child", "va", "va")
    assert (child.loss.tau, child.optim.epochs, child.optim.lr) == (0.2, 5, 0.1)
    assert (child.loss.proto_share, child.teacher) == (base.loss.proto_share, base.teacher)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("b2_shore", "unknown recipe 'b2_shore'; did you mean 'b2_share'"),
        ("gone.yaml", "no recipe file .*gone.yaml"),
        ("mine.yaml", "its base leads back to itself"),
        ("[b0_ce]", "base must be the name or path of a recipe"),
    ],
)
def test_a_base_that_is_not_there_is_named_in_one_line(base: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"name: mine\nbase: {base}\n")
    with pytest.raises(InputError, match=message):
        load_recipe(Recipe, tmp_path / "mine.yaml")


def test_a_text_that_looks_like_a_number_stays_a_text(tmp_path: Path) -> None:
    recipe = Recipe(name="mine", data={"root": "1e5"})  # type: ignore[arg-type]
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    assert load_recipe(Recipe, tmp_path / "recipe.yaml") == recipe


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{key}.")
        else:
            yield prefix + key, "required" if field.is_required() else field.default


def test_the_list_of_keys_has_every_key_with_its_default() -> None:
    page = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
    for part, model in zip(page.split("\n## ")[1:], (Recipe, TeacherRecipe), strict=True):
        listed = [[cell.strip(" `") for cell in line.split(" | ")] for line in part.splitlines() if "| `" in line]
        assert [cells[0].strip("| `") for cells in listed] == [key for key, _ in _keys(model)]
        for (_, shown, meaning), (key, default) in zip(listed, _keys(model), strict=True):
            value = list(CLASSES) if shown == "FER+'s eight" else yaml.safe_load(shown)
            assert value == (list(default) if isinstance(default, tuple) else default), key
            assert meaning
