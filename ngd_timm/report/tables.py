"""Results as tables in the paper's form: plain text, Markdown and LaTeX from the same cells."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from ngd_timm.core.errors import printable
from ngd_timm.core.paths import markdown_line
from ngd_timm.evaluate.metrics import METRIC_NAMES, METRICS, protocol_name, scoring_name, shown_protocols, unit_of

_FEW = 30  # images of a class below which a table names it
FORMATS = ("text", "markdown", "latex", "json")
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{c: "\\" + c for c in "_%&#${}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "−": "$-$",
        "±": r"$\pm$",
        "λ": r"$\lambda$",
        "τ": r"$\tau$",
        "×": r"$\times$",
        "<": "$<$",
        ">": "$>$",
        "–": "--",
        # a bracket at the start of a line would be read as an option of the line break before it
        "[": "{[}",
        "]": "{]}",
    }
)


@dataclass(frozen=True)
class Table:
    """A title, one header line, rows of texts, and notes that say how to read them."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """GitHub's pipe table, the notes as a list below it."""
        lines = [
            f"**{markdown_line(self.title)}**",
            "",
            _pipes(self.header),
            "|---|" + "---:|" * (len(self.header) - 1),
        ]
        lines += map(_pipes, self.rows)
        return "\n".join([*lines, *([""] if self.notes else []), *(f"- {markdown_line(note)}" for note in self.notes)])

    def text(self) -> str:
        """Aligned columns for a terminal."""
        rows = [self.header, *self.rows]
        width, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines = ["  ".join([row[0].ljust(width), *map(str.rjust, row[1:], widths)]).rstrip() for row in rows]
        return "\n".join([self.title, *lines, *(f"  {note}" for note in self.notes)])

    def latex(self) -> str:
        r"""A `table` of booktabs, no wider than the page, the notes in its caption; \usepackage{booktabs,graphicx}."""
        caption = _tex(" ".join(f"{part.rstrip('.')}." for part in (self.title, *self.notes)))
        columns = "l" + "r" * (len(self.header) - 1)
        label = re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")
        head = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\label{{tab:{label}}}"]
        head += [
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
        ]
        rows = [r"\toprule", _ampersands(self.header), r"\midrule", *map(_ampersands, self.rows), r"\bottomrule"]
        return "\n".join([*head, *rows, r"\end{tabular}}", r"\end{table}"])


def score_table(student: str, entries: Mapping[str, Mapping[str, Any]]) -> Table:
    """Accuracy, macro-F1 and balanced accuracy of a student on each data set in both protocols, with intervals.

    `entries` are those of metrics.json, by set. A second row has the differences to another student.
    """
    first, *others = METRIC_NAMES.values()
    header, row, difference, notes = [""], [student], [""], []
    for key, entry in entries.items():
        for protocol in shown_protocols(entry):
            header += [f"{key} {protocol_name(protocol, entry)} {first}", *others]
            intervals = entry.get("ci95", {}).get(protocol, {})
            row += [with_interval(entry[protocol][m], intervals.get(m)) for m in METRICS]
            if against := entry.get("against"):
                difference[0] = f"{student} − {against['student']}"
                difference += _differences(against[protocol])
        calibration = f"ECE {entry['ece']:.2f} at T = {entry.get('temperature', 1.0):g}"
        notes.append(f"{key}: n = {entry['n']}, {_scoring(entry)}{calibration}")
    rows = (tuple(row), tuple(difference)) if difference[0] else (tuple(row),)
    return Table("percent, with 95 % bootstrap intervals", tuple(header), rows, tuple(notes))


