"""RESULTS.md: an ablation scored on any sets by any label rules, beside the paper, with what each term adds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.commands import shown_command, without_folders
from ngd_timm.core.devices import open_device
from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.files import check_place, read_json, write_json, write_text
from ngd_timm.core.progress import with_bar
from ngd_timm.core.recipe import Recipe, load_recipe
from ngd_timm.data import load_split, parse_spec
from ngd_timm.data.labels import GIVEN, LABEL_RULES
from ngd_timm.evaluate.comparison import (
    QUESTIONS,
    RecipePredictions,
    compare_predictions,
    difference_pairs,
    refuse_other_recipes,
    training_summary,
)
from ngd_timm.evaluate.metrics import (
    METRIC_NAMES,
    METRIC_TITLES,
    METRICS,
    protocol_name,
    scoring_name,
    shown_protocols,
)
from ngd_timm.evaluate.predictions import Predictions, predict
from ngd_timm.evaluate.run import Run, read_run
from ngd_timm.evaluate.schema import read_comparison
from ngd_timm.evaluate.student import check_specs, face_batches
from ngd_timm.grid.verdict import difference_verdict
from ngd_timm.models.student import run_folder
from ngd_timm.report.page import fill
from ngd_timm.report.plots import write_forest_plot
from ngd_timm.report.run import TERMS
from ngd_timm.report.tables import Table, ablation_tables, with_interval

PAPER_BEST = "Full (T=1)"
"""The paper's best row on FERPlus validation, shown too where no recipe of a table stands for it."""
PAPER: Mapping[tuple[str, str], Mapping[str, tuple[float, float, float | None]]] = {
    ("ferplus:valid", "8way"): {
        "b0_ce": (78.22, 51.29, 49.77),
        "b1_kd": (82.31, 63.56, 59.28),
        "b2_proto": (81.48, 64.21, 60.30),
        "b3_full": (83.06, 64.74, 59.90),
        PAPER_BEST: (83.66, 65.39, 61.32),
    },
    ("affectnet", "present"): {"b3_full": (76.30, 75.60, 75.77)},
    ("ckplus", "present"): {"b3_full": (64.93, 49.33, 52.46)},
    ("ckplus", "8way"): {"b3_full": (55.86, 39.23, None)},
}
"""arXiv 2509.11916 by set (or set and split) and protocol: accuracy, macro-F1 and balanced accuracy in percent."""

_KIND = "ngd results"
_KEPT = ("recipes", "seeds", "warm_start", "runs", "training")
_BEST = ", best by "  # between a recipe's name and the metric that chose student_best/
_MINI = ("affectnet", "present")
_PLOTTED = "macro_f1"
# recipes that stand for a row of the paper under another name; that T is logit KD's is our reading
_SAME_OBJECTIVE = {"tau_paper": "b2_proto", "b3_t1": PAPER_BEST}


def score_ablation(
    sources: Sequence[str | Path],
    specs: Sequence[str],
    label_rules: Sequence[str] = ("majority", "argmax"),
    beside: Sequence[str | Path] = (),
    resamples: int = 2000,
    command: Sequence[str] | None = None,
    best: bool = False,
) -> dict[str, Any]:
    """Score every run of an ablation on data sets, by each label rule, and compare the recipes on each.

    `sources` are the folder of an ablation, or finished runs; `beside` are further runs, rows without differences.
    `best` adds a row a recipe: its student_best/, paired with its last epoch.
    """
    beside_names = [Path(run).name for run in beside]
    comparison, rows = _of_ablation(Path(sources[0])) if _is_ablation(sources) else _of_runs(sources)
    row_names = comparison["runs"]
    for names in (row_names, [run for runs in row_names.values() for run in runs]):
        _refuse_twice([*names, *beside_names])
    others = {name: [read_run(run)] for name, run in zip(beside_names, beside, strict=True)}
    recipes = comparison["recipes"]
    pairs = difference_pairs(recipes, comparison.get("swept"))
    if best:
        chosen = {name: f"{name}{_BEST}{_choice(runs[0].recipe)}" for name, runs in rows.items()}
        pairs += [(chosen[name], name) for name in rows]
        rows = {row: at for name, runs in rows.items() for row, at in ((name, runs), (chosen[name], _at_best(runs)))}
    teachers = teacher_terms(run.recipe for runs in rows.values() for run in runs)
    sets, data = {}, {}
    for name, answers in _predictions({**rows, **others}, specs, label_rules):
        data[name] = next(iter(answers.values()))[0][1].data_sha256
        sets[name] = compare_predictions(name, {recipe: answers[recipe] for recipe in rows}, pairs, resamples)
        sets[name]["beside"] = {run: answers[run][0][1].entry() for run in others}
    students = {_student_name(run): run.student_sha256 for runs in (*rows.values(), *others.values()) for run in runs}
    return {
        "kind": _KIND,
        **{key: comparison[key] for key in _KEPT},
        "teachers": teachers,
        "sets": sets,
        "beside": {
            name: shown_command(run.fingerprint, "ngd train recipe.yaml data.root=…") for name, (run,) in others.items()
        },
        "students": students,
        "data": data,
        "commands": {
            **comparison["commands"],
            "results": shown_command({"command": command}, "ngd results ablation --data … --out RESULTS.md"),
        },
    }


