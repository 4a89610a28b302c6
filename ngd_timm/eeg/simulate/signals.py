"""Simulated EEG signals with known valence and arousal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from ngd_timm.core.affect import rating_to_va
from ngd_timm.core.errors import InputError
from ngd_timm.eeg.signal.recording import Recording
from ngd_timm.eeg.topomap import standard_montage

# rows of the 10-05 system from the face to the neck, by the letters that electrode names begin with
_ROWS = (
    *("NZ/N", "FP", "AFP", "AF", "AFF", "F", "FFC/FFT", "FC/FT", "FCC/FTT", "C/T"),
    *("CCP/TTP", "CP/TP", "CPP/TPP", "P", "PPO", "PO", "POO", "O", "OI", "I"),
)
_DEPTH = {letters: i / (len(_ROWS) - 1) for i, row in enumerate(_ROWS) for letters in row.split("/")}

_ALPHA, _BETA = (10.0, 1.0), (20.0, 2.5)  # Hz, centre and width
_POWER = np.log([30.0, 15.0])  # of the two rhythms in the middle of the scale, µV²
_PINK, _WHITE = 10.0, 0.05  # µV²/Hz, the background at 1 Hz and its floor
_COMMON = 0.3  # part of the variance that all electrodes share
_GAIN = 0.45  # log power from the middle to the end of the scale, where the pattern is 1
_SUBJECT, _DRIFT, _TRIAL = 0.5, 0.25, 0.4  # std of log power: subject, trial with its baseline, either alone


def scalp_pattern(channels: Sequence[str]) -> np.ndarray:
    """How much each axis moves the rhythms at each electrode: (2, 2, C), valence or arousal, alpha or beta."""
    out = np.zeros((2, 2, len(channels)))
    places = standard_montage("GSN-HydroCel-129").get_positions()["ch_pos"]
    for i, name in enumerate(channels):
        if name in places and name != "Cz":  # EGI's names are numbers
            x, y, _ = places[name] / 0.1
            side, depth = -np.sign(x.round(2)), np.clip((1 - y) / 2, 0, 1)
            out[:, :, i] = (side * (1 - depth), 0), (-depth, depth)
            continue
        match = re.fullmatch(r"([A-Z]+?)(Z|\d+)H?", name.upper())
        if not match or match[1] not in _DEPTH:
            raise InputError(f"electrode '{name}' is not a name of the 10-05 system such as Fp1, Cz, FC5 or PO8")
        depth = _DEPTH[match[1]]
        side = 0 if match[2] == "Z" else 1 if int(match[2]) % 2 else -1
        out[0, 0, i] = side * (1 - depth)
        out[1, :, i] = -depth, depth
    return out


def simulate_recordings(
    subjects: int,
    trials: int,
    seconds: float,
    *,
    channels: Sequence[str],
    sfreq: float = 128.0,
    baseline_s: float = 0.0,
    levels: int = 9,
    seed: int = 0,
    effect: float = 1.0,
    shuffled: bool = False,
) -> Iterator[Recording]:
    """Simulated signals: a 1/f background, and alpha and beta rhythms whose power follows valence and arousal.

    Trials last `seconds`, after `baseline_s` of rest; ratings are the integers 1 to `levels`, mapped to [-1, 1], and
    `shuffled` permutes them within each subject after planting. At an `effect` of 1, a ridge regression on z-scored log
    power of 16 subjects, 18 trials and 60 s reaches a CCC of about .7 on held-out subjects.
    """
    if min(subjects, trials) < 1 or levels < 2:
        raise InputError(
            f"subjects and trials must be at least 1 and levels at least 2, got {subjects}, {trials} and {levels}"
        )
    if not (sfreq > 60 and 2 <= seconds * sfreq < np.inf and (baseline_s == 0 or baseline_s * sfreq >= 2)):
        raise InputError(
            f"sfreq must be above 60 Hz, seconds (and baseline_s, unless 0) finite and at least two samples; "
            f"got {sfreq}, {seconds} and {baseline_s}"
        )
    pattern = effect * _GAIN * scalp_pattern(channels)
    names = tuple(channels)

    def simulate() -> Iterator[Recording]:
        for subject in range(1, subjects + 1):
            rng = np.random.default_rng([seed, subject])
            ratings = rating_to_va(rng.integers(1, levels + 1, (trials, 2)), 1, levels)
            shuffling = np.random.default_rng([seed, subject, 1])
            order = shuffling.permutation(trials) if shuffled else np.arange(trials)
            own = _POWER[:, None] + rng.normal(0, _SUBJECT, (2, len(names)))
            for trial in range(trials):
                drift = own + rng.normal(0, _DRIFT, own.shape)
                log_power = drift + np.einsum("v,vbc->bc", ratings[trial], pattern) + rng.normal(0, _TRIAL, own.shape)
                signal, rest = _signal(rng, log_power, round(seconds * sfreq), sfreq), None
                if baseline_s:
                    log_power = drift + rng.normal(0, _TRIAL, own.shape)
                    rest = _signal(rng, log_power, round(baseline_s * sfreq), sfreq)
                valence, arousal = ratings[order[trial]].tolist()
                yield Recording(subject, trial + 1, signal, float(sfreq), names, (valence, arousal), rest)

    return simulate()


def _signal(rng: np.random.Generator, log_power: np.ndarray, samples: int, sfreq: float) -> np.ndarray:
    """(C, samples) float32 µV: random Fourier coefficients, scaled to the spectrum, transformed back."""
    length = 1 << (samples - 1).bit_length()  # cut afterwards, so that the end doesn't meet the start
    hz = np.fft.rfftfreq(length, 1 / sfreq)
    background = _PINK / np.maximum(hz, 0.5) + _WHITE
    background[0] = 0
    rhythms = np.stack([_bump(hz, *_ALPHA), _bump(hz, *_BETA)])  # 1/Hz, each integrates to 1
    density = background + np.exp(log_power).T @ rhythms  # (C, F), µV²/Hz
    own = rng.standard_normal((len(density), len(hz), 2), dtype=np.float32)
    common = rng.standard_normal((1, len(hz), 2), dtype=np.float32)
    noise = np.float32((1 - _COMMON) ** 0.5) * own + np.float32(_COMMON**0.5) * common
    amplitude = np.sqrt(density * (length * sfreq) / 4).astype(np.float32)  # one-sided density, two parts
    wave = np.fft.irfft(noise.view(np.complex64)[..., 0] * amplitude, length, axis=1)
    return np.ascontiguousarray(wave[:, :samples], dtype=np.float32)


def _bump(hz: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.exp(-0.5 * ((hz - centre) / width) ** 2) / (width * np.sqrt(2 * np.pi))
