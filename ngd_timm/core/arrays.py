"""Files of other people's arrays, opened without running anything: NPZ without pickle, torch files of tensors alone."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from ngd_timm.core.errors import InputError

# What numpy raises on a damaged file, or on one of pickled objects.
DAMAGE = (ValueError, EOFError, OSError, LookupError, MemoryError, AttributeError, TypeError, zlib.error, BadZipFile)


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an NPZ; one with pickled objects is refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        if strange := [key for key, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{strange[0]} is no array")
        return arrays
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path} can't be read as an NPZ of plain arrays ({reason}); write it again with numpy.savez, without "
            "objects"
        ) from None


def read_torch(path: str | Path) -> Any:
    """What `torch.save` wrote, on the CPU, if it is made of tensors, numbers, texts, lists and dicts."""
    if not Path(path).is_file():
        raise InputError(f"no file {path}; give one that torch.save wrote")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a damaged file
        strange = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = (
            f"it holds a {strange[1]}" if strange else f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        )
        raise InputError(
            f"{path} can't be read as a torch file of tensors alone ({reason}); nothing else is unpickled: save the "
            "tensors again, as torch.save(model.state_dict(), FILE)"
        ) from None
