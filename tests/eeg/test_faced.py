"""FACED's files: whose clip a trial was, and that nothing in a pickle is ever run."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from ngd_timm.core.errors import InputError
from ngd_timm.eeg.readers.faced import CHANNELS, read_faced
from ngd_timm.eeg.simulate.sets import write_simulated
from ngd_timm.eeg.simulate.signals import simulate_recordings


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_simulated("faced", tmp_path / "FACED", 2, 4, 2.0)
    return tmp_path / "FACED"


def remark(root: Path, change: dict[str, object], row: int = 0) -> None:
    """Change the first subject's entry for one clip."""
    path = root / "Data" / "sub001" / "After_remarks.mat"
    remarks = loadmat(path)["After_remark"]
    for name, value in change.items():
        remarks[row, 0][name] = value
    savemat(path, {"After_remark": remarks})


def test_trials_come_in_the_order_in_which_each_person_saw_the_clips(root: Path) -> None:
    expected = simulate_recordings(2, 4, 2.0, channels=CHANNELS, sfreq=250.0, levels=8)
    opened = read_faced(root)
    assert opened.simulated
    orders: dict[int, list[str | None]] = {1: [], 2: []}
    for written, read in zip(expected, opened, strict=True):
        assert (read.subject, read.trial, read.channels, read.sfreq) == (written.subject, written.trial, CHANNELS, 250)
        assert read.valence_arousal == pytest.approx(written.valence_arousal)
        np.testing.assert_array_equal(read.signal, written.signal)
        orders[read.subject].append(read.stimulus)
    assert set(orders[1]) == set(orders[2]) == {"1", "2", "3", "4"}
    assert orders[1] != orders[2]
    assert [p.name for p in read_faced(root / "Processed_data").files] == [p.name for p in opened.files]


@pytest.mark.usefixtures("in_process")
def test_the_clip_of_a_trial_is_taken_by_its_number_and_the_ratings_by_their_place(root: Path) -> None:
    array = np.arange(4 * 32 * 300, dtype="<f4").reshape(4, 32, 300)
    (root / "Processed_data" / "sub001.pkl").write_bytes(pickle.dumps(array, protocol=2))
    remark(root, {"vid": 3.0, "score": np.array([[0, 0, 0, 0, 0, 0, 0, 0, 7, 1.75, 0, 0]])})
    remark(root, {"vid": 1.0, "score": np.empty((0, 0))}, row=1)
    remark(root, {"vid": 4.0}, row=2)
    remark(root, {"vid": 2.0}, row=3)
    first, second, *_ = read_faced(root)
    np.testing.assert_array_equal(first.signal, array[2, :30])
    assert (first.trial, first.stimulus, first.valence_arousal) == (1, "3", (-0.5, 1.0))
    assert (second.trial, second.stimulus, second.valence_arousal) == (2, "1", None)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_runs_code_is_refused_and_not_run(root: Path, protocol: int) -> None:
    target = root / "owned"
    (root / "Processed_data" / "sub001.pkl").write_bytes(pickle.dumps(Malicious(target), protocol=protocol))
    with pytest.raises(InputError, match=r"sub001\.pkl: not a processed file of FACED.*nothing in it was run"):
        list(read_faced(root))
    assert not target.exists()


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps({"data": np.zeros((4, 32, 10))}), r"\(no array at the top\)"),
        (pickle.dumps(np.zeros((4, 30, 10))), r"must be \(clips, 32 channels, samples\), got \(4, 30, 10\)"),
        (pickle.dumps(np.full((4, 32, 10), np.nan), protocol=4), r"seen in place 1: .*Fp1 is not finite"),
        (pickle.dumps(np.zeros((5, 32, 10)), protocol=4), r"must have each of the 5 clips in sub001\.pkl once, has"),
        (b"PK", "damaged"),
    ],
)
def test_arrays_of_another_kind_are_refused_by_file_and_reason(root: Path, content: bytes, words: str) -> None:
    (root / "Processed_data" / "sub001.pkl").write_bytes(content)
    with pytest.raises(InputError, match=words):
        list(read_faced(root))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"score": np.ones((1, 3))}, r"sub001/After_remarks\.mat: After_remark 1: score must be 12 numbers"),
        ({"vid": "one"}, "After_remark 1: vid must be one number, got str"),
    ],
)
def test_remarks_of_another_kind_are_refused(root: Path, change: dict[str, object], words: str) -> None:
    remark(root, change)
    with pytest.raises(InputError, match=words):
        read_faced(root)
    (root / "Data" / "sub001" / "After_remarks.mat").write_bytes(b"not a MATLAB file")
    with pytest.raises(InputError, match=r"sub001/After_remarks\.mat: damaged, or not a MATLAB file"):
        read_faced(root)
