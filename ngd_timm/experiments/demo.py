"""The whole flow on simulated data: EEG, teacher, grid, faces, student, another style of faces, page."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path

from ngd_timm.core.files import require_new_folder
from ngd_timm.core.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class DemoSizes:
    """Sizes of the demo; the defaults take one to two minutes on two cores."""

    subjects: int = 15
    trials: int = 16
    windows: int = 6
    teacher_epochs: int = 8
    permutations: int = 500
    train: int = 2400
    valid: int = 400
    test: int = 800
    epochs: int = 8
    backbone: str = "test_resnet"  # timm's smallest ResNet, 0.5 M parameters


def run_demo(out: str | Path, seed: int = 0, sizes: DemoSizes | None = None) -> Path:
    """Run every stage once, into a new folder, and write a page that a newcomer understands: report.html."""
    out, sizes = Path(out), sizes or DemoSizes()
    require_new_folder(out, "--out")
    # heavy imports wait until the folder is known to be good
    from ngd_timm.core.teacher_recipe import TeacherRecipe
    from ngd_timm.data.synthetic.schematic import DOMAINS, write_schematic
    from ngd_timm.eeg.signal.bandpower import save_bandpower
    from ngd_timm.eeg.simulate.power import simulate_bandpower
    from ngd_timm.eeg.teacher.consolidate import build_grid
    from ngd_timm.eeg.teacher.fit import fit_teacher
    from ngd_timm.evaluate.student import evaluate
    from ngd_timm.report import try_page
    from ngd_timm.report.demo import write_demo_report
    from ngd_timm.train.loop import train

    began, stages = time.monotonic(), itertools.count(1)

    def say(text: str) -> None:
        print(f"[{next(stages)}/7, {time.monotonic() - began:3.0f} s] {text}", flush=True)

    say(f"simulating EEG of {sizes.subjects} subjects with known valence and arousal")
    recording = out / "eeg" / "simulated_bandpower.npz"
    save_bandpower(recording, simulate_bandpower(sizes.subjects, sizes.trials, sizes.windows, seed))

    say("fitting the EEG teacher, scored on subjects it never saw")
    recipe = load_recipe(TeacherRecipe, "teacher_demo", [f"seed={seed}", f"optim.epochs={sizes.teacher_epochs}"])
    data = recipe.data.model_copy(update={"root": str(recording)})
    scores = recipe.scores.model_copy(update={"bootstrap": sizes.permutations, "permutations": sizes.permutations})
    teacher = fit_teacher(recipe.model_copy(update={"data": data, "scores": scores}), out / "teacher")

    say("building the 5×5 valence/arousal grid from its embeddings")
    grid = out / "grid.safetensors"
    build_grid(teacher).save(grid)

    say(f"drawing faces in two styles, {' and '.join(DOMAINS)}")
    trained_on, tested_on = DOMAINS
    write_schematic(out / "faces" / trained_on, trained_on, sizes.train, sizes.valid, sizes.test, seed)
    # nothing is trained on the other style, so its first two splits stay as small as they may be
    write_schematic(out / "faces" / tested_on, tested_on, 8, 8, sizes.test, seed + 1)

    say(f"training a student on {trained_on} faces with cross-entropy alone")
    common = {
        "seed": seed,
        "student": {"backbone": sizes.backbone, "image_size": 48, "in_chans": 1},
        "data": {"name": "schematic", "root": str(out / "faces" / trained_on)},
        "optim": {"epochs": sizes.epochs, "batch_size": 64, "lr": 3e-3, "warmup": 0.3},
        "share_every": 10,
    }
    baseline = train(Recipe.model_validate({**common, "name": "baseline", "out": str(out / "baseline")}))

    say("training a student with logit KD, Proto-KD and D-Geo added")
    full = {"grid": str(grid), "teacher": str(baseline), "loss": {"kd": 0.30, "proto_kd": 0.12, "d_geo": 0.012}}
    run = train(Recipe.model_validate({**common, **full, "name": "full", "out": str(out / "run")}))

    for folder in (teacher, baseline, run):
        try_page(folder)

    say("testing both students on both styles, and writing the report")
    for folder in (baseline, run):
        tests = [f"{domain}:schematic={out / 'faces' / domain}:test" for domain in DOMAINS]
        evaluate(folder, tests, folder / "test.json")
    report = write_demo_report(out)
    print(f"[done, {time.monotonic() - began:3.0f} s]", flush=True)
    return report
