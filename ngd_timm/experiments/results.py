"""RESULTS.md: an ablation scored on any sets by any label rules, beside the paper, with what each term adds."""

from __future__ import annotations

import shlex
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.commands import ablate_command, shown_root, train_command, without_folders
from ngd_timm.core.devices import open_device
from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.files import check_place, read_json, write_json, write_text
from ngd_timm.core.paths import last_part
from ngd_timm.core.recipe import Recipe, load_recipe
from ngd_timm.data import parse_spec
from ngd_timm.evaluate.comparison import Answers, compare_answers, difference_pairs
from ngd_timm.evaluate.metrics import METRIC_NAMES, METRIC_TITLES, METRICS, protocol_name, scoring_name
from ngd_timm.evaluate.predictions import Predictions, predict
from ngd_timm.evaluate.run import Run, read_run
from ngd_timm.evaluate.run_log import with_bar
from ngd_timm.evaluate.student import face_batches
from ngd_timm.experiments.ablation import WARM_START
from ngd_timm.grid.verdict import difference_verdict
from ngd_timm.models.student import run_folder
from ngd_timm.report.tables import Table, ablation_tables, with_interval

__all__ = ["PAPER", "PAPER_BEST", "check_out", "results_markdown", "score_ablation", "teacher_terms", "write_results"]

PAPER: Mapping[str, tuple[float, float, float]] = {
    "b0_ce": (78.22, 51.29, 49.77),
    "b1_kd": (82.31, 63.56, 59.28),
    "b2_proto": (81.48, 64.21, 60.30),
    "tau_paper": (81.48, 64.21, 60.30),  # b2_proto's objective under another name
    "b3_full": (83.06, 64.74, 59.90),
}
"""arXiv 2509.11916 on FERPlus validation, 8-way: accuracy, macro-F1 and balanced accuracy in percent."""
PAPER_BEST = ("Full (T=1)", (83.66, 65.39, 61.32))
"""The paper's best row on that set, which no recipe here stands for."""

_KIND = "ngd results"
_TERMS = {"ce": "cross-entropy", "kd": "logit KD", "proto_kd": "Proto-KD", "d_geo": "D-Geo"}
_KEPT = ("recipes", "seeds", "warm_start", "runs", "training")
_PAPERS_SET = "ferplus:valid"
_EACH_TERM = (
    ("logit KD", "b1_kd", "b0_ce"),
    ("Proto-KD", "b2_proto", "b1_kd"),
    ("Proto-KD at its share", "b2_share", "b1_kd"),
    ("D-Geo", "b3_full", "b2_proto"),
    ("Proto-KD and D-Geo", "b3_full", "b1_kd"),
    ("D-Geo, Proto-KD at its share", "b3_share", "b2_share"),
    ("Proto-KD at its share and D-Geo", "b3_share", "b1_kd"),
)
_EEG = (
    ("a random grid", "b2_share", "c_random"),
    ("a shuffled grid", "b2_share", "c_shuffled"),
    ("valence and arousal alone", "b2_share", "c_va"),
)
_OTHERWISE = (
    ("3x3 cells instead of 5x5", "g3", "b2_share"),
    ("7x7 cells instead of 5x5", "g7", "b2_share"),
    ("the paper's tau and lambda, as tau_paper has them", "tau_paper", "b2_share"),
)


@dataclass(frozen=True)
class _Earlier:
    """What an earlier page lends: of runs that are not scored again."""

    file: Path
    beside: Mapping[str, Any] = field(default_factory=dict)
    tried: Mapping[str, Any] = field(default_factory=dict)
    students: Mapping[str, str] = field(default_factory=dict)
    sets: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)

    def refuse_others(self, name: str, sha256: str | None = None, classes: Sequence[str] = ()) -> None:
        """Runs stand beside each other on the same pictures, labels and classes only; without these, only by name."""
        if not self.beside:
            return
        same = name in self.sets
        if sha256 is not None:
            same = same and self.data.get(name) == sha256 and self.sets[name]["classes"] == list(classes)
        if not same:
            raise InputError(
                f"{self.file} has no figures on the pictures, labels and classes of {name} as they are now; leave "
                "--earlier or that set out"
            )


