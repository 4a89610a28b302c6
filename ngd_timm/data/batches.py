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

from ngd_timm.data.ahead import ahead as made_ahead
from ngd_timm.data.augment import AugmentDraw, draw_augment, render_batch
from ngd_timm.data.decode import check_image, decode_each, image_size_and_grey, open_image, square_pixels, to_mode
from ngd_timm.data.samplers import SAMPLERS, epoch_order, generator_for
from ngd_timm.errors import InputError, choices
from ngd_timm.processes import part_of
from ngd_timm.recipe import AugmentConfig

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Batch", "FaceBatches", "class_counts", "held_in_memory", "per_channel", "plain_transform", "targets"]

log = logging.getLogger("ngd_timm.data")

_MEMORY_SIDE = 96
_MEMORY_BYTES = 2 << 30
# Pictures of one size, smaller than the working side or hardly larger, are resampled once, by the augmentation.
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

    Small pictures of one size (sides up to 96 px, 2 GiB in all) are decoded once into a uint8 tensor and augmented a
    batch at a time. Others are decoded when they are drawn, each to a square a little larger than the model's input,
    augmented in the same way, and finished a whole batch at a time by worker processes, which live from epoch to
    epoch; for evaluation they go through timm's transform. Either way every picture is decoded once here, so damage is
    found before the first batch.

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
        flip: Mirror every picture (for a flip at test time).
        part: (number, count) of several processes. In training each takes its rows of every batch, drawn as for one; in
            evaluation they take turns at whole batches.
        ahead: Make batches in a thread while the caller works with the last one. Worth it where an accelerator does
            that work; on a processor alone the thread and the step want the same cores.

    Raises:
        InputError: A damaged picture, an empty data set, or settings outside what is allowed.

    Example:
        >>> import tempfile
        >>> from ngd_timm.data import load_fer
        >>> from ngd_timm.data.schematic import write_schematic
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
        flip: bool = False,
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
        self.workers, self.flip, self.part, self.ahead = workers, flip, part, ahead
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
        sizes = np.array(list(decode_each(self.dataset, image_size_and_grey, "opened")), dtype=np.int64)
        width, height = sizes[0, 0], sizes[0, 1]
        uniform = bool((sizes[:, :2] == sizes[0, :2]).all())
        channels = 1 if self.in_chans == 1 or bool(sizes[:, 2].all()) else 3
        shape = (len(sizes), channels, int(height), int(width))
        if in_memory and not uniform:
            other = int((sizes[:, :2] != sizes[0, :2]).any(1).argmax())
            raise InputError(
                f"in_memory=true needs pictures of one size, but row 0 is {width}x{height} and row {other} is "
                f"{sizes[other, 0]}x{sizes[other, 1]}; leave in_memory out"
            )
        self._side = working_side(self.image_size, self.augment)
        if uniform and min(width, height) <= _AS_THEY_ARE * self._side:
            self._side = int(min(width, height))
        if not (held_in_memory(sizes, channels) if in_memory is None else in_memory):
            log.info("checking all %d pictures before the first batch", len(sizes))
            for _ in decode_each(self.dataset, check_image):
                pass
            return None
        pixels = torch.empty(shape, dtype=torch.uint8)
        view = pixels.numpy()
        mode = "L" if channels == 1 else "RGB"
        for i, array in enumerate(decode_each(self.dataset, _Decoder(mode))):
            view[i] = array
        return pixels

    def _render(self, rows: Sequence[np.ndarray], epoch: int, start: int) -> Generator[torch.Tensor, None, None]:
        assert self._pixels is not None
        for number, index in enumerate(rows, start):
            draw, mine = None, self._mine(len(index))
            if self.augment is not None:
                draw = _drawn_for(self.augment, len(index), generator_for(self.seed, epoch, 1, number), mine)
            chosen = self._pixels[torch.from_numpy(index[mine])]
            yield render_batch(chosen, self.image_size, self.mean, self.std, draw, self.flip)

    def _load(self, rows: Sequence[np.ndarray], epoch: int, start: int) -> Generator[torch.Tensor, None, None]:
        keys = [(epoch, number, index) for number, index in enumerate(rows, start)]
        mode = "L" if self.in_chans == 1 else "RGB"
        normal = (self.image_size, self.mean, self.std)
        pictures: torch.utils.data.Dataset[torch.Tensor]
        if self.augment is None:
            pictures = _Plain(self.dataset, mode, plain_transform(*normal, self.flip))
        else:
            pictures = _Augmented(
                self.dataset, mode, *normal, self.augment, self.seed, self.flip, self._side, self.part
            )
        if self.workers == 0 or not keys:
            yield from (pictures[key] for key in keys)
        elif not self.train:
            yield from _Loader(pictures, min(self.workers, len(keys)), keep=False).run(keys)
        else:
            self._loader = self._loader or _Loader(pictures, self.workers, keep=True)
            # a second iteration beside one that is under way gets workers of its own
            loader = _Loader(pictures, self.workers, keep=False) if self._loader.busy else self._loader
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
    """Decode a record into a (1 or 3, H, W) array."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def __call__(self, record: dict[str, Any]) -> np.ndarray:
        with open_image(record) as image:
            pixels = np.asarray(to_mode(image, self.mode))
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _drawn_for(config: AugmentConfig, batch: int, generator: torch.Generator, mine: slice) -> AugmentDraw:
    """Drawn for the whole batch, so that a picture's numbers don't depend on how many processes there are."""
    draw = draw_augment(config, batch, generator)
    return AugmentDraw(draw.theta[mine], draw.brightness[mine], draw.contrast[mine], draw.box[mine])


# Epoch, batch number and rows of one batch, those of all processes.
_Key = tuple[int, int, np.ndarray]


class _Pictures(torch.utils.data.Dataset[torch.Tensor]):
    """The per-image path: an item is a whole batch, so that workers hand over finished ones."""

    def __init__(self, dataset: Dataset, mode: str) -> None:
        self.encoded = dataset.select_columns(["image"]).with_format("arrow")
        self.mode = mode

    def records(self, rows: np.ndarray) -> list[dict[str, Any]]:
        # all at once: a look-up in an Arrow table costs as much as decoding a small JPEG
        records: list[dict[str, Any]] = self.encoded[rows.tolist()]["image"].to_pylist()
        return records


class _Plain(_Pictures):
    """Batches without augmentation, through timm's transform for evaluation."""

    def __init__(self, dataset: Dataset, mode: str, transform: Callable[[Any], torch.Tensor]) -> None:
        super().__init__(dataset, mode)
        self.transform = transform

    def __getitem__(self, key: _Key) -> torch.Tensor:
        pictures = []
        for record in self.records(key[2]):
            with open_image(record) as image:
                pictures.append(self.transform(to_mode(image, self.mode)))
        return torch.stack(pictures)


