"""Whether unlabelled people with another headset help: CCC on people never seen, by weight of `optim.consistency`.

    python tests/benchmarks/support.py --rated 32 --seeds 5

12 simulated people rate 12 clips on 32 electrodes, and 24 others are recorded with 14, through another reference: a
third of the mean over electrodes is in each, and noisier. Splines of log power bring them to the 32. With `--rated 14`
it is the other way round, on the 14 electrodes that both have. Band power, 16 px maps, 3 folds by subject.
"""

from __future__ import annotations

import numpy as np
import torch
from measuring import parser

from ngd_timm.core.teacher_recipe import TeacherRecipe
from ngd_timm.eeg.folds import cells, subject_folds
from ngd_timm.eeg.scores import trial_means
from ngd_timm.eeg.signal.bandpower import group_trials
from ngd_timm.eeg.signal.montage import spline_matrix
from ngd_timm.eeg.signal.recording import BIOSEMI_32, EMOTIV_14
from ngd_timm.eeg.teacher.training import Trials, ccc_loss, infer, train_teacher
from ngd_timm.eeg.topomap import TopomapOperator, standard_montage

CLIPS, WINDOWS, SIDE = 12, 4, 16


def people(count: int, seed: int, other_reference: bool) -> tuple[np.ndarray, np.ndarray]:
    """Log power (people, clips, windows, 2 bands, 32) and valence and arousal (people, clips, 2).

    Valence tips alpha to one side, arousal trades posterior alpha for beta; noise is smooth over the head.
    """
    rng = np.random.default_rng([seed, other_reference])
    places = standard_montage("standard_1005").get_positions()["ch_pos"]
    at = np.array([places[name] for name in BIOSEMI_32]) / 0.1
    side, back = at[:, 0] / abs(at[:, 0]).max(), (at[:, 1].max() - at[:, 1]) / np.ptp(at[:, 1])
    smooth = np.exp(-((at[:, None] - at) ** 2).sum(axis=-1) / 0.3)
    smooth /= np.linalg.norm(smooth, axis=1, keepdims=True)
    ratings = rng.integers(1, 10, (count, CLIPS, 2)) / 4 - 1.25
    pattern = np.zeros((2, 2, 32))
    pattern[0, 0], pattern[1, 0], pattern[1, 1] = -side, -back, back
    log = 0.5 * np.einsum("stv,vbc->stbc", ratings, pattern)[:, :, None]
    for size, shape in ((0.5, (count, 1, 1)), (0.5, (count, CLIPS, 1)), (1.0, (count, CLIPS, WINDOWS))):
        log = log + size * rng.normal(size=(*shape, 2, 32)) @ smooth.T
    if other_reference:
        power = np.exp(log)
        log = np.log(0.67 * power + 0.33 * power.mean(axis=-1, keepdims=True)) + rng.normal(0, 0.5, log.shape)
    return log, ratings


def rows(log: np.ndarray) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Windows' z-scores within a person (N, 2, C), with subject and trial (N,)."""
    z = (log - log.mean(axis=(1, 2), keepdims=True)) / log.std(axis=(1, 2), keepdims=True)
    subject, trial = (np.repeat(i.ravel(), WINDOWS) for i in np.indices(log.shape[:2]))
    return torch.from_numpy(z.reshape(-1, *log.shape[3:]).astype(np.float32)), subject + 1, trial + 1


def concordance(rated: int, weight: float, seed: int) -> list[float]:
    """CCC of valence and arousal."""
    own = BIOSEMI_32 if rated == 32 else EMOTIV_14
    pick, there = [BIOSEMI_32.index(name) for name in own], [BIOSEMI_32.index(name) for name in EMOTIV_14]
    log, ratings = people(12, seed, other_reference=False)
    other, _ = people(24, seed, other_reference=True)
    other = other[..., there] @ spline_matrix(EMOTIV_14, own).T if rated == 32 else other[..., pick]
    z, subject, trial = rows(log[..., pick])
    unrated, who, which = rows(other)
    support = [(unrated, windows) for windows in group_trials(who, which)] if weight else []
    labels = np.repeat(ratings.reshape(-1, 2), WINDOWS, axis=0).astype(np.float32)
    network = {"backbone": "test_resnet", "image_size": SIDE, "drop_rate": 0.2}
    optim = {"fast": True, "consistency": weight}
    settings = {"name": "support", "seed": seed, "teacher": network, "augment": {"average": 8}, "optim": optim}
    recipe, operator = TeacherRecipe.model_validate(settings), TopomapOperator(own, size=SIDE)
    trials, predicted = group_trials(subject, trial), np.empty(labels.shape)
    for number, (held_out, seen) in enumerate(cells(subject_folds(subject, 3, seed))):
        labelled = Trials(z, [windows for windows in trials if seen[windows[0]]], torch.from_numpy(labels))
        teacher = train_teacher(recipe, labelled, support, operator, number, lambda: None)
        predicted[held_out] = infer(teacher, z[torch.from_numpy(held_out)], operator)[1]
    means, target = (torch.from_numpy(trial_means(part, subject, trial)[0]) for part in (predicted, labels))
    return [1 - float(ccc_loss(means[:, [axis]], target[:, [axis]])) for axis in range(2)]


def main() -> None:
    options = parser(__doc__, rated=32, seeds=5).parse_args()
    for weight in (0, 0.02, 0.1, 0.5):
        scores = np.array([concordance(options.rated, weight, seed) for seed in range(options.seeds)])
        shown = " / ".join(f"{v.mean():.3f} {np.round(v, 3).tolist()}" for v in scores.T)
        print(f"weight {weight}: CCC, valence / arousal: {shown}", flush=True)


if __name__ == "__main__":
    main()
