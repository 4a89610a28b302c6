"""Score face crops on any number of machines with Ray Data: a folder of images or of parquet in, parquet out.

    pip install 'ngd-timm[ray]'
    python score_with_ray.py IMAGES OUT [STUDENT [WORKERS]]

In parquet, `image` is a column of `datasets`: {"bytes", "path"}. Ray joins the cluster of RAY_ADDRESS, or starts one
on this machine. Each worker opens the student once; what a worker that dies had in hand goes to another. A worker has
one processor, or a part of a GPU: `map_batches(..., num_gpus=0.5)`. `read_images` would not turn images upright.
"""

import sys
from pathlib import Path

import ray
import torch

from ngd_timm import Predictor
from ngd_timm.core.images import DAMAGE, open_image


class Score:
    """A student that scores batches; an image that can't be read has no label."""

    def __init__(self, student: str | None = None) -> None:
        torch.set_num_threads(1)
        self.predictor = Predictor(student)

    def __call__(self, batch: dict) -> dict:
        rows = {"path": [], "label": [], "confidence": [], "valence": [], "arousal": []}
        for path, image in zip(batch["path"], batch["bytes"], strict=True):
            try:
                found = self.predictor(open_image({"bytes": image, "path": None}))
            except DAMAGE:
                found = None
            rows["path"].append(path)
            rows["label"].append(found.label if found else "")
            rows["confidence"].append(found.probabilities[found.label] if found else float("nan"))
            rows["valence"].append(found.valence if found else float("nan"))
            rows["arousal"].append(found.arousal if found else float("nan"))
        return rows


def unpacked(row: dict) -> dict:
    """A row of a parquet file as `read_binary_files` gives one."""
    return {"path": row["image"]["path"] or "", "bytes": row["image"]["bytes"]}


def main(images: str, out: str, student: str | None = None, workers: int = 2, score: type = Score) -> None:
    if any(Path(images).rglob("*.parquet")):
        rows = ray.data.read_parquet(images, columns=["image"]).map(unpacked)
    else:
        rows = ray.data.read_binary_files(images, include_paths=True)
    pool = ray.data.ActorPoolStrategy(size=workers)
    rows.map_batches(score, fn_constructor_args=[student], batch_size=64, compute=pool).write_parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
