# ruff: noqa: E501 (a row of the table is a line)
"""What can go wrong, in one table, and that each of it ends as the table says.

`python tests/test_faults.py > docs/faults.md` prints the table for people. A row is a fault, a maker that puts it on
disk, what is then done, and how that ends: refused (one line, exit code 2, nothing written, nothing lost) or handled,
and then the result is right.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).resolve().parent
REFUSED, HANDLED = "one line, exit code 2", "handled"


@dataclass
class World:
    """What a row works with: an empty folder `at`, and things that are whole, to be copied and never changed."""

    at: Path
    faces: Path
    student: Path
    run: Callable[[], Path]
    cramped: Callable[[], dict[str, Any]]
    ngd: Callable[..., Any]


@dataclass(frozen=True)
class Fault:
    group: str
    kind: str
    given: str
    make: Callable[[World], object]
    do: tuple[str, ...] | Callable[[World], object]
    says: str
    ends: str = REFUSED
    check: Callable[[World, Any], None] | None = None
    unchanged: bool = True

    @property
    def id(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", f"{self.group} {self.kind}".lower()).strip("-")


@dataclass(frozen=True)
class Elsewhere:
    """A fault that another file tries."""

    group: str
    kind: str
    given: str
    says: str
    ends: str
    test: str


def nothing(_: World) -> None:
    pass


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────

SIDE = 24
RAMP = np.linspace(0, 255, SIDE * SIDE).reshape(SIDE, SIDE)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def grey(array: np.ndarray = RAMP) -> Image.Image:
    return Image.fromarray(array.round().astype(np.uint8))


def picture(data: bytes | Callable[[], bytes], name: str = "a.png", label: str = "neutral") -> Callable[[World], Path]:
    """A set of class folders with three whole pictures and this one, the first of them."""

    def make(world: World) -> Path:
        for number, folder in enumerate(("neutral", "happiness", "sadness")):
            path = world.at / "set" / folder / f"z{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(grey(RAMP[::-1])))
        path = world.at / "set" / label / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data() if callable(data) else data)
        return path

    return make


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 65536)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def png_with_text(size: int) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("note", "a" * size, zip=True)
    return encoded(grey(), pnginfo=info)


def bmp_header(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 0, 0, 0, 0, 0, 0)
    )


def animated() -> bytes:
    return encoded(grey(), "GIF", save_all=True, append_images=[grey(RAMP[::-1])], duration=50)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(grey(np.rot90(RAMP)), "JPEG", quality=100, exif=exif)


def broken_exif() -> bytes:
    return encoded(grey(), "JPEG", quality=100, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\xff\xff")


def palette_with_transparency() -> bytes:
    image = Image.new("P", (SIDE, SIDE), 0)
    image.putpalette([0, 0, 0, 200, 200, 200])
    image.paste(1, (0, 0, SIDE, SIDE // 2))
    return encoded(image, "PNG", transparency=0)


HALF = np.where(np.arange(SIDE)[:, None] < SIDE // 2, 200.0, 255.0) * np.ones((1, SIDE))
NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE)).astype(np.float64)
BITS = np.where(RAMP > 127, 255.0, 0.0)


def looks_like(expected: np.ndarray, within: float, form: str = "first") -> Callable[[World, Any], None]:
    """The first picture of the set, as the batches give it, is this grey one."""

    def check(world: World, _: Any) -> None:
        from ngd_timm.data import FaceBatches, load_fer

        dataset = load_fer("schematic", world.at / "set")
        (batch,) = FaceBatches(dataset, image_size=SIDE, mean=0.0, std=1.0, batch_size=8)
        names = [Path(name).name for name in dataset["file_name"]]
        first = next(i for i, name in enumerate(names) if not name.startswith("z"))
        assert np.abs(batch.images[first, 0].numpy() * 255 - expected).max() <= within

    return check


def says(*parts: str) -> Callable[[World, Any], None]:
    def check(_: World, done: Any) -> None:
        for part in parts:
            assert part in done.stdout

    return check


def empty_picture_folder(world: World) -> None:
    picture(encoded(grey()))(world)
    (world.at / "set" / "fear").mkdir()


def link_loop(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    other = path.with_name("other" + path.suffix)
    other.symlink_to(path)
    path.symlink_to(other)


def linked_picture(world: World) -> None:
    picture(encoded(grey()))(world)
    link_loop(world.at / "set" / "neutral" / "b.png")


def without_mode(path: Callable[[World], Path]) -> Callable[[World], None]:
    def make(world: World) -> None:
        path(world).chmod(0)

    return make


def folder_as_picture(world: World) -> None:
    picture(encoded(grey()))(world)
    (world.at / "set" / "neutral" / "c.png").mkdir()


def odd_path(world: World) -> None:
    picture(encoded(grey()), "die süße 顔\n.png")(world)
    (world.at / "set").rename(world.at / "mein Satz, größer 😀=1:2")


def bytes_name(world: World) -> None:
    picture(encoded(grey()))(world)
    os.rename(world.at / "set" / "neutral" / "a.png", os.fsencode(world.at / "set" / "neutral") + b"/\xff.png")


def bytes_root(world: World) -> None:
    picture(encoded(grey()))(world)
    os.rename(world.at / "set", os.fsencode(world.at) + b"/\xff")


# ── tables of pictures ───────────────────────────────────────────────────────────────────────────────────────────────


def table(**columns: Any) -> Callable[[World], Path]:
    """train.parquet of four pictures, with these columns instead of the usual; None leaves one out."""

    def make(world: World) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        whole: dict[str, Any] = {
            "image": [{"bytes": encoded(grey(np.roll(RAMP, i))), "path": f"{i}.png"} for i in range(4)],
            "label": ["neutral", "happiness", "sadness", "fear"],
        }
        path = world.at / "set" / "train.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            pa.table({k: v for k, v in (whole | columns).items() if v is not None}), path, write_page_checksum=True
        )
        return path

    return make


def pictures_of_table(**first: Any) -> list[dict[str, Any]]:
    rows = [{"bytes": encoded(grey(np.roll(RAMP, i))), "path": f"{i}.png"} for i in range(4)]
    rows[2] = {**rows[2], **first}
    return rows


def cut(make: Callable[[World], Path], keep: float) -> Callable[[World], Path]:
    def make_cut(world: World) -> Path:
        path = make(world)
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
        return path

    return make_cut


def flipped_page(world: World) -> None:
    path = table()(world)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 40] ^= 0xFF
    path.write_bytes(bytes(data))


def empty_split(world: World) -> None:
    import pyarrow as pa

    table()(world)
    table(image=pa.array([], pa.binary()), label=pa.array([], pa.string()))(world).rename(
        world.at / "set/valid.parquet"
    )
    table()(world)


def manifest(text: str | bytes, **files: bytes) -> Callable[[World], Path]:
    """train.csv beside a.png, b.png, c.png."""

    def make(world: World) -> Path:
        folder = world.at / "set"
        folder.mkdir(parents=True)
        for i, name in enumerate("abc"):
            (folder / f"{name}.png").write_bytes(encoded(grey(np.roll(RAMP, i))))
        for name, data in files.items():
            (folder / name).write_bytes(data)
        path = folder / "train.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


ROWS = "path,label\na.png,happiness\nb.png,fear\nc.png,neutral\n"


def npz(**arrays: Any) -> Callable[[World], Path]:
    def make(world: World) -> Path:
        path = world.at / "set" / "train.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {"X": np.zeros((3, 8, 8), np.uint8), "y": np.array(["fear", "anger", "neutral"])}
        np.savez(path, **(whole | arrays))
        return path

    return make


def huge_npz(world: World) -> None:
    import zipfile

    path = npz()(world)
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 1000000, 3), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X.npy", b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + bytes(64))


EVALUATE = ("evaluate", "{student}", "--data", "schematic={at}/set")
TRAIN = (
    "train",
    "b0_ce",
    "data.name=schematic",
    "data.root={faces}",
    "student.backbone=test_resnet",
    "student.image_size=32",
    "optim.epochs=1",
    "optim.batch_size=16",
    "data.workers=0",
)
AT_SET = tuple("data.root={at}/set" if a.startswith("data.root") else a for a in TRAIN)

DATA = [
    Fault("data", "a root that is not there", "`data.root` of a folder that nobody made", nothing, EVALUATE, "the path doesn't exist"),
    Fault("data", "a root that links to itself", "a symbolic link in a loop", lambda w: link_loop(w.at / "set"), EVALUATE, "the path doesn't exist"),
    Fault("data", "an empty folder", "a root with nothing in it", lambda w: (w.at / "set").mkdir(), EVALUATE, "holds neither parquet, NPZ or CSV files nor folders"),
    Fault("data", "a file of another kind", "`notes.txt` as the root", lambda w: (w.at / "set").write_text("notes"), EVALUATE, "is no file that holds a data set"),
    Fault("data", "a split that is missing", "`:test` of a set with training pictures alone", table(), (*EVALUATE[:-1], EVALUATE[-1] + ":test"), "no split 'test'"),
    Fault("data", "an empty split", "a valid.parquet of no rows", empty_split, AT_SET, "has no picture left of 0"),
    Fault("data", "an unknown class", "a folder `hapiness`", picture(encoded(grey()), label="hapiness"), EVALUATE, "did you mean 'happiness'"),
    Fault("data", "fewer pictures than a batch", "4 pictures for `optim.batch_size=16`", nothing, (*TRAIN, "data.limit=4"), "4 pictures are fewer than one batch of 16"),
    Fault("data", "an unknown data set", "`--data ferpluss=…`", nothing, (*EVALUATE[:-1], "ferpluss={at}"), "did you mean 'ferplus'"),
    Fault("data", "a spec without a name", "`--data /data/fer`", nothing, (*EVALUATE[:-1], "{at}"), "is not name=root"),
    Fault("data", "classes that a set lacks", "three of the eight classes", picture(encoded(grey())), EVALUATE, "absent classes count 0 in 8-way and are masked in present-only", HANDLED, says("schematic:all (n = 4, labels: majority, without flip)")),
    Fault("data", "a set of one class", "four pictures, all `fear`", table(label=["fear"] * 4), EVALUATE, "scored: present-only is then 100 by definition", HANDLED, says("present-only acc 100.00")),
    Fault("data", "a class folder without pictures", "`fear/`, empty", empty_picture_folder, EVALUATE, "the other classes are read", HANDLED, says("n = 4")),
    Fault("data", "file names that stand twice", "`a.png` in two class folders", lambda w: (picture(encoded(grey()))(w), picture(encoded(grey(RAMP.T)), label="sadness")(w)), EVALUATE, "both are read, each with its folder's label", HANDLED, says("n = 5")),
    Fault("data", "a path of spaces and other scripts", "`mein Satz, größer 😀=1:2/neutral/die süße 顔⏎.png`", odd_path, (*EVALUATE[:-1], "schematic={at}/mein Satz, größer 😀=1:2:all"), "read like any other", HANDLED, says("n = 4")),
    Fault("data", "a file name that is not UTF-8", "`\\xff.png`", bytes_name, EVALUATE, "not UTF-8"),
    Fault("data", "a root that is not UTF-8", "`data.root` with a byte `\\xff`", bytes_root, (*EVALUATE[:-1], "schematic={at}/\udcff"), "not UTF-8"),
    Fault("data", "a picture that may not be read", "mode 0", without_mode(picture(encoded(grey()))), EVALUATE, "Permission denied"),
    Fault("data", "a table that may not be read", "train.parquet of mode 0", without_mode(table()), EVALUATE, "Permission denied"),
    Fault("data", "a folder that may not be read", "`set/neutral` of mode 0", without_mode(lambda w: picture(encoded(grey()))(w).parent), EVALUATE, "Permission denied"),
    Fault("data", "a picture that links to itself", "`b.png` → `other.png` → `b.png`", linked_picture, EVALUATE, "links to nothing"),
    Fault("data", "a folder where a table is expected", "a folder `train.parquet`", lambda w: (w.at / "set/train.parquet").mkdir(parents=True), EVALUATE, "train.parquet"),
    Fault("data", "a folder where a picture is expected", "a folder `c.png` among the pictures", folder_as_picture, EVALUATE, "an empty folder holds no picture, the others are read", HANDLED, says("n = 4")),
    Fault("data", "a picture cut short", "half a PNG", picture(encoded(grey(NOISE))[:300]), EVALUATE, "can't be decoded"),
    Fault("data", "a JPEG cut short", "half a JPEG", picture(encoded(grey(NOISE), "JPEG")[:450], "a.jpg"), EVALUATE, "neutral/a.jpg ('a.jpg'): the picture can't be decoded (image file is truncated"),
    Fault("data", "a picture of zero bytes", "an empty `a.png`", picture(b""), EVALUATE, "not a PNG, JPEG"),
    Fault("data", "a text as a picture", "`a.png` that holds a sentence", picture(b"I am no picture. " * 20), EVALUATE, "not a PNG, JPEG"),
    Fault("data", "a decompression bomb", "1 KB that declare 60 000 x 60 000 px", picture(png_header(60000, 60000)), EVALUATE, "more than 100 megapixels; raise max_megapixels"),
    Fault("data", "a size beyond all bounds", "1 KB that declare 2³¹-1 x 2³¹-1 px", picture(png_header(2**31 - 1, 2**31 - 1)), EVALUATE, "can't be decoded"),
    Fault("data", "a size that the bytes lack", "a BMP of 54 bytes that declares 9 000 x 9 000 px", picture(bmp_header(9000, 9000), "a.bmp"), EVALUATE, "the picture can't be decoded (image file is truncated"),
    Fault("data", "a text bomb in a picture", "a PNG whose comment unpacks to 80 MB", picture(lambda: png_with_text(80_000_000)), EVALUATE, "the picture can't be decoded (Decompressed data too large"),
    Fault("data", "a 16-bit picture", "a grey ramp of 16 bits", picture(encoded(Image.fromarray((RAMP * 257).astype(np.uint16)))), EVALUATE, "scaled to 8 bits", HANDLED, looks_like(RAMP, 1.5)),
    Fault("data", "a CMYK picture", "a grey ramp as CMYK JPEG", picture(encoded(grey().convert("CMYK"), "JPEG", quality=100), "a.jpg"), EVALUATE, "converted to grey", HANDLED, looks_like(RAMP, 6)),
    Fault("data", "an animated GIF", "two frames", picture(animated(), "a.gif"), EVALUATE, "its first frame", HANDLED, looks_like(RAMP, 3)),
    Fault("data", "a picture turned by EXIF", "a JPEG with orientation 6", picture(rotated(), "a.jpg"), EVALUATE, "turned upright", HANDLED, looks_like(RAMP, 6)),
    Fault("data", "a broken EXIF block", "a JPEG whose EXIF points outside itself", picture(broken_exif(), "a.jpg"), EVALUATE, "the pixels are whole and are read", HANDLED, looks_like(RAMP, 6)),
    Fault("data", "a palette with transparency", "a PNG with palette, half of it transparent", picture(palette_with_transparency()), EVALUATE, "laid on white", HANDLED, looks_like(HALF, 1.5)),
    Fault("data", "a 1-bit picture", "black and white", picture(encoded(grey(BITS).convert("1"))), EVALUATE, "0 and 255", HANDLED, looks_like(BITS, 0.5)),
    Fault("data", "a floating-point picture", "a TIFF of 32-bit floats", picture(encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), "a.tif"), EVALUATE, "rounded to 8 bits", HANDLED, looks_like(RAMP, 1.0)),
    Fault("data", "pictures of several sizes", "24 x 24 px beside 40 x 18 px", picture(encoded(grey().resize((40, 18))), "b.png"), EVALUATE, "each is brought to the model's size", HANDLED, says("n = 4")),
    Fault("data", "a picture of one pixel", "1 x 1 px", picture(encoded(grey().resize((1, 1)))), EVALUATE, "enlarged like any other", HANDLED, says("n = 4")),
    Fault("tables", "a parquet cut short", "its first half", cut(table(), 0.5), EVALUATE, "is not a whole parquet file"),
    Fault("tables", "a parquet of zero bytes", "an empty train.parquet", cut(table(), 0), EVALUATE, "is not a whole parquet file"),
    Fault("tables", "a damaged page in a parquet", "a byte changed in the pictures' page", flipped_page, EVALUATE, "is not a whole parquet file"),
    Fault("tables", "a parquet without pictures", "no column `image`", table(image=None), EVALUATE, "has no column 'image'"),
    Fault("tables", "pictures of a wrong type", "`image` of whole numbers", table(image=[1, 2, 3, 4]), EVALUATE, "must hold bytes or {bytes, path}"),
    Fault("tables", "a null picture", "a row without bytes or path", table(image=pictures_of_table(bytes=None, path=None)), EVALUATE, "train.parquet row 2: no picture, neither bytes nor a path"),
    Fault("tables", "a picture beside the table is missing", "a path to nothing", table(image=pictures_of_table(bytes=None, path="gone.png")), EVALUATE, "gone.png can't be read (No such file or directory)"),
    Fault("tables", "a null label", "a row without a label", table(label=["fear", None, "anger", "fear"]), EVALUATE, "row 1: column 'label' is empty"),
    Fault("tables", "labels that are NaN", "`label` of floats, one NaN", table(label=[0.0, float("nan"), 1.0, 2.0]), EVALUATE, "must hold class names"),
    Fault("tables", "labels that are bare numbers", "`label` of whole numbers", table(label=[0, 1, 2, 3]), EVALUATE, "holds plain integers"),
    Fault("tables", "NaN valence", "`valence` NaN in a row", table(valence=[0.0, 0.1, float("nan"), 0.2], arousal=[0.0] * 4), EVALUATE, "valence must lie in [-1, 1], got nan"),
    Fault("tables", "valence on another scale", "`valence` 7 in a row", table(valence=[0.0, 7.0, 0.0, 0.0], arousal=[0.0] * 4), EVALUATE, "rating_to_va"),
    Fault("tables", "valence in words", "`valence` “high”", table(valence=["high"] * 4, arousal=["low"] * 4), EVALUATE, "valence must be numbers"),
    Fault("tables", "valence without a value", "`valence` null in a row", table(valence=[0.0, None, 0.5, 0.1], arousal=[0.0, None, 0.5, 0.1]), EVALUATE, "that picture takes its class's place", HANDLED, says("n = 4")),
    Fault("tables", "subjects of a wrong type", "`subject` of lists", table(subject=[[1]] * 4), EVALUATE, "column 'subject'"),
    Fault("tables", "file names of a wrong type", "`file_name` of lists", table(file_name=[["a"]] * 4), EVALUATE, "column 'file_name'"),
    Fault("tables", "marks of copies of a wrong type", "`dup_of_train` of words", table(dup_of_train=["no"] * 4), EVALUATE, "column 'dup_of_train'"),
    Fault("tables", "a CSV with a byte-order mark", "as Excel writes it", manifest(b"\xef\xbb\xbf" + ROWS.encode()), EVALUATE, "the mark is left out", HANDLED, says("n = 3")),
    Fault("tables", "a CSV with NUL bytes", "`a.png\\0`", manifest(ROWS.replace("a.png", "a.png\0")), EVALUATE, "1 of 3 pictures aren't there"),
    Fault("tables", "a CSV with a huge field", "a label of 20 MB", manifest(ROWS.replace("fear", "f" * 20_000_000)), EVALUATE, "train.csv: unknown schematic class name 'fff"),
    Fault("tables", "a CSV with a huge header", "a column name of 200 KB", manifest("x" * 200_000 + "," + ROWS), (*EVALUATE[:-1], EVALUATE[-1] + "/train.csv"), "can't be read as a UTF-8 CSV"),
    Fault("tables", "a CSV with another delimiter", "semicolons", manifest(ROWS.replace(",", ";")), (*EVALUATE[:-1], EVALUATE[-1] + "/train.csv"), "path;label"),
    Fault("tables", "a CSV in UTF-16", "as some spreadsheets save it", manifest(ROWS.encode("utf-16")), (*EVALUATE[:-1], EVALUATE[-1] + "/train.csv"), "can't be read as a UTF-8 CSV"),
    Fault("tables", "a CSV in Latin-1", "`süß.png` in one byte a letter", manifest(ROWS.replace("a.png", "süß.png").encode("latin-1")), (*EVALUATE[:-1], EVALUATE[-1] + "/train.csv"), "can't be read as a UTF-8 CSV"),
    Fault("tables", "a CSV row of another length", "three fields under two names", manifest(ROWS + "a.png,fear,x\n"), EVALUATE, "is damaged or not a CSV"),
    Fault("tables", "a CSV column that stands twice", "`path,label,label`", manifest("path,label,label\na.png,fear,fear\n"), EVALUATE, "stands twice in the header"),
    Fault("tables", "a CSV of a header alone", "no rows", manifest("path,label\n"), EVALUATE, "has no rows"),
    Fault("tables", "a CSV that names missing pictures", "`d.png`", manifest(ROWS + "d.png,fear\n"), EVALUATE, "1 of 4 pictures aren't there"),
    Fault("tables", "a CSV that names a folder", "`.` as a picture", manifest(ROWS + ".,fear\n"), EVALUATE, "1 of 4 pictures aren't there"),
    Fault("tables", "a CSV that lists a picture twice", "`a.png` again, with the same label", manifest(ROWS + "./a.png,happiness\n"), EVALUATE, "it is kept once, and counted", HANDLED, says("n = 3")),
    Fault("tables", "a CSV that contradicts itself", "`a.png` again, with another label", manifest(ROWS + "a.png,fear\n"), EVALUATE, "train.csv lists a.png twice, with label 'happiness' in line 2 and 'fear' in line 5"),
    Fault("tables", "a CSV with NaN valence", "`valence` nan", manifest("path,label,valence,arousal\na.png,fear,nan,0\n"), EVALUATE, "valence must lie in [-1, 1], got nan"),
    Fault("tables", "an NPZ of objects", "labels as pickled objects", npz(y=np.array(["fear", None, "anger"], dtype=object)), EVALUATE, "without objects"),
    Fault("tables", "an NPZ cut short", "its first half", cut(npz(), 0.5), EVALUATE, "can't be read as an NPZ"),
    Fault("tables", "an NPZ that declares 3 PB", "a header of 128 bytes with that shape", huge_npz, EVALUATE, "can't be read as an NPZ"),
    Fault("tables", "labels not as many as pictures", "3 pictures, 2 labels in an NPZ", npz(y=np.array(["fear", "anger"])), EVALUATE, "but there are 3 pictures"),
]  # fmt: skip


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def recipe(text: str | bytes) -> Callable[[World], Path]:
    def make(world: World) -> Path:
        path = world.at / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


FILE = ("train", "{at}/mine.yaml")


def override(*given: str) -> tuple[str, ...]:
    return ("train", "b0_ce", *given)


RECIPES = [
    Fault("recipes", "an unknown recipe", "`ngd train b3_ful`", nothing, ("train", "b3_ful"), "did you mean 'b3_full'"),
    Fault("recipes", "a recipe file that is missing", "`absent/mine.yaml`", nothing, ("train", "{at}/absent.yaml"), "no recipe file"),
    Fault("recipes", "a folder as a recipe", "`mine.yaml`, a folder", lambda w: (w.at / "mine.yaml").mkdir(), FILE, "no recipe file"),
    Fault("recipes", "a recipe that may not be read", "mode 0", without_mode(recipe("name: a")), FILE, "Permission denied"),
    Fault("recipes", "no recipe and no run", "`ngd train`", nothing, ("train",), "give one recipe"),
    Fault("recipes", "a value of a wrong type", "`optim.epochs=many`", nothing, override("optim.epochs=many"), "optim.epochs: "),
    Fault("recipes", "a value out of range", "`loss.tau=0`", nothing, override("loss.tau=0"), "loss.tau: Input should be greater than 0"),
    Fault("recipes", "a key that is unknown", "`optim.epoch=3`", nothing, override("optim.epoch=3"), "did you mean 'optim.epochs'"),
    Fault("recipes", "a key in another script", "`оptim.lr=1` with a Cyrillic о", nothing, override("\u043eptim.lr=1"), "unknown key '\u043eptim'; did you mean 'optim'"),
    Fault("recipes", "a key that is a number", "`1: 2`", recipe("name: a\n1: 2\n"), FILE, "Keys should be strings, got 1"),
    Fault("recipes", "a key that is a list", "`? [a, b]`", recipe("name: a\n? [a, b]\n: 1\n"), FILE, "is no key"),
    Fault("recipes", "a key that is a set", "`? !!set {a}`", recipe("name: a\n? !!set {a}\n: 1\n"), FILE, "not valid YAML"),
    Fault("recipes", "a key that stands twice", "`name` twice", recipe("name: a\nname: b\n"), FILE, "stands twice"),
    Fault("recipes", "a key of several lines", "`optim⏎.lr=1`", nothing, override("optim\n.lr=1"), "unknown key 'optim\\n'; did you mean 'optim'"),
    Fault("recipes", "a key without end", "3 000 letters", nothing, override("o" * 3000 + "=1"), "unknown key 'ooo"),
    Fault("recipes", "a whole number of 5 000 hex digits", "`init=[0xfff…]`", nothing, override("init=[0x" + "f" * 5000 + "]"), "is not valid YAML"),
    Fault("recipes", "tags that don't fit", "`optim.lr=!!int []`, `!!bool x`, `!!timestamp x`", nothing, override("optim.lr=!!bool x"), "is not valid YAML"),
    Fault("recipes", "an override without =", "`optim.epochs`", nothing, override("optim.epochs"), "is not key=value"),
    Fault("recipes", "an override without a key", "`=3`", nothing, override("=3"), "is not key=value"),
    Fault("recipes", "an override with an empty part", "`optim..lr=1`", nothing, override("optim..lr=1"), "unknown key"),
    Fault("recipes", "an override into a value", "`name.of=1`", nothing, override("name.of=1"), "'name' is a value, not a section"),
    Fault("recipes", "an override into a number", "`seed.of=1`", nothing, override("seed.of=1"), "seed: Input should be a valid integer, got {'of': 1}"),
    Fault("recipes", "an override that is no YAML", "`data.root=[`", nothing, override("data.root=["), "is not valid YAML"),
    Fault("recipes", "an override nested without end", "2 000 brackets", nothing, override("data.root=" + "[" * 2000), "is not valid YAML"),
    Fault("recipes", "aliases", "`*a`", recipe("name: a\nx: &a [1]\ny: *a\n"), FILE, "aliases"),
    Fault("recipes", "a YAML bomb", "nine lists, each of ten of the last", recipe("a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n"), FILE, "aliases"),
    Fault("recipes", "a recipe nested without end", "100 000 brackets", recipe("name: " + "[" * 100_000), FILE, "not valid YAML"),
    Fault("recipes", "a huge recipe", "2 MiB", recipe("name: a\n" + "#" * (2 << 20)), FILE, "at most 1 MiB"),
    Fault("recipes", "an empty recipe", "zero bytes", recipe(""), FILE, "is a mapping of keys, got NoneType"),
    Fault("recipes", "a recipe that is a list", "`- a`", recipe("- a\n- b\n"), FILE, "is a mapping of keys"),
    Fault("recipes", "several recipes in a file", "`---` between two", recipe("name: a\n---\nname: b\n"), FILE, "not valid YAML"),
    Fault("recipes", "tabs", "a tab before a key", recipe("optim:\n\tlr: 1\n"), FILE, "not valid YAML"),
    Fault("recipes", "a recipe that is binary", "a PNG", recipe(encoded(grey())), FILE, "not valid YAML"),
    Fault("recipes", "code in a recipe", "`!!python/object/apply:os.system`", recipe("name: !!python/object/apply:os.system [true]\n"), FILE, "not valid YAML"),
    Fault("recipes", "NaN", "`optim.lr=.nan`", nothing, override("optim.lr=.nan"), "optim.lr: Input should be"),
    Fault("recipes", "an infinite number", "`loss.ce=.inf`", nothing, override("loss.ce=.inf"), "loss.ce: Input should be a finite number"),
    Fault("recipes", "a number that overflows", "`optim.lr=1e999`", nothing, override("optim.lr=1e999"), "optim.lr: Input should be a finite number"),
    Fault("recipes", "a number of 5 000 digits", "`seed`", recipe("name: a\nseed: " + "9" * 5000), FILE, "not valid YAML"),
    Fault("recipes", "a date that is none", "`seed: 2024-13-45`", recipe("name: a\nseed: 2024-13-45\n"), FILE, "not valid YAML"),
    Fault("recipes", "a date in an override", "`seed=2024-13-45`", nothing, override("seed=2024-13-45"), "is not valid YAML"),
    Fault("recipes", "a NUL in a path", "`data.root: \"a\\0b\"`", recipe('name: a\ndata: {root: "a\\0b"}\n'), FILE, "control characters"),
    Fault("recipes", "half a surrogate pair", "`out: \"\\ud800\"`", recipe('name: a\nout: "\\ud800"\n'), FILE, "not valid YAML"),
    Fault("recipes", "a name that leads elsewhere", "`name=../up`", nothing, override("name=../up"), "name: "),
    Fault("recipes", "no data", "`data.root` not set", nothing, override(), "data.root is not set"),
    Fault("recipes", "an unknown backbone", "`student.backbone=resnet81`", nothing, override("data.root=x", "student.backbone=resnet81"), "did you mean"),
    Fault("recipes", "an unknown optimizer", "`optim.opt=addam`", nothing, (*TRAIN, "optim.opt=addam"), "optim.opt=addam"),
    Fault("recipes", "a device that is not there", "`device=cuda:99`", nothing, (*TRAIN, "device=cuda:99"), "is not on this machine"),
    Fault("recipes", "a set to evaluate that is unknown", "`eval={ckpluss: x}`", nothing, (*TRAIN, "eval={ckpluss: x}"), "did you mean 'ckplus'"),
    Fault("recipes", "a set to evaluate that is missing", "`eval={ckplus: gone/}`", nothing, (*TRAIN, "eval={ckplus: gone/there/x}"), "gone/there/x"),
    Fault("recipes", "a teacher that is missing", "`teacher=gone/there/x`", nothing, (*TRAIN, "loss.kd=.3", "teacher=gone/there/x"), "teacher 'gone/there/x' does not exist"),
    Fault("recipes", "a start that is missing", "`init=gone/there/x`", nothing, (*TRAIN, "init=gone/there/x"), "is neither a run directory"),
]  # fmt: skip


# ── grids ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def grid(
    change: Callable[[dict[str, Any], dict[str, str]], object] = lambda tensors, notes: None, rehash: bool = False
) -> Callable[[World], Path]:
    """A grid file with tensors and metadata changed; `rehash` makes its two hashes fit what is changed."""

    def make(world: World) -> Path:
        from safetensors import safe_open
        from safetensors.torch import save_file

        from ngd_timm.grid.prototypes import PrototypeGrid, _metadata_sha256

        path = world.at / "grid.safetensors"
        PrototypeGrid.random(30).save(path)
        with safe_open(str(path), framework="pt") as handle:
            notes = dict(handle.metadata())
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
        change(tensors, notes)
        if rehash:
            notes.pop("metadata_sha256")
            notes["metadata_sha256"] = _metadata_sha256(notes)
        save_file({k: t.contiguous() for k, t in tensors.items()}, path, metadata=notes)
        return path

    return make


def tensor(name: str, edit: Callable[[Any], Any]) -> Callable[[World], Path]:
    return grid(lambda tensors, _: tensors.update({name: edit(tensors[name])}))


def raw_grid(data: bytes) -> Callable[[World], Path]:
    def make(world: World) -> Path:
        path = world.at / "grid.safetensors"
        path.write_bytes(data)
        return path

    return make


def pickled(world: World) -> None:
    import torch

    torch.save({"prototypes": torch.eye(25)}, world.at / "grid.safetensors")


def safetensors_bytes(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


SHOW = ("prototypes", "show", "{at}/grid.safetensors")
HUGE = {"prototypes": {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 8]}}

GRIDS = [
    Fault("grids", "no grid file", "`absent/grid.safetensors`", nothing, ("prototypes", "show", "{at}/a/grid.safetensors"), "no grid file"),
    Fault("grids", "an unknown version", "`gameemo-v0`", nothing, ("prototypes", "show", "gameemo-v0"), "did you mean 'gameemo-v"),
    Fault("grids", "a grid of zero bytes", "an empty file", raw_grid(b""), SHOW, "not a readable safetensors file"),
    Fault("grids", "a grid cut short", "its first half", cut(grid(), 0.5), SHOW, "not a readable safetensors file"),
    Fault("grids", "a folder as a grid", "`grid.safetensors`, a folder", lambda w: (w.at / "grid.safetensors").mkdir(), SHOW, "no grid file"),
    Fault("grids", "a grid that may not be read", "mode 0", without_mode(grid()), SHOW, "Permission denied"),
    Fault("grids", "a grid that links to itself", "a symbolic link in a loop", lambda w: link_loop(w.at / "grid.safetensors"), SHOW, "no grid file"),
    Fault("grids", "a header without end", "a length of 2⁶⁰ in the first 8 bytes", raw_grid(struct.pack("<Q", 1 << 60) + b"{}"), SHOW, "not a readable safetensors file"),
    Fault("grids", "a header that is no JSON", "`{{{{`", raw_grid(safetensors_bytes(b"{{{{")), SHOW, "not a readable safetensors file"),
    Fault("grids", "a tensor beyond all bounds", "a shape of 2⁶⁰ numbers", raw_grid(safetensors_bytes(HUGE, bytes(8))), SHOW, "not a readable safetensors file"),
    Fault("grids", "a pickle by another name", "`torch.save`d as `.safetensors`", pickled, SHOW, "not a readable safetensors file"),
    Fault("grids", "other tensors", "a student's weights", lambda w: shutil.copy(w.student / "model.safetensors", w.at / "grid.safetensors"), SHOW, "not a prototype grid"),
    Fault("grids", "a tensor too many", "`extra`", grid(lambda t, n: t.update(extra=t["counts"].clone())), SHOW, "not a prototype grid"),
    Fault("grids", "a tensor too few", "no `counts`", grid(lambda t, n: t.pop("counts")), SHOW, "not a prototype grid"),
    Fault("grids", "prototypes of a wrong shape", "24 rows", tensor("prototypes", lambda t: t[:-1]), SHOW, "must have shape"),
    Fault("grids", "prototypes without dimensions", "a scalar", tensor("prototypes", lambda t: t[0, 0]), SHOW, "a grid has 2 to 64 cells"),
    Fault("grids", "prototypes of width 0", "(25, 0)", tensor("prototypes", lambda t: t[:, :0]), SHOW, "must have shape"),
    Fault("grids", "prototypes of a wrong type", "float64", tensor("prototypes", lambda t: t.double()), SHOW, "must be torch.float32"),
    Fault("grids", "NaN in the prototypes", "one value", tensor("prototypes", lambda t: t.masked_fill(t == t.max(), float("nan"))), SHOW, "not all finite"),
    Fault("grids", "an infinite prototype", "one value", tensor("prototypes", lambda t: t.masked_fill(t == t.max(), float("inf"))), SHOW, "not all finite"),
    Fault("grids", "prototypes of a wrong length", "1.01", tensor("prototypes", lambda t: t * 1.01), SHOW, "has length 1.01, expected 1"),
    Fault("grids", "negative counts", "-1", tensor("counts", lambda t: t - 1), SHOW, "counts must not be negative"),
    Fault("grids", "other centres", "moved by 0.1", tensor("centers", lambda t: t + 0.1), SHOW, "centers are not those"),
    Fault("grids", "tensors that were changed", "rows in another order", tensor("prototypes", lambda t: t.roll(1, 0)), SHOW, "tensors do not match their sha256"),
    Fault("grids", "another format version", "99", grid(lambda t, n: n.update(format_version="99"), rehash=True), SHOW, "format version '99', this package reads '1'"),
    Fault("grids", "metadata that were changed", "another `provenance`", grid(lambda t, n: n.update(provenance="DREAMER")), SHOW, "metadata do not match their sha256"),
    Fault("grids", "a hash that is another's", "`sha256` of zeros", grid(lambda t, n: n.update(sha256="0" * 64), rehash=True), SHOW, "tensors do not match their sha256"),
    Fault("grids", "a grid of another size than the recipe's", "`grid_size=7`, a 5x5 grid", nothing, (*TRAIN, "grid=gameemo-v2", "grid_size=7", "loss.proto_kd=.1"), "is 5x5, grid_size asks for 7"),
]  # fmt: skip


# ── students and runs ────────────────────────────────────────────────────────────────────────────────────────────────


def student(
    change: Callable[[Path, dict[str, Any]], object] = lambda folder, config: None,
) -> Callable[[World], Path]:
    """A copy of a student with its config changed in place, and a face to ask it about."""

    def make(world: World) -> Path:
        folder = world.at / "student"
        shutil.copytree(world.student, folder)
        (world.at / "face.png").write_bytes(encoded(grey()))
        config = json.loads((folder / "config.json").read_text())
        before = (folder / "config.json").read_bytes()
        change(folder, config)
        if (folder / "config.json").exists() and (folder / "config.json").read_bytes() == before:
            (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def config(**values: Any) -> Callable[[World], Path]:
    return student(lambda _, c: c.update(values))


def pretrained_cfg(**values: Any) -> Callable[[World], Path]:
    return student(lambda _, c: c["pretrained_cfg"].update(values))


def weights(change: Callable[[dict[str, Any]], object]) -> Callable[[World], Path]:
    def edit(folder: Path, _: dict[str, Any]) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return student(edit)


def other_architecture(folder: Path, _: dict[str, Any]) -> None:
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_vit", num_classes=8).state_dict(), folder / "model.safetensors")


def pickle_only(folder: Path, _: dict[str, Any]) -> None:
    import torch

    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


PREDICT = ("predict", "{at}/student", "{at}/face.png")

STUDENTS = [
    Fault("students", "no student there", "an empty folder", lambda w: (w.at / "student").mkdir(), ("evaluate", "{at}/student", *EVALUATE[2:]), "is neither a run directory"),
    Fault("students", "a config.json that is no JSON", "`{`", student(lambda f, c: (f / "config.json").write_text("{")), PREDICT, "not a readable student"),
    Fault("students", "a config.json that is a list", "`[]`", student(lambda f, c: (f / "config.json").write_text("[]")), PREDICT, "not a readable student"),
    Fault("students", "a config.json without an architecture", "the key is gone", student(lambda f, c: c.pop("architecture")), PREDICT, "not a readable student"),
    Fault("students", "an architecture that timm lacks", "`resnet81`", config(architecture="resnet81"), PREDICT, "not a readable student"),
    Fault("students", "arguments that the architecture lacks", "`model_args: {depth: 3}`", config(model_args={"depth": 3}), PREDICT, "not a readable student"),
    Fault("students", "weights of another architecture", "a ViT's in a ResNet's folder", student(other_architecture), PREDICT, "not a readable student"),
    Fault("students", "weights cut short", "half of model.safetensors", student(lambda f, c: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000])), PREDICT, "not a readable student"),
    Fault("students", "weights of zero bytes", "an empty model.safetensors", student(lambda f, c: (f / "model.safetensors").write_bytes(b"")), PREDICT, "not a readable student"),
    Fault("students", "weights of which one is missing", "no classifier", weights(lambda t: t.pop("fc.weight")), PREDICT, "not a readable student"),
    Fault("students", "another number of classes at the top of config.json", "`num_classes: 9`, 8 in the model", config(num_classes=9), PREDICT, "num_classes is 9 in config.json, which makes a model of 8 classes"),
    Fault("students", "another number of classes among the arguments", "`model_args.num_classes: 9`", student(lambda f, c: c["model_args"].update(num_classes=9)), PREDICT, "num_classes is 8 in config.json, which makes a model of 9 classes"),
    Fault("students", "another number of classes in pretrained_cfg", "`pretrained_cfg.num_classes: 9`", pretrained_cfg(num_classes=9), PREDICT, "pretrained_cfg.num_classes is 9 in config.json"),
    Fault("students", "a classifier of other classes than config.json has", "9 rows, `num_classes: 8`", weights(lambda t: t.update({"fc.weight": t["fc.weight"][:1].repeat(9, 1)})), PREDICT, "fc.weight is (9, 96) in model.safetensors, (8, 96) by config.json"),
    Fault("students", "a label offset of weights that it does not fit", "`label_offset: 1`", pretrained_cfg(label_offset=1), PREDICT, "label_offset in config.json"),
    Fault("students", "weights without a layer", "no `layer1.*`", weights(lambda t: [t.pop(name) for name in list(t) if name.startswith("layer1.")]), PREDICT, "lacks layer1.0.conv1.weight and"),
    Fault("students", "weights with a tensor too many", "`extra.weight`", weights(lambda t: t.update({"extra.weight": t["fc.bias"].clone()})), PREDICT, "has extra.weight, which config.json's model lacks"),
    Fault("students", "weights that are NaN", "a NaN in the classifier", weights(lambda t: t["fc.bias"].fill_(float("nan"))), PREDICT, "not finite"),
    Fault("students", "a pickle and nothing else", "pytorch_model.bin", student(pickle_only), PREDICT, "is neither a run directory"),
    Fault("students", "no label names", "timm's own config", student(lambda f, c: (c.pop("label_names"), c["pretrained_cfg"].pop("label_names", None))), PREDICT, "does not say what its 8 classes are"),
    Fault("students", "label names not as many as logits", "7 names, 8 logits", student(lambda f, c: (c.update(label_names=c["label_names"][:7]), c["pretrained_cfg"].update(label_names=c["label_names"][:7]))), PREDICT, "does not say what its 8 classes are"),
    Fault("students", "label names that are no names", "numbers", student(lambda f, c: (c.update(label_names=list(range(8))), c["pretrained_cfg"].update(label_names=list(range(8))))), PREDICT, "label_names"),
    Fault("students", "a temperature of zero in its config", "`ngd_timm: {temperature: 0}`", config(ngd_timm={"temperature": 0}), PREDICT, "must name a temperature above 0"),
    Fault("students", "a note of ours that is a list", "`ngd_timm: [1]`", config(ngd_timm=[1]), PREDICT, "must name a temperature above 0"),
    Fault("students", "a deviation of zero", "`std: [0]`", pretrained_cfg(std=[0.0]), PREDICT, "std"),
    Fault("students", "a mean in words", "`mean: grey`", pretrained_cfg(mean="grey"), PREDICT, "mean"),
    Fault("students", "an input size of zero", "`input_size: [1, 0, 0]`", pretrained_cfg(input_size=[1, 0, 0]), PREDICT, "input_size"),
    Fault("students", "an input size in words", "`input_size: large`", pretrained_cfg(input_size="large"), PREDICT, "not a readable student"),
    Fault("students", "a picture to predict that is damaged", "half a PNG", lambda w: (student()(w), (w.at / "face.png").write_bytes(encoded(grey(NOISE))[:200])), PREDICT, "is not a readable image"),
    Fault("students", "a picture to predict that is missing", "`gone.png`", student(), (*PREDICT[:2], "{at}/gone.png"), "no picture"),
    Fault("students", "a folder to predict without pictures", "an empty folder", lambda w: (student()(w), (w.at / "e").mkdir()), (*PREDICT[:2], "{at}/e"), "holds no pictures"),
]  # fmt: skip


def run_copy(change: Callable[[Path], object]) -> Callable[[World], None]:
    def make(world: World) -> None:
        shutil.copytree(world.run(), world.at / "run")
        change(world.at / "run")

    return make


def write(name: str, data: str | bytes) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes(data if isinstance(data, bytes) else data.encode())


RESUME, REPORT, PUSH = (
    ("train", "--resume", "{at}/run"),
    ("report", "{at}/run"),
    ("push", "{at}/run", "u/r", "--dry-run"),
)

RUNS = [
    Fault("runs", "a run that is not there", "`--resume gone`", nothing, ("train", "--resume", "{at}/gone"), "is not a run that can be continued"),
    Fault("runs", "a run into a folder that holds something", "`out=` with notes in it", lambda w: ((w.at / "o").mkdir(), (w.at / "o/notes.txt").write_text("mine")), (*TRAIN, "out={at}/o"), "is not empty"),
    Fault("runs", "a fingerprint that is no JSON", "`{`", run_copy(write("fingerprint.json", "{")), RESUME, "fingerprint.json is not valid JSON"),
    Fault("runs", "metrics that are no JSON", "`nan`", run_copy(write("metrics.json", "{nan}")), REPORT, "metrics.json is not valid JSON"),
    Fault("runs", "metrics that are a list", "`[]`", run_copy(write("metrics.json", "[]")), REPORT, "metrics.json must hold a JSON object, got list"),
    Fault("runs", "metrics of another form", "`{\"a\": 1}`", run_copy(write("metrics.json", '{"a": 1}')), REPORT, "metrics.json: the entry 'a' is not an evaluation's"),
    Fault("runs", "a summary cut short", "half a line", run_copy(write("summary.csv", "epoch,lr\n0")), REPORT, "summary.csv: row 1 is not whole"),
    Fault("runs", "predictions cut short", "100 bytes", run_copy(lambda r: next((r / "predictions").iterdir()).write_bytes(b"x" * 100)), REPORT, "is not a readable safetensors file"),
    Fault("runs", "a run without a student", "no student/", run_copy(lambda r: shutil.rmtree(r / "student")), PUSH, "is neither a run directory"),
    Fault("runs", "a run that is not finished", "no metrics.json", run_copy(lambda r: (r / "metrics.json").unlink()), PUSH, "is not a finished run"),
    Fault("runs", "further metrics that are missing", "`--metrics gone.json`", run_copy(lambda r: None), (*PUSH, "--metrics", "{at}/gone.json"), "no metrics file"),
    Fault("runs", "a repository name that is none", "`push RUN ../up`", run_copy(lambda r: None), ("push", "{at}/run", "../up", "--dry-run"), "is no name to push to"),
    Fault("runs", "a temperature of zero", "`--temperature 0`", nothing, ("evaluate", "{student}", "--data", "schematic={faces}:test", "--temperature", "0"), "temperature must be above 0"),
]  # fmt: skip


# ── disks ────────────────────────────────────────────────────────────────────────────────────────────────────────────

LONG = "x" * 300


def a_file(world: World) -> None:
    (world.at / "file").write_text("mine")


def locked_folder(world: World) -> None:
    (world.at / "locked").mkdir()
    (world.at / "locked").chmod(0o555)


def earlier_figures(world: World) -> None:
    (world.at / "test.json").write_text("earlier")


@contextlib.contextmanager
def no_larger_than(size: int) -> Iterator[None]:
    """A write beyond `size` bytes fails, as on a disk with a quota."""
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def limited(size: int, *command: str) -> Callable[[World], object]:
    def do(world: World) -> object:
        with no_larger_than(size):
            return world.ngd(*filled(world, command))

    return do


def cramped(name: str) -> Callable[[World], object]:
    return lambda world: world.cramped()[name]


SCORE = ("evaluate", "{student}", "--data", "schematic={faces}:test")
ANNOTATE = ("predict", "{student}", "{at}/set", "--annotate")

DISKS = [
    Fault("disks", "an output below a file", "`--out file/test.json`", a_file, (*SCORE, "--out", "{at}/file/test.json"), "can't be written"),
    Fault("disks", "an output that is a folder", "`--out` of a folder", nothing, (*SCORE, "--out", "{at}"), "can't be written"),
    Fault("disks", "a run into a file", "`out=file`", a_file, (*TRAIN, "out={at}/file"), "is not empty"),
    Fault("disks", "a run below a file", "`out=file/run`", a_file, (*TRAIN, "out={at}/file/run"), "can't be written"),
    Fault("disks", "an export onto a file", "`--out file` for a folder", a_file, ("export", "{student}", "--out", "{at}/file"), "file"),
    Fault("disks", "a picture below a file", "`--picture file/grid.png`", a_file, ("prototypes", "show", "--picture", "{at}/file/grid.png"), "can't be written"),
    Fault("disks", "a name that is too long", "300 letters", nothing, (*SCORE, "--out", "{at}/" + LONG), "can't be written"),
    Fault("disks", "a run with a name that is too long", "`out=` of 300 letters", nothing, (*TRAIN, "out={at}/" + LONG), "File name too long"),
    Fault("disks", "a data set with a name that is too long", "300 letters", nothing, (*EVALUATE[:-1], "schematic={at}/" + LONG), LONG[:50]),
    Fault("disks", "a student with a name that is too long", "300 letters", nothing, ("evaluate", "{at}/" + LONG, *EVALUATE[2:]), LONG[:50]),
    Fault("disks", "a grid with a name that is too long", "300 letters", nothing, ("prototypes", "show", "{at}/" + LONG), LONG[:50]),
    Fault("disks", "a recipe with a name that is too long", "300 letters", nothing, ("train", "{at}/" + LONG + ".yaml"), LONG[:50]),
    Fault("disks", "no permission to write", "a folder of mode 555", locked_folder, (*SCORE, "--out", "{at}/locked/test.json"), "can't be written (Permission denied)"),
    Fault("disks", "no permission to write a run", "a folder of mode 555", locked_folder, (*TRAIN, "out={at}/locked/run"), "can't be written (Permission denied)"),
    Fault("disks", "no permission to write an export", "a folder of mode 555", locked_folder, ("export", "{student}", "--out", "{at}/locked/student"), "can't be written (Permission denied)"),
    Fault("disks", "a write that is cut off", "a quota of 1 KB, an earlier file of that name", earlier_figures, limited(1024, *SCORE, "--out", "{at}/test.json"), "can't be written (File too large)"),
    Fault("disks", "an export that is cut off", "a quota of 8 KB", nothing, limited(8192, "export", "{student}", "--out", "{at}/student"), "can't be written"),
    Fault("disks", "annotations that are cut off", "a quota of 1 KB", picture(encoded(grey())), limited(1024, *ANNOTATE, "{at}/answers"), "can't be written (File too large)"),
    Fault("disks", "a full disk, figures", "a file system of 16 KB, an earlier file of that name", nothing, cramped("figures"), "can't be written (No space left on device)"),
    Fault("disks", "a full disk, a grid", "a file system of 16 KB, an earlier grid of that name", nothing, cramped("grid"), "can't be written (No space left on device)"),
    Fault("disks", "a full disk, an export", "a file system of 16 KB", nothing, cramped("export"), "can't be written (No space left on device)"),
    Fault("disks", "a full disk, a picture", "a file system of 16 KB", nothing, cramped("picture"), "can't be written (No space left on device)"),
    Fault("disks", "a disk that fills up in training", "a file system of 1 MB", nothing, cramped("run"), "can't be written (No space left on device)"),
    Fault("disks", "a read-only disk, figures", "a file system mounted read-only", nothing, cramped("read-only figures"), "can't be written (Read-only file system)"),
    Fault("disks", "a read-only disk, a run", "a file system mounted read-only", nothing, cramped("read-only run"), "can't be written (Read-only file system)"),
    Fault("disks", "a full standard output", "`ngd prototypes show > /dev/full`", nothing, cramped("standard output"), "standard output"),
]  # fmt: skip


# ── processes and numbers ────────────────────────────────────────────────────────────────────────────────────────────


def batches_of(world: World, workers: int) -> Any:
    from ngd_timm.data import FaceBatches, load_fer

    return FaceBatches(
        load_fer("schematic", world.at / "set"), image_size=16, batch_size=2, in_memory=False, workers=workers
    )


def dead_worker(world: World) -> None:
    import multiprocessing

    batches = iter(batches_of(world, 1))
    next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
    for _ in batches:
        pass


def many_pictures(world: World) -> None:
    for number in range(40):
        picture(encoded(grey(np.roll(RAMP, number))), f"b{number}.png")(world)


def picture_that_goes(workers: int) -> Callable[[World], None]:
    def do(world: World) -> None:
        batches = batches_of(world, workers)
        (world.at / "set" / "neutral" / "b7.png").unlink()
        for _ in batches:
            pass

    return do


class _Interrupts(dict):  # type: ignore[type-arg]
    def items(self) -> Any:
        raise KeyboardInterrupt


def interrupted(world: World) -> None:
    from ngd_timm.core.files import write_json

    with contextlib.suppress(KeyboardInterrupt):
        write_json(world.at / "test.json", _Interrupts(a=1))


def figures_of(value: float) -> Callable[[World], None]:
    def do(_: World) -> None:
        from ngd_timm.evaluate.metrics import fer_metrics

        logits = np.eye(8)
        logits[3, 3] = value
        fer_metrics(logits, np.arange(8))

    return do


def flat_teacher(mode: str) -> Callable[[World], None]:
    def do(_: World) -> None:
        import torch

        from ngd_timm.losses import logit_kd_loss

        logits = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        loss = logit_kd_loss(logits, torch.full((4, 8), 3.0), mode)  # type: ignore[arg-type]
        loss.backward()
        assert loss.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()

    return do


def nan_teacher(world: World) -> None:
    weights(lambda t: t["fc.bias"].fill_(float("nan")))(world)


PROCESSES = [
    Fault("processes", "a loader process that dies", "killed between two batches, as when memory runs out", many_pictures, dead_worker, "lower data.workers"),
    Fault("processes", "a picture that goes while it is used", "deleted after it was checked, loaded in this process", many_pictures, picture_that_goes(0), "b7.png", unchanged=False),
    Fault("processes", "a picture that goes while a process loads it", "deleted after it was checked, loaded in another", many_pictures, picture_that_goes(1), "b7.png", unchanged=False),
    Fault("processes", "Ctrl-C during a write", "KeyboardInterrupt while a file is written again", earlier_figures, interrupted, "the earlier file stays and nothing is left beside it", HANDLED),
    Fault("numbers", "a rate so high that the loss overflows", "`optim.lr=1e30`", nothing, (*TRAIN, "optim.lr=1e30", "optim.epochs=3", "optim.warmup=0", "out={at}/here/run"), "became NaN or infinite", check=lambda w, d: shutil.rmtree(w.at / "here" / "run")),
    Fault("numbers", "a teacher that says NaN", "NaN in its weights", nan_teacher, (*TRAIN, "loss.kd=.3", "teacher={at}/student", "out={at}/here/run"), "NaN", check=lambda w, d: shutil.rmtree(w.at / "here" / "run", ignore_errors=True)),
    Fault("numbers", "a student that says NaN", "NaN in its weights, scored", nan_teacher, ("evaluate", "{at}/student", *EVALUATE[2:-1], "schematic={faces}:test"), "are not finite"),
    Fault("numbers", "logits that are NaN", "one of 64", nothing, figures_of(float("nan")), "1 of 8 rows of logits are not finite"),
    Fault("numbers", "logits that are infinite", "one of 64", nothing, figures_of(float("inf")), "1 of 8 rows of logits are not finite"),
    Fault("numbers", "a teacher without an opinion, mean squares", "equal logits", nothing, flat_teacher("mse"), "loss and gradient are finite", HANDLED),
    Fault("numbers", "a teacher without an opinion, KL", "equal logits", nothing, flat_teacher("kl"), "loss and gradient are finite", HANDLED),
]  # fmt: skip

FAULTS = [*DATA, *RECIPES, *GRIDS, *STUDENTS, *RUNS, *DISKS, *PROCESSES]

ELSEWHERE = [
    Elsewhere("processes", "killed at any moment", "SIGKILL, at random", "`--resume` ends in the same bits", HANDLED, "tests/test_resume.py::test_killed_at_random_moments_it_ends_in_the_same_bits"),
    Elsewhere("processes", "killed inside a write", "SIGKILL between two bytes", "`--resume` ends in the same bits", HANDLED, "tests/test_resume.py::test_killed_inside_its_writes_it_ends_in_the_same_bits"),
    Elsewhere("processes", "stopped by a signal", "SIGINT, SIGTERM", "the state is saved; one line says how to go on", HANDLED, "tests/test_resume.py::test_a_signal_stops_it_with_a_state_and_one_line_that_says_how_to_go_on"),
    Elsewhere("runs", "a damaged resume state", "bytes changed in last/", "is not a readable resume state", REFUSED, "tests/test_resume.py::test_a_damaged_state_is_refused_by_name"),
    Elsewhere("numbers", "extremes of half precision", "±65 504 and 0 in float16 and bfloat16", "loss and gradient are finite", HANDLED, "tests/test_losses.py::test_loss_and_gradient_are_finite_and_attached"),
    Elsewhere("grids", "a bit flipped", "each byte of a file in turn", "the file is named and refused", REFUSED, "tests/test_prototypes.py::test_a_bit_flipped_anywhere_in_the_file_is_refused_with_the_name_of_the_file"),
]  # fmt: skip


# ── the tests ────────────────────────────────────────────────────────────────────────────────────────────────────────


def filled(world: World, command: tuple[str, ...]) -> list[str]:
    places = {"{at}": world.at, "{faces}": world.faces, "{student}": world.student}
    for place, path in places.items():
        command = tuple(argument.replace(place, str(path)) for argument in command)
    return list(command)


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder by its hash."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = os.fsencode(path.relative_to(folder)).hex()
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else f"{path.is_dir()}"
    return found


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextlib.contextmanager
def modes_count() -> Iterator[None]:
    """File modes bind root too: without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, in this thread and those it starts."""
    if os.geteuid() != 0:
        yield
        return
    libc, sets = ctypes.CDLL(None, use_errno=True), (_Sets * 2)()
    header = _Header(0x20080522, 0)
    if libc.capget(ctypes.byref(header), sets):
        pytest.skip("modes don't bind root, and its capabilities can't be read here")
    before = sets[0].effective
    sets[0].effective = before & ~0b110
    if libc.capset(ctypes.byref(header), sets):
        pytest.skip("modes don't bind root, and its capabilities can't be dropped here")
    try:
        yield
    finally:
        sets[0].effective = before
        libc.capset(ctypes.byref(header), sets)


@pytest.fixture(scope="module")
def whole_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ngd_timm.core.recipe import StudentConfig
    from ngd_timm.models.student import create_student, save_student

    model = create_student(StudentConfig(backbone="test_resnet", image_size=32), 8)
    return save_student(model, tmp_path_factory.mktemp("students") / "whole")


@pytest.fixture(scope="module")
def whole_run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A finished run, trained where a row asks for it."""
    from ngd_timm.core.recipe import Recipe, load_recipe
    from ngd_timm.train.loop import train

    made: list[Path] = []

    def get() -> Path:
        if not made:
            arguments = [a.replace("{faces}", str(faces)) for a in TRAIN[2:]]
            made.append(
                train(load_recipe(Recipe, "b0_ce", [*arguments, f"out={tmp_path_factory.mktemp('r') / 'run'}"]))
            )
        return made[0]

    return get


