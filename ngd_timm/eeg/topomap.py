"""Topographic maps as one matrix: MNE's interpolation of channel values over the head, made once, for batches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from ngd_timm.core.errors import InputError, choices

if TYPE_CHECKING:
    import mne

__all__ = ["TopomapOperator", "standard_montage"]

ArrayT = TypeVar("ArrayT", np.ndarray, torch.Tensor)

_HEAD_RADIUS = 0.095  # metres, MNE's default sphere
_HULL = 1.1  # the ring of extrapolation points lies this many radii out, plus the median electrode distance
_MIN_CHANNELS = 4
_RENAMED = {"standard_1005": "colin27_1005", "standard_1020": "colin27_1020"}  # by MNE 1.13, positions unchanged
_MAX_SIZE = 1024
_SYSTEMS = ("standard_1005", "GSN-HydroCel-129")  # whose names have nothing in common but Cz


class TopomapOperator:
    """Map channel values (…, C) to head images (…, H, W), as `mne.viz.plot_topomap` draws EEG by default.

    That the paper's topographic maps are such is our reading.

    MNE interpolates with Clough-Tocher cubics over a triangulation of the electrodes and a ring of points outside the
    head (`extrapolate="head"`) that take the mean of their neighbours (`border="mean"`). That is linear in the channel
    values, so the images of unit vectors make an (H*W, C) matrix and a batch costs one product. It is differentiable.

    Args:
        channels: Electrode names, in the order of the last axis of the data.
        size: H = W, pixels.
        montage: A name that `mne.channels.make_standard_montage` knows, or a `DigMontage` of your own; default: the
            10-05 system, or EGI's HydroCel net for names like E22.

    Attributes:
        matrix: (H*W, C) float64; rows run over the image from back to front, left to right.
        mask: (H, W) bool, True inside the head; outside it maps are 0.
        positions: (C, 2) float64, where the electrodes lie in the image: right and front are positive, its edge is 1.
        channels: The names, as a tuple.

    Raises:
        InputError: Unknown or repeated channels (all are listed), fewer than four, electrodes on one line.

    Examples:
        >>> operator = TopomapOperator(["Fz", "Cz", "Pz", "C3", "C4"], size=16)
        >>> operator(torch.ones(2, 3, 5)).shape
        torch.Size([2, 3, 16, 16])
        >>> maps = operator(np.ones(5))
        >>> maps.shape, bool(np.allclose(maps[operator.mask], 1)), float(maps[~operator.mask].max())
        ((16, 16), True, 0.0)

    Reference:
        `mne.viz.plot_topomap`; Alfeld, "A trivariate Clough-Tocher scheme for tetrahedral data", CAGD 1 (1984).
    """

    def __init__(
        self, channels: Sequence[str], size: int = 32, montage: str | mne.channels.DigMontage | None = None
    ) -> None:
        if not 4 <= size <= _MAX_SIZE:
            raise InputError(f"a topographic map has 4 to {_MAX_SIZE} pixels a side, got {size}")
        self.channels = tuple(str(name) for name in channels)
        self.size = int(size)
        positions, sphere = _positions(self.channels, system_of(self.channels) if montage is None else montage)
        # The image grows past the head where electrodes lie outside it, as MNE's does.
        head = sphere[3] * max(1.0, np.linalg.norm(positions, axis=1).max() * 1.01 / sphere[3])
        self.matrix, self.mask = _interpolation(positions, sphere, head, self.size)
        self.positions = positions / head
        # The transpose (C, H*W) in each precision and on each device asked for.
        self._arrays: dict[np.dtype, np.ndarray] = {}
        self._tensors: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    def __repr__(self) -> str:
        return f"TopomapOperator({len(self.channels)} channels, size={self.size})"

    def __call__(self, values: ArrayT) -> ArrayT:
        """Interpolate.

        Args:
            values: (…, C) array or floating tensor, in any unit; a numpy array of integers becomes float64.

        Returns:
            (…, H, W) of the same kind and dtype, in the unit given; half precision is computed in float32, and float32
            as exactly as `torch.set_float32_matmul_precision` says.

        Raises:
            InputError: A last axis that isn't the channels, an integer tensor, complex numbers.
        """
        if values.ndim < 1 or values.shape[-1] != len(self.channels):
            raise InputError(
                f"the last axis must be the {len(self.channels)} channels {', '.join(self.channels)}; "
                f"got shape {tuple(values.shape)}"
            )
        shape = (*values.shape[:-1], self.size, self.size)
        if isinstance(values, torch.Tensor):
            return self._map_tensor(values.reshape(-1, len(self.channels))).reshape(shape)
        return self._map_array(values.reshape(-1, len(self.channels))).reshape(shape)

    def _map_tensor(self, values: torch.Tensor) -> torch.Tensor:
        if not values.is_floating_point():
            raise InputError(f"a tensor of channel values must be floating, got {values.dtype}; call .float() on it")
        wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
        key = (wide.device, wide.dtype)
        if key not in self._tensors:
            # A tensor made in inference mode could never take part in a gradient afterwards.
            with torch.inference_mode(False):
                self._tensors[key] = torch.from_numpy(self.matrix.T).to(wide.dtype).to(wide.device)
        device = wide.device.type
        mixed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        # Entering autocast costs as much as one small map, so only where there is one to leave.
        with torch.autocast(device, enabled=False) if mixed else nullcontext():
            return (wide @ self._tensors[key]).to(values.dtype)

    def _map_array(self, values: np.ndarray) -> np.ndarray:
        if values.dtype.kind not in "fiub":
            raise InputError(f"channel values must be real numbers, got an array of {values.dtype}")
        dtype = values.dtype if values.dtype.kind == "f" else np.dtype(np.float64)
        wide = np.dtype(np.float32) if dtype == np.float16 else dtype
        if wide not in self._arrays:
            self._arrays[wide] = self.matrix.T.astype(wide, copy=False)
        return (values.astype(wide, copy=False) @ self._arrays[wide]).astype(dtype, copy=False)


def standard_montage(name: str) -> mne.channels.DigMontage:
    """A montage of MNE's by name, under its old name or its new one.

    Raises:
        InputError: A name that MNE doesn't know.
    """
    import mne

    known = mne.channels.get_builtin_montages()
    name = name if name in known else _RENAMED.get(name, name)
    if name not in known:
        raise choices("montage", name, sorted({*known, *_RENAMED}))
    return mne.channels.make_standard_montage(name)


def system_of(channels: Sequence[str]) -> str:
    """The montage that has most of these names, of the 10-05 system and EGI's HydroCel net."""
    return max(_SYSTEMS, key=lambda name: len(set(channels) & set(standard_montage(name).ch_names)))


