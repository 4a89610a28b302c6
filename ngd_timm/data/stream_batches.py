"""Training batches from a stream: rows shuffled within a buffer, nothing kept but that buffer."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ngd_timm.core.errors import InputError
from ngd_timm.core.images import DAMAGE, damage_reason, open_image, per_channel, square_pixels
from ngd_timm.core.recipe import AugmentConfig
from ngd_timm.data.augment import draw_augment, render_batch
from ngd_timm.data.batches import Batch, handed_over, square_transform, working_side
from ngd_timm.data.fer import LoadReport
from ngd_timm.data.samplers import generator_for

if TYPE_CHECKING:
    from datasets import IterableDataset

    from ngd_timm.data.streaming import Tally

__all__ = ["FaceStream"]


class FaceStream:
    """`FaceBatches` for training from `load_fer(..., streaming=True)`: no copy on disk, no picture held but a buffer's.

    A new row takes the place of a random one in the buffer, which goes into the batch. So rows travel far forward but
    at most `buffer` back: a set that is sorted by class needs a buffer of the order of the set. Like a batch of
    `FaceBatches`, one is a function of (seed, epoch, batch number), and augmentation is the per-image path's.

    One pass at the start counts rows and classes and hashes them. Pictures are not decoded then, so a damaged one is
    refused only when a batch asks for it.

    Args:
        stream: With `image`, `label` (ClassLabel), and where the set has them `soft_label`, `valence`, `arousal`.
        image_size: Side of the model's input in pixels.
        in_chans: 1 (grey) or 3 (RGB).
        mean: Mean on the scale 0-1, one number or one a channel.
        std: Standard deviation on the scale 0-1, one number or one a channel.
        batch_size: Pictures a batch; a last, smaller one is left out.
        augment: None means none.
        seed: The run's seed.
        buffer: Encoded pictures that are held.
        ahead: Make batches in a thread while the caller works with the last one.

    Attributes:
        classes: Class names.
        counts: (C,) float64 rows a class, sums of the soft targets where there are any: for class weights.
        sha256: Of pictures, targets, and where there are any valence and arousal, in the stream's order.

    Raises:
        InputError: Fewer rows than a batch, or settings outside what is allowed.

    Example:
        >>> import tempfile
        >>> from ngd_timm.data import load_fer
        >>> from ngd_timm.data.synthetic.schematic import write_schematic
        >>> folder = write_schematic(tempfile.mkdtemp(), "pencil", n_train=16, n_valid=8, n_test=8, seed=0)
        >>> rows = load_fer("schematic", folder, "train", streaming=True)
        >>> batches = FaceStream(rows, image_size=32, batch_size=8, buffer=12)
        >>> [tuple(b.images.shape) for b in batches]
        [(8, 1, 32, 32), (8, 1, 32, 32)]
    """

    def __init__(
        self,
        stream: IterableDataset,
        *,
        image_size: int,
        in_chans: int = 1,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.25,
        batch_size: int = 128,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        buffer: int = 10_000,
        ahead: bool = False,
    ) -> None:
        from datasets import Image

        if in_chans not in (1, 3):
            raise InputError(f"in_chans must be 1 (grey) or 3 (RGB), got {in_chans}")
        if min(image_size, batch_size, buffer) < 1:
            raise InputError(
                f"image_size, batch_size and buffer must be at least 1, got {image_size}, {batch_size}, {buffer}"
            )
        features = stream.features
        self.classes: tuple[str, ...] = tuple(features["label"].names)
        self._soft = "soft_label" in features
        self._has_va = {"valence", "arousal"} <= set(features)
        self.stream = stream.cast_column("image", Image(decode=False))
        self.image_size, self.in_chans, self.batch_size, self.seed = image_size, in_chans, batch_size, seed
        self.mean, self.std = per_channel("mean", mean, in_chans), per_channel("std", std, in_chans)
        self.transform = square_transform(image_size, self.mean, self.std)
        self.augment, self.buffer, self.ahead = augment, buffer, ahead
        self.epoch = 0
        self.rows, self.counts, self.sha256 = self._count()
        if self.rows < batch_size:
            raise InputError(
                f"{self.rows} pictures are fewer than one batch of {batch_size}, and a smaller last batch is left out "
                "in training; lower batch_size"
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.rows // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches from number `start` on, equal to the tail of a whole epoch.

        The rows before it are read again, though not decoded.
        """
        yield from handed_over(self._make(self.epoch, start), self.ahead)

    def report(self, name: str, split: str, tally: Tally) -> LoadReport:
        """What `load_split` reports of a whole set, of `load_stream`'s tally and this stream's first pass."""
        return LoadReport(
            name=name,
            split=split,
            labels=tally.labels,
            read=tally.read,
            dropped=dict(tally.dropped),
            kept=self.rows,
            counts={c: round(float(n), 3) for c, n in zip(self.classes, self.counts, strict=True)},
            duplicates="nothing to compare" if split == "train" else "dropped while streaming",
            sha256=self.sha256,
            layout=f"{tally.layout}, streamed",
        )

    def _make(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        number, drawn = 0, list[tuple[int, dict[str, Any]]]()
        for item in self._shuffled(epoch):
            drawn.append(item)
            if len(drawn) == self.batch_size:
                if number >= start:
                    yield self._batch(drawn, epoch, number)
                number, drawn = number + 1, []

    def _shuffled(self, epoch: int) -> Iterator[tuple[int, dict[str, Any]]]:
        choose = np.random.default_rng([self.seed, epoch, 4])
        held: list[tuple[int, dict[str, Any]]] = []
        seen = 0
        for item in enumerate(self.stream):
            seen += 1
            if len(held) < self.buffer:
                held.append(item)
                continue
            place = int(choose.integers(self.buffer))
            yield held[place]
            held[place] = item
        if seen != self.rows:
            raise InputError(
                f"the stream gave {seen} rows, where it had given {self.rows}; pin the data set to a revision"
            )
        for place in choose.permutation(len(held)):
            yield held[place]

    def _batch(self, drawn: Sequence[tuple[int, dict[str, Any]]], epoch: int, number: int) -> Batch:
        side, mode = working_side(self.image_size, self.augment), "L" if self.in_chans == 1 else "RGB"
        pixels = torch.empty(len(drawn), self.in_chans, side, side, dtype=torch.uint8)
        view = pixels.numpy()
        for i, (index, row) in enumerate(drawn):
            try:
                with open_image(row["image"]) as image:
                    view[i] = self.transform(image) if self.augment is None else square_pixels(image, mode, side)
            except DAMAGE as error:
                name = row.get("source") or f"row {index}"
                reason = damage_reason(error)
                raise InputError(f"{name}: the picture can't be decoded ({reason}); replace or remove it") from None
        if self.augment is None:
            images = self.transform.normalize(pixels)
        else:
            draw = draw_augment(self.augment, len(drawn), generator_for(self.seed, epoch, 1, number))
            images = render_batch(pixels, self.image_size, self.mean, self.std, draw)
        rows = [row for _, row in drawn]
        target = torch.from_numpy(np.stack([self._target(row) for row in rows]))
        va = None
        if self._has_va:
            va = torch.tensor(
                [[np.nan if row[c] is None else row[c] for c in ("valence", "arousal")] for row in rows],
                dtype=torch.float32,
            )
        return Batch(images, target, va, torch.tensor([index for index, _ in drawn]))

    def _target(self, row: dict[str, Any]) -> np.ndarray:
        return np.asarray(row["soft_label"], np.float32) if self._soft else np.asarray(row["label"], np.int64)

    def _count(self) -> tuple[int, np.ndarray, str]:
        rows, counts, digest = 0, np.zeros(len(self.classes)), hashlib.sha256()
        for row in self.stream:
            target = self._target(row)
            if self._soft:
                counts += target
            else:
                counts[target] += 1
            digest.update(target.tobytes())
            if self._has_va:
                digest.update(np.array([row["valence"], row["arousal"]], dtype=np.float32).tobytes())
            data = row["image"]["bytes"] or str(row["image"]["path"]).encode()
            digest.update(len(data).to_bytes(8, "little") + data)
            rows += 1
        return rows, counts, digest.hexdigest()
