"""Recipes: every shipped one is valid, every mistake is one line that helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from ngd_timm.errors import InputError
from ngd_timm.recipe import Recipe, load_recipe, recipe_names, to_yaml

TRAINING = [n for n in recipe_names() if not n.startswith("teacher_")]


@pytest.mark.parametrize("name", TRAINING)
def test_every_shipped_recipe_loads_and_survives_its_own_yaml(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(Recipe, name, ["teacher=a_run"])
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


def test_overrides_are_read_as_yaml_and_keep_their_types() -> None:
    recipe = load_recipe(Recipe, "b0_ce", ["optim.lr=1e-3", "loss.ramp=[20, 60]", "data.root=a b", "seed=3"])
    assert (recipe.optim.lr, recipe.loss.ramp, recipe.data.root, recipe.seed) == (1e-3, (20, 60), "a b", 3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'optim.lr'"),
        ("optim=3", "optim"),
        ("optim.lr=fast", "optim.lr: .* got 'fast'"),
        ("optim.lr=-1", "greater than 0"),
        ("optim.epochs=0", "optim.epochs"),
        ("optim.lr=.nan", "optim.lr"),
        ("loss.kd=0.3", "there is no teacher"),
        ("loss.proto_kd=0.1", "there is no grid"),
        ("loss.ramp=[0.6, 0.2]", "ramp must be"),
        ("loss.ramp=[1, 0.5]", "ramp must be"),
        ("data.classes=[neutral, hapiness]", "did you mean 'happiness'"),
        ("data.label_rule=most", "'majority', 'argmax' or 'votes'"),
        ("student.in_chans=2", "in_chans"),
        ("name=../up", "name"),
        ("seed", "is not key=value"),
        ("data.root=[", "not valid YAML"),
    ],
)
def test_a_mistake_is_named_in_one_line(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_recipe(Recipe, "b0_ce", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "mapping of keys"),
        ("name: [", "not valid YAML"),
        ("name: a\nname: b", "stands twice"),
        ("a: &a [x, x]\nb: [*a, *a]", "aliases"),
        ("name: !!python/object/apply:os.system [true]", "not valid YAML"),
        ("seed: 1", "name: Field required"),
    ],
)
def test_a_hostile_or_broken_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(Recipe, file)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'b3_full'"):
        load_recipe(Recipe, "b3_ful")
    with pytest.raises(InputError, match="no recipe file"):
        load_recipe(Recipe, "somewhere/else.yaml")
