"""Recordings on the electrodes of another set: MNE's spherical splines where they lack one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.eeg.signal.recording import Recording, RecordingSet
from ngd_timm.eeg.topomap import standard_montage


def interpolated(recordings: RecordingSet, channels: Sequence[str]) -> RecordingSet:
    """The same recordings on these electrodes, in this order; those that a recording lacks are interpolated.

    Examples:
        >>> have = ("Fz", "Cz", "Pz", "C3", "C4")
        >>> flat = Recording(1, 1, np.ones((5, 8)), 128.0, have, (0.0, 0.0))
        >>> (recording,) = interpolated(RecordingSet("ones", (), lambda: iter([flat])), ("Cz", "CP1"))
        >>> recording.channels, bool(np.allclose(recording.signal, 1, atol=1e-3))
        (('Cz', 'CP1'), True)
    """
    wanted = tuple(channels)

    def read() -> Iterator[Recording]:
        matrices: dict[tuple[str, ...], np.ndarray] = {}
        for recording in recordings:
            have = recording.channels
            if set(wanted) <= set(have):
                yield recording.pick(wanted)
                continue
            if have not in matrices:
                matrices[have] = spline_matrix(have, wanted)
            matrix, rest = matrices[have], recording.baseline
            yield replace(
                recording,
                signal=(matrix @ recording.signal).astype(recording.signal.dtype),
                baseline=None if rest is None else (matrix @ rest).astype(rest.dtype),
                channels=wanted,
            )

    note = "electrodes that a recording lacks are interpolated by spherical splines, which adds no information"
    return replace(recordings, read=read, notes={**recordings.notes, "montage": note})


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
