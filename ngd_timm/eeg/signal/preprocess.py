"""Raw signals to band power: filter, windows, artefacts, Welch, baseline; one recording in memory at a time."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.progress import track

from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.teacher_recipe import BANDS, TeacherData
from ngd_timm.eeg.signal.bandpower import BandPower
from ngd_timm.eeg.signal.recording import Recording, RecordingSet

FEATURES = 3
"""Raised when the steps here, or what a reader gives, change: cached band power of an older number is not used."""

logger = logging.getLogger("ngd_timm.eeg")

_SEGMENT_S = 2.0  # Welch: 0.5 Hz between bins, whatever the window
_FIR_S = 3.3  # length of a Hamming FIR for a transition of 1 Hz


def band_power(recordings: RecordingSet, settings: TeacherData) -> BandPower:
    """Band power of every clean window of every recording.

    A recording loses its mean, is filtered (zero-phase FIR) and notched, and cut into windows without overlap. Dropped
    are windows that swing wider than `artefact_uv` in some channel or in which a channel stands still, trials with a
    dead channel, and subjects left with one window. Power is Welch's over Hann segments of 2 s (or the window, if
    shorter), half overlapped. With `baseline`, it is divided by the geometric mean of the power in the clean baseline
    windows of the same trial.

    Returns:
        Rows in the order read; power in µV² (a ratio where corrected); `window` is numbered from 1 by its place in the
        trial, so that a dropped one leaves a gap; the notes say what was done and what was dropped.

    Raises:
        InputError: A channel that is lacking, a rate too low for the filter, a baseline in some recordings only, a band
            outside the filter, nothing left.

    Examples:
        >>> time = np.arange(1024) / 128
        >>> signal = 4200 + np.outer([10, 20], np.sin(2 * np.pi * 10 * time))  # µV, on the offset of an Emotiv
        >>> read = lambda: iter([Recording(1, 1, signal, 128.0, ("O1", "O2"))])
        >>> data = band_power(RecordingSet("a sine", (), read), TeacherData(name="recordings", bands=("alpha",)))
        >>> data.power[0, 0].round(-1).tolist()  # half the square of the amplitude
        [50.0, 200.0]

    Reference:
        Welch, "The use of fast Fourier transform for the estimation of power spectra", IEEE Trans. Audio 15 (1967).
    """
    bands = check_bands(settings)
    limits = np.array([BANDS[band] for band in bands])
    channels, corrected = settings.channels, None
    rows: list[np.ndarray] = []
    keys: list[tuple[int, int, int]] = []
    ratings: list[tuple[float, float]] = []
    stimuli: list[str] = []
    tally = _Tally()
    hidden = not Console().is_terminal
    for recording in track(recordings, f"{recordings.dataset}: band power", disable=hidden, transient=True):
        recording = _in_order(recording, settings.channels, channels)
        channels = recording.channels
        present = recording.baseline is not None
        if settings.baseline and present != (present if corrected is None else corrected):
            raise InputError(
                f"{recording} has {'a' if present else 'no'} baseline, unlike the recordings before it; "
                "switch the correction off with data.baseline=false"
            )
        corrected = settings.baseline and present
        trial = (recording.subject, recording.trial)
        before = tally.windows[trial]
        power, places = _recording_power(recording, limits, settings, tally)
        rows.append(power.astype(np.float32))
        keys.extend((*trial, before + place + 1) for place in places.tolist())
        ratings.extend([recording.valence_arousal or (np.nan, np.nan)] * len(power))
        stimuli.extend([recording.stimulus or ""] * len(power))
    if not rows:
        raise InputError(f"{recordings.dataset} holds no recordings")
    subject, number, window = np.array(keys, dtype=np.int64).reshape(-1, 3).T
    enough = _have_z_scores(subject, number, tally)
    if not enough.any():
        raise InputError(
            f"{recordings.dataset}: no trial is left ({tally.reasons}); raise data.artefact_uv={settings.artefact_uv} "
            f"(are the signals in µV?), lower data.window_s={settings.window_s:g}, or leave dead channels out with "
            "data.channels"
        )
    notes = {**recordings.notes, **_notes(settings, bool(corrected), tally, len(np.unique(subject[enough])))}
    dropped = "; ".join(f"{key}: {notes[key]}" for key in ("artefacts", "trials dropped", "subjects dropped"))
    logger.info("%s: %s", recordings.dataset, dropped)
    if 2 * tally.dropped > sum(tally.windows.values()):
        warning = "%s: more than half of the windows are dropped; look at the signal, or raise data.artefact_uv"
        logger.warning(warning, recordings.dataset)
    return BandPower(
        power=np.concatenate(rows),
        bands=bands,
        channels=channels or (),
        valence_arousal=np.array(ratings, dtype=np.float32),
        subject=subject,
        trial=number,
        window=window,
        dataset=recordings.dataset,
        notes=notes,
        simulated=recordings.simulated,
        stimulus=np.array(stimuli) if any(stimuli) else None,
    ).rows(enough)


def filter_bands(settings: TeacherData) -> tuple[str, ...]:
    """The bands that lie whole between high-pass and low-pass."""
    return tuple(b for b, (low, high) in BANDS.items() if settings.highpass <= low and high <= settings.lowpass)


def check_bands(settings: TeacherData) -> tuple[str, ...]:
    """The bands of the settings, all of `BANDS` for None; one that the filter cuts into is refused."""
    bands, inside = tuple(settings.bands or BANDS), filter_bands(settings)
    for band in bands:  # a copy of settings is not validated
        if band not in BANDS:
            raise choices("band", band, BANDS)
    outside = [f"{band} ({BANDS[band][0]:g}-{BANDS[band][1]:g} Hz)" for band in bands if band not in inside]
    if outside:
        raise InputError(
            f"{', '.join(outside)} lies outside data.highpass={settings.highpass:g} to "
            f"data.lowpass={settings.lowpass:g} Hz; widen the filter, or data.bands=[{', '.join(inside)}]"
        )
    return bands


@dataclass
class _Tally:
    """What was read and what was dropped."""

    rates: set[float] = field(default_factory=set)
    windows: Counter[tuple[int, int]] = field(default_factory=Counter)  # of each trial, clean or not
    dropped: int = 0
    lost: dict[tuple[int, int], str] = field(default_factory=dict)  # trials, and why
    brief: int = 0  # signals and baselines shorter than the filter

    @property
    def reasons(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(self.lost.values()).items()))


def _in_order(recording: Recording, channels: Sequence[str] | None, first: Sequence[str] | None) -> Recording:
    """The channels that the settings name, or else those of the first recording, in their order."""
    extra = [name for name in recording.channels if name not in (first or recording.channels)]
    remedy = "name those that all have in data.channels"
    if channels is None and extra:
        raise InputError(f"{recording} has the channels {', '.join(extra)}, which recordings before it lack; {remedy}")
    names = tuple(channels or first or recording.channels)
    try:
        return recording if names == recording.channels else recording.pick(names)
    except InputError as error:
        raise InputError(f"{error}" if channels else f"{error}, unlike recordings before it; {remedy}") from None


def _recording_power(
    recording: Recording, limits: np.ndarray, settings: TeacherData, tally: _Tally
) -> tuple[np.ndarray, np.ndarray]:
    """Power (W, B, C) of the clean windows, over that at rest where there is a baseline, and their places from 0."""
    trial, sfreq, rest = (recording.subject, recording.trial), recording.sfreq, recording.baseline
    length = round(settings.window_s * sfreq)
    count = recording.signal.shape[1] // length
    tally.rates.add(sfreq)
    tally.windows[trial] += count
    power, places, dead = _window_power(recording, recording.signal, length, limits, settings, tally)
    tally.dropped += count - len(power)
    if not len(power):
        tally.lost[trial] = f"with a dead channel: {dead}" if dead else "without a clean window"
    elif settings.baseline and rest is not None:
        # Windows as long as the trial's, or one of all there is: Welch's segments are the same.
        shorter = min(length, max(min(length, round(_SEGMENT_S * sfreq)), rest.shape[1]))
        at_rest, _, dead = _window_power(recording, rest, shorter, limits, settings, tally)
        if not len(at_rest):
            tally.lost[trial] = f"with a dead channel: {dead}" if dead else "without a clean window of baseline"
            return power[:0], places[:0]
        power = np.exp(np.log(power) - np.log(at_rest).mean(axis=0))
    return power, places


def _window_power(
    recording: Recording, signal: np.ndarray, length: int, limits: np.ndarray, settings: TeacherData, tally: _Tally
) -> tuple[np.ndarray, np.ndarray, str]:
    """Power (W, B, C) of the clean windows of a (C, T) signal, their places from 0, and the names of dead channels.

    A channel is dead where it never changes, or has no power in any window; then there is no window.
    """
    count = signal.shape[1] // length
    dead = np.ptp(signal, axis=1) == 0 if count else np.zeros(len(signal), dtype=bool)
    power, places = np.empty((0, len(limits), len(signal))), np.arange(0)
    if count and not dead.any():
        tally.brief += signal.shape[1] < _FIR_S / min(settings.highpass, 2.0) * recording.sfreq
        windows, places = _cut(_filtered(recording, signal, settings), count, length), np.arange(count)
        if settings.artefact_uv is not None:
            moving = np.ptp(_cut(signal, count, length), axis=2) > 0
            places = np.flatnonzero(((np.ptp(windows, axis=2) <= settings.artefact_uv) & moving).all(axis=0))
            windows = windows[:, places]
        power = _welch(windows, recording.sfreq, limits)
        loud = power.min(axis=1) > np.finfo(np.float32).tiny
        if len(loud) and not loud.all(axis=1).any():
            dead = ~loud.all(axis=0)
        power, places = power[loud.all(axis=1)], places[loud.all(axis=1)]
    return power, places, ", ".join(recording.channels[row] for row in np.flatnonzero(dead))


def cut_windows(recording: Recording, length: int, settings: TeacherData) -> np.ndarray:
    """(C, W, length) all windows of a recording's filtered signal, clean or not, in µV."""
    return _cut(_filtered(recording, recording.signal, settings), recording.signal.shape[1] // length, length)


def segment_length(length: int, sfreq: float) -> int:
    """Samples of the segments that a window's spectrum is the mean of."""
    return min(length, round(_SEGMENT_S * sfreq))


def _cut(signal: np.ndarray, count: int, length: int) -> np.ndarray:
    return signal[:, : count * length].reshape(len(signal), count, length)


def _filtered(recording: Recording, signal: np.ndarray, settings: TeacherData) -> np.ndarray:
    import mne

    sfreq = recording.sfreq
    if settings.lowpass >= sfreq / 2:
        raise InputError(
            f"{recording} has {sfreq:g} samples a second, which holds frequencies below {sfreq / 2:g} Hz; "
            f"lower data.lowpass={settings.lowpass:g}"
        )
    values = signal.astype(np.float64)
    # An offset of thousands of µV would ring at both ends.
    values -= values.mean(axis=1, keepdims=True)
    values = mne.filter.filter_data(values, sfreq, settings.highpass, settings.lowpass, copy=False, verbose="error")
    if settings.notch is not None:
        top = min(_passed(settings), sfreq / 2 - 1)  # MNE needs an edge of a hertz below half the rate
        lines = np.arange(settings.notch, top, settings.notch, dtype=float)
        if len(lines):
            values = mne.filter.notch_filter(values, sfreq, lines, copy=False, verbose="error")
    return values


def _passed(settings: TeacherData) -> float:
    """The frequency, Hz, past which the low-pass leaves nothing to notch."""
    return settings.lowpass + max(0.25 * settings.lowpass, 2.0)


def _welch(windows: np.ndarray, sfreq: float, limits: np.ndarray) -> np.ndarray:
    """Windows (C, W, T) to power (W, B, C): the mean density in a band times its width; edges are half-open."""
    from scipy.signal import welch

    segment = segment_length(windows.shape[2], sfreq)
    out = np.empty((windows.shape[1], len(limits), len(windows)))
    for row, window in enumerate(windows.swapaxes(0, 1)):  # all at once would take four times the memory
        frequencies, density = welch(window, sfreq, "hann", segment, segment // 2)
        for band, (low, high) in enumerate(limits):
            inside = (frequencies.round(6) >= low) & (frequencies.round(6) < high)
            out[row, band] = density[:, inside].mean(axis=1) * (high - low)
    return out


def _have_z_scores(subject: np.ndarray, trial: np.ndarray, tally: _Tally) -> np.ndarray:
    """(N,) bool: windows of subjects with at least two. Trials of the others are added to those that are lost."""
    _, index, counts = np.unique(subject, return_inverse=True, return_counts=True)
    enough = counts[index.reshape(-1)] > 1
    for key, pair in zip(zip(subject.tolist(), trial.tolist(), strict=True), enough.tolist(), strict=True):
        tally.lost.pop(key, None)
        if not pair:
            tally.lost[key] = "of a subject with one window"
    return enough


def _notes(settings: TeacherData, corrected: bool, tally: _Tally, subjects: int) -> dict[str, str]:
    total, read = sum(tally.windows.values()), len({subject for subject, _ in tally.windows})
    brief = f"; signals shorter than it, and less exact in the slowest band: {tally.brief}" if tally.brief else ""
    notch = f", notch at {settings.notch} Hz" if settings.notch and settings.notch < _passed(settings) else ""
    share = f"{tally.dropped} of {total} windows ({100 * tally.dropped / max(total, 1):.2f} %) dropped"
    uncorrected = "not corrected: the recordings have none" if settings.baseline else "not corrected"
    return {
        "rate": ", ".join(f"{rate:g}" for rate in sorted(tally.rates)) + " Hz",
        "filter": f"{settings.highpass:g} to {settings.lowpass:g} Hz{notch}, zero-phase FIR{brief}",
        "windows": f"{settings.window_s:g} s, no overlap; Welch over Hann segments of "
        f"{min(_SEGMENT_S, settings.window_s):g} s, half overlapped",
        "artefacts": "none dropped: data.artefact_uv is null"
        if settings.artefact_uv is None
        else f"{share}: peak to peak above {settings.artefact_uv:g} µV, or a channel that stands still",
        "trials dropped": f"{len(tally.lost)} of {len(tally.windows)}{': ' if tally.lost else ''}{tally.reasons}",
        "subjects dropped": f"{read - subjects} of {read}"
        + (": left with fewer than two windows" if subjects < read else ""),
        "baseline": "power divided by the geometric mean over the trial's own baseline" if corrected else uncorrected,
    }
