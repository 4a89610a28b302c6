"""Several recipes, several seeds, one table: plans the runs, trains what is missing, compares what is there."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.files import read_json, write_json, write_text
from ngd_timm.core.recipe import LossConfig, Recipe, TeacherRun, load_recipe
from ngd_timm.evaluate.comparison import compare
from ngd_timm.models.student import student_files
from ngd_timm.report import try_page, write_ablation_report
from ngd_timm.report.plots import write_difference_plot
from ngd_timm.report.tables import Table, ablation_tables
from ngd_timm.train.interruption import Stopped
from ngd_timm.train.loop import resume, train
from ngd_timm.train.setup import data_hashes, open_grid, pinned, student_hash, teacher_config_hash, teacher_hash

__all__ = ["WARM_START", "ablate"]

logger = logging.getLogger("ngd_timm.experiments")

WARM_START = "warm_start"
"""The name of the runs from which all others of a table start."""
# what makes two runs be scored on the same pictures with the same labels
_SAME_PICTURES = ("name", "root", "label_rule", "drop_duplicates", "limit", "classes")


@dataclass(frozen=True)
class _Run:
    """A run that the table needs: its recipe with teacher, start and folder filled in."""

    recipe: Recipe
    folder: Path


def ablate(arguments: Sequence[str], seeds: int, out: str | Path, warm_start: int | None = None) -> list[Table]:
    """Train recipes on the same seeds and compare them, or go on where an earlier call with this folder stopped.

    A run that is finished is not touched; one that was interrupted goes on where it stopped. All runs are
    trained in this process, one after the other, teachers before those that they teach, a seed after the other; the
    tables are written after every seed.

    Args:
        arguments: Recipes by name or path, `key=value` for all of them, and `RECIPE:key=value` for one.
        seeds: How many, counted up from the recipes' own `seed`.
        out: Gets `runs/<recipe>-<seed>/`, `teacher_logits/` (asked for once a seed), ablation.json, table.md, .tex,
            ablation.png and report.html.
        warm_start: Epochs of cross-entropy, one run a seed, from whose student every recipe starts; None: none.

    Returns:
        The tables of all seeds. The first recipe is what differences are taken to.

    Raises:
        InputError: Recipes that can't be compared or trained; or runs in `out` that were made otherwise.
    """
    out = Path(out)
    recipes = _load(arguments)
    if seeds < 1:
        raise InputError(f"an ablation needs at least one seed, got {seeds}")
    if warm_start is not None:
        _warm_start(recipes, 0, out, warm_start)  # what it refuses needs no network, and pinning may
    recipes = {name: pinned(recipe) for name, recipe in recipes.items()}
    _refuse_what_cannot_be_paired(recipes)
    _refuse_twins(recipes)
    base = next(iter(recipes.values())).seed
    plan = {seed: list(_plan(recipes, seed, out, warm_start)) for seed in range(base, base + seeds)}
    for planned in plan.values():
        for run in planned:
            _refuse_another_run(run)
    data = _data_at_hand([run for planned in plan.values() for run in planned])
    total, number, tables = sum(map(len, plan.values())), 0, []
    for seed, planned in plan.items():
        for run in planned:
            number += 1
            _finish(run, f"[{number}/{total}] {run.recipe.name}, seed {seed}")
            _refuse_other_data(run, data)
        done = [s for s in plan if s <= seed]
        folders = {name: [_folder(out, name, s) for s in done] for name in recipes}
        start = [] if warm_start is None else [_folder(out, WARM_START, s) for s in done]
        tables = _write(compare(folders, done, start), out)
    return tables


def _load(arguments: Sequence[str]) -> dict[str, Recipe]:
    names = [a for a in arguments if "=" not in a]
    if not names:
        raise InputError("an ablation needs recipes, for example: ngd ablate b0_ce b1_kd data.root=FOLDER --out DIR")
    stems = [_stem(name) for name in names]
    shared: list[str] = []
    own: dict[str, list[str]] = {stem: [] for stem in stems}
    for override in (a for a in arguments if "=" in a):
        key, equals, value = override.partition("=")
        stem, colon, key = key.rpartition(":")
        if colon and stem not in own:
            raise choices(f"recipe in '{override}'", stem, stems)
        if key in ("name", "out"):
            raise InputError(f"'{override}': an ablation names its runs itself, as DIR/runs/<recipe>-<seed>")
        (own[stem] if colon else shared).append(key + equals + value)
    recipes: dict[str, Recipe] = {}
    for name, stem in zip(names, stems, strict=True):
        recipe = load_recipe(Recipe, name, [*shared, *own[stem]])
        if recipe.name in recipes or recipe.name == WARM_START:
            taken = "is the warm start's" if recipe.name == WARM_START else "stands twice"
            raise InputError(f"the recipe name '{recipe.name}' {taken}; give every recipe a name of its own")
        recipes[recipe.name] = recipe
    return recipes


def _stem(name: str) -> str:
    return Path(name).stem if Path(name).suffix in (".yaml", ".yml") else Path(name).name


def _refuse_what_cannot_be_paired(recipes: Mapping[str, Recipe]) -> None:
    first = next(iter(recipes.values()))
    for recipe in recipes.values():
        pairs = [(f"data.{key}", getattr(first.data, key), getattr(recipe.data, key)) for key in _SAME_PICTURES]
        pairs += [(key, getattr(first, key), getattr(recipe, key)) for key in ("eval", "eval_flip", "seed")]
        for key, a, b in pairs:
            if a != b:
                raise InputError(
                    f"{first.name} and {recipe.name} can't be paired: {key} is {a} and {b}; give {key}=… for all"
                )
        # late in a long row of runs is no time to learn of these
        open_grid(recipe)
        named = () if _teacher_of(recipe) is not None else recipe.teacher_sources
        for source in (*named, *([] if recipe.init is None else [recipe.init])):
            student_files(source)


def _refuse_twins(recipes: Mapping[str, Recipe]) -> None:
    """Rows that are one recipe would show a difference of exactly 0 and cost a run."""
    settings = {name: recipe.model_dump(exclude={"name", "out"}) for name, recipe in recipes.items()}
    for a, b in combinations(settings, 2):
        if settings[a] == settings[b]:
            raise InputError(f"{a} and {b} are the same recipe but for their names; leave one out, or change one")


def _plan(recipes: Mapping[str, Recipe], seed: int, out: Path, warm_start: int | None) -> Iterator[_Run]:
    start: str | None = None
    if warm_start is not None:
        run = _Run(_warm_start(recipes, seed, out, warm_start), _folder(out, WARM_START, seed))
        start = str(run.folder)
        yield run
    for recipe in _teachers_first(recipes):
        folder, taught_by = _folder(out, recipe.name, seed), _teacher_of(recipe)
        changes: dict[str, Any] = {"seed": seed, "out": str(folder), "init": start or recipe.init}
        if taught_by is not None:
            changes["teacher"] = str(_folder(out, taught_by, seed))
        if recipe.loss.kd > 0 and recipe.kd_cache is None:
            changes["kd_cache"] = str(out / "teacher_logits")
        yield _Run(recipe.model_copy(update=changes), folder)


def _warm_start(recipes: Mapping[str, Recipe], seed: int, out: Path, epochs: int) -> Recipe:
    first = next(iter(recipes.values()))
    for recipe in recipes.values():
        if recipe.student != first.student:
            raise InputError(f"{first.name} and {recipe.name} have different students: they can't share a warm start")
        if recipe.init is not None:
            raise InputError(f"{recipe.name} has init={recipe.init}; leave that or --warm-start out")
    kept = {key: getattr(first.loss, key) for key in ("ce", "label_smoothing", "class_weights")}
    warmup = min(first.optim.warmup, epochs - 1) if isinstance(first.optim.warmup, int) else first.optim.warmup
    changes = {
        "name": WARM_START,
        "seed": seed,
        "out": str(_folder(out, WARM_START, seed)),
        "student": first.student.model_copy(update={"weights": "float32", "logit_adjustment": 0.0, "calibrate": False}),
        "loss": LossConfig(**kept),
        "optim": first.optim.model_copy(update={"epochs": epochs, "warmup": warmup}),
        "grid": None,
        "grid_control": "none",
        "grid_size": None,
        "grid_center": False,
        "teacher": None,
    }
    if epochs < 1:
        raise InputError(f"a warm start takes at least one epoch, got {epochs}")
    return first.model_copy(update=changes)


def _teacher_of(recipe: Recipe) -> str | None:
    return recipe.teacher.run if recipe.loss.kd > 0 and isinstance(recipe.teacher, TeacherRun) else None


def _teachers_first(recipes: Mapping[str, Recipe]) -> list[Recipe]:
    for recipe in recipes.values():
        teacher = _teacher_of(recipe)
        if teacher is not None and teacher not in recipes:
            raise InputError(
                f"{recipe.name}'s teacher {{run: {teacher}}} is not among the recipes {', '.join(recipes)}; name "
                f"{teacher} too, or give {recipe.name}:teacher=RUN_DIRECTORY"
            )
    waiting, order = dict(recipes), []
    while waiting:
        ready = [name for name, recipe in waiting.items() if _teacher_of(recipe) not in waiting]
        if not ready:
            raise InputError(f"{', '.join(waiting)} are each other's teachers; give one of them teacher=RUN_DIRECTORY")
        order += [waiting.pop(name) for name in ready]
    return order


def _folder(out: Path, name: str, seed: int) -> Path:
    return out / "runs" / f"{name}-{seed}"


def _refuse_another_run(run: _Run) -> None:
    """A folder of that name may hold the planned run, whole or in part, or nothing."""
    file = run.folder / "recipe.yaml"
    if not file.is_file():
        strange = [n for n in ("fingerprint.json", "metrics.json") if (run.folder / n).is_file()]
        if strange:
            raise InputError(f"{run.folder} has {strange[0]} but no recipe.yaml; choose another --out, or remove it")
        return
    found = load_recipe(Recipe, file)
    # the folders may have moved since, all of them together
    moved = {
        key: getattr(run.recipe, key)
        for key in ("out", "teacher", "init", "kd_cache")
        if _same_end(found, run.recipe, key)
    }
    before, now = _flat(found.model_copy(update=moved).model_dump()), _flat(run.recipe.model_dump())
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        key = changed[0]
        raise InputError(
            f"{run.folder} was begun with {key}={before.get(key)}, now it is {now.get(key)}; choose another --out, or "
            "remove that run"
        )


def _data_at_hand(runs: Sequence[_Run]) -> dict[bool, dict[str, str]]:
    """What the table's data hash to, if it has runs already, which all have to be on these; by `data.streaming`."""
    known: dict[bool, dict[str, str]] = {}
    for run in runs:
        if (run.folder / "fingerprint.json").is_file():
            if run.recipe.data.streaming not in known:
                known[run.recipe.data.streaming] = data_hashes(run.recipe)
            _refuse_other_data(run, known)
    return known


