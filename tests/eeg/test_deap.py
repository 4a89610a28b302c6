"""DEAP's files: what is read of them, and that nothing in them is ever run."""

from __future__ import annotations

import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from ngd_timm.core.errors import InputError
from ngd_timm.eeg.readers.deap import CHANNELS, read_deap, write_deap
from ngd_timm.eeg.readers.limited import read_limited
from ngd_timm.eeg.signal.recording import Recording


def recordings(subjects: int = 2, trials: int = 3, seconds: int = 2) -> list[Recording]:
    rng = np.random.default_rng(0)
    return [
        Recording(
            subject,
            trial,
            rng.normal(0, 10, (32, seconds * 128)),
            128.0,
            CHANNELS,
            ((subject - 2) / 4, (trial - 2) / 4),
            rng.normal(0, 10, (32, 384)),
        )
        for subject in range(1, subjects + 1)
        for trial in range(1, trials + 1)
    ]


def content(trials: int = 2, samples: int = 400) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"labels": rng.uniform(1, 9, (trials, 4)), "data": rng.normal(0, 10, (trials, 40, samples))}


def put(folder: Path, raw: bytes) -> Path:
    (folder / "s01.dat").write_bytes(raw)
    return folder


def python2(arrays: dict[str, np.ndarray]) -> bytes:
    """The bytes that Python 2's cPickle writes at protocol 2 for a dict of float64 arrays."""
    out = [b"\x80\x02}q\x01("]
    dtype = b"cnumpy\ndtype\nq\x05U\x02f8K\x00K\x01\x87Rq\x06(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    for number, (name, array) in enumerate(arrays.items()):
        key = name.encode()
        out.append(b"U" + bytes([len(key)]) + key)
        out.append(b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04(K\x01")
        out.append(b"(" + b"".join(b"M" + struct.pack("<H", n) for n in array.shape) + b"t")
        raw = array.astype("<f8").tobytes()
        out += [b"h\x06" if number else dtype, b"\x89T", struct.pack("<i", len(raw)), raw, b"tb"]
    return b"".join([*out, b"u."])


def test_what_is_written_reads_back_marked_as_simulated(tmp_path: Path) -> None:
    write_deap(tmp_path, recordings())
    for root in (tmp_path, tmp_path / "data_preprocessed_python"):
        opened = read_deap(root)
        assert opened.simulated
        assert "simulated" in opened.dataset
        assert [p.name for p in opened.files] == ["s01.dat", "s02.dat", "SIMULATED.txt"]
        for one, other in zip(recordings(), opened, strict=True):
            assert (one.subject, one.trial, one.channels) == (other.subject, other.trial, other.channels)
            assert one.valence_arousal == pytest.approx(other.valence_arousal)
            np.testing.assert_array_equal(one.signal, other.signal)
            np.testing.assert_array_equal(one.baseline, other.baseline)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("protocol", "kind", "order"), [(2, "<f8", "C"), (3, "<f4", "F"), (4, ">f8", "C")])
def test_arrays_are_those_that_unpickling_gives(tmp_path: Path, protocol: int, kind: str, order: str) -> None:
    arrays = {name: np.asarray(array.astype(kind), order=order) for name, array in content().items()}  # type: ignore[call-overload]
    put(tmp_path, pickle.dumps(arrays, protocol=protocol))
    expected = pickle.loads((tmp_path / "s01.dat").read_bytes())
    opened = read_deap(tmp_path)
    assert not opened.simulated
    for trial, recording in enumerate(opened):
        np.testing.assert_array_equal(recording.signal, expected["data"][trial, :32, 384:])
        np.testing.assert_array_equal(recording.baseline, expected["data"][trial, :32, :384])
        assert recording.valence_arousal == pytest.approx((expected["labels"][trial, :2] - 5) / 4)


@pytest.mark.usefixtures("in_process")
def test_files_that_python_2_wrote_are_read(tmp_path: Path) -> None:
    arrays = content()
    raw = python2(arrays)
    np.testing.assert_array_equal(pickle.loads(raw, encoding="latin1")["data"], arrays["data"])
    first, second = read_deap(put(tmp_path, raw))
    np.testing.assert_array_equal(first.signal, arrays["data"][0, :32, 384:])
    assert (second.subject, second.trial) == (1, 2)
    assert second.channels[0] == "Fp1"


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (open, (str(self.target), "w"))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_that_runs_code_is_refused_by_name_and_not_run(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "owned"
    raw = pickle.dumps({**content(), "extra": Malicious(target)}, protocol=protocol)
    with pytest.raises(InputError, match=r"s01\.dat.*nothing in it was run"):
        list(read_deap(put(tmp_path, raw)))
    assert not target.exists()
    pickle.loads(raw)  # the pickle does what the reader must not
    assert target.exists()


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("payload", "name"),
    [
        ("cos\nsystem\n(Vtouch {}\ntR.", "os.system"),
        ("(Vtouch {}\nios\nsystem\n.", "os.system"),  # INST
        ("c__builtin__\neval\n(Vopen('{}', 'w')\ntR.", "__builtin__.eval"),
        ("cbuiltins\ngetattr\n(cos\nsystem\nV__call__\ntR(Vtouch {}\ntR.", "builtins.getattr"),
        ("cfunctools\npartial\n(cos\nsystem\nVtouch {}\ntR)R.", "functools.partial"),
        ("ccopyreg\n__newobj__\n(cos\nsystem\nVtouch {}\ntR.", "copyreg.__newobj__"),
        ("cnumpy.core.multiarray\n_reconstruct\n(cos\nsystem\n(Vtouch {}\ntRtR.", "os.system"),
        ("cnumpy\nndarray\n(N(dV__setstate__\ncos\nsystem\nstbVtouch {}\nb.", "os.system"),  # BUILD, twice
        ("cnumpy\nndarray.__init__.__globals__\n(Vtouch {}\ntR.", "numpy.ndarray.__init__.__globals__"),
    ],
)
def test_names_other_than_those_of_arrays_are_refused_before_they_are_called(
    tmp_path: Path, payload: str, name: str
) -> None:
    target = tmp_path / "owned"
    put(tmp_path, payload.format(target).encode())
    with pytest.raises(InputError, match=rf"s01\.dat: .*\(the name {re.escape(name)}\); nothing in it was run$"):
        list(read_deap(tmp_path))
    assert not target.exists()


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\x80\x02cnumpy\ndtype\nU\x01O\x85R.", "isn't float32 or float64"),
        (b"\x80\x02cnumpy\nndarray\n}b.", "damaged"),  # a state for the class itself
        (b"\x80\x02}X\x04\x00\x00\x00datacnumpy\nndarray\n)Rs.", "lacks the array labels"),  # data without a state
        (b"\x80\x02}.", "lacks the array data, labels"),
        (b"\x80\x02K\x01.", "no dict"),
        (b"\x80\x02\x82\x01.", "damaged"),  # EXT1
        (b"Psomething\n.", "damaged"),  # PERSID
        (b"\x80\x02h\x07.", "damaged"),
        (b"", "damaged"),
        (b"PK\x03\x04 not a pickle", "damaged"),
    ],
)
def test_anything_but_a_dict_of_arrays_is_refused_in_one_line(tmp_path: Path, raw: bytes, words: str) -> None:
    with pytest.raises(InputError) as caught:
        list(read_deap(put(tmp_path, raw)))
    assert words in str(caught.value)
    assert "s01.dat" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"c\x1b[31m\nevil\n.", "the name ?[31m.evil"),  # what a terminal would obey
        (b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.", ": "),  # hashing this key overflows Python's stack
        (python2(content())[:5000], "damaged"),
    ],
)
def test_the_child_process_refuses_in_one_line_that_can_be_printed(tmp_path: Path, raw: bytes, words: str) -> None:
    with pytest.raises(InputError) as caught:
        list(read_deap(put(tmp_path, raw)))
    assert str(caught.value).startswith(f"{tmp_path / 's01.dat'}: ")
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_file_that_would_take_forever_is_given_up(tmp_path: Path) -> None:
    put(tmp_path, b"\x80\x02})" + b"2\x86" * 60 + b"K\x01s.")  # a key of 2^60 items, each hashed
    with pytest.raises(InputError, match=r"s01\.dat: can't be read: its parser ended with .*1 s"):
        list(read_limited("deap", tmp_path / "s01.dat", gibibytes=2, cpu_seconds=1))


