"""Commands that are killed, stopped, or can't write on, at any moment, and run again: the same files, and no others.

All commands at twenty moments each: pytest -s -n 0 -m long tests/test_killed_commands.py
"""

from __future__ import annotations

import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from killed_commands import Cut, Life, results

from ngd_timm.data.synthetic.schematic import draw_face
from ngd_timm.eeg.signal.bandpower import save_bandpower
from ngd_timm.eeg.simulate.power import simulate_bandpower

TRAIN = (
    "data.name=schematic data.root=faces student.backbone=test_resnet student.image_size=32 data.workers=0 "
    "optim.epochs=2 optim.batch_size=24 share_every=0"
)
TEACHER = "data.root=power.npz teacher.kind=ridge teacher.embedding_dim=8 'scores={bootstrap: 100, permutations: 110}'"
COMMANDS = {
    "train": f"train b2_proto {TRAIN} teacher=made save_every=1e-9 out=run",
    "teacher fit": f"teacher fit teacher_demo {TEACHER} out=run",
    "ablate": f"ablate b0_ce b2_proto {TRAIN} optim.epochs=1 --seeds 1 --out ablation",
    "evaluate": "evaluate made --data schematic=faces:test --predictions --out scores/test.json",
    "predict": "predict made photos --crops --csv --annotate drawn",
    "export": "export made --out exported",
    "export to ONNX": "export made --format onnx --out exported.onnx",
    "export by torch": "export made --format pt2 --out exported.pt2",
    "video": "predict clip.mp4 --fps 5 --out watched --annotate drawn.mp4",
}
ALWAYS = ("train", "teacher fit", "evaluate", "predict", "export")
"""What the ordinary suite cuts off, at one moment each way."""

Undisturbed = Callable[[str], tuple[Life, Path]]


@pytest.fixture(scope="session")
def place(faces: Path, trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands take: faces, a run, face crops, band power and a video."""
    cv2, data = pytest.importorskip("cv2"), pytest.importorskip("skimage.data")
    folder = tmp_path_factory.mktemp("place")
    (folder / "faces").symlink_to(faces)
    shutil.copytree(trained_run, folder / "made")
    (folder / "photos").mkdir()
    for number, label in enumerate(("happiness", "anger", "fear")):
        draw_face(label, seed=number).convert("RGB").save(folder / "photos" / f"{label}.png")
    save_bandpower(folder / "power.npz", simulate_bandpower(subjects=6, trials=6, windows=2))
    head = data.astronaut()[:256, 64:320, ::-1]
    writer = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (256, 256))
    for shift in range(5):
        writer.write(np.ascontiguousarray(np.roll(head, 4 * shift, 1)))
    writer.release()
    return folder


@pytest.fixture(scope="session")
def undisturbed(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A command's name to its undisturbed life, and the folder of that."""

    @cache
    def live(name: str) -> tuple[Life, Path]:
        folder = shutil.copytree(place, tmp_path_factory.mktemp("whole") / "place", symlinks=True)
        life = Life(COMMANDS[name], folder)
        assert life.exit_code == 0, life.stderr
        life.load_its_modules()
        return life, folder

    return live


def again(command: str, folder: Path) -> str:
    """What a user types after a cut: a run is resumed, a teacher whose page alone is missing gets it."""
    if command.startswith("train") and (folder / "run" / "recipe.yaml").is_file():
        return "train --resume run"
    return "report run" if (folder / "run" / "fingerprint.json").is_file() else command


def cut_and_again(command: str, whole: Life, expected: dict[str, str], folder: Path, cut: Cut) -> int:
    """Live to the cut and a second time to the end; the exit code of the first life."""
    first = Life(command, folder, cut)
    codes = {"SIGKILL": {-signal.SIGKILL}, "SIGTERM": {128 + signal.SIGTERM, 0}, "quota": {2, 0}}[cut.kind]
    assert first.exit_code in codes, first.stderr
    if first.exit_code == 0:  # the quota was enough, or the signal came when all that was left to do was to write
        assert results(folder) == expected
    if cut.kind != "SIGKILL":
        stray = {name for name in results(folder) if not name.endswith("last/step.pt")} - set(expected)
        assert stray == set(), "a stray file"
        assert "Traceback" not in first.stderr, first.stderr
    if cut.kind == "quota" and first.exit_code:
        assert first.stderr.rstrip().split("\n")[-1].startswith("ngd: "), first.stderr
    line = again(command, folder)
    second = Life(line, folder)
    if second.exit_code:  # cut off at its last breath, a command has done its work, and refuses to do it twice
        assert second.exit_code == 2, second.stderr
        assert "is not empty; choose" in second.stderr
    elif line == command and "minutes" not in whole.stdout:
        assert second.stdout == whole.stdout
    found = results(folder)
    assert set(found) == set(expected)
    assert [path for path in expected if found[path] != expected[path]] == []
    return first.exit_code


kinds = pytest.mark.parametrize("kind", ["SIGKILL", "SIGTERM", "quota"])


@kinds
@pytest.mark.parametrize("name", ALWAYS)
def test_cut_off_and_run_again_a_command_leaves_what_an_undisturbed_one_does(
    name: str, kind: str, place: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    cut_off(name, kind, 1, place, undisturbed, tmp_path)


@pytest.mark.long
@kinds
@pytest.mark.parametrize("name", COMMANDS)
def test_it_does_so_at_any_moment(name: str, kind: str, place: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    cut_off(name, kind, 20, place, undisturbed, tmp_path)


def cut_off(name: str, kind: str, count: int, place: Path, undisturbed: Undisturbed, folder: Path) -> None:
    """Cut a command off at `count` random moments, each in a folder of its own."""
    whole, done = undisturbed(name)
    expected, before = results(done), results(place)
    largest = max((done / path).stat().st_size for path in expected if expected[path] and path not in before)
    draw = random.Random(f"{name} {kind}")
    exit_codes = Counter[int]()
    for number in range(count):
        at = draw.randrange(largest if kind == "quota" else whole.operations)
        here = shutil.copytree(place, folder / str(number) / "place", symlinks=True)
        exit_codes[cut_and_again(COMMANDS[name], whole, expected, here, Cut(kind, at))] += 1
        shutil.rmtree(here.parent)
    if kind == "SIGTERM":
        assert exit_codes.most_common(1)[0][0] == 128 + signal.SIGTERM
    print(f"{name}, {kind}: {count} held of {count}, {whole.operations} file operations, ended with {dict(exit_codes)}")