class _Augmented(_Pictures):
    """Batches augmented as the in-memory path does; the numbers come from (seed, epoch, batch), whoever draws them."""

    def __init__(
        self,
        dataset: Dataset,
        mode: str,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: AugmentConfig,
        seed: int,
        flip: bool,
        side: int,
        part: tuple[int, int],
    ) -> None:
        super().__init__(dataset, mode)
        self.image_size, self.mean, self.std = image_size, mean, std
        self.augment, self.seed, self.flip, self.side, self.part = augment, seed, flip, side, part

    def __getitem__(self, key: _Key) -> torch.Tensor:
        epoch, number, whole = key
        mine = part_of(len(whole), *self.part)
        rows = whole[mine]
        pixels = torch.empty(len(rows), 1 if self.mode == "L" else 3, self.side, self.side, dtype=torch.uint8)
        view = pixels.numpy()
        for i, record in enumerate(self.records(rows)):
            with open_image(record) as image:
                view[i] = square_pixels(image, self.mode, self.side)
        draw = _drawn_for(self.augment, len(whole), generator_for(self.seed, epoch, 1, number), mine)
        return render_batch(pixels, self.image_size, self.mean, self.std, draw, self.flip)


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


def plain_transform(
    size: int, mean: Sequence[float], std: Sequence[float], flip: bool = False
) -> Callable[[Any], torch.Tensor]:
    """timm's transform for evaluation: a PIL picture to a normalised (C, size, size) tensor."""
    from timm.data import create_transform
    from torchvision import transforms as T

    plain = create_transform(
        (len(mean), size, size),
        is_training=False,
        crop_pct=1.0,
        mean=tuple(mean),
        std=tuple(std),
        interpolation="bilinear",
    )
    mirrored: Callable[[Any], torch.Tensor] = T.Compose([*([T.functional.hflip] if flip else []), plain])
    return mirrored


def working_side(image_size: int, augment: AugmentConfig | None) -> int:
    """Side to which a large picture is brought before it is augmented: what is zoomed into keeps its detail."""
    return image_size if augment is None else math.ceil(image_size * (1 + augment.scale))


def per_channel(what: str, value: float | Sequence[float], channels: int) -> tuple[float, ...]:
    """One number a channel, of one or of as many."""
    values = (float(value),) * channels if isinstance(value, (int, float)) else tuple(float(v) for v in value)
    if len(values) == 1:
        values *= channels
    if len(values) != channels:
        raise InputError(f"{what} must be one number or {channels}, one a channel, got {list(values)}")
    if what == "std" and min(values) <= 0:
        raise InputError(f"std must be above 0, got {list(values)}")
    return values


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
