"""Shared fixtures: one core a test process, and a few dozen drawn faces for whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, valid and test parquet of drawn faces."""
    from ngd_timm.data.schematic import write_schematic

    folder = tmp_path_factory.mktemp("faces")
    write_schematic(folder, "pencil", n_train=48, n_valid=16, n_test=16, seed=0, image_size=32)
    return folder
