"""Batches for a model: small images are decoded once and augmented as whole tensors, large ones one at a time."""

from __future__ import annotations

import logging
import math
import signal
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ngd_timm.core.devices import CPU, send
from ngd_timm.core.distributed import part_of
from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.images import (
    InputTransform,
    check_pixels,
    decode_each,
    image_limit,
    open_image,
    per_channel,
    raise_image_limit,
    size_and_grey,
    square_pixels,
    to_mode,
)
from ngd_timm.core.recipe import AugmentConfig
from ngd_timm.data.ahead import ahead as prefetch
from ngd_timm.data.augment import draw_augment, render_batch
from ngd_timm.data.samplers import SAMPLERS, epoch_order, generator_for

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("ngd_timm.data")

_MEMORY_SIDE = 96
_MEMORY_BYTES = 2 << 30
# Images of one size, smaller than the working side or hardly larger, are resampled once, by the augmentation.
_NATIVE = 1.25


@dataclass(frozen=True)
class Batch:
    """One batch."""

    images: torch.Tensor  # (B, C, H, W) float32, normalised
    target: torch.Tensor  # (B,) int64 class indices, or (B, classes) float32 soft targets
    valence_arousal: torch.Tensor | None  # (B, 2) float32 in [-1, 1], or None where the set has none
    index: torch.Tensor  # (B,) int64 row numbers in the data set

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        images, target, index = (send(t, torch.device(device)) for t in (self.images, self.target, self.index))
        va = None if self.valence_arousal is None else send(self.valence_arousal, torch.device(device))
        return Batch(images, target, va, index)


@dataclass
class Renderer:
    """Prepares images for a model, the same in memory, in a worker process and in a stream."""

    transform: InputTransform
    augment: AugmentConfig | None
    seed: int
    side: int  # a large image is decoded to a square of it before it is augmented
    part: tuple[int, int] = (0, 1)  # (number, count) of the processes that share every batch
    device: torch.device = CPU  # where batches are augmented

    def rows(self, size: int) -> slice:
        """This process's rows of a batch."""
        return part_of(size, *self.part)

    def index(self, rows: np.ndarray) -> torch.Tensor:
        """This process's row numbers of a batch, on the device."""
        return send(torch.from_numpy(rows[self.rows(len(rows))]), self.device)

    def decode(self, record: Mapping[str, Any]) -> np.ndarray:
        """An encoded image as (C, H, W) uint8."""
        if self.augment is None:
            return self.transform.record(record).numpy()
        with open_image(record) as image:
            return square_pixels(image, self.transform.mode, self.side)

    def render(self, pixels: torch.Tensor, epoch: int, number: int, size: int) -> torch.Tensor:
        """This process's rows of batch `number`, of `size` images in all, as the model's input on the device."""
        pixels = send(pixels, self.device)
        if self.augment is None:
            return self.transform.normalize(pixels)
        draw = draw_augment(self.augment, size, generator_for(self.seed, epoch, 1, number))[self.rows(size)]
        return render_batch(pixels, self.transform.size[-1], self.transform.mean, self.transform.std, draw)


