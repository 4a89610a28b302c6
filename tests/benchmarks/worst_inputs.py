"""The most memory that ngd takes on files made to take much, beside an ordinary face.

    python tests/benchmarks/worst_inputs.py

Each command runs in a process of its own; the figure is the largest resident set of it and of what it started.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CLASSES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
FIT = "teacher fit teacher_{} data.root={} teacher.kind=ridge out=new"
COMMANDS = {
    "an ordinary face": "predict student face.png --crops",
    "twelve images of 49 megapixels": "predict student large --crops",
    "an image of 1 x 1,500,000 pixels": "predict student line.png --crops",
    "a student of 60,000 pixels": "predict wide face.png --crops",
    "a student of 100,000 layers": "predict deep face.png --crops",
    "a parquet row whose image is /dev/zero": "evaluate student --data schematic=device",
    "a set whose images are a pipe": "evaluate student --data fer2013=pipe:all",
    "band power that declares 3.6 PB": FIT.format("gameemo", "power.npz"),
    "a DEAP file of 1.3 MB that unfolds to 7 GB": FIT.format("deap", "deap"),
    "a table that is /dev/zero": "prototypes build zero.csv --out new.safetensors",
}


def write_inputs(folder: Path) -> None:
    """Everything that the commands read; a process of its own imports what that takes."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import timm
    from PIL import Image

    from ngd_timm.data.synthetic.schematic import draw_face
    from ngd_timm.models.student import save_student

    model = timm.create_model("test_resnet", num_classes=len(CLASSES), in_chans=1)
    save_student(model, folder / "student", CLASSES)
    for name, change in {
        "wide": {"pretrained_cfg": {"input_size": [1, 60_000, 60_000]}},
        "deep": {"model_args": {"layers": [100_000, 1, 1, 1]}},
    }.items():
        (folder / name).mkdir()
        config = json.loads((folder / "student" / "config.json").read_text())
        for key, values in change.items():
            config[key] = {**config.get(key, {}), **values}
        (folder / name / "config.json").write_text(json.dumps(config))
        (folder / name / "model.safetensors").symlink_to(folder / "student" / "model.safetensors")
    draw_face("fear", seed=1).save(folder / "face.png")
    (folder / "large").mkdir()
    for number in range(12):
        Image.new("RGB", (7000, 7000), (number, 90, 90)).save(folder / "large" / f"{number}.png")
    Image.new("L", (1, 1_500_000)).save(folder / "line.png")
    (folder / "device").mkdir()
    image = pa.array([{"bytes": None, "path": "/dev/zero"}] * 8)
    pq.write_table(pa.table({"image": image, "label": list(CLASSES)}), folder / "device" / "test.parquet")
    (folder / "pipe" / "test" / "fear").mkdir(parents=True)
    os.mkfifo(folder / "pipe" / "test" / "fear" / "face.png")
    header = str({"descr": "<f8", "fortran_order": False, "shape": (5 * 10**11, 900)}).encode()
    with zipfile.ZipFile(folder / "power.npz", "w") as archive:
        archive.writestr("power.npy", b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header)
    (folder / "deap").mkdir()
    text = b"\x80\x04X" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b"\x94]"
    call = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86Ra"
    (folder / "deap" / "s01.dat").write_bytes(text + call * 7000 + b".")
    (folder / "zero.csv").symlink_to("/dev/zero")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"{'input':44}{'MB':>6}{'s':>7}  code  what it says")
    with tempfile.TemporaryDirectory() as scratch:
        # a process that is started has had the memory of the one that started it
        writer = multiprocessing.get_context("spawn").Process(target=write_inputs, args=(Path(scratch),))
        writer.start()
        writer.join()
        for name, command in COMMANDS.items():
            line = [sys.executable, "-m", "ngd_timm.cli", *shlex.split(command)]
            environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
            with subprocess.Popen(
                line, cwd=scratch, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as child:
                assert child.stdout is not None
                said = child.stdout.read().strip().splitlines() or [""]
                _, status, used = os.wait4(child.pid, 0)
                child.returncode = os.waitstatus_to_exitcode(status)
            seconds = used.ru_utime + used.ru_stime
            print(f"{name:44}{used.ru_maxrss / 1024:6.0f}{seconds:7.1f}  {child.returncode:4}  {said[-1][:120]}")


if __name__ == "__main__":
    main()
