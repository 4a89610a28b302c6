"""Writers of tiny data sets for the tests of reading."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ngd_timm.data.labels import VOTE_COLUMNS


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


@pytest.fixture
def ferplus(tmp_path: Path) -> Callable[..., Path]:
    """Write FER+'s three parquet files; 3 valid and 2 test rows are marked as copies of training rows."""

    def write(n_train: int = 60, n_valid: int = 30, n_test: int = 20) -> Path:
        seed = 0
        for split, n, copies in (("train", n_train, 0), ("valid", n_valid, 3), ("test", n_test, 2)):
            votes = random_votes(n, seed=n)
            names = [f"fer{seed + i:07d}.png" for i in range(n)]
            images = [{"bytes": png(i if i < copies else seed + i), "path": x} for i, x in enumerate(names)]
            columns = {c: votes[:, i].astype(np.int8) for i, c in enumerate(VOTE_COLUMNS)}
            marked = np.arange(n) < copies
            write_parquet(
                tmp_path / "fer" / f"{split}.parquet", images, file_name=names, dup_of_train=marked, **columns
            )
            seed += n
        return tmp_path / "fer"

    return write