_NOTHING_KEPT = _Earlier(Path())


def score_ablation(
    folder: str | Path,
    specs: Sequence[str],
    label_rules: Sequence[str] = ("majority", "argmax"),
    beside: Sequence[str | Path] = (),
    tried: Sequence[str | Path] = (),
    earlier: str | Path | None = None,
    resamples: int = 2000,
) -> dict[str, Any]:
    """Score every run of an ablation on data sets, by each label rule, and compare the recipes on each.

    A student is asked about a picture once, however many rules count it; duplicates of training pictures are left out.

    Args:
        folder: What `ngd ablate --out` filled.
        specs: `name=root[:split]`.
        label_rules: See `ngd_timm.data.labels.apply_rule`.
        beside: Further runs, each on its own: rows without differences.
        tried: Runs that settings were chosen by, described by their own metrics.json alone.
        earlier: The JSON of an earlier page, from which runs beside the table and settings tried are kept as they are,
            but for those that `beside` and `tried` name again: for runs whose folders are gone.
        resamples: Of each bootstrap.

    Returns:
        ablation.json's form with "sets" keyed `name:split, rule`, and "teachers" (see `teacher_terms`), "beside",
        "tried", "students" (sha256), "data" (sha256 of pictures and labels), "commands".

    Raises:
        InputError: Not an ablation, a data set that can't be read, students of different classes, an earlier page of
            other pictures, labels or classes.
    """
    folder = Path(folder)
    again, tried_again = {Path(run).name for run in beside}, {Path(run).name for run in tried}
    kept = _NOTHING_KEPT if earlier is None else _read_earlier(Path(earlier), again, tried_again)
    comparison = _read_ablation(folder / "ablation.json")
    named = comparison["runs"]
    trained = [run for of in named.values() for run in of]
    _refuse_twice([*named, *trained, *(Path(run).name for run in beside), *kept.beside])
    _refuse_twice([*(Path(run).name for run in tried), *kept.tried])
    rows = {name: [read_run(folder / "runs" / run) for run in of] for name, of in named.items()}
    others = {Path(run).name: [read_run(run)] for run in beside}
    # what can't be read is refused before anything is scored
    run_notes = {name: _run_notes(run) for name, (run,) in others.items()}
    settings = {Path(run).name: _run_notes(read_run(run)) for run in tried}
    runs = {**rows, **others}
    pairs = difference_pairs(comparison["recipes"])
    sets, data = {}, {}
    for key, rule, answers in _answers(runs, specs, label_rules, kept):
        name = f"{key}, {rule}"
        data[name] = next(iter(answers.values()))[0][1].data_sha256
        compared = compare_answers(name, {recipe: answers[recipe] for recipe in rows}, pairs, resamples)
        compared["beside"] = {run: answers[run][0][1].entry() for run in others}
        compared["beside"] |= {run: kept.sets[name]["beside"][run] for run in kept.beside}
        sets[name] = compared
    return {
        "kind": _KIND,
        **{key: comparison[key] for key in _KEPT},
        "teachers": teacher_terms(run.recipe for of in rows.values() for run in of),
        "sets": sets,
        "beside": {**run_notes, **kept.beside},
        "tried": {**kept.tried, **settings},
        "students": {
            **{run.folder.name: run.student_sha256 for of in runs.values() for run in of},
            **{run: kept.students[run] for run in kept.beside},
        },
        "data": data,
        "commands": {
            "ablate": _ablate_command(rows, comparison),
            "results": results_command(specs, label_rules, beside, tried, earlier),
        },
    }


def results_command(
    specs: Sequence[str],
    rules: Sequence[str],
    beside: Sequence[str | Path],
    tried: Sequence[str | Path],
    earlier: str | Path | None = None,
) -> str:
    """The shell line that scores an ablation again.

    Example:
        >>> results_command(["ferplus=/data/ferplus:valid"], ["majority"], ["/home/anna/runs/ce_long-0"], [])
        'ngd results ablation --data ferplus=ferplus:valid --label-rule majority --beside ce_long-0 --out RESULTS.md'
    """
    parts = [(name, shown_root(root), f":{split}" if split else "") for name, root, split, _ in map(parse_spec, specs)]
    options = {
        "--data": [f"{name}={root}{split}" for name, root, split in parts],
        "--label-rule": rules,
        "--beside": [last_part(str(run)) for run in beside],
        "--tried": [last_part(str(run)) for run in tried],
        "--earlier": [] if earlier is None else [last_part(str(earlier))],
    }
    flags = [f"{flag} {shlex.quote(value)}" for flag, of in options.items() for value in of]
    return " ".join(["ngd results ablation", *flags, "--out RESULTS.md"])


