"""Seconds of one fold of a teacher on simulated band power, by default 1,216 trials of one window (DEAP's size).

    python tests/benchmarks/teacher_fold.py

Prints the seconds of `train_teacher` (on one thread; those of CPU are not moved by other processes), and how well the
held-out subjects' ratings are predicted.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from ngd_timm.core.teacher_recipe import TeacherRecipe
from ngd_timm.eeg.folds import subject_folds
from ngd_timm.eeg.scores import ccc
from ngd_timm.eeg.signal.bandpower import group_trials
from ngd_timm.eeg.signal.recording import BIOSEMI_32
from ngd_timm.eeg.teacher.training import Trials, infer, train_teacher
from ngd_timm.eeg.topomap import TopomapOperator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=32)
    parser.add_argument("--trials", type=int, default=38, help="of a subject")
    parser.add_argument("--windows", type=int, default=1, help="of a trial")
    parser.add_argument("--samples-per-trial", type=int, default=8)
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    shape = (options.subjects, options.trials, options.windows)
    subject, trial, _ = np.indices(shape).reshape(3, -1)
    va = np.repeat(rng.uniform(-1, 1, (options.subjects * options.trials, 2)), options.windows, axis=0)
    pattern = rng.standard_normal((2, 5, len(BIOSEMI_32)))
    z = 0.3 * np.einsum("nv,vbc->nbc", va, pattern) + rng.standard_normal((len(va), 5, len(BIOSEMI_32)))
    train = subject_folds(subject, 5) != 0
    trials = [rows for rows in group_trials(subject, trial) if train[rows[0]]]
    fitting = Trials(torch.from_numpy(z.astype(np.float32)), trials, torch.from_numpy(va.astype(np.float32)))
    recipe = TeacherRecipe.model_validate(
        {"name": "benchmark", "device": "cpu", "optim": {"samples_per_trial": options.samples_per_trial}}
    )
    operator = TopomapOperator(BIOSEMI_32, size=recipe.teacher.image_size)
    began, began_cpu = time.perf_counter(), time.process_time()
    teacher = train_teacher(recipe, fitting, [], operator, 0, lambda: None)
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    _, prediction = infer(teacher, fitting.z, operator)
    scores = [ccc(prediction[~train, axis], va[~train, axis]) for axis in range(2)]
    print(
        f"{shape[0] * shape[1]} trials, {len(va)} windows, {len(BIOSEMI_32)} channels: {seconds:.0f} s a fold "
        f"({cpu:.0f} s of CPU), held-out CCC {scores[0]:.3f} (valence), {scores[1]:.3f} (arousal)"
    )


if __name__ == "__main__":
    main()
