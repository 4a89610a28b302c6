"""The scripts of docs/examples train in one process and in two, and timm alone opens what they leave."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_distributed import spawn

from ngd_timm import CLASSES, Predictor
from ngd_timm.data.synthetic.schematic import draw_face, write_schematic

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if not path.stem.startswith("score_"))


@pytest.fixture(scope="module")
def few_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for library in ("accelerate", "lightning", "transformers"):
        pytest.importorskip(library)  # here, so that no process below imports it anew
    folder = tmp_path_factory.mktemp("few")
    return write_schematic(folder, "pencil", n_train=16, n_valid=8, n_test=8, seed=0, image_size=32)


def run_example(name: str, faces: str, folder: str, processes: int) -> None:
    """Run a script as Python does, and keep what it trained and whether timm gave the same model back."""
    os.chdir(folder)
    torch.manual_seed(int(os.environ.get("RANK", 0)))
    sys.argv = [name, faces, "test_resnet", str(processes)]
    names = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    trained = names["task"].get_eval_model(ema=True) if "task" in names else names["model"].student
    outcome = dict(names["model"].named_parameters())
    if "student" in names:
        images = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(names["student"](images), trained.eval()(images))
        outcome["loaded"] = torch.tensor(True)
    torch.save(outcome, f"{os.environ.get('RANK', 0)}.pt")


@pytest.mark.parametrize("name", NAMES)
def test_an_example_trains_in_one_process_and_timm_opens_its_student(
    name: str, few_faces: Path, tmp_path: Path
) -> None:
    # forked: some of the libraries keep what they found out about their process
    process = multiprocessing.get_context("fork").Process(
        target=run_example, args=(name, str(few_faces), str(tmp_path), 1)
    )
    process.start()
    process.join(240)
    process.kill()
    assert process.exitcode == 0
    assert "loaded" in torch.load(tmp_path / "0.pt", weights_only=True)


@pytest.mark.parametrize("name", ["accelerate_loop", "plain_pytorch", "timm_task"])
def test_an_example_in_two_processes_trains_one_student_that_one_of_them_saves(
    name: str, few_faces: Path, tmp_path: Path
) -> None:
    spawn(run_example, name, str(few_faces), str(tmp_path), 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.pop("loaded")
    assert "loaded" not in second
    for parameter, value in first.items():
        torch.testing.assert_close(second[parameter], value, msg=parameter)


@pytest.mark.parametrize(
    ("command", "joined"),
    [
        (["lightning_module.py", "FACES", "test_resnet", "2"], "with 2 processes"),
        (["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "transformers_trainer.py"], "0/4 "),
    ],
)
def test_a_trainer_that_joins_processes_itself_does_so(
    command: list[str], joined: str, few_faces: Path, tmp_path: Path
) -> None:
    words = [
        str(EXAMPLES / word) if word.endswith(".py") else word.replace("FACES", str(few_faces)) for word in command
    ]
    words += [] if "FACES" in command else [str(few_faces), "test_resnet"]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert joined in done.stderr  # four batches of eight, not eight of four
    assert {path.name for path in (tmp_path / "student").iterdir()} == {"config.json", "model.safetensors"}


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of face crops, one of which is damaged."""
    folder = tmp_path_factory.mktemp("crops")
    for number in range(23):
        draw_face(CLASSES[number % 8], seed=number).save(folder / f"{number}.png")
    (folder / "damaged.png").write_bytes(b"half")
    return folder


def assert_scored(rows: list[dict[str, Any]], crops: Path, student: Path) -> None:
    """Every image once, as a Predictor scores it."""
    files = sorted(crops.iterdir())
    assert sorted(Path(row["path"]).name for row in rows) == sorted(file.name for file in files)
    label = {Path(row["path"]).name: row["label"] for row in rows}
    assert not label.pop("damaged.png")
    whole = [file for file in files if file.stem != "damaged"]
    assert [label[file.name] for file in whole] == [found.label for found in Predictor(student)(whole)]


def test_datasets_scores_a_folder_with_two_processes(crops: Path, student: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "score_with_datasets.py"), str(crops), "out.parquet", str(student), "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_scored(pq.read_table(tmp_path / "out.parquet").to_pylist(), crops, student)


@pytest.mark.parametrize("form", ["images", "parquet"])
def test_ray_scores_every_image_once_though_a_worker_is_killed(
    form: str, crops: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ngd-timm[ray]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    script = runpy.run_path(str(EXAMPLES / "score_with_ray.py"))
    killed = tmp_path / "killed"

    class Killed(script["Score"]):
        """A worker that is killed once, after it has scored a batch and before it hands it on."""

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            rows = super().__call__(batch)
            if not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return rows

    source = crops
    if form == "parquet":
        source = tmp_path / "shards"
        source.mkdir()
        images = [{"bytes": file.read_bytes(), "path": file.name} for file in sorted(crops.iterdir())]
        for number in range(4):
            pq.write_table(pa.table({"image": images[number::4]}), source / f"{number}.parquet")
    ray.init(num_cpus=4, include_dashboard=False)
    try:
        script["main"](str(source), str(tmp_path / "out"), str(student), 2, Killed)
    finally:
        ray.shutdown()
    assert killed.exists()
    assert_scored(pq.read_table(tmp_path / "out").to_pylist(), crops, student)


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_an_example_fits_a_screen(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 60
