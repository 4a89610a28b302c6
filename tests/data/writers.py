"""Writers of tiny data sets."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ngd_timm.core.affect import CLASSES
from ngd_timm.data.labels import VOTE_COLUMNS
from ngd_timm.data.synthetic.tiny import tiny_face


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def png(seed: int, size: tuple[int, int] = (12, 12), mode: str = "L") -> bytes:
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    return encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)))


def random_votes(n: int, seed: int = 0) -> np.ndarray:
    """Ten votes a row, from unanimous to scattered, some rows without a vote for the eight."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet([0.25] * len(VOTE_COLUMNS), n)
    votes = np.stack([rng.multinomial(10, p) for p in shares])
    votes[::17, :8] = 0
    votes[::17, 8:] = [7, 3]
    return votes


def write_parquet(path: Path, images: Sequence[object], **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, **columns}), path)
    return path


IDS = dict(zip(CLASSES, (6, 3, 5, 4, 0, 1, 2, 7), strict=True))


def write_numbered(folder: Path) -> Path:
    """A face of each class a split as ferplus.npz, channels first, and as labels_all.csv, with a class map of IDS."""
    arrays: dict[str, Any] = {}
    table = ["Filepath,Target,Split"]
    folder.mkdir()
    for k, split in enumerate(("train", "val", "test")):
        faces = [tiny_face(c, k) for c in CLASSES]
        arrays[f"X_{split}"], arrays[f"y_{split}"] = np.stack(faces)[:, None], np.array([IDS[c] for c in CLASSES])
        for c, face in zip(CLASSES, faces, strict=True):
            face.save(folder / f"{split}{c}.png")
            table.append(f"{split}{c}.png,{IDS[c]},{split}")
    np.savez(folder / "ferplus.npz", **arrays)
    (folder / "labels_all.csv").write_text("\n".join(table))
    (folder / "class_map.json").write_text(json.dumps(IDS))
    return folder