CRAMPED = """
import contextlib, io, json, os, subprocess, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
student, faces, root = sys.argv[1:4]
full, small, locked = (Path(root) / name for name in ("full", "small", "locked"))
from ngd_timm.cli import main
from ngd_timm.core.errors import InputError
from ngd_timm.grid.prototypes import PrototypeGrid

def told(action):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            action()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return [code, out.getvalue(), "".join(l for l in err.getvalue().splitlines(True) if l.startswith("ngd: "))]

def ngd(*arguments):
    def action():
        sys.argv = ["ngd", *map(str, arguments)]
        main()
    return told(action)

def saved():
    try:
        PrototypeGrid.random(1000, seed=1).save(full / "grid.safetensors")
    except InputError as error:
        print(f"ngd: {error}", file=sys.stderr)
        sys.exit(2)

score = ["evaluate", student, "--data", f"schematic={faces}:test"]
train = ["train", "b0_ce", "data.name=schematic", f"data.root={faces}", "student.backbone=test_resnet",
         "student.image_size=32", "optim.epochs=1", "optim.batch_size=16", "data.workers=0"]
done = {}
for name, action in {
    "figures": lambda: ngd(*score, "--out", full / "test.json"),
    "grid": lambda: told(saved),
    "export": lambda: ngd("export", student, "--out", full / "student"),
    "picture": lambda: ngd("prototypes", "show", "--picture", full / "grid.png"),
}.items():
    for path in ("test.json", "grid.safetensors"):
        (full / path).write_text("earlier")
    (full / "filler").write_bytes(b"")
    with contextlib.suppress(OSError), open(full / "filler", "wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    done[name] = action()
    (full / "filler").unlink()
    assert sorted(p.name for p in full.iterdir()) == ["grid.safetensors", "test.json"], list(full.iterdir())
    assert all(p.read_text() == "earlier" for p in full.iterdir())
done["run"] = ngd(*train, f"out={small / 'run'}")
assert not [p for p in small.rglob(".*")], list(small.rglob(".*"))
done["read-only figures"] = ngd(*score, "--out", locked / "test.json")
done["read-only run"] = ngd(*train, f"out={locked / 'run'}")
with open("/dev/full", "w") as sink:
    out = subprocess.run([sys.executable, "-m", "ngd_timm.cli", "--version"], stdout=sink, stderr=subprocess.PIPE, text=True)
done["standard output"] = [out.returncode, "", out.stderr]
print(json.dumps(done))
"""

