"""One training run: a recipe in, a run directory out. `train` reads top to bottom."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import math
import platform
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import unwrap_model
from torch import Tensor, nn

from ngd_timm.devices import open_device
from ngd_timm.errors import InputError
from ngd_timm.evaluate import evaluate, face_batches, summary_line
from ngd_timm.export import STUDENT_FILES, create_student, open_student, save_student, student_files
from ngd_timm.files import atomic_path, sha256_file, write_json, write_text
from ngd_timm.hub import hub_id, pin
from ngd_timm.kd_teacher import KDTeacher
from ngd_timm.losses import COMPONENTS, NeuroGazeLoss, class_weights
from ngd_timm.metrics import fer_metrics
from ngd_timm.ngd_models import DistillationWrapper, TimmModel
from ngd_timm.predictions import predict, prediction_file, write_predictions
from ngd_timm.prototypes import GRID_FILE, PrototypeGrid
from ngd_timm.recipe import Recipe, load_recipe, to_yaml
from ngd_timm.small_maps import small_maps_as_products
from ngd_timm.task import NeuroGazeTask

__all__ = ["open_grid", "pinned", "resume", "student_hash", "train"]

logger = logging.getLogger("ngd_timm.train")

COLUMNS = (
    "epoch",
    "lr",
    "loss",
    "ce",
    "kd",
    "proto_kd",
    "d_geo",
    "geo_ramp",
    "share_ce",
    "share_kd",
    "share_proto_kd",
    "share_d_geo",
    "lambda_proto_kd",
    "positive_variance",
    "grad_norm",
    "valid_acc",
    "valid_macro_f1",
    "valid_bacc",
    "seconds",
    "images_per_second",
)
_CALIBRATION_STEPS, _CALIBRATION_EVERY = 100, 10


@dataclass
class Setup:
    """Everything a run needs, made and checked before anything is written."""

    recipe: Recipe
    device: torch.device
    autocast: torch.dtype | None
    batches: Any
    valid: Any
    task: NeuroGazeTask
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    grid: PrototypeGrid | None
    fingerprint: dict[str, Any]


@dataclass
class Progress:
    """What changes from epoch to epoch; with the weights it is the resume state."""

    epoch: int = 0
    best: float = -math.inf
    rows: list[dict[str, Any]] = field(default_factory=list)
    proto_ratios: list[float] = field(default_factory=list)


def train(recipe: Recipe) -> Path:
    """Run a recipe to its end.

    Args:
        recipe: Validated, see `load_recipe`.

    Returns:
        The run directory: recipe.yaml, fingerprint.json, summary.csv, student/ (last epoch), student_best/ (best
        validation accuracy), last/ (resume state), predictions/ (logits and embeddings of validation and of `eval`),
        metrics.json, report.html.

    Raises:
        InputError: Anything in the recipe or the data that can't be used; nothing is written then.

    Example:
        See `recipes/` and the README: `train(load_recipe(Recipe, "b0_ce", ["data.root=ferplus/"]))`.
    """
    out = Path(recipe.out or f"runs/{recipe.name}-{recipe.seed}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty; choose another out=DIR, or continue it with: ngd train --resume {out}")
    recipe = pinned(recipe)
    setup = prepare(recipe)
    write_text(out / "recipe.yaml", to_yaml(recipe))
    write_json(out / "fingerprint.json", setup.fingerprint)
    if setup.grid is not None:
        setup.grid.save(out / "grid.safetensors")
    return _run(setup, out, Progress())


def resume(run: str | Path) -> Path:
    """Continue a run from its last finished epoch, as if it had not stopped.

    Raises:
        InputError: No resume state there, or code, data or grid are no longer those that the run began with.
    """
    out = Path(run)
    state_file = out / "last" / "state.pt"
    for needed in ("recipe.yaml", "fingerprint.json"):
        if not (out / needed).is_file():
            raise InputError(f"{out} is not a run that can be continued: it has no {needed}; start a new one")
    setup = prepare(load_recipe(Recipe, out / "recipe.yaml"))
    before = json.loads((out / "fingerprint.json").read_text(encoding="utf-8"))
    for key in ("recipe", "data", "grid", "teacher", "init"):
        if before.get(key) != json.loads(json.dumps(setup.fingerprint.get(key))):
            raise InputError(f"{out}: {key} is not what the run began with (see fingerprint.json); start a new run")
    progress = Progress()
    if state_file.is_file():
        progress = _load_state(setup, state_file)
        logger.info(f"resuming {out} after epoch {progress.epoch} of {setup.recipe.optim.epochs}")
    return _run(setup, out, progress)


def _run(setup: Setup, out: Path, progress: Progress) -> Path:
    recipe, task = setup.recipe, setup.task
    key, predicted = f"{recipe.data.name}:valid", None
    while progress.epoch < recipe.optim.epochs:
        began = time.perf_counter()
        row = _train_epoch(setup, progress)
        model = _model(task)
        predicted = predict(model, setup.valid, setup.device, recipe.eval_flip)
        figures = fer_metrics(predicted.logits, predicted.target, recipe.data.classes, resamples=0)["8way"]
        row |= {f"valid_{name}": value for name, value in figures.items()}
        row["seconds"] = time.perf_counter() - began
        progress.rows.append(row)
        progress.epoch += 1
        save_student(model.student, out / "student", recipe.data.classes)
        if figures["acc"] > progress.best:
            progress.best = figures["acc"]
            save_student(model.student, out / "student_best", recipe.data.classes)
        write_text(out / "summary.csv", _csv(progress.rows))
        _save_state(setup, progress, out / "last" / "state.pt")
        if recipe.tensorboard:
            _write_tensorboard(out / "tensorboard", row)
        logger.info(_epoch_line(row, recipe.optim.epochs))

    # a run that stopped between its last epoch and its figures has only the weights
    predicted = predicted or predict(_model(task), setup.valid, setup.device, recipe.eval_flip)
    data_sha256 = setup.fingerprint["data"]["valid"]["sha256"]
    predicted = predicted.described(recipe.data.classes, recipe.data.label_rule, data_sha256)
    write_predictions(prediction_file(out, key), predicted)
    metrics = {key: predicted.entry()}
    if recipe.eval:
        metrics |= evaluate(out, [f"{name}={root}" for name, root in recipe.eval.items()], predictions=True)
    for name, figures in metrics.items():
        logger.info(summary_line(name, figures))
    write_json(out / "metrics.json", metrics)
    from ngd_timm.report import write_report

    logger.info(f"report: {write_report(out)}")
    return out


def _train_epoch(setup: Setup, progress: Progress) -> dict[str, Any]:
    """One pass over the training set. Returns the epoch's row of summary.csv, validation left out."""
    recipe, task, optimizer = setup.recipe, setup.task, setup.optimizer
    began, epoch, steps = time.perf_counter(), progress.epoch, len(setup.batches)
    task.set_epoch(epoch)
    task.train()
    setup.batches.set_epoch(epoch)
    totals = _Mean()
    for step, batch in enumerate(_bar(setup.batches, f"epoch {epoch + 1}/{recipe.optim.epochs}")):
        update = epoch * steps + step
        images, target, va = _to_device(batch, setup.device)
        measured = _measure(setup, progress, update, images, target, va)
        if measured:
            totals.add({f"share_{name}": torch.tensor(share) for name, share in measured.items()})
        setup.scheduler.step_update(update)
        with torch.autocast(setup.device.type, dtype=setup.autocast, enabled=setup.autocast is not None):
            result = task(images, target, va)
        optimizer.zero_grad(set_to_none=True)
        setup.scaler.scale(result["loss"]).backward()
        setup.scaler.unscale_(optimizer)
        limit = recipe.optim.clip_grad or math.inf
        norm = nn.utils.clip_grad_norm_(task.get_clip_parameters(), limit)
        setup.scaler.step(optimizer)
        setup.scaler.update()
        task.update_ema(update)
        logits = result.pop("output")
        totals.add({**result, "grad_norm": norm}, count=len(logits))
        if step % 50 == 0 or step == steps - 1:
            _refuse_nonfinite(totals, epoch, step)
    criterion = task.criterion
    return {
        "epoch": epoch,
        "lr": optimizer.param_groups[0]["lr"],
        **totals.means(),
        "geo_ramp": None if criterion.d_geo is None else criterion.ramp_at(epoch),
        "lambda_proto_kd": None if criterion.proto_kd is None else criterion.weights["proto_kd"],
        "images_per_second": totals.count / (time.perf_counter() - began),
    }