class Batches(ABC):
    """What batches of a whole set and of a stream have in common."""

    def __init__(
        self,
        features: Mapping[str, Any],
        image_size: int,
        in_chans: int,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        batch_size: int,
        augment: AugmentConfig | None,
        seed: int,
        ahead: bool,
        transform: InputTransform | None = None,
        part: tuple[int, int] = (0, 1),
        device: torch.device = CPU,
    ) -> None:
        if in_chans not in (1, 3):
            raise InputError(f"in_chans must be 1 (grey) or 3 (RGB), got {in_chans}")
        if min(image_size, batch_size) < 1:
            raise InputError(f"image_size and batch_size must be at least 1, got {image_size} and {batch_size}")
        self.classes: tuple[str, ...] = tuple(features["label"].names)
        self.image_size, self.in_chans, self.batch_size, self.seed = image_size, in_chans, batch_size, seed
        self.mean, self.std = per_channel("mean", mean, in_chans), per_channel("std", std, in_chans)
        # what is zoomed into keeps its detail
        side = image_size if augment is None else math.ceil(image_size * (1 + augment.scale))
        transform = transform or _square_transform(image_size, self.mean, self.std)
        self.renderer = Renderer(transform, augment, seed, side, part, device)
        self.ahead = ahead
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches from number `start` on, equal to the tail of a whole epoch."""
        batches = self._batches(self.epoch, start)
        if self.ahead:
            batches = prefetch(_on(self.renderer.device, batches))
        with closing(batches):
            yield from batches

    @abstractmethod
    def _batches(self, epoch: int, start: int) -> Generator[Batch, None, None]: ...

    def _require_a_batch(self, rows: int) -> None:
        if rows < self.batch_size:
            raise InputError(
                f"{rows} images are fewer than one batch of {self.batch_size}, and a smaller last batch is left out in "
                "training; lower batch_size"
            )


class FaceBatches(Batches):
    """Batches of a data set, each a function of (seed, epoch, batch number) and of nothing else.

    Small images of one size (sides up to 96 px, 2 GiB in all) are decoded once into a uint8 tensor and augmented a
    batch at a time. Others are decoded when they are drawn, each to a square a little larger than the model's input,
    augmented in the same way, and finished a whole batch at a time by worker processes, which live from epoch to
    epoch. Without augmentation every image goes through `transform`, once where the results fit into 2 GiB. Either way
    every image is opened and decoded once here, so damage is found before the first batch. Down-scaling is antialiased.

    Args:
        dataset: From `load_fer`, or any `datasets.Dataset` with `image` and `label` (ClassLabel). Targets are soft
            where there is a `soft_label` column.
        image_size: Side of the model's input in pixels.
        in_chans: 1 (grey) or 3 (RGB).
        mean: Mean on the scale 0-1, one number or one a channel.
        std: Standard deviation on the scale 0-1, one number or one a channel.
        batch_size: Images a batch.
        train: Draw by the sampler, augment, and leave out a last, smaller batch; otherwise rows in order, unaugmented.
        augment: Augmentation for `train`; None means none.
        seed: The run's seed.
        sampler: For `train`: "random" or "class_aware", see `samplers.epoch_order`.
        epoch_repeats: For `train`: how often an epoch goes through the data set, each time in an order of its own.
        in_memory: Force or forbid the in-memory path; None decides by size.
        workers: Processes of the per-image path; 0 makes its batches in this one.
        transform: What prepares an image where nothing is augmented, of the size, channels, mean and std given here;
            None is a bilinear resize of the largest central square.
        part: (number, count) of several processes. In training each takes its rows of every batch, drawn as for one; in
            evaluation they take turns at whole batches.
        ahead: Make batches in a thread while the caller works with the last one, for use with an accelerator.
        device: Where batches are augmented and left. Images held in memory are held there, and need neither a copy nor
            `ahead`; others go there as uint8, from pinned memory.

    Raises:
        InputError: A damaged image, an empty data set, or settings outside what is allowed.

    Examples:
        >>> import tempfile
        >>> from ngd_timm.data import load_fer
        >>> from ngd_timm.data.synthetic.schematic import write_schematic
        >>> folder = write_schematic(tempfile.mkdtemp(), "pencil", n_train=16, n_valid=8, n_test=8, seed=0)
        >>> batches = FaceBatches(load_fer("schematic", folder, "train"), image_size=32, batch_size=8, train=True)
        >>> [tuple(b.images.shape) for b in batches]
        [(8, 1, 32, 32), (8, 1, 32, 32)]
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        image_size: int,
        in_chans: int = 1,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.25,
        batch_size: int = 128,
        train: bool = False,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        sampler: str = "random",
        epoch_repeats: int = 1,
        in_memory: bool | None = None,
        workers: int = 0,
        transform: InputTransform | None = None,
        part: tuple[int, int] = (0, 1),
        ahead: bool = False,
        device: torch.device = CPU,
    ) -> None:
        if sampler not in SAMPLERS:
            raise choices("sampler", sampler, SAMPLERS)
        if workers < 0:
            raise InputError(f"workers must be at least 0, got {workers}")
        if epoch_repeats < 1:
            raise InputError(f"epoch_repeats must be at least 1, got {epoch_repeats}")
        augment, shared = (augment, part) if train else (None, (0, 1))
        super().__init__(
            dataset.features,
            image_size,
            in_chans,
            mean,
            std,
            batch_size,
            augment,
            seed,
            ahead,
            transform,
            shared,
            device,
        )
        self.dataset, self.train, self.sampler, self.workers, self.part = dataset, train, sampler, workers, part
        self.epoch_repeats = epoch_repeats if train else 1
        self.labels = _column(dataset, "label").astype(np.int64)
        self._target = torch.from_numpy(targets(dataset))
        self._va: torch.Tensor | None = None
        if {"valence", "arousal"} <= set(dataset.column_names):
            places = np.stack([_column(dataset, c) for c in ("valence", "arousal")], axis=1)
            self._va = torch.from_numpy(places.astype(np.float32))
        if not len(dataset):
            raise InputError("the data set is empty, there is nothing to make batches of")
        if train:
            self._require_a_batch(len(dataset) * epoch_repeats)
        self._pixels = self._decode(in_memory)
        if self._pixels is not None and device != CPU:
            self._pixels, self.ahead = self._pixels.to(device), False
        self._target = self._target.to(device)
        self._va = None if self._va is None else self._va.to(device)
        self._loader: _Loader | None = None

    @property
    def in_memory(self) -> bool:
        """Whether the decoded images are held in memory."""
        return self._pixels is not None

    def __len__(self) -> int:
        """Batches in an epoch."""
        n = len(self.dataset) * self.epoch_repeats
        return n // self.batch_size if self.train else -(-n // self.batch_size)

    def _batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        if self.train:
            passes = range(epoch * self.epoch_repeats, (epoch + 1) * self.epoch_repeats)
            order = np.concatenate([epoch_order(self.labels, self.sampler, self.seed, number) for number in passes])
        else:
            order = np.arange(len(self.dataset))
        numbers = [i for i in range(start, len(self)) if self.train or i % self.part[1] == self.part[0]]
        keys = [(epoch, i, order[i * self.batch_size : (i + 1) * self.batch_size]) for i in numbers]
        device = self.renderer.device
        with closing(_named_failures(self._load(keys))) as images:
            for (_, number, rows), loaded in zip(keys, images, strict=True):
                rendered = loaded if device == CPU else self.renderer.render(loaded, epoch, number, len(rows))
                index = self.renderer.index(rows)
                va = None if self._va is None else self._va[index]
                yield Batch(rendered, self._target[index], va, index)

    def _decode(self, in_memory: bool | None) -> torch.Tensor | None:
        """Open and decode every image once: small ones of one size are held as uint8, others are checked."""
        n, renderer = len(self.dataset), self.renderer
        if renderer.augment is None and in_memory is None:
            in_memory = n * math.prod(renderer.transform.size) <= _MEMORY_BYTES
        look = _Look(renderer, in_memory)
        first, pixels, uniform = None, None, True
        for i, (size, image) in enumerate(decode_each(self.dataset, look)):
            first = first or size
            if i == 0 and image is None:
                log.info("checking all %d images before the first batch", n)
            if size != first and in_memory:
                raise InputError(
                    f"in_memory=true needs images of one size, but row 0 is {first[0]}x{first[1]} and row {i} is "
                    f"{size[0]}x{size[1]}; leave in_memory out"
                )
            uniform = uniform and size == first
            if image is None or not uniform or (i and pixels is None):
                pixels = None
                continue
            channels = len(image) if pixels is None else max(len(image), pixels.shape[1])
            if not in_memory and n * channels * image[0].size > _MEMORY_BYTES:
                pixels = None
                continue
            if pixels is None:
                pixels = np.empty((n, *image.shape), dtype=np.uint8)
            elif channels > pixels.shape[1]:  # the first image in colour
                pixels = np.repeat(pixels, channels, axis=1)
            pixels[i] = image
        if first is not None and uniform and look.native(first):
            renderer.side = min(first)
        return None if pixels is None else torch.from_numpy(pixels)

    def _load(self, keys: list[_Key]) -> Generator[torch.Tensor, None, None]:
        images = _Images(self.dataset, self.renderer, self._pixels)
        if self.workers == 0 or self.in_memory or not keys:
            yield from (images[key] for key in keys)
        elif not self.train:
            yield from _Loader(images, min(self.workers, len(keys)), keep=False).run(keys)
        else:
            self._loader = self._loader or _Loader(images, self.workers, keep=True)
            # a second iteration beside one that is under way gets workers of its own
            loader = _Loader(images, self.workers, keep=False) if self._loader.busy else self._loader
            yield from loader.run(keys)