def teacher_terms(recipes: Iterable[Recipe]) -> dict[str, list[str] | None]:
    """The logit teachers of recipes, each with the terms of the loss that it was itself trained with.

    Args:
        recipes: As the runs have them, so that a teacher is a run, a student or a Hub id.

    Returns:
        A teacher without its folders → "ce", "kd", "proto_kd", "d_geo", those it had; None where no recipe.yaml of
        it is at hand.

    Example:
        >>> teacher_terms([load_recipe(Recipe, "b1_kd", ["teacher=student-ferplus-v1"])])
        {'student-ferplus-v1': ['ce', 'kd', 'proto_kd', 'd_geo']}
    """
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
    """Refuse a place for the page before hours of scoring rather than after.

    Raises:
        InputError: Not a `.md`, no place to write to, or beside it a JSON file of that name which no earlier page left.
    """
    out = Path(out)
    if out.suffix != ".md" or out.is_dir():
        raise InputError(f"{out} is no place for a page; give a file that ends in .md")
    check_place(out)
    beside = out.with_suffix(".json")
    if beside.exists() and read_json(beside).get("kind") != _KIND:
        raise InputError(f"the figures would replace {beside}, which is something else; give --out another name")


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
    """The page of `score_ablation`'s figures.

    Args:
        results: Of `score_ablation`, or read back from its JSON.
    """
    _, _, rule = next(iter(results["sets"])).partition(", ")
    summaries = [_terms(results, name) for name in results["sets"] if name.endswith(f", {rule}")]
    parts = ["# Results", _commands(results["commands"]), *_teachers(results["teachers"]), *summaries]
    for name, found in results["sets"].items():
        parts.append(f"## {name}")
        one = {**results, "sets": {name: found}}
        *tables, _ = ablation_tables(one)
        comparable = name.partition(",")[0] == _PAPERS_SET and tuple(found["classes"]) == CLASSES
        if comparable and (paper := _paper_table(results["recipes"], found)):
            parts.append(paper.markdown())
        parts += [table.markdown() for table in tables]
        if found["beside"]:
            parts.append(_beside_table(found["beside"]).markdown())
    parts.append("## Training")
    parts.append(ablation_tables({**results, "sets": {}})[-1].markdown())
    if results["beside"]:
        parts.append("\n".join(f"- {name}: `{run_notes['command']}`" for name, run_notes in results["beside"].items()))
    old = [
        run for run_notes in (results["beside"], results["tried"]) for run, of in run_notes.items() if of.get("earlier")
    ]
    if old:
        parts.append(f"Kept from an earlier page: {', '.join(dict.fromkeys(old))}.")
    if results["tried"]:
        parts += ["## Settings tried", _tried_table(results["tried"]).markdown()]
    parts += ["## Hashes", _hashes(results)]
    return "\n\n".join(parts) + "\n"


