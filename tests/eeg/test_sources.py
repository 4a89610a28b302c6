"""Names and roots to band power: which reader, what shares a cache entry, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ngd_timm.eeg.readers.sources as sources
from ngd_timm.core.errors import InputError
from ngd_timm.core.teacher_recipe import TeacherData
from ngd_timm.eeg.readers.deap import CHANNELS, write_deap
from ngd_timm.eeg.readers.sources import load_eeg, open_recordings
from ngd_timm.eeg.signal.bandpower import save_bandpower
from ngd_timm.eeg.signal.recording import Recording
from ngd_timm.eeg.simulate.power import simulate_bandpower
from ngd_timm.eeg.simulate.sets import write_simulated

SETTINGS = TeacherData(name="deap", channels=("Fz", "Cz", "Pz"), window_s=2.0)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    write_deap(
        tmp_path / "deap",
        (
            Recording(1, t, rng.normal(0, 10, (32, 512)), 128.0, CHANNELS, (0.0, 0.5), rng.normal(0, 10, (32, 384)))
            for t in (1, 2)
        ),
    )
    return str(tmp_path / "deap")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The bands of each computation that the cache did not spare."""
    done: list[tuple[str, ...]] = []
    original = sources.band_power

    def counting(recordings, settings):  # type: ignore[no-untyped-def]
        done.append(settings.bands)
        return original(recordings, settings)

    monkeypatch.setattr(sources, "band_power", counting)
    return done


def test_signals_become_band_power_with_the_given_bands(root: str) -> None:
    data = load_eeg(SETTINGS.model_copy(update={"bands": ("alpha", "theta")}), "deap", root)
    assert data.bands == ("alpha", "theta")
    assert data.channels == ("Fz", "Cz", "Pz")
    assert data.simulated
    assert len(data) == 4
    assert "4 to 45 Hz" in data.notes["as supplied"]


def test_another_choice_of_bands_or_folds_finds_the_cache_and_another_signal_setting_does_not(
    root: str, tmp_path: Path, computed: list[tuple[str, ...]]
) -> None:
    whole = load_eeg(SETTINGS, "deap", root)
    for change in ({"bands": ("alpha",)}, {"folds": 3}, {"root": "elsewhere"}):
        load_eeg(SETTINGS.model_copy(update=change), "deap", root)
    assert computed == [("delta", "theta", "alpha", "beta", "gamma")]
    for change in ({"window_s": 1.0}, {"artefact_uv": 300.0}, {"notch": None}, {"channels": ("Fz", "Cz")}):
        load_eeg(SETTINGS.model_copy(update=change), "deap", root)
    assert len(computed) == 5
    assert len(list((tmp_path / "cache" / "ngd_timm").iterdir())) == 5
    again = load_eeg(SETTINGS.model_copy(update={"cache": False}), "deap", root)
    assert len(computed) == 6
    assert again.sha256 == whole.sha256
    assert again.notes == whole.notes


def test_a_narrower_filter_keeps_the_bands_that_it_lets_through(root: str, computed: list[tuple[str, ...]]) -> None:
    narrow = SETTINGS.model_copy(update={"lowpass": 30.0, "bands": ("alpha",)})
    assert load_eeg(narrow, "deap", root).bands == ("alpha",)
    assert computed == [("delta", "theta", "alpha", "beta")]
    with pytest.raises(InputError, match="gamma"):
        load_eeg(SETTINGS.model_copy(update={"lowpass": 30.0}), "deap", root)


def test_a_band_power_file_is_taken_as_it_is(tmp_path: Path) -> None:
    save_bandpower(tmp_path / "mine.npz", simulate_bandpower(2, 2, 2))
    settings = TeacherData(name="bandpower", bands=("beta",), channels=("O1", "AF3"))
    data = load_eeg(settings, "bandpower", str(tmp_path / "mine.npz"))
    assert (data.bands, data.channels) == (("beta",), ("O1", "AF3"))


