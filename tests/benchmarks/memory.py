"""Memory of training while the set grows: images drawn one at a time from parquet, and streamed from shards.

    python tests/benchmarks/memory.py --data FOLDER

FOLDER holds FER+ as parquet; without it faces are drawn. Its rows are written again and again into a temporary folder
until there are --rows of them, and a small model trains on them for --batches steps, each setting in a process of its
own. It prints the maximum of /proc/PID/smaps_rollup over the process and its workers: Pss_Anon + Pss_Shmem (what the
kernel can't take back; shared pages are divided among those that share them), and Pss with the page cache of mapped
files. "held" is the same as "per image" with the Arrow table in memory, as it would be without the mapped copy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from measuring import faces, family, memory, parser

from ngd_timm.core.recipe import AugmentConfig
from ngd_timm.data import FaceBatches, FaceStream, load_fer
from ngd_timm.data.layouts import parquet

KINDS = ("per image", "streamed", "held")
SHARD = 30_000


def write_rows(dataset: Any, folder: Path, rows: int, shard: int) -> None:
    """The rows of a set, repeated, in files of `shard` rows."""
    import pyarrow.parquet as pq

    names = dataset.features["label"].names
    encoded = dataset.select_columns(["image", "label"]).with_format("arrow")
    table = encoded[:].combine_chunks()
    table = table.set_column(1, "label_name", [[names[i] for i in table["label"].to_pylist()]])
    folder.mkdir(parents=True)
    for start in range(0, rows, shard):
        stop = min(start + shard, rows)
        path = folder / (f"train-{start // shard:05d}.parquet" if shard < rows else "train.parquet")
        with pq.ParquetWriter(path, table.schema) as writer:
            for first in range(start, stop, 1000):
                some = np.arange(first, min(first + 1000, stop)) % len(table)
                writer.write_table(table.take(some))


class Watch(threading.Thread):
    """The maximum of memory, read four times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = {"unreclaimable": 0.0, "Pss": 0.0}
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.25):
            seen = memory(family())
            now = {"unreclaimable": seen["Pss_Anon"] + seen["Pss_Shmem"], "Pss": seen["Pss"]}
            self.most = {key: max(now[key], most) for key, most in self.most.items()}


def train_once(kind: str, folder: str, batches: int) -> None:
    watch = Watch()
    watch.start()
    options: dict[str, Any] = {"image_size": 64, "batch_size": 128, "augment": AugmentConfig()}
    began = time.perf_counter()
    source: FaceBatches | FaceStream
    if kind == "streamed":
        source = FaceStream(load_fer("schematic", folder, "train", streaming=True), **options)
    else:
        if kind == "held":
            parquet._LARGE = 1 << 60
        dataset = load_fer("schematic", folder, "train")
        source = FaceBatches(dataset, train=True, in_memory=False, workers=2, **options)
    setup = time.perf_counter() - began
    model = timm.create_model("test_resnet", num_classes=len(source.classes), in_chans=1).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for number, batch in enumerate(source):
        torch.nn.functional.cross_entropy(model(batch.images), batch.target).backward()
        optimizer.step()
        if number + 1 == batches:
            break
    watch.done.set()
    watch.join()
    print(json.dumps({**watch.most, "setup": setup}))


def main() -> None:
    arguments = parser(__doc__, data=True, batches=60, repeats=1)
    arguments.add_argument("--rows", type=int, nargs=2, default=[30_000, 300_000])
    arguments.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    arguments.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.one:
        train_once(*options.one, options.batches)
        return
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        dataset = faces(options.data, scratch, 30_000 if options.data else 2_000)
        for shards in (False, True):
            for rows in options.rows:
                write_rows(dataset, scratch / f"{rows}-{shards}", rows, SHARD if shards else rows)
        del dataset
        for kind in options.kinds:
            seen: dict[int, dict[str, float]] = {}
            for rows in options.rows:
                for _ in range(options.repeats):
                    folder = str(scratch / f"{rows}-{kind == 'streamed'}")
                    command = [sys.executable, __file__, "--batches", str(options.batches), "--one", kind, folder]
                    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                    found = json.loads(out.splitlines()[-1])
                    seen[rows] = {k: max(v, seen.get(rows, {}).get(k, 0.0)) for k, v in found.items()}
            few, many = (seen[rows] for rows in options.rows)
            print(
                f"{kind:10} {options.rows[0]:,} and {options.rows[1]:,} rows: "
                f"{few['unreclaimable']:,.0f} and {many['unreclaimable']:,.0f} MB that can't be taken back, "
                f"{many['unreclaimable'] / few['unreclaimable']:.2f} times; Pss {few['Pss']:,.0f} and "
                f"{many['Pss']:,.0f} MB; set-up {few['setup']:.0f} and {many['setup']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
