"""Parquet files too large to hold: a mapped copy that nobody sees, with the rows of the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from writers import png, write_parquet

from ngd_timm.core.errors import InputError
from ngd_timm.data import load_split


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("ngd_timm.data.layouts.parquet._LARGE", 0)
    monkeypatch.setattr("ngd_timm.data.layouts.parquet._COPY_ROWS", 4)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def faces(folder: Path) -> Path:
    images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(9)]
    return write_parquet(folder / "train.parquet", images, label=["sad", "fear", "happy"] * 3)


def test_a_large_file_reads_as_it_would_in_memory_and_its_copy_has_no_name(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = faces(tmp_path)
    mapped, report = load_split("schematic", path)
    assert list(cache.iterdir()) == []
    monkeypatch.setattr("ngd_timm.data.layouts.parquet._LARGE", 1 << 40)
    held, expected = load_split("schematic", path)
    assert report == expected
    assert [r["source"] for r in mapped] == [r["source"] for r in held]


def test_a_large_file_that_is_cut_short_is_refused_and_leaves_no_copy(tmp_path: Path, cache: Path) -> None:
    path = faces(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="is not a whole parquet file"):
        load_split("schematic", path)
    assert list(cache.iterdir()) == []