@pytest.mark.parametrize("opcode", [b"\x8e", b"\x96", b"\x8b", b"B"])  # BINBYTES8, BYTEARRAY8, LONG4, BINBYTES
def test_a_length_beyond_the_file_is_refused_and_costs_no_memory(tmp_path: Path, opcode: bytes) -> None:
    size = struct.pack("<Q", 2**62) if opcode in b"\x8e\x96" else struct.pack("<I", 2**31 - 1)
    put(tmp_path, b"\x80\x04" + opcode + size + b"abc.")
    with pytest.raises(InputError, match=r"s01\.dat: .*damaged"):
        list(read_limited("deap", tmp_path / "s01.dat", gibibytes=0.25, cpu_seconds=60))


def test_a_text_that_is_unpacked_again_and_again_is_refused_at_the_files_own_size(tmp_path: Path) -> None:
    text = b"\x80\x04X" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b"\x94]"
    put(tmp_path, text + b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86Ra" * 7000 + b".")  # 7 GB
    with pytest.raises(InputError, match=r"s01\.dat: .*damaged \(more bytes than the file has\)"):
        list(read_limited("deap", tmp_path / "s01.dat", gibibytes=0.5, cpu_seconds=60))


def test_a_folder_of_other_or_of_doubled_files_is_refused_and_opening_reads_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no s01"):
        read_deap(tmp_path)
    put(tmp_path, b"not a pickle")
    assert read_deap(tmp_path).files == (tmp_path / "s01.dat",)
    (tmp_path / "s1.dat").write_bytes(b"")
    with pytest.raises(InputError, match=r"s01\.dat and s1\.dat are both of subject 1"):
        read_deap(tmp_path)


@pytest.mark.usefixtures("in_process")
def test_an_array_whose_shape_is_not_its_bytes_is_refused(tmp_path: Path) -> None:
    raw = python2(content()).replace(b"M" + struct.pack("<H", 400), b"M" + struct.pack("<H", 401))
    with pytest.raises(InputError, match=r"cannot reshape array"):
        list(read_deap(put(tmp_path, raw)))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": np.zeros((2, 32, 400))}, r"data must be \(trials, 40"),
        ({"data": np.zeros((2, 40, 384))}, "more than 384 samples"),
        ({"labels": np.full((3, 4), 5.0)}, r"got \(2, 40, 400\) and \(3, 4\)"),
        ({"labels": np.full((2, 4), 10.0)}, r"s01.dat, trial 1: ratings must lie in \[1.0, 9.0\]"),
        ({"labels": np.full((2, 4), np.nan)}, "ratings must lie"),
        ({"data": np.full((2, 40, 400), np.nan)}, "s01.dat, trial 1: .*Fp1 is not finite"),
        ({"data": 3}, "lacks the array data"),
    ],
)
def test_wrong_content_is_refused_by_file_and_reason(tmp_path: Path, change: dict, words: str) -> None:
    raw = pickle.dumps({**content(), **change}, protocol=2)
    with pytest.raises(InputError, match=words):
        list(read_deap(put(tmp_path, raw)))
