"""Batches for a model: small pictures decoded once and augmented as whole tensors, large ones a picture at a time."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ngd_timm.core.distributed import part_of
from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.images import (
    InputTransform,
    check_image,
    decode_each,
    image_limit,
    image_size_and_grey,
    open_image,
    per_channel,
    raise_image_limit,
    square_pixels,
    to_mode,
)
from ngd_timm.core.recipe import AugmentConfig
from ngd_timm.data.ahead import ahead as made_ahead
from ngd_timm.data.augment import draw_augment, render_batch
from ngd_timm.data.samplers import SAMPLERS, epoch_order, generator_for

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Batch", "FaceBatches", "class_counts", "held_in_memory", "targets"]

log = logging.getLogger("ngd_timm.data")

_MEMORY_SIDE = 96
_MEMORY_BYTES = 2 << 30
# Images of one size, smaller than the working side or hardly larger, are resampled once, by the augmentation.
_AS_THEY_ARE = 1.25


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes:
        images: (B, C, H, W) float32, normalised.
        target: (B,) int64 class indices, or (B, classes) float32 soft targets.
        valence_arousal: (B, 2) float32 in [-1, 1], or None where the set has none.
        index: (B,) int64 row numbers in the data set.
    """

    images: torch.Tensor
    target: torch.Tensor
    valence_arousal: torch.Tensor | None
    index: torch.Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        va = None if self.valence_arousal is None else self.valence_arousal.to(device, non_blocking=True)
        images, target = self.images.to(device, non_blocking=True), self.target.to(device, non_blocking=True)
        return Batch(images, target, va, self.index.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in pinned memory, from which a copy to a GPU waits for nothing."""
        va = None if self.valence_arousal is None else self.valence_arousal.pin_memory()
        return Batch(self.images.pin_memory(), self.target.pin_memory(), va, self.index.pin_memory())


class FaceBatches:
    """Batches of a data set, each a function of (seed, epoch, batch number) and of nothing else.

    Small images of one size (sides up to 96 px, 2 GiB in all) are decoded once into a uint8 tensor and augmented a
    batch at a time. Others are decoded when they are drawn, each to a square a little larger than the model's input,
    augmented in the same way, and finished a whole batch at a time by worker processes, which live from epoch to
    epoch. Without augmentation every image goes through `transform`, once where the results fit into 2 GiB. Either way
    every image is decoded once here, so damage is found before the first batch. Down-scaling is antialiased.

    Args:
        dataset: From `load_fer`, or any `datasets.Dataset` with `image` and `label` (ClassLabel). Targets are soft
            where there is a `soft_label` column.
        image_size: Side of the model's input in pixels.
        in_chans: 1 (grey) or 3 (RGB).
        mean: Mean on the scale 0-1, one number or one a channel.
        std: Standard deviation on the scale 0-1, one number or one a channel.
        batch_size: Pictures a batch.
        train: Draw by the sampler and augment; otherwise rows in order, unaugmented.
        augment: Augmentation for `train`; None means none.
        seed: The run's seed.
        sampler: For `train`: "random" or "class_aware", see `samplers.epoch_order`.
        in_memory: Force or forbid the in-memory path; None decides by size.
        workers: Processes of the per-image path; 0 makes its batches in this one.
        drop_last: Leave out a last, smaller batch; None means as `train`.
        transform: What prepares an image where nothing is augmented; None is a bilinear resize of the largest central
            square. It has to agree with the size, channels, mean and std given here.
        part: (number, count) of several processes. In training each takes its rows of every batch, drawn as for one; in
            evaluation they take turns at whole batches.
        ahead: Make batches in a thread while the caller works with the last one. Worth it where an accelerator does
            that work; on a processor alone the thread and the step want the same cores.

    Raises:
        InputError: A damaged picture, an empty data set, or settings outside what is allowed.

    Example:
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
        in_memory: bool | None = None,
        workers: int = 0,
        drop_last: bool | None = None,
        transform: InputTransform | None = None,
        part: tuple[int, int] = (0, 1),
        ahead: bool = False,
    ) -> None:
        if sampler not in SAMPLERS:
            raise choices("sampler", sampler, SAMPLERS)
        if in_chans not in (1, 3):
            raise InputError(f"in_chans must be 1 (grey) or 3 (RGB), got {in_chans}")
        if image_size < 1 or batch_size < 1 or workers < 0:
            raise InputError(
                f"image_size and batch_size must be at least 1 and workers at least 0, got {image_size}, "
                f"{batch_size}, {workers}"
            )
        self.dataset, self.image_size, self.in_chans = dataset, image_size, in_chans
        self.mean, self.std = per_channel("mean", mean, in_chans), per_channel("std", std, in_chans)
        self.batch_size, self.train, self.seed, self.sampler = batch_size, train, seed, sampler
        self.augment = augment if train else None
        self.transform = transform or square_transform(image_size, self.mean, self.std)
        self.workers, self.part, self.ahead = workers, part, ahead
        self.drop_last = train if drop_last is None else drop_last
        self.epoch = 0
        self.classes: tuple[str, ...] = tuple(dataset.features["label"].names)
        self.labels = _column(dataset, "label").astype(np.int64)
        self._target = torch.from_numpy(targets(dataset))
        self._va = _valence_arousal(dataset)
        if not len(dataset):
            raise InputError("the data set is empty, there is nothing to make batches of")
        if self.drop_last and len(dataset) < batch_size:
            raise InputError(
                f"{len(dataset)} pictures are fewer than one batch of {batch_size}, and a smaller last batch is left "
                "out in training; lower batch_size"
            )
        self._side = working_side(image_size, self.augment)
        self._pixels = self._decode(in_memory)
        self._loader: _Loader | None = None

    @property
    def in_memory(self) -> bool:
        """Whether the decoded pictures are held in memory."""
        return self._pixels is not None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches in an epoch."""
        n = len(self.dataset)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches from number `start` on, equal to the tail of a whole epoch."""
        epoch = self.epoch
        if self.train:
            order = epoch_order(self.labels, self.sampler, self.seed, epoch)
        else:
            order = np.arange(len(self.dataset))
        numbers = [i for i in range(start, len(self)) if self.train or i % self.part[1] == self.part[0]]
        whole = [order[i * self.batch_size : (i + 1) * self.batch_size] for i in numbers]
        made = self._render(whole, epoch, start) if self.in_memory else _told(self._load(whole, epoch, start))
        yield from handed_over(self._with_targets(whole, made), self.ahead)

    def _with_targets(
        self, whole: Sequence[np.ndarray], made: Generator[torch.Tensor, None, None]
    ) -> Generator[Batch, None, None]:
        with closing(made):
            for index, pixels in zip(whole, made, strict=True):
                chosen = torch.from_numpy(index[self._mine(len(index))])
                va = None if self._va is None else self._va[chosen]
                yield Batch(pixels, self._target[chosen], va, chosen)

    def _mine(self, size: int) -> slice:
        """This process's rows of a batch of training; in evaluation batches are shared whole."""
        return part_of(size, *self.part) if self.train else slice(None)

    def _decode(self, in_memory: bool | None) -> torch.Tensor | None:
        """Every image, decoded once: kept as uint8 where they fit into memory, otherwise only checked."""
        decoder: Callable[[dict[str, Any]], np.ndarray | torch.Tensor]
        if self.augment is None:
            shape, decoder = self.transform.size, self.transform.record
            fits = len(self.dataset) * math.prod(shape) <= _MEMORY_BYTES
        else:
            sizes = np.array(list(decode_each(self.dataset, image_size_and_grey, "opened")), dtype=np.int64)
            width, height = (int(n) for n in sizes[0, :2])
            uniform = bool((sizes[:, :2] == sizes[0, :2]).all())
            if in_memory and not uniform:
                other = int((sizes[:, :2] != sizes[0, :2]).any(1).argmax())
                raise InputError(
                    f"in_memory=true needs images of one size, but row 0 is {width}x{height} and row {other} is "
                    f"{sizes[other, 0]}x{sizes[other, 1]}; leave in_memory out"
                )
            channels = 1 if self.in_chans == 1 or bool(sizes[:, 2].all()) else 3
            fits = held_in_memory(sizes, channels)
            if uniform and min(width, height) <= _AS_THEY_ARE * self._side:
                self._side = min(width, height)
                shape, decoder = (channels, height, width), _Decoder(channels)
            else:
                shape, decoder = (channels, self._side, self._side), _Decoder(channels, self._side)
        if not (fits if in_memory is None else in_memory):
            log.info("checking all %d images before the first batch", len(self.dataset))
            for _ in decode_each(self.dataset, check_image):
                pass
            return None
        pixels = torch.empty(len(self.dataset), *shape, dtype=torch.uint8)
        view = pixels.numpy()
        for i, array in enumerate(decode_each(self.dataset, decoder)):
            view[i] = array
        return pixels

    def _render(self, rows: Sequence[np.ndarray], epoch: int, start: int) -> Generator[torch.Tensor, None, None]:
        assert self._pixels is not None
        for number, index in enumerate(rows, start):
            mine = self._mine(len(index))
            pixels = self._pixels[torch.from_numpy(index[mine])]
            if self.augment is None:
                yield self.transform.normalize(pixels)
            else:
                draw = draw_augment(self.augment, len(index), generator_for(self.seed, epoch, 1, number))[mine]
                yield render_batch(pixels, self.image_size, self.mean, self.std, draw)

    def _load(self, rows: Sequence[np.ndarray], epoch: int, start: int) -> Generator[torch.Tensor, None, None]:
        keys = [(epoch, number, index) for number, index in enumerate(rows, start)]
        images: torch.utils.data.Dataset[torch.Tensor]
        if self.augment is None:
            images = _Plain(self.dataset, self.transform)
        else:
            images = _Augmented(self)
        if self.workers == 0 or not keys:
            yield from (images[key] for key in keys)
        elif not self.train:
            yield from _Loader(images, min(self.workers, len(keys)), keep=False).run(keys)
        else:
            self._loader = self._loader or _Loader(images, self.workers, keep=True)
            # a second iteration beside one that is under way gets workers of its own
            loader = _Loader(images, self.workers, keep=False) if self._loader.busy else self._loader
            yield from loader.run(keys)


