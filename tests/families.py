"""Every family of timm through this package: wrapped, trained a step, saved, loaded by timm alone, exported.

    python tests/families.py --out families.jsonl                      all families; checks in the file are not repeated
    python tests/families.py --out families.jsonl --only volo levit    some
    python tests/families.py --out families.jsonl --table docs/backbones.md

A family is a module of `timm.list_modules()`; the model with the fewest parameters that has a classifier stands for it,
at the smallest input that it takes. A line of JSON a family: each check is true, or a sentence that says what failed.
Some 40 minutes on one core, of which ONNX takes most; `--skip onnx` leaves it out.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import list_modules
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from ngd_timm import CLASSES, DistillationWrapper, NeuroGazeLoss, PrototypeGrid, save_student, wrap

CHECKS = {
    "wraps": "wraps",
    "step": "trains a step",
    "equal": "logits bit-equal",
    "reload": "reloaded by timm, bit-equal",
    "groups": "parameter groups",
    "grey": "grey input",
    "onnx": "ONNX",
}
SIZES = (32, 64, 96, 128, 160, 192, 224, 240, 256, 288, 320, 384, 448, 512, 640, 768, 1024)
DROP_RATE = 0.3
ONNX_TOLERANCE = 1e-4
ONNX_LIMIT_S = 900
# two of each positive class, so that D-Geo's cap has something to cap
TARGET = torch.tensor([1, 1, 2, 2, 0, 3, 4, 6])

INTRODUCTION = """# Every family of timm {timm}

Written by `python tests/families.py`, then with `--table docs/backbones.md`. The classifier with the fewest
parameters stands for its family, at the smallest input that it takes (pixels a side; by `img_size=` where the size is
built into the model). Torch {torch}, CPU, float32, eight images.

- **wraps**: `ngd_timm.wrap` gives logits and embedding from one pass of the backbone. *Head* is how often
  `forward_head` runs for the two: 2 where the classifier applied to the pre-logits is not the model's own forward.
- **trains a step**: cross-entropy, Proto-KD and D-Geo; every gradient is finite, and no parameter goes without one that
  gets one in the bare model.
- **logits bit-equal**: wrapped with the embedding, wrapped without it, and bare; with dropout in training, where batch
  norm's statistics are equal too.
- **reloaded**: `ngd_timm.save_student`, then `timm.create_model("local-dir:…", pretrained=True)`.
- **grey input**: a step with `in_chans=1`.
- **parameter groups**: timm's optimizer factory gives every parameter the weight decay and the layer decay that it
  has in the bare model.
- **ONNX**: exported by `torch.onnx.export(dynamo=True)` and run by onnxruntime, within {tolerance} of the largest logit
  (of 1, where that is smaller).

| check | families | share |
|---|---|---|
{shares}

Encoders without a classifier have no logits and are refused with a sentence: {encoders}.

| family | model | million parameters | input | head | {titles} |
|{rule}
{lines}
"""


class Failed(Exception):
    """A check that failed, as a sentence."""


def families() -> list[str]:
    return [m for m in list_modules() if m != "ngd_models"]


def smallest(family: str) -> tuple[str, int]:
    """The family's classifier with the fewest parameters, and their number."""
    counted = []
    for name in timm.list_models(module=family):
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=len(CLASSES))
        if hasattr(model, "get_classifier"):
            counted.append((sum(p.numel() for p in model.parameters()), name))
    parameters, name = min(counted)
    return name, parameters


def smallest_input(name: str) -> tuple[dict[str, int], int]:
    """Options for `timm.create_model`, and the smallest side in pixels that the model takes, tried without data."""
    cfg = timm.get_pretrained_cfg(name)
    native = cfg.input_size[-1]
    for size in (*(s for s in SIZES if s < native), native):
        options = {"img_size": size} if cfg.fixed_input_size and size != native else {}
        try:
            with torch.device("meta"):
                model = timm.create_model(name, num_classes=len(CLASSES), **options)
                images = torch.empty(8, 3, size, size)
                with torch.no_grad():
                    model.eval()(images)
                    model.train()(images)
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, ZeroDivisionError):
            continue
        return options, size
    return {}, native


