"""How often a grid without any affect in it passes the declared test, and the rules that it replaces.

    python tests/benchmarks/null_grids.py --simulations 1000

Embeddings and ratings of 28 subjects with four trials each (as in GAMEEMO) are drawn independently of each other; both
differ between subjects, and ratings between stimuli. With `--stimulus .3` each stimulus has a pattern of its own in
everybody's embeddings, as a teacher's have that knows stimuli by their EEG, and still nothing of its rating. With
`--held-out` the test is that of teachers that have not seen the stimuli, which exchange their mean ratings; with
`--met` each subject met so many of them at random. Prints the share of grids with p of at most .05, and the 95 %
interval in which that share lies where the true rate is 5 %.
"""

from __future__ import annotations

import logging

import numpy as np
from measuring import parser
from scipy.stats import binom

from ngd_timm.grid.mantel import HeldOut, mantel_test
from ngd_timm.grid.verdict import grid_verdict


def null_recordings(
    rng: np.random.Generator,
    subjects: int = 28,
    trials: int = 4,
    windows: int = 2,
    dim: int = 16,
    stimulus: float = 0.0,
    met: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings (N, D), ratings (N, 2) that are independent of them, subject and trial, its stimulus too (N,)."""
    subject, trial, _ = np.indices((subjects, trials, windows)).reshape(3, -1)
    rating = (
        rng.normal(0, 0.3, (subjects, 1, 2))
        + rng.normal(0, 0.4, (1, trials, 2))
        + rng.normal(0, 0.4, (subjects, trials, 2))
    )
    va = np.clip((rating * 4).round() / 4, -1, 1)
    embedding = (
        2 * np.eye(dim)[0]
        + rng.normal(0, 0.3, (subjects, 1, 1, dim))
        + rng.normal(0, 0.3, (subjects, trials, 1, dim))
        + rng.normal(0, 0.3, (subjects, trials, windows, dim))
        + rng.normal(0, stimulus, (1, trials, 1, dim))
    )
    rows: slice | np.ndarray = slice(None)
    if met is not None:
        rows = (rng.random((subjects, trials)).argsort(axis=1) < met)[subject, trial]
    return embedding.reshape(-1, dim)[rows], va[subject, trial][rows], subject[rows], trial[rows]


def main() -> None:
    arguments = parser(__doc__, simulations=1000, permutations=499, size=5, seed=0, subjects=28, trials=4)
    arguments.add_argument("--stimulus", type=float, default=0.0, help="spread of the stimuli's own patterns")
    arguments.add_argument("--sizes", type=int, nargs="*", default=[], help="further ones, of the rules before")
    arguments.add_argument("--met", type=int, help="stimuli that a subject met, of those of --trials")
    arguments.add_argument("--held-out", action="store_true", help="test as for folds by stimulus")
    options = arguments.parse_args()

    logging.disable()
    sizes = sorted({options.size, *options.sizes})
    p = np.empty((options.simulations, len(sizes), 2))
    for row in range(options.simulations):
        rng = np.random.default_rng([options.seed, row])
        recordings = null_recordings(rng, options.subjects, options.trials, stimulus=options.stimulus, met=options.met)
        trial = recordings[3]
        held_out = HeldOut(trial, np.zeros_like(trial)) if options.held_out else None
        for column, size in enumerate(sizes):
            for center in (False, True):
                found = mantel_test(*recordings, size, options.permutations, row, center=center, held_out=held_out)
                p[row, column, int(center)] = found.p
    own = sizes.index(options.size)
    declared = ["the grid follows" in grid_verdict(options.size, value, {})[0] for value in p[:, own, 1]]
    low, high = binom.interval(0.95, options.simulations, 0.05)
    print(f"{options.simulations} null grids, {options.permutations} permutations; 5 %: {low:g} to {high:g}")
    rules = {
        f"the declared test: Mantel centred, {options.size} x {options.size}": declared,
        f"smaller p of centred and as it is, {options.size} x {options.size}": p[:, own].min(axis=1) < 0.05,
        f"smallest p of both at any size of {sizes}": p.min(axis=(1, 2)) < 0.05,
    }
    for rule, passed in list(rules.items())[: 2 if len(sizes) == 1 else 3]:
        print(f"  {rule}: {sum(passed)} pass, {100 * np.mean(passed):.1f} %")


if __name__ == "__main__":
    main()