def ablation_tables(comparison: Mapping[str, Any]) -> list[Table]:
    """Of `compare`'s result the means and paired differences by set and protocol, then gradient shares in training."""
    seeds = comparison["seeds"]
    run = f"{len(seeds)} seed{'s' * (len(seeds) > 1)} ({', '.join(map(str, seeds))})"
    names = tuple(METRIC_NAMES[m] for m in METRICS)
    tables = []
    for key, found in comparison["sets"].items():
        unit = unit_of(found)
        for protocol in shown_protocols(found):
            where = f"{key}, {protocol_name(protocol, found)}, n = {found['n']}"
            rows = [(name, *_means(mean[protocol])) for name, mean in found["recipes"].items()]
            notes = [f"{_scoring(found)}mean over seeds [95 % over {unit}s] ± std between seeds"]
            counts = sorted(found.get("counts", {}).items(), key=itemgetter(1))
            if rare := [f"{name} {n}" for name, n in counts if n < _FEW]:
                notes.append(f"few images: {', '.join(rare)}, on which macro-F1 and bACC hang as much as on the rest")
            if comparison["warm_start"]:
                notes.append("every recipe starts from the same seed's warm_start, cross-entropy alone")
            tables.append(Table(f"{where}: percent, {run}", ("recipe", *names), tuple(rows), tuple(notes)))
            if found["differences"]:
                rows = [(f"{d['a']} − {d['b']}", *_differences(d[protocol])) for d in found["differences"]]
                how_to_read = _difference_notes(f"on the same seeds and {unit}s", unit, len(seeds) > 1, len(rows))
                title = f"{where}: paired differences in points"
                tables.append(Table(title, ("difference", *names), tuple(rows), how_to_read))
    if comparison.get("choose"):
        tables.append(_choice_table(comparison))
    return [*tables, _training_table(comparison["training"])]


def _choice_table(comparison: Mapping[str, Any]) -> Table:
    """The row that validation would choose and the one that the mean over other sets would, and what each scores."""
    choose, sets = comparison["choose"], comparison["sets"]
    metric, valid, external = choose["metric"], choose["valid"], choose["sets"]
    candidates = list(comparison["swept"] or comparison["recipes"])
    protocols = {key: "present" if key in external else shown_protocols(found)[-1] for key, found in sets.items()}
    protocols[valid] = "8way"
    scores = {
        row: {key: found["recipes"][row][protocols[key]][metric]["mean"] for key, found in sets.items()}
        for row in candidates
    }
    together = ", ".join(external)
    by = {f"validation ({valid})": [valid], f"the mean over {together}": external}
    rows = []
    for who, keys in by.items():
        chosen = max(candidates, key=lambda row: sum(scores[row][key] for key in keys))
        mean = sum(scores[chosen][key] for key in external) / len(external)
        rows.append((who, chosen, *(f"{score:.2f}" for score in scores[chosen].values()), f"{mean:.2f}"))
    titles = [f"{key}, {protocol_name(protocols[key], found)}" for key, found in sets.items()]
    notes = (
        f"{METRIC_NAMES[metric]} of the chosen row, mean over seeds; chosen among {', '.join(candidates)}",
        f"scores on sets that chose are optimistic: the second row's on {together}, the first row's on validation",
    )
    header = ("chosen by", "row", *titles, f"mean over {together}")
    return Table(f"the choice of a row by {METRIC_NAMES[metric]}, percent", header, tuple(rows), notes)


def robustness_tables(results: Mapping[str, Any]) -> list[Table]:
    """A row a corruption, its severities averaged: each recipe's scores, the differences to the first; other crops."""
    data, settings, metrics = results["data"], results["settings"], ("acc", "macro_f1")
    unit = settings["bootstrap"]["unit"]
    corruptions = [*settings["corruptions"], "mean", "clean"]
    where = f"{data['key']}, {protocol_name('8way', data)}, n = {data['n']}, {scoring_name({**data, **settings})}"
    severities = ", ".join(map(str, settings["severities"]))
    means, differences = results["recipes"], results["differences"]
    header = [f"{name} {METRIC_NAMES[m]}" for name in means for m in metrics]
    rows = [(row, *(f"{mean[row][m]['mean']:.2f}" for mean in means.values() for m in metrics)) for row in corruptions]
    notes = [
        f"a corruption is the mean over severities {severities}, mean that over all {len(corruptions) - 2} corruptions"
    ]
    if (precision := settings.get("precision", "float32")) != "float32":
        notes.append(f"the students' arithmetic is {precision}")
    seeds = {name: [str(s["seed"]) for s in results["students"] if s["recipe"] == name] for name in means}
    if listed := "; ".join(f"{name} {', '.join(several)}" for name, several in seeds.items() if len(several) > 1):
        notes.append(f"means over the seeds: {listed}")
    tables = [Table(f"{where}: percent under corruption", ("corruption", *header), tuple(rows), tuple(notes))]
    if differences:
        header = [f"{d['a']} − {d['b']} {METRIC_NAMES[m]}" for d in differences for m in metrics]
        rows = [(row, *(cell for d in differences for cell in _differences(d[row], metrics))) for row in corruptions]
        over_seeds = any(d["clean"]["acc"]["seed_ci95"] for d in differences)
        how_to_read = _difference_notes(f"on the same {unit}s", unit, over_seeds, len(rows) * len(header))
        title = f"{where}: paired differences in points"
        tables.append(Table(title, ("corruption", *header), tuple(rows), how_to_read))
    return [*tables, _framing_table(where, settings["framings"], means)]