def class_counts(data: Dataset | FaceBatches) -> np.ndarray:
    """Images of each class, (C,) float64, for class weights; sums of the soft targets where the set has them.

    Examples:
        >>> from datasets import ClassLabel, Dataset, Features
        >>> names = Features({"label": ClassLabel(names=["sadness", "fear"])})
        >>> class_counts(Dataset.from_dict({"label": [1, 1, 0]}, features=names)).tolist()
        [1.0, 2.0]
    """
    dataset = data.dataset if isinstance(data, FaceBatches) else data
    target = targets(dataset)
    if target.ndim == 2:
        return target.sum(0, dtype=np.float64)
    return np.bincount(target, minlength=len(dataset.features["label"].names)).astype(np.float64)


def _on(device: torch.device, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """The same, made on a device that need not be the first: a new thread begins there."""
    with closing(batches), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield from batches


def _named_failures(images: Iterator[torch.Tensor]) -> Generator[torch.Tensor, None, None]:
    """The same, with a one-line error where an image or the process that loads it has gone."""
    try:
        yield from images
    except OSError as error:
        # the loader puts another process's traceback before the reason
        reason = str(error).strip().splitlines()[-1][:300]
        raise InputError(
            f"an image can't be loaded any more ({reason}); leave the data set alone while it is used"
        ) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            "a process that loads images ended without a message, as when memory runs out; lower data.workers"
        ) from None


