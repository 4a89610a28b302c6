"""Kinds of EEG teacher: what a kind can't be fitted on is refused before anything is fitted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from faults import rows

from ngd_timm.eeg.signal.bandpower import save_bandpower
from ngd_timm.eeg.simulate.power import simulate_bandpower

FIT = "teacher fit teacher_gameemo data.name=bandpower data.root=a.npz data.folds=3"


@rows(
    "change, message",
    {
        "a wide embedding": (
            "teacher.kind=ridge",
            "teacher.embedding_dim=64 is more than the 56 features that teacher.kind=ridge has of 4 bands and 14 "
            "channels; set teacher.embedding_dim=56 or less",
        ),
        "no signals": ("teacher.kind=riemann", "teacher.kind=riemann reads signals, and bandpower is a file of band"),
        "unlabelled support": ("teacher.kind=ridge optim.consistency=0.5", "learns from rated trials alone"),
        "a pool": ("teacher.kind=riemann 'data.also=[{name: bandpower, root: b.npz}]'", "reads one set"),
        "two BIDS sets under one set of keys": (
            "data.name=bids data.root=a 'data.also=[{name: bids, root: b}]'",
            "are of one BIDS data set, and several are named",
        ),
        "a kind that isn't known": ("teacher.kind=svm", "topomap"),
    },
)
def test_kinds_that_the_data_or_the_recipe_do_not_allow(
    change: str, message: str, refused: Any, tmp_path: Path
) -> None:
    save_bandpower(tmp_path / "a.npz", simulate_bandpower(4, 4, 2))
    refused(f"{FIT} {change}", message)


def test_without_pyriemann_its_extra_is_named(refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyriemann", None)
    refused(f"{FIT} teacher.kind=riemann", "pip install 'ngd-timm[riemann]'")
