"""A teacher's logits on disk: queried once for each augmented batch, then shared by all runs with the same batches."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import atomic_path, sha256_file, write_json
from ngd_timm.models.kd_teacher import KDTeacher, TeacherEnsemble

__all__ = ["CachedTeacher"]

logger = logging.getLogger("ngd_timm.models")


class CachedTeacher(nn.Module):
    """A `KDTeacher` that reads an epoch's logits from a file where one run has left them, and leaves them where not.

    Batches are a function of data, augmentation, sampler and seed alone, so that all recipes of one seed see the same
    ones, epoch for epoch; what is cached is what the teacher would say, to the last bit. A file holds an epoch, and is
    written once the epoch is complete; an epoch that was entered midway (a resumed one) is not written.

    Args:
        teacher: Asked where the cache is silent.
        folder: The cache; runs with other batches or another teacher get folders of their own in it.
        key: Everything that the logits depend on; its hash names the folder.
        steps: Batches in an epoch.

    Raises:
        InputError: A cache file of another size, or one that was changed since it was written.

    Example:
        >>> import tempfile, timm
        >>> model = timm.create_model("test_resnet", num_classes=8, in_chans=1)
        >>> opened = KDTeacher(model, range(8), range(8), (0.5,), (0.25,))
        >>> teacher = CachedTeacher(opened, tempfile.mkdtemp(), {"teacher": "b0_ce", "seed": 0}, steps=1)
        >>> teacher.at(epoch=0, step=0)
        >>> tuple(teacher(torch.zeros(4, 1, 32, 32)).shape), teacher.queries
        ((4, 8), 1)
    """

    def __init__(
        self, teacher: KDTeacher | TeacherEnsemble, folder: str | Path, key: Mapping[str, Any], steps: int
    ) -> None:
        super().__init__()
        text = json.dumps(key, sort_keys=True)
        self.folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:24]
        self.key, self.steps = json.loads(text), steps
        self._held = [teacher]
        self.queries = 0
        self._epoch, self._step = -1, -1
        self._stored: np.ndarray | None = None
        self._new: dict[int, Tensor] = {}

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> CachedTeacher:
        super()._apply(fn, recurse)
        self._held[0]._apply(fn, recurse)
        return self

    def at(self, epoch: int, step: int) -> None:
        """Say which batch comes next."""
        if epoch != self._epoch:
            self._epoch, self._new = epoch, {}
            self._stored = self._read(epoch)
        self._step = step

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        if self._stored is not None:
            rows = slice(self._step * len(images), (self._step + 1) * len(images))
            logits = torch.from_numpy(np.array(self._stored[rows])).to(images.device)
            if len(logits) != len(images):
                raise InputError(f"{self._file(self._epoch)} has no batch {self._step + 1}; remove {self.folder}")
            return logits
        # a batch is also looked at to measure gradients
        if self._step not in self._new:
            self.queries += 1
            self._new[self._step] = self._held[0](images).float()
            if len(self._new) == self.steps:
                self._write()
        return self._new[self._step]

    def _file(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:04d}.npy"

    def _read(self, epoch: int) -> np.ndarray | None:
        file = self._file(epoch)
        if not file.is_file():
            return None
        try:
            stored = np.load(file, allow_pickle=False)
            expected = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} can't be read ({' '.join(str(error).split())[:100]}); remove {self.folder}"
            ) from None
        if stored.ndim != 2 or stored.dtype != np.float32 or sha256_file(file) != expected:
            raise InputError(f"{file} is not the one that was written; remove {self.folder}")
        return stored

    def _write(self) -> None:
        file = self._file(self._epoch)
        rows = torch.cat([self._new[step] for step in range(self.steps)]).cpu().numpy()
        if not (self.folder / "key.json").is_file():
            write_json(self.folder / "key.json", self.key)
            logger.info(f"the teacher's logits are kept in {self.folder}")
        with atomic_path(file) as temporary:
            with open(temporary, "wb") as handle:
                np.save(handle, rows, allow_pickle=False)
            # the hash first: a file without one is never taken for a whole one
            write_json(file.with_suffix(".json"), {"sha256": sha256_file(temporary)})
