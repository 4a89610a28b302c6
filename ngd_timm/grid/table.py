"""Grids that need not come from EEG: of the rows of a table (fMRI, MEG, text), or of distances between things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import sha256_file
from ngd_timm.core.table import read_table
from ngd_timm.core.version import __version__
from ngd_timm.grid.mantel import mantel_notes
from ngd_timm.grid.prototypes import PrototypeGrid

_RATINGS = ("valence", "arousal")


def grid_of_table(
    path: str | Path, size: int = 5, min_subjects: int = 1, center: bool = False, permutations: int = 2000
) -> PrototypeGrid:
    """The grid of a CSV (UTF-8, with commas) of embeddings, with Mantel's tests in its metadata.

    Columns: `valence` and `arousal` in [-1, 1], `subject` if there are several (they weigh equally, and ratings are
    permuted within one); every other column is a feature, a number in each row.

    Raises:
        InputError: A column that is lacking, or the row and column of a value that doesn't fit.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "words.csv"
        >>> _ = path.write_text("valence,arousal,f1,f2\\n-0.8,0.6,1,0\\n0.9,0.5,0,1\\n0.1,-0.7,1,1\\n")
        >>> grid = grid_of_table(path, size=3)
        >>> grid.filled, grid.dim, grid.metadata["dataset"]
        (3, 2, 'own embeddings (words)')
    """
    path = Path(path)
    features, va, subjects = _read_table(path)
    who = np.zeros(len(va), dtype=np.int64) if subjects is None else subjects
    notes = {
        "dataset": f"own embeddings ({path.stem})",
        "source": "table",
        "provenance": f"{path.name}: {features.shape[0]} rows of {features.shape[1]} features",
        "source_sha256": sha256_file(path),
        "built_with": f"ngd_timm {__version__}",
    }
    if subjects is not None:
        notes["subjects"] = str(len(np.unique(subjects)))
    build = partial(PrototypeGrid.build, features, va, subjects, size, min_subjects, center)
    if build().filled >= 3 and np.unique(who, return_counts=True)[1].max() > 1:
        notes |= mantel_notes(features, va, who, np.arange(len(va)), size, permutations, min_subjects=min_subjects)
    return build(notes)


def _read_table(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Features (N, D), ratings (N, 2) and subjects (N,), if they are named."""
    columns, rows = read_table(path)
    features = [name for name in columns if name not in (*_RATINGS, "subject")]
    missing: list[str] = [name for name in _RATINGS if name not in columns]
    if not features:
        missing.append("a feature")
    if missing or not rows:
        raise InputError(
            f"{path}: lacks {', '.join(missing) or 'rows'}; a table of embeddings has the columns valence, arousal, "
            f"perhaps subject, then the features (got {', '.join(columns)[:200] or 'nothing'})"
        )
    va = _numbers(rows, _RATINGS)
    for (where, row), rating in zip(rows.items(), va.tolist(), strict=True):
        if max(map(abs, rating)) > 1:
            raise InputError(
                f"{where}: valence and arousal must lie in [-1, 1], got {rating}; map a scale of 1 to 9 by (r - 5) / 4"
            )
        if row.get("subject") == "":
            raise InputError(f"{where}: subject is empty; name it in every row, or leave the column out")
    subjects = np.array([row["subject"] for row in rows.values()]) if "subject" in columns else None
    return _numbers(rows, features), va, subjects


def _numbers(rows: Mapping[str, Mapping[str, str]], columns: Sequence[str]) -> np.ndarray:
    """Some columns of a table, (N, K) float64."""
    out = np.empty((len(rows), len(columns)))
    for at, (where, row) in zip(out, rows.items(), strict=True):
        for place, column in enumerate(columns):
            try:
                at[place] = float(row[column])
            except ValueError:
                at[place] = np.nan
            if not np.isfinite(at[place]):
                raise InputError(f"{where}: {column} must be a finite number, got '{row[column][:40]}'")
    return out


def classical_scaling(distances: np.ndarray) -> tuple[np.ndarray, float]:
    """Points (N, D) whose Euclidean distances are nearest to a matrix (N, N), and the share that no points can show.

    The share is that of negative eigenvalues in the sum of all by amount: 0 where the distances are Euclidean.

    Raises:
        InputError: A matrix that isn't of distances: square, symmetric, from 0, with 0 on the diagonal.

    Examples:
        >>> points, share = classical_scaling(np.array([[0.0, 3, 4], [3, 0, 5], [4, 5, 0]]))
        >>> points.shape, round(float(np.linalg.norm(points[1] - points[2])), 6), round(share, 6) + 0.0
        ((3, 2), 5.0, 0.0)

    Reference:
        Torgerson, "Multidimensional scaling: I. Theory and method", Psychometrika 17 (1952).
    """
    matrix = np.asarray(distances, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
        raise InputError(f"distances must be a finite square matrix, got {matrix.shape}")
    if not np.allclose(matrix, matrix.T) or np.diagonal(matrix).any() or (matrix < 0).any() or not matrix.any():
        raise InputError(
            "distances must be symmetric, 0 on the diagonal and not below 0 (and not all 0); of similarities s in "
            "[0, 1] take 1 - s"
        )
    squares = matrix**2
    gram = -0.5 * (squares - squares.mean(axis=0) - squares.mean(axis=1, keepdims=True) + squares.mean())
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-9 * values.max()
    points = (vectors[:, kept] * np.sqrt(values[kept]))[:, ::-1]
    return np.ascontiguousarray(points), float(-values[values < 0].sum() / np.abs(values).sum())
