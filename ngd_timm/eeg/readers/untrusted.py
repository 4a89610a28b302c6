"""Parsers for untrusted files; `limited.py` runs them in a child process, without the rest of ngd_timm.

    python untrusted.py READER FILE MEMORY_BYTES CPU_SECONDS

Writes messages to stdout, each an NPZ of arrays behind its size in 8 bytes.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

_Arrays = dict[str, Any]


class Refused(Exception):
    """A file that the parser can't read; the message completes `FILE: …`."""


def dreamer(path: str) -> Iterator[_Arrays]:
    """DREAMER.mat: `rate`, `channels` and `provider`, then one subject's scores and signals at a time."""
    content = _mat_variable(path, "DREAMER", "DREAMER.mat")
    database = _struct(content.pop(), "DREAMER", "Data", "EEG_SamplingRate", "EEG_Electrodes", "Provider")
    channels, rate = _cells(database["EEG_Electrodes"]), database["EEG_SamplingRate"]
    if not all(isinstance(name, str) for name in channels):
        raise Refused(f"EEG_Electrodes must be a cell array of names, got {_kind(database['EEG_Electrodes'])}")
    if not isinstance(rate, (int, float)):
        raise Refused(f"EEG_SamplingRate must be one number, got {_kind(rate)}")
    channels = [name[:100].strip() for name in channels]
    yield {"rate": float(rate), "channels": channels, "provider": str(database["Provider"])[:1000]}
    subjects = _cells(database.pop("Data"))
    for number in range(1, len(subjects) + 1):
        where = f"subject {number}"
        fields = _struct(subjects.pop(0), where, "EEG", "ScoreValence", "ScoreArousal")
        eeg = _struct(fields["EEG"], f"{where}'s EEG", "baseline", "stimuli")
        arrays = {name: np.ravel(fields[name]) for name in ("ScoreValence", "ScoreArousal")}
        for name, scores in arrays.items():
            if not _numeric(scores):
                raise Refused(f"{where}: {name} must be numbers, got {_kind(scores)}")
        for part in ("baseline", "stimuli"):
            for i, signal in enumerate(_cells(eeg[part]), start=1):
                if not (_numeric(signal) and signal.ndim == 2 and len(signal) and signal.shape[1] == len(channels)):
                    raise Refused(
                        f"{where}'s {part}, trial {i}: must be (samples, {len(channels)} electrodes), "
                        f"got {_kind(signal)}"
                    )
                # The 24 bits of float32 hold the converter's 14 and the DC with room to spare.
                arrays[f"{part}{i}"] = np.ascontiguousarray(signal.T, dtype=np.float32)
        yield arrays


def deap(path: str) -> Iterator[_Arrays]:
    """DEAP's sNN.dat: `data` and `labels`, if they are arrays."""
    content = _unpickled(path, dict, "dict", "a preprocessed file of DEAP")
    yield {name: content[name].values for name in ("data", "labels") if isinstance(content.get(name), _Array)}


def faced(path: str) -> Iterator[_Arrays]:
    """FACED's subNNN.pkl: one array."""
    yield {"data": _unpickled(path, _Array, "array", "a processed file of FACED").values}


def faced_ratings(path: str) -> Iterator[_Arrays]:
    """Each `subNNN/After_remarks.mat` in a folder: `vid` (T,), clips in the order seen, and `score` (T, 12) or NaN."""
    for subject in sorted(name for name in os.listdir(path) if os.path.isdir(os.path.join(path, name))):
        file = os.path.join(path, subject, "After_remarks.mat")
        if os.path.isfile(file):
            try:
                yield {"subject": subject, **_remarks(_mat_variable(file, "After_remark", "After_remarks.mat").pop())}
            except Refused as error:
                raise Refused(f"{os.path.join(subject, 'After_remarks.mat')}: {error}") from None


def _remarks(remarks: Any) -> _Arrays:
    rows = [_struct(row, f"After_remark {i}", "score", "vid") for i, row in enumerate(_cells(remarks), start=1)]
    scores = np.full((len(rows), 12), np.nan)
    for number, row in enumerate(rows, start=1):
        score = np.ravel(row["score"])
        if len(score) and not (_numeric(score) and len(score) == 12):
            raise Refused(f"After_remark {number}: score must be 12 numbers, got {_kind(score)}")
        if not isinstance(row["vid"], (int, float)):
            raise Refused(f"After_remark {number}: vid must be one number, got {_kind(row['vid'])}")
        scores[number - 1, : len(score)] = score
    return {"score": scores, "vid": np.array([row["vid"] for row in rows], dtype=np.float64)}


