"""Two gloo processes against one process on the joined batch."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from tiny_runs import tiny_recipe
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ngd_timm import NeuroGazeTask, PrototypeGrid, wrap
from ngd_timm.cli import main
from ngd_timm.core.distributed import join
from ngd_timm.core.errors import InputError
from ngd_timm.core.recipe import AugmentConfig, Recipe
from ngd_timm.data import FaceBatches, FaceStream, load_split, load_stream
from ngd_timm.evaluate.metrics import fer_metrics
from ngd_timm.evaluate.predictions import gather_rows
from ngd_timm.evaluate.run_log import read_rows
from ngd_timm.evaluate.student import evaluate
from ngd_timm.losses import COMPONENTS, DGeoLoss, NeuroGazeLoss, cross_entropy
from ngd_timm.train.checkpoint import Checkpoints
from ngd_timm.train.fingerprint import resume_command
from ngd_timm.train.gradient_share import GradientShare
from ngd_timm.train.interruption import Stopped
from ngd_timm.train.loop import resume, train


def label_set(seed: int) -> tuple[dict[str, torch.Tensor], int]:
    """Index, logits, targets of some of the classes, subjects; and how many rows the first of two processes has."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    target = torch.from_numpy(rng.choice(rng.choice(8, rng.integers(1, 9), replace=False), n))
    logits = torch.from_numpy(rng.normal(size=(n, 8)) + 1.5 * np.eye(8)[target]).float()
    rows = {
        "index": torch.arange(n),
        "logits": logits,
        "target": target,
        "subject": torch.from_numpy(rng.integers(0, 5, n)),
    }
    return rows, int(rng.integers(0, n + 1))