def _measure(
    setup: Setup, progress: Progress, update: int, images: Tensor, target: Tensor, va: Tensor | None
) -> dict[str, float] | None:
    """Gradient shares every N steps; in the first steps they also set lambda where a share is asked for."""
    recipe, task = setup.recipe, setup.task
    share = recipe.loss.proto_share
    calibrating = share is not None and update < _CALIBRATION_STEPS and update % _CALIBRATION_EVERY == 0
    if not calibrating and not (recipe.share_every and update % recipe.share_every == 0):
        return None
    with torch.autocast(setup.device.type, dtype=setup.autocast, enabled=setup.autocast is not None):
        norms = task.gradient_norms(images, target, va)
    if calibrating and share is not None:
        weights = task.criterion.effective_weights(task.epoch)
        others = sum(weights[name] * norm for name, norm in norms.items() if name != "proto_kd")
        progress.proto_ratios.append(others / max(norms["proto_kd"], 1e-12))
        task.criterion.weights["proto_kd"] = share / (1 - share) * statistics.median(progress.proto_ratios)
    return task.gradient_shares(norms)


def prepare(recipe: Recipe) -> Setup:
    """Load and check data, grid, teacher and student of a recipe; nothing is written.

    Raises:
        InputError: The first thing that can't be used.
    """
    from ngd_timm.data import FaceBatches, FaceStream, LoadReport, class_counts, load_split, load_stream

    if recipe.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError("tensorboard=true needs the package tensorboard: pip install 'ngd-timm[tensorboard]'")
    torch.manual_seed(recipe.seed)
    device = open_device(recipe.device)
    data, classes = recipe.data, recipe.data.classes
    if data.root is None:
        raise InputError(f"{recipe.name}: data.root is not set; give data.root=FOLDER that holds {data.name}")
    grid = open_grid(recipe)
    model = DistillationWrapper(create_student(recipe.student, len(classes)), None if grid is None else grid.dim)
    cfg = model.student.pretrained_cfg
    if recipe.init is not None:
        _start_from(model.student, recipe.init, classes)
    teacher = None
    if recipe.teacher_source is not None:
        teacher = KDTeacher.open(recipe.teacher_source, classes, cfg["mean"], cfg["std"])

    chosen: dict[str, Any] = {
        "label_rule": data.label_rule,
        "drop_duplicates": data.drop_duplicates,
        "classes": classes,
        "limit": data.limit,
    }
    drawn: dict[str, Any] = {
        "image_size": recipe.student.image_size,
        "in_chans": recipe.student.in_chans,
        "mean": cfg["mean"],
        "std": cfg["std"],
        "batch_size": recipe.optim.batch_size,
        "augment": data.augment,
        "seed": recipe.seed,
        "ahead": device.type == "cuda",
    }
    sets: dict[str, Any] = {}
    reports: dict[str, LoadReport] = {}
    for split in ("valid",) if data.streaming else ("train", "valid"):
        sets[split], reports[split] = load_split(data.name, data.root, split, **chosen)
    batches: FaceBatches | FaceStream
    if data.streaming:
        rows, tally = load_stream(data.name, data.root, "train", **chosen)
        batches = FaceStream(rows, buffer=data.shuffle_buffer, **drawn)
        counts, reports["train"] = batches.counts, batches.report(data.name, "train", tally)
    else:
        counts = class_counts(sets["train"])
        drawn |= {"sampler": data.sampler, "in_memory": data.in_memory, "workers": data.workers}
        batches = FaceBatches(sets["train"], train=True, **drawn)
    loss = recipe.loss
    criterion = NeuroGazeLoss(
        grid,
        len(classes),
        recipe.optim.epochs,
        classes=classes,
        ce=loss.ce,
        kd=loss.kd,
        kd_mode=loss.kd_mode,
        temperature=loss.temperature,
        # a share is calibrated at the first step; until then any positive weight puts the term in
        proto_kd=loss.proto_kd if loss.proto_share is None else max(loss.proto_kd, 1.0),
        tau=loss.tau,
        sigma=loss.sigma,
        target=loss.target,
        d_geo=loss.d_geo,
        ramp=loss.ramp,
        positive_classes=loss.positive_classes,
        variance_cap=loss.variance_cap,
        margin=loss.margin,
        label_smoothing=loss.label_smoothing,
        class_weights=class_weights(counts, loss.class_weights),
    )
    small_maps_as_products(model.to(device).to(memory_format=torch.channels_last))
    task = NeuroGazeTask(model, criterion, teacher, device=device, verbose=False)
    if recipe.optim.ema is not None:
        task.setup_ema(decay=recipe.optim.ema, use_warmup=True)
    optim, steps = recipe.optim, len(batches)
    options: dict[str, Any] = {"fused": True} if optim.opt in ("adam", "adamw", "sgd") else {}
    try:
        optimizer = create_optimizer_v2(model, opt=optim.opt, lr=optim.lr, weight_decay=optim.weight_decay, **options)
    except (AssertionError, ValueError) as error:
        raise InputError(f"optim.opt={optim.opt}: {' '.join(str(error).split())}") from None
    # counted in updates, so that a warm-up may be a fraction of an epoch
    warmup = round(optim.warmup_epochs * steps)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=optim.schedule,
        num_epochs=optim.epochs * steps - warmup,
        warmup_epochs=warmup,
        warmup_prefix=True,
        warmup_lr=optim.lr / 25,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    autocast = _autocast_type(optim.amp, device)
    # ask for pictures last: decoding them is the slow check
    valid = face_batches(model.student, sets["valid"], workers=data.workers)
    return Setup(
        recipe=recipe,
        device=device,
        autocast=autocast,
        batches=batches,
        valid=valid,
        task=task,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler(device.type, enabled=autocast == torch.float16),
        grid=grid,
        fingerprint=_fingerprint(recipe, reports, grid, autocast, device),
    )


