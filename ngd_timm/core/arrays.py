"""Files of other people's arrays, opened without running anything: NPZ without pickle, torch files of tensors alone."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ngd_timm.core.errors import InputError, one_line
from ngd_timm.core.files import require_regular

LARGEST_UNPACKED = 1 << 30
"""Bytes that a compressed file may unpack to; of one that isn't compressed, its own size."""


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an NPZ; one with pickled objects, or that declares more than it holds, is refused."""
    try:
        require_regular(path)
        with zipfile.ZipFile(path) as archive:
            if large := _unpacks_to(path, archive):
                raise ValueError(large)
            for entry in archive.infolist():
                _check_header(archive, entry)
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        if strange := [key for key, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{strange[0]} is no array")
        return arrays
    except Exception as error:  # numpy, zipfile, zlib and tokenize have no common type of error
        reason = one_line(getattr(error, "strerror", None) or error)
        raise InputError(
            f"{path} can't be read as an NPZ of plain arrays ({reason}); write it again with numpy.savez, without "
            "objects"
        ) from None


def _unpacks_to(path: str | Path, archive: zipfile.ZipFile) -> str:
    """What is wrong with the size of what an archive holds, if anything."""
    size = sum(entry.file_size for entry in archive.infolist())
    if size <= max(LARGEST_UNPACKED, Path(path).stat().st_size):
        return ""
    return (
        f"it unpacks to {size / 2**30:.3g} GiB; more than {LARGEST_UNPACKED / 2**30:.3g}, "
        "ngd_timm.core.arrays.LARGEST_UNPACKED, is read only where it isn't compressed"
    )


def _check_header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Compare the bytes that an array declares with those in its entry, before numpy makes room for them."""
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        declared = math.prod(shape) * dtype.itemsize
        if not dtype.hasobject and (min(shape, default=0) < 0 or declared != entry.file_size - file.tell()):
            raise ValueError(f"{entry.filename} declares {shape} of {dtype}, but holds {entry.file_size} bytes")


def read_torch(path: str | Path) -> Any:
    """What `torch.save` wrote, on the CPU, if it is made of tensors, numbers, texts, lists and dicts."""
    if not Path(path).is_file():
        raise InputError(f"no file {path}; give one that torch.save wrote")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if large := _unpacks_to(path, archive):
                    raise ValueError(large)
        content = torch.load(path, map_location="cpu", weights_only=True)
        for tensor in _tensors(content):
            if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
                raise ValueError(f"a tensor {tuple(tensor.shape)} that the file does not hold in full")
        return content
    except Exception as error:  # torch raises a dozen kinds for a damaged file
        strange = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it holds a {strange[1]}" if strange else f"{type(error).__name__}: {one_line(error)}"
        raise InputError(
            f"{path} can't be read as a torch file of tensors alone ({reason}); nothing else is unpickled: save the "
            "tensors again, as torch.save(model.state_dict(), FILE)"
        ) from None


def _tensors(content: Any) -> Iterator[torch.Tensor]:
    """Every tensor within dicts, lists and tuples."""
    waiting, seen = [content], set[int]()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:  # a list may hold itself
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
