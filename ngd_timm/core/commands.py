"""The shell lines that make a thing again from its recipe, without a folder of anybody's disk."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from ngd_timm.core.errors import InputError
from ngd_timm.core.hub import PREFIX
from ngd_timm.core.paths import last_part
from ngd_timm.core.recipe import Recipe, StrictModel, TeacherRun, load_recipe, recipe_names

if TYPE_CHECKING:
    from ngd_timm.core.teacher_recipe import TeacherRecipe

__all__ = ["ablate_command", "build_commands", "train_command", "without_folders"]

_WHOLE = ("model_args", "eval")  # mappings with keys of the user's own: an override replaces them whole

RecipeT = TypeVar("RecipeT", bound=StrictModel)


def build_commands(recipe: TeacherRecipe, size: int = 5, min_subjects: int = 1, center: bool = False) -> str:
    """The two shell lines that make a grid again from its teacher's recipe.

    Args:
        recipe: The teacher's; told as a packaged one and what differs from that, or as recipe.yaml.
        size: As in `ngd_timm.eeg.teacher.consolidate.build_grid`.
        min_subjects: Likewise.
        center: Likewise.
    """
    where = f"runs/{recipe.name}-{recipe.seed}"  # where a run goes that isn't told where to
    flags = [f"--size {size}"] if size != 5 else []
    flags += [f"--min-subjects {min_subjects}"] if min_subjects != 1 else []
    flags += ["--center"] if center else []
    fit = " ".join(["ngd teacher fit", *_arguments(recipe, where)])
    return f"{fit}\n{' '.join([f'ngd prototypes build {where} --out grid.safetensors', *flags])}"


def train_command(recipe: Recipe) -> str:
    """The shell line that trains a student again.

    Example:
        >>> train_command(load_recipe(Recipe, "b0_ce", ["data.root=/home/anna/ferplus", "optim.epochs=12", "seed=3"]))
        'ngd train b0_ce seed=3 data.root=ferplus optim.epochs=12'
    """
    return " ".join(["ngd train", *_arguments(recipe, f"runs/{recipe.name}-{recipe.seed}")])


def ablate_command(recipes: Sequence[Recipe], seeds: int, warm_start: int | None = None) -> str:
    """The shell line that trains a table again, from a run's recipe of each.

    Args:
        recipes: As the runs of the first seed have them.
        seeds: How many.
        warm_start: Epochs of the run from which the others started.

    Example:
        >>> recipes = [load_recipe(Recipe, name, ["data.root=/data/ferplus"]) for name in ("b0_ce", "b1_kd")]
        >>> recipes[1] = recipes[1].model_copy(update={"teacher": "/out/runs/b0_ce-0"})
        >>> ablate_command(recipes, 3)
        'ngd ablate b0_ce b1_kd data.root=ferplus --seeds 3 --out ablation'
    """
    rows = {f"{recipe.name}-{recipe.seed}": recipe.name for recipe in recipes}
    told: dict[str, list[str]] = {}
    for recipe in recipes:
        changes: dict[str, Any] = {} if warm_start is None else {"init": None}
        if isinstance(recipe.teacher, str) and last_part(recipe.teacher) in rows:
            changes["teacher"] = TeacherRun(run=rows[last_part(recipe.teacher)])
        _, *told[recipe.name] = _arguments(recipe.model_copy(update=changes), None)
    first = next(iter(told.values()))
    shared = [argument for argument in first if all(argument in of for of in told.values())]
    own = [f"{name}:{argument}" for name, of in told.items() for argument in of if argument not in shared]
    names = [name if name in recipe_names() else f"{name}.yaml" for name in told]
    start = [] if warm_start is None else [f"--warm-start {warm_start}"]
    return " ".join(["ngd ablate", *names, *shared, *own, f"--seeds {seeds}", *start, "--out ablation"])


def without_folders(recipe: RecipeT) -> RecipeT:
    """The same recipe with paths cut to their last name and without what is about one machine only.

    Example:
        >>> mine = Recipe(name="mine", out="/home/anna/run", data={"root": "/home/anna/ferplus"}, init="hf-hub:a/b")
        >>> shown = without_folders(mine)
        >>> shown.out, shown.data.root, shown.init
        (None, 'ferplus', 'hf-hub:a/b')
    """
    values = recipe.model_dump(mode="json")
    values.update(out=None, device="auto")
    if "kd_cache" in values:
        values["kd_cache"] = None
    if "cache" in values["data"]:
        values["data"]["cache"] = True
    for section in (values["data"], values["data"].get("support")):
        if section is not None and section["root"] is not None:
            section["root"] = shown_root(section["root"])
    for key in ("grid", "teacher", "init"):
        named = values.get(key)
        if isinstance(named, str):
            values[key] = _shown_source(named)
        elif isinstance(named, list):
            values[key] = [_shown_source(source) for source in named]
    if "eval" in values:
        values["eval"] = {name: shown_root(root) for name, root in values["eval"].items()}
    if "student" in values:
        kind, colon, place = values["student"]["backbone"].partition(":")
        if colon and kind != "hf-hub":
            values["student"]["backbone"] = f"{kind}:{last_part(place)}"
    return type(recipe).model_validate(values)


def _shown_source(source: str) -> str:
    return source if source.startswith(PREFIX) else last_part(source)


def shown_root(root: str) -> str:
    """A root and its options (`ROOT,key=value`) without folders; a Hub id is nobody's folder."""
    if root.startswith(PREFIX):
        return root
    base, *options = root.split(",")
    shown = [f"{key}{equals}{last_part(value)}" for key, equals, value in (o.partition("=") for o in options)]
    return ",".join([last_part(base), *shown])


def _arguments(recipe: StrictModel, where: str | None) -> Iterator[str]:
    own, packaged_one = dict(_leaves(_told(recipe))), _packaged(recipe)
    if packaged_one is None:
        # A run's recipe.yaml names the run's own folder, which is full, and data by their place on that disk.
        yield "recipe.yaml"
        changed = {key: value for key, value in own.items() if key.endswith("root") and value is not None}
        if where is not None:
            changed["out"] = where
    else:
        yield packaged_one.name  # type: ignore[attr-defined]
        before = dict(_leaves(_told(packaged_one)))
        changed = {key: value for key, value in own.items() if key not in before or value != before[key]}
    for key, value in changed.items():
        yield shlex.quote(f"{key}={_as_yaml(value)}")


def _packaged(recipe: RecipeT) -> RecipeT | None:
    name = recipe.name  # type: ignore[attr-defined]
    if name not in recipe_names():
        return None
    for needed in ((), ("grid=GRID",)):  # g3 and g7 are whole with a grid only
        with contextlib.suppress(InputError):  # of the other kind: a student's, or a teacher's
            return load_recipe(type(recipe), name, needed)
    return None


def _told(recipe: StrictModel) -> dict[str, Any]:
    told = without_folders(recipe).model_dump(mode="json", exclude={"out": True, "device": True})
    told["data"].pop("cache", None)
    return told


def _leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping) and key not in _WHOLE:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _as_yaml(value: Any) -> str:
    """A value as an override reads it back: names bare, all else as JSON."""
    if isinstance(value, list):
        return f"[{', '.join(map(_as_yaml, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_as_yaml(key)}: {_as_yaml(of)}' for key, of in value.items())}}}"
    bare = isinstance(value, str) and re.fullmatch(r"[^\W\d_](?:[\w./:@ -]*\w)?", value) is not None
    return value if bare and yaml.safe_load(value) == value else json.dumps(value, ensure_ascii=False)