def pinned(recipe: Recipe) -> Recipe:
    """The recipe with every Hub id at its present commit, so that a resumed run gets the same bytes.

    Raises:
        InputError: A repository that can't be read.
    """
    of = {"grid": GRID_FILE, "teacher": STUDENT_FILES[0], "init": STUDENT_FILES[0]}
    named = {key: getattr(recipe, key) for key in of if isinstance(getattr(recipe, key), str)}
    return recipe.model_copy(update={key: pin(source, of[key]) for key, source in named.items()})


def open_grid(recipe: Recipe) -> PrototypeGrid | None:
    """The grid that a recipe names, of the size that it asks for, centred where it says so.

    Raises:
        InputError: Nothing of that name, or another size.
    """
    if recipe.grid is None:
        return None
    grid = PrototypeGrid.from_spec(recipe.grid, seed=recipe.seed)
    if recipe.grid_size not in (None, grid.size):
        raise InputError(
            f"{recipe.name}: grid={recipe.grid} is {grid.size}x{grid.size}, grid_size asks for {recipe.grid_size}; "
            f"build one with: ngd prototypes build TEACHER_RUN --size {recipe.grid_size} --out FILE"
        )
    return grid.centered() if recipe.grid_center else grid


def _start_from(student: TimmModel, source: str, classes: tuple[str, ...]) -> None:
    start, names = open_student(source)
    if names != classes:
        raise InputError(f"init={source} has the classes {', '.join(names)}, the recipe {', '.join(classes)}")
    try:
        student.load_state_dict(start.state_dict())
    except RuntimeError as error:
        raise InputError(
            f"init={source} is another backbone than the recipe's ({str(error).splitlines()[0]})"
        ) from None


