"""Every code block of README.md, CONTRIBUTING.md and docs/ runs, page by page, in a folder with drawn faces.

`ngd` runs in this process, with keys appended that make training short; other shell lines run in bash. What is not run
says why in a comment above the block, `<!-- skip: next "needs the network" -->`, and `pytest -rs` lists it.
"""

from __future__ import annotations

import atexit
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

SHORT = [
    "optim.epochs=1",
    "optim.batch_size=8",
    "optim.warmup=0",
    "data.workers=0",
    "student.backbone=test_resnet",
    "student.image_size=32",
]
SHORT_TEACHER = ["optim.epochs=1", "optim.samples_per_trial=1"]
# pages that begin with runs that the page on recipes trains
AFTER_TRAINING = {"evaluation.md", "hub.md", "predict.md"}


@functools.cache
def data() -> Path:
    """The files that the pages name."""
    from ngd_timm.data.synthetic.schematic import draw_face
    from ngd_timm.data.synthetic.tiny import write_tiny

    folder = _kept_folder()
    layouts = {"ferplus": "ferplus-export", "RAF-DB": "rafdb-list", "CK+": "ckplus-sequences"}
    for name, layout in (layouts | {"AffectNet": "affectnet-lists"}).items():
        write_tiny(layout, folder / name, n=3)
    (folder / "faces").mkdir()
    for number, path in enumerate(("face.png", "faces/one.png", "faces/two.png")):
        draw_face("happiness", seed=number).save(folder / path)
    _draw_photographs(folder)
    return folder


def _kept_folder() -> Path:
    """A folder that goes with this process."""
    folder = Path(tempfile.mkdtemp(prefix="ngd-docs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _draw_photographs(folder: Path) -> None:
    import cv2
    import numpy as np
    from PIL import Image

    from ngd_timm.data.synthetic.schematic import draw_face

    photo = Image.new("RGB", (320, 240), "grey")
    photo.paste(draw_face("surprise", seed=1, image_size=96), (100, 60))
    (folder / "photos").mkdir()
    for path in ("photo.jpg", "photos/one.jpg", "photos/two.jpg"):
        photo.save(folder / path)
    clip = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, photo.size)
    for _ in range(10):
        clip.write(np.ascontiguousarray(np.asarray(photo)[:, :, ::-1]))
    clip.release()


@functools.cache
def data_and_runs() -> Path:
    folder = _kept_folder()
    shutil.copytree(data(), folder, dirs_exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        ngd("train b0_ce data.root=ferplus")
        ngd("train b3_full data.root=ferplus teacher=runs/b0_ce-0")
    finally:
        os.chdir(before)
    return folder


def ngd(arguments: str) -> None:
    from ngd_timm.cli import app

    words = shlex.split(arguments, comments=True)
    if words[0] == "ablate" or (words[0] == "train" and words[1] != "--resume"):
        words += SHORT
    if words[:2] == ["teacher", "fit"]:
        words += SHORT_TEACHER
    app(words, standalone_mode=False)


def run_shell(example: Example) -> None:
    for line in example.parsed.splitlines():
        if line.startswith("ngd "):
            ngd(line.removeprefix("ngd "))
        elif line.strip():
            subprocess.run(["bash", "-ec", line], check=True)


def note_page(document: Document) -> tuple[()]:
    document.namespace["page"] = Path(document.path).name
    return ()


def enter(namespace: dict[str, Any]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ngd-docs-"))
    shutil.copytree(data_and_runs() if namespace["page"] in AFTER_TRAINING else data(), folder, dirs_exist_ok=True)
    namespace["_page"] = Path.cwd(), folder, os.environ.get("XDG_CACHE_HOME")
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / ".cache")  # the user's may hold band power of an earlier day


def leave(namespace: dict[str, Any]) -> None:
    place, folder, cache = namespace["_page"]
    os.chdir(place)
    os.environ.pop("XDG_CACHE_HOME")
    if cache is not None:
        os.environ["XDG_CACHE_HOME"] = cache
    shutil.rmtree(folder)


pytest_collect_file = Sybil(
    parsers=[note_page, PythonCodeBlockParser(), CodeBlockParser("bash", run_shell), SkipParser()],
    patterns=["README.md", "CONTRIBUTING.md", "docs/*.md"],
    setup=enter,
    teardown=leave,
).pytest()
