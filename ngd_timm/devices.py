"""The device that a recipe names."""

from __future__ import annotations

import torch

from ngd_timm.errors import InputError

__all__ = ["open_device"]


def open_device(name: str) -> torch.device:
    """The device of a name, `auto` taking a GPU where there is one.

    Raises:
        InputError: A name that torch doesn't know, or a device that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"device '{name}' is not on this machine; write auto, cpu or cuda") from None
    return device
