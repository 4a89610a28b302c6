"""Changes to files: their bytes, a leaf of what they hold, a payload in its place, a device in the file's place."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from faults import encoded
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load, save
from scipy.io import loadmat, savemat

MARKER = "PAYLOAD-RAN"


class Payload:
    """Makes the folder that a test looks for, where it is unpickled freely."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.folder / MARKER),)


class Edit(NamedTuple):
    """One change; numbers are taken modulo what there is, so that any edit fits any file."""

    file: int
    how: str
    at: int
    value: Any


TEXTS = (
    *("", " ", "nan", "-inf", "1e999", "9" * 5000, "-1", "0", "0x10", "1,5", "fear", "../../up", "/dev/zero", "~", "."),
    *("a\nb", "\r\n# Heading", "\x1b]0;title\x07", "\x00", "\ud800", "\u202e", "𝔘" * 40, "x" * 100_000, "${HOME}"),
    *("<script>alert(1)</script>", r"$\frac$", "{", "[[[", '"', "%s%n", "{0.__class__}", "hf-hub:a/b", "http://a.b/c"),
    *("!!python/object/apply:os.mkdir [PAYLOAD-RAN]", "&a [*a, *a]", "!!timestamp 2024-13-45", "!!binary x", "? {}"),
)
ODD = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 64, 4097, 10**6, 2**31, 2**63, -(2**63), 10**30, 10**400),
    *(0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"), float("-inf")),
    *([], {}, [[]], [None], [0] * 5000, [1.0, "a"], {"a": None}, {"": {}}, {"0": 1}, {"__class__": "x"}, ["x"] * 9),
)
TAGS = tuple(text for text in TEXTS if text[:1] in "!&?")
HOWS = (
    *("inside",) * 12,
    *("flip", "cut", "repeat", "remove", "zeros", "ones", "number", "text"),
    *("place", "payload"),
)

values = st.one_of(st.sampled_from(TEXTS), st.sampled_from(ODD))
edits = st.lists(
    st.builds(Edit, st.integers(0, 40), st.sampled_from(HOWS), st.integers(0, 2**16), values), min_size=1, max_size=3
)


def apply(edit: Edit, files: Sequence[Path], folder: Path) -> None:
    """Change one of the files; a payload in it makes `folder/PAYLOAD-RAN`."""
    path = files[edit.file % len(files)]
    if not path.is_file() or path.is_symlink():  # replaced by an earlier edit
        return
    if edit.how == "place":
        _place(path, edit.at)
    elif edit.how == "payload":
        _payload(path, edit.at, Payload(folder))
    elif edit.how == "inside":
        try:
            changed = _INSIDE.get(path.suffix.lower(), _bytes)(path.read_bytes(), edit, folder)
        except Exception:  # an earlier edit damaged it
            changed = _bytes(path.read_bytes(), edit, folder)
        path.write_bytes(changed)
    else:
        path.write_bytes(_bytes(path.read_bytes(), edit, folder))


def _place(path: Path, at: int) -> None:
    """Something else by the file's name."""
    elsewhere = path.parent.parent.parent / "elsewhere.bin"
    path.unlink()
    kind = at % 7
    if kind == 0:
        os.mkfifo(path)
    elif kind < 5:
        path.symlink_to(("/dev/zero", path.name, "/proc/self/mem", str(elsewhere))[kind - 1])
    elif kind == 5:
        path.mkdir()


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _bytes(data: bytes, edit: Edit, folder: Path) -> bytes:
    """A change somewhere, in half of all cases within the first 512 bytes, where headers are."""
    size = len(data) if edit.at % 2 else min(len(data), 512)
    start = (edit.at >> 1) * 7919 % max(size, 1)
    few = 1 + edit.at % 64
    match edit.how:
        case "flip":
            return (
                data[:start]
                + bytes(b ^ 1 << edit.at % 8 for b in data[start : start + 1 + few % 4])
                + data[start + 1 + few % 4 :]
            )
        case "cut":
            return data[:start]
        case "repeat":
            return data[:start] + data[start : start + few] * (2 + edit.at % 300) + data[start + few :]
        case "remove":
            return data[:start] + data[start + few :]
        case "zeros":
            return data[:start] + bytes(few) + data[start + few :]
        case "ones":
            return data[:start] + b"\xff" * few + data[start + few :]
        case "number":
            number = struct.pack("<>"[edit.at % 2] + "Q", (2**31 - 1, 2**32 - 1, 2**40, 2**63, 65535, 1)[edit.at % 6])
            width = (8, 4, 2)[edit.at % 3]
            return data[:start] + number[:width] + data[start + width :]
        case _:
            text = str(edit.value)[:2000].encode("utf-8", "surrogatepass")
            return data[:start] + text + data[start + len(text) * (edit.at % 2) :]


