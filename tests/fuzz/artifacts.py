"""Every kind of file that the package reads: a writer of a tiny valid one, and the command lines that read it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import mne
import numpy as np
import timm
import torch
from faults import RAMP, encoded, write
from harness import OUTPUT, Artifact
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.recipe import Recipe, load_recipe, to_yaml
from ngd_timm.core.teacher_recipe import TeacherRecipe
from ngd_timm.data.synthetic.tiny import write_tiny
from ngd_timm.eeg.signal.bandpower import save_bandpower
from ngd_timm.eeg.simulate.power import simulate_bandpower
from ngd_timm.eeg.simulate.sets import write_simulated
from ngd_timm.grid.prototypes import PrototypeGrid, _metadata_sha256

sys.path.append(str(Path(__file__).parent.parent / "data"))
from writers import write_numbered, write_parquet

Writer = Callable[[Path], Sequence[Path]]

FIT = (
    f"teacher fit {{recipe}} data.root={{root}} teacher.kind=ridge teacher.embedding_dim=4 optim.consistency=0 "
    f"scores.bootstrap=2 scores.permutations=2 out={OUTPUT}"
)
SIGNALS = "data.cache=false data.window_s=1 data.artefact_uv=null"


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def copied(link: str, name: str) -> Writer:
    """A copy of what a link in the working folder leads to."""

    def make(work: Path) -> list[Path]:
        shutil.copytree(work / link, work / name)
        return files_below(work / name)

    return make


def images(work: Path) -> list[Path]:
    photo = Image.effect_mandelbrot((80, 60), (-2, -1, 1, 1), 50).convert("RGB")
    write(work, {"one.png": encoded(RAMP), "two.png": encoded(photo)})
    return [work / "one.png", work / "two.png"]


def simulated(name: str, trials: int) -> Writer:
    def make(work: Path) -> list[Path]:
        layout = "ds002721" if name == "bids" else name
        write_simulated(layout, work / ("set.mat" if layout == "dreamer" else "set"), 3, trials, 2.0)
        files = [path for path in files_below(work) if "set" in str(path) and path.suffix != ".txt"]
        for path in (path for path in files if path.name.endswith("_events.tsv")):
            _add_ratings(path)
        return files

    return make


def _add_ratings(events: Path) -> None:
    """Columns with ratings of the rows of music."""
    head, *lines = events.read_text().splitlines()
    text = [f"{head}\tvalence\tarousal\tstimulus"]
    for number, line in enumerate(lines):
        rated = [str(2 + 5 * (number % 2)), str(8 - 5 * (number % 3 // 2)), str(number)]
        text.append("\t".join([line, *(rated if "\t788" in line else ["n/a"] * 3)]))
    events.write_text("\n".join(text) + "\n")


def own_recordings(work: Path) -> list[Path]:
    """A table, and a file a subject in three formats that MNE opens."""
    folder, names = work / "set", ["Fz", "Cz", "Pz", "Oz"]
    folder.mkdir()
    signal = np.random.default_rng(0).normal(0, 1e-5, (4, 1280))
    raw = mne.io.RawArray(signal, mne.create_info(names, 128.0, "eeg", verbose="error"), verbose="error")
    raw.set_annotations(mne.Annotations([0, 2, 6], [1, 3, 3], ["rest", "comedy", "news"]), verbose="error")
    raw.save(folder / "one_raw.fif", verbose="error")
    mne.export.export_raw(folder / "two.edf", raw, verbose="error")
    (folder / "three.eeg").write_bytes((signal.T * 1e7).astype("<i2").tobytes())
    kind = "BrainVision Data Exchange {} File, Version 1.0\n[Common Infos]\nCodepage=UTF-8\nDataFile=three.eeg\n"
    head = kind.format("Header") + "MarkerFile=three.vmrk\nDataFormat=BINARY\nDataOrientation=MULTIPLEXED\n"
    head += "NumberOfChannels=4\nSamplingInterval=7812.5\n[Binary Infos]\nBinaryFormat=INT_16\n[Channel Infos]\n"
    head += "".join(f"Ch{i}={name},,0.1,µV\n" for i, name in enumerate(names, start=1))
    marks = kind.format("Marker") + "[Marker Infos]\nMk1=New Segment,,1,1,0\nMk2=Comment,rest,1,128,0\n"
    marks += "Mk3=Comment,comedy,257,384,0\nMk4=Comment,news,769,384,0\n"
    rows = ["file,subject,annotation,valence,arousal,stimulus,baseline"]
    for subject, name in enumerate(("one_raw.fif", "two.edf", "three.vhdr"), start=1):
        prefix = "Comment/" if name == "three.vhdr" else ""
        rows += [
            f"{name},{subject},{prefix}{clip},{rating},comedy,{prefix}rest"
            for clip, rating in (("comedy", ".5,.2"), ("news", "-.5,-.1"))
        ]
    write(folder, {"three.vhdr": head, "three.vmrk": marks, "mine.csv": "\n".join(rows) + "\n"})
    return files_below(folder)


def fer_set(layout: str) -> Writer:
    def make(work: Path) -> list[Path]:
        write_tiny(layout, work / "set", n=1)
        return files_below(work / "set")

    return make


def fer_parquet(work: Path) -> list[Path]:
    images = [encoded(np.roll(RAMP, 7 * number)) for number in range(8)]
    return [write_parquet(work / "set" / "train.parquet", images, label=list(CLASSES))]


def fer_numbered(work: Path) -> list[Path]:
    write_numbered(work / "set")
    return [work / "set" / name for name in ("ferplus.npz", "labels_all.csv", "class_map.json")]


def grid(work: Path) -> list[Path]:
    PrototypeGrid.from_spec("gameemo-v2").save(work / "grid.safetensors")
    return [work / "grid.safetensors"]


def sign_grid(work: Path) -> None:
    """Bring the metadata's hash up to date, so that more than the hash is looked at."""
    path = work / "grid.safetensors"
    if path.is_symlink() or not path.is_file():
        return
    with safe_open(path, framework="pt") as file:
        notes = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    notes = {name: text for name, text in notes.items() if name != "metadata_sha256"}
    save_file(tensors, path, {**notes, "metadata_sha256": _metadata_sha256(notes)})


