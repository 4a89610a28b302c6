"""A teacher's logits on disk, shared by all runs that train on the same augmented batches."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ngd_timm.core.errors import InputError, one_line
from ngd_timm.core.files import atomic_path, sha256_file, write_json

logger = logging.getLogger("ngd_timm.models")


class LogitCache:
    """A folder of teacher logits, one file an epoch; the hash of `key`, all that they depend on, names the folder."""

    def __init__(self, folder: str | Path, key: Mapping[str, Any], steps: int) -> None:
        text = json.dumps(key, sort_keys=True)
        self.folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:24]
        self.key, self.steps = json.loads(text), steps

    def read(self, epoch: int) -> tuple[Tensor, ...] | None:
        """An epoch's logits, batch by batch; None where no run has left them."""
        file = self._file(epoch)
        if not file.is_file():
            return None
        try:
            rows = np.load(file, allow_pickle=False)
            expected = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))["sha256"]
        except Exception as error:  # numpy has no common type of error
            raise InputError(f"{file} can't be read ({one_line(error)}); remove {self.folder}") from None
        if rows.ndim != 2 or rows.dtype != np.float32 or len(rows) % self.steps or sha256_file(file) != expected:
            raise InputError(f"{file} is not the one that was written; remove {self.folder}")
        return torch.from_numpy(rows).split(len(rows) // self.steps)

    def write(self, epoch: int, logits: Sequence[Tensor]) -> None:
        """Keep an epoch's logits, given batch by batch."""
        if not (self.folder / "key.json").is_file():
            write_json(self.folder / "key.json", self.key)
            logger.info(f"the teacher's logits are cached in {self.folder}")
        file = self._file(epoch)
        with atomic_path(file) as temporary:
            with open(temporary, "wb") as handle:
                np.save(handle, torch.cat(list(logits)).cpu().numpy(), allow_pickle=False)
            # the hash first: a file without one is never taken for a whole one
            write_json(file.with_suffix(".json"), {"sha256": sha256_file(temporary)})

    def _file(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:04d}.npy"
