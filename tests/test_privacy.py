"""What leaves this machine names no folder, user or token of it, and holds no row of a subject."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from ngd_timm.core.files import packaged
from ngd_timm.core.teacher_recipe import TeacherRecipe
from ngd_timm.eeg.signal.bandpower import save_bandpower
from ngd_timm.eeg.simulate.power import simulate_bandpower
from ngd_timm.eeg.teacher.fit import fit_teacher

PLANTED = ("zoe-q-public", "private eeg", "hf_PLANTEDtokenPLANTED", "subject-hilda")
"""A user and a folder, both of every path; a token in the environment; the name of a person on the images."""


def files(*places: Path) -> list[Path]:
    return [file for place in places for file in (place.rglob("*") if place.is_dir() else [place]) if file.is_file()]


def test_what_leaves_holds_no_path_no_user_no_token_and_no_row_of_a_subject(
    faces: Path, tmp_path: Path, ngd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, folder, token, person = PLANTED
    home = tmp_path / user / folder
    (home / "faces").mkdir(parents=True)
    for name, value in (("HF_TOKEN", token), ("USER", user), ("LOGNAME", user), ("HOME", str(home))):
        monkeypatch.setenv(name, value)
    for file in faces.glob("*.parquet"):
        table = pq.read_table(file)
        names = pa.array([f"{person}{row % 3}" for row in range(len(table))])
        pq.write_table(table.append_column("subject", names), home / "faces" / file.name)
    # a row of whoever was recorded: three in every cell, so that cells may be published
    save_bandpower(home / "eeg.npz", simulate_bandpower(9, 12, 2, effect=1.5))
    settings: dict[str, Any] = {"data": {"name": "bandpower", "root": str(home / "eeg.npz"), "folds": 3}}
    settings |= {"scores": {"bootstrap": 5, "permutations": 5}, "teacher": {"kind": "ridge", "embedding_dim": 16}}
    command = ["ngd", "teacher", "fit", f"{home}/mine.yaml", f"data.root={home}/eeg.npz"]
    teacher = fit_teacher(TeacherRecipe.model_validate({"name": "t", **settings}), home / "teacher", command)
    run, grid, out = home / "run", home / "grid.safetensors", tmp_path / "leaves"
    keys = f"data.name=schematic data.root={home}/faces data.workers=0 student.backbone=test_resnet grid={grid} "
    keys += f"student.image_size=32 optim.epochs=1 optim.batch_size=16 eval.schematic={home}/faces:test loss.kd=0"
    out.mkdir()
    for line in (
        ["prototypes", "build", str(teacher), "--out", str(grid), "--size", "2", "--min-subjects", "3"],
        ["train", "b2_proto", *_split(keys, home), f"out={run}"],
        ["evaluate", str(run), "--data", f"schematic={home}/faces:test", "--out", str(out / "scores.json")],
        ["export", str(run), "--out", str(out / "timm")],
        ["export", str(run), "--format", "onnx", "--out", str(out / "student.onnx")],
        ["export", str(run), "--format", "pt2", "--out", str(out / "student.pt2")],
        ["push", str(run), "u/student", "--onnx", "--folder", str(out / "student")],
        ["prototypes", "push", str(grid), "u/grid", "--folder", str(out / "grid")],
        ["results", str(run), "--data", f"schematic={home}/faces:test", "--out", str(out / "RESULTS.md")],
        ["report", str(teacher)],
        ["ablate", "b0_ce", "b2_proto", *_split(keys, home), "--seeds", "1", "--out", str(home / "ablation")],
    ):
        done = ngd(*line)
        assert done.returncode == 0, (line, done)
    rows = load_file(teacher / "embeddings.safetensors")["fold0.embedding"].astype(np.float32)
    kinds = {file.suffix for file in files(out)}
    assert {".onnx", ".pt2", ".safetensors", ".json", ".md", ".yaml", ".png"} <= kinds
    for file in files(out, *home.glob("*/report.html"), packaged("hub")):
        content = file.read_bytes()
        for word in (*PLANTED, str(tmp_path)):
            assert word.encode() not in content, f"{file} names {word}"
        assert not [row for row in rows if row.tobytes() in content], f"{file} holds a row of a subject"


def _split(keys: str, home: Path) -> list[str]:
    """The keys of a line; the folder's name has a space."""
    return [key.replace("\0", str(home)) for key in keys.replace(str(home), "\0").split()]