def _is_ablation(sources: Sequence[str | Path]) -> bool:
    return len(sources) == 1 and not (Path(sources[0]) / "recipe.yaml").is_file()


def _of_ablation(folder: Path) -> tuple[dict[str, Any], dict[str, list[Run]]]:
    """What the page keeps of ablation.json, and the runs by row."""
    comparison = read_comparison(folder)
    command = shown_command(comparison, f"ngd ablate {' '.join(comparison['recipes'])} data.root=… --out ablation")
    rows = {name: [read_run(folder / "runs" / run) for run in runs] for name, runs in comparison["runs"].items()}
    return {**comparison, "commands": {"ablate": command}}, rows


def _of_runs(folders: Sequence[str | Path]) -> tuple[dict[str, Any], dict[str, list[Run]]]:
    """The same of finished runs, which are one recipe where their recipes have one name."""
    rows: dict[str, list[Run]] = {}
    for run in map(read_run, folders):
        rows.setdefault(run.recipe.name, []).append(run)
    rows = {name: sorted(runs, key=lambda run: run.recipe.seed) for name, runs in rows.items()}
    seeds = {name: [run.recipe.seed for run in runs] for name, runs in rows.items()}
    first, *others = seeds
    for name in (first, *others):
        refuse_other_recipes(
            name,
            [(run.folder.name, run.recipe, run.fingerprint) for run in rows[name]],
            "train one under another name=…, or leave it out",
        )
        if seeds[name] != seeds[first] or len({*seeds[name]}) < len(seeds[name]):
            raise InputError(
                f"{first} has the seeds {seeds[first]} and {name} {seeds[name]}; a table needs each seed once, "
                "the same ones of every recipe"
            )
    comparison = {
        "recipes": list(rows),
        "seeds": seeds[first],
        "warm_start": False,
        "runs": {name: [run.folder.name for run in runs] for name, runs in rows.items()},
        "training": {name: training_summary([run.folder for run in runs]) for name, runs in rows.items()},
        "commands": {
            run.folder.name: shown_command(run.fingerprint, f"ngd train {name} data.root=…")
            for name, runs in rows.items()
            for run in runs
        },
    }
    return comparison, rows


def _at_best(runs: Sequence[Run]) -> list[Run]:
    """The same runs with the student of the epoch that was best."""
    return [replace(run, student_folder=run.folder / "student_best") for run in runs]


def _choice(recipe: Recipe) -> str:
    """What chose student_best/, by the metric's name and the sets', of which validation has none."""
    return METRIC_NAMES[recipe.best_metric] + (f" on {', '.join(recipe.best_on)}" if recipe.best_on else "")


def _student_name(run: Run) -> str:
    name = run.student_folder.name
    return run.folder.name if name == "student" else f"{run.folder.name}/{name}"