def test_gameemos_files_are_read_as_they_are_laid_out_and_a_game_without_a_rating_is_unrated(tmp_path: Path) -> None:
    folder = tmp_path / "(S07)" / "Preprocessed EEG Data" / ".csv format"
    folder.mkdir(parents=True)
    columns = ["AF3", "AF4", "F3", "F4", "F7", "F8", "FC5", "FC6", "O1", "O2", "P7", "P8", "T7", "T8"]
    for game in (1, 2):
        lines = [",".join(columns) + ",", *(",".join(f"{row + n / 4}" for n in range(14)) + "," for row in range(20))]
        (folder / f"S07G{game}AllChannels.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "ratings.csv").write_text("subject,game,valence,arousal\n7,2,9,5\n")
    first, second = open_recordings("gameemo", str(tmp_path))
    assert (second.subject, second.trial, second.valence_arousal) == (7, 2, (1.0, 0.0))
    assert first.valence_arousal is None
    assert second.sfreq == 128
    np.testing.assert_allclose(second.pick(["T8"]).signal[0], np.arange(20) + 13 / 4)
    (folder / "S07G2AllChannels.csv").write_text("AF3,AF4,\n1,2,\n")
    with pytest.raises(InputError, match=r"S07G2AllChannels\.csv: lacks the column F3, F4"):
        list(open_recordings("gameemo", str(tmp_path)))


def test_a_damaged_file_of_gameemo_is_named(tmp_path: Path) -> None:
    write_simulated("gameemo", tmp_path / "games", 1, 1, 1.0)
    (file,) = (tmp_path / "games").rglob("S01G1AllChannels.csv")
    file.write_text(file.read_text()[:-40] + "x,\n")
    with pytest.raises(InputError, match=r"S01G1AllChannels\.csv: "):
        list(open_recordings("gameemo", str(tmp_path / "games")))
    file.unlink()
    with pytest.raises(InputError, match=r"no \(S01\)/Preprocessed"):
        open_recordings("gameemo", str(tmp_path / "games"))


def test_arrays_of_a_recording_are_floats() -> None:
    for signal in ([[0.0, 1.0]], np.zeros((1, 2), dtype=np.int16)):
        with pytest.raises(InputError, match="signal must be an array of floats in µV, got"):
            Recording(1, 1, signal, 128.0, ("O1",))  # type: ignore[arg-type]


def test_subjects_and_trials_of_a_recording_are_numbers() -> None:
    for subject, trial, what in (("S01", 1, "subject"), (1, "a", "trial")):
        with pytest.raises(InputError, match=f"{what} must be a whole number, got .*; number the {what}s"):
            Recording(subject, trial, np.zeros((1, 2)), 128.0, ("O1",))  # type: ignore[arg-type]


def test_two_files_of_one_game_of_gameemo_are_refused(tmp_path: Path) -> None:
    write_simulated("gameemo", tmp_path / "games", 1, 1, 1.0)
    (file,) = (tmp_path / "games").rglob("S01G1AllChannels.csv")
    file.with_name("S1G1AllChannels.csv").write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=r"S01G1AllChannels\.csv and S1G1AllChannels\.csv are the same game"):
        open_recordings("gameemo", str(tmp_path / "games"))


def test_two_folders_of_one_subject_of_gameemo_are_refused(tmp_path: Path) -> None:
    write_simulated("gameemo", tmp_path / "games", 1, 1, 1.0)
    (folder,) = (tmp_path / "games").rglob("(S01)")
    (folder.parent / "(S1)").mkdir()
    with pytest.raises(InputError, match=r"\(S01\) and \(S1\) are the same subject; remove one"):
        open_recordings("gameemo", str(tmp_path / "games"))


@pytest.mark.parametrize(
    ("name", "example"),
    [
        ("dreamer", "data.root=DREAMER.mat"),
        ("mahnob", "data.root=PATH, the folder that holds Sessions/"),
        ("deap", "data.root=PATH, the folder that holds data_preprocessed_python/"),
        ("faced", "data.root=PATH, the folder that holds Processed_data/ and Data/"),
        ("bids", "data.root=PATH, the folder that holds dataset_description.json"),
        ("recordings", "data.root=recordings.csv"),
        ("gameemo", "data.root=gameemo_bandpower.npz, or the folder that holds (S01)/"),
        ("bandpower", "data.root=mine.npz"),
    ],
)
def test_without_a_root_an_example_is_given(name: str, example: str) -> None:
    with pytest.raises(InputError) as caught:
        load_eeg(TeacherData(), name, None)
    assert str(caught.value).endswith(f"for example {example}")


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'dreamer'"):
        load_eeg(TeacherData(), "dreamr", "x")
    with pytest.raises(InputError, match="Allowed: dreamer, mahnob, deap, faced, gameemo, bids, recordings"):
        open_recordings("bandpower", "x")
