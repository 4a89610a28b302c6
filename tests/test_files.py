"""Files are whole or absent."""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path

import pytest

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import atomic_files, atomic_folder, atomic_path, check_place, write_json
from ngd_timm.evaluate.student import evaluate


def write_half_a_folder(path: Path) -> None:
    with atomic_folder(path) as temporary:
        (temporary / "half").write_text("2")
        raise KeyboardInterrupt


def write_three_files(folder: Path) -> None:
    with atomic_files(folder) as temporary:
        for name in "abc":
            (temporary / name).touch()


def test_files_whose_moves_are_interrupted_leave_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves = [os.replace, os.replace]

    def replace(source: Path, target: Path) -> None:
        if not moves:
            raise KeyboardInterrupt
        moves.pop()(source, target)

    monkeypatch.setattr("ngd_timm.core.files.os.replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_three_files(tmp_path)
    assert (moves, list(tmp_path.iterdir())) == ([], [])


def test_an_interrupted_folder_leaves_the_earlier_folder_and_a_finished_one_replaces_it_whole(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "student") as first:
        (first / "old").write_text("1")
    with pytest.raises(KeyboardInterrupt):
        write_half_a_folder(tmp_path / "student")
    assert [p.name for p in (tmp_path / "student").iterdir()] == ["old"]
    with atomic_folder(tmp_path / "student") as third:
        (third / "new").write_text("3")
    assert [p.name for p in (tmp_path / "student").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


def test_a_folder_whose_replacement_is_interrupted_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(text: str) -> None:
        with atomic_folder(tmp_path / "student") as folder:
            (folder / "weights").write_text(text)

    write("1")
    replace, calls = os.replace, iter(range(9))

    def replace_or_stop(source: Path, target: Path) -> None:
        if next(calls) == 1:  # the earlier folder is away, the new one not yet there
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("ngd_timm.core.files.os.replace", replace_or_stop)
    with pytest.raises(KeyboardInterrupt):
        write("2")
    monkeypatch.undo()
    assert (tmp_path / "student" / "weights").read_text() == "1"
    write("3")
    assert (tmp_path / "student" / "weights").read_text() == "3"
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions")
def test_a_folder_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with atomic_folder(tmp_path / "student") as folder:
            (folder / "weights").touch()
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("student", "student/weights")] == [0o700, 0o600]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows can't tell whether a writer lives")
def test_a_writer_removes_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    mine = [tmp_path / name for name in (".a.json.backup12", ".b.json.abcdefg1.json", ".a.json")]
    killed, killed_folder = tmp_path / ".a.json.abcdefg1.json", tmp_path / ".new.old.abcdefg1"
    for path in (*mine, killed):
        path.write_text("half")
    killed_folder.mkdir()
    (killed_folder / "half").write_text("half")
    with atomic_path(tmp_path / "a.json") as living:
        time.sleep(0.2)
        write_json(tmp_path / "a.json", {})
        assert living.exists()
        assert not killed.exists()
    with atomic_folder(tmp_path / "new"):
        pass
    assert sorted(tmp_path.iterdir()) == sorted([*mine, tmp_path / "a.json", tmp_path / "new"])


def test_json_without_a_value_for_nan_refuses_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["metrics", "new/er"])
def test_a_place_that_can_be_written_to_passes_and_stays_as_it_was(tmp_path: Path, folder: str) -> None:
    check_place(tmp_path / folder / "a.json")
    assert not list(tmp_path.iterdir())


def test_evaluate_checks_the_place_for_its_metrics_before_it_opens_anything(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="Not a directory"):
        evaluate(tmp_path / "no student", ["ferplus=nowhere"], tmp_path / "file" / "a.json")


def test_a_reader_that_goes_away_is_no_refusal_to_write(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipeError), atomic_folder(tmp_path / "out"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    assert list(tmp_path.iterdir()) == []