def teacher_terms(recipes: Iterable[Recipe]) -> dict[str, list[str] | None]:
    """The logit teachers of recipes, each with the terms of its own loss; None where no recipe.yaml is at hand."""
    sources = {
        name: source
        for recipe in recipes
        for name, source in zip(without_folders(recipe).teacher_sources, recipe.teacher_sources, strict=True)
    }
    return {name: _terms_of(source) for name, source in sources.items()}


def _terms_of(student: str) -> list[str] | None:
    try:
        folder = run_folder(student)
    except InputError:  # its folder is gone, or its repository out of reach
        return None
    if folder is None:
        return None
    loss = load_recipe(Recipe, folder / "recipe.yaml").loss
    weights = {"ce": loss.ce, "kd": loss.kd, "proto_kd": loss.proto_share or loss.proto_kd, "d_geo": loss.d_geo}
    return [term for term, weight in weights.items() if weight > 0]


def check_out(out: str | Path) -> None:
    """Refuse a place for the page before hours of scoring: no `.md`, not writable, or its `.json` is no page's."""
    out = Path(out)
    if out.suffix != ".md" or out.is_dir():
        raise InputError(f"{out} is no place for a page; give a file that ends in .md")
    check_place(out)
    file = out.with_suffix(".json")
    plot = out.with_suffix(".png")
    for replaced, other in (
        (file, file.exists() and read_json(file).get("kind") != _KIND),
        (plot, plot.exists() and not file.exists()),
    ):
        if other:
            raise InputError(f"the page would replace {replaced}, which is something else; give --out another name")


def write_results(results: Mapping[str, Any], out: str | Path) -> None:
    """Write `out` (Markdown), and beside it `.json`, from which it follows, and `.png`, its plot; see `check_out`."""
    out = Path(out)
    check_out(out)
    kept, plot = _compact(results), out.with_suffix(".png")
    write_json(out.with_suffix(".json"), kept, indent=None)
    sets = _by_first_rule(results)
    if differ := all(found["differences"] for found in sets.values()):
        write_forest_plot(sets, _PLOTTED, results["seeds"], plot)
    write_text(out, results_markdown(kept, plot.name if differ else None))


def _by_first_rule(results: Mapping[str, Any]) -> dict[str, Any]:
    """The sets as the first label rule counts them, and those that name one class an image."""
    rules = [name.partition(", ")[2] for name in results["sets"]]
    shown = {next((rule for rule in rules if rule != GIVEN), GIVEN), GIVEN}
    return {name: found for (name, found), rule in zip(results["sets"].items(), rules, strict=True) if rule in shown}


