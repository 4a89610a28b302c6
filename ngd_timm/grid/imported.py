"""A grid from a file of somebody else's: the arrays of an NPZ, or the tensors of a torch file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ngd_timm.core.affect import centers
from ngd_timm.core.arrays import TORCH_SUFFIXES, read_npz, read_torch
from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.files import sha256_file
from ngd_timm.grid.averages import checked_size, fill_empty
from ngd_timm.grid.prototypes import PrototypeGrid

ORDERS = ("valence-major", "arousal-major")
_PROTOTYPES, _COUNTS, _ORDER = ("prototypes", "prototype", "protos", "proto"), ("counts", "count"), "order"


def import_grid(
    path: str | Path, prototypes: str | None = None, counts: str | None = None, order: str | None = None
) -> PrototypeGrid:
    """Read a grid from an NPZ, or a torch file of tensors, (S*S, D) or (S, S, D), with what was assumed as metadata.

    Index 0 is the lowest valence or arousal on both axes. Rows are brought to unit length. A row of zeros needs a count
    of 0 and is filled from its nearest cells.

    Args:
        path: The file; of its path only the name is kept, with its sha256.
        prototypes: The array's name, where it is none of prototypes, prototype, protos, proto.
        counts: Embeddings averaged a cell, where it is neither counts nor count; without any all are 0, for unknown.
        order: "valence-major": row k = i_valence * S + i_arousal, as here, and the first axis of (S, S, D) is valence.
            "arousal-major": the other way round. Needed unless the file says so in an entry `order`.

    Raises:
        InputError: An array that is missing or doesn't fit, no order, objects in the file, a row without direction.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "prototypes_5x5.npz"
        >>> np.savez(path, prototypes=np.random.default_rng(0).normal(size=(5, 5, 64)))
        >>> import_grid(path, order="valence-major").metadata["counts"]
        'not in the file; 0 stands for unknown'
    """
    path = Path(path)
    arrays = _read(path)
    key = _key(path, arrays, prototypes, _PROTOTYPES, "--prototypes")
    if key is None:
        raise InputError(f"{path} has none of {', '.join(_PROTOTYPES)}; it has {_held(arrays)}: give --prototypes NAME")
    counts_key = _key(path, arrays, counts, _COUNTS, "--counts")
    said, order = order, _order(path, arrays, order)
    rows, size = _rows(path, key, arrays[key])
    numbers = np.zeros(len(rows), dtype=np.int64)
    if counts_key is not None:
        numbers = _counts(path, counts_key, arrays[counts_key], size)
    lengths = np.linalg.norm(rows, axis=1)
    empty = lengths < 1e-9
    if (strange := empty & ((numbers > 0) | (counts_key is None))).any():
        raise InputError(
            f"{path}: row {int(strange.argmax())} of '{key}' is zero; that is an empty cell, which needs a count of 0"
        )
    rows = rows / np.where(empty, 1, lengths)[:, None]
    if order == "arousal-major":
        rows, numbers, empty = (_transposed(values, size) for values in (rows, numbers, empty))
    filled = fill_empty(rows, ~empty, size)
    unread = [name for name in arrays if name not in (key, counts_key, _ORDER)]
    notes = {
        "provenance": f"imported from {path.name}",
        "source_sha256": sha256_file(path),
        "prototypes": f"{key}, {'x'.join(map(str, arrays[key].shape))}, lengths {lengths.min():.4g} to "
        f"{lengths.max():.4g} before they were made 1",
        "counts": f"from {counts_key}" if counts_key else "not in the file; 0 stands for unknown",
        "order": f"{order}, {'as the file says' if said is None else 'as given by hand'}; assumed: both axes ascend",
        "empty_cells": f"{int(empty.sum())} filled from their nearest",
        "not_read": ", ".join(unread)[:400] or "nothing",
    }
    return PrototypeGrid(
        torch.from_numpy(filled.astype(np.float32)),
        torch.from_numpy(numbers),
        torch.from_numpy(centers(size)),
        size,
        notes,
    )


def _read(path: Path) -> Mapping[str, np.ndarray]:
    if path.suffix.lower() not in (".npz", *TORCH_SUFFIXES):
        raise choices("kind of file", path.name, (".npz", *TORCH_SUFFIXES))
    if path.suffix.lower() == ".npz":
        return read_npz(path)
    content = read_torch(path)
    if isinstance(content, torch.Tensor):
        content = {_PROTOTYPES[0]: content}
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; a dict of tensors, or one tensor, was expected")
    return {str(key): _array(value) for key, value in content.items()}


def _array(value: object) -> np.ndarray:
    """A tensor, number or text as an array; of anything else only what it is."""
    if isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_quantized:
        value = value.detach()
        return (value.float() if value.is_floating_point() else value).numpy()
    return np.array(value if isinstance(value, (int, float, str)) else type(value).__name__)


def _held(arrays: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{key} {a.dtype} {a.shape}" for key, a in arrays.items())[:400] or "nothing"


def _key(
    path: Path, arrays: Mapping[str, np.ndarray], given: str | None, names: Sequence[str], option: str
) -> str | None:
    """The name of an array: the one that is given, else the usual one that is there."""
    if given is not None and given not in arrays:
        raise InputError(f"{path} has no '{given}'; it has {_held(arrays)}: correct {option}")
    found = [name for name in names if name in arrays]
    if given is None and len(found) > 1:
        raise InputError(f"{path} has {', '.join(found)}; say which is meant with {option} NAME")
    return given or next(iter(found), None)


def _order(path: Path, arrays: Mapping[str, np.ndarray], given: str | None) -> str:
    if given is not None and given not in ORDERS:
        raise choices("order", given, ORDERS)
    own = str(arrays[_ORDER]) if _ORDER in arrays else None
    if own is None and given is None:
        raise InputError(
            f"{path} does not say how its cells are ordered; ask its author, then give --order {ORDERS[0]} (row = "
            f"i_valence * S + i_arousal) or --order {ORDERS[1]} (row = i_arousal * S + i_valence)"
        )
    if own is not None and (own not in ORDERS or given not in (None, own)):
        raise InputError(f"{path} says order '{own[:80]}'; it must be one of {', '.join(ORDERS)}, and --order the same")
    return own or str(given)


def _rows(path: Path, key: str, array: np.ndarray) -> tuple[np.ndarray, int]:
    """(S*S, D) float64 and S."""
    cells = array.shape[:-1]
    size = math.isqrt(math.prod(cells))
    if array.dtype.kind != "f" or cells not in ((size * size,), (size, size)) or not array.size:
        raise InputError(f"{path}: '{key}' must be floats of (S*S, D) or (S, S, D), got {array.dtype} of {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{path}: '{key}' is not all finite")
    return array.astype(np.float64).reshape(-1, array.shape[-1]), checked_size(size)


def _counts(path: Path, key: str, array: np.ndarray, size: int) -> np.ndarray:
    fits = array.dtype.kind in "iuf" and array.shape in ((size * size,), (size, size))
    if not fits or not ((array >= 0) & (array == np.floor(array)) & (array < 2**53)).all():
        raise InputError(
            f"{path}: '{key}' must be whole numbers from 0 on, ({size * size},) or ({size}, {size}), got "
            f"{array.dtype} of {array.shape}"
        )
    return array.astype(np.int64).ravel()


def _transposed(values: np.ndarray, size: int) -> np.ndarray:
    """Cells of an arousal-major grid in valence-major order."""
    return values.reshape(size, size, -1).swapaxes(0, 1).reshape(values.shape)
