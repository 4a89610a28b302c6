"""How electrodes go together in each band, and vectors of it that a linear model may read."""

from __future__ import annotations

from collections import Counter

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.core.teacher_recipe import BANDS, TeacherData
from ngd_timm.eeg.signal import preprocess
from ngd_timm.eeg.signal.bandpower import BandPower
from ngd_timm.eeg.signal.recording import Recording, RecordingSet

_SHRINKAGE = 0.1  # towards a multiple of the identity: few segments don't fill a matrix of many electrodes
_WINDOWS = 8  # at a time, of which every frequency is in memory


def require_pyriemann() -> None:
    """Refuse `teacher.kind=riemann` where pyriemann is not installed."""
    try:
        import pyriemann  # noqa: F401
    except ModuleNotFoundError:
        raise InputError("teacher.kind=riemann needs pyriemann: pip install 'ngd-timm[riemann]'") from None


def cospectra(recordings: RecordingSet, settings: TeacherData, data: BandPower) -> np.ndarray:
    """The co-spectrum of every window of `data`, the band power of these recordings, read and filtered once more.

    A band's co-spectrum is the real part of the cross-spectrum, averaged over the band, on the segments that band power
    is taken from; its diagonal is proportional to the power. It is not divided by a baseline's: `tangent_z` takes the
    subject's mean out.

    Returns:
        (N, B, C, C) float32, symmetric and positive definite.

    Raises:
        InputError: The recordings aren't those of `data`.
    """
    index = {key: row for row, key in enumerate(zip(data.subject, data.trial, data.window, strict=True))}
    out = np.empty((len(data), len(data.bands), len(data.channels), len(data.channels)), dtype=np.float32)
    before: Counter[tuple[int, int]] = Counter()
    found = 0
    for recording in recordings:
        trial = (recording.subject, recording.trial)
        length = round(settings.window_s * recording.sfreq)
        count = recording.signal.shape[1] // length
        places = [place for place in range(count) if (*trial, before[trial] + place + 1) in index]
        rows = [index[(*trial, before[trial] + place + 1)] for place in places]
        before[trial] += count
        if rows:
            out[rows] = _of_windows(recording.pick(data.channels), places, length, settings, data.bands)
            found += len(rows)
    if found != len(data):
        raise InputError(f"{data.dataset}: the recordings are not those that the band power is of")
    return out


def _of_windows(
    recording: Recording, places: list[int], length: int, settings: TeacherData, bands: tuple[str, ...]
) -> np.ndarray:
    """(W, B, C, C) of the windows at these places."""
    from pyriemann.estimation import CoSpectra

    windows = preprocess.cut_windows(recording, length, settings)[:, places].transpose(1, 0, 2)
    segment = preprocess.segment_length(length, recording.sfreq)
    # its own limits, fmin and fmax, would take the edges of a band for 0 Hz and the Nyquist frequency, and halve them
    estimator = CoSpectra(segment, 0.5)
    frequencies = np.fft.rfftfreq(segment, 1 / recording.sfreq).round(6)
    inside = [(frequencies >= low) & (frequencies < high) for low, high in map(BANDS.__getitem__, bands)]
    parts = []
    for chunk in np.array_split(windows, range(_WINDOWS, len(windows), _WINDOWS)):
        spectra = estimator.transform(chunk)
        parts.append(np.stack([spectra[..., band].mean(axis=-1) for band in inside], axis=1))
    raw = np.concatenate(parts)
    mean_power = np.trace(raw, axis1=2, axis2=3)[..., None, None] / raw.shape[-1]
    return (1 - _SHRINKAGE) * raw + _SHRINKAGE * mean_power * np.eye(raw.shape[-1])


def tangent_z(matrices: np.ndarray, subject: np.ndarray) -> np.ndarray:
    """Tangent vectors of (N, B, C, C) co-spectra at each subject's own mean, z-scored within the subject.

    The mean takes out what is a person's own, and the gains of the electrodes; as `log_power_z`, it is transductive.
    It is the log-Euclidean one, which needs no iteration.

    Returns:
        (N, B * C * (C + 1) / 2) float32.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> factors = rng.normal(size=(6, 1, 4, 20))
        >>> tangent_z(factors @ factors.swapaxes(2, 3), np.array([1, 1, 1, 2, 2, 2])).shape
        (6, 10)

    Reference:
        Barachant et al., "Multiclass brain-computer interface classification by Riemannian geometry", IEEE Trans.
        Biomed. Eng. 59 (2012); Zanini et al., "Transfer learning: a Riemannian geometry framework", ibid. 65 (2018).
    """
    from pyriemann.tangentspace import TangentSpace

    count, bands, size, _ = matrices.shape
    out = np.empty((count, bands, size * (size + 1) // 2), dtype=np.float32)
    for number in np.unique(subject):
        rows = subject == number
        for band in range(bands):
            space = TangentSpace(metric={"mean": "logeuclid", "map": "riemann"})
            vectors = space.fit_transform(matrices[rows, band].astype(np.float64))
            std = vectors.std(axis=0)
            out[rows, band] = (vectors - vectors.mean(axis=0)) / np.maximum(std, 1e-9)
    return out.reshape(count, -1)
