"""MATLAB's level-5 MAT files, read as a stream: what isn't asked for is passed over, compressed or not.

`scipy.io.loadmat` builds a whole variable in memory; here a struct or cell array hands out its members one after the
other, and only those whose `value()` is asked for become arrays.
"""

from __future__ import annotations

import contextlib
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from ngd_timm.core.errors import InputError

__all__ = ["MatArray", "open_mat"]

_HEADER = 128  # bytes
_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
_NUMERIC = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_CELL, _STRUCT, _CHAR, _OPAQUE = 1, 2, 4, 17
_KINDS = {_CELL: "cell", _STRUCT: "struct", _CHAR: "char", **dict.fromkeys(_NUMERIC, "numeric")}
_OTHER = {3: "object", 5: "sparse array", 16: "function", _OPAQUE: "opaque object"}

_CHUNK = 1 << 16  # compressed bytes at a time
_BUFFER = 1 << 18  # inflated bytes at a time
_DEFLATE_RATIO = 1032  # deflate can't do better
_LARGEST = 1 << 40  # values in an array; also keeps empty ones within what numpy can describe
_DEPTH = 64  # nesting; deeper than any data, and short of Python's own limit


@contextlib.contextmanager
def open_mat(path: str | Path) -> Iterator[Iterator[MatArray]]:
    """Open a level-5 MAT file and iterate over its variables.

    A variable, and each member of it, can be read until the iterator moves on; then it is gone.

    Args:
        path: The file.

    Raises:
        InputError: Not such a file (level 4 and 7.3 are named), cut short, or damaged; names the file.

    Example:
        >>> import tempfile, scipy.io
        >>> path = Path(tempfile.mkdtemp()) / "a.mat"
        >>> scipy.io.savemat(path, {"a": {"noise": np.zeros(9), "rate": 128.0}}, do_compression=True)
        >>> with open_mat(path) as variables:
        ...     for variable in variables:
        ...         {name: member.value().item() for name, member in variable.members() if name == "rate"}
        {'rate': 128.0}
    """
    path = Path(path)
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or error})") from None
    with file:
        stream = _File(path, file)
        _check_header(stream)
        yield _variables(stream)