def class_counts(data: Dataset | FaceBatches) -> np.ndarray:
    """Pictures a class, for class weights; sums of the soft targets where the set has them.

    Args:
        data: A data set of `load_fer`, or its batches.

    Returns:
        (C,) float64.

    Example:
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


def handed_over(made: Generator[Batch, None, None], early: bool) -> Generator[Batch, None, None]:
    """The same batches; early ones are made in a thread, and pinned where there is a GPU to copy them to."""
    if early:
        made = made_ahead(_pinned(made) if torch.cuda.is_available() else made)
    with closing(made):
        yield from made


def _pinned(made: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    with closing(made):
        for batch in made:
            yield batch.pin_memory()


def _told(images: Iterator[torch.Tensor]) -> Generator[torch.Tensor, None, None]:
    """The same, with one line where a picture has gone since it was checked, or the process that loads it."""
    try:
        yield from images
    except OSError as error:
        # the loader puts another process's traceback before the reason
        reason = str(error).strip().splitlines()[-1][:300]
        raise InputError(
            f"a picture can't be loaded any more ({reason}); leave the data set alone while it is used"
        ) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            "a process that loads pictures ended without a word, as when memory runs out; lower data.workers"
        ) from None


class _Decoder:
    """Decode a record into a (1 or 3, H, W) array: whole, or its largest central square at a given side."""

    def __init__(self, channels: int, side: int | None = None) -> None:
        self.mode, self.side = "L" if channels == 1 else "RGB", side

    def __call__(self, record: dict[str, Any]) -> np.ndarray:
        with open_image(record) as image:
            if self.side is not None:
                return square_pixels(image, self.mode, self.side)
            pixels = np.asarray(to_mode(image, self.mode))
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


# Epoch, batch number and rows of one batch, those of all processes.
_Key = tuple[int, int, np.ndarray]


class _Images(torch.utils.data.Dataset[torch.Tensor]):
    """The per-image path: an item is a whole batch, so that workers hand over finished ones."""

    def __init__(self, dataset: Dataset) -> None:
        self.encoded = dataset.select_columns(["image"]).with_format("arrow")
        self.max_megapixels = image_limit()

    def records(self, rows: np.ndarray) -> list[dict[str, Any]]:
        raise_image_limit(self.max_megapixels)  # a worker that was spawned has the default
        # all at once: a look-up in an Arrow table costs as much as decoding a small JPEG
        records: list[dict[str, Any]] = self.encoded[rows.tolist()]["image"].to_pylist()
        return records


class _Plain(_Images):
    """Batches without augmentation."""

    def __init__(self, dataset: Dataset, transform: InputTransform) -> None:
        super().__init__(dataset)
        self.transform = transform

    def __getitem__(self, key: _Key) -> torch.Tensor:
        return self.transform.normalize(torch.stack([self.transform.record(record) for record in self.records(key[2])]))


class _Augmented(_Images):
    """Batches augmented as the in-memory path does; the numbers come from (seed, epoch, batch), whoever draws them."""

    def __init__(self, batches: FaceBatches) -> None:
        super().__init__(batches.dataset)
        self.image_size, self.mean, self.std = batches.image_size, batches.mean, batches.std
        self.augment, self.seed, self.part = batches.augment or AugmentConfig(), batches.seed, batches.part
        self.decoder = _Decoder(batches.in_chans, batches._side)

    def __getitem__(self, key: _Key) -> torch.Tensor:
        epoch, number, whole = key
        mine = part_of(len(whole), *self.part)
        pixels = torch.from_numpy(np.stack([self.decoder(record) for record in self.records(whole[mine])]))
        draw = draw_augment(self.augment, len(whole), generator_for(self.seed, epoch, 1, number))[mine]
        return render_batch(pixels, self.image_size, self.mean, self.std, draw)


class _Loader:
    """A `DataLoader` whose keys change from one pass to the next, so that its workers can stay."""

    def __init__(self, pictures: torch.utils.data.Dataset[torch.Tensor], workers: int, keep: bool) -> None:
        from torch.utils.data import DataLoader

        self.keys: list[_Key] = []
        self.busy = False
        self.loader = DataLoader(
            pictures,
            batch_size=None,
            sampler=self.keys,
            num_workers=workers,
            persistent_workers=keep,
            # without its own generator the loader would draw its workers' seed from the global state
            generator=torch.Generator().manual_seed(0),
        )

    def run(self, keys: list[_Key]) -> Generator[torch.Tensor, None, None]:
        """The batches of `keys`, in order."""
        self.keys[:] = keys
        self.busy = True
        try:
            yield from self.loader
        finally:
            self.busy = False


def held_in_memory(sizes: np.ndarray, channels: int) -> bool:
    """Whether pictures are so small and alike that they are decoded once and resized as whole batches.

    Args:
        sizes: (N, 2 or more): width and height first.
        channels: Of the decoded pictures.
    """
    width, height = (int(n) for n in sizes[0, :2])
    uniform = bool((sizes[:, :2] == sizes[0, :2]).all())
    return uniform and max(width, height) <= _MEMORY_SIDE and len(sizes) * channels * height * width <= _MEMORY_BYTES


def square_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> InputTransform:
    """A bilinear resize of an image's largest central square, as `set_input` says of a student."""
    resize = {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center"}
    return InputTransform({"input_size": (len(mean), size, size), "mean": mean, "std": std, **resize})


def working_side(image_size: int, augment: AugmentConfig | None) -> int:
    """Side to which a large picture is brought before it is augmented: what is zoomed into keeps its detail."""
    return image_size if augment is None else math.ceil(image_size * (1 + augment.scale))


def _column(dataset: Dataset, name: str) -> np.ndarray:
    return np.asarray(dataset.select_columns([name]).with_format("numpy")[:][name])


def targets(dataset: Dataset) -> np.ndarray:
    """(N,) int64 labels, or (N, C) float32 soft labels where the set has them."""
    if "soft_label" in dataset.column_names:
        return _column(dataset, "soft_label").astype(np.float32).reshape(len(dataset), -1)
    return _column(dataset, "label").astype(np.int64)


def _valence_arousal(dataset: Dataset) -> torch.Tensor | None:
    if not {"valence", "arousal"} <= set(dataset.column_names):
        return None
    return torch.from_numpy(np.stack([_column(dataset, c) for c in ("valence", "arousal")], axis=1).astype(np.float32))
