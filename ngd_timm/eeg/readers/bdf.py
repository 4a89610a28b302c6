"""BioSemi's 24-bit files: tiny ones written, headers looked at. Reading signals is MNE's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import atomic_path

__all__ = ["STEP_UV", "bdf_patient", "write_bdf"]

_MAGIC = b"\xffBIOSEMI"
_PHYSICAL = (-262144, 262143)  # µV, what BioSemi's own software writes
_DIGITAL = (-(2**23), 2**23 - 1)

STEP_UV = (_PHYSICAL[1] - _PHYSICAL[0]) / (_DIGITAL[1] - _DIGITAL[0])
"""One quantisation step, µV."""


def write_bdf(
    path: str | Path,
    signals: np.ndarray,
    sfreq: float,
    channels: Sequence[str],
    status: np.ndarray,
    patient: str = "",
) -> None:
    """Write a BDF file of 1-second records, the Status channel last, atomically.

    Args:
        path: The `.bdf` file.
        signals: (C, T) µV; T is a whole number of seconds.
        sfreq: Samples a second, a whole number.
        channels: C names of up to 16 ASCII characters.
        status: (T,) integers of 24 bits; BioSemi's triggers are the lower 16.
        patient: Up to 80 ASCII characters in the header's field about the person.

    Raises:
        InputError: What the format can't hold.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a.bdf"
        >>> write_bdf(file, np.zeros((2, 64)), 64, ["Fz", "Cz"], np.zeros(64, dtype=int), patient="nobody")
        >>> file.stat().st_size == 256 * 4 + 3 * 3 * 64, bdf_patient(file)
        (True, 'nobody')

    Reference:
        BioSemi, "Which file format does BioSemi use", www.biosemi.com/faq/file_format.htm
    """
    rate = round(sfreq)
    if rate != sfreq or rate < 1:
        raise InputError(f"{path}: a BDF file of 1-second records needs a whole sampling rate, got {sfreq} Hz")
    if signals.ndim != 2 or len(signals) != len(channels) or status.shape != signals.shape[1:]:
        raise InputError(
            f"{path}: signals must be ({len(channels)} channels, samples) and status (samples,), "
            f"got {signals.shape} and {status.shape}"
        )
    if not signals.shape[1] or signals.shape[1] % rate:
        raise InputError(f"{path}: {signals.shape[1]} samples are no whole number of seconds at {rate} Hz")
    digital = np.empty((len(channels) + 1, signals.shape[1]), dtype="<i4")
    scaled = np.round((signals.astype(np.float64) - _PHYSICAL[0]) / STEP_UV) + _DIGITAL[0]
    if not ((scaled >= _DIGITAL[0]) & (scaled <= _DIGITAL[1])).all():
        raise InputError(f"{path}: signals must lie in {_PHYSICAL[0]} to {_PHYSICAL[1]} µV")
    digital[:-1], digital[-1] = scaled, status
    records = digital.reshape(len(digital), -1, rate).transpose(1, 0, 2)
    low_bytes = np.ascontiguousarray(records).view(np.uint8).reshape(-1, 4)[:, :3]
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        handle.write(_header([*channels, "Status"], rate, len(records), patient))
        handle.write(low_bytes.tobytes())


def bdf_patient(path: str | Path) -> str:
    """The header's field about the person.

    Raises:
        InputError: Not a BDF file.
    """
    with open(path, "rb") as handle:
        head = handle.read(256)
    if len(head) < 256 or not head.startswith(_MAGIC):
        raise InputError(f"{path}: not a BDF file: it doesn't begin with BioSemi's header")
    return head[8:88].decode("latin-1").strip()


def _header(labels: Sequence[str], rate: int, records: int, patient: str) -> bytes:
    count = len(labels)
    eeg = count - 1
    fixed = [
        (patient, 80),
        ("", 80),  # recording
        ("01.01.00", 8),
        ("00.00.00", 8),
        (str(256 * (count + 1)), 8),
        ("24BIT", 44),
        (str(records), 8),
        ("1", 8),  # seconds a record
        (str(count), 4),
    ]
    columns: list[tuple[Sequence[str], int]] = [
        (labels, 16),
        (["Active Electrode"] * eeg + ["Triggers and Status"], 80),
        (["uV"] * eeg + ["Boolean"], 8),
        ([str(_PHYSICAL[0])] * eeg + [str(_DIGITAL[0])], 8),
        ([str(_PHYSICAL[1])] * eeg + [str(_DIGITAL[1])], 8),
        ([str(_DIGITAL[0])] * count, 8),
        ([str(_DIGITAL[1])] * count, 8),
        (["HP: DC; LP: 113 Hz"] * eeg + ["No filtering"], 80),
        ([str(rate)] * count, 8),
        ([""] * count, 32),
    ]
    fields = [*fixed, *((text, width) for texts, width in columns for text in texts)]
    return _MAGIC + b"".join(_field(text, width) for text, width in fields)


def _field(text: str, width: int) -> bytes:
    if not text.isascii() or len(text) > width:
        raise InputError(f"a BDF header holds {width} ASCII characters here, got '{text}'")
    return text.encode("ascii").ljust(width)
