"""Shared fixtures of the EEG tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ngd_timm.core.errors import InputError
from ngd_timm.eeg.readers import deap, dreamer, faced, untrusted


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the parsers of untrusted files without a child process: what they refuse is the same, and comes sooner."""

    def parse(reader: str, path: Path, **limits: float) -> Iterator[dict[str, np.ndarray]]:
        try:
            for arrays in getattr(untrusted, reader)(str(path)):
                yield {name: np.asarray(values) for name, values in arrays.items()}
        except untrusted.Refused as error:
            raise InputError(f"{path}: {error}") from None

    for module in (deap, dreamer, faced):
        monkeypatch.setattr(module, "read_limited", parse)
