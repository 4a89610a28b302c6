"""What the benchmarks of the training pipeline share: clocks, memory, and data sets to measure on."""

from __future__ import annotations

import argparse
import io
import os
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from torchvision import transforms as T

from ngd_timm.core.recipe import AugmentConfig
from ngd_timm.data import load_fer
from ngd_timm.data.synthetic.schematic import write_schematic

TICK = os.sysconf("SC_CLK_TCK")


def family() -> list[int]:
    """This process and its living children."""
    children = [int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]
    return [os.getpid(), *children]


def cpu_seconds() -> float:
    """User and system time of this process, its living children and those that ended."""
    own = os.times()
    total = own.user + own.system + own.children_user + own.children_system
    for pid in family()[1:]:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / TICK
    return total


def memory(pids: list[int]) -> dict[str, float]:
    """MB over some processes by smaps_rollup: Pss (shared pages divided among their users) and its anonymous part.

    Pss_Anon leaves out what is mapped from files: the page cache of the Arrow table, which the kernel takes back.
    """
    total = {"Pss": 0.0, "Pss_Anon": 0.0, "Pss_Shmem": 0.0}
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            key, _, rest = line.partition(":")
            if key in total:
                total[key] += int(rest.split()[0]) / 1024
    return total


def faces(folder: str | None, scratch: Path, rows: int = 4000) -> Any:
    """FER+'s training split, or drawn faces where there is no folder."""
    if folder is not None:
        return load_fer("ferplus", folder, "train", limit=rows)
    return load_fer("schematic", write_schematic(scratch / "faces", "pencil", rows, 8, 8, seed=0), "train")


def drawn_jpegs(scratch: Path, rows: int, side: int) -> Any:
    """Drawn faces as colour JPEGs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = write_schematic(scratch / f"png{side}", "paint", rows, 8, 8, seed=0, image_size=side)
    (scratch / f"jpeg{side}").mkdir()
    table = pq.read_table(folder / "train.parquet")
    images = []
    for record in table["image"].to_pylist():
        buffer = io.BytesIO()
        Image.open(io.BytesIO(record["bytes"])).convert("RGB").save(buffer, format="JPEG", quality=90)
        images.append({"bytes": buffer.getvalue(), "path": record["path"]})
    place = table.column_names.index("image")
    table = table.set_column(place, table.schema.field("image"), pa.array(images, table.schema.field("image").type))
    pq.write_table(table, scratch / f"jpeg{side}" / "train.parquet")
    return load_fer("schematic", scratch / f"jpeg{side}", "train")


def timm_dataset(dataset: Any, scratch: Path, mode: str) -> Any:
    """The same rows as a folder of parquet, which is how timm's reader takes a local data set."""
    scratch.mkdir(parents=True)
    dataset.select_columns(["image", "label"]).to_parquet(scratch / "set" / "train.parquet")
    os.environ["HF_HUB_OFFLINE"] = "1"
    return create_dataset(
        f"hfds/{scratch / 'set'}", root=str(scratch / "cache"), split="train", is_training=True, input_img_mode=mode
    )


def timm_loader(
    dataset: Any,
    channels: int,
    size: int,
    batch: int,
    workers: int,
    augment: AugmentConfig,
    affine: bool = False,
    device: torch.device | None = None,
) -> Any:
    """timm's loader with the augmentation nearest to ours that its options give, which has no rotation and no shift.

    `affine` adds those by torchvision's transform, put behind timm's crop.
    """
    loader = create_loader(
        dataset,
        input_size=(channels, size, size),
        batch_size=batch,
        is_training=True,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        scale=((1 - augment.scale) ** 2, 1),
        ratio=(1, 1),
        hflip=augment.flip,
        color_jitter=(augment.brightness, augment.contrast, 0),
        re_prob=augment.erase,
        interpolation="bilinear",
        num_workers=workers,
        persistent_workers=workers > 0,
        device=device or torch.device("cpu"),
    )
    if affine:
        turn = T.RandomAffine(
            float(np.degrees(augment.rotate)),
            (augment.shift, augment.shift),
            interpolation=T.InterpolationMode.BILINEAR,
            fill=127,
        )
        loader.dataset.transform.transforms.insert(1, turn)
    return loader


def parser(description: str | None, data: bool = False, **numbers: int) -> argparse.ArgumentParser:
    """A parser with whole numbers as options, by their defaults, and `--data`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if data:
        made.add_argument("--data", help="folder of FER+ as parquet; without it faces are drawn")
    for name, default in numbers.items():
        made.add_argument(f"--{name}", type=int, default=default, help=f"{default} without it")
    return made


def spread(values: Iterable[float]) -> str:
    """The median, the least and the most."""
    ordered = sorted(values)
    return f"{statistics.median(ordered):.2f} times ({ordered[0]:.2f} to {ordered[-1]:.2f})"
