"""Several recipes, several seeds, one table: plans the runs, trains what is missing, compares what is there."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from graphlib import CycleError, TopologicalSorter
from itertools import combinations
from pathlib import Path
from typing import Any

from ngd_timm.core.errors import InputError, PageError, choices
from ngd_timm.core.files import write_json, write_text
from ngd_timm.core.recipe import LossConfig, Recipe, TeacherRun, load_recipe
from ngd_timm.data import parse_spec
from ngd_timm.evaluate.comparison import compare
from ngd_timm.evaluate.metrics import METRICS
from ngd_timm.evaluate.schema import read_comparison, read_fingerprint
from ngd_timm.experiments.sweep import read_sweeps, swept_rows
from ngd_timm.models.student import student_files
from ngd_timm.report import try_page, write_ablation_report
from ngd_timm.report.figures import write_ablation_figures
from ngd_timm.report.plots import write_difference_plot, write_sensitivity_plot
from ngd_timm.report.tables import Table, ablation_tables
from ngd_timm.train.fingerprint import pinned, student_hash, teacher_config_hash, teacher_hash
from ngd_timm.train.interruption import Stopped
from ngd_timm.train.loop import resume, train
from ngd_timm.train.setup import build_model, build_optimizer, data_hashes, open_grid

logger = logging.getLogger("ngd_timm.experiments")

WARM_START = "warm_start"
"""The name of the runs from which all others of a table start."""
# the keys by which two runs are scored on the same images with the same labels
_SAME_DATA = ("name", "root", "label_rule", "drop_duplicates", "limit", "label_fraction", "classes")


def ablate(
    arguments: Sequence[str],
    seeds: int,
    out: str | Path,
    warm_start: int | None = None,
    command: Sequence[str] | None = None,
    sweeps: Sequence[str] = (),
    choose: str | None = None,
) -> list[Table]:
    """Train recipes on the same seeds and compare them, or go on where an earlier call with this folder stopped.

    `arguments` are recipes by name or path, `key=value` for all of them, and `RECIPE:key=value` for one; `warm_start`
    is the epochs of cross-entropy, one run a seed, from whose student every recipe starts. Teachers are trained before
    those that they teach, and the tables are written after every seed. `sweeps` are `[RECIPE:]key=value,value,…`: a row
    for every combination. `choose` is `metric=set,set`: the tables also say which row the mean over those sets would
    choose, beside validation's choice.
    """
    out = Path(out)
    if (out / "robustness.json").exists():
        raise InputError(f"{out} holds a test of robustness, whose table.md would be lost; choose another --out DIR")
    recipes, swept = _load(arguments, sweeps)
    choice = None if choose is None else _read_choice(choose, next(iter(recipes.values())))
    if seeds < 1:
        raise InputError(f"an ablation needs at least one seed, got {seeds}")
    if warm_start is not None:
        _warm_start(recipes, 0, out, warm_start)  # what it refuses needs no network, and pinning may
    recipes = {name: pinned(recipe) for name, recipe in recipes.items()}
    _refuse_unpaired(recipes)
    _refuse_twins(recipes)
    base = next(iter(recipes.values())).seed
    plan = {seed: list(_plan(recipes, seed, out, warm_start)) for seed in range(base, base + seeds)}
    runs = [run for planned in plan.values() for run in planned]
    for run in runs:
        _refuse_another_run(run)
    data = _trained_data(runs)
    compared, tables = _seeds_compared(out), list[Table]()
    drawn = True
    for number, run in enumerate(runs, 1):
        drawn &= _finish(run, command, f"[{number}/{len(runs)}] {run.name}, seed {run.seed}")
        _refuse_other_data(run, data)
        done = range(base, run.seed + 1)
        # a table of more seeds stays until there is one of as many
        if run is plan[run.seed][-1] and len(done) >= min(compared, seeds):
            folders = {name: [_folder(out, name, seed) for seed in done] for name in recipes}
            start = [] if warm_start is None else [_folder(out, WARM_START, seed) for seed in done]
            comparison = compare(folders, done, start, swept=swept)
            comparison |= {"command": command, "choose": choice}
            tables = _write(comparison, out)
            drawn &= try_page(out, partial(_draw, comparison, number == len(runs)))
    if not drawn:
        raise PageError(f"{out}: the runs, ablation.json, table.md and table.tex are finished; a page or figure is not")
    return tables


def _seeds_compared(out: Path) -> int:
    """How many seeds the table has that an earlier call left."""
    try:
        return len(read_comparison(out)["seeds"])
    except InputError:  # there is none, or it is damaged: it is written anew
        return 0


def _load(arguments: Sequence[str], sweeps: Sequence[str]) -> tuple[dict[str, Recipe], dict[str, Any]]:
    """The rows of the table, and of those of a sweep the recipe and the values."""
    names = [a for a in arguments if "=" not in a]
    if not names:
        raise InputError("an ablation needs recipes, for example: ngd ablate b0_ce b1_kd data.root=FOLDER --out DIR")
    stems = [Path(name).stem if Path(name).suffix in (".yaml", ".yml") else Path(name).name for name in names]
    shared: list[str] = []
    own: dict[str, list[str]] = {stem: [] for stem in stems}
    for override in (a for a in arguments if "=" in a):
        key, _, value = override.partition("=")
        stem, colon, key = key.rpartition(":")
        if colon and stem not in own:
            raise choices(f"recipe in '{override}'", stem, stems)
        if key in ("name", "out"):
            raise InputError(f"'{override}': an ablation names its runs itself, as DIR/runs/<recipe>-<seed>")
        (own[stem] if colon else shared).append(f"{key}={value}")
    recipes: dict[str, Recipe] = {}
    swept: dict[str, Any] = {}
    sweep = read_sweeps(sweeps, stems)
    for name, stem in zip(names, stems, strict=True):
        for recipe, values in swept_rows(name, [*shared, *own[stem]], sweep.get(stem, {})):
            if recipe.name in recipes or recipe.name == WARM_START:
                taken = "is the warm start's" if recipe.name == WARM_START else "stands twice"
                raise InputError(f"the recipe name '{recipe.name}' {taken}; give every recipe a name of its own")
            recipes[recipe.name] = recipe
            if values:
                swept[recipe.name] = {"recipe": stem, "values": values}
    return recipes, swept


def _read_choice(choose: str, recipe: Recipe) -> dict[str, Any]:
    """`metric=set,set` as the metric, and the keys of validation and of the sets."""
    metric, _, names = choose.partition("=")
    if metric not in METRICS:
        raise choices(f"metric in --choose '{choose}'", metric, METRICS)
    keys = [parse_spec(f"{name}={root}")[3] for name, root in recipe.eval.items()]
    chosen = []
    for name in names.split(","):
        found = [key for key in keys if name in (key, key.partition(":")[0])]
        if len(found) != 1:
            raise InputError(
                f"--choose {choose}: '{name}' is not one of the sets that the runs are scored on "
                f"({', '.join(keys) or 'none'}); add eval.{name or 'ckplus'}=ROOT"
            )
        chosen += found
    return {"metric": metric, "valid": f"{recipe.data.name}:valid", "sets": chosen}


def _refuse_unpaired(recipes: Mapping[str, Recipe]) -> None:
    first = next(iter(recipes.values()))
    for recipe in recipes.values():
        pairs = [(f"data.{key}", getattr(first.data, key), getattr(recipe.data, key)) for key in _SAME_DATA]
        pairs += [(key, getattr(first, key), getattr(recipe, key)) for key in ("eval", "eval_flip", "seed")]
        for key, a, b in pairs:
            if a != b:
                raise InputError(
                    f"{first.name} and {recipe.name} can't be paired: {key} is {a} and {b}; give {key}=… for all"
                )
        # late in a long row of runs is no time to learn of these
        bare = recipe.student.model_copy(update={"pretrained": False})
        model = build_model(recipe.model_copy(update={"student": bare, "init": None}), open_grid(recipe))
        build_optimizer(recipe.optim, model)
        named = () if _teacher_of(recipe) is not None else recipe.teacher_sources
        for source in (*named, *([] if recipe.init is None else [recipe.init])):
            student_files(source)


def _refuse_twins(recipes: Mapping[str, Recipe]) -> None:
    """Rows that are one recipe would show a difference of exactly 0 and cost a run."""
    settings = {name: recipe.model_dump(exclude={"name", "out"}) for name, recipe in recipes.items()}
    for a, b in combinations(settings, 2):
        if settings[a] == settings[b]:
            raise InputError(f"{a} and {b} are the same recipe but for their names; leave one out, or change one")


def _plan(recipes: Mapping[str, Recipe], seed: int, out: Path, warm_start: int | None) -> Iterator[Recipe]:
    """The recipes of one seed's runs, in order, with teacher, start and folder filled in."""
    start: str | None = None
    if warm_start is not None:
        run = _warm_start(recipes, seed, out, warm_start)
        start = run.out
        yield run
    for recipe in _teachers_first(recipes):
        teacher = _teacher_of(recipe)
        changes: dict[str, Any] = {"seed": seed, "out": str(_folder(out, recipe.name, seed))}
        changes["init"] = start or recipe.init
        if teacher is not None:
            changes["teacher"] = str(_folder(out, teacher, seed))
        if recipe.loss.kd > 0 and recipe.kd_cache is None:
            changes["kd_cache"] = str(out / "teacher_logits")
        yield recipe.model_copy(update=changes)