# ── what a file holds ────────────────────────────────────────────────────────────────────────────────────────────────


def _nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place within dicts, lists and object arrays, as a container and a key."""
    if isinstance(value, dict):
        keys: Any = value
    elif isinstance(value, list):
        keys = range(min(len(value), 50))
    elif isinstance(value, np.ndarray) and value.dtype == object:
        keys = list(np.ndindex(value.shape))
    elif isinstance(value, np.ndarray | np.void) and value.dtype.names:
        keys = value.dtype.names if value.ndim == 0 else []
    else:
        return
    for key in keys:
        yield value, key
        yield from _nodes(value[key])


def _change(value: Any, edit: Edit, odd: Any) -> Any:
    """The value with one node replaced, taken out, or put in twice; the whole of it replaced where it has none."""
    nodes = list(_nodes(value))
    if not nodes:
        return odd
    container, key = nodes[edit.at % len(nodes)]
    action = edit.at // len(nodes) % 8
    if action == 0 and isinstance(container, dict | list):
        del container[key]
    elif action == 1 and isinstance(container, list):
        container.append(container[key])
    elif action == 1 and isinstance(container, dict):
        container[f"{key}"[:-1] + "~"] = container.pop(key)
    else:
        container[key] = odd
    return value


def _json(data: bytes, edit: Edit, folder: Path) -> bytes:
    return json.dumps(_change(json.loads(data), edit, edit.value)).encode()


def _yaml(data: bytes, edit: Edit, folder: Path) -> bytes:
    raw = isinstance(edit.value, str) and edit.value in TAGS
    text = yaml.safe_dump(_change(yaml.safe_load(data), edit, "PLACEHOLDER" if raw else edit.value))
    return (text.replace("PLACEHOLDER", str(edit.value)) if raw else text).encode("utf-8", "surrogatepass")


def _odd_array(edit: Edit, like: Any, folder: Path) -> Any:
    """An array that a reader may not expect, or one that is nearly as it was."""
    array = np.asarray(like)
    if array.dtype == object or array.dtype.kind not in "fiub":
        array = np.arange(6.0)
    plain = np.atleast_1d(array)
    makers: tuple[Callable[[], Any], ...] = (
        lambda: np.zeros(0, array.dtype),
        lambda: np.zeros((0, *array.shape[1:]), array.dtype),
        lambda: array.dtype.type(0),
        lambda: np.full(array.shape, np.nan),
        lambda: np.full(array.shape, -np.inf),
        lambda: np.full(array.shape, 1e300),
        lambda: np.zeros_like(array),
        lambda: -plain,
        lambda: array.astype("complex64"),
        lambda: array.astype(str),
        lambda: array.astype("S"),
        lambda: array > 0,
        lambda: np.zeros(array.shape, "datetime64[s]"),
        lambda: array.astype(np.float16),
        lambda: array.astype(np.uint8),
        lambda: np.asfortranarray(array.T),
        lambda: array[..., None],
        lambda: np.concatenate([plain, plain]),
        lambda: plain[: len(plain) // 2],
        lambda: plain[:1],
        lambda: np.full(array.shape, 2**62),
        lambda: array.astype(">f8"),
        lambda: np.array([None, {}, Payload(folder)], dtype=object),
        lambda: np.array(str(edit.value)[:2000].encode("ascii", "replace").decode()),
    )
    return makers[edit.at // 64 % len(makers)]()


def _safetensors(data: bytes, edit: Edit, folder: Path) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if edit.at % 3 == 0:
        tensors = load(data)
        name = sorted(tensors)[edit.at % len(tensors)]
        odd = np.asarray(_odd_array(edit, tensors[name], folder))
        if odd.dtype.kind in "fiub":
            return save({**tensors, name: np.ascontiguousarray(odd)}, header.get("__metadata__"))
    notes = header.get("__metadata__", {})
    if notes and edit.at % 3 == 1:  # values there are texts, some of them JSON
        name = sorted(notes)[edit.at % len(notes)]
        odd = edit.value if isinstance(edit.value, str) else json.dumps(edit.value)
        inner = json.loads(notes[name]) if notes[name][:1] in "[{" else None
        notes[name] = json.dumps(_change(inner, edit, edit.value)) if inner else odd
    else:
        header = _change(header, edit, edit.value)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _npz(data: bytes, edit: Edit, folder: Path) -> bytes:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = dict(file)
    name = sorted(arrays)[edit.at % len(arrays)]
    buffer = io.BytesIO()
    action = edit.at // len(arrays) % 8
    if action == 0:
        arrays.pop(name)
    elif action == 1:
        arrays[f"{name}2"] = arrays.pop(name)
    elif action > 2:
        arrays[name] = _odd_array(edit, arrays[name], folder)
    np.savez(buffer, **arrays)
    return buffer.getvalue() if action != 2 else _with_huge_entry(buffer.getvalue(), f"{name}.npy", edit.at)


def _with_huge_entry(data: bytes, name: str, at: int) -> bytes:
    """An NPZ one of whose entries declares more than it holds."""
    shape = ((10**12, 900), (2**40,), (2**31, 1), (30_000, 100, 100))[at // 64 % 4]
    header = str({"descr": "<f8", "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            if entry != name:
                new.writestr(entry, old.read(entry))
        with new.open(name, "w") as entry_file:
            entry_file.write(b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header)
            entry_file.write(bytes(1 << 20))
    return sink.getvalue()


def _table(separator: str) -> Callable[[bytes, Edit, Path], bytes]:
    def change(data: bytes, edit: Edit, folder: Path) -> bytes:
        rows = list(csv.reader(io.StringIO(data.decode()), delimiter=separator))
        row = rows[edit.at % len(rows)] if edit.at % 5 else rows[0]
        cell, action = edit.at // 5 % max(len(row), 1), edit.at // 64 % 8
        if action == 0:
            rows.remove(row)
        elif action == 1:
            rows.append(row)
        elif action == 2:
            row.append(str(edit.value))
        elif action == 3:
            del row[cell:]
        elif row:
            row[cell] = row[0] if action == 4 else str(edit.value)
        sink = io.StringIO()
        csv.writer(sink, delimiter=separator, lineterminator="\n").writerows(rows)
        return sink.getvalue().encode("utf-8", "surrogatepass")

    return change


def _parquet(data: bytes, edit: Edit, folder: Path) -> bytes:
    table = pq.read_table(io.BytesIO(data))
    place = edit.at % table.num_columns
    name, n = table.column_names[place], table.num_rows
    text = str(edit.value)[:2000].encode("utf-8", "replace").decode()
    columns: tuple[Callable[[], Any], ...] = (
        lambda: pa.nulls(n),
        lambda: pa.array([text] * n),
        lambda: pa.array([{"bytes": None, "path": text}] * n),
        lambda: pa.array([{"bytes": None, "path": "/dev/zero"}] * n),
        lambda: pa.array([{"bytes": b"", "path": None}] * n),
        lambda: pa.array([{"path": 1}] * n),
        lambda: pa.array([float("nan")] * n),
        lambda: pa.array([2**62] * n),
        lambda: pa.array([-1] * n),
        lambda: pa.array([True] * n),
        lambda: pa.array([text.encode()] * n),
        lambda: pa.array([[1, 2]] * n),
        lambda: pa.array([[[0.5]]] * n),
        lambda: pa.array([[]] * n, pa.list_(pa.list_(pa.uint8()))),
        lambda: pa.array([text] * n).dictionary_encode(),
        lambda: pa.array(range(n), pa.timestamp("us")),
        lambda: pa.array([None, *table[name].to_pylist()[1:]], table[name].type),
    )
    made = edit.at // 8 % (len(columns) + 3)
    if made < len(columns):
        table = table.set_column(place, name, columns[made]())
    elif made == len(columns):
        table = table.remove_column(place)
    elif made == len(columns) + 1:
        table = table.append_column(name, table[name])
    else:
        table = table.rename_columns([text if i == place else c for i, c in enumerate(table.column_names)])
    table = table.replace_schema_metadata({"huggingface": text}) if edit.at % 11 == 0 else table
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _mat(data: bytes, edit: Edit, folder: Path) -> bytes:
    content = loadmat(io.BytesIO(data), simplify_cells=True)
    content = {name: value for name, value in content.items() if not name.startswith("__")}
    nodes = list(_nodes(content))
    container, key = nodes[edit.at % len(nodes)]
    odd = _odd_array(edit, container[key], folder) if edit.at % 2 else edit.value
    odd = odd if not isinstance(odd, np.ndarray) or odd.dtype != object else "x"
    odd = 0.0 if odd is None or (isinstance(odd, int) and abs(odd) >= 2**63) else odd
    sink = io.BytesIO()
    savemat(sink, _change(content, edit, odd), do_compression=bool(edit.at % 4 == 0))
    return sink.getvalue()


def _pickle(data: bytes, edit: Edit, folder: Path) -> bytes:
    content = {"": pickle.loads(data)}
    nodes = list(_nodes(content))
    container, key = nodes[edit.at % len(nodes)]
    odds = (_odd_array(edit, container[key], folder), edit.value, Payload(folder))
    return pickle.dumps(_change(content, edit, odds[edit.at % 3]).get("", None), protocol=2)


def _torch(data: bytes, edit: Edit, folder: Path) -> bytes:
    content = torch.load(io.BytesIO(data), weights_only=True)
    nodes = list(_nodes(content))
    container, key = nodes[edit.at % len(nodes)]
    odd: Any = edit.value
    if isinstance(container[key], torch.Tensor):
        array = np.asarray(_odd_array(edit, container[key].numpy(), folder))
        odd = torch.from_numpy(array.copy()) if array.dtype.kind in "fiub" and array.dtype.isnative else odd
    if edit.at % 13 == 0:
        odd = (Payload(folder), torch.zeros(2).to_sparse(), torch.zeros(1).expand(10**9), {1: 2})[edit.at % 4]
    sink = io.BytesIO()
    torch.save(_change(content, edit, odd), sink)
    return sink.getvalue()


def _xml(data: bytes, edit: Edit, folder: Path) -> bytes:
    """An attribute's value, or a text, replaced; or an entity that grows."""
    text = data.decode()
    if edit.at % 7 == 0:
        head = '<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx">' + "".join(
            f'<!ENTITY {chr(97 + i)} "{f"&{chr(96 + i) if i else chr(120)};" * 10}">' for i in range(9)
        )
        return re.sub(r'"[^"]*"', '"&i;"', text.replace("?>", f"?>{head}]>", 1), count=0).encode()
    found = list(re.finditer(r'(?<=")[^"<>]*(?=")|(?<=>)[^<>]+(?=<)', text))
    match = found[edit.at % len(found)]
    return (text[: match.start()] + str(edit.value) + text[match.end() :]).encode("utf-8", "surrogatepass")


