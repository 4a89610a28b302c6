"""Tables: the same cells in every form, and nothing that Markdown or LaTeX would misread."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ngd_timm.evaluate.metrics import fer_metrics
from ngd_timm.report.tables import Table, score_table


def entry(present: list[int]) -> dict[str, object]:
    rng = np.random.default_rng(0)
    target = rng.choice(present, 200)
    return fer_metrics(rng.normal(size=(200, 8)) + 2 * np.eye(8)[target], target, resamples=50)


def test_a_set_that_lacks_classes_shows_both_protocols_and_a_full_one_only_one() -> None:
    full, lacking = entry(list(range(8))), entry([0, 1, 4])
    table = score_table("mine", {"ferplus:valid": full, "ckplus:all": lacking})
    heads = [h for h in table.header if ":" in h]
    assert heads == ["ferplus:valid 8-way acc", "ckplus:all 8-way acc", "ckplus:all present-only acc"]
    (row,) = table.rows
    assert len(row) == len(table.header) == 1 + 3 * 3
    assert row[7].startswith(f"{lacking['present']['acc']:.2f} [")  # type: ignore[index]


def test_markdown_and_latex_have_a_cell_for_every_column() -> None:
    table = Table("a_b & c", ("recipe", "p_%"), (("b0_ce", "[1|2]"), ("x", "−3 ± λ")), ("50 % of it",))
    cells = [len(re.split(r"(?<!\\)\|", line)) for line in table.markdown().splitlines() if line.startswith("|")]
    assert cells == [4, 4, 4, 4]
    latex = table.latex()
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert [len(re.findall(r"(?<!\\)&", line)) for line in rows] == [1, 1, 1]
    assert r"b0\_ce & {[}1|2{]} \\" in rows
    assert r"x & $-$3 $\pm$ $\lambda$ \\" in rows
    assert r"a\_b \& c. 50 \% of it." in latex
    assert latex.count("{") == latex.count("}")
    assert table.text().splitlines()[1].split() == ["recipe", "p_%"]


@pytest.mark.parametrize("form", ["markdown", "latex", "text"])
def test_the_shown_scores_are_those_of_the_entry(form: str) -> None:
    scored = {**entry(list(range(8))), "label_rule": "votes", "flip": True}
    shown = getattr(score_table("mine", {"a:all": scored}), form)()
    for metric in ("acc", "macro_f1", "bacc"):
        low, high = scored["ci95"]["8way"][metric]  # type: ignore[index]
        for number in (f"{scored['8way'][metric]:.2f}", f"{low:.1f}", f"{high:.1f}"):  # type: ignore[index]
            assert number in shown
    assert "labels: votes, with flip, training prior" in shown
