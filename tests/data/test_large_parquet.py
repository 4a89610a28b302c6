"""Parquet files too large to hold: a mapped copy that nobody sees, with the rows of the file."""

from __future__ import annotations

import errno
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


def test_a_cache_that_cannot_be_written_is_not_called_a_damaged_file(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = faces(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.ipc.RecordBatchFileWriter.write_batch", full, raising=True)
        with pytest.raises(InputError, match=rf"no space left in {cache}, where .*train.parquet is unpacked"):
            load_split("schematic", path)
    cache.rmdir()
    cache.write_text("mine")
    with pytest.raises(InputError, match=rf"{cache} can't be written"):
        load_split("schematic", path)


def test_a_large_file_that_is_cut_short_is_refused_and_leaves_no_copy(tmp_path: Path, cache: Path) -> None:
    path = faces(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="is not a whole parquet file"):
        load_split("schematic", path)
    assert list(cache.iterdir()) == []
