"""Band power from signals: what a sine gives, what is dropped and noted, what is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ngd_timm.core.errors import InputError
from ngd_timm.core.teacher_recipe import TeacherData
from ngd_timm.eeg.signal.bandpower import BandPower, log_power_z
from ngd_timm.eeg.signal.preprocess import band_power
from ngd_timm.eeg.signal.recording import Recording, RecordingSet

NAMES = ("Fz", "Cz", "Pz")
SETTINGS = TeacherData(name="recordings")
Records = list[Recording]


def noise(seconds: float, seed: int = 0, sfreq: float = 128.0, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 10, (channels, int(seconds * sfreq)))


def sine(hz: float, amplitude: float, seconds: float = 20.0, sfreq: float = 128.0) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hz * np.arange(int(seconds * sfreq)) / sfreq)


def records(trials: int = 3, seconds: float = 20.0, baseline: float = 0.0) -> Records:
    return [
        Recording(1, t, noise(seconds, t), 128.0, NAMES, (0.5, -0.5), noise(baseline, 99 + t) if baseline else None)
        for t in range(1, trials + 1)
    ]


def power(recordings: Records, **settings: object) -> BandPower:
    change = SETTINGS.model_copy(update=settings)
    return band_power(RecordingSet("mine", (), lambda: iter(recordings), {"source": "a test"}), change)


@pytest.mark.parametrize(("hz", "band"), [(6, "theta"), (10, "alpha"), (20, "beta"), (37, "gamma")])
@pytest.mark.parametrize("window_s", [1.0, 4.0])
def test_a_sine_has_half_the_square_of_its_amplitude_in_its_band_and_nothing_elsewhere(
    hz: float, band: str, window_s: float
) -> None:
    signal = np.stack([sine(hz, 10), sine(hz, 20), sine(hz, 30)])
    data = power([Recording(1, 1, signal, 128.0, NAMES)], window_s=window_s)
    inner = data.power[1:-1]
    np.testing.assert_allclose(inner[:, data.bands.index(band)], np.tile([50, 200, 450], (len(inner), 1)), rtol=0.03)
    others = np.delete(inner, data.bands.index(band), axis=1)
    assert (others < 0.01 * inner[:, [data.bands.index(band)]]).all()
    assert len(data) == 20 // window_s


@pytest.mark.parametrize("seconds", [20, 2])
def test_the_offset_of_an_emotiv_changes_nothing(seconds: float) -> None:
    plain = records(1, seconds)
    offset = [replace(plain[0], signal=(plain[0].signal + 4200).astype(np.float32))]
    one, other = (power(recordings, window_s=1.0).power for recordings in (plain, offset))
    np.testing.assert_allclose(other, one, rtol=1e-3)


@pytest.mark.parametrize(("mains", "sfreq"), [(50, 128.0), (60, 128.0), (50, 256.0), (100, 256.0)])
def test_mains_and_its_harmonics_are_gone_before_artefacts_are_looked_for(mains: int, sfreq: float) -> None:
    clean = noise(60, sfreq=sfreq)
    loud = clean + sine(mains, 400, 60, sfreq)
    notch = 60 if mains == 60 else 50
    one, other = (power([Recording(1, 1, s, sfreq, NAMES)], notch=notch, artefact_uv=None) for s in (clean, loud))
    np.testing.assert_allclose(other.power[2:-2], one.power[2:-2], rtol=0.02)
    kept = power([Recording(1, 1, loud, sfreq, NAMES)], notch=notch)
    assert set(range(3, 13)) <= set(kept.window.tolist())


def test_a_harmonic_below_the_low_pass_is_notched_too() -> None:
    loud = Recording(1, 1, noise(20, sfreq=512) + sine(100, 400, sfreq=512), 512.0, NAMES)
    assert {2, 3, 4} <= set(power([loud], lowpass=110.0).window.tolist())


def test_a_window_with_an_artefact_or_a_still_channel_is_dropped_noted_and_leaves_a_gap(
    caplog: pytest.LogCaptureFixture,
) -> None:
    signal = noise(20)
    signal[1, 9 * 128 : 10 * 128] += 600 * np.hanning(128)
    signal[2, 12 * 128 : 16 * 128] = 3.0
    recording = Recording(1, 1, signal, 128.0, NAMES)
    with caplog.at_level(logging.INFO, "ngd_timm.eeg"):
        data = power([recording])
    assert data.window.tolist() == [1, 2, 5]
    assert data.notes["artefacts"].startswith("2 of 5 windows (40.00 %) dropped: peak to peak above 200 µV")
    assert data.notes["source"] == "a test"
    assert "2 of 5 windows" in caplog.text
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(power([recording], channels=("Fz",))) == 5
    assert power([recording], channels=("Fz", "Cz"), artefact_uv=None).window.tolist() == [1, 2, 3, 4, 5]


def test_a_trial_without_a_clean_window_is_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    trials = records(3)
    trials[0] = replace(trials[0], signal=100 * trials[0].signal)
    trials[1] = replace(trials[1], signal=100 * trials[1].signal)
    trials.append(Recording(1, 4, noise(3), 128.0, NAMES))
    data = power(trials)
    assert set(data.trial.tolist()) == {3}
    assert data.notes["trials dropped"] == "3 of 4: 3 without a clean window"
    assert "more than half of the windows are dropped" in caplog.text


def killed(recording: Recording, channel: int | str) -> Recording:
    """With one channel of the signal dead, or Cz of the baseline."""
    if channel == "baseline":
        assert recording.baseline is not None
        return replace(recording, baseline=recording.baseline * [[1], [0], [1]])
    return replace(recording, signal=recording.signal * (np.arange(3) != channel)[:, None])


def test_a_trial_with_a_dead_channel_or_too_short_a_baseline_is_dropped_under_its_own_reason() -> None:
    trials = records(6, baseline=8)
    trials[0], trials[1] = killed(trials[0], 1), killed(trials[1], "baseline")
    faint = trials[2].signal.copy()
    faint[2] *= 1e-25
    trials[2] = replace(trials[2], signal=faint)
    trials[3] = replace(trials[3], baseline=noise(1)[:, :1])  # no channel is dead in one sample
    trials[4] = replace(trials[4], baseline=noise(1))
    data = power(trials)
    assert set(data.trial.tolist()) == {6}
    assert data.notes["trials dropped"] == (
        "5 of 6: 2 with a dead channel: Cz, 1 with a dead channel: Pz, 2 without a clean window of baseline"
    )
    assert len(power(records(2, baseline=3))) == 10  # 3 s of baseline serve windows of 4 s


def test_a_subject_left_with_one_window_is_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    trials = [*records(1), Recording(2, 1, noise(4), 128.0, NAMES), Recording(3, 1, 100 * noise(8), 128.0, NAMES)]
    with caplog.at_level(logging.INFO, "ngd_timm.eeg"):
        data = power(trials)
    assert set(data.subject.tolist()) == {1}
    assert data.notes["subjects dropped"] == "2 of 3: left with fewer than two windows"
    assert data.notes["trials dropped"] == "2 of 3: 1 of a subject with one window, 1 without a clean window"
    assert "subjects dropped: 2 of 3" in caplog.text
    assert power(records(1)).notes["subjects dropped"] == "0 of 1"
    log_power_z(data)


def test_power_is_divided_by_the_geometric_mean_of_the_baselines_windows() -> None:
    trial = records(1, baseline=12)[0]
    assert trial.baseline is not None
    raw = power([replace(trial, baseline=None)]).power
    rest = power([replace(trial, signal=trial.baseline, baseline=None)]).power
    corrected, plain = power([trial]), power([trial], baseline=False)
    np.testing.assert_allclose(corrected.power, raw / np.exp(np.log(rest).mean(axis=0)), rtol=1e-5)
    np.testing.assert_array_equal(plain.power, raw)
    assert "geometric mean" in corrected.notes["baseline"]
    assert plain.notes["baseline"] == "not corrected"


@pytest.mark.parametrize("first", [True, False])
def test_a_baseline_in_some_recordings_only_is_refused(first: bool) -> None:
    trials = records(2, baseline=8)
    trials[first] = replace(trials[first], baseline=None)
    words = f"subject 1, trial 2 has {'no' if first else 'a'} baseline.*data.baseline=false"
    with pytest.raises(InputError, match=words):
        power(trials)
    assert len(power(trials, baseline=False)) == 10


def test_channels_come_in_one_order_and_missing_and_extra_ones_are_listed() -> None:
    one, two, _ = records(3)
    turned, only = two.pick(["Pz", "Fz", "Cz"]), two.pick(["Cz"])
    np.testing.assert_array_equal(power([one, turned]).power, power([one, two]).power)
    picked = power([one, turned], channels=("Pz", "Cz"))
    assert picked.channels == ("Pz", "Cz")
    np.testing.assert_array_equal(picked.power, power([one, two]).pick(channels=("Pz", "Cz")).power)
    assert power([only, one], channels=("Cz",)).channels == ("Cz",)
    with pytest.raises(InputError, match="subject 1, trial 2 lacks the channels Fz, Pz; it has Cz"):
        power([one, only])
    with pytest.raises(InputError, match="trial 1 has the channels Fz, Pz, which recordings before it lack"):
        power([only, one])
    with pytest.raises(InputError, match="lacks the channel Oz"):
        power([one], channels=("Cz", "Oz"))


def test_stretches_of_one_trial_number_their_windows_on() -> None:
    trial = records(1)[0]
    data = power([trial, replace(trial, signal=noise(8, 7)), replace(trial, signal=noise(1))])
    assert data.window.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert data.notes["trials dropped"] == "0 of 1"


def test_trials_without_a_rating_are_kept_unrated_and_rates_may_differ() -> None:
    trials = [*records(1), Recording(2, 1, noise(20, 5, 256.0), 256.0, NAMES)]
    data = power(trials)
    assert data.rated.tolist() == [True] * 5 + [False] * 5
    assert data.valence_arousal[0].tolist() == [0.5, -0.5]
    assert data.subject.tolist() == [1] * 5 + [2] * 5
    assert data.notes["rate"] == "128, 256 Hz"


def test_only_the_given_bands_come_and_those_outside_the_filter_are_refused() -> None:
    trials = records(1)
    picked = power(trials, bands=("beta", "theta"))
    np.testing.assert_array_equal(picked.power, power(trials).pick(("beta", "theta")).power)
    with pytest.raises(InputError, match="unknown band 'alfa'; did you mean 'alpha'"):
        power(trials, bands=("alfa",))
    with pytest.raises(InputError, match=r"gamma \(30-45 Hz\) lies outside .*data.bands=\[delta, theta, alpha, beta\]"):
        power(trials, lowpass=40.0)


def test_a_recording_shorter_than_the_filter_is_noted() -> None:
    data = power([Recording(1, 1, noise(3), 128.0, NAMES)], window_s=1.0)
    assert len(data) == 3
    assert "shorter than it, and less exact in the slowest band: 1" in data.notes["filter"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (list, "mine holds no recordings"),
        (lambda: [Recording(1, 1, noise(20, sfreq=64), 64.0, NAMES)], "64 samples a second.*lower data.lowpass=45"),
        (lambda: [Recording(1, 1, 100 * noise(20), 128.0, NAMES)], r"1 without a clean window\).*artefact_uv=200"),
        (lambda: records(1, 3), r"1 without a clean window\); .*lower data\.window_s=4"),
        (lambda: [Recording(3, 2, noise(20) * [[1], [0], [0]], 128.0, NAMES)], "1 with a dead channel: Cz, Pz"),
        (lambda: [Recording(1, 1, noise(20) * 1e-25, 128.0, NAMES)], "1 with a dead channel: Fz, Cz, Pz"),
        (lambda: [killed(r, r.trial % 3) for r in records(3)], "1 with a dead channel: Cz, 1 with a dead channel: Fz"),
        (lambda: [killed(r, "baseline") for r in records(2, baseline=8)], "2 with a dead channel: Cz"),
        (lambda: records(1, 4), "1 of a subject with one window"),
    ],
)
def test_recordings_that_cannot_be_used_are_refused_in_one_line(make: Callable[[], Records], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        power(make())
    assert "\n" not in str(caught.value)


def test_recordings_are_read_one_by_one() -> None:
    alive: list[int] = []

    def read():  # type: ignore[no-untyped-def]
        for recording in records(3):
            alive.append(recording.trial)
            yield recording
        alive.append(-1)

    opened = RecordingSet("mine", (), read, simulated=True)
    assert not alive
    whole = band_power(opened, SETTINGS)
    assert whole.simulated
    assert alive == [1, 2, 3, -1]