def _positions(channels: tuple[str, ...], montage: str | mne.channels.DigMontage) -> tuple[np.ndarray, np.ndarray]:
    """Electrodes (C, 2) in metres on the flattened head, and the sphere (x, y, z, radius) they were flattened from."""
    import mne

    name = montage if isinstance(montage, str) else "the montage"
    if isinstance(montage, str):
        montage = standard_montage(montage)
    missing = [c for c in channels if c not in montage.ch_names]
    if missing:
        raise InputError(f"{name} has no position for {', '.join(missing)}; name electrodes as it does (Fp1, Cz, …)")
    repeated = sorted({c for c in channels if channels.count(c) > 1})
    if repeated:
        raise InputError(f"channels given twice: {', '.join(repeated)}")
    if len(channels) < _MIN_CHANNELS:
        raise InputError(f"a map needs at least {_MIN_CHANNELS} channels, got {len(channels)}")
    info = mne.create_info(list(channels), 1.0, "eeg")
    info.set_montage(montage, verbose="error")
    sphere = _sphere(info)
    located = np.array([channel["loc"][:3] for channel in info["chs"]], dtype=np.float64)
    if not np.isfinite(located).all():
        unplaced = [c for c, place in zip(channels, located, strict=True) if not np.isfinite(place).all()]
        raise InputError(f"{name} has no finite position for {', '.join(unplaced)}")
    x, y, z = (located - sphere[:3]).T
    radius = np.sqrt(x**2 + y**2 + z**2)
    # Azimuthal equidistant: an electrode's distance from the centre is its angle from the vertex.
    distance = radius * np.arccos(z / radius) / (np.pi / 2)
    azimuth = np.arctan2(y, x)
    flat = np.stack([distance * np.cos(azimuth), distance * np.sin(azimuth)], axis=1) + sphere[:2]
    gaps = np.linalg.norm(flat[:, None] - flat[None], axis=-1) + np.eye(len(flat))
    if gaps.min() < 1e-6:
        one, other = np.unravel_index(int(gaps.argmin()), gaps.shape)
        raise InputError(f"{channels[one]} and {channels[other]} have the same position; leave one out")
    return flat, sphere


