"""MAT files: the same values as SciPy reads, refusals that name what is wrong, and no more memory than asked for."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st

from ngd_timm.core.errors import InputError
from ngd_timm.eeg.readers.mat5 import MatArray, open_mat

HEADER = b"MATLAB 5.0 MAT-file, by hand".ljust(116) + bytes(8) + b"\x00\x01IM"


def load(path: Path) -> dict[str, np.ndarray]:
    with open_mat(path) as variables:
        return {variable.name: variable.value() for variable in variables}


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def small(kind: int, data: bytes) -> bytes:
    return struct.pack("<HH", kind, len(data)) + data.ljust(4, b"\0")


def matrix(cls: int, shape: tuple[int, ...], *body: bytes, name: bytes = b"", flags: int = 0) -> bytes:
    parts = element(6, struct.pack("<BBHI", cls, flags, 0, 0)) + element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, parts + (small(1, name) if 0 < len(name) <= 4 else element(1, name)) + b"".join(body))


def write(path: Path, *variables: bytes, compress: bool = False) -> Path:
    def packed(data: bytes) -> bytes:
        inflated = zlib.compress(data)
        return struct.pack("<II", 15, len(inflated)) + inflated

    path.write_bytes(HEADER + b"".join(packed(v) if compress else v for v in variables))
    return path


def assert_same(ours: Any, theirs: Any) -> None:
    assert ours.shape == theirs.shape
    if theirs.dtype.names:
        assert ours.dtype.names == theirs.dtype.names
        for name in theirs.dtype.names:
            assert_same(ours[name], theirs[name])
    elif theirs.dtype == object:
        for a, b in zip(ours.ravel(), theirs.ravel(), strict=True):
            assert_same(a, b)
    else:
        assert ours.dtype.kind == theirs.dtype.kind
        np.testing.assert_array_equal(ours, theirs)


NUMBERS = st.builds(
    lambda shape, dtype, seed: (np.random.default_rng(seed).normal(0, 50, shape) ** 2 % 100).astype(dtype),
    st.lists(st.integers(0, 3), min_size=2, max_size=3),
    st.sampled_from(["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "c16", "c8"]),
    st.integers(0, 9),
)
TEXT = st.text(st.sampled_from("aZ9 é°ß"), min_size=1, max_size=9).map(np.array)
NAMES = st.text(st.sampled_from("abcxyzAB"), min_size=1, max_size=9)


def cells(items: list[Any]) -> np.ndarray:
    out = np.empty((1, len(items)), dtype=object)
    for i, item in enumerate(items):
        out[0, i] = item
    return out


VALUES = st.recursive(
    NUMBERS | TEXT,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(cells) | st.dictionaries(NAMES, inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(value=VALUES, other=NUMBERS, compress=st.booleans())
def test_any_nesting_reads_as_scipy_reads_it(
    tmp_path_factory: pytest.TempPathFactory, value: Any, other: np.ndarray, compress: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "nested.mat"
    scipy.io.savemat(path, {"value": value, "other": other}, do_compression=compress)
    theirs = scipy.io.loadmat(path)
    ours = load(path)
    assert list(ours) == ["value", "other"]
    for name in ours:
        assert_same(ours[name], theirs[name])


@pytest.mark.parametrize("compress", [False, True])
def test_arrays_of_structs_and_small_stores_read_as_scipy_reads_them(tmp_path: Path, compress: bool) -> None:
    doubles_as_bytes = matrix(6, (2, 2), small(2, b"\1\2\3\xff"), name=b"tiny")
    doubles_as_shorts = matrix(6, (1, 3), element(3, struct.pack("<3h", -5, 300, 7)), name=b"shorts")
    names = small(5, struct.pack("<i", 2)) + element(1, b"a\0b\0")
    members = [matrix(6, (1, 1), small(2, bytes([i]))) for i in range(4)]
    structs = matrix(2, (1, 2), names, *members, name=b"many")
    text = matrix(4, (2, 3), element(4, "adbecf".encode("utf-16-le")), name=b"rows")
    blank = matrix(1, (1, 1), struct.pack("<II", 14, 0), name=b"void")
    path = write(tmp_path / "a.mat", doubles_as_bytes, doubles_as_shorts, structs, text, blank, compress=compress)
    ours, theirs = load(path), scipy.io.loadmat(path, mat_dtype=True)
    assert ours.pop("void")[0, 0].size == 0
    for name in ours:
        assert_same(ours[name], theirs[name])
    assert ours["shorts"].dtype == np.float64
    assert ours["tiny"].tolist() == [[1, 3], [2, 255]]
    assert ours["rows"].tolist() == ["abc", "def"]
    assert [int(item["b"].item()) for item in ours["many"].ravel()] == [1, 3]


def test_logical_arrays_become_bool(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"a": np.array([[True, False]])})
    assert load(tmp_path / "a.mat")["a"].tolist() == [[True, False]]
    assert load(tmp_path / "a.mat")["a"].dtype == bool


def test_text_beyond_the_basic_plane_is_one_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mat", matrix(4, (1, 3), element(17, "a😀".encode("utf-16-le"))))
    assert load(path)[""].tolist() == ["a😀"]


@pytest.mark.parametrize("compress", [False, True])
def test_members_that_are_not_read_are_passed_over(tmp_path: Path, compress: bool) -> None:
    value = {"big": np.zeros((1000, 100)), "inner": {"x": 1.0, "y": cells([np.arange(9), "text"])}, "last": "found"}
    scipy.io.savemat(tmp_path / "a.mat", {"s": value, "after": 3.0}, do_compression=compress)
    with open_mat(tmp_path / "a.mat") as variables:
        database = next(variables)
        kinds = {}
        for name, member in database.members():
            kinds[name] = (member.kind, member.shape)
            if name == "inner":
                next(member.members())  # left half way
            if name == "last":
                assert member.text() == "found"
        assert kinds == {"big": ("numeric", (1000, 100)), "inner": ("struct", (1, 1)), "last": ("char", (1, 5))}
        assert next(variables).number() == 3.0


def test_an_array_that_has_gone_by_says_so(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"a": np.arange(4.0), "b": 1.0})
    with open_mat(tmp_path / "a.mat") as variables:
        first, _ = next(variables), next(variables)
        with pytest.raises(ValueError, match="read once, in order"):
            first.value()


@pytest.mark.parametrize("compress", [False, True])
def test_passing_over_a_large_member_takes_little_memory(tmp_path: Path, compress: bool) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"s": {"big": np.zeros(4_000_000), "rate": 128.0}}, do_compression=compress)
    tracemalloc.start()
    with open_mat(tmp_path / "a.mat") as variables:
        rate = [member.number() for name, member in next(variables).members() if name == "rate"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rate == [128.0]
    assert peak < 2_000_000  # of 32 MB


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + bytes(384), r"7\.3 \(HDF5\)"),
        (b"\x89HDF\r\n\x1a\n" + bytes(500), r"7\.3 \(HDF5\)"),
        (struct.pack("<5i", 0, 2, 2, 0, 2) + bytes(200), "level 4"),
        (HEADER[:124] + b"\x01\x00MI", "big-endian"),
        (HEADER[:124] + b"\x00\x03IM", "version 0x0300"),
        (b"subject,trial\n1,1\n" * 20, "not a MATLAB level 5"),
        (b"MATLAB 5", "not a MATLAB level 5"),
        (b"", "not a MATLAB level 5"),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path: Path, head: bytes, message: str) -> None:
    (tmp_path / "a.mat").write_bytes(head)
    with pytest.raises(InputError, match=rf"a\.mat: .*{message}"):
        load(tmp_path / "a.mat")


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.mat: can't be read"):
        load(tmp_path / "a.mat")


@pytest.mark.parametrize("compress", [False, True])
def test_a_file_cut_anywhere_is_an_input_error(tmp_path: Path, compress: bool) -> None:
    value = {"a": np.arange(20.0), "b": cells(["text", np.eye(2)])}
    scipy.io.savemat(tmp_path / "whole.mat", {"v": value}, do_compression=compress)
    whole = (tmp_path / "whole.mat").read_bytes()
    for size in range(129, len(whole), 7):
        (tmp_path / "cut.mat").write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cut\.mat: damaged MAT file"):
            load(tmp_path / "cut.mat")


def refusal(path: Path) -> str | None:
    try:
        load(path)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("compress", [False, True])
def test_flipped_bytes_give_an_input_error_or_other_values_and_never_a_crash(tmp_path: Path, compress: bool) -> None:
    value = {"a": np.arange(20.0), "b": cells(["text", np.eye(2)]), "c": {"d": np.int8(1)}}
    scipy.io.savemat(tmp_path / "whole.mat", {"v": value}, do_compression=compress)
    whole = (tmp_path / "whole.mat").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        broken = bytearray(whole)
        broken[int(rng.integers(128, len(whole)))] = int(rng.integers(256))
        (tmp_path / "broken.mat").write_bytes(broken)
        message = refusal(tmp_path / "broken.mat")
        assert message is None or "broken.mat: " in message
        refused += message is not None
    assert refused > (380 if compress else 100)  # checksums see what tags don't


def test_claims_larger_than_the_file_are_refused_without_memory(tmp_path: Path) -> None:
    number = matrix(6, (1, 1), small(2, b"\1"))
    huge = 2**31 - 1
    flags = element(6, struct.pack("<BBHI", 6, 0, 0, 0))
    claims = {
        "data": element(
            14, flags + element(5, struct.pack("<2i", 1, huge)) + element(1, b"") + b"\x09\0\0\0\xf8\xff\xff\xff"
        ),
        "shape": matrix(6, (huge, huge), small(2, b"\1")),
        "cells": matrix(1, (huge, huge), number),
        "structs": matrix(2, (30_000, 30_000), small(5, struct.pack("<i", 1)), element(1, b"")),
        "empty": matrix(4, (huge, huge, 0), element(4, b"")),
        "negative": matrix(6, (-1, 4), small(2, b"\1")),
    }
    for name, claim in claims.items():
        for compress in (False, True):
            path = write(tmp_path / f"{name}.mat", claim, compress=compress)
            tracemalloc.start()
            with pytest.raises(InputError, match=f"{name}.mat: damaged MAT file"):
                load(path)
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
            tracemalloc.stop()


def test_a_checksum_that_does_not_match_is_refused(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"a": np.arange(9.0)}, do_compression=True)
    whole = bytearray((tmp_path / "a.mat").read_bytes())
    whole[-1] ^= 1
    (tmp_path / "a.mat").write_bytes(whole)
    with pytest.raises(InputError, match="incorrect data check"):
        load(tmp_path / "a.mat")


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    value = matrix(6, (1, 1), small(2, b"\1"))
    for _ in range(500):
        value = matrix(1, (1, 1), value)
    with pytest.raises(InputError, match="nested deeper than"):
        load(write(tmp_path / "a.mat", value))


def test_kinds_that_are_not_read_can_be_passed_over_and_are_named(tmp_path: Path) -> None:
    import scipy.sparse

    scipy.io.savemat(tmp_path / "a.mat", {"odd": scipy.sparse.eye_array(3, format="csc"), "good": 1.0})
    with open_mat(tmp_path / "a.mat") as variables:
        odd: MatArray = next(variables)
        assert odd.kind == "sparse array"
        with pytest.raises(InputError, match="holds a sparse array"):
            odd.value()
        assert next(variables).number() == 1.0


def test_asking_for_another_kind_than_is_there_is_refused(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"a": np.arange(2.0)})
    for ask in (MatArray.text, MatArray.number, lambda array: next(array.members())):
        with open_mat(tmp_path / "a.mat") as variables, pytest.raises(InputError, match="was expected, not"):
            ask(next(variables))