def scores(rows: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    return [fer_metrics(rows["logits"], rows["target"], subjects=s, resamples=20) for s in (None, rows["subject"])]


def score_a_part(rank: int, folder: Path) -> None:
    entries = []
    for rows, first in map(label_set, range(20)):
        order = torch.randperm(len(rows["index"]), generator=torch.Generator().manual_seed(0))
        index = order[:first] if rank == 0 else order[first:]
        # as a sampler pads its last batch
        index = torch.cat([index, order[:1]])
        entries.append(scores(gather_rows({name: values[index] for name, values in rows.items()})))
    (folder / f"{rank}.json").write_text(json.dumps(entries))


def vit(faces: str, out: Path) -> Recipe:
    """No batch norm, every term, parts of unequal size (8 and 7), 12 steps."""
    return tiny_recipe(
        Path(faces),
        out,
        student={"backbone": "test_vit", "image_size": 32},
        data={"name": "schematic", "root": faces, "workers": 0, "sampler": "class_aware"},
        allow_stacked_balancing=True,
        grid="gameemo-v2",
        grid_control="random",
        teacher=str(Path(faces) / "teacher"),
        loss={"kd": 0.3, "proto_share": 0.2, "tau": 0.1, "d_geo": 0.5, "ramp": [0, 1], "variance_cap": 0.01}
        | {"d_geo_on": "features"},
        optim={"epochs": 4, "batch_size": 15, "lr": 1e-3, "ema": 0.5, "amp": "off"},
    )


def with_dropout(faces: str, out: Path) -> Recipe:
    """Batch norm, whose statistics differ between processes, and dropout, whose random numbers do."""
    student = {"backbone": "test_resnet", "image_size": 32, "drop_rate": 0.2}
    optim = {"epochs": 2, "batch_size": 16, "lr": 1e-3, "ema": 0.5}
    chosen = {"eval": {"schematic": f"{faces}:test"}, "best_on": ["schematic"]}
    return tiny_recipe(Path(faces), out, student=student, optim=optim, **chosen)


def streamed(faces: str, out: Path) -> Recipe:
    data = {"name": "schematic", "root": faces, "workers": 0, "streaming": True, "shuffle_buffer": 20}
    return tiny_recipe(Path(faces), out, data=data)


def read_parts(rank: int, faces: str, folder: Path) -> None:
    """Write which images each of two processes gets of a file, of four files alike, and of four of uneven sizes."""
    for name in ("one file", "even", "uneven"):
        rows, tally = load_stream("schematic", faces if name == "one file" else folder / name, "train")
        stream = FaceStream(rows, image_size=32, batch_size=5, buffer=1, part=(rank, 2))
        pixels = [[hash_of(image) for image in batch.images] for batch in stream]
        report = stream.report("schematic", "train", tally)
        counts = {"batches": pixels, "rows": stream.rows, "read": report.read, "kept": report.kept}
        (folder / f"{name}-{rank}.json").write_text(json.dumps(counts | {"sha256": report.sha256}))


def hash_of(image: torch.Tensor) -> str:
    return hashlib.sha256(image.numpy().tobytes()).hexdigest()


def write_shards(faces: Path, folder: Path, sizes: list[int]) -> None:
    table, start = pq.read_table(faces / "train.parquet"), 0
    (folder / "train").mkdir(parents=True)
    for number, size in enumerate(sizes):
        pq.write_table(table.slice(start, size), folder / "train" / f"{number}.parquet")
        start += size


def uneven_counts(_: Any) -> np.ndarray:
    """The drawn faces are as many in every class; weights would all be 1."""
    return np.arange(1, 9) ** 3


def everything_together(faces: str, folder: Path) -> None:
    """All that two processes do for this file; it leaves its results in the folder."""
    join()
    rank = dist.get_rank()
    score_a_part(rank, folder)
    import ngd_timm.data

    ngd_timm.data.class_counts = uneven_counts
    train(vit(faces, folder / "two"))
    train(with_dropout(faces, folder / "whole"))
    train(streamed(faces, folder / "streamed"))
    read_parts(rank, faces, folder)
    due, calls = Checkpoints.due, []

    def stop_the_second(checkpoints: Checkpoints) -> bool:
        calls.append(1)
        if rank == 1 and len(calls) == 4:
            signal.raise_signal(signal.SIGTERM)
        return due(checkpoints)

    Checkpoints.due = stop_the_second
    try:
        train(with_dropout(faces, folder / "cut"))
    except Stopped as stop:
        (folder / f"stopped-{rank}").write_text(str(stop))
    Checkpoints.due = due
    resume(folder / "cut")
    try:
        train(with_dropout(faces, folder / "sync").model_copy(update={"optim": synchronised(faces)}))
    except InputError as error:
        (folder / f"refused-{rank}").write_text(str(error))
    loss_of_one_rank(rank, folder)
    for first in FIRST:
        losses_of_a_part(rank, folder, first)
    steps_without_embedding_terms(rank, folder)
    dist.destroy_process_group()


def synchronised(faces: str) -> Any:
    return with_dropout(faces, Path()).optim.model_copy(update={"sync_bn": True})


def spawn(run: Callable[..., None], *arguments: Any) -> None:
    """As torchrun on two processes, but forked: they need not import anything again."""
    if torch.cuda.is_initialized():
        pytest.skip("a process that has used its GPU can't be forked")
    config = LaunchConfig(
        1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork", max_restarts=0
    )
    elastic_launch(config, run)(*arguments)


@pytest.fixture(scope="module")
def together(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import timm

    from ngd_timm import CLASSES, save_student

    folder = tmp_path_factory.mktemp("together")
    torch.manual_seed(1)
    save_student(timm.create_model("test_vit", num_classes=8, in_chans=1, img_size=32), faces / "teacher", CLASSES)
    write_shards(faces, folder / "even", [12, 12, 12, 12])
    write_shards(faces, folder / "uneven", [20, 4, 20, 4])
    spawn(everything_together, str(faces), folder)
    return folder


def test_two_processes_give_the_metrics_of_one_to_the_last_bit(together: Path) -> None:
    ranks = [json.loads((together / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1] == [scores(rows) for rows, _ in map(label_set, range(20))]


@pytest.mark.parametrize(("name", "own"), [("one file", (24, 24)), ("even", (24, 24)), ("uneven", (40, 8))])
def test_two_processes_read_a_stream_once_together(
    together: Path, faces: Path, name: str, own: tuple[int, int]
) -> None:
    parts = [json.loads((together / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    assert tuple(part["rows"] for part in parts) == own
    assert parts[0]["sha256"] == parts[1]["sha256"]
    assert [(part["read"], part["kept"]) for part in parts] == [(48, 48)] * 2
    batches = [[len(batch) for batch in part["batches"]] for part in parts]
    steps = 4 if name == "uneven" else 8  # as many as the process with fewer images has
    assert batches == [[3] * steps, [2] * steps]
    rows, _ = load_split("schematic", faces, "train")
    every = {hash_of(image) for batch in FaceBatches(rows, image_size=32, batch_size=16) for image in batch.images}
    seen = [image for part in parts for batch in part["batches"] for image in batch]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= every


def test_two_processes_train_from_a_stream(together: Path) -> None:
    fingerprint = json.loads((together / "streamed" / "fingerprint.json").read_text())
    assert fingerprint["data"]["train"]["kept"] == fingerprint["data"]["train"]["read"] == 48
    assert len(rows(together / "streamed")) == 2


def rows(run: Path) -> list[dict[str, str]]:
    timings = ("seconds", "images_per_second")
    return [{k: v for k, v in row.items() if k not in timings} for row in read_rows(run / "summary.csv")]


def test_two_processes_have_the_losses_of_one_over_twelve_steps(
    together: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ngd_timm.data.class_counts", uneven_counts)
    one, two = rows(train(vit(str(faces), tmp_path / "one"))), rows(together / "two")
    assert len(one) == len(two) == 4
    for alone, shared in zip(one, two, strict=True):
        for name, value in alone.items():
            if value and not name.startswith("valid"):
                assert float(shared[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-5), name
        assert all(float(alone[name]) > 0 for name in ("ce", "kd", "proto_kd", "d_geo", "share_kd", "lambda_proto_kd"))
    entries = [json.loads((run / "metrics.json").read_text()) for run in (tmp_path / "one", together / "two")]
    assert entries[0]["schematic:valid"]["confusion"] == entries[1]["schematic:valid"]["confusion"]


def test_a_signal_to_one_of_two_stops_both_and_both_resume_to_the_same_bits(together: Path, faces: Path) -> None:
    run, whole = together / "cut", together / "whole"
    message = f"{run} stopped after epoch 1, batch 2 of the next; continue with: torchrun --nproc-per-node 2 -m "
    assert (together / "stopped-0").read_text() == (together / "stopped-1").read_text()
    assert (together / "stopped-0").read_text() == f"{message}ngd_timm.cli train --resume {run}"
    for student in ("student", "student_best"):
        weights = [folder / student / "model.safetensors" for folder in (run, whole)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    (entry,) = evaluate(run, [f"schematic={faces}:test"]).values()
    assert entry["present"]["bacc"] == pytest.approx(float(rows(run)[-1]["schematic_present_bacc"]), abs=1e-3)
    assert rows(run) == rows(whole)
    assert (run / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    random = torch.load(run / "last" / "state.pt", weights_only=True)["random"]
    assert len(random) == 2
    assert not torch.equal(*random), "dropout would hit the same units of both processes' images"


def node(port: int, faces: str, folder: Path) -> None:
    """What `torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint localhost:PORT` does."""
    config = LaunchConfig(
        2,
        2,
        1,
        run_id="nodes",
        rdzv_backend="c10d",
        rdzv_endpoint=f"localhost:{port}",
        start_method="fork",
        max_restarts=0,
    )
    elastic_launch(config, train_on_a_node)(faces, folder)


def train_on_a_node(faces: str, folder: Path) -> None:
    join()
    import ngd_timm.data

    ngd_timm.data.class_counts = uneven_counts
    train(with_dropout(faces, folder / "run"))
    place = {name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")}
    (folder / f"node-{dist.get_rank()}.json").write_text(json.dumps(place | {"resume": resume_command(folder)}))
    dist.destroy_process_group()


def test_two_nodes_of_one_process_end_in_the_student_of_one_node_of_two(
    together: Path, faces: Path, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    agents = [fork.Process(target=node, args=(port, str(faces), tmp_path)) for _ in range(2)]
    for agent in agents:
        agent.start()
    for agent in agents:
        agent.join(120)
        agent.kill()
        assert agent.exitcode == 0
    launcher = "torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:PORT --nproc-per-node 1 "
    places = [json.loads((tmp_path / f"node-{rank}.json").read_text()) for rank in (0, 1)]
    assert [(place["LOCAL_RANK"], place["GROUP_WORLD_SIZE"]) for place in places] == [("0", "2")] * 2
    assert launcher in places[0]["resume"]
    weights = [run / "student" / "model.safetensors" for run in (tmp_path / "run", together / "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_synchronised_batch_norm_on_the_cpu_is_refused_in_one_line(together: Path) -> None:
    assert not (together / "sync").exists()
    for rank in (0, 1):
        assert (together / f"refused-{rank}").read_text().startswith("optim.sync_bn=true needs GPUs")


def wait_for(path: Path, seconds: float = 30) -> None:
    """For a file of the other process: a collective would not show that none is needed."""
    ends = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > ends:
            raise TimeoutError(f"{path.name} was not written within {seconds} s: a collective waits")
        time.sleep(0.05)


GRID = PrototypeGrid.random(16, size=3, seed=0)
FIRST = (5, 7, 10)


def whole_batch() -> dict[str, torch.Tensor]:
    """Logits, embeddings, targets of which two rows are ignored, the teacher's logits."""
    generator = torch.Generator().manual_seed(3)
    logits, teacher = (torch.randn(10, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    z = torch.randn(10, 16, generator=generator, dtype=torch.float64)
    target = torch.tensor([1, 1, -100, 2, 1, 0, 3, 2, -100, 6])
    return {"logits": logits, "embedding": z, "target": target, "teacher_logits": teacher}


def criterion(**options: Any) -> NeuroGazeLoss:
    weights = torch.linspace(0.5, 2, 8)
    return NeuroGazeLoss(GRID, d_geo=0.5, variance_cap=0.05, margin=1.5, class_weights=weights, **options)


def loss_of_one_rank(rank: int, folder: Path) -> None:
    """Calls that rank 0 makes alone, while rank 1 waits for a file."""
    done = folder / "alone"
    if rank == 1:
        return wait_for(done)
    values = whole_batch()
    criterion(gather_distributed=True).eval()(**values, epoch=99)
    criterion().train()(**values, epoch=99)
    geo = DGeoLoss(gather_distributed=True).eval()
    geo(values["embedding"], values["target"])
    cross_entropy(values["logits"], values["target"])
    task = NeuroGazeTask(wrap("test_resnet", grid=GRID, in_chans=1), criterion(), verbose=False)
    task.gradient_norms(torch.randn(4, 1, 32, 32), torch.arange(4))
    done.touch()
    return None


def losses_of_a_part(rank: int, folder: Path, first: int) -> None:
    """Rank 0 has the first rows of the batch, rank 1 the others."""
    part = slice(0, first) if rank == 0 else slice(first, 10)
    values = {name: rows[part] for name, rows in whole_batch().items()}
    values["logits"].requires_grad_()
    values["embedding"].requires_grad_()
    losses = criterion(gather_distributed=True)(**values, epoch=99)
    losses["loss"].backward()
    gradients = {name: values[name].grad for name in ("logits", "embedding")}
    torch.save((losses, gradients), folder / f"losses-{first}-{rank}.pt")


class PlainLoop(torch.nn.Module):
    """A model and its criterion in one module, as some loops give them to DistributedDataParallel."""

    def __init__(self, model: torch.nn.Module, loss: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits, embedding = self.model(images, return_embedding=True)
        total: torch.Tensor = self.loss(logits, embedding, target)["loss"]
        return total


def steps_without_embedding_terms(rank: int, folder: Path) -> None:
    """Two steps each of loops that use no embedding: without a gradient for every parameter the second one fails."""
    from torch.nn.parallel import DistributedDataParallel

    images, target = torch.randn(4, 1, 32, 32), torch.arange(4) + rank
    ce = NeuroGazeLoss(GRID, proto_kd=0, d_geo=0)
    outcome = {}
    for name in ("logits alone", "embedding unused", "criterion inside", "timm task"):
        torch.manual_seed(0)
        model = wrap("test_resnet", grid=GRID, in_chans=1)
        task = NeuroGazeTask(model, ce, verbose=False)
        if name == "timm task":
            task.prepare_distributed()
        else:
            ddp = DistributedDataParallel(PlainLoop(model, ce) if name == "criterion inside" else model)
        try:
            for _ in range(2):
                if name == "logits alone":
                    loss = torch.nn.functional.cross_entropy(ddp(images), target)
                elif name == "embedding unused":
                    loss = ce(*ddp(images, return_embedding=True), target)["loss"]
                elif name == "criterion inside":
                    loss = ddp(images, target)
                else:
                    loss = task(images, target)["loss"]
                loss.backward()
            outcome[name] = model.student.get_classifier().weight.grad
        except RuntimeError as error:
            outcome[name] = str(error).splitlines()[0]
    torch.save(outcome, folder / f"steps-{rank}.pt")


def test_in_evaluation_and_by_default_a_loss_on_one_rank_waits_for_no_other(together: Path) -> None:
    assert (together / "alone").exists()


@pytest.mark.parametrize("first", FIRST)
def test_gathered_losses_and_gradients_of_two_ranks_are_those_of_the_whole_batch(together: Path, first: int) -> None:
    values = whole_batch()
    for name in ("logits", "embedding"):
        values[name].requires_grad_()
    expected = criterion()(**values, epoch=99)
    expected["loss"].backward()
    losses, gradients = zip(
        *(torch.load(together / f"losses-{first}-{rank}.pt", weights_only=True) for rank in (0, 1)), strict=True
    )
    for name in ("loss", *COMPONENTS):
        torch.testing.assert_close((losses[0][name] + losses[1][name]) / 2, expected[name])
    for name in ("logits", "embedding"):
        # DistributedDataParallel averages over ranks
        torch.testing.assert_close(torch.cat([rows[name] for rows in gradients]) / 2, values[name].grad)


@pytest.mark.parametrize("loop", ["logits alone", "embedding unused", "criterion inside", "timm task"])
def test_a_wrapper_whose_embedding_no_term_uses_trains_under_ddp(together: Path, loop: str) -> None:
    outcomes = [torch.load(together / f"steps-{rank}.pt", weights_only=True)[loop] for rank in (0, 1)]
    assert not isinstance(outcomes[0], str), outcomes[0]
    assert torch.equal(*outcomes)
    assert outcomes[0].abs().sum() > 0


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("sampler", ["random", "class_aware"])
def test_the_parts_of_the_processes_are_the_batch_of_one(faces: Path, sampler: str, in_memory: bool) -> None:
    dataset, _ = load_split("schematic", faces, "train")

    def batches(part: tuple[int, int]) -> FaceBatches:
        options: dict[str, Any] = {"sampler": sampler, "in_memory": in_memory, "augment": AugmentConfig()}
        return FaceBatches(dataset, image_size=32, batch_size=10, train=True, part=part, **options)

    parts = [list(batches((number, 3)).batches(1)) for number in range(3)]
    whole = list(batches((0, 1)).batches(1))
    assert [len(batch.index) for batch in whole] == [10, 10, 10]
    for number, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[number].index for part in parts]), batch.index)
        torch.testing.assert_close(torch.cat([part[number].images for part in parts]), batch.images)


def test_in_evaluation_the_processes_take_turns_at_whole_batches(faces: Path) -> None:
    dataset, _ = load_split("schematic", faces, "train")
    parts = [FaceBatches(dataset, image_size=32, batch_size=10, part=(number, 2)) for number in range(2)]
    assert [[int(batch.index[0]) for batch in part] for part in parts] == [[0, 20, 40], [10, 30]]


def fail_on_the_second(folder: Path, *arguments: str) -> None:
    """Run the command with an error in one process while the other is busy."""
    rank, measure = os.environ["RANK"], GradientShare.measure

    def fail(shares: GradientShare, update: int, *batch: Any) -> Any:
        if update == 2 and rank == "1":
            raise InputError("image 7 is damaged")
        if update == 2:
            time.sleep(1)
        return measure(shares, update, *batch)

    GradientShare.measure, sys.argv = fail, ["ngd", *arguments]
    with open(folder / f"stderr-{rank}", "w") as sys.stderr:
        main()


def test_an_error_in_one_process_ends_all_with_one_line_and_exit_code_2(faces: Path, tmp_path: Path) -> None:
    keys = ["data.name=schematic", f"data.root={faces}", "data.workers=0", "optim.batch_size=16", "optim.epochs=2"]
    keys += ["student.backbone=test_resnet", "student.image_size=32", f"out={tmp_path / 'run'}"]
    with pytest.raises(ChildFailedError) as error:
        spawn(fail_on_the_second, tmp_path, "train", "b0_ce", *keys)
    rank, failure = error.value.get_first_failure()
    assert (rank, failure.exitcode) == (1, 2)
    lines = [(tmp_path / f"stderr-{rank}").read_text().splitlines() for rank in (0, 1)]
    assert lines[1][-1] == "ngd: image 7 is damaged"
    # the other process reports nothing: its connection only broke because of the first
    assert not [line for line in lines[0] + lines[1][:-1] if "ngd: " in line or "Connection closed" in line]


def die_on_the_second(rank: int, port: int, folder: Path, *arguments: str) -> None:
    """As two machines, of which one is gone: no agent of torchrun ends the other's process."""
    from ngd_timm.core import ending

    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "localhost"})
    measure = GradientShare.measure

    def die(shares: GradientShare, update: int, *batch: Any) -> Any:
        if update == 2 and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return measure(shares, update, *batch)

    GradientShare.measure, ending._GRACE_SECONDS, sys.argv = die, 0.1, ["ngd", *arguments]
    with open(folder / f"stderr-{rank}", "w") as sys.stderr:
        main()


def test_a_killed_process_ends_the_other_with_one_line(faces: Path, tmp_path: Path) -> None:
    keys = ["data.name=schematic", f"data.root={faces}", "data.workers=0", "optim.batch_size=16", "optim.epochs=2"]
    keys += ["student.backbone=test_resnet", "student.image_size=32", f"out={tmp_path / 'run'}"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    new = multiprocessing.get_context("spawn")  # a forked one could wait for a thread that it has not
    both = [new.Process(target=die_on_the_second, args=(r, port, tmp_path, "train", "b0_ce", *keys)) for r in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(240)  # both import everything anew
        process.kill()
    assert [process.exitcode for process in both] == [1, -signal.SIGKILL]
    last = (tmp_path / "stderr-0").read_text().splitlines()
    assert last[-1].startswith("ngd: another process of this run has ended")
    assert not [line for line in last if "Traceback" in line or "peer" in line]
