"""Files of finished runs with one value altered: a command that reads them ends well, or in one line and code 2."""

from __future__ import annotations

import copy
import csv
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import contents
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save
from tiny_runs import tiny_recipe

from ngd_timm.core.files import sha256_file, write_json
from ngd_timm.core.teacher_recipe import TeacherRecipe
from ngd_timm.eeg.signal.bandpower import save_bandpower
from ngd_timm.eeg.simulate.power import simulate_bandpower
from ngd_timm.eeg.teacher.fit import fit_teacher
from ngd_timm.experiments.ablation import ablate
from ngd_timm.train.loop import train

MARKUP = "<script>alert(1)</script>\n\n# A heading | `x` \x1b]0;title\x07"
GONE = object()
ODD = (GONE, None, MARKUP, "", -1, 10**30, 1e308, float("nan"), True, [], [MARKUP], {}, {"a": {"b": None}})
SET = "--data schematic=faces:test"
REPORT, RESULTS, PUSH = "report run", f"results run {SET} --out new.md", "push run u/r --folder new"
SCORE, BUILD = (
    "evaluate run --data schematic=faces:train --predictions",
    "prototypes build teacher --out new.safetensors --card new.md",
)
KEYS = "data.name=schematic data.root={} student.backbone=test_resnet student.image_size=32 data.workers=0 "
KEYS += "optim.epochs=2 optim.batch_size=16 optim.lr=1e-3 share_every=2"
ABLATE, OF_ABLATION = f"ablate b0_ce {KEYS} --seeds 1 --out ablation", f"results ablation {SET} --out new.md"
READ = {
    "run/metrics.json": (REPORT, RESULTS, PUSH, SCORE),
    "run/fingerprint.json": (REPORT, RESULTS, PUSH, "train --resume run"),
    "run/summary.csv": (REPORT, RESULTS, SCORE),
    "run/student/config.json": (f"evaluate run {SET}", "export run --out new", PUSH, "predict run face.png"),
    "run/predictions/schematic-valid.safetensors": (REPORT,),
    "run/tracker.json": ("train --resume run",),
    "teacher/scores.json": ("report teacher", BUILD),
    "teacher/fingerprint.json": ("report teacher", BUILD),
    "teacher/embeddings.safetensors": ("report teacher", BUILD),
    "teacher/cells.safetensors": ("report teacher",),
    "ablation/ablation.json": ("report ablation", OF_ABLATION),
    "ablation/runs/b0_ce-0/fingerprint.json": (ABLATE,),
    "ablation/runs/b0_ce-0/metrics.json": (ABLATE,),
}
"""By file the commands that read it back."""


