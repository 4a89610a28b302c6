"""The frozen grid: a unit vector for each cell of the valence/arousal plane, built once from a teacher's embeddings."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ngd_timm.core.affect import anchors, cell_distances, cell_of, centers
from ngd_timm.core.errors import InputError, choices, one_line
from ngd_timm.core.files import atomic_path, packaged, packaged_versions
from ngd_timm.core.hub import Published, fetch, hub_id, upload
from ngd_timm.grid.averages import checked_rows, checked_size, fill_empty, pooled_sums, unit
from ngd_timm.grid.mantel import mantel_r
from ngd_timm.grid.metadata import FORMAT_VERSION, check_metadata

logger = logging.getLogger("ngd_timm.grid")

GRID_FILE = "grid.safetensors"
_TENSORS = {"prototypes": torch.float32, "counts": torch.int64, "centers": torch.float32}
_RESERVED = ("format_version", "sha256", "metadata_sha256")
_UNIT_TOLERANCE = 1e-4
_VERSION = re.compile(r"^[a-z0-9][a-z0-9_]*-v(\d+)$")


@dataclass(frozen=True, eq=False)
class PrototypeGrid:
    """Unit prototypes on an S x S grid over valence and arousal in [-1, 1]; cell k = i_valence * S + i_arousal.

    What a grid can tell a student is the Gram matrix of its rows, since a linear projection absorbs any rotation: look
    at `mean_cosine` (rows that crowd together say little) and at `mantel_r` (rows that ignore the plane say nothing).

    Args:
        prototypes: (S*S, D) float32, rows of unit length.
        counts: (S*S,) int64, embeddings averaged in each cell; 0 marks a cell filled from its nearest neighbours.
        centers: (S*S, 2) float32, (valence, arousal) of the cell centres.
        size: S, cells along an axis.
        metadata: Strings that say where the grid comes from.

    Raises:
        InputError: Shapes that don't fit `size`, values that aren't finite, rows that aren't of unit length.

    Examples:
        >>> grid = PrototypeGrid.random(dim=32, seed=1)
        >>> grid.prototypes.shape, round(grid.mean_cosine, 3) + 0.0
        (torch.Size([25, 32]), 0.0)

    Reference:
        NeuroGaze-Distill, arXiv 2509.11916.
    """

    prototypes: torch.Tensor
    counts: torch.Tensor
    centers: torch.Tensor
    size: int
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, dtype in _TENSORS.items():
            tensor = getattr(self, name)
            if (kind := getattr(tensor, "dtype", type(tensor).__name__)) != dtype:
                raise InputError(f"grid tensor '{name}' must be {dtype}, got {kind}")
            object.__setattr__(self, name, tensor.detach().cpu().contiguous().clone())
        object.__setattr__(self, "metadata", _checked_metadata(self.metadata))
        _check(self.prototypes, self.counts, self.centers, self.size)

    def __repr__(self) -> str:
        return f"PrototypeGrid(size={self.size}, dim={self.dim}, filled={self.filled}, sha256={self.sha256[:12]})"

    @property
    def dim(self) -> int:
        """D, the width of a prototype."""
        return int(self.prototypes.shape[1])

    @property
    def filled(self) -> int:
        """Cells that hold data of their own."""
        return int((self.counts > 0).sum())

    @property
    def sha256(self) -> str:
        """Hex sha256 of the three tensors in little-endian bytes; the metadata has no part in it."""
        digest = hashlib.sha256(b"ngd_timm prototype grid 1\n")
        for name, kind in (("prototypes", "<f4"), ("counts", "<i8"), ("centers", "<f4")):
            array = np.ascontiguousarray(getattr(self, name).numpy().astype(kind))
            digest.update(f"{name} {kind} {list(array.shape)}\n".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    @property
    def mean_cosine(self) -> float:
        """Mean cosine between different prototypes, over all cells; near 1 the grid says next to nothing."""
        rows = self.prototypes.double()
        gram = rows @ rows.T
        return float((gram.sum() - gram.diagonal().sum()) / (len(rows) * (len(rows) - 1)))

    @property
    def mantel_r(self) -> float:
        """Pearson r between 1 - cosine and cell distance over pairs of filled cells (copies would flatter it)."""
        filled = self._filled_cells()
        distances = cell_distances(self.size)[np.ix_(filled, filled)]
        return mantel_r(self.prototypes.double().numpy()[filled], distances)

    def _filled_cells(self) -> np.ndarray:
        # a control has no data at all, and every row is its own
        filled = self.counts.numpy() > 0
        return filled if filled.any() else np.ones_like(filled)

    @classmethod
    def build(
        cls,
        embeddings: np.ndarray | torch.Tensor,
        valence_arousal: np.ndarray | torch.Tensor,
        subjects: np.ndarray | None = None,
        size: int = 5,
        min_subjects: int = 1,
        center: bool = False,
        metadata: Mapping[str, str] | None = None,
        frames: np.ndarray | None = None,
    ) -> PrototypeGrid:
        """Average unit embeddings in each cell, subjects weighing equally, and normalise again.

        An empty cell takes the prototype of the nearest filled cell (distance in cell indices; equal distances are
        averaged) and keeps count 0. The paper says "consolidated" and no more: this is our reading.

        Args:
            embeddings: (N, D) features of held-out subjects.
            valence_arousal: (N, 2) in [-1, 1].
            subjects: (N,) who each row is of; None weighs rows equally.
            size: S, cells along an axis.
            min_subjects: A cell of fewer subjects counts as empty; 3 keeps one person's row out of a published grid.
            center: As `centered()` on the grid built without it.
            metadata: Strings kept with the grid.
            frames: (N,) whose coordinates each row has, where teachers were fitted apart; a subject is of one. Each
                frame's averages are rotated onto the first's (Procrustes over the cells), so that subjects still weigh
                equally.

        Raises:
            InputError: Rows that don't match, aren't finite or have no direction; no filled cell.

        Examples:
            >>> grid = PrototypeGrid.build(np.eye(2), np.array([[-1, -1], [1, 1]]), size=3)
            >>> grid.counts.tolist()
            [1, 0, 0, 0, 0, 0, 0, 0, 1]
            >>> [round(x, 4) for x in grid.prototypes[4].tolist()]
            [0.7071, 0.7071]
        """
        size = checked_size(size)
        embedded, va, who = checked_rows(embeddings, valence_arousal, subjects, min_subjects)
        cells = cell_of(va, size)
        rows, subject_counts = pooled_sums(embedded, cells, who, size, frames=frames)
        counts = np.bincount(cells, minlength=size * size)
        notes = {**(metadata or {}), "centered": "false"}
        if subjects is not None:
            counts[subject_counts < min_subjects] = 0
            subject_counts[subject_counts < min_subjects] = 0
            notes |= {"subjects_per_cell": ",".join(map(str, subject_counts)), "min_subjects": str(min_subjects)}
        filled = counts > 0
        if not filled.any():
            raise InputError(f"no cell holds {min_subjects} subjects; lower min_subjects or the size ({size})")
        rows[filled] = unit(rows[filled], "the embeddings of a cell cancel out")
        grid = cls._of_rows(fill_empty(rows, filled, size), counts, size, notes)
        return grid.centered() if center else grid

    @classmethod
    def _of_rows(cls, rows: np.ndarray, counts: np.ndarray, size: int, metadata: dict[str, str]) -> PrototypeGrid:
        prototypes = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))
        return cls(
            prototypes, torch.from_numpy(counts.astype(np.int64)), torch.from_numpy(centers(size)), size, metadata
        )

    def centered(self) -> PrototypeGrid:
        """The same grid with the mean of its filled rows taken out and every row normalised again.

        Prototypes of a weak teacher crowd round their mean; what is left without it is what differs between cells.
        """
        filled = self._filled_cells()
        rows = self.prototypes.double().numpy()
        rows = rows - rows[filled].mean(axis=0)
        message = "centring needs filled cells that differ from their mean; build with center=False"
        rows[filled] = unit(rows[filled], message)
        metadata = {**self.metadata, "centered": "true"}
        return self._of_rows(fill_empty(rows, filled, self.size), self.counts.numpy(), self.size, metadata)

    @classmethod
    def from_distances(
        cls,
        distances: np.ndarray,
        valence_arousal: np.ndarray | None = None,
        labels: Sequence[str] | None = None,
        size: int = 5,
        metadata: Mapping[str, str] | None = None,
    ) -> PrototypeGrid:
        """A grid of things of which only distances are known, as human ratings of similarity: by classical scaling.

        Args:
            distances: (N, N), symmetric, 0 on the diagonal.
            valence_arousal: (N, 2) in [-1, 1]; or
            labels: N expressions, which stand at their class's place on the plane.
            size: S, cells along an axis.
            metadata: Strings kept with the grid.

        Raises:
            InputError: A matrix that isn't of distances, both or neither of the places, what `build` refuses.

        Examples:
            >>> faces = ("happiness", "sadness", "anger")
            >>> grid = PrototypeGrid.from_distances(np.array([[0.0, 9, 8], [9, 0, 5], [8, 5, 0]]), labels=faces)
            >>> grid.filled, grid.dim, grid.metadata["source"]
            (3, 2, 'distances')
        """
        from ngd_timm.grid.table import classical_scaling

        if (valence_arousal is None) == (labels is None):
            raise InputError("give valence_arousal=(N, 2) or labels=, names of expressions, and not both")
        places = anchors(labels) if labels is not None else valence_arousal
        assert places is not None
        rows, lost = classical_scaling(distances)
        provenance = f"classical scaling of {len(rows)} x {len(rows)} distances, {100 * lost:.1f} % not Euclidean"
        notes = {"source": "distances", "provenance": provenance, **(metadata or {})}
        return cls.build(rows, places, size=size, metadata=notes)

    @classmethod
    def random(cls, dim: int, size: int = 5, seed: int = 0) -> PrototypeGrid:
        """A control without EEG: random rows, orthonormal where `dim` >= S*S; counts are 0."""
        size = checked_size(size)
        if dim < 1:
            raise InputError(f"dim must be at least 1, got {dim}")
        cells = size * size
        noise = np.random.default_rng(seed).standard_normal((max(dim, cells), cells))
        rows = np.linalg.qr(noise)[0].T if dim >= cells else unit(noise[:dim].T, "a random row vanished")
        notes = {"control": "random", "seed": str(seed), "provenance": "random directions, no EEG"}
        return cls._of_rows(rows, np.zeros(cells), size, notes)

    def shuffled(self, seed: int = 0) -> PrototypeGrid:
        """A control with this grid's rows and Gram spectrum, each row (and its count) moved to a random cell."""
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(self.counts)))
        notes = {k: v for k, v in self.metadata.items() if k != "subjects_per_cell" and not k.startswith("mantel")}
        notes.update(control="shuffled", seed=str(seed), shuffled_from=self.sha256)
        return PrototypeGrid(self.prototypes[order], self.counts[order], self.centers, self.size, notes)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically; the hashes of tensors and of metadata go in with them."""
        notes = {**self.metadata, "format_version": FORMAT_VERSION, "sha256": self.sha256}
        notes["metadata_sha256"] = _metadata_sha256(notes)
        check_metadata(notes, self.size**2)
        with atomic_path(path) as temporary:
            save_file({name: getattr(self, name) for name in _TENSORS}, str(temporary), metadata=notes)

    @classmethod
    def load(cls, path: str | Path) -> PrototypeGrid:
        """Read a grid file and check all of it."""
        if not Path(path).is_file():
            raise InputError(f"no grid file {path}; build one with: ngd prototypes build RUN --out {path}")
        return cls._read(Path(path), str(path))

    @classmethod
    def _read(cls, file: Path, path: str) -> PrototypeGrid:
        """Read a grid file that messages call `path`."""
        try:
            open(file, "rb").close()  # safetensors calls a file that may not be read absent
            with safe_open(str(file), framework="pt") as handle:
                notes = dict(handle.metadata() or {})
                names = sorted(handle.keys())
                if names != sorted(_TENSORS):
                    held = f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
                    raise InputError(
                        f"{path}: not a prototype grid; it holds {len(names)} tensors ({held[:200]}), a grid holds "
                        f"{', '.join(sorted(_TENSORS))}"
                    )
                tensors = {name: handle.get_tensor(name) for name in _TENSORS}
        except (SafetensorError, UnicodeDecodeError, OSError) as error:
            raise InputError(f"{path}: not a readable safetensors file ({one_line(error)})") from None
        if notes.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{path}: format version {notes.get('format_version')!r}, this package reads {FORMAT_VERSION!r}"
            )
        everything = dict(notes)
        if notes.pop("metadata_sha256", None) != _metadata_sha256(notes):
            raise InputError(f"{path}: the metadata do not match their sha256; the file is damaged, fetch it again")
        size = int(np.sqrt(tensors["prototypes"].shape[0])) if tensors["prototypes"].ndim else 0
        metadata = {key: value for key, value in notes.items() if key not in _RESERVED}
        try:
            grid = cls(**tensors, size=size, metadata=metadata)
            check_metadata(everything, size * size)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        if grid.sha256 != notes.get("sha256"):
            raise InputError(f"{path}: the tensors do not match their sha256; the file is damaged, fetch it again")
        return grid

    @classmethod
    def default(cls, version: str | None = None) -> PrototypeGrid:
        """A bundled grid: the newest, or one by version. It is GAMEEMO's, not the paper's, and a log line says so.

        Examples:
            >>> PrototypeGrid.default("gameemo-v2").size
            5
        """
        known = grid_versions()
        if version is not None and version not in known:
            raise choices("grid version", version, known)
        name = version or known[-1]
        grid = cls.load(packaged("hub") / name / GRID_FILE)
        logger.info("grid %s: built from %s, not the paper's grid", name, grid.metadata.get("dataset", "unnamed data"))
        return grid

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None, **options: Any) -> PrototypeGrid:
        """Read a grid from the Hugging Face Hub, a folder or a file, and check all of it.

        Args:
            source: `user/repo`, `user/repo@revision` or `hf-hub:user/repo`; or a path.
            revision: A branch, tag or commit; a full commit id gives the same bytes for ever.
            options: `cache_dir`, `token` and `local_files_only`, as `huggingface_hub.hf_hub_download` takes them.

        Raises:
            InputError: One line that names the repository or the file, and what is wrong.

        Examples:
            >>> import tempfile
            >>> folder = Path(tempfile.mkdtemp())
            >>> PrototypeGrid.random(32).save(folder / "grid.safetensors")
            >>> PrototypeGrid.from_pretrained(folder).dim
            32
        """
        repository = hub_id(source, revision)
        if repository is None:
            path = Path(source)
            return cls.load(path / GRID_FILE if path.is_dir() else path)
        snapshot = fetch(repository, [GRID_FILE], **options)
        return cls._read(snapshot.folder / GRID_FILE, f"{snapshot.id}: {GRID_FILE}")

    def push_to_hub(self, repo_id: str, **options: Any) -> Published:
        """Publish the grid with its card, licence and figure on the Hugging Face Hub, in one commit without any path.

        Args:
            repo_id: `user/repo`; made if it is missing.
            options: `private`, `revision` (a branch, made if it is missing), `commit_message`, `create_pr` and `token`,
                as `huggingface_hub` takes them.

        Raises:
            InputError: A grid that is not fit to publish (a cell may be one subject's, or it doesn't say whose data it
                holds), or the Hub's refusal in one line.
        """
        from ngd_timm.grid.push import stage_grid

        return upload(lambda folder: stage_grid(self, folder, repo_id), repo_id, **options)

    @classmethod
    def from_spec(cls, spec: str) -> PrototypeGrid:
        """The grid that a recipe names: a bundled version, a path, or a Hub id (`user/repo[@revision]`).

        Examples:
            >>> PrototypeGrid.from_spec("gameemo-v2").dim
            64
        """
        if spec in grid_versions():
            return cls.default(spec)
        path = Path(spec)
        if hub_id(spec) is not None or path.suffix or len(path.parts) > 1 or path.exists():
            return cls.from_pretrained(spec)
        raise choices("grid", spec, [*grid_versions(), "PATH.safetensors", "user/repo"])

    def plot(self, path: str | Path) -> None:
        """Draw the counts on the valence/arousal plane beside the cosines between prototypes, as a PNG."""
        from ngd_timm.core.plots import png_figure

        if Path(path).suffix.lower() != ".png":
            raise InputError(f"{path}: the plot is a PNG; give a file that ends in .png")
        with png_figure(path, (9, 4.2)) as figure:
            plane, matrix = figure.subplots(1, 2)
            counts = self.counts.numpy().reshape(self.size, self.size)
            plane.imshow(counts.T, origin="lower", extent=(-1, 1, -1, 1), cmap="Greens")
            for (valence, arousal), count in zip(self.centers.tolist(), self.counts.tolist(), strict=True):
                shade = "white" if count > 0.6 * counts.max(initial=1) else "black"
                plane.text(valence, arousal, str(count) if count else "–", ha="center", va="center", color=shade)
            plane.set(xlabel="valence", ylabel="arousal", title="embeddings in each cell (– : taken from neighbours)")
            rows = self.prototypes.double()
            image = matrix.imshow((rows @ rows.T).numpy(), vmin=-1, vmax=1, cmap="RdBu_r")
            matrix.set(xlabel="cell", ylabel="cell", title=f"cosine between prototypes, mean {self.mean_cosine:.2f}")
            figure.colorbar(image, ax=matrix)


def grid_versions() -> list[str]:
    """Versions in the package, oldest first (by version number, then name)."""
    return packaged_versions(_VERSION, GRID_FILE)


def _check(prototypes: torch.Tensor, counts: torch.Tensor, centres: torch.Tensor, size: int) -> None:
    checked_size(size)
    cells = size * size
    if prototypes.ndim != 2 or prototypes.shape[0] != cells or prototypes.shape[1] < 1:
        raise InputError(f"prototypes must have shape (S*S, D), got {tuple(prototypes.shape)}")
    if counts.shape != (cells,) or centres.shape != (cells, 2):
        raise InputError(
            f"counts and centers must have shapes ({cells},) and ({cells}, 2), got {tuple(counts.shape)} and "
            f"{tuple(centres.shape)}"
        )
    if not bool(torch.isfinite(prototypes).all()):
        raise InputError("prototypes are not all finite")
    lengths = prototypes.double().norm(dim=1)
    worst = int((lengths - 1).abs().argmax())
    if abs(float(lengths[worst]) - 1) > _UNIT_TOLERANCE:
        raise InputError(f"prototype {worst} has length {float(lengths[worst]):.6g}, expected 1")
    if bool((counts < 0).any()):
        raise InputError("counts must not be negative")
    if not torch.allclose(centres, torch.from_numpy(centers(size)), atol=1e-6, rtol=0):
        raise InputError(f"centers are not those of a {size} x {size} grid over [-1, 1]")


def _checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InputError(f"grid metadata are strings, got {key!r}: {value!r}")
        if key in _RESERVED:
            raise InputError(f"grid metadata key '{key}' is written by save() itself")
    return dict(sorted(metadata.items()))


def _metadata_sha256(notes: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(sorted(notes.items())), ensure_ascii=True).encode()).hexdigest()