def _image(data: bytes, edit: Edit, folder: Path) -> bytes:
    """A PNG whose header says something else, or an image of an unusual mode, size or format."""
    if edit.at % 2:
        sizes = (0, 1, 5, 9000, 60_000, 1_500_000, 2**31 - 1, 2**32 - 1)
        fields = list(struct.unpack(">IIBBBBB", data[16:29]))
        fields[edit.at // 2 % 7] = sizes[edit.at // 16 % 8] if edit.at // 2 % 7 < 2 else edit.at // 16 % 256
        chunk = b"IHDR" + struct.pack(">IIBBBBB", *fields)
        return data[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    image = Image.open(io.BytesIO(data))
    forms = [
        ("1", "PNG"),
        ("LA", "PNG"),
        ("P", "GIF"),
        ("RGBA", "WEBP"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("LAB", "TIFF"),
    ]
    forms += [
        ("I;16", "PNG"),
        ("F", "TIFF"),
        ("I", "TIFF"),
        ("YCbCr", "TIFF"),
        ("RGB", "BMP"),
        ("L", "PPM"),
        ("PA", "PNG"),
    ]
    forms += [("RGB", "JPEG2000"), ("L", "EPS"), ("RGB", "ICO"), ("RGB", "PDF"), ("RGBA", "PNG"), ("RGB", "JPEG")]
    mode, form = forms[edit.at // 2 % len(forms)]
    size = ((24, 24), (1, 1), (1, 3000), (3000, 1), (2000, 2000), (1, 400_000), (65_000, 300))[edit.at // 64 % 7]
    image = image.convert("RGB").resize(size, Image.Resampling.NEAREST)
    if mode == "LAB":
        image = Image.new("LAB", size)
    return encoded(
        image.convert("L").convert(mode)
        if mode in ("I;16", "F", "I", "PA")
        else image
        if mode == "LAB"
        else image.convert(mode),
        form,
    )


_INSIDE: dict[str, Callable[[bytes, Edit, Path], bytes]] = {
    ".json": _json,
    ".yaml": _yaml,
    ".safetensors": _safetensors,
    ".npz": _npz,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".parquet": _parquet,
    ".mat": _mat,
    ".dat": _pickle,
    ".pkl": _pickle,
    ".pt": _torch,
    ".ckpt": _torch,
    ".xml": _xml,
    ".png": _image,
}


# ── payloads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _payload(path: Path, at: int, payload: Payload) -> None:
    """The file replaced by one that runs the payload where it is unpickled freely."""
    sink = io.BytesIO()
    kind = at % 6
    if kind < 2:
        sink.write(pickle.dumps(payload, protocol=(2, 4)[kind]))
    elif kind == 2:
        np.save(sink, np.array([payload], dtype=object))
    elif kind == 3:
        np.savez(sink, **dict.fromkeys(_names(path), np.array([payload], dtype=object)))
    elif kind == 4:
        torch.save(dict.fromkeys(_names(path), payload), sink)
    else:
        torch.save(dict.fromkeys(_names(path), payload), sink, _use_new_zipfile_serialization=False)
    path.write_bytes(sink.getvalue())
    if path.name == "model.safetensors" and at % 2:
        path.rename(path.with_name("pytorch_model.bin"))


def _names(path: Path) -> list[str]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return list(file.files)
    return ["state_dict", "prototypes", "data", "labels"]