class MatArray:
    """One array of a MAT file, of which only the header has been read.

    Attributes:
        name: Of a variable; members have none of their own.
        kind: `numeric`, `char`, `struct`, `cell`, or what it is that isn't read here (`sparse array`, …).
        shape: MATLAB's dimensions, at least two.
        fields: Of a struct, in the file's order.
    """

    def __init__(self, stream: _Stream, limit: int, depth: int = 0) -> None:
        self._stream, self._depth = stream, depth
        kind, size, _ = _tag(stream, limit)
        if kind != _MATRIX:
            stream.fail(f"an array was expected, not data of type {kind}")
        self._end = stream.position + size
        if self._end > limit:
            stream.fail(f"an array claims {size} bytes where {limit - stream.position} are left")
        self.name, self.kind = "", "numeric"
        self.shape: tuple[int, ...] = (0, 0)
        self.fields: tuple[str, ...] = ()
        self._class, self._complex, self._logical = 6, False, False
        if size:  # an empty member may be a tag alone
            self._read_header()
        self._body = stream.position

    def members(self) -> Iterator[tuple[str, MatArray]]:
        """Members of a struct with their field's name, or of a cell array with ''; MATLAB's (column-major) order.

        A member that is left unread, or half read, is passed over.
        """
        if self.kind not in ("struct", "cell"):
            self._stream.refuse(f"a struct or cell array was expected, not {self.kind}")
        self._at_body()
        for _ in range(math.prod(self.shape)):
            for name in self.fields if self.kind == "struct" else ("",):
                member = MatArray(self._stream, self._end, self._depth + 1)
                yield name, member
                self._stream.to(member._end)

    def value(self) -> np.ndarray:
        """The whole array: numbers in their class's dtype, rows of text as str, members as objects. May be read-only.

        Raises:
            InputError: A kind that isn't read here, or contents at odds with the header.
        """
        if self.kind in ("struct", "cell"):
            return self._nested()
        if self.kind not in ("numeric", "char"):
            self._stream.refuse(f"holds a {self.kind}, which is not read")
        self._at_body()
        value = self._numbers() if self.kind == "numeric" else self._rows_of_text()
        self._stream.to(self._end)
        return value

    def text(self) -> str:
        """The one row of a char array, '' if empty."""
        if self.kind != "char":
            self._stream.refuse(f"text was expected, not {self.kind}")
        rows = self.value().ravel()
        if len(rows) > 1:
            self._stream.refuse(f"one row of text was expected, not {len(rows)}")
        return str(rows[0]) if len(rows) else ""

    def number(self) -> float:
        """The one value of a numeric array."""
        values = self.value()
        if self.kind != "numeric" or values.size != 1 or np.iscomplexobj(values):
            self._stream.refuse(f"one number was expected, not {self.kind} of shape {self.shape}")
        return float(values.item())

    def _read_header(self) -> None:
        stream = self._stream
        if self._depth > _DEPTH:
            stream.fail(f"arrays are nested deeper than {_DEPTH}")
        flags = _data(stream, self._end)[1]
        if len(flags) != 8:
            stream.fail("an array without flags")
        self._class, bits = flags[0], flags[1]
        self._complex, self._logical = bool(bits & 8), bool(bits & 2)
        self.kind = _KINDS.get(self._class) or _OTHER.get(self._class) or f"array of class {self._class}"
        if self._class == _OPAQUE:  # has neither dimensions nor, here, a name
            return
        kind, sizes = _data(stream, self._end)
        if kind != 5 or len(sizes) < 8 or len(sizes) % 4 or len(sizes) > 128:
            stream.fail("an array with unreadable dimensions")
        self.shape = tuple(np.frombuffer(sizes, "<i4").tolist())
        if min(self.shape) < 0 or math.prod(max(size, 1) for size in self.shape) > _LARGEST:
            stream.fail(f"an array of shape {self.shape}")
        self.name = _data(stream, self._end)[1].decode("latin-1")
        if self._class == _STRUCT:
            self.fields = self._field_names()
        if self._class in (_CELL, _STRUCT):
            self._check_count()

    def _field_names(self) -> tuple[str, ...]:
        stream = self._stream
        kind, width = _data(stream, self._end)
        _, names = _data(stream, self._end)
        length = int.from_bytes(width, "little", signed=True)
        if kind != 5 or len(width) != 4 or (names and (length < 1 or len(names) % length)):
            stream.fail("a struct with unreadable field names")
        parts = [names[i : i + length] for i in range(0, len(names), max(length, 1))]
        fields = tuple(part.split(b"\0")[0].decode("utf-8", "replace") for part in parts)
        if len(set(fields)) < len(fields):
            stream.fail("a struct with a field twice")
        return fields

    def _check_count(self) -> None:
        count, members = math.prod(self.shape), len(self.fields) if self.kind == "struct" else 1
        if count > 1 and count * max(members, 1) * 8 > self._end - self._stream.position:
            self._stream.fail(f"a {self.kind} array of shape {self.shape} in too few bytes")

    def _at_body(self) -> None:
        if self._stream.position != self._body:
            raise ValueError("this array has been read or passed over; a stream is read once, in order")

    def _numbers(self) -> np.ndarray:
        target = np.dtype(_NUMERIC[self._class])
        real = self._plane(target)
        if self._complex:
            out = np.empty(real.shape, np.result_type(real, np.complex64), order="F")
            out.real, out.imag = real, self._plane(target)
            return out
        return real.astype(bool) if self._logical else real

    def _plane(self, target: np.dtype) -> np.ndarray:
        count = math.prod(self.shape)
        if not count:
            return np.empty(self.shape, target, order="F")
        kind, raw = _data(self._stream, self._end)
        if kind not in _STORED:
            self._stream.fail(f"numbers stored as type {kind}")
        stored = np.dtype("<" + _STORED[kind])
        if len(raw) != count * stored.itemsize:
            self._stream.fail(f"an array of shape {self.shape} needs {count * stored.itemsize} bytes, has {len(raw)}")
        return np.frombuffer(raw, stored).astype(target, copy=False).reshape(self.shape, order="F")

    def _rows_of_text(self) -> np.ndarray:
        stream, count = self._stream, math.prod(self.shape)
        if not count:
            return np.empty(0, "U1")
        kind, raw = _data(stream, self._end)
        if kind not in _TEXT:
            stream.fail(f"text stored as type {kind}")
        try:
            text = bytes(raw).decode(_TEXT[kind])
        except UnicodeDecodeError:
            stream.fail(f"text that isn't {_TEXT[kind]}")
        units = len(text.encode("utf-16-le")) // 2  # MATLAB counts a pair of surrogates as two
        if count not in ((len(text), units) if count == self.shape[-1] else (len(text),)):
            stream.fail(f"text of shape {self.shape} with {len(text)} characters")
        if count == self.shape[-1]:
            return np.array([text]).reshape(self.shape[:-1])
        table = np.array(list(text)).reshape(self.shape, order="F")
        return np.array(["".join(row) for row in table.reshape(-1, self.shape[-1])]).reshape(self.shape[:-1])

    def _nested(self) -> np.ndarray:
        dtype: Any = [(name, object) for name in self.fields] if self.fields else object
        out = np.empty(math.prod(self.shape), dtype=dtype)
        per_item = len(self.fields) or 1
        for i, (name, member) in enumerate(self.members()):
            (out[name] if name else out)[i // per_item] = member.value()
        self._stream.to(self._end)
        return out.reshape(self.shape, order="F")


class _Stream:
    """Bytes in order, from a file or from what is inflated of it."""

    position = 0

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, what: str) -> NoReturn:
        """The file is at odds with itself."""
        raise InputError(f"{self.path}: damaged MAT file, {what}")

    def refuse(self, what: str) -> NoReturn:
        """The file is whole, and isn't what the caller takes it for."""
        raise InputError(f"{self.path}: {what}")

    def to(self, position: int) -> None:
        self.skip(position - self.position)

    def take(self, size: int) -> bytes | bytearray:
        raise NotImplementedError

    def skip(self, size: int) -> None:
        raise NotImplementedError