def foreign_grid(work: Path) -> list[Path]:
    rows = PrototypeGrid.random(30).prototypes
    np.savez(work / "theirs.npz", prototypes=rows.numpy(), counts=np.arange(25), order="valence-major")
    torch.save({"prototypes": rows.reshape(5, 5, -1), "counts": torch.arange(25)}, work / "theirs.pt")
    return [work / "theirs.npz", work / "theirs.pt"]


def table(work: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    rows = [f"{v:.2f},{a:.2f},{i % 4},{x:.3f},{y:.3f}" for i, (v, a, x, y) in enumerate(rng.uniform(-1, 1, (24, 4)))]
    write(work, {"table.csv": "\n".join(["valence,arousal,subject,f1,f2", *rows])})
    return [work / "table.csv"]


def bandpower(work: Path) -> list[Path]:
    save_bandpower(work / "power.npz", simulate_bandpower(3, 6, 2))
    return [work / "power.npz"]


def recipe(kind: type[Recipe] | type[TeacherRecipe], name: str, *keys: str) -> Writer:
    def make(work: Path) -> list[Path]:
        write(work, {"mine.yaml": to_yaml(load_recipe(kind, name, ["data.root=absent", *keys]))})  # type: ignore[type-var]
        return [work / "mine.yaml"]

    return make


def checkpoint(work: Path) -> list[Path]:
    model = timm.create_model("test_resnet", num_classes=8, in_chans=1)
    torch.save({"epoch": 3, "model": {f"module.{k}": v for k, v in model.state_dict().items()}}, work / "best.ckpt")
    write(work, {"map.json": json.dumps(dict(enumerate(CLASSES)))})
    return [work / "best.ckpt", work / "map.json"]


def unfinished_run(work: Path) -> list[Path]:
    """A run that was stopped after its epoch, before its scores."""
    shutil.copytree(work / "trained", work / "run")
    for name in ("metrics.json", "report.html"):
        (work / "run" / name).unlink(missing_ok=True)
    return files_below(work / "run" / "last")


def video(work: Path) -> list[Path]:
    writer = cv2.VideoWriter(str(work / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for number in range(4):
        writer.write(np.full((48, 64, 3), 40 * number, np.uint8))
    writer.release()
    return [work / "clip.mp4"]


def _sets() -> dict[str, Artifact]:
    """Sets of faces, by layout."""
    numbered = "class_map=set/class_map.json"
    made: dict[str, tuple[Writer, str, int]] = {
        "parquet": (fer_parquet, "schematic=set", 300),
        "npz": (fer_numbered, f"ferplus=set/ferplus.npz,{numbered}", 250),
        "csv": (fer_numbered, f"ferplus=set/labels_all.csv,{numbered}", 250),
        "ferplus-export": (fer_set("ferplus-export"), "ferplus=set:all", 100),
        "affectnet-lists": (fer_set("affectnet-lists"), "affectnet=set:all", 100),
        "ckplus-sequences": (fer_set("ckplus-sequences"), "ckplus=set", 100),
        "fer2013-folders": (fer_set("fer2013-folders"), "fer2013=set:all", 100),
        "rafdb-list": (fer_set("rafdb-list"), "rafdb=set:all", 100),
    }
    command = f"evaluate student --data {{}} --out {OUTPUT}.json"
    return {f"faces: {name}": Artifact(write, (command.format(of),), 5, n) for name, (write, of, n) in made.items()}


def _recordings() -> dict[str, Artifact]:
    """Sets of EEG, by layout; there are fewer subjects than folds, so that a fit ends once they are read."""
    roots = {"deap": "set", "dreamer": "set.mat", "mahnob": "set", "faced": "set", "bids": "set"}
    found = {}
    for name, root in roots.items():
        fit = f"{FIT.format(recipe=f'teacher_{name}', root=root)} {SIGNALS} data.folds="
        found[f"eeg: {name}"] = Artifact(simulated(name, 3), (f"{fit}50",) * 5, 2, 90, slow=(f"{fit}3",))
    fit = f"{FIT.format(recipe='teacher_dreamer', root='set/mine.csv')} data.name=recordings {SIGNALS} data.folds="
    found["eeg: own recordings"] = Artifact(own_recordings, (f"{fit}50",) * 5, 4, 400, slow=(f"{fit}3",))
    fit = FIT.format(recipe="teacher_gameemo", root="power.npz")
    found["eeg: band power"] = Artifact(
        bandpower, (f"{fit} data.folds=50",) * 5, 10, 600, slow=(f"{fit} data.folds=3",)
    )
    return found


FILES = {
    "student": Artifact(
        copied("student", "theirs"),
        (
            "predict theirs face.png --crops --json",
            "predict theirs face.png --crops --csv --views 2",
            f"export theirs --out {OUTPUT}",
        ),
        12,
        1200,
    ),
    "grid": Artifact(
        grid,
        (
            "prototypes show grid.safetensors",
            "prototypes show grid.safetensors --json",
            "prototypes validate grid.safetensors",
            f"prototypes push grid.safetensors some/body --folder {OUTPUT}",
        ),
        10,
        1100,
        sign=sign_grid,
    ),
    "grid of others": Artifact(
        foreign_grid,
        (
            f"prototypes import theirs.npz --out {OUTPUT}.safetensors",
            f"prototypes import theirs.pt --order arousal-major --out {OUTPUT}.safetensors",
        ),
        15,
        900,
    ),
    "table of embeddings": Artifact(table, (f"prototypes build table.csv --out {OUTPUT}.safetensors",), 6, 400),
    "recipe": Artifact(recipe(Recipe, "b3_full", "teacher=student"), (f"train mine.yaml out={OUTPUT}",), 12, 1100),
    "teacher's recipe": Artifact(
        recipe(TeacherRecipe, "teacher_deap"), (f"teacher fit mine.yaml out={OUTPUT}",), 12, 900
    ),
    "checkpoint of others": Artifact(
        checkpoint,
        (
            "import-checkpoint best.ckpt --backbone test_resnet --size 32 --channels 1 --classes map.json "
            f"--out {OUTPUT}",
        ),
        12,
        700,
    ),
    "checkpoint of a run": Artifact(unfinished_run, ("train --resume run",), 3, 100, output="run"),
    "run": Artifact(
        copied("trained", f"{OUTPUT}-run"),
        (
            f"report {OUTPUT}-run",
            f"evaluate {OUTPUT}-run --data schematic=faces:test --predictions --out {OUTPUT}.json",
            f"results {OUTPUT}-run --data schematic=faces:test --out {OUTPUT}.md",
            f"push {OUTPUT}-run some/body --folder {OUTPUT}",
        ),
        8,
        700,
    ),
    "image": Artifact(
        images,
        (
            "predict student face.png one.png --crops --json",
            "predict student face.png two.png",
            "predict student two.png --csv",
        ),
        12,
        1200,
    ),
    "video": Artifact(video, (f"predict student clip.mp4 --out {OUTPUT}",), 3, 150),
}
"""Everything but sets."""

SETS = _sets() | _recordings()
