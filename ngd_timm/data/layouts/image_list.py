"""A published list of pictures with a hash: which part of a data set is meant, and that it is the same part."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import sha256_file, write_text
from ngd_timm.data.layouts.csv_file import header_of, read_csv
from ngd_timm.data.layouts.rows import Rows

__all__ = ["PATH_COLUMNS", "check_sha256", "on_list", "read_list", "write_list"]

PATH_COLUMNS = ("image_path", "path", "img", "file", "filepath", "filename")


def check_sha256(path: Path, expected: str | None, required: bool = False) -> None:
    """Compare a file with the hash given, or with `<file>.sha256` beside it (the form `sha256sum` writes).

    Raises:
        InputError: Another hash, a damaged `.sha256`, or none at all where one is required.
    """
    beside = path.with_name(f"{path.name}.sha256")
    found = sha256_file(path)
    if expected is None and beside.is_file():
        word = beside.read_text(encoding="utf-8", errors="replace").split()[:1]
        if not word or not re.fullmatch(r"[0-9a-fA-F]{64}", word[0]):
            raise InputError(f"{beside} does not begin with 64 hex digits, as sha256sum writes them")
        expected = word[0].lower()
    if expected is None:
        if required:
            raise InputError(
                f"{path} has no hash to check it by; write it into {beside.name} (sha256sum's form), or give sha256=…; "
                f"this copy has {found}"
            )
        return
    if found != expected:
        raise InputError(
            f"{path} has sha256 {found}, expected {expected}: it is not the file that was published; get that one, or "
            "correct the hash"
        )


def read_list(path: Path, expected: str | None) -> frozenset[str]:
    """The relative paths in a list: a line each, or the path column of a CSV.

    Args:
        path: A `.txt` or `.csv`.
        expected: Its sha256; None takes the one in `<path>.sha256`.

    Raises:
        InputError: No list, no hash, another hash, or a path that stands twice.
    """
    if not path.is_file():
        raise InputError(f"no list of pictures at {path}; list=… is relative to the data set's root")
    check_sha256(path, expected, required=True)
    if path.suffix.lower() == ".csv":
        names = header_of(path)
        column = next((c for c in PATH_COLUMNS if c in names), None)
        if column is None:
            raise InputError(f"{path} has no path column ({', '.join(PATH_COLUMNS)}); it has: {', '.join(names)}")
        lines = read_csv(path)[column].to_pylist()
    else:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError:
            raise InputError(f"{path} is not UTF-8 text; a list has a relative path a line") from None
    entries = [PurePosixPath(line.replace("\\", "/")).as_posix() for line in lines if line and not line.startswith("#")]
    if not entries:
        raise InputError(f"{path} lists no picture")
    if len(set(entries)) != len(entries):
        raise InputError(f"{path} lists {len(entries) - len(set(entries))} pictures twice")
    return frozenset(entries)


def on_list(rows: Rows, listed: frozenset[str]) -> np.ndarray:
    """(N,) bool: whether a row's picture is listed, by its path below the root, or by its name within a file."""
    on_disk = [r["path"] is not None and r["bytes"] is None for r in rows.table["image"].to_pylist()]
    names, sources = rows.table["file_name"].to_pylist(), rows.table["source"].to_pylist()
    return np.array(
        [(s if disk else n) in listed for disk, n, s in zip(on_disk, names, sources, strict=True)], dtype=bool
    )


def write_list(path: str | Path, entries: Iterable[str]) -> str:
    """Write a list of pictures and, beside it, its hash; publish both and nothing of the pictures.

    Args:
        path: A `.txt`; the hash goes to `<path>.sha256`, as `sha256sum` writes it.
        entries: Paths relative to the data set's root.

    Returns:
        The hash.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "affectnet-mini.txt"
        >>> digest = write_list(path, ["val_set/images/7.jpg"])
        >>> sorted(read_list(path, digest))
        ['val_set/images/7.jpg']
    """
    path = Path(path)
    write_text(path, "".join(f"{entry}\n" for entry in sorted(set(entries))))
    digest = sha256_file(path)
    write_text(path.with_name(f"{path.name}.sha256"), f"{digest}  {path.name}\n")
    return digest