class _File(_Stream):
    def __init__(self, path: Path, file: BinaryIO) -> None:
        super().__init__(path)
        self.file = file
        self.size = file.seek(0, 2)
        file.seek(0)

    def take(self, size: int) -> bytes:
        data = self.file.read(max(0, min(size, self.size - self.position)))
        self.position += len(data)
        if len(data) < size:
            self.fail(f"ends after {self.size} bytes, in the middle of something")
        return data

    def skip(self, size: int) -> None:
        self.position += size
        self.file.seek(self.position)


class _Inflated(_Stream):
    """The contents of one compressed variable; never holds more than a buffer of it."""

    def __init__(self, file: _File, size: int) -> None:
        super().__init__(file.path)
        self._file, self._compressed = file, size
        self._inflate = zlib.decompressobj()
        self._buffer, self._at = memoryview(b""), 0

    @property
    def limit(self) -> int:
        """No more bytes than this can be in here."""
        return self.position + self._compressed * _DEFLATE_RATIO

    def take(self, size: int) -> bytearray:
        out = bytearray()  # grows with what is there, whatever size was claimed
        while len(out) < size:
            out += self._next(size - len(out))
        self.position += size
        return out

    def skip(self, size: int) -> None:
        left = size
        while left:
            left -= len(self._next(left))
        self.position += size

    def verify(self) -> None:
        """After the last array: zlib compares its checksum. What some writers leave behind it is no concern."""
        if not self._inflate.eof:
            self._fill()

    def _next(self, size: int) -> memoryview:
        if self._at == len(self._buffer) and not self._fill():
            self.fail("a compressed variable ends in the middle of something")
        piece = self._buffer[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def _fill(self) -> bool:
        data = b""
        try:
            while not data and not self._inflate.eof:
                source = self._inflate.unconsumed_tail
                if not source and self._compressed:
                    source = self._file.take(min(_CHUNK, self._compressed))
                    self._compressed -= len(source)
                data = self._inflate.decompress(source, _BUFFER)
                if not data and not source:
                    break
        except zlib.error as error:
            self.fail(f"compressed data don't inflate ({error})")
        self._buffer, self._at = memoryview(data), 0
        return bool(data)


def _variables(file: _File) -> Iterator[MatArray]:
    while file.position < file.size:
        start = file.position
        kind, size, _ = _tag(file, file.size)
        end = file.position + size
        if kind not in (_MATRIX, _COMPRESSED):
            file.fail(f"byte {start} starts no variable (type {kind})")
        if end > file.size:
            file.fail(f"cut short: a variable needs {size} bytes, the file has {file.size - file.position} left")
        if kind == _COMPRESSED:
            stream = _Inflated(file, size)
            array = MatArray(stream, stream.limit)
            yield array
            stream.to(array._end)
            stream.verify()
        else:
            file.to(start)
            array = MatArray(file, file.size)
            yield array
        file.to(end)


def _tag(stream: _Stream, limit: int) -> tuple[int, int, bytes | None]:
    """Type and size of an element; a small one carries its data in the tag."""
    if stream.position + 8 > limit:
        stream.fail("an element begins where none can")
    raw = stream.take(8)
    kind, size = struct.unpack("<II", raw)
    if kind >> 16:
        kind, size = kind & 0xFFFF, kind >> 16
        if size > 4:
            stream.fail(f"a small element of {size} bytes")
        return kind, size, bytes(raw[4 : 4 + size])
    return kind, size, None


def _data(stream: _Stream, limit: int) -> tuple[int, bytes | bytearray]:
    kind, size, small = _tag(stream, limit)
    if small is not None:
        return kind, small
    if stream.position + size > limit:
        stream.fail(f"an element claims {size} bytes where {limit - stream.position} are left")
    data = stream.take(size)
    stream.to(min(stream.position + -size % 8, limit))  # the last element's padding is sometimes left out
    return kind, data


def _check_header(file: _File) -> None:
    head = file.file.read(_HEADER)
    file.position = len(head)
    if head.startswith((b"\x89HDF\r\n\x1a\n", b"MATLAB 7.3")):
        raise InputError(f"{file.path}: a MATLAB 7.3 (HDF5) file; save it in MATLAB with '-v7'")
    if len(head) >= 4 and 0 in head[:4]:
        raise InputError(f"{file.path}: a MATLAB level 4 file or none at all; save it in MATLAB with '-v7'")
    if len(head) < _HEADER or head[126:] not in (b"IM", b"MI"):
        raise InputError(f"{file.path}: not a MATLAB level 5 file")
    if head[126:] == b"MI":
        raise InputError(f"{file.path}: written on a big-endian machine; save it again in MATLAB with '-v7'")
    version = int.from_bytes(head[124:126], "little")
    if version != 0x0100:
        raise InputError(f"{file.path}: MAT version {version:#06x}, and only 0x0100 (level 5) is read")
