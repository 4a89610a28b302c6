"""Score a folder of face crops on all cores of one machine with `datasets`: images in, one parquet file out.

    python score_with_datasets.py IMAGES OUT.parquet [STUDENT [PROCESSES]]

Each process opens the student once.
"""

import functools
import sys

import torch
from datasets import Dataset

from ngd_timm import InputError, Predictor
from ngd_timm.predict.predictor import images_at


@functools.cache
def predictor(student: str | None) -> Predictor:
    torch.set_num_threads(1)
    return Predictor(student)


def score(row: dict, student: str | None) -> dict:
    """A row for an image; one that can't be read has no label."""
    try:
        found = predictor(student)(row["path"])
    except InputError:
        return {"label": None, "confidence": None, "valence": None, "arousal": None}
    confidence = found.probabilities[found.label]
    return {"label": found.label, "confidence": confidence, "valence": found.valence, "arousal": found.arousal}


def main(images: str, out: str, student: str | None = None, processes: int = 2) -> None:
    rows = Dataset.from_dict({"path": [str(file) for file in images_at([images])]})
    rows.map(score, fn_kwargs={"student": student}, num_proc=processes).to_parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