def _compact(value: Any, whole: bool = False) -> Any:
    """To five decimals, and without present-only scores in sets with every class, where they are the 8-way ones."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, list):
        return [_compact(item, whole) for item in value]
    if isinstance(value, Mapping):
        whole = whole or ("classes" in value and value["classes"] == value.get("present_classes"))
        dropped = ("present", "present_unmasked") if whole else ()
        return {k: _compact(v, whole) for k, v in value.items() if k not in dropped}
    return value


def results_markdown(results: Mapping[str, Any], plot: str | None = None) -> str:
    """The page of what `score_ablation` returned, or of its JSON read back, with a plot of the differences by name."""
    teachers = {name: terms and [TERMS[t] for t in terms] for name, terms in results["teachers"].items()}
    return fill(
        "results.md.j2",
        {
            **results,
            "teachers": teachers,
            "inherited": [
                t for t in (TERMS["proto_kd"], TERMS["d_geo"]) if any(t in (x or ()) for x in teachers.values())
            ],
            # one seed is no ground for a conclusion about a term
            "summaries": [_summary(name, results) for name in _by_first_rule(results) if len(results["seeds"]) > 1],
            "plot": plot,
            "plotted": METRIC_TITLES[_PLOTTED],
            "overview": _overview(results) if len(results["sets"]) > 1 else None,
            "tables": {name: _tables(name, results) for name in results["sets"]},
            "training": ablation_tables({**results, "sets": {}})[-1],
        },
    )


def _summary(name: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """What the differences on one set say to each question, over the classes that it has."""
    found = results["sets"][name]
    protocol = shown_protocols(found)[-1]
    differences = {(d["a"], d["b"]): d[protocol] for d in found["differences"]}
    verdicts = {
        question: [
            difference_verdict(f"{what} ({a} − {b})", differences[a, b], METRIC_TITLES)
            for what, a, b in pairs
            if (a, b) in differences
        ]
        for question, pairs in QUESTIONS.items()
    }
    answered = {question: sentences for question, sentences in verdicts.items() if sentences}
    return {"set": name, "protocol": protocol_name(protocol, found), "verdicts": answered}


def _overview(results: Mapping[str, Any]) -> Table:
    """A row a recipe, a column a set: all three metrics, present-only where the set lacks classes."""
    sets = results["sets"]
    protocols = {name: shown_protocols(found)[-1] for name, found in sets.items()}
    titles = [f"{name}, {protocol_name(protocols[name], found)}" for name, found in sets.items()]
    rows = []
    for row in next(iter(sets.values()))["recipes"]:
        means = [found["recipes"][row][protocols[name]] for name, found in sets.items()]
        rows.append((row, *(" / ".join(f"{mean[m]['mean']:.2f}" for m in METRICS) for mean in means)))
    seeds = results["seeds"]
    how = f"means over {len(seeds)} seeds" if len(seeds) > 1 else f"one seed ({seeds[0]}), n = 1"
    notes = [f"{how}; intervals are in the tables of each set"]
    if any(_BEST in row for row, *_ in rows):
        notes.append(
            f"a row without \"{_BEST.strip(', ')} …\" is the last epoch's student, a row with it the epoch's "
            "that was best by that metric, on validation where it names no set: there it is flattered by the choice"
        )
    return Table(
        f"at a glance: {' / '.join(METRIC_NAMES.values())}, percent", ("recipe", *titles), tuple(rows), tuple(notes)
    )


def _tables(name: str, results: Mapping[str, Any]) -> list[Table]:
    found = results["sets"][name]
    *tables, _ = ablation_tables({**results, "sets": {name: found}})
    key = name.partition(",")[0]
    of_paper = {recipe for paper in PAPER.values() for recipe in paper}
    papers = [
        _paper_table(paper, found, protocol)
        for (where, protocol), paper in PAPER.items()
        if where in (key, key.partition(":")[0])
        and tuple(found["classes"]) == CLASSES
        and (key.partition(":")[0] != "ferplus" or not of_paper.isdisjoint(map(_objective, found["recipes"])))
    ]
    return [*papers, *tables, *([_beside_table(found["beside"])] if found["beside"] else [])]


def _predictions(
    runs: Mapping[str, Sequence[Run]], specs: Sequence[str], rules: Sequence[str]
) -> Iterator[tuple[str, RecipePredictions]]:
    """Every run's predictions on each set, as each rule counts them, by `name:split, rule`."""
    for rule in rules:
        if rule not in LABEL_RULES:
            raise choices("label rule", rule, LABEL_RULES)
    keys = [key for *_, key in map(parse_spec, specs)]
    if len(set(keys)) < len(keys) or len(set(rules)) < len(rules):
        raise InputError(f"the same data set or label rule twice: {', '.join([*keys, *rules])}; give each once")
    if not specs or not rules:
        raise InputError("nothing to score on; give --data name=root[:split] and at least one --label-rule")
    check_specs(specs)
    students = [run for by_seed in runs.values() for run in by_seed]
    classes = students[0].classes
    for run in students:
        if run.classes != classes:
            raise InputError(f"{run.source} has the classes {', '.join(run.classes)}, the others {', '.join(classes)}")
        if run.recipe.data.drop_duplicates != students[0].recipe.data.drop_duplicates:
            raise InputError(
                f"{run.source} and {students[0].source} differ in data.drop_duplicates, so they are scored on other "
                "images; leave one out"
            )
    options: dict[str, Any] = {"classes": classes, "drop_duplicates": students[0].recipe.data.drop_duplicates}
    device = open_device("auto")
    for name, root, split, key in map(parse_spec, specs):
        loaded = {rule: load_split(name, root, split or "all", label_rule=rule, **options) for rule in rules}
        if all(report.labels == GIVEN for _, report in loaded.values()):  # the rules agree
            loaded = {GIVEN: next(iter(loaded.values()))}
        widest = max((dataset for dataset, _ in loaded.values()), key=len)
        predictions = {
            run.student_folder: predict(
                run.student.to(device), face_batches(run.student, widest), device, run.recipe.eval_flip
            )
            for run in with_bar(students, len(students), key)
        }
        place = {source: row for row, source in enumerate(widest["source"][:])}
        for rule, (dataset, report) in loaded.items():
            rows = [place.get(source) for source in dataset["source"][:]]
            if None in rows:
                raise InputError(f"{key}: the rules {', '.join(rules)} keep different images; give one at a time")
            counted, target = torch.tensor(rows), torch.tensor(dataset["label"][:])
            scored = {
                at: _part(of_run, counted, target).described(classes, rule, report.sha256)
                for at, of_run in predictions.items()
            }
            yield (
                f"{key}, {rule}",
                {
                    name: [(_student_name(run), scored[run.student_folder]) for run in by_seed]
                    for name, by_seed in runs.items()
                },
            )