def _unpickled(path: str, kind: type, name: str, what: str) -> Any:
    """What lies in a pickle of arrays, if it is of that kind."""
    try:
        with open(path, "rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
        if type(content) is not kind:
            raise Refused(f"no {name} at the top")
    except MemoryError:
        raise
    except Exception as error:
        raise Refused(f"not {what}, or damaged ({_one_line(error)}); nothing in it was run") from None
    return content


def _mat_variable(path: str, name: str, what: str) -> list[Any]:
    """A MATLAB file's variable, in a list that a caller can empty."""
    from scipy.io import loadmat, whosmat

    try:
        content = loadmat(path, variable_names=[name], appendmat=False, simplify_cells=True)
        if name not in content:
            names = ", ".join(other for other, _, _ in whosmat(path, appendmat=False)) or "none"
            raise Refused(f"not {what}, which has a variable {name}; this has {names}")
    except (Refused, MemoryError):
        raise
    except NotImplementedError:  # what SciPy raises for HDF5
        raise Refused("a MATLAB 7.3 (HDF5) file; save it in MATLAB with '-v7'") from None
    except Exception as error:
        raise Refused(f"damaged, or not a MATLAB file of level 5 ({_one_line(error)})") from None
    return [content.pop(name)]


class _DType:
    """Stands in for `numpy.dtype`, whose own `__setstate__` trusts what a pickle gives it."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in ("f4", "f8"):
            raise Refused("an array that isn't float32 or float64")
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">"):
            raise Refused("a dtype that isn't a plain number")
        self.order = state[1]


class _Array:
    """Stands in for `numpy.ndarray`."""

    values = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        raw = raw.encode("latin-1") if isinstance(raw, str) else raw  # Python 2's strings are bytes
        values = np.frombuffer(raw, np.dtype(f"{dtype.order}{dtype.code}"))
        self.values = values.reshape(shape, order="F" if fortran else "C")


_ALLOWED: dict[tuple[str, str], Callable[..., object]] = {  # and _codecs.encode, by the unpickler itself
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, **options: Any) -> None:
        super().__init__(file, **options)
        self._left = os.fstat(file.fileno()).st_size

    def find_class(self, module: str, name: str) -> Any:
        """Only the names of arrays, each as a stand-in; anything else is refused before it is imported."""
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        if (module, name) not in _ALLOWED:
            raise Refused(f"the name {f'{module}.{name}':.100}")
        return _ALLOWED[module, name]

    def _encode(self, text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise Refused(f"text in {encoding!r:.40}")
        self._left -= len(text)
        if self._left < 0:  # a text that is named again and again
            raise Refused("more bytes than the file has")
        return text.encode("latin-1")


def _struct(value: Any, where: str, *fields: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused(f"{where} must be one struct, got {_kind(value)}")
    missing = [name for name in fields if name not in value]
    if missing:
        raise Refused(f"{where} lacks {', '.join(missing)}; it has {', '.join(value)}")
    return value


def _cells(value: Any) -> list[Any]:
    """A cell array's cells; SciPy simplifies an array of one to what is in it."""
    if isinstance(value, list):
        return value
    return list(value) if isinstance(value, np.ndarray) and value.dtype == object else [value]


def _numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiu"


def _kind(value: Any) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _limit(memory: int, seconds: int) -> None:
    with contextlib.suppress(ImportError):  # Windows sets no limits
        import resource

        for what, value in (("RLIMIT_AS", memory), ("RLIMIT_CPU", seconds), ("RLIMIT_CORE", 0)):
            with contextlib.suppress(AttributeError, ValueError, OSError):  # unknown here, or already lower
                resource.setrlimit(getattr(resource, what), (value, value))


def _send(arrays: _Arrays) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    sys.stdout.buffer.write(len(buffer.getbuffer()).to_bytes(8, "little"))
    sys.stdout.buffer.write(buffer.getbuffer())
    sys.stdout.buffer.flush()


def _main(reader: str, path: str, memory: str, seconds: str) -> None:
    _limit(int(memory), int(seconds))
    try:
        parsers = {"dreamer": dreamer, "deap": deap, "faced": faced, "faced_ratings": faced_ratings}
        for arrays in parsers[reader](path):
            _send(arrays)
        _send({"end": True})
    except Refused as error:
        _send({"refused": "".join(c if c.isprintable() else "?" for c in str(error)[:500])})
    except MemoryError:
        size = f"{int(memory) / 2**30:g} GiB"
        _send({"refused": f"damaged, or another kind of file: reading it needs more than {size} of memory"})


if __name__ == "__main__":
    _main(*sys.argv[1:])