def _refuse_other_data(run: _Run, known: dict[bool, dict[str, str]]) -> None:
    """A difference between runs on different images, labels, valence or arousal would not be one of their recipes."""
    file = run.folder / "fingerprint.json"
    try:
        trained = {split: str(report["sha256"]) for split, report in read_json(file)["data"].items()}
        _ = trained["train"], trained["valid"]
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{file} lacks the hashes of its data; remove that run, then it is trained again") from None
    expected = known.setdefault(run.recipe.data.streaming, trained)
    for split, sha256 in expected.items():
        if trained[split] != sha256:
            raise InputError(
                f"{run.folder} was trained on other {split} data (sha256 {trained[split][:12]}…) than "
                f"{run.recipe.data.root} holds for this table ({sha256[:12]}…); bring those back, remove the runs on "
                "others, or choose another --out"
            )


def _same_end(a: Recipe, b: Recipe, key: str) -> bool:
    first, second = _last_names(getattr(a, key)), _last_names(getattr(b, key))
    return first is not None and first == second


def _last_names(named: Any) -> list[str] | None:
    sources = [named] if isinstance(named, str) else named
    return [Path(source).name for source in sources] if isinstance(sources, (list, tuple)) else None


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        flat |= _flat(entry, f"{prefix}{key}.") if isinstance(entry, dict) else {prefix + key: entry}
    return flat


