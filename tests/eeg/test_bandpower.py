"""Band-power files: what is read, what is refused, what the features know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ngd_timm.core.errors import InputError
from ngd_timm.eeg.signal.bandpower import BandPower, load_bandpower, log_power_z, save_bandpower
from ngd_timm.eeg.simulate.power import simulate_bandpower


@pytest.fixture
def data() -> BandPower:
    return simulate_bandpower(subjects=3, trials=4, windows=2)


def rewrite(path: Path, **change: np.ndarray | None) -> None:
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    arrays.update({key: value for key, value in change.items() if value is not None})
    np.savez(path, **{key: value for key, value in arrays.items() if not (key in change and change[key] is None)})


def test_a_file_reads_back_as_it_was_written(tmp_path: Path, data: BandPower) -> None:
    save_bandpower(tmp_path / "a.npz", data)
    again = load_bandpower(tmp_path / "a.npz")
    assert again.sha256 == data.sha256
    assert (again.bands, again.channels, again.simulated) == (data.bands, data.channels, True)
    assert load_bandpower(tmp_path).sha256 == data.sha256
    named = load_bandpower(tmp_path, "gameemo")  # a simulated file stays simulated, whatever name it is loaded by
    assert named.simulated
    assert "GAMEEMO" not in named.dataset
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_gameemos_own_layout_has_games_and_ratings_from_1_to_9_and_is_named(tmp_path: Path, data: BandPower) -> None:
    save_bandpower(tmp_path / "a.npz", replace(data, simulated=False))
    ratings = {"valence_arousal": None, "ratings": 5 + 4 * data.valence_arousal, "note.dataset": None}
    rewrite(tmp_path / "a.npz", trial=None, window=None, game=data.trial, **ratings)
    read = load_bandpower(tmp_path / "a.npz", "gameemo")
    assert read.dataset.startswith("GAMEEMO")
    assert not read.simulated
    for name in ("trial", "window", "valence_arousal"):
        np.testing.assert_array_equal(getattr(read, name), getattr(data, name))


def test_numbers_of_any_integer_type_are_the_same_data(tmp_path: Path, data: BandPower) -> None:
    save_bandpower(tmp_path / "a.npz", data)
    arrays = dict(np.load(tmp_path / "a.npz"))
    np.savez(
        tmp_path / "b.npz",
        **{**arrays, "subject": arrays["subject"].astype("u1"), "trial": arrays["trial"].astype(">i4")},
    )
    found = load_bandpower(tmp_path / "b.npz")
    assert (found.subject.dtype, found.trial.dtype, found.sha256) == (np.int64, np.int64, data.sha256)


def test_trials_that_nobody_rated_come_back_as_such(tmp_path: Path, data: BandPower) -> None:
    va = data.valence_arousal.copy()
    va[data.trial == 2] = np.nan
    save_bandpower(tmp_path / "a.npz", replace(data, valence_arousal=va, notes={"window": "4 s"}))
    again = load_bandpower(tmp_path / "a.npz")
    np.testing.assert_array_equal(again.rated, data.trial != 2)
    assert again.notes == {"window": "4 s"}
    va[0, 0] = np.nan
    with pytest.raises(InputError, match="both be NaN"):
        replace(data, valence_arousal=va)


def test_z_scores_know_only_the_subjects_own_power_and_never_the_ratings(data: BandPower) -> None:
    z = log_power_z(data)
    for subject in (1, 2, 3):
        rows = data.subject == subject
        np.testing.assert_allclose(z[rows].mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(z[rows].std(axis=0), 1, atol=1e-4)
    power = data.power.copy()
    power[data.subject == 3] *= np.linspace(1, 9, 14, dtype=np.float32)
    np.testing.assert_allclose(log_power_z(replace(data, power=power)), z, atol=1e-4)
    order = np.random.default_rng(0).permutation(12).repeat(2)
    other = replace(data, valence_arousal=np.zeros_like(data.valence_arousal) + 0.1 * (order[:, None] % 2))
    np.testing.assert_array_equal(log_power_z(other), z)


def test_bands_and_channels_are_picked_by_name(data: BandPower) -> None:
    picked = data.pick(["beta", "alpha"], ["O2", "AF3"])
    np.testing.assert_array_equal(picked.power, data.power[:, [3, 2]][:, :, [7, 0]])
    assert picked.channels == ("O2", "AF3")
    with pytest.raises(InputError, match="lacks the band alfa; it has delta, theta"):
        data.pick(["alfa"])
    with pytest.raises(InputError, match="lacks the channels Cz, Pz; it has AF3"):
        data.pick(channels=["AF3", "Cz", "Pz"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"X": None}, "lacks X"),
        ({"trial": None}, "lacks game"),
        ({"X": np.zeros((24, 4, 14), np.float32)}, "window 0: power must be finite and above 0"),
        ({"X": np.ones((24, 4, 13), np.float32)}, "14 channels"),
        ({"X": np.ones((23, 4, 14), np.float32)}, "ratings must be (23, 2)"),
        ({"valence_arousal": None, "ratings": np.full((24, 2), 11.0)}, "ratings must lie in [1.0, 9.0]"),
        ({"valence_arousal": np.full((24, 2), 3.0)}, "must lie in [-1, 1]"),
        ({"valence_arousal": None}, "lacks ratings"),
        ({"valence_arousal": (np.arange(48).reshape(24, 2) % 9 - 4) / 4}, "more than one rating"),
        ({"subject": np.ones(24)}, "subject must be (24,) integers"),
        ({"subject": np.full(24, 2**63, "u8")}, "subject must be below 2^63"),
        ({"X": np.array([{}], dtype=object)}, "of plain arrays"),
        ({"simulated": np.array([True, False])}, "size 1"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_reason(tmp_path: Path, data: BandPower, change: dict, words: str) -> None:
    path = tmp_path / "mine.npz"
    save_bandpower(path, data)
    rewrite(path, **change)
    with pytest.raises(InputError) as caught:
        load_bandpower(path)
    assert words in str(caught.value)
    assert "mine.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_a_missing_file_and_a_crowded_folder_are_refused(tmp_path: Path, data: BandPower) -> None:
    path = tmp_path / "mine.npz"
    save_bandpower(path, data)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="can't be read as an NPZ"):
        load_bandpower(path)
    with pytest.raises(InputError, match="no band-power file"):
        load_bandpower(tmp_path / "absent.npz")
    save_bandpower(tmp_path / "two.npz", data)
    with pytest.raises(InputError, match=r"2 \.npz files"):
        load_bandpower(tmp_path)
    with pytest.raises(InputError, match="unknown EEG data set"):
        load_bandpower(path, "dreamr")


def test_a_lone_array_and_a_damaged_compressed_file_are_refused(tmp_path: Path, data: BandPower) -> None:
    np.save(tmp_path / "lone.npy", data.power)
    (tmp_path / "lone.npy").rename(tmp_path / "lone.npz")
    path = tmp_path / "packed.npz"
    np.savez_compressed(path, X=np.zeros(4096))
    damaged = bytearray(path.read_bytes())
    start = damaged.index(b"X.npy") + len("X.npy") + 20  # numpy's zip64 field, then the deflated bytes
    damaged[start : start + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(damaged))
    for name in ("lone.npz", "packed.npz"):
        with pytest.raises(InputError, match=f"{name} can't be read as an NPZ") as caught:
            load_bandpower(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_subject_with_one_window_or_a_channel_that_never_changes_is_named(data: BandPower) -> None:
    one = data.rows((data.subject != 3) | (np.arange(len(data)) == len(data) - 1))
    with pytest.raises(InputError, match="subject 3 has one window; a z-score needs at least two"):
        log_power_z(one)
    power = data.power.copy()
    power[data.subject == 2, 1, 4] = 0.5
    with pytest.raises(InputError, match="subject 2: theta power at T7 never changes"):
        log_power_z(replace(data, power=power))


def test_simulated_power_follows_valence_and_arousal_where_it_says() -> None:
    data = simulate_bandpower(subjects=20, trials=20, windows=2, effect=1.0)
    z, va = log_power_z(data), data.valence_arousal
    corr = np.array([[np.corrcoef(va[:, a], z[:, b, c])[0, 1] for b in range(4) for c in range(14)] for a in (0, 1)])
    corr = corr.reshape(2, 4, 14)
    names = list(data.channels)
    assert corr[0, 2, names.index("F3")] > 0.3 > -0.3 > corr[0, 2, names.index("F4")]
    assert corr[1, 3, names.index("O1")] > 0.3 > -0.3 > corr[1, 2, names.index("O1")]
    assert np.abs(corr[:, :2]).max() < 0.15
    assert simulate_bandpower(seed=3).sha256 == simulate_bandpower(seed=3).sha256 != simulate_bandpower(seed=4).sha256