def _answers(
    runs: Mapping[str, Sequence[Run]], specs: Sequence[str], rules: Sequence[str], earlier: _Earlier
) -> Iterator[tuple[str, str, Answers]]:
    """What every run says of each set, as each rule counts it: (name:split, rule, answers)."""
    from ngd_timm.data import load_split
    from ngd_timm.data.labels import LABEL_RULES

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
    together = [run for of in runs.values() for run in of]
    classes = together[0].classes
    for run in together:
        if run.classes != classes:
            raise InputError(f"{run.source} has the classes {', '.join(run.classes)}, the others {', '.join(classes)}")
    device = open_device("auto")
    for name, root, split, key in map(parse_spec, specs):
        loaded = {rule: load_split(name, root, split or "all", label_rule=rule, classes=classes) for rule in rules}
        for rule, (_, report) in loaded.items():
            earlier.refuse_others(f"{key}, {rule}", report.sha256, classes)
        widest = max((dataset for dataset, _ in loaded.values()), key=len)
        said = {
            run.folder: predict(run.student.to(device), face_batches(run.student, widest), device, run.recipe.eval_flip)
            for run in with_bar(iter(together), len(together), key)
        }
        place = {source: row for row, source in enumerate(widest["source"][:])}
        for rule, (dataset, report) in loaded.items():
            rows = [place.get(source) for source in dataset["source"][:]]
            if None in rows:
                raise InputError(f"{key}: the rules {', '.join(rules)} keep different pictures; give one at a time")
            kept, target = torch.tensor(rows), torch.tensor(dataset["label"][:])
            counted = {at: _part(of, kept, target).described(classes, rule, report.sha256) for at, of in said.items()}
            yield (
                key,
                rule,
                {name: [(run.folder.name, counted[run.folder]) for run in of] for name, of in runs.items()},
            )


def _part(answers: Predictions, rows: Tensor, target: Tensor) -> Predictions:
    subject = None if answers.subject is None else answers.subject[rows]
    return replace(answers, logits=answers.logits[rows], target=target, embedding=None, subject=subject)


def _read_ablation(file: Path) -> dict[str, Any]:
    comparison = read_json(file)
    missing = [key for key in _KEPT if key not in comparison]
    if missing:
        raise InputError(f"{file} lacks {', '.join(missing)}; run the same ngd ablate again")
    return comparison


def _read_earlier(file: Path, beside: Container[str], tried: Container[str]) -> _Earlier:
    """What an earlier page has of other runs than these."""
    page = read_json(file)
    if page.get("kind") != _KIND:
        raise InputError(f"{file} is not the JSON of a page of ngd results; give --earlier the one beside RESULTS.md")
    try:
        kept = _Earlier(
            file,
            {run: {**run_notes, "earlier": True} for run, run_notes in page["beside"].items() if run not in beside},
            {run: {**run_notes, "earlier": True} for run, run_notes in page["tried"].items() if run not in tried},
            page["students"],
            page["sets"],
            page["data"],
        )
        for run_notes in (*kept.beside.values(), *kept.tried.values()):
            _ = [run_notes[key] for key in ("command", "epochs", "minutes", "metrics")]
        for run in kept.beside:
            _ = kept.students[run], [of["beside"][run]["ci95"]["8way"] for of in kept.sets.values()]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is not whole ({error}); bring back the JSON that was written with its page") from None
    return kept


