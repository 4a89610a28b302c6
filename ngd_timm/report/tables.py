"""Figures as tables in the paper's form: plain text, Markdown and LaTeX from the same cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ngd_timm.evaluate.metrics import METRIC_NAMES, METRICS, protocol_name, scoring_name, shown_protocols

__all__ = [
    "FORMATS",
    "Table",
    "ablation_tables",
    "robustness_tables",
    "score_table",
    "with_interval",
]

FORMATS = ("text", "markdown", "latex", "json")
_LATEX = {
    "\\": r"\textbackslash{}",
    **{c: "\\" + c for c in "_%&#${}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "±": r"$\pm$",
    "λ": r"$\lambda$",
    "–": "--",
    # a bracket at the start of a line would be read as an option of the line break before it
    "[": "{[}",
    "]": "{]}",
}


@dataclass(frozen=True)
class Table:
    """A title, one header line, rows of texts, and notes that say how to read them.

    Example:
        >>> print(Table("t", ("recipe", "acc"), (("b0_ce", "78.2"),)).markdown())
        **t**
        <BLANKLINE>
        | recipe | acc |
        |---|---:|
        | b0_ce | 78.2 |
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """GitHub's pipe table, the notes as a list below it."""
        lines = [f"**{self.title}**", "", _pipes(self.header), "|---|" + "---:|" * (len(self.header) - 1)]
        lines += [_pipes(row) for row in self.rows]
        return "\n".join([*lines, *([""] if self.notes else []), *(f"- {note}" for note in self.notes)])

    def text(self) -> str:
        """Aligned columns for a terminal."""
        widths = [max(len(row[i]) for row in (self.header, *self.rows)) for i in range(len(self.header))]
        lines = [self.title]
        for row in (self.header, *self.rows):
            first, *rest = row
            cells = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]
            lines.append("  ".join(cells).rstrip())
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def latex(self) -> str:
        r"""A `table` of booktabs (\usepackage{booktabs}), the notes in its caption."""
        caption = _tex(" ".join(f"{part.rstrip('.')}." for part in (self.title, *self.notes)))
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{caption}}}",
                rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}",
                r"\toprule",
                _ampersands(self.header),
                r"\midrule",
                *(_ampersands(row) for row in self.rows),
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
            ]
        )


def score_table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    """A row a student; accuracy, macro-F1 and balanced accuracy of each data set in both protocols, with intervals.

    Where a set has every class, both protocols are one, and it is shown once.

    Args:
        results: Row name → metrics.json's form (`evaluate`'s return value).

    Example:
        >>> from ngd_timm.evaluate.metrics import fer_metrics
        >>> target = np.arange(800) % 8
        >>> print(score_table({"mine": {"ferplus:valid": fer_metrics(np.eye(8)[target], target)}}).markdown())
        **figures in percent, with 95 % bootstrap intervals**
        <BLANKLINE>
        |  | ferplus:valid 8-way acc | macro-F1 | bACC |
        |---|---:|---:|---:|
        | mine | 100.00 [100.0, 100.0] | 100.00 [100.0, 100.0] | 100.00 [100.0, 100.0] |
        <BLANKLINE>
        - ferplus:valid: n = 800, ECE 72.03 at T = 1
    """
    sets: dict[str, Mapping[str, Any]] = {}
    for entries in results.values():
        for key, entry in entries.items():
            sets.setdefault(key, entry)
    columns = [(key, protocol) for key, entry in sets.items() for protocol in shown_protocols(entry)]
    header = ["student" if len(results) > 1 else ""]
    for key, protocol in columns:
        names = [METRIC_NAMES[m] for m in METRICS]
        header += [f"{key} {protocol_name(protocol, sets[key])} {names[0]}", *names[1:]]
    rows = []
    for name, entries in results.items():
        row = [name]
        for key, protocol in columns:
            if key not in entries:
                row += [""] * len(METRICS)
                continue
            figures, intervals = entries[key][protocol], entries[key].get("ci95", {}).get(protocol, {})
            row += [with_interval(figures[metric], intervals.get(metric)) for metric in METRICS]
        rows.append(tuple(row))
    who = "{name}, " if len(results) > 1 else ""
    notes = [
        f"{who.format(name=name)}{key}: n = {e['n']}, {_scoring(e)}"
        f"ECE {e['ece']:.2f} at T = {e.get('temperature', 1.0):g}"
        for name, entries in results.items()
        for key, e in entries.items()
    ]
    return Table("figures in percent, with 95 % bootstrap intervals", tuple(header), tuple(rows), tuple(notes))


def ablation_tables(comparison: Mapping[str, Any]) -> list[Table]:
    """Figures and paired differences of each data set and protocol, then what the terms pulled in training.

    Args:
        comparison: Of `comparison.compare`.
    """
    seeds = comparison["seeds"]
    run = f"{len(seeds)} seed{'s' * (len(seeds) > 1)} ({', '.join(map(str, seeds))})"
    names = tuple(METRIC_NAMES[m] for m in METRICS)
    tables = []
    for key, found in comparison["sets"].items():
        unit = next(iter(found["recipes"].values()))["bootstrap"]["unit"].replace("image", "picture")
        for protocol in shown_protocols(found):
            where = f"{key}, {protocol_name(protocol, found)}, n = {found['n']}"
            rows = [(name, *_means(mean[protocol])) for name, mean in found["recipes"].items()]
            notes = [f"{_scoring(found)}mean over seeds [95 % over {unit}s] ± deviation between seeds"]
            if comparison["warm_start"]:
                notes.append("every recipe starts from the same seed's warm_start, cross-entropy alone")
            tables.append(Table(f"{where}: percent, {run}", ("recipe", *names), tuple(rows), tuple(notes)))
            if found["differences"]:
                rows = [(f"{d['a']} − {d['b']}", *_differences(d[protocol])) for d in found["differences"]]
                notes = [f"on the same seeds and {unit}s: {_intervals(unit, len(seeds) > 1)}"]
                if len(rows) > 1:
                    notes.append(f"{len(rows)} differences, no interval is widened for their number")
                title = f"{where}: paired differences in points"
                tables.append(Table(title, ("difference", *names), tuple(rows), tuple(notes)))
    return [*tables, _training_table(comparison["training"])]


