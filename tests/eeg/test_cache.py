"""The cache of band power: what it is keyed by, and what becomes of an entry that isn't whole."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest

from ngd_timm.eeg.readers.sources import cache_folder, cached
from ngd_timm.eeg.signal.bandpower import BandPower
from ngd_timm.eeg.simulate.power import simulate_bandpower


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ngd_timm"


class Maker:
    """Counts how often it is called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> BandPower:
        self.calls += 1
        return simulate_bandpower(2, 2, 2, seed=self.calls)


def files(folder: Path, first: bytes = b"one") -> list[Path]:
    (folder / "a").mkdir(parents=True)
    for name, content in (("a/1.bin", first), ("2.bin", b"two")):
        (folder / name).write_bytes(content)
    return [folder / "a" / "1.bin", folder / "2.bin"]


def test_the_second_call_computes_nothing_and_is_logged(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, data = Maker(), files(tmp_path / "x")
    first = cached({"window": 4}, data, make)
    with caplog.at_level(logging.INFO, "ngd_timm.eeg"):
        again = cached({"window": 4}, data, make)
    assert make.calls == 1
    assert again.sha256 == first.sha256
    assert (again.dataset, again.notes, again.simulated) == (first.dataset, first.notes, first.simulated)
    assert "from the cache" in caplog.text
    assert [p.suffix for p in folder.iterdir()] == [".npz"]
    assert folder.stat().st_mode & 0o077 == 0


def test_bytes_names_and_settings_make_an_entry_but_not_where_the_files_lie(folder: Path, tmp_path: Path) -> None:
    make, data = Maker(), files(tmp_path / "x")
    cached({"window": 4}, data, make)
    cached({"window": 4}, files(tmp_path / "elsewhere" / "deeper")[::-1], make)
    assert make.calls == 1
    cached({"window": 5}, data, make)
    cached({"window": 4}, files(tmp_path / "y", b"onE"), make)
    renamed = data[1].rename(data[1].with_name("3.bin"))
    cached({"window": 4}, [data[0], renamed], make)
    assert make.calls == 4
    assert len(list(folder.iterdir())) == 4


def test_an_interruption_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    def interrupted() -> BandPower:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached({}, [], interrupted)
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("damage", ["truncated", "flipped", "header", "empty"])
def test_a_damaged_entry_is_made_again(folder: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    make = Maker()
    cached({}, [], make)
    (entry,) = folder.iterdir()
    whole = bytearray(entry.read_bytes())
    if damage == "flipped":
        whole[len(whole) // 4] ^= 0xFF
    if damage == "header":
        whole[whole.rindex(b"PK\x01\x02") + 10] ^= 0x40
    entry.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b""}.get(damage, whole))
    data = cached({}, [], make)
    assert make.calls == 2
    assert "damaged" in caplog.text
    assert cached({}, [], make).sha256 == data.sha256
    assert make.calls == 2


def test_a_folder_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    assert len(cached({}, [], Maker())) == 8
    assert "band power is not cached" in caplog.text
    assert "XDG_CACHE_HOME" in caplog.text


def test_a_disk_that_is_full_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("os.replace", full)
    assert len(cached({}, [], Maker())) == 8
    assert "band power is not cached" in caplog.text


def test_the_folder_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "ngd_timm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "ngd_timm"