def _refuse_twice(names: Sequence[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{', '.join(twice)} names two runs of one page; rename the folder of one")


def _run_notes(run: Run) -> dict[str, Any]:
    """A run by its own files: how it was made, for how long, and its figures on validation."""
    try:
        figures = {key: {"n": entry["n"], "8way": entry["8way"]} for key, entry in run.metrics.items()}
    except (KeyError, TypeError):
        figures = {}
    if not figures:
        raise InputError(f"{run.folder / 'metrics.json'} holds no figures; train or evaluate the run again")
    return {
        "command": train_command(run.recipe),
        "epochs": len(run.rows),
        "minutes": sum(float(row["seconds"]) for row in run.rows) / 60,
        "metrics": figures,
    }


def _terms(results: Mapping[str, Any], name: str) -> str:
    """What each term adds, whether EEG adds anything, whether other settings of Proto-KD do, by rule, on one set."""
    found = results["sets"][name]
    differences = {(d["a"], d["b"]): d["8way"] for d in found["differences"]}
    lines = [f"What each term adds ({name}, {protocol_name('8way', found)}; paired, see the intervals below):", ""]
    questions = {
        None: _EACH_TERM,
        "Does real EEG add anything over its controls, at an equal share of the gradient?": [
            (f"the EEG grid against {control}", a, b) for control, a, b in _EEG
        ],
        "Would Proto-KD be better off otherwise?": _OTHERWISE,
    }
    for question, pairs in questions.items():
        answers = [
            f"- {difference_verdict(f'{what} ({a} − {b})', differences[a, b], METRIC_TITLES)}"
            for what, a, b in pairs
            if (a, b) in differences
        ]
        if question and answers:
            lines += ["", question, ""]
        lines += answers
    return "\n".join(lines)


def _teachers(teachers: Mapping[str, Sequence[str] | None]) -> list[str]:
    """What the logit teachers were themselves trained with, and what that means for the rows of logit KD alone."""
    if not teachers:
        return []
    described = []
    for name, terms in teachers.items():
        known = _listed([_TERMS[term] for term in terms]) if terms else "terms that are not known here"
        described.append(f"{name} (trained with {known})")
    lines = [f"Logit KD was taught by {_listed(described)}."]
    passed_on = [_TERMS[t] for t in ("proto_kd", "d_geo") if any(t in (terms or ()) for terms in teachers.values())]
    if passed_on:
        terms = _listed(passed_on)
        lines.append(
            f"So rows of logit KD without {terms} are taught by a student of {terms} too: differences to them are what "
            "a term adds beside such a teacher."
        )
    return [" ".join(lines)]


def _listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _paper_table(recipes: Sequence[str], found: Mapping[str, Any]) -> Table | None:
    rows: list[tuple[str, ...]] = []
    for name in (n for n in recipes if n in PAPER):
        ours = [found["recipes"][name]["8way"][m]["mean"] for m in METRICS]
        rows.append((name, *(f"{v:.2f}" for pair in zip(PAPER[name], ours, strict=True) for v in pair)))
    if not rows:
        return None
    best, scores = PAPER_BEST
    rows.append((best, *(cell for value in scores for cell in (f"{value:.2f}", ""))))
    header = ("recipe", *(f"{METRIC_NAMES[m]}, {who}" for m in METRICS for who in ("paper", "here")))
    notes = [
        "the paper has another grid (of DREAMER and MAHNOB-HCI) and, for B3 by its authors' README, 100 epochs; it "
        "doesn't say how votes became labels"
    ]
    if "tau_paper" in recipes:
        notes.append("tau_paper has the objective of b2_proto, the paper's B2")
    notes.append(f"{best} is the paper's best row; no recipe here stands for it")
    return Table("beside the paper, 8-way, percent", header, tuple(rows), tuple(notes))


def _beside_table(beside: Mapping[str, Any]) -> Table:
    rows = []
    for run, entry in beside.items():
        cells = [with_interval(entry["8way"][m], entry["ci95"]["8way"][m]) for m in METRICS]
        rows.append((run, *cells, f"{entry['ece']:.1f}"))
    header = ("run", *(METRIC_NAMES[m] for m in METRICS), "ECE")
    ways = protocol_name("8way", next(iter(beside.values())))
    notes = [f"{run}: {scoring_name(entry)}" for run, entry in beside.items()]
    return Table(f"runs beside the table, {ways}, percent, one seed", header, tuple(rows), tuple(notes))


def _tried_table(tried: Mapping[str, Any]) -> Table:
    rows = []
    for run, run_notes in tried.items():
        key, entry = next(iter(run_notes["metrics"].items()))
        figures = [f"{entry['8way'][m]:.2f}" for m in METRICS]
        rows.append(
            (run, f"`{run_notes['command']}`", *figures, f"{key}, n = {entry['n']}", f"{run_notes['minutes']:.0f}")
        )
    header = ("run", "command", *(METRIC_NAMES[m] for m in METRICS), "on", "minutes")
    return Table("every setting tried, percent over all classes, one seed each", header, tuple(rows))


def _ablate_command(rows: Mapping[str, Sequence[Run]], comparison: Mapping[str, Any]) -> str:
    start = rows[WARM_START][0].recipe.optim.epochs if comparison["warm_start"] else None
    return ablate_command([rows[name][0].recipe for name in comparison["recipes"]], len(comparison["seeds"]), start)


def _commands(commands: Mapping[str, str]) -> str:
    lines = [f"    {command}" for command in commands.values()]
    return "\n".join(["The runs of the table, and this page:", "", *lines])


def _hashes(results: Mapping[str, Any]) -> str:
    lines = [f"- images and labels of {name}: `{sha256}`" for name, sha256 in results["data"].items()]
    lines += [f"- student of {run}: `{sha256}`" for run, sha256 in results["students"].items()]
    return "\n".join(["sha256:", "", *lines])
