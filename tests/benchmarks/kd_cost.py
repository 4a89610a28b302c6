"""What logit KD costs: epochs of `b1_kd` with the teacher's logits queried and cached, against epochs of `b0_ce`.

    python tests/benchmarks/kd_cost.py --data FOLDER --rounds 4

FOLDER holds FER+ as parquet; without it faces are drawn. The teacher is a ResNet-18 like the student. A round is three
runs of one epoch by `train`: `b0_ce`; `b1_kd` with an empty cache, which queries the teacher for every batch
and writes its logits; `b1_kd` again, which reads them. Every second round turns the first two around. Speed is the
run's own `images_per_second` (summary.csv: the training pass, without set-up and validation); ratios are of a round.
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
from pathlib import Path

import torch
from measuring import parser, spread

from ngd_timm import CLASSES, save_student
from ngd_timm.core.recipe import Recipe, StudentConfig, load_recipe
from ngd_timm.data.synthetic.schematic import write_schematic
from ngd_timm.evaluate.run_log import read_rows
from ngd_timm.models.student import create_student
from ngd_timm.train.loop import train

BASE, FIRST, WARM = "b0_ce", "b1_kd, first pass", "b1_kd, cache warm"


def speed(recipe: str, out: Path, overrides: list[str]) -> float:
    run = train(load_recipe(Recipe, recipe, [*overrides, f"out={out}"]))
    return float(read_rows(run / "summary.csv")[0]["images_per_second"])


def main() -> None:
    options = parser(__doc__, data=True, rounds=4, rows=5120, size=64, threads=2).parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.INFO)

    speeds: dict[str, list[float]] = {BASE: [], FIRST: [], WARM: []}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if options.data:
            data = ["data.name=ferplus", f"data.root={options.data}", f"data.limit={options.rows}"]
        else:
            faces = write_schematic(scratch / "faces", "pencil", options.rows, 64, 8, seed=0)
            data = ["data.name=schematic", f"data.root={faces}"]
        torch.manual_seed(0)
        teacher = create_student(StudentConfig(image_size=options.size), len(CLASSES))
        save_student(teacher, scratch / "teacher", CLASSES)
        common = [*data, "optim.epochs=1", f"student.image_size={options.size}"]
        for number in range(options.rounds):
            place = scratch / str(number)
            taught = [*common, f"teacher={scratch / 'teacher'}", f"kd_cache={place / 'cache'}"]
            runs = {BASE: ("b0_ce", common), FIRST: ("b1_kd", taught), WARM: ("b1_kd", taught)}
            order = [BASE, FIRST, WARM] if number % 2 == 0 else [FIRST, BASE, WARM]
            for contender in order:
                recipe, overrides = runs[contender]
                speeds[contender].append(speed(recipe, place / contender.replace(", ", "_"), overrides))

    print(
        f"resnet18 taught by resnet18, {options.size} px, {options.rows} images an epoch, {options.threads} "
        f"thread(s), {options.rounds} rounds, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}"
    )
    for contender, found in speeds.items():
        line = f"{contender:20}{statistics.median(found):6.0f} images/s"
        if contender != BASE:
            costs = (base / own for base, own in zip(speeds[BASE], found, strict=True))
            line += f"; against {BASE} it takes {spread(costs)} the time"
        print(line)


if __name__ == "__main__":
    main()
