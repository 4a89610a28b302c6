"""Atomic writes, hashes, JSON, and the folders that are packaged."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ngd_timm.core.errors import InputError, one_line

try:
    import fcntl
except ImportError:  # Windows, where a killed process's temporary files stay
    fcntl = None  # type: ignore[assignment]

_LARGEST_JSON = 16 << 20
_RANDOM = "[a-z0-9_]{8}"
"""What `tempfile` ends its names with."""
_NOTES = (".DS_Store", "Thumbs.db", "desktop.ini")
"""What file managers keep of a folder in it."""
_FILES = "files"
"""The temporary name of several files at once."""
_UNLOCKED = 0.1
"""Seconds: for longer no living writer leaves what it has made without its lock."""


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; it takes the name `path` when the block ends well, and is removed if not."""
    path = Path(path)
    with write_refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        try:
            os.close(descriptor)
            with _held(Path(name)):
                yield Path(name)
                _settle(Path(name))
                os.replace(name, path)
        finally:
            _discard(Path(name))
        _remove_abandoned(path.parent, path.name, path.suffix)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """As `atomic_path`, for a folder; an earlier folder of that name is replaced only once the new one is complete."""
    path = Path(path)
    with write_refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary_folder(path.parent, path.name) as temporary:
            yield temporary
            for file in (*(file for file in temporary.rglob("*") if file.is_file()), temporary):
                _settle(file)
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
                try:
                    os.replace(path, old / path.name)
                    os.replace(temporary, path)
                finally:
                    if not path.exists():  # a signal came between the two
                        os.replace(old / path.name, path)
                    _discard(old)
            else:
                os.replace(temporary, path)
        _remove_abandoned(path.parent, path.name)


