"""RESULTS.md: an ablation scored on any sets by any label rules, beside the paper, with what each term adds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.commands import shown_command, without_folders
from ngd_timm.core.devices import open_device
from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.files import check_place, read_json, write_json, write_text
from ngd_timm.core.recipe import Recipe, load_recipe
from ngd_timm.data import load_split, parse_spec
from ngd_timm.data.labels import LABEL_RULES
from ngd_timm.evaluate.comparison import RecipePredictions, compare_predictions, difference_pairs
from ngd_timm.evaluate.metrics import METRIC_NAMES, METRIC_TITLES, METRICS, protocol_name, scoring_name
from ngd_timm.evaluate.predictions import Predictions, predict
from ngd_timm.evaluate.run import Run, read_run
from ngd_timm.evaluate.run_log import with_bar
from ngd_timm.evaluate.student import face_batches
from ngd_timm.grid.verdict import difference_verdict
from ngd_timm.models.student import run_folder
from ngd_timm.report.page import fill
from ngd_timm.report.run import TERMS
from ngd_timm.report.tables import Table, ablation_tables, with_interval

PAPER: Mapping[str, tuple[float, float, float]] = {
    "b0_ce": (78.22, 51.29, 49.77),
    "b1_kd": (82.31, 63.56, 59.28),
    "b2_proto": (81.48, 64.21, 60.30),
    "tau_paper": (81.48, 64.21, 60.30),  # b2_proto's objective under another name
    "b3_full": (83.06, 64.74, 59.90),
    "b3_t1": (83.66, 65.39, 61.32),  # "Full (T=1)"; that T is logit KD's is our reading
}
"""arXiv 2509.11916 on FERPlus validation, 8-way: accuracy, macro-F1 and balanced accuracy in percent."""
PAPER_BEST = ("Full (T=1)", PAPER["b3_t1"])
"""The paper's best row on that set, shown too where no recipe of a table stands for it."""

_KIND = "ngd results"
_KEPT = ("recipes", "seeds", "warm_start", "runs", "training")
_PAPERS_SET = "ferplus:valid"
# by question the differences that answer it: what is compared, recipe a minus recipe b
_QUESTIONS: Mapping[str, Sequence[tuple[str, str, str]]] = {
    "": (
        ("logit KD", "b1_kd", "b0_ce"),
        ("Proto-KD", "b2_proto", "b1_kd"),
        ("Proto-KD at its share", "b2_share", "b1_kd"),
        ("D-Geo", "b3_full", "b2_proto"),
        ("Proto-KD and D-Geo", "b3_full", "b1_kd"),
        ("D-Geo, Proto-KD at its share", "b3_share", "b2_share"),
        ("Proto-KD at its share and D-Geo", "b3_share", "b1_kd"),
    ),
    "Does real EEG add anything over its controls, at an equal share of the gradient?": (
        ("the EEG grid against a random grid", "b2_share", "c_random"),
        ("the EEG grid against a shuffled grid", "b2_share", "c_shuffled"),
        ("the EEG grid against valence and arousal alone", "b2_share", "c_va"),
    ),
    "Would Proto-KD be better off otherwise?": (
        ("3x3 cells instead of 5x5", "g3", "b2_share"),
        ("7x7 cells instead of 5x5", "g7", "b2_share"),
        ("the paper's tau and lambda, as tau_paper has them", "tau_paper", "b2_share"),
    ),
}


class _Earlier(NamedTuple):
    """An earlier page, whose runs that are not scored again are kept."""

    file: Path
    beside: Mapping[str, Any]
    tried: Mapping[str, Any]
    page: Mapping[str, Any]

    def refuse_others(self, name: str, sha256: str | None = None, classes: Sequence[str] = ()) -> None:
        """Rows of one table need the same images, labels and classes; without these only the name is compared."""
        if not self.beside:
            return
        same = name in self.page["sets"]
        if same and sha256 is not None:
            same = self.page["data"].get(name) == sha256 and self.page["sets"][name]["classes"] == list(classes)
        if not same:
            raise InputError(
                f"{self.file} has no scores on the images, labels and classes of {name} as they are now; leave "
                "--earlier or that set out"
            )


