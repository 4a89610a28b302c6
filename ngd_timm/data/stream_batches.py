"""Training batches from a stream: rows shuffled within a buffer, nothing kept but that buffer."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ngd_timm.core.devices import CPU
from ngd_timm.core.distributed import gather
from ngd_timm.core.errors import InputError
from ngd_timm.core.images import DAMAGE, damage_reason
from ngd_timm.core.recipe import AugmentConfig
from ngd_timm.data.batches import Batch, Batches
from ngd_timm.data.fer import LoadReport
from ngd_timm.data.layouts.rows import read_image_file
from ngd_timm.data.streaming import Tally

if TYPE_CHECKING:
    from datasets import IterableDataset


class FaceStream(Batches):
    """`FaceBatches` for training from `load_fer(..., streaming=True)`: no copy on disk, a buffer of images in memory.

    A new row takes the place of a random one in the buffer, which goes into the batch. So rows travel far forward but
    at most `buffer` back: a set that is sorted by class needs a buffer of the order of the set. Like a batch of
    `FaceBatches`, one is a function of (seed, epoch, batch number), and augmentation is the per-image path's.

    One pass at the start counts rows and classes and hashes them. Images are not decoded then, so a damaged one is
    refused only when its batch is made. Resuming within an epoch reads its first rows again, without decoding them.

    Args:
        stream: With `image`, `label` (ClassLabel), and where the set has them `soft_label`, `valence`, `arousal`.
        image_size: As in `FaceBatches`, like the others; a last, smaller batch is left out.
        buffer: Encoded images that are held, by each process.
        part: (number, count) of several processes, which must all make theirs. Each reads its own shards where `count`
            divides their number, else every `count`-th row, and has its part of every batch.

    Attributes:
        counts: (C,) float64 rows a class, sums of the soft targets where there are any: for class weights.
        sha256: Of images, targets, and where there are any valence and arousal, in the stream's order.

    Raises:
        InputError: Fewer rows than a batch, or settings outside what is allowed.

    Examples:
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
        part: tuple[int, int] = (0, 1),
        device: torch.device = CPU,
    ) -> None:
        from datasets import Image
        from datasets.distributed import split_dataset_by_node

        super().__init__(
            stream.features, image_size, in_chans, mean, std, batch_size, augment, seed, ahead, None, part, device
        )
        if buffer < 1:
            raise InputError(f"buffer must be at least 1, got {buffer}")
        self.buffer = buffer
        self._soft = "soft_label" in stream.features
        self._has_va = {"valence", "arousal"} <= set(stream.features)
        self.part, self.has_own_shards = part, stream.num_shards % part[1] == 0
        stream = stream if part[1] == 1 else split_dataset_by_node(stream, *part)
        self.stream = stream.cast_column("image", Image(decode=False))
        own = self.renderer.rows(batch_size)
        self.own_size = own.stop - own.start  # this process's images of a batch
        self.rows, counts, digest = self._count()
        each = gather((self.rows, counts, digest, self.rows // self.own_size))
        self.counts, self.batch_count = sum(c for _, c, *_ in each), min(n for *_, n in each)
        self.total = sum(rows for rows, *_ in each)
        digests = [digest for *_, digest, _ in each]
        self.sha256 = digest if len(each) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        self._require_a_batch(self.total)
        if not self.batch_count:
            raise InputError(
                f"a process has fewer than the {self.own_size} images that are its part of a batch of {batch_size}; "
                "lower batch_size, or start fewer processes"
            )

    def __len__(self) -> int:
        """Batches in an epoch: as many as the process with the fewest rows has."""
        return self.batch_count

    def report(self, name: str, split: str, tally: Tally) -> LoadReport:
        """The report that `load_split` gives, from `load_stream`'s tally and this stream's first pass."""
        read, dropped = tally.read, Counter(tally.dropped)
        if self.has_own_shards:  # else each process has read all rows
            read, dropped = 0, Counter()
            for n, reasons in gather((tally.read, tally.dropped)):
                read += n
                dropped.update(reasons)
        return LoadReport(
            name=name,
            split=split,
            labels=tally.labels,
            read=read,
            dropped=dict(dropped),
            kept=self.total,
            counts={c: round(float(n), 3) for c, n in zip(self.classes, self.counts, strict=True)},
            duplicates="nothing to compare" if split == "train" else "dropped while streaming",
            sha256=self.sha256,
            layout=f"{tally.layout}, streamed",
            dataset_id=tally.dataset_id,
        )

    def _batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        number, items = 0, list[tuple[int, dict[str, Any]]]()
        for item in self._shuffled(epoch):
            items.append(item)
            if len(items) == self.own_size:
                if start <= number < len(self):  # other processes may have fewer
                    yield self._batch(items, epoch, number)
                number, items = number + 1, []

    def _shuffled(self, epoch: int) -> Iterator[tuple[int, dict[str, Any]]]:
        number = self.part[0]
        rng = np.random.default_rng([self.seed, epoch, 4] + ([number] if number else []))
        held: list[tuple[int, dict[str, Any]]] = []
        seen = 0
        for item in enumerate(self.stream):
            seen += 1
            if len(held) < self.buffer:
                held.append(item)
                continue
            place = int(rng.integers(self.buffer))
            yield held[place]
            held[place] = item
        if seen != self.rows:
            raise InputError(
                f"the stream gave {seen} rows, where it had given {self.rows}; pin the data set to a revision"
            )
        for place in rng.permutation(len(held)):
            yield held[place]

    def _batch(self, items: Sequence[tuple[int, dict[str, Any]]], epoch: int, number: int) -> Batch:
        rows = [row for _, row in items]
        pixels = torch.from_numpy(np.stack([self._decode(index, row) for index, row in items]))
        va = np.array([[row["valence"], row["arousal"]] for row in rows], np.float32) if self._has_va else None
        return Batch(
            self.renderer.render(pixels, epoch, number, self.batch_size),
            torch.from_numpy(np.stack([self._target(row) for row in rows])),
            None if va is None else torch.from_numpy(va),
            torch.tensor([index for index, _ in items]),
        ).to(self.renderer.device)

    def _decode(self, index: int, row: dict[str, Any]) -> np.ndarray:
        try:
            return self.renderer.decode(row["image"])
        except DAMAGE as error:
            name = row.get("source") or f"row {index}"
            raise InputError(
                f"{name}: the image can't be decoded ({damage_reason(error)}); replace or remove it"
            ) from None

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
            data = row["image"]["bytes"]
            data = read_image_file(row["image"]["path"]) if data is None else data
            digest.update(len(data).to_bytes(8, "little") + data)
            rows += 1
        return rows, counts, digest.hexdigest()
