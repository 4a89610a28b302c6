"""What the tests of reading share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer, client_here
from writers import png, random_votes, write_parquet

from ngd_timm.data.labels import VOTE_COLUMNS


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


@pytest.fixture
def data_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that this process's `datasets` reads from, with a cache of its own."""
    import datasets

    with HubServer() as server:
        server.tokens["hf_ann"] = {"ann"}
        client_here(monkeypatch, server, tmp_path / "home", "hf_ann")
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "home" / "datasets")
        monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", tmp_path / "home" / "modules")
        yield server