def _part(whole: Predictions, rows: Tensor, target: Tensor) -> Predictions:
    subject = None if whole.subject is None else whole.subject[rows]
    return replace(whole, logits=whole.logits[rows], target=target, embedding=None, subject=subject)


def _refuse_twice(names: Sequence[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{', '.join(twice)} names two runs of one page; rename the folder of one")


def _objective(row: str) -> str:
    """The row of the paper that a recipe's row stands for, else the recipe's name."""
    recipe = row.partition(_BEST)[0]
    return _SAME_OBJECTIVE.get(recipe, recipe)


def _paper_table(
    paper: Mapping[str, tuple[float, float, float | None]], found: Mapping[str, Any], protocol: str
) -> Table:
    """The paper's scores beside those of the recipes with its objectives, and its rows that no recipe here has."""
    objective = {row: _objective(row) for row in found["recipes"]}
    ours = [(row, paper[name]) for row, name in objective.items() if name in paper]
    alone = [(name, scores) for name, scores in paper.items() if name not in objective.values()]
    rows = []
    for row, theirs in (*ours, *alone):
        mean = found["recipes"].get(row, {})
        here = mean.get(protocol) or mean.get("8way") or {}
        pairs = [(score, here[m]["mean"] if here else None) for m, score in zip(METRICS, theirs, strict=True)]
        rows.append((row, *("" if v is None else f"{v:.2f}" for pair in pairs for v in pair)))
    header = ("recipe", *(f"{METRIC_NAMES[m]}, {who}" for m in METRICS for who in ("paper", "here")))
    notes = [
        "the paper has another grid (of DREAMER and MAHNOB-HCI) and, for B3 by its authors' README, 100 epochs"
        + "; it doesn't say how votes became labels" * (PAPER_BEST in paper),
        *["by that README the paper's epoch is the best on validation by macro-F1"] * any(_BEST in r for r, _ in ours),
        *["the paper's set is AffectNet-mini, of which the authors publish no list"] * (paper is PAPER[_MINI]),
        *["tau_paper has the objective of b2_proto, the paper's B2"] * ("tau_paper" in objective),
        *[f"{PAPER_BEST} is the paper's best row; b3_t1, our reading of it, is not in this table"]
        * (PAPER_BEST in dict(alone)),
        *[f"b3_t1 stands for {PAPER_BEST}, the paper's best row: that its T is logit KD's is our reading"]
        * (PAPER_BEST in objective.values()),
    ]
    return Table(f"beside the paper, {protocol_name(protocol, found)}, percent", header, tuple(rows), tuple(notes))


def _beside_table(beside: Mapping[str, Any]) -> Table:
    rows = []
    for run, entry in beside.items():
        cells = [with_interval(entry["8way"][m], entry["ci95"]["8way"][m]) for m in METRICS]
        rows.append((run, *cells, f"{entry['ece']:.1f}"))
    protocol = protocol_name("8way", next(iter(beside.values())))
    notes = tuple(f"{run}: {scoring_name(entry)}" for run, entry in beside.items())
    header = ("run", *METRIC_NAMES.values(), "ECE")
    return Table(f"runs beside the table, {protocol}, percent, one seed", header, tuple(rows), notes)