def robustness_tables(found: Mapping[str, Any]) -> list[Table]:
    """A row a corruption, its severities averaged: each recipe's accuracy and macro-F1, then differences to the first.

    Args:
        found: Of `robustness.robustness`.
    """
    data, settings, metrics = found["data"], found["settings"], ("acc", "macro_f1")
    unit = settings["bootstrap"]["unit"].replace("image", "picture")
    rows = [*settings["corruptions"], "mean", "clean"]
    where = f"{data['key']}, {protocol_name('8way', data)}, n = {data['n']}, {scoring_name({**data, **settings})}"
    severities = ", ".join(map(str, settings["severities"]))
    seeds = {name: [s["seed"] for s in found["students"] if s["recipe"] == name] for name in found["recipes"]}
    header = [f"{name} {METRIC_NAMES[m]}" for name in seeds for m in metrics]
    cells = [(row, *(f"{of[row][m]['mean']:.2f}" for of in found["recipes"].values() for m in metrics)) for row in rows]
    notes = [f"a corruption is the mean over severities {severities}, mean that over all {len(rows) - 2} corruptions"]
    if (precision := settings.get("precision", "float32")) != "float32":
        notes.append(f"the students' arithmetic is {precision}")
    if any(len(of) > 1 for of in seeds.values()):
        listed = "; ".join(f"{name} {', '.join(map(str, of))}" for name, of in seeds.items() if len(of) > 1)
        notes.append(f"means over the seeds: {listed}")
    tables = [Table(f"{where}: percent under corruption", ("corruption", *header), tuple(cells), tuple(notes))]
    if found["differences"]:
        header = [f"{d['a']} − {d['b']} {METRIC_NAMES[m]}" for d in found["differences"] for m in metrics]
        cells = [(row, *(c for d in found["differences"] for c in _differences(d[row], metrics))) for row in rows]
        several = any(d["clean"]["acc"]["seed_ci95"] for d in found["differences"])
        notes = [f"on the same {unit}s: {_intervals(unit, several)}"]
        notes.append(f"{len(cells) * len(header)} differences, no interval is widened for their number")
        title = f"{where}: paired differences in points"
        tables.append(Table(title, ("corruption", *header), tuple(cells), tuple(notes)))
    return tables


def _intervals(unit: str, over_seeds: bool) -> str:
    """How the intervals of a difference are to be read."""
    pictures = f"[95 % over {unit}s, for these students]"
    return pictures + (f" (95 % over seeds, Student's t, on these {unit}s)" if over_seeds else "")


def _means(found: Mapping[str, Any]) -> list[str]:
    spread = [("" if found[m]["seed_sd"] is None else f" ± {found[m]['seed_sd']:.2f}") for m in METRICS]
    return [with_interval(found[m]["mean"], found[m]["ci95"]) + sd for m, sd in zip(METRICS, spread, strict=True)]


def _differences(found: Mapping[str, Any], metrics: Sequence[str] = METRICS) -> list[str]:
    cells = []
    for metric in metrics:
        cell, over_seeds = (
            with_interval(found[metric]["mean"], found[metric]["ci95"], signed=True),
            found[metric]["seed_ci95"],
        )
        if over_seeds is not None:
            cell += f" ({over_seeds[0]:+.1f}, {over_seeds[1]:+.1f})".replace("-", "−")
        cells.append(cell)
    return cells


def _training_table(training: Mapping[str, Any]) -> Table:
    terms = {"ce": "CE %", "kd": "KD %", "proto_kd": "Proto-KD %", "d_geo": "D-Geo %"}
    rows = []
    for name, found in training.items():
        shares = ["" if found["share"][t] is None else f"{found['share'][t]:.2f}" for t in terms]
        weight = found["lambda_proto_kd"]
        cells = (*shares, "" if weight is None else f"{weight:.3g}", str(found["epochs"]), f"{found['minutes']:.2f}")
        rows.append((name, *cells))
    header = ("recipe", *terms.values(), "λ Proto-KD", "epochs", "minutes")
    note = "shares of the gradient at the backbone's features, means over epochs and seeds; minutes of one run"
    return Table("training", header, tuple(rows), (note,))


def _scoring(entry: Mapping[str, Any]) -> str:
    # of scores that were computed by hand, and of pages written before, nothing is known
    return f"{scoring_name(entry)}; " if "label_rule" in entry else ""


def with_interval(value: float, interval: Sequence[float] | None, signed: bool = False) -> str:
    """A figure and its interval, with a true minus.

    Example:
        >>> with_interval(-1.234, [-2, 0.5], signed=True), with_interval(83.0, None)
        ('−1.23 [−2.0, +0.5]', '83.00')
    """
    sign = "+" if signed else ""
    text = f"{value:{sign}.2f}" + ("" if interval is None else f" [{interval[0]:{sign}.1f}, {interval[1]:{sign}.1f}]")
    return text.replace("-", "−")


def _pipes(row: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |"


def _ampersands(row: Sequence[str]) -> str:
    return " & ".join(_tex(cell) for cell in row) + r" \\"


def _tex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
