"""DEAP's preprocessed recordings (Koelstra et al. 2012), read from their pickles without unpickling anything."""

from __future__ import annotations

import io
import math
import pickletools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ngd_timm.core.affect import rating_to_va, va_to_rating
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import atomic_path, write_text
from ngd_timm.eeg.signal.electrodes import BIOSEMI_32
from ngd_timm.eeg.signal.recording import Recording, RecordingSet

__all__ = ["CHANNELS", "read_deap", "write_deap"]

CHANNELS = BIOSEMI_32
"""The EEG channels in the order of the files, which is Geneva's; eight peripheral signals follow."""

_FOLDER = "data_preprocessed_python"
_MARKER = "SIMULATED.txt"
_SFREQ, _BASELINE_S, _ROWS, _LOW, _HIGH = 128.0, 3, 40, 1.0, 9.0
_NOTES = {
    "as supplied": "128 Hz, average reference, eye artefacts removed and 4 to 45 Hz passed by DEAP's authors, so that "
    "delta power is mostly what their filter left",
    "trial": "the same music video for everyone",
}


def read_deap(root: str | Path) -> RecordingSet:
    """Open `data_preprocessed_python/sNN.dat`: 32 EEG channels at 128 Hz, 3 s of baseline and 60 s of music video.

    The files are Python 2 pickles, which could run any code in whoever unpickles them. Here their opcodes are walked,
    and nothing but a dict of plain float arrays is understood; one subject is in memory at a time.

    Args:
        root: The folder of the `.dat` files, or the one that holds it.

    Raises:
        InputError: No such files, or two of one person; when iterated, a file that holds anything else, named with
            the reason.

    Reference:
        Koelstra et al., "DEAP: a database for emotion analysis using physiological signals", IEEE TAC 3 (2012).
    """
    root = Path(root)
    folder = root / _FOLDER if (root / _FOLDER).is_dir() else root
    files: dict[int, Path] = {}
    for path in sorted(folder.glob("*.dat")):
        if found := re.fullmatch(r"s(\d+)", path.stem):
            other = files.setdefault(int(found[1]), path)
            if other != path:
                raise InputError(
                    f"{folder}: {other.name} and {path.name} are both of subject {int(found[1])}; keep one"
                )
    if not files:
        raise InputError(f"no s01.dat … in {folder}; give the folder that holds DEAP's {_FOLDER}")
    marker = folder / _MARKER
    simulated = marker.is_file()

    def read() -> Iterator[Recording]:
        for subject in sorted(files):
            yield from _subject(files[subject], subject)

    return RecordingSet(
        dataset="simulated recordings in DEAP's layout"
        if simulated
        else "DEAP (Koelstra et al. 2012), preprocessed, 32 channels at 128 Hz, 40 music videos a person",
        files=(*(files[subject] for subject in sorted(files)), *([marker] if simulated else [])),
        read=read,
        notes=_NOTES,
        simulated=simulated,
    )


def write_deap(root: str | Path, recordings: Iterable[Recording]) -> None:
    """Write recordings in DEAP's layout, marked as simulated, so that its reader can be tried without DEAP's licence.

    Args:
        root: Gets the folder `data_preprocessed_python`.
        recordings: 128 Hz, all of `CHANNELS`, rated, 3 s of baseline; a person's trials are numbered from 1 and last
            alike.

    Raises:
        InputError: A recording that the layout has no place for.
    """
    # Only ever written: what is read back goes through `_walk`.
    import pickle

    subjects = defaultdict(list)
    for recording in recordings:
        subjects[recording.subject].append(recording)
    folder = Path(root) / _FOLDER
    write_text(folder / _MARKER, "These recordings are simulated: nobody's EEG, in the layout of DEAP.\n")
    for subject, trials in subjects.items():
        trials.sort(key=lambda recording: recording.trial)
        if [recording.trial for recording in trials] != list(range(1, len(trials) + 1)):
            raise InputError(f"subject {subject}: DEAP has no trial numbers; number them from 1 without gaps")
        if len({recording.signal.shape[1] for recording in trials}) > 1:
            raise InputError(f"subject {subject}: the trials of a person are one array; make them last alike")
        content = {
            "labels": np.array([_labels(recording) for recording in trials]),
            "data": np.stack([_rows(recording) for recording in trials]),
        }
        with atomic_path(folder / f"s{subject:02d}.dat") as temporary:
            temporary.write_bytes(pickle.dumps(content, protocol=2))