MOUNTED = """set -e
mount -t tmpfs -o size=16k tmpfs "$3/full"
mount -t tmpfs -o size=1m tmpfs "$3/small"
mount -t tmpfs -o size=16k,ro tmpfs "$3/locked"
exec "$4" -c "$5" "$1" "$2" "$3"
"""


class Ended(NamedTuple):
    """How a command ended, as the `ngd` fixture tells it."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def whole_cramped(
    faces: Path, whole_student: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], dict[str, Any]]:
    """What the command says on small and on read-only file systems, which a name space of its own may mount."""
    made: list[dict[str, Any]] = []

    def get() -> dict[str, Any]:
        if not made:
            tried = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
            if tried.returncode:
                pytest.skip("this machine lets nobody mount a small file system (unshare -rm)")
            root = tmp_path_factory.mktemp("mounts")
            for name in ("full", "small", "locked"):
                (root / name).mkdir()
            arguments = [whole_student, faces, root, sys.executable, CRAMPED]
            command = ["unshare", "-rm", "sh", "-c", MOUNTED, "sh", *map(str, arguments)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-2000:]
            made.append({name: Ended(*values) for name, values in json.loads(done.stdout.splitlines()[-1]).items()})
        return made[0]

    return get


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_fault(
    fault: Fault,
    faces: Path,
    whole_student: Path,
    whole_run: Callable[[], Path],
    whole_cramped: Callable[[], dict[str, Any]],
    tmp_path: Path,
    ngd: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    from ngd_timm.core.errors import InputError

    if hasattr(request.config, "workerinput") and "not-utf-8" in request.node.name:
        pytest.skip("pytest's processes can't pass on names that are no text: run this one with -n 0")
    world = World(tmp_path, faces, whole_student, whole_run, whole_cramped, ngd)
    fault.make(world)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = contents(tmp_path)
    with modes_count():
        try:
            if isinstance(fault.do, tuple):
                done = ngd(*filled(world, fault.do))
            else:
                answer = fault.do(world)
                done = answer if hasattr(answer, "returncode") else Ended(0, "", "")
        except InputError as error:
            done = Ended(2, "", f"ngd: {error}\n")
    if fault.ends == REFUSED:
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("ngd: ")
        assert fault.says in done.stderr
        assert len(done.stderr) < 1000
    else:
        assert done.returncode == 0, done.stderr
    if fault.check is not None:
        fault.check(world, done)
    if fault.unchanged:
        assert contents(tmp_path) == before


def test_no_two_faults_have_one_name_and_there_are_many() -> None:
    names = [fault.id for fault in FAULTS]
    assert len(names) == len(set(names)) >= 60


@pytest.mark.parametrize("row", ELSEWHERE, ids=lambda row: row.kind.replace(" ", "-"))
def test_what_the_table_says_of_other_files_is_there(row: Elsewhere) -> None:
    file, name = row.test.split("::")
    if not (HERE.parent / file).is_file():
        pytest.skip(f"{file} is not in this checkout")
    assert f"def {name}(" in (HERE.parent / file).read_text(encoding="utf-8")


def test_the_page_is_what_the_table_prints() -> None:
    page = HERE.parent / "docs" / "faults.md"
    assert page.read_text(encoding="utf-8") == markdown(), "python tests/test_faults.py > docs/faults.md"


def markdown() -> str:
    rows = [(f, f"tests/test_faults.py::test_fault[{f.id}]") for f in FAULTS] + [(e, e.test) for e in ELSEWHERE]
    groups = list(dict.fromkeys(row.group for row, _ in rows))
    lines = [
        "# What can go wrong",
        "",
        f"{len(rows)} kinds of faults, each tried by the test named beside it. Refused means: one line on standard error that names",
        "what was given and what to do, exit code 2, nothing written, nothing lost. Handled means that the result is right.",
        "Written by `python tests/test_faults.py > docs/faults.md`; a test says that it is up to date.",
    ]
    for group in groups:
        of_group = [(row, test) for row, test in rows if row.group == group]
        lines += ["", f"## {group.capitalize()} ({len(of_group)})", ""]
        lines += ["| fault | given | what happens | test |", "|---|---|---|---|"]
        for row, test in of_group:
            happens = f"{row.ends}: “…{row.says}…”" if row.ends == REFUSED else f"{row.ends}: {row.says}"
            short = test.removeprefix("tests/test_faults.py::test_fault")
            cells = [row.kind, row.given, happens, f"`{short}`"]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write(markdown())