@pytest.fixture(scope="module")
def home(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, an ablation of one recipe, a teacher's run, faces and one face."""
    home = tmp_path_factory.mktemp("altered")
    (home / "faces").symlink_to(faces)
    Image.new("L", (48, 48), 90).save(home / "face.png")
    rich = {"eval": {"schematic": f"{faces}:test"}, "best_on": ("schematic",), "grid": "gameemo-v2"}
    loss = {"kd": 0.0, "proto_kd": 0.1, "d_geo": 0.01}
    train(tiny_recipe(faces, home / "run", tracker="tensorboard", loss=loss, **rich), ["ngd", "train", "tiny"])
    ablate(["b0_ce", *KEYS.format(faces).split()], 1, home / "ablation")
    save_bandpower(home / "eeg.npz", simulate_bandpower(9, 9, 2, effect=1.5, stimulus=1.0))
    data = {"name": "bandpower", "root": str(home / "eeg.npz"), "folds": 3}
    settings = {"scores": {"bootstrap": 5, "permutations": 5}, "teacher": {"kind": "ridge", "embedding_dim": 16}}
    fit_teacher(TeacherRecipe.model_validate({"name": "quick", "data": data, **settings}), home / "teacher")
    return home


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of everything in a JSON value; of a long list the first alone."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value[:1] if len(value) > 3 else value):
        yield (*path, key)
        if isinstance(part, (dict, list)):
            yield from places(part, (*path, key))


def changed(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    """A copy with another value at a place, or with nothing there."""
    out = part = copy.deepcopy(value)
    for key in path[:-1]:
        part = part[key]
    if odd is GONE:
        del part[path[-1]]
    else:
        part[path[-1]] = odd
    return out


def altered(file: Path) -> list[tuple[str, Callable[[], bytes]]]:
    """What is altered, and the file's bytes then, for every place in it and every odd value."""
    if file.suffix == ".json":
        value = json.loads(file.read_text())
        return [
            (f"{path} {odd!r:.30}", lambda path=path, odd=odd: json.dumps(changed(value, path, odd)).encode())
            for path in places(value)
            for odd in ODD
        ]
    if file.suffix == ".csv":
        table = list(csv.reader(file.read_text().splitlines()))
        cells = [(row, column) for row in (0, 1) for column in range(len(table[0]))]
        odd_cells = ("", MARKUP, "-1", "1e400", "1e308", "nan", "[1]", "9" * 400)
        return [
            (f"{at} {odd:.9}", lambda at=at, odd=odd: as_csv(changed(table, at, odd)))
            for at in cells
            for odd in odd_cells
        ]
    with safe_open(file, framework="numpy") as opened:
        notes, tensors = opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    texts = (GONE, "", MARKUP, "null", "{}", "[]", "[[1]]", "-1", "1e999", "true", '"x"')
    of_notes = [
        (f"{name} {odd!r:.9}", lambda name=name, odd=odd: save(tensors, changed(notes, (name,), odd)))
        for name in notes
        for odd in texts
    ]
    return of_notes + [
        (
            f"{name} {n}",
            lambda name=name, odd=odd: save(
                {k: np.ascontiguousarray(v) for k, v in changed(tensors, (name,), odd).items()}, notes
            ),
        )
        for name, tensor in tensors.items()
        for n, odd in enumerate((GONE, *odd_tensors(tensor)))
    ]


def as_csv(table: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(table)
    return text.getvalue().encode()


def odd_tensors(tensor: np.ndarray) -> list[np.ndarray]:
    values = (-1, 1e30, np.nan, np.inf, 0) if tensor.dtype.kind == "f" else (-1, np.iinfo(tensor.dtype).max, 0)
    shapes = [tensor[:1], tensor[:0], tensor[..., None], tensor.reshape(-1), np.float32(1).reshape(())]
    return [
        *(np.full_like(tensor, v) for v in values),
        *shapes,
        *(tensor.astype(t) for t in ("float16", "int8", "bool")),
    ]


def problem(done: Any, home: Path, before: dict[str, str]) -> str | None:
    """What is wrong with the end of a command, if anything is."""
    if done.returncode == 2:
        one_line = done.stdout == "" and done.stderr.startswith("ngd: ") and done.stderr.count("\n") == 1
        return None if one_line and contents(home) == before else f"{done}"
    if done.returncode:
        return f"exit code {done.returncode}: {done.stderr}"
    for page in [*home.glob("*/report.html"), *home.glob("new.md"), *home.glob("new/README.md")]:
        if bad := [part for part in ("<script>alert", "\n# A heading", "\x1b", ">nan<") if part in page.read_text()]:
            return f"{page.name} holds {bad}"
    return None


def remove_written(home: Path) -> None:
    for path in [*home.glob("new*"), *home.glob("*/report.html")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def try_all(ngd: Callable[..., Any], home: Path, faces: Path, count: int) -> tuple[int, list[str]]:
    """How many alterations were tried, so many of each file and command, and what went wrong."""
    tried, wrong = 0, []
    for file, commands in READ.items():
        place, fingerprint = home / file, home / file.partition("/")[0] / "fingerprint.json"
        kept, cases = place.read_bytes(), altered(place)
        known = json.loads(fingerprint.read_text()) if place.name == "embeddings.safetensors" else None
        for command in (c.format(faces) for c in commands):
            if known is not None:
                write_json(fingerprint, known)
            done = ngd(*command.split())
            assert done.returncode == 0, f"{command}, with nothing altered: {done}"
            remove_written(home)
            for what, content in random.Random(command + file).sample(cases, min(count, len(cases))):
                place.write_bytes(content())
                if known is not None:
                    write_json(fingerprint, {**known, "embeddings_sha256": sha256_file(place)})
                before = contents(home)
                try:
                    found = problem(ngd(*command.split()), home, before)
                except Exception as error:
                    found = f"{type(error).__name__}: {error}"
                tried += 1
                wrong += [] if found is None else [f"{command}: {file}: {what}: {found}"]
                place.write_bytes(kept)
                remove_written(home)
        if known is not None:
            write_json(fingerprint, known)
    return tried, wrong


@pytest.mark.parametrize("count", [1, pytest.param(60, marks=pytest.mark.long)])
def test_a_value_altered_in_a_file_of_a_run_is_no_traceback_and_no_markup(
    count: int, home: Path, faces: Path, ngd: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    tried, wrong = try_all(ngd, home, faces, count)
    print(f"{tried} tried, {tried - len(wrong)} held")
    assert wrong == []