@dataclass
class _Look:
    """Open an image once: its size, and its pixels where images so small may be held in memory."""

    renderer: Renderer
    in_memory: bool | None

    def native(self, size: tuple[int, int]) -> bool:
        """Whether images of this size are augmented as they are, not as squares of the working side."""
        return self.renderer.augment is not None and min(size) <= _NATIVE * self.renderer.side

    def __call__(self, record: dict[str, Any]) -> tuple[tuple[int, int], np.ndarray | None]:
        with open_image(record) as image:
            width, height, grey = size_and_grey(image)
            size = (width, height)
            if self.in_memory is False or (self.in_memory is None and max(size) > _MEMORY_SIDE):
                check_pixels(image)
                return size, None
            if self.renderer.augment is None:
                return self.renderer.transform.size[1:], self.renderer.transform(image).numpy()
            mode = "L" if grey else self.renderer.transform.mode
            if not self.native(size):
                return size, square_pixels(image, mode, self.renderer.side)
            pixels = np.asarray(to_mode(image, mode))
        return size, pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


# Epoch, batch number and rows of one batch, those of all processes.
_Key = tuple[int, int, np.ndarray]


class _Images(torch.utils.data.Dataset[torch.Tensor]):
    """An item is a whole batch, so that workers return finished ones; pixels where a device is to finish them."""

    def __init__(self, dataset: Dataset, renderer: Renderer, pixels: torch.Tensor | None) -> None:
        self.encoded = dataset.select_columns(["image"]).with_format("arrow")
        self.renderer, self.pixels, self.max_megapixels = renderer, pixels, image_limit()

    def __getitem__(self, key: _Key) -> torch.Tensor:
        epoch, number, rows = key
        if self.pixels is not None:
            pixels = self.pixels[self.renderer.index(rows)]
        else:
            raise_image_limit(self.max_megapixels)  # a worker that was spawned has the default
            # all at once: a look-up in an Arrow table costs as much as decoding a small JPEG
            records = self.encoded[rows[self.renderer.rows(len(rows))].tolist()]["image"].to_pylist()
            pixels = torch.from_numpy(np.stack([self.renderer.decode(record) for record in records]))
        return pixels if self.renderer.device != CPU else self.renderer.render(pixels, epoch, number, len(rows))


class _Loader:
    """A `DataLoader` whose keys change from one pass to the next, so that its workers can stay."""

    def __init__(self, images: _Images, workers: int, keep: bool) -> None:
        from torch.utils.data import DataLoader

        self.keys: list[_Key] = []
        self.busy = False
        self.loader = DataLoader(
            images,
            batch_size=None,
            sampler=self.keys,
            num_workers=workers,
            persistent_workers=keep,
            worker_init_fn=_leave_signals,
            # without its own generator the loader would draw its workers' seed from the global state
            generator=torch.Generator().manual_seed(0),
        )

    def run(self, keys: list[_Key]) -> Generator[torch.Tensor, None, None]:
        self.keys[:] = keys
        self.busy = True
        try:
            yield from self.loader
        finally:
            self.busy = False


def _leave_signals(worker: int) -> None:
    """Let a signal to the whole process group be the main process's, which still needs its workers to stop in order."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def held_in_memory(sizes: np.ndarray, channels: int) -> bool:
    """Whether images are so small and alike that they are held decoded."""
    width, height = (int(n) for n in sizes[0, :2])
    uniform = bool((sizes[:, :2] == sizes[0, :2]).all())
    return uniform and max(width, height) <= _MEMORY_SIDE and len(sizes) * channels * height * width <= _MEMORY_BYTES


def _square_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> InputTransform:
    """A bilinear resize of an image's largest central square, as `set_input` stores with a student."""
    resize = {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center"}
    return InputTransform({"input_size": (len(mean), size, size), "mean": mean, "std": std, **resize})


def _column(dataset: Dataset, name: str) -> np.ndarray:
    return np.asarray(dataset.select_columns([name]).with_format("numpy")[:][name])


def targets(dataset: Dataset) -> np.ndarray:
    """(N,) int64 labels, or (N, C) float32 soft labels where the set has them."""
    if "soft_label" in dataset.column_names:
        return _column(dataset, "soft_label").astype(np.float32).reshape(len(dataset), -1)
    return _column(dataset, "label").astype(np.int64)
