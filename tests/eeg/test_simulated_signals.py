"""Simulated signals: what is planted is there, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest

from ngd_timm.core.errors import InputError
from ngd_timm.eeg.signal.recording import Recording
from ngd_timm.eeg.simulate.signals import simulate_recordings

CHANNELS = ("F3", "F4", "Cz", "O1", "O2")


def log_power(recording: Recording, low: float, high: float) -> np.ndarray:
    windows = recording.signal.reshape(len(recording.channels), -1, 512)
    spectrum = np.abs(np.fft.rfft(windows * np.hanning(512))) ** 2
    hz = np.fft.rfftfreq(512, 1 / recording.sfreq)
    return np.log(spectrum[..., (hz >= low) & (hz < high)].mean(axis=(1, 2)))


def correlations(effect: float, shuffled: bool) -> list[float]:
    """Of valence with frontal alpha asymmetry, of arousal with posterior beta over alpha, within subjects."""
    rows = []
    for recording in simulate_recordings(6, 16, 24.0, channels=CHANNELS, effect=effect, shuffled=shuffled):
        alpha, beta = log_power(recording, 8, 13), log_power(recording, 14, 28)
        assert recording.valence_arousal is not None
        rows.append((*recording.valence_arousal, alpha[0] - alpha[1], (beta - alpha)[3:].mean()))
    values = np.array(rows).reshape(6, 16, 4)
    values -= values.mean(axis=1, keepdims=True)
    matrix = np.corrcoef(values.reshape(-1, 4).T)
    return [matrix[0, 2], matrix[1, 3]]


@pytest.mark.parametrize(("effect", "shuffled"), [(2.0, False), (0.0, False), (2.0, True)])
def test_valence_tips_frontal_alpha_and_arousal_trades_alpha_for_beta_where_that_is_planted_and_not_shuffled(
    effect: float, shuffled: bool
) -> None:
    planted = effect > 0 and not shuffled
    for value in correlations(effect, shuffled):
        assert value > 0.6 if planted else abs(value) < 0.3


def test_shuffling_moves_ratings_within_a_subject_and_leaves_signals() -> None:
    plain = list(simulate_recordings(2, 8, 1.0, channels=CHANNELS))
    shuffled = list(simulate_recordings(2, 8, 1.0, channels=CHANNELS, shuffled=True))
    for a, b in zip(plain, shuffled, strict=True):
        np.testing.assert_array_equal(a.signal, b.signal)
    for subject in (1, 2):
        before = [r.valence_arousal for r in plain if r.subject == subject]
        after = [r.valence_arousal for r in shuffled if r.subject == subject]
        assert before != after
        assert sorted(map(str, before)) == sorted(map(str, after))


def test_a_subject_is_the_same_among_any_number_of_them_and_another_seed_is_another() -> None:
    one = next(simulate_recordings(1, 2, 1.0, channels=CHANNELS, seed=3))
    many = next(simulate_recordings(1000, 2, 1.0, channels=CHANNELS, seed=3))
    other = next(simulate_recordings(1, 2, 1.0, channels=CHANNELS, seed=4))
    np.testing.assert_array_equal(one.signal, many.signal)
    assert not np.array_equal(one.signal, other.signal)


def test_background_power_is_of_the_given_size_in_microvolts_at_any_rate() -> None:
    """1/f of 10 µV² at 1 Hz: from 2 to 6 Hz it holds 10 ln 3 µV², whatever the sampling rate."""
    for sfreq in (128.0, 256.0):
        powers = []
        for recording in simulate_recordings(1, 4, 64.0, channels=CHANNELS, sfreq=sfreq):
            size = recording.signal.shape[1]
            density = np.abs(np.fft.rfft(recording.signal)) ** 2 * 2 / (size * sfreq)
            hz = np.fft.rfftfreq(size, 1 / sfreq)
            powers.append(density[:, (hz >= 2) & (hz < 6)].sum() * (hz[1] - hz[0]) / len(CHANNELS))
        assert np.mean(powers) == pytest.approx(10 * np.log(3) + 0.05 * 4, rel=0.15)


def test_baselines_and_ratings_are_as_given() -> None:
    recordings = list(simulate_recordings(1, 40, 1.0, channels=CHANNELS, baseline_s=0.5, levels=5))
    assert recordings[0].signal.shape == (5, 128)
    assert recordings[0].signal.dtype == np.float32
    assert recordings[0].baseline is not None
    assert recordings[0].baseline.shape == (5, 64)
    assert {va for r in recordings for va in r.valence_arousal or ()} == {-1.0, -0.5, 0.0, 0.5, 1.0}
    assert next(simulate_recordings(1, 1, 1.0, channels=CHANNELS)).baseline is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subjects": 0}, "at least 1"),
        ({"levels": 1}, "levels at least 2"),
        ({"sfreq": 40.0}, "above 60 Hz"),
        ({"seconds": 0.0}, "two samples"),
        ({"channels": ["Cz", "EXG1"]}, "EXG1"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(change: dict[str, object], message: str) -> None:
    settings = {"subjects": 1, "trials": 1, "seconds": 1.0, "channels": CHANNELS, **change}
    with pytest.raises(InputError, match=message):
        simulate_recordings(**settings)  # type: ignore[arg-type]