def score_ablation(
    folder: str | Path,
    specs: Sequence[str],
    label_rules: Sequence[str] = ("majority", "argmax"),
    beside: Sequence[str | Path] = (),
    tried: Sequence[str | Path] = (),
    earlier: str | Path | None = None,
    resamples: int = 2000,
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Score every run of an ablation on data sets, by each label rule, and compare the recipes on each.

    `beside` are further runs, rows without differences; `tried` are runs that settings were chosen by, described by
    their own metrics.json alone; `earlier` is the JSON of an earlier page, from which runs of both kinds are kept.
    """
    folder = Path(folder)
    beside_names, tried_names = ([Path(run).name for run in runs] for runs in (beside, tried))
    kept = _read_earlier(earlier, beside_names, tried_names)
    comparison = read_json(folder / "ablation.json")
    if missing := [key for key in _KEPT if key not in comparison]:
        raise InputError(f"{folder / 'ablation.json'} lacks {', '.join(missing)}; run the same ngd ablate again")
    row_names = comparison["runs"]
    _refuse_twice([*row_names, *(run for runs in row_names.values() for run in runs), *beside_names, *kept.beside])
    _refuse_twice([*tried_names, *kept.tried])
    rows = {name: [read_run(folder / "runs" / run) for run in runs] for name, runs in row_names.items()}
    others = {name: [read_run(run)] for name, run in zip(beside_names, beside, strict=True)}
    # what can't be read is refused before anything is scored
    beside_notes = {name: _run_notes(run) for name, (run,) in others.items()}
    tried_notes = {name: _run_notes(read_run(run)) for name, run in zip(tried_names, tried, strict=True)}
    recipes = comparison["recipes"]
    pairs = difference_pairs(recipes)
    sets, data = {}, {}
    for name, answers in _predictions({**rows, **others}, specs, label_rules, kept):
        data[name] = next(iter(answers.values()))[0][1].data_sha256
        sets[name] = compare_predictions(name, {recipe: answers[recipe] for recipe in rows}, pairs, resamples)
        sets[name]["beside"] = {run: answers[run][0][1].entry() for run in others}
        sets[name]["beside"] |= {run: kept.page["sets"][name]["beside"][run] for run in kept.beside}
    students = {run.folder.name: run.student_sha256 for runs in (*rows.values(), *others.values()) for run in runs}
    return {
        "kind": _KIND,
        **{key: comparison[key] for key in _KEPT},
        "teachers": teacher_terms(run.recipe for runs in rows.values() for run in runs),
        "sets": sets,
        "beside": {**beside_notes, **kept.beside},
        "tried": {**kept.tried, **tried_notes},
        "students": {**students, **{run: kept.page["students"][run] for run in kept.beside}},
        "data": data,
        "commands": {
            "ablate": shown_command(comparison, f"ngd ablate {' '.join(recipes)} data.root=… --out ablation"),
            "results": shown_command({"command": command}, "ngd results ablation --data … --out RESULTS.md"),
        },
    }


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
    if file.exists() and read_json(file).get("kind") != _KIND:
        raise InputError(f"the scores would replace {file}, which is something else; give --out another name")


def write_results(results: Mapping[str, Any], out: str | Path) -> None:
    """Write `out` (Markdown), and beside it the same name with `.json`, from which it follows; see `check_out`."""
    out = Path(out)
    check_out(out)
    kept = _compact(results)
    write_json(out.with_suffix(".json"), kept, indent=None)
    write_text(out, results_markdown(kept))


def _compact(value: Any) -> Any:
    """The same to five decimals, without present-only scores where these are the 8-way ones."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, list):
        return [_compact(item) for item in value]
    if isinstance(value, Mapping):
        same = "8way" in value and value["8way"] == value.get("present")
        return {k: _compact(v) for k, v in value.items() if not (same and k in ("present", "present_unmasked"))}
    return value


def results_markdown(results: Mapping[str, Any]) -> str:
    """The page of what `score_ablation` returned, or of its JSON read back."""
    _, _, rule = next(iter(results["sets"])).partition(", ")
    teachers = {name: terms and [TERMS[t] for t in terms] for name, terms in results["teachers"].items()}
    notes = (results["beside"], results["tried"])
    return fill(
        "results.md.j2",
        {
            **results,
            "teachers": teachers,
            "inherited": [
                t for t in (TERMS["proto_kd"], TERMS["d_geo"]) if any(t in (x or ()) for x in teachers.values())
            ],
            "summaries": [_summary(name, results) for name in results["sets"] if name.endswith(f", {rule}")],
            "tables": {name: _tables(name, results) for name in results["sets"]},
            "training": ablation_tables({**results, "sets": {}})[-1],
            "kept": list(dict.fromkeys(run for runs in notes for run in runs if runs[run].get("earlier"))),
            "settings": _tried_table(results["tried"]) if results["tried"] else None,
        },
    )


def _summary(name: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """What each term adds, whether EEG does, and whether other settings of Proto-KD do, by rule, on one set."""
    found = results["sets"][name]
    differences = {(d["a"], d["b"]): d["8way"] for d in found["differences"]}
    verdicts = {
        question: [
            difference_verdict(f"{what} ({a} − {b})", differences[a, b], METRIC_TITLES)
            for what, a, b in pairs
            if (a, b) in differences
        ]
        for question, pairs in _QUESTIONS.items()
    }
    return {"set": name, "protocol": protocol_name("8way", found), "verdicts": verdicts}


def _tables(name: str, results: Mapping[str, Any]) -> list[Table]:
    found = results["sets"][name]
    *tables, _ = ablation_tables({**results, "sets": {name: found}})
    if name.partition(",")[0] == _PAPERS_SET and tuple(found["classes"]) == CLASSES:
        tables = [*_paper_table(results["recipes"], found), *tables]
    return [*tables, *([_beside_table(found["beside"])] if found["beside"] else [])]


def _predictions(
    runs: Mapping[str, Sequence[Run]], specs: Sequence[str], rules: Sequence[str], earlier: _Earlier
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
    for name in (f"{key}, {rule}" for key in keys for rule in rules):
        earlier.refuse_others(name)
    students = [run for by_seed in runs.values() for run in by_seed]
    classes = students[0].classes
    for run in students:
        if run.classes != classes:
            raise InputError(f"{run.source} has the classes {', '.join(run.classes)}, the others {', '.join(classes)}")
    device = open_device("auto")
    for name, root, split, key in map(parse_spec, specs):
        loaded = {rule: load_split(name, root, split or "all", label_rule=rule, classes=classes) for rule in rules}
        for rule, (_, report) in loaded.items():
            earlier.refuse_others(f"{key}, {rule}", report.sha256, classes)
        widest = max((dataset for dataset, _ in loaded.values()), key=len)
        predictions = {
            run.folder: predict(run.student.to(device), face_batches(run.student, widest), device, run.recipe.eval_flip)
            for run in with_bar(iter(students), len(students), key)
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
                {name: [(run.folder.name, scored[run.folder]) for run in by_seed] for name, by_seed in runs.items()},
            )


def _part(whole: Predictions, rows: Tensor, target: Tensor) -> Predictions:
    subject = None if whole.subject is None else whole.subject[rows]
    return replace(whole, logits=whole.logits[rows], target=target, embedding=None, subject=subject)


def _read_earlier(path: str | Path | None, beside: Sequence[str], tried: Sequence[str]) -> _Earlier:
    """What an earlier page has of other runs than these."""
    if path is None:
        return _Earlier(Path(), {}, {}, {})
    file = Path(path)
    page = read_json(file)
    if page.get("kind") != _KIND:
        raise InputError(f"{file} is not the JSON of a page of ngd results; give --earlier the one beside RESULTS.md")
    try:
        others, settings = (
            {run: {**notes, "earlier": True} for run, notes in page[key].items() if run not in again}
            for key, again in (("beside", beside), ("tried", tried))
        )
        for notes in (*others.values(), *settings.values()):
            _ = [notes[key] for key in ("command", "epochs", "minutes", "metrics")]
        for run in others:
            _ = page["students"][run], page["data"].get
            _ = [found["beside"][run]["ci95"]["8way"] for found in page["sets"].values()]
        return _Earlier(file, others, settings, page)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is not whole ({error}); bring back the JSON that was written with its page") from None


def _refuse_twice(names: Sequence[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{', '.join(twice)} names two runs of one page; rename the folder of one")


def _run_notes(run: Run) -> dict[str, Any]:
    """A run by its own files: its command, its time, and its scores on validation."""
    try:
        scores = {key: {"n": entry["n"], "8way": entry["8way"]} for key, entry in run.metrics.items()}
    except (KeyError, TypeError):
        scores = {}
    if not scores:
        raise InputError(f"{run.folder / 'metrics.json'} holds no scores; train or evaluate the run again")
    return {
        "command": shown_command(run.fingerprint, "ngd train recipe.yaml data.root=…"),
        "epochs": len(run.rows),
        "minutes": sum(float(row["seconds"]) for row in run.rows) / 60,
        "metrics": scores,
    }


def _paper_table(recipes: Sequence[str], found: Mapping[str, Any]) -> list[Table]:
    """The paper's scores beside those here; nothing where no recipe is one of the paper's."""
    rows = []
    for name in (n for n in recipes if n in PAPER):
        ours = [found["recipes"][name]["8way"][m]["mean"] for m in METRICS]
        rows.append((name, *(f"{v:.2f}" for pair in zip(PAPER[name], ours, strict=True) for v in pair)))
    if not rows:
        return []
    best, scores = PAPER_BEST
    reading = f"b3_t1 stands for {best}, the paper's best row: that its T is logit KD's is our reading"
    if "b3_t1" not in recipes:
        rows.append((best, *(cell for value in scores for cell in (f"{value:.2f}", ""))))
        reading = f"{best} is the paper's best row; no recipe here stands for it"
    header = ("recipe", *(f"{METRIC_NAMES[m]}, {who}" for m in METRICS for who in ("paper", "here")))
    notes = (
        "the paper has another grid (of DREAMER and MAHNOB-HCI) and, for B3 by its authors' README, 100 epochs; it "
        "doesn't say how votes became labels",
        *["tau_paper has the objective of b2_proto, the paper's B2"] * ("tau_paper" in recipes),
        reading,
    )
    return [Table("beside the paper, 8-way, percent", header, tuple(rows), notes)]


def _beside_table(beside: Mapping[str, Any]) -> Table:
    rows = []
    for run, entry in beside.items():
        cells = [with_interval(entry["8way"][m], entry["ci95"]["8way"][m]) for m in METRICS]
        rows.append((run, *cells, f"{entry['ece']:.1f}"))
    protocol = protocol_name("8way", next(iter(beside.values())))
    notes = tuple(f"{run}: {scoring_name(entry)}" for run, entry in beside.items())
    header = ("run", *METRIC_NAMES.values(), "ECE")
    return Table(f"runs beside the table, {protocol}, percent, one seed", header, tuple(rows), notes)


def _tried_table(tried: Mapping[str, Any]) -> Table:
    rows = []
    for run, notes in tried.items():
        key, entry = next(iter(notes["metrics"].items()))
        scores = [f"{entry['8way'][m]:.2f}" for m in METRICS]
        rows.append((run, f"`{notes['command']}`", *scores, f"{key}, n = {entry['n']}", f"{notes['minutes']:.0f}"))
    header = ("run", "command", *METRIC_NAMES.values(), "on", "minutes")
    return Table("every setting tried, percent over all classes, one seed each", header, tuple(rows))