def _sphere(info: Any) -> np.ndarray:
    """MNE's choice: fitted to the head-shape points where a montage has them, else 9.5 cm round the origin."""
    import mne

    try:
        mne.bem.get_fitting_dig(info, "extra", verbose="error")
    except (RuntimeError, ValueError):
        return np.array([0.0, 0.0, 0.0, _HEAD_RADIUS])
    radius, centre, _ = mne.bem.fit_sphere_to_headshape(info, dig_kinds="auto", units="m", verbose="error")
    return np.array([*centre, radius], dtype=np.float64)


def _interpolation(positions: np.ndarray, sphere: np.ndarray, head: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The matrix (size*size, C), zero outside the head, and the mask (size, size)."""
    from scipy.interpolate import CloughTocher2DInterpolator
    from scipy.spatial import Delaunay

    count = len(positions)
    spread = np.linalg.svd(positions - positions.mean(axis=0), compute_uv=False)
    if spread[1] < 1e-6 * spread[0]:
        raise InputError("the electrodes lie on one line; a map needs two dimensions")
    triangles = Delaunay(positions, incremental=True)
    first, second, third = triangles.simplices.T
    edges = positions[np.concatenate([first, second])] - positions[np.concatenate([second, third])]
    gap = float(np.median(np.linalg.norm(edges, axis=1)))
    points = max(12, round(2 * np.pi / np.arcsin(min(gap / head, 1))))
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    triangles.add_points((head * _HULL + gap) * np.stack([np.cos(angle), np.sin(angle)], axis=1))

    values = np.concatenate([np.eye(count), _border(triangles, count, points)])
    # Gradients at the vertices come from an iteration; scipy's default stops at 1e-6, this at the fixed point.
    cubic = CloughTocher2DInterpolator(triangles, values, tol=1e-12, maxiter=10_000)
    axes = []
    for centre in sphere[:2]:
        scale = head / sphere[3]
        axes.append(np.linspace(min(-head, scale * centre - head), max(head, scale * centre + head), size))
    x, y = np.meshgrid(*axes)
    mask = np.hypot(x, y) <= head * (1 + 1e-9)
    # Channel by channel in memory: the transpose, which multiplies, is then contiguous. A single map gains by it.
    matrix = np.zeros((size * size, count), order="F")
    matrix[mask.ravel()] = cubic(x[mask], y[mask])
    return matrix, mask


def _border(triangles: Any, count: int, points: int) -> np.ndarray:
    """(points, C) weights: a ring point is the mean of the electrodes it touches, or else of the ring."""
    start, neighbour = triangles.vertex_neighbor_vertices
    weights = np.zeros((points, count))
    touched = np.zeros(points, dtype=bool)
    for point in range(points):
        near = neighbour[start[count + point] : start[count + point + 1]]
        near = near[near < count]
        if len(near):
            weights[point, near] = 1 / len(near)
            touched[point] = True
    if touched.any():
        weights[~touched] = weights[touched].mean(axis=0)
    return weights
