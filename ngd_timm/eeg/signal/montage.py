"""Recordings on the electrodes of another set: MNE's spherical splines where they lack one."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.eeg.signal.recording import Recording, RecordingSet
from ngd_timm.eeg.topomap import standard_montage


def interpolated(recordings: RecordingSet, channels: Sequence[str]) -> RecordingSet:
    """The same recordings on these electrodes, in this order; those that a recording lacks are interpolated."""
    wanted = tuple(channels)
    matrix = lru_cache(maxsize=None)(spline_matrix)

    def read() -> Iterator[Recording]:
        for recording in recordings:
            if set(wanted) <= set(recording.channels):
                yield recording.pick(wanted)
                continue
            weights, rest = matrix(recording.channels, wanted), recording.baseline
            yield replace(
                recording,
                signal=(weights @ recording.signal).astype(recording.signal.dtype),
                baseline=None if rest is None else (weights @ rest).astype(rest.dtype),
                channels=wanted,
            )

    # a reader adds to its notes while it reads, so they are looked at later
    note = "electrodes that a recording lacks are interpolated by spherical splines, which adds no information"
    return replace(recordings, read=read, notes=ChainMap({"montage": note}, recordings.notes))  # type: ignore[arg-type]


def spline_matrix(have: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """(W, H) weights that turn the signals of H electrodes into those of W: spherical splines are linear in them.

    Raises:
        InputError: Electrodes without a place in the 10-05 system.

    Reference:
        Perrin et al., "Spherical splines for scalp potential and current density mapping", Electroencephalogr. Clin.
        Neurophysiol. 72 (1989); `mne.Evoked.interpolate_bads`.
    """
    import mne

    missing = [name for name in wanted if name not in have]
    montage = standard_montage("standard_1005")
    unplaced = [name for name in (*have, *missing) if name not in montage.ch_names]
    if unplaced:
        raise InputError(
            f"no place on the head is known for {', '.join(unplaced)}; interpolation needs names of the 10-05 system"
        )
    names = [*have, *missing]
    impulses = mne.EvokedArray(np.eye(len(names), len(have)), mne.create_info(names, 1.0, "eeg", verbose="error"))
    impulses.set_montage(montage, verbose="error")
    impulses.info["bads"] = missing
    impulses.interpolate_bads(verbose="error")
    return impulses.get_data(picks=list(wanted))
