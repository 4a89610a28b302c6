"""A teacher's logits on disk, shared by all runs that train on the same augmented batches."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ngd_timm.core.errors import InputError, one_line
from ngd_timm.core.files import atomic_path, write_json

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
            with safe_open(file, "pt") as opened:
                rows, expected = opened.get_tensor("logits"), (opened.metadata() or {}).get("sha256")
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} can't be read ({one_line(error)}); remove {self.folder}") from None
        if rows.ndim != 2 or rows.dtype != torch.float32 or len(rows) % self.steps or _sha256(rows) != expected:
            raise InputError(f"{file} is not the one that was written; remove {self.folder}")
        return rows.split(len(rows) // self.steps)

    def write(self, epoch: int, logits: Sequence[Tensor]) -> None:
        """Keep an epoch's logits, given batch by batch."""
        if not (self.folder / "key.json").is_file():
            write_json(self.folder / "key.json", self.key)
            logger.info(f"the teacher's logits are cached in {self.folder}")
        rows = torch.cat(list(logits)).cpu()
        with atomic_path(self._file(epoch)) as temporary:
            save_file({"logits": rows}, temporary, {"sha256": _sha256(rows)})

    def _file(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:04d}.safetensors"


def _sha256(rows: Tensor) -> str:
    return hashlib.sha256(rows.numpy().data).hexdigest()
