"""A published list of images with a hash: which part of a data set is meant, and that it is the same part."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import sha256_file, write_text
from ngd_timm.data.layouts.csv_file import first_column, header_of, read_csv
from ngd_timm.data.layouts.rows import Rows

PATH_COLUMNS = (
    *("image_path", "path", "img", "file", "filepath", "filename"),
    *("pth", "file_path", "img_path", "image_name", "file_name", "image"),
)


def check_sha256(path: Path, expected: str | None, required: bool = False) -> None:
    """Compare a file with the hash given, or with `<file>.sha256` beside it (the form `sha256sum` writes)."""
    stored = path.with_name(f"{path.name}.sha256")
    found = sha256_file(path)
    if expected is None and stored.is_file():
        word = stored.read_text(encoding="utf-8", errors="replace").split()[:1]
        if not word or not re.fullmatch(r"[0-9a-fA-F]{64}", word[0]):
            raise InputError(f"{stored} does not begin with 64 hex digits, as sha256sum writes them")
        expected = word[0].lower()
    if expected is None and required:
        raise InputError(
            f"{path} has no hash to check it by; write it into {stored.name} (sha256sum's form), or give sha256=…; "
            f"this copy has {found}"
        )
    if expected is not None and found != expected:
        raise InputError(
            f"{path} has sha256 {found}, expected {expected}: it is not the file that was published; get that one, or "
            "correct the hash"
        )


def read_list(path: Path, expected: str | None) -> frozenset[str]:
    """The relative paths in a list: a line each, or the path column of a CSV."""
    if not path.is_file():
        raise InputError(f"no list of images at {path}; list=… is relative to the data set's root")
    check_sha256(path, expected, required=True)
    if path.suffix.lower() == ".csv":
        names = header_of(path)
        column = first_column(names, PATH_COLUMNS)
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
        raise InputError(f"{path} lists no image")
    if len(set(entries)) != len(entries):
        raise InputError(f"{path} lists {len(entries) - len(set(entries))} images twice")
    return frozenset(entries)


def entries(rows: Rows, mask: np.ndarray | None = None) -> list[str | None]:
    """What a list calls the rows (of a mask): their paths below the root, or their names within a file."""
    table = rows.table if mask is None else rows.table.filter(pa.array(mask))
    return [
        source if image["path"] is not None and image["bytes"] is None else name
        for image, name, source in zip(*(table[c].to_pylist() for c in ("image", "file_name", "source")), strict=True)
    ]


def on_list(rows: Rows, listed: frozenset[str]) -> np.ndarray:
    """(N,) bool: whether a row's image is listed."""
    return np.array([name in listed for name in entries(rows)], dtype=bool)


def write_list(path: str | Path, entries: Iterable[str], header: Iterable[str] = ()) -> str:
    """Write a list of images and, beside it, its hash; publish both, and none of the images.

    `entries` are paths relative to the data set's root; the hash, which is returned, goes to `<path>.sha256`, as
    `sha256sum` writes it. Lines of `header` go before them behind a `#`.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "affectnet-mini.txt"
        >>> digest = write_list(path, ["val_set/images/7.jpg"])
        >>> sorted(read_list(path, digest))
        ['val_set/images/7.jpg']
    """
    path = Path(path)
    write_text(path, "".join(f"{line}\n" for line in [*(f"# {h}" for h in header), *sorted(set(entries))]))
    digest = sha256_file(path)
    write_text(path.with_name(f"{path.name}.sha256"), f"{digest}  {path.name}\n")
    return digest