def _labels(recording: Recording) -> tuple[float, float, float, float]:
    if recording.valence_arousal is None:
        raise InputError(f"{recording} has no rating; every trial of DEAP has one")
    valence, arousal = va_to_rating(np.array(recording.valence_arousal), _LOW, _HIGH).tolist()
    return valence, arousal, 5.0, 5.0


def _rows(recording: Recording) -> np.ndarray:
    recording = recording.pick(CHANNELS)
    samples = round(_BASELINE_S * _SFREQ)
    baseline = recording.baseline
    if recording.sfreq != _SFREQ or baseline is None or baseline.shape[1] != samples:
        raise InputError(f"{recording}: DEAP's layout is {_SFREQ:g} Hz with {_BASELINE_S} s of baseline")
    eeg = np.concatenate([baseline, recording.signal], axis=1).astype(np.float64)
    return np.concatenate([eeg, np.zeros((_ROWS - len(CHANNELS), eeg.shape[1]))])


def _subject(path: Path, subject: int) -> Iterator[Recording]:
    content = _load(path)
    missing = [key for key in ("data", "labels") if not isinstance(content.get(key), np.ndarray)]
    if missing:
        raise InputError(f"{path}: lacks the array {', '.join(missing)}; a file of DEAP has data and labels")
    data, labels = content["data"], content["labels"]
    start = round(_BASELINE_S * _SFREQ)
    if data.ndim != 3 or data.shape[1] != _ROWS or data.shape[2] <= start or labels.shape != (len(data), 4):
        raise InputError(
            f"{path}: data must be (trials, {_ROWS}, more than {start} samples) and labels (trials, 4), "
            f"got {data.shape} and {labels.shape}"
        )
    for index, (rows, rating) in enumerate(zip(data, labels, strict=True)):
        eeg = rows[: len(CHANNELS)]
        try:
            valence, arousal = rating_to_va(rating[:2], _LOW, _HIGH).tolist()
            recording = Recording(
                subject, index + 1, eeg[:, start:], _SFREQ, CHANNELS, (valence, arousal), eeg[:, :start]
            )
        except InputError as error:
            raise InputError(f"{path}, trial {index + 1}: {error}") from None
        yield recording


class _Refused(Exception):
    """An opcode, a global or a value that a file of DEAP has no use for."""


class _Global(str):
    """A name that a pickle would import; here it stays a name."""


class _DType:
    """`numpy.dtype` before and after its state is set."""

    def __init__(self, code: object) -> None:
        if code not in ("f4", "f8"):
            raise _Refused("an array that isn't float32 or float64")
        self.code = str(code)
        self.order = "<"

    def build(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) >= 5 and state[1] in ("<", ">") and state[2:5] == (None,) * 3):
            raise _Refused("a dtype that isn't a plain number")
        self.order = state[1]


class _Array:
    """`numpy.ndarray` before and after its state is set."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise _Refused("an array in an unknown form")
        _, shape, dtype, fortran, raw = state
        raw = raw.encode("latin-1") if isinstance(raw, str) else raw  # Python 2's strings are bytes
        if not (isinstance(dtype, _DType) and isinstance(raw, bytes) and isinstance(shape, tuple)):
            raise _Refused("an array in an unknown form")
        if not all(type(n) is int and n >= 0 for n in shape):
            raise _Refused("an array with an impossible shape")
        kind = np.dtype(dtype.order + dtype.code)
        if math.prod(shape) * kind.itemsize != len(raw):
            raise _Refused(f"an array of shape {shape} in {len(raw)} bytes")
        self.value = np.frombuffer(raw, kind).reshape(shape, order="F" if fortran else "C")


class _Bounded(io.BufferedReader):
    """Never asks a file for more than it holds: a pickle's lengths are claims, and memory is set aside by them."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = self._size - self.tell()
        return super().read(left if size is None or size < 0 else min(size, left))