class Family:
    """The checks of one timm architecture at one size; each raises `Failed` or whatever else goes wrong."""

    def __init__(self, name: str, size: int, options: dict[str, Any]) -> None:
        self.name, self.size, self.options = name, size, options
        self.grid = PrototypeGrid.random(64)
        self.model: DistillationWrapper | None = None
        self.timms: Any = None

    def images(self, channels: int = 3) -> Tensor:
        return torch.randn(8, channels, self.size, self.size, generator=torch.Generator().manual_seed(0))

    def wraps(self) -> DistillationWrapper:
        if self.model is None:
            torch.manual_seed(0)
            self.model = wrap(self.name, grid=self.grid, drop_rate=DROP_RATE, **self.options)
        return self.model

    def bare(self) -> Any:
        """The timm model itself, with the weights of the wrapped one."""
        if self.timms is None:
            self.timms = timm.create_model(self.name, num_classes=len(CLASSES), drop_rate=DROP_RATE, **self.options)
        self.timms.load_state_dict(self.wraps().student.state_dict())
        return self.timms

    def step(self) -> None:
        model = self.wraps()
        _step(model, self.grid, self.images())
        without = {name for name, p in model.named_parameters() if p.grad is None}
        model.zero_grad(set_to_none=True)  # the largest models are some gigabytes, and so are their gradients
        bare = self.bare().train()
        nn.functional.cross_entropy(bare(self.images()), TARGET).backward()
        without -= {f"student.{n}" for n, p in bare.named_parameters() if p.grad is None}
        bare.zero_grad(set_to_none=True)
        if without:
            raise Failed(f"{', '.join(sorted(without))}: no gradient, in the bare model there is one")

    def equal(self) -> None:
        model, images = self.wraps().eval(), self.images()
        with torch.no_grad():
            expected = self.bare().eval()(images)
            if not torch.equal(model(images), expected):
                raise Failed("the wrapped model's logits are not the bare model's")
            if not torch.equal(model(images, return_embedding=True)[0], expected):
                raise Failed("the logits beside an embedding are not the bare model's")
            torch.manual_seed(1)
            expected = self.bare().train()(images)
            torch.manual_seed(1)
            if not torch.equal(model.train()(images, return_embedding=True)[0], expected):
                raise Failed("in training the logits beside an embedding are not the bare model's")
        for name, b in self.timms.named_buffers():
            if not torch.equal(b, model.student.get_buffer(name)):
                raise Failed(f"{name} is not updated as in the bare model")

    def reload(self) -> None:
        student = self.wraps().eval().student
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            save_student(student, Path(folder) / "student", CLASSES)
            loaded = timm.create_model(f"local-dir:{folder}/student", pretrained=True).eval()
            if not torch.equal(loaded(self.images()), student(self.images())):
                raise Failed("the reloaded model's logits differ")

    def grey(self) -> None:
        self.model = self.timms = None  # room for the next
        bare = timm.create_model(self.name, num_classes=len(CLASSES), in_chans=1, **self.options)
        try:
            bare(self.images(channels=1))
        except RuntimeError:
            raise Failed("the timm model itself takes none, whatever in_chans says") from None
        model = wrap(bare, grid=self.grid)
        if model.in_chans != 1:
            raise Failed(f"in_chans=1, but the model says {model.in_chans}")
        _step(model, self.grid, self.images(channels=1))

    def groups(self) -> None:
        model, bare = self.wraps(), self.bare()
        for options in ({}, {"layer_decay": 0.7}):
            ours, timms = (_groups(m, options) for m in (model, bare))
            for name, expected in timms.items():
                if ours[f"student.{name}"] != expected:
                    raise Failed(f"{name}: (scale, decay) {ours[f'student.{name}']} wrapped, {expected} bare")
            if ours["projection.weight"] != (1.0, 0.05):
                raise Failed(f"the projection: (scale, decay) {ours['projection.weight']}")

    def onnx(self) -> None:
        import onnxruntime

        student = self.wraps().eval().student
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            save_student(student, Path(folder) / "student", CLASSES)
            deployed = timm.create_model(f"local-dir:{folder}/student", pretrained=True, exportable=True).eval()
            images = self.images()[:2]
            expected = deployed(images)
            with limited(ONNX_LIMIT_S):
                torch.onnx.export(deployed, (images,), f"{folder}/student.onnx", dynamo=True, verbose=False)
                session = onnxruntime.InferenceSession(f"{folder}/student.onnx", providers=["CPUExecutionProvider"])
                logits = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
        difference = float((torch.from_numpy(logits) - expected).abs().max())
        if not difference <= ONNX_TOLERANCE * max(1.0, float(expected.abs().max())):
            raise Failed(f"logits differ by {difference:.1e}")


