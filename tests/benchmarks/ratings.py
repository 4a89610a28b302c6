"""Does a student's place on the grid know more of people's ratings than its class probabilities do?

    ngd train student_small data.root=FERPLUS init=student-ferplus-v3 teacher=student-ferplus-v3 optim.epochs=3 \\
      optim.lr=5e-4 loss.proto_share=.2 grid_center=true student.logit_adjustment=0 loss.d_geo=0 out=va
    ngd evaluate va --no-flip --predictions --data diffusionfer=DIFFUSIONFER
    python tests/benchmarks/ratings.py va DIFFUSIONFER

Linear regressions of DiffusionFER's valence and arousal, in ten folds, on the class probabilities or the logits, by
themselves and beside the place on the run's grid, on 20 random grids, or two random directions of the embedding.
Prints Pearson's r; for the grid also the difference and its 95 % interval over images (2,000 resamples).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from measuring import parser

from ngd_timm import PrototypeGrid
from ngd_timm.core.affect import AXES
from ngd_timm.core.recipe import Recipe, load_recipe
from ngd_timm.data import load_split
from ngd_timm.evaluate.predictions import prediction_file, read_predictions
from ngd_timm.losses.proto_kd import ProtoKDLoss

FOLDS, DRAWS, RESAMPLES = 10, 20, 2000


def held_out(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(N,) predictions of a linear regression that was fitted on the other folds."""
    rows = np.c_[np.ones(len(target)), features]
    order = np.random.default_rng(0).permutation(len(target))
    out = np.empty(len(target))
    for fold in np.array_split(order, FOLDS):
        others = np.setdiff1d(order, fold)
        out[fold] = rows[fold] @ np.linalg.lstsq(rows[others], target[others], rcond=None)[0]
    return out


def r(prediction: np.ndarray, target: np.ndarray) -> float:
    return float(np.corrcoef(prediction, target)[0, 1])


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("run", type=Path, help="a run with its predictions on DiffusionFER")
    arguments.add_argument("root", help="DiffusionFER, as parquet")
    options = arguments.parse_args()
    run = options.run
    kept = read_predictions(prediction_file(run, "diffusionfer:all"))
    dataset, _ = load_split("diffusionfer", options.root, "all")
    tau, rng = load_recipe(Recipe, run / "recipe.yaml").loss.tau, np.random.default_rng(1)
    embedding = kept.embedding.numpy()
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)

    def place(grid: PrototypeGrid) -> np.ndarray:
        return ProtoKDLoss(grid, tau=tau, classes=kept.classes).place(kept.embedding).numpy()

    own = place(PrototypeGrid.load(run / "grid.safetensors"))
    random_grids = [place(PrototypeGrid.random(embedding.shape[1], seed=seed)) for seed in range(DRAWS)]
    directions = [unit @ rng.normal(size=(unit.shape[1], 2)) for _ in range(DRAWS)]
    for axis in AXES:
        target = np.array(dataset[axis][:], dtype=np.float64)
        for name, base in (("probabilities", kept.logits.softmax(1).numpy()[:, 1:]), ("logits", kept.logits.numpy())):
            alone, both = held_out(base, target), held_out(np.c_[base, own], target)
            redrawn = (rng.integers(0, len(target), len(target)) for _ in range(RESAMPLES))
            low, high = np.percentile([r(both[i], target[i]) - r(alone[i], target[i]) for i in redrawn], [2.5, 97.5])
            others = [
                np.mean([r(held_out(np.c_[base, two], target), target) for two in part])
                for part in (random_grids, directions)
            ]
            print(
                f"{axis}, {name}: r {r(alone, target):.3f}; with the grid's place {r(both, target):.3f}, difference "
                f"{r(both, target) - r(alone, target):+.3f} [{low:+.3f}, {high:+.3f}]; with a random grid's "
                f"{others[0]:.3f}; with two random directions {others[1]:.3f}"
            )


if __name__ == "__main__":
    main()
