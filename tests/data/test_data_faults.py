"""Data: damaged images, tables and folders are refused, and unusual ones read right."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import signal
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faults import FOLDER, RAMP, SIDE, TRAIN, encoded, rows, write
from PIL import Image, PngImagePlugin

from ngd_timm.core.errors import InputError
from ngd_timm.data import FaceBatches, load_fer

EVALUATE = "evaluate student --data schematic=set"
PNG = encoded(RAMP)
NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE)).astype(np.float64)
THREE = {f"{label}/z.png": encoded(RAMP[::-1]) for label in ("neutral", "happiness", "sadness")}


@rows(
    "files, data, message",
    {
        "a root that is not there": ({}, "schematic=set", "the path doesn't exist"),
        "a root that links to itself": ({"set": Path("set")}, "schematic=set", "the path doesn't exist"),
        "an empty folder": ({"set": FOLDER}, "schematic=set", "neither parquet, NPZ or CSV"),
        "a root of notes": ({"set": "notes"}, "schematic=set", "no file that holds a data set"),
        "a folder as a table": ({"set/train.parquet": FOLDER}, "schematic=set", "train.parquet"),
        "an unknown class": ({"set/hapiness/a.png": PNG}, "schematic=set", "did you mean 'happiness'"),
        "a split that is missing": ({"set/fear/a.png": PNG}, "schematic=set:test", "no split 'test'"),
        "an unknown data set": ({}, "ferpluss=set", "did you mean 'ferplus'"),
        "a data set without a name": ({}, "set", "is not name=root"),
        "a data set of 300 letters": ({}, "schematic=" + "x" * 300, "File name too long"),
    },
)
def test_a_data_set_that_cannot_be_read(
    files: dict[str, Any], data: str, message: str, refused: Any, tmp_path: Path
) -> None:
    write(tmp_path, files)
    refused(f"evaluate student --data {data}", message)


@rows(
    "path, message",
    {
        "an image that may not be read": ("set/neutral/a.png", "Permission denied"),
        "a table that may not be read": ("set/train.parquet", "Permission denied"),
        "a folder that may not be read": ("set/neutral", "Permission denied"),
    },
)
def test_no_permission_to_read(path: str, message: str, refused: Any, tmp_path: Path) -> None:
    write(tmp_path / "set", {"train.parquet": table()} if path.endswith("parquet") else {**THREE, "neutral/a.png": PNG})
    (tmp_path / path).chmod(0)
    refused(EVALUATE, message)


@rows(
    "name, data, message",
    {
        "a file name that is not UTF-8": (b"set/neutral/\xff.png", "schematic=set", "not UTF-8"),
        "a root that is not UTF-8": (b"\xff/neutral/a.png", "schematic=\udcff", "not UTF-8"),
    },
)
def test_names_that_are_no_text(name: bytes, data: str, message: str, refused: Any, tmp_path: Path) -> None:
    write(tmp_path, {os.fsdecode(name): PNG})
    logging.disable()  # pytest's processes can't pass on a log with bytes that are no text
    try:
        refused(f"evaluate student --data {data}", message)
    finally:
        logging.disable(logging.NOTSET)


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(65536)))


def bmp_header(width: int, height: int) -> bytes:
    sizes = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + sizes


def png_with_comment(size: int) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "a" * size, zip=True)
    return encoded(RAMP, pnginfo=info)


@rows(
    "name, content, message",
    {
        "a PNG cut short": ("a.png", encoded(NOISE)[:300], "can't be decoded"),
        "a JPEG cut short": ("a.jpg", encoded(NOISE, "JPEG")[:450], "can't be decoded (image file is"),
        "an image of zero bytes": ("a.png", b"", "not a PNG, JPEG"),
        "a text as an image": ("a.png", "I am a text. " * 20, "not a PNG, JPEG"),
        "an image that links to itself": ("a.png", Path("a.png"), "is no file (or links to none)"),
        "60 000 x 60 000 px": ("a.png", png_header(60000, 60000), "more than 100 megapixels; raise max_megapixels"),
        "2^31-1 x 2^31-1 px": ("a.png", png_header(2**31 - 1, 2**31 - 1), "can't be decoded"),
        "54 bytes that declare 9 000 x 9 000 px": ("a.bmp", bmp_header(9000, 9000), "can't be decoded (image file is"),
        "a comment that unpacks to megabytes": ("a.png", png_with_comment(2 << 20), "(Decompressed"),
    },
)
def test_a_damaged_image(name: str, content: Any, message: str, refused: Any, tmp_path: Path) -> None:
    write(tmp_path / "set", {**THREE, f"neutral/{name}": content})
    refused(EVALUATE, message)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(np.rot90(RAMP), "JPEG", quality=100, exif=exif)


BROKEN_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\xff\xff"
GREY = Image.fromarray(RAMP.round().astype(np.uint8))
BITS = np.where(RAMP > 127, 255.0, 0.0)
HALF = np.where(np.arange(SIDE)[:, None] < SIDE // 2, 200.0, 255.0) * np.ones((1, SIDE))


def half_transparent() -> bytes:
    image = Image.new("P", (SIDE, SIDE), 0)
    image.putpalette([0, 0, 0, 200, 200, 200])
    image.paste(1, (0, 0, SIDE, SIDE // 2))
    return encoded(image, transparency=0)


@rows(
    "content, expected, tolerance",
    {
        "16 bits become 8": (encoded(Image.fromarray((RAMP * 257).astype(np.uint16))), RAMP, 1.5),
        "CMYK is converted to grey": (encoded(GREY.convert("CMYK"), "JPEG", quality=100), RAMP, 6),
        "a GIF is its first frame": (encoded(GREY, "GIF", save_all=True, append_images=[GREY.rotate(180)]), RAMP, 3),
        "an image that EXIF turns is turned upright": (turned(), RAMP, 6),
        "a broken EXIF block does not hide the image": (encoded(RAMP, "JPEG", quality=100, exif=BROKEN_EXIF), RAMP, 6),
        "nor does one beside its dots per inch": (
            encoded(RAMP, "JPEG", quality=100, dpi=(72, 72), exif=b"Exif\0\0" + bytes(8)),
            RAMP,
            6,
        ),
        "a transparent palette is laid on white": (half_transparent(), HALF, 1.5),
        "1 bit is 0 and 255": (encoded(Image.fromarray(BITS.astype(np.uint8)).convert("1")), BITS, 0.5),
        "floats are rounded to 8 bits": (encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), RAMP, 1),
    },
)
def test_an_unusual_image_is_read(content: bytes, expected: np.ndarray, tolerance: float, tmp_path: Path) -> None:
    form = Image.open(io.BytesIO(content)).format
    write(tmp_path, {f"neutral/a.{str(form).lower()}": content})
    (batch,) = FaceBatches(load_fer("schematic", tmp_path), image_size=SIDE, mean=0.0, std=1.0, batch_size=8)
    assert np.abs(batch.images[0, 0].numpy() * 255 - expected).max() <= tolerance


def image_rows(**changed: Any) -> list[dict[str, Any]]:
    rows = [{"bytes": encoded(np.roll(RAMP, i)), "path": f"{i}.png"} for i in range(4)]
    rows[2] |= changed
    return rows


def table(**columns: Any) -> bytes:
    """A parquet of four images, with other columns than the usual; None leaves one out."""
    whole = {"image": image_rows(), "label": ["neutral", "happiness", "sadness", "fear"]} | columns
    sink = io.BytesIO()
    pq.write_table(pa.table({k: v for k, v in whole.items() if v is not None}), sink, write_page_checksum=True)
    return sink.getvalue()


def table_with_a_changed_byte() -> bytes:
    data = bytearray(table())
    data[data.index(b"IDAT") + 40] ^= 0xFF
    return bytes(data)


@rows(
    "content, message",
    {
        "a parquet cut short": (table()[:2000], "is not a whole parquet file"),
        "a parquet of zero bytes": (b"", "is not a whole parquet file"),
        "a parquet with a byte changed": (table_with_a_changed_byte(), "is not a whole parquet file"),
        "a parquet without images": (table(image=None), "has no column 'image'"),
        "images that are numbers": (table(image=[1, 2, 3, 4]), "must hold bytes or {bytes, path}"),
        "an empty image": (table(image=image_rows(bytes=None, path=None)), "neither bytes nor a path"),
        "a path to no image": (
            table(image=image_rows(bytes=None, path="gone.png")),
            "gone.png can't be read (No such file or directory)",
        ),
        "an image that is a device": (
            table(image=[{"bytes": None, "path": "/dev/zero"}] * 4),
            "a row's image is '/dev/zero', outside this folder",
        ),
        "an image of the folder above": (
            table(image=[{"bytes": None, "path": "../secret.png"}] * 4),
            "a row's image is '../secret.png', outside this folder",
        ),
        "an image whose path has a NUL byte": (
            table(image=[{"bytes": None, "path": "a\0.png"}] * 4),
            "null byte); check the image paths",
        ),
        "an empty label": (table(label=["fear", None, "anger", "fear"]), "row 1: column 'label' is empty"),
        "a label that is NaN": (table(label=[0.0, float("nan"), 1.0, 2.0]), "must hold class names"),
        "labels of 19 digits": (table(label=["9" * 19] * 4), "unknown schematic class name '9999999999999999999'"),
        "labels that are bare numbers": (table(label=[0, 1, 2, 3]), "holds plain integers"),
        "labels that are numbers as text": (table(label=["0", "1", "2", "3"]), "names=angry/disgusted/…"),
        "several labels an image": (table(label=[[0], [0, 1], [1], [2]]), "column 'label' has 2 labels; give one"),
        "pixels of several sizes": (table(image=[[[0]], [[1]], [[2, 3]], [[4]]]), "pixels of images of one size"),
        "pixels above 255": (table(image=[[[300]]] * 4), "whole numbers from 0 to 255"),
        "a table without a label": (table(label=None), "it has: image; name the one to read behind the root"),
        "valence NaN": (table(valence=[0.0, 0.1, float("nan"), 0.2], arousal=[0.0] * 4), "in [-1, 1], got nan"),
        "valence from 1 to 9": (table(valence=[0.0, 7.0, 0.0, 0.0], arousal=[0.0] * 4), "rating_to_va"),
        "valence in words": (table(valence=["high"] * 4, arousal=["low"] * 4), "valence must be numbers"),
        "subjects that are lists": (table(subject=[[1]] * 4), "column 'subject'"),
        "file names that are lists": (table(file_name=[["a"]] * 4), "column 'file_name'"),
        "marks of duplicates that are words": (table(dup_of_train=["no"] * 4), "column 'dup_of_train'"),
    },
)
def test_a_damaged_parquet(content: bytes, message: str, refused: Any, tmp_path: Path) -> None:
    write(tmp_path, {"set/train.parquet": content})
    refused(EVALUATE, message)


@rows(
    "options, message",
    {
        "a column that is not there": ("label=emotoin", "has no column 'emotoin'; it has: image, label"),
        "an image column that is not there": ("image=face", "has no column 'face'; it has: image, label"),
        "an option that does not exist": ("lable=emotion", "did you mean 'label'"),
        "a single class name": ("names=angry", "names must be class names from number 0 on"),
        "unknown classes to keep": ("unknown=keep", "unknown must be drop, got 'keep'"),
        "a config of a local file": ("config=small", "is read as parquet, which takes no config"),
        "frames of what has no sequences": ("apex_frames=3", "is read as parquet, which takes no apex_frames"),
        "a revision of a local file": ("revision=main", "is read as parquet, which takes no revision"),
    },
)
def test_options_behind_a_table(options: str, message: str, refused: Any, tmp_path: Path) -> None:
    write(tmp_path, {"set/train.parquet": table()})
    refused(f"{EVALUATE},{options}", message)


def test_an_image_that_is_a_pipe_is_not_waited_for(refused: Any, tmp_path: Path) -> None:
    write(tmp_path, {"set/train.parquet": table(image=[{"bytes": None, "path": "pipe.png"}] * 4)})
    os.mkfifo(tmp_path / "set" / "pipe.png")
    refused(EVALUATE, "pipe.png can't be read (not a regular file)")


ROWS = "path,label\na.png,happiness\nb.png,fear\nc.png,neutral\n"


@rows(
    "content, message",
    {
        "a CSV with NUL bytes": (ROWS.replace("a.png", "a.png\0"), "aren't there"),
        "a label of 200 KB": (ROWS.replace("fear", "f" * 200_000), "unknown schematic class name 'fff"),
        "a column name of 200 KB": ("x" * 200_000 + "," + ROWS, "can't be read as a UTF-8 CSV"),
        "a CSV with semicolons": (ROWS.replace(",", ";"), "path;label"),
        "a CSV in UTF-16": (ROWS.encode("utf-16"), "can't be read as a UTF-8 CSV"),
        "a CSV in Latin-1": (ROWS.replace("a", "ü").encode("latin-1"), "can't be read as a UTF-8 CSV"),
        "a CSV row of three fields under two names": (ROWS + "a.png,fear,x\n", "is damaged or not a CSV"),
        "a CSV column twice": ("path,label,label\na.png,fear,fear\n", "stands twice in the header"),
        "a CSV without rows": ("path,label\n", "has no rows"),
        "a CSV with a file that is missing": (ROWS + "d.png,fear\n", "aren't there"),
        "a CSV with a folder among its files": (ROWS + ".,fear\n", "aren't there"),
        "two labels a file": (ROWS + "a.png,fear\n", "lists a.png twice, with label 'happiness' in line 2"),
        "a CSV with valence nan": ("path,label,valence,arousal\na.png,fear,nan,0\n", "in [-1, 1], got nan"),
    },
)
def test_a_damaged_csv(content: str | bytes, message: str, refused: Any, tmp_path: Path) -> None:
    write(tmp_path / "set", {"train.csv": content, "a.png": PNG, "b.png": encoded(RAMP.T), "c.png": encoded(NOISE)})
    refused(f"{EVALUATE}/train.csv", message)


def npz(labels: Any) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, X=np.zeros((3, 8, 8), np.uint8), y=labels)
    return sink.getvalue()


def npz_that_declares_petabytes() -> bytes:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 1000000, 3), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("X.npy", b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + bytes(64))
    return sink.getvalue()


@rows(
    "content, message",
    {
        "an NPZ of objects": (npz(np.array(["fear", None, "anger"])), "without objects"),
        "an NPZ cut short": (npz(np.array(["fear"] * 3))[:300], "can't be read as an NPZ"),
        "an NPZ that declares 3 PB": (
            npz_that_declares_petabytes(),
            "X.npy declares (1000000000, 1000000, 3) of uint8",
        ),
        "an NPZ of 3 images and 2 labels": (npz(np.array(["fear", "anger"])), "but there are 3"),
    },
)
def test_a_damaged_npz(content: bytes, message: str, refused: Any, tmp_path: Path) -> None:
    write(tmp_path, {"set/train.npz": content})
    refused(EVALUATE, message)


def test_an_npz_that_unpacks_to_more_than_the_limit(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ngd_timm.core.arrays.LARGEST_UNPACKED", 1 << 19)
    write(tmp_path, {"set/train.npz": b""})
    np.savez_compressed(tmp_path / "set" / "train.npz", X=np.zeros((100, 100, 100), np.uint8))
    refused(EVALUATE, "more than 0.000488, ngd_timm.core.arrays.LARGEST_UNPACKED, is read only where it isn't compre")


def test_an_npz_that_is_a_pipe_is_not_waited_for(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    os.mkfifo(tmp_path / "set" / "train.npz")
    refused(EVALUATE, "train.npz can't be read as an NPZ of plain arrays (not a regular file)")


@rows(
    "text, message",
    {
        "none for numbered labels": (None, "plain integers, and class numbers mean different things in different"),
        "one that is not there": ("", "no class map at"),
        "one that is no JSON": ("{", "is not JSON"),
        "one that maps nothing": ('{"0": null}', "must map numbers to class names"),
        "one that names an unknown class": ('["neutral", "fera"]', "'fera'; did you mean 'fear'"),
        "one that names a class twice": ('{"0": "fear", "1": "scared"}', "has the class fear twice"),
        "one that has a number twice": ('{"0": "fear", "0": "anger"}', "has the number 0 twice"),
        "one that gives two classes a number": ('{"fear": 1, "anger": 1}', "has the number 1 twice"),
        "one with a number of 5000 digits": (json.dumps({"9" * 5000: "fear"}), "must map numbers to class names"),
        "one that lacks a number that occurs": (
            '["neutral", "fear"]',
            "2 is not in the class map, which has 0 neutral",
        ),
    },
)
def test_a_class_map(text: str | None, message: str, refused: Any, tmp_path: Path) -> None:
    write(tmp_path, {"set/train.npz": npz(np.arange(3)), "set/a.png": PNG, "set/b.png": PNG, "set/c.png": PNG})
    write(tmp_path, {"set/train.csv": "Path,Y\na.png,0\nb.png,1\nc.png,2\n"} | ({"set/map.json": text} if text else {}))
    for file in ("train.npz", "train.csv"):
        refused(f"{EVALUATE}/{file}" + ("" if text is None else ",class_map=map.json"), message)


@rows(
    "files, data, message",
    {
        "images without a name": ({"set/train.npz": npz(np.array(["fear", "sad", "fear"]))}, "set", "no file name"),
        "images of one name": (
            {"set/faces.csv": "path,label,split\na.png,fear,train\na.png,fear,test\n", "set/a.png": PNG},
            "set",
            "the name of another image, a.png",
        ),
        "a share held out": ({"set/fear/a.png": PNG}, "set,hold_out=0.1", "leave hold_out out"),
        "a split that is missing": ({"set/fear/a.png": PNG}, "set:valid", "no split 'valid'"),
    },
)
def test_no_list_can_be_drawn(files: dict[str, Any], data: str, message: str, refused: Any, tmp_path: Path) -> None:
    write(tmp_path, files)
    refused(f"data subset schematic={data} --per-class 1 --out list.txt", message)
    refused(f"data subset schematic={data} --per-class 1 --out list.csv", "give it another suffix")


CSV = {"a.png": PNG, "b.png": encoded(RAMP.T), "c.png": encoded(NOISE)}


@rows(
    "files, printed",
    {
        "classes that the set lacks count 0 in 8-way": (THREE, "n = 3"),
        "one class alone scores 100 present-only": ({"fear/a.png": PNG}, "present-only acc 100.00"),
        "a class folder without images is passed over": ({**THREE, "fear": FOLDER}, "n = 3"),
        "a folder among the images is passed over": ({**THREE, "neutral/c.png": FOLDER}, "n = 3"),
        "images may differ in size": ({**THREE, "neutral/b.png": encoded(GREY.resize((40, 18)))}, "n = 4"),
        "an image of one pixel is enlarged": ({**THREE, "neutral/b.png": encoded(RAMP[:1, :1])}, "n = 4"),
        "names may be of any script": ({**THREE, "neutral/die süße 顔\n.png": PNG}, "n = 4"),
        "a row without valence takes its class's": (
            {"train.parquet": table(valence=[0.0, None, 0.5, 0.1], arousal=[0.0, None, 0.5, 0.1])},
            "n = 4",
        ),
        "a byte-order mark is left out": ({**CSV, "train.csv": b"\xef\xbb\xbf" + ROWS.encode()}, "n = 3"),
        "a file listed twice is kept once": ({**CSV, "train.csv": ROWS + "./a.png,happiness\n"}, "n = 3"),
    },
)
def test_an_unusual_data_set_is_read(
    files: Mapping[str, Any], printed: str, student: Path, tmp_path: Path, ngd: Callable[..., Any]
) -> None:
    root = tmp_path / "größer 😀=1:2"
    write(root, files)
    outcome = ngd("evaluate", str(student), "--data", f"schematic={root}:all")
    assert outcome.returncode == 0, outcome.stderr
    assert printed in outcome.stdout


@rows(
    "files, keys, message",
    {
        "fewer images than a batch": ({}, "data.limit=4", "are fewer than one batch of 16"),
        "a split of no rows": (
            {
                "set/train.parquet": table(),
                "set/valid.parquet": table(image=pa.array([], pa.binary()), label=pa.array([], pa.string())),
            },
            "data.root=set",
            "left of 0",
        ),
    },
)
def test_too_little_to_train_with(files: dict[str, Any], keys: str, message: str, refused: Any, tmp_path: Path) -> None:
    write(tmp_path, files)
    refused(f"{TRAIN} {keys}", message)


def test_a_loader_process_that_is_killed_is_reported(tmp_path: Path) -> None:
    write(tmp_path, {f"neutral/b{i}.png": encoded(np.roll(RAMP, i)) for i in range(40)})
    dataset = load_fer("schematic", tmp_path)
    batches = iter(FaceBatches(dataset, image_size=16, batch_size=2, in_memory=False, workers=1))
    next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
    with pytest.raises(InputError, match=r"lower data\.workers"):
        list(batches)
