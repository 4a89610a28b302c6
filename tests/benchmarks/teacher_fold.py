"""Processor time of a fold of the EEG teacher: 1,216 trials of one window, 32 channels, 5 bands, `optim.fast` or not.

    python tests/benchmarks/teacher_fold.py --epochs 2

A fit has 12 epochs; a shorter one is scaled up. A teacher trains on one thread, so that its bits don't depend on how
many there are; processor time is what another load on the machine changes least.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measuring import parser

from ngd_timm.core.teacher_recipe import TeacherRecipe
from ngd_timm.eeg.signal.recording import BIOSEMI_32
from ngd_timm.eeg.teacher import training
from ngd_timm.eeg.topomap import TopomapOperator

spent: Counter[str] = Counter()


def timed(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[step] += time.process_time() - began

    return call


def measure(fast: bool, epochs: int, trials: int) -> None:
    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.standard_normal((trials, 5, 32), dtype=np.float32))
    ratings = torch.from_numpy(rng.uniform(-1, 1, (trials, 2)).astype(np.float32))
    labelled = training.Trials(z, [np.array([row]) for row in range(trials)], ratings)
    settings = {"name": "fold", "teacher": {"drop_rate": 0.2}, "optim": {"fast": fast, "epochs": epochs}}
    operator: Any = timed("maps", TopomapOperator(BIOSEMI_32, size=32))
    spent.clear()
    began = time.process_time()
    training.train_teacher(
        TeacherRecipe.model_validate(settings), labelled, [], operator, fold=0, after_epoch=lambda: None
    )
    total = time.process_time() - began
    spent["the rest"] = total - sum(spent.values())
    parts = ", ".join(f"{step} {100 * seconds / total:.0f} %" for step, seconds in spent.most_common())
    print(f"fast={fast}: {12 * total / epochs:.1f} s of processor time a fold; {parts}")


def main() -> None:
    options = parser(__doc__, epochs=2, trials=1216).parse_args()
    training._labelled_batch = timed("samples, augmentation", training._labelled_batch)
    training.AffectTeacher.forward = timed("forward", training.AffectTeacher.forward)  # type: ignore[method-assign]
    torch.Tensor.backward = timed("backward", torch.Tensor.backward)  # type: ignore[method-assign]
    torch.optim.AdamW.step = timed("optimizer", torch.optim.AdamW.step)  # type: ignore[method-assign]
    for fast in (False, True):
        measure(fast, options.epochs, options.trials)


if __name__ == "__main__":
    main()