def _framing_table(where: str, framings: Mapping[str, Sequence[float]], means: Mapping[str, Any]) -> Table:
    """A row a crop: tighter, wider, displaced."""
    header = [f"{name} {METRIC_NAMES[m]}" for name in means for m in METRICS]
    levels = ["clean", *(f"{name} {level:g}" for name, levels in framings.items() for level in levels)]
    rows = [
        (row.replace("_", " "), *(f"{mean[row][m]['mean']:.2f}" for mean in means.values() for m in METRICS))
        for row in levels
    ]
    note = "the crop's side over the image's, or how far it moves over that side; beyond the image its edge goes on"
    return Table(f"{where}: percent in other crops", ("crop", *header), tuple(rows), (note,))


def _difference_notes(where: str, unit: str, over_seeds: bool, count: int) -> tuple[str, ...]:
    """How the intervals of so many differences are to be read."""
    seeds = f" (95 % over seeds, Student's t, on these {unit}s)" * over_seeds
    intervals = f"{where}: [95 % over {unit}s, for these students]{seeds}"
    return (intervals, *[f"{count} differences, no interval is widened for their number"] * (count > 1))


def _means(found: Mapping[str, Any]) -> list[str]:
    spread = ["" if found[m]["seed_sd"] is None else f" ± {found[m]['seed_sd']:.2f}" for m in METRICS]
    return [with_interval(found[m]["mean"], found[m]["ci95"]) + sd for m, sd in zip(METRICS, spread, strict=True)]


def _differences(found: Mapping[str, Any], metrics: Sequence[str] = METRICS) -> list[str]:
    cells = []
    for value in (found[metric] for metric in metrics):
        seeds = value["seed_ci95"]
        over_seeds = "" if seeds is None else f" ({seeds[0]:+.1f}, {seeds[1]:+.1f})".replace("-", "−")
        cells.append(with_interval(value["mean"], value["ci95"], signed=True) + over_seeds)
    return cells


def _training_table(training: Mapping[str, Any]) -> Table:
    terms = {"ce": "CE %", "kd": "KD %", "proto_kd": "Proto-KD %", "d_geo": "D-Geo %"}
    counted = any("images" in found for found in training.values())  # not in older pages
    rows = []
    for name, found in training.items():
        shares = ["" if found["share"][t] is None else f"{found['share'][t]:.2f}" for t in terms]
        weight = found["lambda_proto_kd"]
        repeats = found.get("epoch_repeats", 1)
        epochs = str(found["epochs"]) if repeats == 1 else f"{found['epochs']} × {repeats} passes"
        images = [str(found.get("images") or "")] * counted
        cells = (*shares, "" if weight is None else f"{weight:.3g}", *images, epochs, f"{found['minutes']:.2f}")
        rows.append((name, *cells))
    header = ("recipe", *terms.values(), "λ Proto-KD", *["images"] * counted, "epochs", "minutes")
    note = "shares of the gradient at the backbone's features, means over epochs and seeds; minutes of one run"
    return Table("training", header, tuple(rows), (note,))


def _scoring(entry: Mapping[str, Any]) -> str:
    # unknown for scores computed by hand and for older pages
    return f"{scoring_name(entry)}; " if {"label_rule", "flip"} <= entry.keys() else ""


def with_interval(value: float, interval: Sequence[float] | None, signed: bool = False) -> str:
    """A value and its interval, with a true minus: −1.23 [−2.0, +0.5]."""
    sign = "+" if signed else ""
    text = f"{value:{sign}.2f}" + ("" if interval is None else f" [{interval[0]:{sign}.1f}, {interval[1]:{sign}.1f}]")
    return text.replace("-", "−")


def _pipes(row: Sequence[str]) -> str:
    return "| " + " | ".join(map(markdown_line, row)) + " |"


def _ampersands(row: Sequence[str]) -> str:
    return " & ".join(_tex(cell) for cell in row) + r" \\"


def _tex(text: str) -> str:
    return printable(text).translate(_LATEX)
