"""The device and the precision that a recipe names."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from torch import Tensor, nn

from ngd_timm.core.errors import InputError, choices

CPU = torch.device("cpu")
_PRECISIONS = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def open_device(name: str) -> torch.device:
    """The torch device of a name; `auto` is a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"device '{name}' is not on this machine; write auto, cpu or cuda") from None
    return device


def autocast_type(amp: str, device: torch.device, model: nn.Module | None = None) -> torch.dtype | None:
    """The autocast type of a recipe's `optim.amp`; None is float32. `auto` goes by the processor and the model.

    Measured (docs/speed.md): bf16 without AMX is faster than float32 on AMD's processors and slower on Intel's, and
    slower on both where convolutions are depthwise.
    """
    if amp in _PRECISIONS:
        return _PRECISIONS[amp]
    if amp != "auto":
        raise choices("precision", amp, (*_PRECISIONS, "auto"))
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    dot_products = capabilities.get("avx512_bf16") and processor_name().startswith("AMD")
    depthwise = model is not None and any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in model.modules())
    return torch.bfloat16 if capabilities.get("amx_bf16") or (dot_products and not depthwise) else None


def send(values: Tensor, device: torch.device) -> Tensor:
    """The same on a device; a GPU is not waited for."""
    if device.type == "cuda" and values.device.type == "cpu":
        # from memory that is not pinned even an asynchronous copy may wait
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)  # from a GPU nothing may be read before it has come


def precision_name(autocast: torch.dtype | None) -> str:
    """The precision of an autocast type, as fingerprints name it."""
    return "float32" if autocast is None else str(autocast).removeprefix("torch.")


def processor_name() -> str:
    """The processor of this machine, as its system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
