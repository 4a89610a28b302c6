"""A recipe of a run that takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ngd_timm.core.recipe import Recipe


def tiny_recipe(faces: Path, out: Path, **changes: Any) -> Recipe:
    """Two epochs of a small student on drawn faces; changes replace whole sections."""
    base: dict[str, Any] = {
        "name": "tiny",
        "out": str(out),
        "student": {"backbone": "test_resnet", "image_size": 32},
        "data": {"name": "schematic", "root": str(faces), "workers": 0},
        "optim": {"epochs": 2, "batch_size": 16, "lr": 1e-3},
        "share_every": 2,
    }
    return Recipe.model_validate(base | changes)