@contextlib.contextmanager
def atomic_files(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder within `folder`; its files move up if the block ends well, the newest last, or none."""
    folder = Path(folder)
    with write_refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _temporary_folder(folder, _FILES) as temporary:
            yield temporary
            files = sorted(temporary.iterdir(), key=lambda path: path.stat().st_mtime_ns)
            try:
                for path in files:
                    os.replace(path, folder / path.name)
            except BaseException:  # a signal's
                for path in files:
                    if not path.exists():
                        (folder / path.name).unlink()
                raise
        _remove_abandoned(folder, _FILES)


def check_place(path: str | Path) -> None:
    """Refuse a file that can't be written, before hours of work; nothing stays there."""
    absolute = Path(path).absolute()
    above = next(folder for folder in (*absolute.parents, absolute) if folder.exists())
    with write_refusals(Path(path)), tempfile.TemporaryFile(dir=above):
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def check_outputs(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """`check_place` of each file; one that is given twice, or is read, is refused."""
    taken = {os.path.realpath(path) for path in inputs}  # links in a circle are no error to it
    for path in outputs:
        check_place(path)
        if os.path.realpath(path) in taken:
            raise InputError(f"{path} is read, or written, already; give each file a name of its own")
        taken.add(os.path.realpath(path))


def require_new_folder(folder: Path, option: str) -> None:
    """Refuse a folder that holds something, or a file; the option is where another folder is given."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty; choose a new folder with {option} DIR")


@contextlib.contextmanager
def write_refusals(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write a path into an `InputError`; other errors pass."""
    try:
        yield
    except BrokenPipeError:  # of standard output, see `core.ending`
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else None
        if reason is None and (match := re.search(r"([^:]+) \(os error \d+\)", str(error))):
            reason = match[1].strip()  # safetensors
        if reason is None and re.search("PytorchStreamWriter|inline_container|iostream error", str(error)):
            reason = os.strerror(errno.ENOSPC)  # torch.save keeps the system's reason to itself
        if reason is None:
            raise
        raise InputError(f"{path} can't be written ({reason}); choose another place, or free some space") from None


@contextlib.contextmanager
def _temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new folder with a temporary name, held within the block and removed after it where it still is."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=parent))
    try:
        with _held(temporary):
            yield temporary
    finally:
        _discard(temporary)


@contextlib.contextmanager
def _held(temporary: Path) -> Iterator[None]:
    """Lock a temporary file or folder, so that other processes see that its writer lives."""
    descriptor = os.open(temporary, os.O_RDONLY) if fcntl else None
    try:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # not every file system has locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _remove_abandoned(folder: Path, name: str, suffix: str = "") -> None:
    """Remove what killed processes left when they wrote the same name, or several files at once."""
    pattern = re.compile(rf"\.({re.escape(name)}\.(old\.)?{_RANDOM}{re.escape(suffix)}|{_FILES}\.{_RANDOM})")
    for path in folder.iterdir() if fcntl else ():
        if pattern.fullmatch(path.name):
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if time.time() - os.fstat(descriptor).st_ctime > _UNLOCKED:
                        _remove(path)
                finally:
                    os.close(descriptor)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _discard(temporary: Path) -> None:
    """Remove a temporary file or folder, also when a signal comes meanwhile."""
    try:
        _remove(temporary)
    except BaseException:
        _remove(temporary)
        raise


def _settle(path: Path) -> None:
    """Give a temporary file or folder the usual permissions, and write a file to the disk."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
    if path.is_file():
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())


def is_leftover(path: Path) -> bool:
    """Whether a path has the temporary name of a killed write, or is what a file manager notes of a folder."""
    return path.name in _NOTES or re.fullmatch(rf"\..+\.{_RANDOM}(\.\w+)?", path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed writes from a folder, if it exists."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if is_leftover(path):
            _remove(path)


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, in order, without `is_by_product`."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not is_by_product(p.name))


def is_by_product(folder: str) -> bool:
    """Whether a folder is hidden, or made by macOS' archiver or a file server for itself."""
    return folder.startswith(".") or folder in ("__MACOSX", "@eaDir")


def files_with(folder: Path, suffixes: Collection[str], deep: bool = False) -> list[Path]:
    """The files of some suffixes in a folder, in order; hidden ones are left out."""
    return sorted(p for p in files_below(folder, deep) if p.suffix.lower() in suffixes and not p.name.startswith("."))


def files_below(folder: Path, deep: bool = True) -> Iterator[Path]:
    """Everything in a folder, and in the folders below it but for `is_by_product`, that is no folder.

    Links to folders are followed, each folder once.
    """
    seen = {os.path.realpath(folder)}

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} can't be read ({error.strerror}); change its permissions") from None

    for at, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = {os.path.realpath(Path(at, name)): name for name in sorted(folders) if deep and not is_by_product(name)}
        folders[:] = [name for place, name in real.items() if place not in seen]
        seen |= real.keys()
        yield from (Path(at, name) for name in names)


def require_regular(path: str | Path) -> None:
    """Raise OSError for what is no file on a disk: a device has no end, and a pipe waits for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def write_text(path: str | Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write JSON atomically, and refuse NaN (which is not JSON); with `indent=None` in the fewest bytes."""
    separators = (",", ":") if indent is None else None
    write_text(path, json.dumps(value, indent=indent, separators=separators, allow_nan=False) + "\n")


def read_json(path: str | Path, shown: str | None = None) -> dict[str, Any]:
    """A JSON object from a file; messages call its folder `shown` where that is given."""
    path = Path(path)
    name = str(path) if shown is None else f"{shown}: {path.name}"
    if not path.is_file():
        raise InputError(f"{name} is missing; restore it, or create it again")
    if path.stat().st_size > _LARGEST_JSON:
        raise InputError(f"{name} is larger than {_LARGEST_JSON >> 20} MB; ngd_timm writes none of that size")
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not valid JSON ({one_line(error)})") from None
    if not isinstance(value, dict):
        raise InputError(f"{name} must hold a JSON object, got {type(value).__name__}")
    return value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is no number of JSON")
    return value


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    require_regular(path)
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def packaged(kind: str) -> Path:
    """The folder of packaged `recipes` or `hub` files: in the package, or at the root of an editable checkout."""
    here = Path(__file__).resolve().parent.parent
    for folder in (here / kind, here.parent / kind):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the packaged folder '{kind}' is missing from {here}; reinstall ngd-timm")


def packaged_versions(pattern: re.Pattern[str], file: str) -> list[str]:
    """Folders of hub/ that hold `file` and whose names match, by the version number in the pattern's first group."""
    named = [(pattern.fullmatch(folder.name), folder) for folder in packaged("hub").iterdir()]
    found = [(int(match[1]), folder.name) for match, folder in named if match and (folder / file).is_file()]
    return [name for _, name in sorted(found)]