def _autocast_type(amp: str, device: torch.device) -> torch.dtype | None:
    """auto is a function of the processor alone, so that two runs on one machine agree."""
    if amp != "auto":
        return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    # either has bf16 dot products; without them bf16 is emulated and slower than float32
    return torch.bfloat16 if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else None


def _to_device(batch: Any, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    images = batch.images.to(device, memory_format=torch.channels_last, non_blocking=True)
    va = batch.valence_arousal
    return images, batch.target.to(device, non_blocking=True), None if va is None else va.to(device, non_blocking=True)


def _model(task: NeuroGazeTask) -> DistillationWrapper:
    """What is scored and saved: the moving average where there is one."""
    model: DistillationWrapper = unwrap_model(task.get_trainable_module(ema=task.has_ema()))
    return model


class _Mean:
    """Running means that stay on the device until asked for; a spread that a batch can't tell does not count."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.seen: dict[str, Tensor] = {}
        self.count = 0

    def add(self, values: dict[str, Tensor], count: int = 0) -> None:
        for name, value in values.items():
            value = value.detach().double()
            known = ~value.isnan() if name == "positive_variance" else torch.ones_like(value, dtype=torch.bool)
            self.sums[name] = self.sums.get(name, 0) + torch.where(known, value, 0)
            self.seen[name] = self.seen.get(name, 0) + known
        self.count += count

    def means(self) -> dict[str, float | None]:
        return {n: float(s) / int(self.seen[n]) if int(self.seen[n]) else None for n, s in self.sums.items()}


def _refuse_nonfinite(totals: _Mean, epoch: int, step: int) -> None:
    bad = [name for name in (*COMPONENTS, "loss") if name in totals.sums and not totals.sums[name].isfinite()]
    if bad:
        raise InputError(
            f"{bad[0]} became NaN or infinite by epoch {epoch + 1}, batch {step + 1}; the last finished epoch is kept. "
            "Lower optim.lr, or set optim.amp=off"
        )


def _bar(batches: Any, title: str) -> Any:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not console.is_terminal:
        return batches
    return track(batches, description=title, total=len(batches), console=console, transient=True)


def _epoch_line(row: dict[str, Any], epochs: int) -> str:
    parts = [f"{name} {row[name]:.4g}" for name in ("loss", *COMPONENTS) if row.get(name) is not None]
    shares = [f"{name} {row[f'share_{name}']:.2g}%" for name in COMPONENTS[1:] if row.get(f"share_{name}") is not None]
    return (
        f"epoch {row['epoch'] + 1}/{epochs}  {'  '.join(parts)}"
        + (f"  gradient {' '.join(shares)}" if shares else "")
        + f"  valid acc {row['valid_acc']:.2f} macro-F1 {row['valid_macro_f1']:.2f} bACC {row['valid_bacc']:.2f}"
        + f"  {row['seconds']:.0f} s, {row['images_per_second']:.0f} images/s"
    )


def _write_tensorboard(folder: Path, row: dict[str, Any]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for name, value in row.items():
            if value is not None and name != "epoch":
                writer.add_scalar(name, value, row["epoch"])


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="raise", restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


def _fingerprint(
    recipe: Recipe,
    reports: dict[str, Any],
    grid: PrototypeGrid | None,
    autocast: torch.dtype | None,
    device: torch.device,
) -> dict[str, Any]:
    packages = ("ngd-timm", "torch", "torchvision", "timm", "numpy", "datasets", "safetensors", "pillow")
    return {
        "recipe": hashlib.sha256(to_yaml(recipe).encode()).hexdigest(),
        "seed": recipe.seed,
        "data": {split: report.as_dict() for split, report in reports.items()},
        "grid": None if grid is None else grid.sha256,
        "teacher": student_hash(recipe.teacher_source),
        "init": student_hash(recipe.init),
        "hub": {k: s for k in ("grid", "teacher", "init") if isinstance(s := getattr(recipe, k), str) and hub_id(s)},
        "precision": "float32" if autocast is None else str(autocast).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


def student_hash(source: str | None) -> str | None:
    """sha256 of a student's weights, by which a fingerprint knows a teacher or a start."""
    return None if source is None else sha256_file(student_files(source) / "model.safetensors")


def _save_state(setup: Setup, progress: Progress, file: Path) -> None:
    state = {
        "checkpoint": setup.task.get_checkpoint_state(),
        "checkpoint_ema": setup.task.get_checkpoint_state(ema=True) if setup.task.has_ema() else None,
        "optimizer": setup.optimizer.state_dict(),
        "scaler": setup.scaler.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if setup.device.type == "cuda" else None,
        "epoch": progress.epoch,
        "best": progress.best,
        "rows": progress.rows,
        "proto_ratios": progress.proto_ratios,
        "lambda_proto_kd": setup.task.criterion.weights["proto_kd"],
    }
    with atomic_path(file) as temporary:
        torch.save(state, temporary)


def _load_state(setup: Setup, file: Path) -> Progress:
    try:
        state = torch.load(file, map_location=setup.device, weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a damaged file; none of them is ours to tell apart
        raise InputError(f"{file} is not a readable resume state ({type(error).__name__}); start a new run") from None
    setup.task.load_checkpoint_state(state["checkpoint"]["state_dict"], state["checkpoint"].get("task_state"))
    if state["checkpoint_ema"]:
        ema = state["checkpoint_ema"]
        setup.task.load_checkpoint_state(ema["state_dict_ema"], ema.get("task_state_ema"), ema=True)
    setup.optimizer.load_state_dict(state["optimizer"])
    setup.scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["random"].cpu())
    if state["random_cuda"] is not None:
        torch.cuda.set_rng_state_all([s.cpu() for s in state["random_cuda"]])
    setup.task.criterion.weights["proto_kd"] = state["lambda_proto_kd"]
    return Progress(state["epoch"], state["best"], state["rows"], state["proto_ratios"])
