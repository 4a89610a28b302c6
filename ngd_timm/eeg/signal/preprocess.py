"""Raw signals to band power: filter, windows, artefacts, Welch, baseline; one recording in memory at a time."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.teacher_recipe import BANDS, TeacherData
from ngd_timm.eeg.signal.bandpower import BandPower
from ngd_timm.eeg.signal.recording import Recording, RecordingSet

__all__ = ["FEATURES", "band_power", "check_bands", "filter_bands"]

FEATURES = 2
"""Counts up when the steps here, or what a reader gives, change: cached band power of an older number is not used."""

logger = logging.getLogger("ngd_timm.eeg")

_SEGMENT_S = 2.0  # Welch: 0.5 Hz between bins, whatever the window
_FIR_S = 3.3  # a Hamming FIR is this long for a transition of 1 Hz
_WELCH_BYTES = 4_000_000  # MNE takes more than 10 MB one signal at a time, tens of times slower


def band_power(recordings: RecordingSet, settings: TeacherData) -> BandPower:
    """Band power of every clean window of every recording.

    A recording loses its mean, is filtered (zero-phase FIR) and notched, and cut into windows without overlap. Windows
    that swing wider than `artefact_uv` in some channel, or in which a channel stands still, are dropped, and so are
    trials in which a channel is dead throughout and people left with one window, who have no z-score. Power is
    Welch's over Hann segments of 2 s (or the window, if shorter), half overlapped. With `baseline`, it is divided by
    the geometric mean of the power in the clean baseline windows of the same trial, cut as the trial is; a baseline
    shorter than a window is one window, if it holds a segment.

    Args:
        recordings: Read once, in order.
        settings: The keys about signals, `channels` and `bands` count; `bands` None means all of `BANDS`.

    Returns:
        Rows in the order read; power in µV² (a ratio where corrected); `window` is numbered from 1 by its place in the
        trial, so that a dropped one leaves a gap; the notes say what was done and what was dropped.

    Raises:
        InputError: A channel that is lacking, or dead in every trial, a rate too low for the filter, a baseline in some
            recordings only, a band outside the filter, nothing left.

    Example:
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
    tally = _Tally()
    for recording in _progress(recordings):
        recording = _in_order(recording, settings.channels, channels)
        channels = recording.channels
        if settings.baseline:
            corrected = _same_baseline(recording, corrected)
        length = round(settings.window_s * recording.sfreq)
        trial = (recording.subject, recording.trial)
        done = tally.windows[trial]
        tally.rates.add(recording.sfreq)
        count = recording.signal.shape[1] // length
        tally.windows[trial] += count
        power, places, dead = _window_power(recording, recording.signal, length, limits, settings, tally)
        tally.dropped += count - len(power)
        if not len(power):
            tally.lose(trial, dead, "without a clean window")
            continue
        if corrected and recording.baseline is not None:
            # Windows as long as the trial's, or one of all there is: Welch's segments are the same.
            segment = min(length, round(_SEGMENT_S * recording.sfreq))
            shorter = min(length, max(segment, recording.baseline.shape[1]))
            rest, _, dead = _window_power(recording, recording.baseline, shorter, limits, settings, tally)
            if not len(rest):
                tally.lose(trial, dead, "without a clean window of baseline")
                continue
            power = np.exp(np.log(power) - np.log(rest).mean(axis=0))
        rows.append(power.astype(np.float32))
        keys.extend((*trial, done + place + 1) for place in places.tolist())
        ratings.extend([recording.valence_arousal or (np.nan, np.nan)] * len(power))
    if not tally.windows:
        raise InputError(f"{recordings.dataset} holds no recordings")
    if not rows:
        raise _nothing_left(recordings.dataset, settings, tally)
    kept = {(subject, trial) for subject, trial, _ in keys}
    tally.lost = {trial: why for trial, why in tally.lost.items() if trial not in kept}
    subject, number, window = np.array(keys, dtype=np.int64).T
    people, of_person, own = np.unique(subject, return_inverse=True, return_counts=True)
    enough = own[of_person.reshape(-1)] > 1
    if not enough.any():
        raise InputError(
            f"{recordings.dataset}: nobody has two clean windows, and a z-score needs them; raise data.artefact_uv or "
            "lower data.window_s"
        )
    tally.lost |= {trial: "of a person with one window" for trial in kept if own[people == trial[0]] < 2}
    tally.people = int((own > 1).sum())
    notes = {**recordings.notes, **_notes(settings, bool(corrected), tally)}
    _log(recordings.dataset, notes, tally)
    whole = BandPower(
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
    )
    return whole if enough.all() else whole.rows(enough)


def filter_bands(settings: TeacherData) -> tuple[str, ...]:
    """The bands that lie whole between high-pass and low-pass."""
    return tuple(b for b, (low, high) in BANDS.items() if settings.highpass <= low and high <= settings.lowpass)


