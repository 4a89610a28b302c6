"""BioSemi's 24-bit files: tiny ones are written by edfio, headers are looked at. Reading signals is MNE's."""

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
    from edfio import Bdf, BdfSignal

    if signals.ndim != 2 or len(signals) != len(channels) or status.shape != signals.shape[1:]:
        raise InputError(
            f"{path}: signals must be ({len(channels)} channels, samples) and status (samples,), "
            f"got {signals.shape} and {status.shape}"
        )
    signed = ((status.astype(np.int32) << 8) >> 8).astype(np.float64)  # the 24 bits as two's complement
    try:
        columns = [
            BdfSignal(values, sfreq, label=name, physical_dimension="uV", physical_range=_PHYSICAL)
            for name, values in zip(channels, signals.astype(np.float64), strict=True)
        ]
        columns.append(BdfSignal(signed, sfreq, label="Status", physical_dimension="Boolean", physical_range=_DIGITAL))
        bdf = Bdf(columns, data_record_duration=1)
        bdf.local_patient_identification = patient
    except ValueError as error:
        raise InputError(f"{path}: can't be written as BDF in records of 1 s ({error})") from None
    with atomic_path(path) as temporary:
        bdf.write(temporary)


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
