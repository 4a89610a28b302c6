"""A set of AffectNet's order in shards of parquet: set-up, memory, images a second, resuming, four processes.

    python tests/benchmarks/scale.py --data FOLDER
    python tests/benchmarks/scale.py --tenth

FOLDER holds FER+ as parquet; without it faces are drawn. Its images are written again and again, as JPEGs, into
--shards files in a temporary folder until there are --rows of them. Each setting is a process of its own that makes
--batches batches of 128 images of 64 px, augmented, and trains nothing; the first ten don't count:

- mapped, 1, 2 and 4 workers: rows are drawn at random from a mapped copy, which each of these settings makes anew.
- streamed: rows are read in order and shuffled within a buffer; nothing is written.
- streamed by four: as many gloo processes, each with a quarter of the shards; rates add up.

"resume" is the time to the first batch of the second half of an epoch. Memory is the maximum of Pss_Anon + Pss_Shmem
over the process and its workers (memory.py), of the four the sum.

--tenth trains instead: an epoch of ResNet-18 by `ngd train` at 224 px in colour, on a tenth of AffectNet's 287,651
images (drawn faces again and again, as JPEGs of 256 px). It says what ten times that is; no whole epoch is run.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from measuring import faces, parser
from memory import Watch, write_rows
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ngd_timm.core.distributed import gather, join, rank, world_size
from ngd_timm.core.recipe import AugmentConfig
from ngd_timm.data import FaceBatches, FaceStream, load_fer
from ngd_timm.data.synthetic.schematic import write_schematic

OPTIONS: dict[str, Any] = {"image_size": 64, "batch_size": 128, "augment": AugmentConfig()}
SETTINGS = ("mapped, 1 worker", "mapped, 2 workers", "mapped, 4 workers", "streamed")
UNCOUNTED = 10
TENTH = 28_765


def as_jpegs(dataset: Any) -> Any:
    def encode(record: dict[str, Any]) -> dict[str, Any]:
        buffer = io.BytesIO()
        record["image"].save(buffer, format="JPEG", quality=90)
        return {"image": {"bytes": buffer.getvalue(), "path": None}}

    dataset = dataset.select_columns(["image", "label"])
    return dataset.map(encode, features=dataset.features)


def measure(setting: str, folder: str, batches: int) -> dict[str, float]:
    watch = Watch()
    watch.start()
    began = time.perf_counter()
    source: FaceBatches | FaceStream
    if setting.startswith("streamed"):
        rows = load_fer("schematic", folder, "train", streaming=True)
        source = FaceStream(rows, **OPTIONS, part=(rank(), world_size()))
    else:
        dataset = load_fer("schematic", folder, "train")
        source = FaceBatches(dataset, train=True, in_memory=False, workers=int(setting.split()[1]), **OPTIONS)
    setup = time.perf_counter() - began
    drawn: Iterator[Any] = iter(source)
    for _ in islice(drawn, UNCOUNTED):
        pass
    began, images = time.perf_counter(), 0
    for batch in islice(drawn, batches):
        images += len(batch.images)
    rate = images / (time.perf_counter() - began)
    del drawn
    began = time.perf_counter()
    next(source.batches(start=len(source) // 2))
    resume = time.perf_counter() - began
    watch.done.set()
    watch.join()
    return {"setup": setup, "rate": rate, "resume": resume, "memory": watch.most["unreclaimable"]}


def measure_one_of_four(folder: str, batches: int, out: str) -> None:
    torch.set_num_threads(1)
    join()
    each = gather(measure("streamed by four", folder, batches))
    if rank() == 0:
        found = {key: max(one[key] for one in each) for key in ("setup", "resume")}
        found |= {key: sum(one[key] for one in each) for key in ("rate", "memory")}
        Path(out).write_text(json.dumps(found))


def train_on_a_tenth(scratch: Path) -> None:
    shards, run = scratch / "shards", scratch / "run"
    drawn = write_schematic(scratch / "drawn", "paint", 2_000, 8, 8, seed=0, image_size=256)
    write_rows(as_jpegs(load_fer("schematic", drawn, "train")), shards, TENTH, 4_500)
    shutil.copy(drawn / "valid.parquet", shards)
    size = sum(file.stat().st_size for file in shards.iterdir())
    print(f"{TENTH:,} JPEGs of 256 px, {size / 2**20:,.0f} MiB, load {os.getloadavg()[0]:.1f}", flush=True)
    settings = ["data.name=schematic", f"data.root={shards}", "student.image_size=224", "student.in_chans=3"]
    command = [sys.executable, "-m", "ngd_timm.cli", "train", "b0_ce", *settings, "optim.epochs=1", f"out={run}"]
    subprocess.run(command, check=True)
    with (run / "summary.csv").open(newline="") as file:
        epoch = next(csv.DictReader(file))
    seconds = float(epoch["seconds"])
    print(
        f"an epoch of a tenth: {seconds:,.0f} s, {float(epoch['images_per_second']):,.0f} images/s; extrapolated to "
        f"all of AffectNet's training images: {seconds / 360:.1f} hours"
    )


def report(setting: str, found: dict[str, float]) -> None:
    print(
        f"{setting:18} set-up {found['setup']:6.1f} s, {found['rate']:7,.0f} images/s, "
        f"resume {found['resume']:6.1f} s, {found['memory']:6,.0f} MB",
        flush=True,
    )


def main() -> None:
    arguments = parser(__doc__, data=True, rows=1_300_000, shards=64, batches=300)
    arguments.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments.add_argument("--tenth", action="store_true", help="train an epoch on a tenth of AffectNet's number")
    options = arguments.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, options.batches)))
        return
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        os.environ["HF_DATASETS_CACHE"] = str(scratch / "cache")
        if options.tenth:
            train_on_a_tenth(scratch)
            return
        began = time.perf_counter()
        folder = scratch / "shards"
        write_rows(
            as_jpegs(faces(options.data, scratch, 30_000)), folder, options.rows, -(-options.rows // options.shards)
        )
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(
            f"{options.rows:,} rows in {len(list(folder.iterdir()))} shards, {size / 2**20:,.0f} MiB, written in "
            f"{time.perf_counter() - began:.0f} s; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        for setting in SETTINGS:
            command = [sys.executable, __file__, "--batches", str(options.batches), "--one", setting, str(folder)]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            report(setting, json.loads(out.splitlines()[-1]))
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=4,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id="scale",
            start_method="spawn",
        )
        elastic_launch(config, measure_one_of_four)(str(folder), options.batches, str(scratch / "four.json"))
        report("streamed by four", json.loads((scratch / "four.json").read_text()))


if __name__ == "__main__":
    main()
