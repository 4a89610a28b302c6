"""Folds by stimulus: data that can't be held out so are refused before anything is fitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import rows

from ngd_timm.core.errors import InputError
from ngd_timm.eeg.signal.bandpower import BandPower, save_bandpower
from ngd_timm.eeg.simulate.power import simulate_bandpower
from ngd_timm.eeg.teacher import fit as fit_module
from ngd_timm.eeg.teacher.baselines import fit_ridge

FIT = "teacher fit teacher_gameemo data.name=bandpower data.root=a.npz data.folds=3"


@rows(
    "stimuli, message",
    {
        "no stimuli": (lambda data: None, "doesn't say which stimulus a trial was of; use data.folds_by=subject"),
        "a trial without a stimulus": (
            lambda data: np.where((data.subject == 1) & (data.trial == 2), "", data.trial.astype(str)),
            "subject 1, trial 2 has no stimulus, as others have",
        ),
        "two stimuli": (
            lambda data: (data.trial % 2).astype(str),
            "need three stimuli that more than one subject met, got 2",
        ),
        "stimuli that nobody shares": (
            lambda data: (data.subject * 100 + data.trial).astype(str),
            "need three stimuli that more than one subject met, got 0",
        ),
    },
)
@rows("by", {"by stimulus": ("stimulus",), "by both": ("both",)})
def test_stimuli_that_cannot_be_held_out(
    stimuli: Callable[[BandPower], np.ndarray | None],
    message: str,
    by: str,
    refused: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = simulate_bandpower(4, 4, 2)
    save_bandpower(tmp_path / "a.npz", replace(data, stimulus=stimuli(data)))
    monkeypatch.setattr(fit_module, "train_teacher", lambda *_: pytest.fail("fitted"))
    refused(f"{FIT} data.folds_by={by}", message)


def test_folds_are_checked_on_the_trials_that_can_be_held_out(refused: Any, tmp_path: Path) -> None:
    data = simulate_bandpower(4, 4, 2)
    # stimuli 1 and 2 are rated high by all, 3 low; the low 4th trial of each is a stimulus of its own
    stimulus = np.where(data.trial == 4, np.char.add("own", data.subject.astype(str)), data.trial.astype(str))
    va = np.repeat(np.where(data.trial <= 2, 0.5, -0.5)[:, None], 2, axis=1).astype(np.float32)
    save_bandpower(tmp_path / "a.npz", replace(data, stimulus=stimulus, valence_arousal=va))
    refused(f"{FIT} data.folds_by=stimulus", "every training trial is on one side of the middle of the scale")


def test_a_ridge_needs_two_groups_to_choose_its_strength() -> None:
    with pytest.raises(InputError, match="fewer than two subjects or stimuli"):
        fit_ridge(np.zeros((4, 3)), np.zeros((4, 2)), np.zeros(4))


def test_an_unknown_kind_of_folds_is_refused(refused: Any) -> None:
    refused(f"{FIT} data.folds_by=clip", "subject")