def _finish(run: _Run, title: str) -> None:
    if (run.folder / "metrics.json").is_file():
        _refuse_other_sources(run)
        logger.info(f"{title}: done before")
        return
    try:
        if (run.folder / "recipe.yaml").is_file():
            logger.info(f"{title}: goes on")
            resume(run.folder)
        else:
            logger.info(f"{title}: begins")
            train(run.recipe)
        try_page(run.folder)
    except (KeyboardInterrupt, Stopped):
        logger.info(f"{title}: stopped; the same command goes on from there")
        raise


def _refuse_other_sources(run: _Run) -> None:
    """A finished run is no longer the planned one where its teacher, start or grid has been made anew since."""
    file = run.folder / "fingerprint.json"
    if not file.is_file():
        raise InputError(f"{run.folder} has figures but no {file.name}; remove that run, then it is trained again")
    fingerprint = read_json(file)
    grid = open_grid(run.recipe)
    sources = {
        "teacher": teacher_hash(run.recipe),
        "teacher_config": teacher_config_hash(run.recipe),
        "init": student_hash(run.recipe.init),
        "grid": None if grid is None else grid.sha256,
    }
    for name, now in sources.items():
        if fingerprint.get(name) != now:
            what = "teacher's config.json" if name == "teacher_config" else name
            raise InputError(f"{run.folder} was trained with another {what} than is there now; remove that run")


def _write(comparison: dict[str, Any], out: Path) -> list[Table]:
    tables = ablation_tables(comparison)
    write_json(out / "ablation.json", comparison)
    write_text(out / "table.md", "\n\n".join(table.markdown() for table in tables) + "\n")
    write_text(out / "table.tex", "\n\n".join(table.latex() for table in tables) + "\n")
    if len(comparison["recipes"]) > 1:
        write_difference_plot(comparison, out / "ablation.png")
    write_ablation_report(out)
    return tables