def check_bands(settings: TeacherData) -> tuple[str, ...]:
    """The bands asked for; None asks for all.

    Raises:
        InputError: A band that isn't known, or that the filter cuts into; says which bands are left.

    Example:
        >>> check_bands(TeacherData(name="dreamer", lowpass=30, bands=("alpha", "beta")))
        ('alpha', 'beta')
    """
    wanted, inside = tuple(settings.bands or BANDS), filter_bands(settings)
    for band in wanted:  # a copy of settings is not validated
        if band not in BANDS:
            raise choices("band", band, BANDS)
    outside = [f"{band} ({BANDS[band][0]:g}-{BANDS[band][1]:g} Hz)" for band in wanted if band not in inside]
    if outside:
        raise InputError(
            f"{', '.join(outside)} lies outside data.highpass={settings.highpass:g} to "
            f"data.lowpass={settings.lowpass:g} Hz; widen the filter, or data.bands=[{', '.join(inside)}]"
        )
    return wanted


class _Tally:
    """What was read and what was dropped."""

    def __init__(self) -> None:
        self.rates: set[float] = set()
        self.windows: Counter[tuple[int, int]] = Counter()  # a trial's windows, clean or not
        self.dropped = 0
        self.lost: dict[tuple[int, int], str] = {}
        self.dead: defaultdict[tuple[int, int], set[str]] = defaultdict(set)  # a lost trial's channels
        self.people = 0  # with two windows or more
        self.brief = 0  # signals and baselines shorter than the filter

    def lose(self, trial: tuple[int, int], dead: Sequence[str], why: str) -> None:
        self.lost[trial] = f"with a dead channel: {', '.join(dead)}" if dead else why
        self.dead[trial].update(dead)

    @property
    def total(self) -> int:
        return sum(self.windows.values())

    @property
    def share(self) -> str:
        return f"{self.dropped} of {self.total} windows ({100 * self.dropped / max(self.total, 1):.2f} %) dropped"


def _in_order(recording: Recording, wanted: Sequence[str] | None, first: Sequence[str] | None) -> Recording:
    if wanted is None and first is not None:
        extra = [name for name in recording.channels if name not in first]
        if extra:
            raise InputError(
                f"{recording} has the channels {', '.join(extra)}, which recordings before it lack; "
                "name those that all have in data.channels"
            )
    names = tuple(wanted or first or recording.channels)
    return recording if names == recording.channels else recording.pick(names)


def _same_baseline(recording: Recording, before: bool | None) -> bool:
    present = recording.baseline is not None
    if before is not None and present != before:
        raise InputError(
            f"{recording} has {'a' if present else 'no'} baseline, unlike the recordings before it; "
            "switch the correction off with data.baseline=false"
        )
    return present


