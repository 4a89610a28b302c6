"""A grid from a file of somebody else's: the arrays of an NPZ, or the tensors of a torch file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from ngd_timm.core.arrays import read_npz, read_torch
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import sha256_file
from ngd_timm.grid.averages import checked_size, fill_empty
from ngd_timm.grid.prototypes import PrototypeGrid

ORDERS = ("valence-major", "arousal-major")
_COUNTS = "counts"
_CENTERS = "centers"


def import_grid(
    path: str | Path, prototypes: str = "prototypes", counts: str = _COUNTS, order: str | None = None
) -> PrototypeGrid:
    """Read a grid from an NPZ or a torch file, and keep what was assumed as metadata.

    Index 0 of both axes is taken as the lowest; where the file has `centers`, (S*S, 2) or (S, S, 2), they must ascend
    so, and the metadata says which of their columns is then valence. Rows are brought to unit length; one of zeros, an
    empty cell, needs a count of 0 and is filled from its nearest cells.

    Args:
        path: The file; of its path only the name is kept, with its sha256.
        prototypes: The entry of (S*S, D) or (S, S, D).
        counts: The entry of (S*S,) or (S, S), embeddings averaged in a cell; without it all are 0, for unknown.
        order: "valence-major" (row k = i_valence * S + i_arousal, as here; the first axis of (S, S, D) is valence) or
            "arousal-major"; needed unless the file has it in an entry `order`.

    Raises:
        InputError: An entry that is missing or doesn't fit, no order, or objects in the file.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "prototypes_5x5.npz"
        >>> np.savez(path, prototypes=np.random.default_rng(0).normal(size=(5, 5, 64)))
        >>> import_grid(path, order="valence-major").metadata["counts"]
        'not in the file; 0 stands for unknown'
    """
    path = Path(path)
    arrays = read_npz(path) if path.suffix.lower() == ".npz" else _read_torch(path)
    for key, option in ((prototypes, "--prototypes"), (counts, "--counts")):
        if key not in arrays and (option, key) != ("--counts", _COUNTS):
            held = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())[:400]
            raise InputError(f"{path} has no '{key}'; it has {held or 'nothing'}: name the right one with {option} KEY")
    order, said = _order(path, arrays.get("order"), order)
    rows, number = _cells(path, arrays, prototypes, counts)
    size = len(rows)
    axes = _axes(path, arrays[_CENTERS], size, order) if _CENTERS in arrays else "assumed: both axes ascend"
    if order == ORDERS[1]:
        rows, number = rows.swapaxes(0, 1), number.T
    rows, number = rows.reshape(size * size, -1), number.reshape(-1)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    filled = lengths[:, 0] > 1e-9
    if not filled.any() or number[~filled].any() or not (filled.all() or counts in arrays):
        raise InputError(f"{path}: '{prototypes}' has rows of zeros; an empty cell needs a count of 0")
    shape = arrays[prototypes].shape
    rows = fill_empty(rows / np.where(lengths > 0, lengths, 1), filled, size)
    notes = {
        "provenance": f"imported from {path.name}, '{prototypes}' of {shape}; {axes}",
        "source_sha256": sha256_file(path),
        "lengths": f"{lengths.min():.4g} to {lengths.max():.4g}, made 1; {np.sum(~filled)} empty cells filled",
        "counts": f"from '{counts}'" if counts in arrays else "not in the file; 0 stands for unknown",
        "order": f"{order}, {said}",
        "not_read": ", ".join(name for name in arrays if name not in (prototypes, counts, "order", _CENTERS))[:400]
        or "nothing",
    }
    return PrototypeGrid._of_rows(rows, number, size, notes)


def _order(path: Path, entry: np.ndarray | None, given: str | None) -> tuple[str, str]:
    """The order of cells, and who says so."""
    own = None if entry is None else str(entry)[:80]
    order = given or own
    if order not in ORDERS or own not in (None, order):
        raise InputError(
            f"{path}: the order of cells is '{own or 'unknown'}' in the file and '{given or 'unknown'}' by --order; it "
            f"must be {ORDERS[0]} (row = i_valence * S + i_arousal) or {ORDERS[1]}: ask the file's author"
        )
    return order, "by hand" if own is None else "as the file says"


def _axes(path: Path, centers: np.ndarray, size: int, order: str) -> str:
    """What a file's centres of cells say of the axes: which column each follows; both must ascend."""
    if centers.dtype.kind in "fiu" and centers.shape in ((size * size, 2), (size, size, 2)):
        square = centers.reshape(size, size, 2).astype(np.float64)
        for first in (0, 1):
            along, across = square[..., first], square[..., 1 - first].T
            steps = np.stack([np.diff(along, axis=0), np.diff(across, axis=0)])
            if (steps > 0).all() and all(np.allclose(axis, axis[:, :1]) for axis in (along, across)):
                column = first if order == ORDERS[0] else 1 - first
                return f"its centers ascend along both axes, and their column {column} is taken as valence"
    raise InputError(
        f"{path}: '{_CENTERS}' must be numbers of ({size * size}, 2) or ({size}, {size}, 2) that ascend along both "
        "axes, as the cells here do; sort the file's cells, or leave the entry out"
    )


def _cells(path: Path, arrays: dict[str, np.ndarray], key: str, counts: str) -> tuple[np.ndarray, np.ndarray]:
    """Prototypes (S, S, D) and counts (S, S), in the file's order."""
    rows = arrays[key]
    size = math.isqrt(math.prod(rows.shape[:-1]))
    flat, square = (size * size,), (size, size)
    if rows.dtype.kind != "f" or rows.shape[:-1] not in (flat, square) or not np.isfinite(rows).all():
        raise InputError(
            f"{path}: '{key}' must be finite floats of (S*S, D) or (S, S, D), got {rows.dtype} {rows.shape}"
        )
    checked_size(size)
    number = arrays.get(counts, np.zeros(flat, dtype=np.int64))
    if number.dtype.kind not in "iuf" or number.shape not in (flat, square) or (number != abs(number) // 1).any():
        raise InputError(
            f"{path}: '{counts}' must be whole numbers from 0 on, {flat} or {square}, got {number.dtype} {number.shape}"
        )
    return rows.astype(np.float64).reshape(*square, -1), number.astype(np.int64).reshape(square)


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    """Tensors as floats; anything else as text, which is neither rows nor counts."""
    content = read_torch(path)
    entries = content.items() if isinstance(content, dict) else [("prototypes", content)]
    return {
        str(key): np.array(value.detach().float() if isinstance(value, torch.Tensor) else str(value)[:80])
        for key, value in entries
    }