def _load(path: Path) -> dict[str, Any]:
    try:
        with _Bounded(path) as handle:
            content = _walk(handle)
    except (_Refused, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: not a preprocessed file of DEAP, or damaged ({reason}); nothing in it was run"
        ) from None
    except (IndexError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: damaged: its opcodes don't fit together; nothing in it was run") from None
    return content


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# fmt: off
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE",
    "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES",
}
# fmt: on
_GLOBALS = {
    "numpy.core.multiarray _reconstruct": "reconstruct",
    "numpy._core.multiarray _reconstruct": "reconstruct",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
}


def _walk(handle: BinaryIO) -> dict[str, Any]:
    """The dict that a pickle describes; no name in it is looked up, nothing in it is called."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def to_mark() -> list[Any]:
        if _MARK not in stack:
            raise IndexError
        start = len(stack) - 1 - stack[::-1].index(_MARK)
        items = stack[start + 1 :]
        del stack[start:]
        return items

    def last(count: int) -> tuple[Any, ...]:
        if len(stack) < count:
            raise IndexError
        items = tuple(stack[len(stack) - count :])
        del stack[len(stack) - count :]
        return items

    def fill(items: Iterable[Any]) -> None:
        target, pairs = stack[-1], list(items)
        if type(target) is not dict or not all(isinstance(key, str) for key in pairs[::2]):
            raise _Refused("a dict with keys that aren't names")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    builders: dict[str, Callable[[], Any]] = {
        "MARK": lambda: _MARK,
        "EMPTY_DICT": dict,
        "EMPTY_TUPLE": tuple,
        "TUPLE": lambda: tuple(to_mark()),
        "TUPLE1": lambda: last(1),
        "TUPLE2": lambda: last(2),
        "TUPLE3": lambda: last(3),
        "STACK_GLOBAL": lambda: _global(" ".join(last(2))),
        "REDUCE": lambda: _reduce(*last(2)),
    }
    for opcode, argument, _ in pickletools.genops(handle):
        name = opcode.name
        if name in builders:
            stack.append(builders[name]())
        elif name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "GLOBAL":
            stack.append(_global(str(argument)))
        elif name == "DICT":
            items = to_mark()
            stack.append({})
            fill(items)
        elif name == "SETITEM":
            fill(last(2))
        elif name == "SETITEMS":
            fill(to_mark())
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], (_Array, _DType)):
                raise _Refused("a state for something that isn't an array")
            stack[-1].build(state)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise _Refused(f"the opcode {name}")
    (content,) = stack
    if type(content) is not dict:
        raise _Refused("no dict at the top")
    return {key: value.value if isinstance(value, _Array) else value for key, value in content.items()}


def _global(name: str) -> _Global:
    if name not in _GLOBALS:
        raise _Refused(f"the name {name.replace(' ', '.')[:100]}")
    return _Global(_GLOBALS[name])


def _reduce(function: Any, arguments: Any) -> Any:
    """What calling a known name would give, made here."""
    if not (isinstance(function, _Global) and isinstance(arguments, tuple)):
        raise _Refused("a call of something without a name")
    if function == "reconstruct" and isinstance(arguments[0], _Global) and arguments[0] == "ndarray":
        return _Array()
    if function == "dtype":
        return _DType(arguments[0])
    if function == "encode" and isinstance(arguments[0], str) and arguments[1:] in (("latin1",), ("latin-1",)):
        return arguments[0].encode("latin-1")
    raise _Refused(f"a call of {function} with other arguments")