def _window_power(
    recording: Recording,
    signal: np.ndarray,
    length: int,
    limits: np.ndarray,
    settings: TeacherData,
    tally: _Tally,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Power (W, B, C) of the clean windows of a (C, T) signal, their places in it, counted from 0, and dead channels.

    A channel that never changes, or has no power, leaves no window.
    """
    count = signal.shape[1] // length
    none = np.empty((0, len(limits), len(signal)), np.float32), np.empty(0, np.int64)
    if not count:
        return *none, ()
    still = signal.max(axis=1) == signal.min(axis=1)
    if still.any():
        return *none, _names(recording, still)
    tally.brief += signal.shape[1] < _FIR_S / _transitions(settings, recording.sfreq)[0] * recording.sfreq
    windows = _cut(_filtered(recording, signal, settings), count, length)
    places = np.arange(count)
    if settings.artefact_uv is not None:
        raw = _cut(signal, count, length)
        clean = (np.ptp(windows, axis=2) <= settings.artefact_uv) & (np.ptp(raw, axis=2) > 0)
        places = np.flatnonzero(clean.all(axis=0))
        windows = windows[:, places]
    power = _welch(windows, recording.sfreq, limits)
    loud = power.min(axis=1) > np.finfo(np.float32).tiny
    heard = loud.all(axis=1)
    if len(heard) and not heard.any():
        return *none, _names(recording, ~loud.all(axis=0))
    return power[heard], places[heard], ()


def _names(recording: Recording, rows: np.ndarray) -> tuple[str, ...]:
    return tuple(recording.channels[row] for row in np.flatnonzero(rows))


def _cut(signal: np.ndarray, count: int, length: int) -> np.ndarray:
    return signal[:, : count * length].reshape(len(signal), count, length)


def _transitions(settings: TeacherData, sfreq: float) -> tuple[float, float]:
    """Widths, in Hz, below the high-pass and above the low-pass: MNE's defaults."""
    high = min(max(0.25 * settings.lowpass, 2.0), sfreq / 2 - settings.lowpass)
    return min(max(0.25 * settings.highpass, 2.0), settings.highpass), high


def _filtered(recording: Recording, signal: np.ndarray, settings: TeacherData) -> np.ndarray:
    import mne

    sfreq = recording.sfreq
    if settings.lowpass >= sfreq / 2:
        raise InputError(
            f"{recording} has {sfreq:g} samples a second, which holds frequencies below {sfreq / 2:g} Hz; "
            f"lower data.lowpass={settings.lowpass:g}"
        )
    below, above = _transitions(settings, sfreq)
    values = signal.astype(np.float64)
    # An offset of thousands of µV would ring at both ends.
    values -= values.mean(axis=1, keepdims=True)
    values = mne.filter.filter_data(
        values,
        sfreq,
        settings.highpass,
        settings.lowpass,
        l_trans_bandwidth=below,
        h_trans_bandwidth=above,
        copy=False,
        verbose="error",
    )
    if settings.notch is not None:
        # Past the low-pass there is nothing left to notch; MNE wants its own edge of a hertz below half the rate.
        lines = np.arange(settings.notch, min(settings.lowpass + above, sfreq / 2 - 1), settings.notch, dtype=float)
        if len(lines):
            values = mne.filter.notch_filter(values, sfreq, lines, copy=False, verbose="error")
    return values


def _welch(windows: np.ndarray, sfreq: float, limits: np.ndarray) -> np.ndarray:
    """Windows (C, W, T) to power (W, B, C): the mean density in a band times its width; edges are half-open."""
    import mne

    segment = min(windows.shape[2], round(_SEGMENT_S * sfreq))
    out = np.empty((windows.shape[1], len(limits), len(windows)))
    step = max(1, _WELCH_BYTES // (windows.itemsize * windows.shape[0] * windows.shape[2]))
    for start in range(0, windows.shape[1], step):
        density, frequencies = mne.time_frequency.psd_array_welch(
            windows[:, start : start + step],
            sfreq,
            fmin=limits.min(),
            fmax=limits.max(),
            n_fft=segment,
            n_per_seg=segment,
            n_overlap=segment // 2,
            window="hann",
            verbose="error",
        )
        frequencies = frequencies.round(6)
        for band, (low, high) in enumerate(limits):
            inside = (frequencies >= low) & (frequencies < high)
            out[start : start + step, band] = density[..., inside].mean(axis=-1).T * (high - low)
    return out


def _notes(settings: TeacherData, corrected: bool, tally: _Tally) -> Mapping[str, str]:
    brief = f"; signals shorter than it, and less exact in the slowest band: {tally.brief}" if tally.brief else ""
    notch = f", notch at {settings.notch} Hz" if settings.notch else ""
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(tally.lost.values()).items()))
    people = len({subject for subject, _ in tally.windows})
    alone = people - tally.people
    uncorrected = "not corrected: the recordings have none" if settings.baseline else "not corrected"
    return {
        "rate": ", ".join(f"{rate:g}" for rate in sorted(tally.rates)) + " Hz",
        "filter": f"{settings.highpass:g} to {settings.lowpass:g} Hz{notch}, zero-phase FIR{brief}",
        "windows": f"{settings.window_s:g} s, no overlap; Welch over Hann segments of "
        f"{min(_SEGMENT_S, settings.window_s):g} s, half overlapped",
        "artefacts": "none dropped: data.artefact_uv is null"
        if settings.artefact_uv is None
        else f"{tally.share}: peak to peak above {settings.artefact_uv:g} µV, or a channel that stands still",
        "trials dropped": f"{len(tally.lost)} of {len(tally.windows)}{': ' + why if why else ''}",
        "people dropped": f"{alone} of {people}{': left with fewer than two windows' if alone else ''}",
        "baseline": "power divided by the geometric mean over the trial's own baseline" if corrected else uncorrected,
    }


def _log(dataset: str, notes: Mapping[str, str], tally: _Tally) -> None:
    told = "; ".join(f"{key}: {notes[key]}" for key in ("artefacts", "trials dropped", "people dropped"))
    logger.info("%s: %s", dataset, told)
    if 2 * tally.dropped > tally.total:
        logger.warning(
            "%s: more than half of the windows are dropped; look at the signal, or raise data.artefact_uv", dataset
        )


def _nothing_left(dataset: str, settings: TeacherData, tally: _Tally) -> InputError:
    if not tally.total:
        return InputError(f"{dataset}: no recording holds a window of {settings.window_s:g} s; lower data.window_s")
    trials = [trial for trial, windows in tally.windows.items() if windows]
    always = set.intersection(*(tally.dead[trial] for trial in trials))
    if always:
        return InputError(
            f"{dataset}: {', '.join(sorted(always))} never changes, or has no power, in every trial; leave that "
            "channel out with data.channels"
        )
    hurt = [dead for dead in tally.dead.values() if dead]
    if hurt:
        return InputError(
            f"{dataset}: no trial has a clean window, and in {len(hurt)} of {len(trials)} a channel is "
            f"dead ({', '.join(sorted(set().union(*hurt)))}); choose others with data.channels"
        )
    if tally.dropped == tally.total:
        return InputError(
            f"{dataset}: all {tally.total} windows swing wider than {settings.artefact_uv:g} µV; raise "
            "data.artefact_uv, or null to drop none, and see whether the signals are in µV"
        )
    return InputError(
        f"{dataset}: no trial has a clean window of both signal and baseline; raise data.artefact_uv, or "
        "data.baseline=false"
    )


def _progress(recordings: RecordingSet) -> Iterable[Recording]:
    from rich.console import Console
    from rich.progress import track

    return track(recordings, f"{recordings.dataset}: band power", disable=not Console().is_terminal, transient=True)