def _step(model: DistillationWrapper, grid: PrototypeGrid, images: Tensor) -> None:
    """A training step of the full objective without KD teacher, whose gradients must be finite."""
    criterion = NeuroGazeLoss(grid, epochs=1, ramp=(0, 1))
    model.train().zero_grad()
    logits, embedding = model(images, return_embedding=True)
    losses = criterion(logits, embedding, TARGET, epoch=1)
    missing = {"ce", "proto_kd", "d_geo"} - set(losses)
    if missing or not losses["loss"].isfinite():
        raise Failed(f"the loss is {float(losses['loss'])}, without {', '.join(missing) or 'nothing'}")
    losses["loss"].backward()
    for name, p in model.named_parameters():
        if p.grad is not None and not p.grad.isfinite().all():
            raise Failed(f"{name} has a gradient that is not finite")
    if model.projection is None or model.projection.weight.grad is None or not model.projection.weight.grad.any():
        raise Failed("the projection has no gradient")
    if not any(p.grad is not None and p.grad.any() for p in model.student.parameters()):
        raise Failed("the backbone has no gradient")


def _groups(model: nn.Module, options: dict[str, float]) -> dict[str, tuple[float, float]]:
    names = {id(p): n for n, p in model.named_parameters()}
    groups = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, **options).param_groups
    return {names[id(p)]: (g.get("lr_scale", 1.0), g["weight_decay"]) for g in groups for p in g["params"]}


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the block after so many seconds; POSIX, main thread."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def verdict(check: Callable[[], None]) -> bool | str:
    """True, or what is wrong: a sweep reports any exception of a family and goes on to the next."""
    try:
        check()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return True


def examine(family: str, row: dict[str, Any], checks: list[str]) -> dict[str, Any]:
    """One family's row with these checks added."""
    began = time.perf_counter()
    row = dict(row)
    if "model" not in row:
        row["model"], row["parameters"] = smallest(family)
    if "input" not in row:
        row["options"], row["input"] = smallest_input(row["model"])
    subject = Family(row["model"], row["input"], row["options"])
    for check in checks:
        row[check] = verdict(getattr(subject, check))
        if check == "wraps" and row[check] is True:
            row["head_calls"] = 1 if subject.wraps().classifier_is_last else 2
    row["seconds"] = round(row.get("seconds", 0) + time.perf_counter() - began, 1)
    return row


def table(rows: dict[str, dict[str, Any]]) -> str:
    """docs/backbones.md, of rows with all checks."""
    shares, lines = [], []
    for check, title in CHECKS.items():
        passed = sum(row[check] is True for row in rows.values())
        shares.append(f"| {title} | {passed} of {len(rows)} | {100 * passed / len(rows):.0f} % |")
    for family, row in sorted(rows.items()):
        cells = [
            family,
            f"`{row['model']}`",
            f"{row['parameters'] / 1e6:.1f}",
            str(row["input"]),
            str(row["head_calls"]),
        ]
        # without the temporary folder
        cells += ["yes" if row[check] is True else "no: " + re.sub(r"/\S*/", "", row[check]) for check in CHECKS]
        lines.append(f"| {' | '.join(cells)} |")
    return INTRODUCTION.format(
        timm=timm.__version__,
        torch=torch.__version__.split("+")[0],
        tolerance=f"{ONNX_TOLERANCE:g}",
        shares="\n".join(shares),
        encoders=", ".join(f"`{n}`" for n in encoder_names()),
        titles=" | ".join(CHECKS.values()),
        rule="---|" * (5 + len(CHECKS)),
        lines="\n".join(lines),
    )


def encoder_names() -> list[str]:
    names = []
    for name in timm.list_models("*_enc*", exclude_filters="ngd_*"):
        with torch.device("meta"):
            if not hasattr(timm.create_model(name), "get_classifier"):
                names.append(name)
    return names


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The file's last row of each family."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return {row["family"]: row for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("families.jsonl"))
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=families(), help="families")
    parser.add_argument("--skip", nargs="+", default=[], choices=list(CHECKS), help="checks")
    parser.add_argument("--table", type=Path, help="write the file's rows as a table, and stop")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    rows = read(options.out)
    if options.table:
        options.table.write_text(table(rows), encoding="utf-8")
        return
    # the smallest first, where their size is known, so that an interrupted run has most of them
    for family in sorted(options.only or families(), key=lambda f: rows.get(f, {}).get("parameters", 0)):
        row = rows.get(family, {"family": family})
        checks = [c for c in CHECKS if c not in options.skip and c not in row]
        if not checks:
            continue
        row = examine(family, row, checks)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        bad = {c: row[c] for c in checks if row[c] is not True}
        print(
            f"{family:26s} {row['model']:36s} {row['input']:4d} px {row['seconds']:7.1f} s  {bad or 'all'}", flush=True
        )


if __name__ == "__main__":
    main()
