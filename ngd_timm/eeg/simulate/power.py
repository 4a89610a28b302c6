"""Simulated band power with known valence and arousal."""

from __future__ import annotations

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.eeg.signal.bandpower import BandPower
from ngd_timm.eeg.signal.recording import EMOTIV_14

CHANNELS = EMOTIV_14
BANDS = ("delta", "theta", "alpha", "beta")

_LEFT = np.array([1, 1, 1, 1, 0.5, 0.3, 0.2, -0.2, -0.3, -0.5, -1, -1, -1, -1])
_BACK = np.array([0.1, 0.2, 0.2, 0.4, 0.5, 0.9, 1, 1, 0.9, 0.5, 0.4, 0.2, 0.2, 0.1])


def simulate_bandpower(
    subjects: int = 12,
    trials: int = 16,
    windows: int = 6,
    seed: int = 0,
    effect: float = 1.0,
    stimulus: float | None = None,
) -> BandPower:
    """Band power in which valence tips frontal alpha to one side and arousal trades posterior alpha for beta.

    `effect` is the change of log power from the middle to the end of the scale, in stds of a window's noise. With
    `stimulus`, trials of one number are of one stimulus: it has a mean rating, from which a subject's own has a std of
    2 points, and a pattern of its own in the power, of that std, which has nothing to do with affect.
    """
    if min(subjects, trials, windows) < 1:
        raise InputError(f"subjects, trials and windows must be at least 1, got {subjects}, {trials}, {windows}")
    rng = np.random.default_rng(seed)
    pattern = np.zeros((2, len(BANDS), len(CHANNELS)))
    pattern[0, BANDS.index("alpha")] = _LEFT
    pattern[1, BANDS.index("alpha")] = -_BACK
    pattern[1, BANDS.index("beta")] = _BACK
    shape = (len(BANDS), len(CHANNELS))
    ratings = rng.integers(1, 10, (subjects, trials, 2)).astype(np.float32)
    signature = np.zeros((trials, *shape))
    if stimulus is not None:
        clips = np.random.default_rng([seed, 1])
        mean = clips.integers(1, 10, (trials, 2)) + clips.normal(0, 2, (subjects, trials, 2))
        ratings = mean.round().clip(1, 9).astype(np.float32)
        signature = clips.normal(0, stimulus, signature.shape)
    planted = effect * np.einsum("stv,vbc->stbc", (ratings - 5) / 4, pattern)
    log = (
        rng.normal(-1.5, 0.5, (subjects, 1, 1, *shape))
        + (planted + signature)[:, :, None]
        + rng.normal(0, 0.5, (subjects, trials, 1, *shape))
        + rng.normal(0, 1.0, (subjects, trials, windows, *shape))
    )
    subject, trial, window = np.indices((subjects, trials, windows)).reshape(3, -1) + 1
    return BandPower(
        power=np.exp(log).reshape(-1, *shape).astype(np.float32),
        bands=BANDS,
        channels=CHANNELS,
        valence_arousal=np.repeat((ratings.reshape(-1, 2) - 5) / 4, windows, axis=0),
        subject=subject.astype(np.int64),
        trial=trial.astype(np.int64),
        window=window.astype(np.int64),
        dataset="simulated band power",
        simulated=True,
        stimulus=None if stimulus is None else trial.astype(str),
    )