def _warm_start(recipes: Mapping[str, Recipe], seed: int, out: Path, epochs: int) -> Recipe:
    first = next(iter(recipes.values()))
    for recipe in recipes.values():
        # a projection has no part in cross-entropy
        if recipe.student.model_copy(update={"projection": first.student.projection}) != first.student:
            raise InputError(f"{first.name} and {recipe.name} have different students: they can't share a warm start")
        if recipe.init is not None:
            raise InputError(f"{recipe.name} has init={recipe.init}; leave that or --warm-start out")
    kept = {key: getattr(first.loss, key) for key in ("ce", "label_smoothing", "class_weights")}
    warmup = min(first.optim.warmup, epochs - 1) if isinstance(first.optim.warmup, int) else first.optim.warmup
    changes = {
        "name": WARM_START,
        "seed": seed,
        "out": str(_folder(out, WARM_START, seed)),
        "data": first.data.model_copy(update={"unlabelled": ()}),
        "student": first.student.model_copy(update={"weights": "float32", "logit_adjustment": 0.0, "calibrate": False}),
        "loss": LossConfig(**kept),
        "optim": first.optim.model_copy(update={"epochs": epochs, "warmup": warmup}),
        "grid": None,
        "grid_control": "none",
        "grid_size": None,
        "grid_center": False,
        "teacher": None,
        "best_on": (),
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
    graph = {name: [teacher] if (teacher := _teacher_of(recipe)) else [] for name, recipe in recipes.items()}
    try:
        return [recipes[name] for name in TopologicalSorter(graph).static_order()]
    except CycleError as error:
        names = ", ".join(sorted(set(error.args[1])))
        raise InputError(f"{names} are each other's teachers; give one of them teacher=RUN_DIRECTORY") from None


def _folder(out: Path, name: str, seed: int) -> Path:
    return out / "runs" / f"{name}-{seed}"


def _run_folder(run: Recipe) -> Path:
    return Path(str(run.out))


def _refuse_another_run(run: Recipe) -> None:
    """A folder of that name may hold the planned run, whole or in part, or nothing."""
    folder = _run_folder(run)
    file = folder / "recipe.yaml"
    if not file.is_file():
        return
    found = load_recipe(Recipe, file)
    # the folders may have moved since, all of them together
    sources = ("out", "teacher", "init", "kd_cache")
    moved = {key: getattr(run, key) for key in sources if _same_names(getattr(found, key), getattr(run, key))}
    before, now = _flat(found.model_copy(update=moved).model_dump()), _flat(run.model_dump())
    changed = next((key for key in {**before, **now} if before.get(key) != now.get(key)), None)
    if changed is not None:
        raise InputError(
            f"{folder} was begun with {changed}={before.get(changed)}, now it is {now.get(changed)}; choose another "
            "--out, or remove that run"
        )


def _same_names(a: Any, b: Any) -> bool:
    """Whether two values name folders, one or several, with the same last parts."""
    values = [[value] if isinstance(value, str) else value for value in (a, b)]
    if not all(isinstance(value, (list, tuple)) for value in values):
        return False
    one, other = ([Path(part).name for part in value] for value in values)
    return one == other


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        flat |= _flat(entry, f"{prefix}{key}.") if isinstance(entry, dict) else {prefix + key: entry}
    return flat


def _trained_data(runs: Sequence[Recipe]) -> dict[bool, dict[str, str]]:
    """What the table's data hash to, if it has runs already, which all have to be on these; by `data.streaming`."""
    known: dict[bool, dict[str, str]] = {}
    for run in runs:
        if (_run_folder(run) / "fingerprint.json").is_file():
            if run.data.streaming not in known:
                known[run.data.streaming] = data_hashes(run)
            _refuse_other_data(run, known)
    return known


def _refuse_other_data(run: Recipe, known: dict[bool, dict[str, str]]) -> None:
    """A difference between runs on other images, labels, valence or arousal would not be one of their recipes."""
    file = _run_folder(run) / "fingerprint.json"
    try:
        reports = read_fingerprint(file)["data"]
        # unlabelled images are a recipe's own, as its teacher is
        trained = {split: reports[split]["sha256"] for split in ("train", "valid")}
    except KeyError:
        raise InputError(f"{file} lacks the hashes of its data; remove that run, then it is trained again") from None
    for split, sha256 in known.setdefault(run.data.streaming, trained).items():
        if trained[split] != sha256:
            raise InputError(
                f"{_run_folder(run)} was trained on other {split} data (sha256 {trained[split][:12]}…) than "
                f"{run.data.root} holds for this table ({sha256[:12]}…); bring those back, remove the runs on "
                "others, or choose another --out"
            )


def _finish(run: Recipe, command: Sequence[str] | None, title: str) -> bool:
    """Train what is missing of a run; whether its page could be written."""
    folder = _run_folder(run)
    if (folder / "fingerprint.json").is_file():
        _refuse_other_sources(run)
    if (folder / "metrics.json").is_file():
        logger.info(f"{title}: done before")
        return (folder / "report.html").is_file() or try_page(folder)
    try:
        if (folder / "recipe.yaml").is_file():
            logger.info(f"{title}: goes on")
            resume(folder, command)
        else:
            logger.info(f"{title}: begins")
            train(run, command)
        return try_page(folder)
    except (KeyboardInterrupt, Stopped):
        logger.info(f"{title}: stopped; the same command goes on from there")
        raise


def _refuse_other_sources(run: Recipe) -> None:
    """A run that was begun is no longer the planned one where its teacher, start or grid has changed since."""
    fingerprint, grid = read_fingerprint(_run_folder(run) / "fingerprint.json"), open_grid(run)
    for key, name, now in (
        ("teacher", "teacher", teacher_hash(run)),
        ("teacher_config", "teacher's config.json", teacher_config_hash(run)),
        ("init", "init", student_hash(run.init)),
        ("grid", "grid", None if grid is None else grid.sha256),
    ):
        if fingerprint.get(key) != now:
            raise InputError(f"{_run_folder(run)} was trained with another {name} than is there now; remove that run")


def _write(comparison: dict[str, Any], out: Path) -> list[Table]:
    tables = ablation_tables(comparison)
    write_json(out / "ablation.json", comparison)
    write_text(out / "table.md", "\n\n".join(table.markdown() for table in tables) + "\n")
    preamble = "% needs \\usepackage{booktabs,graphicx}; then \\input{table.tex}"
    write_text(out / "table.tex", "\n\n".join([preamble, *(table.latex() for table in tables)]) + "\n")
    return tables


def _draw(comparison: dict[str, Any], last: bool, out: Path) -> Path:
    """Plots and page; after the last seed the figures too, which take a minute."""
    if len(comparison["recipes"]) > 1:
        write_difference_plot(comparison, out / "ablation.png")
    if comparison["swept"]:
        write_sensitivity_plot(comparison, out / "sensitivity.png")
    if last:
        write_ablation_figures(comparison, out)
    return write_ablation_report(out)
