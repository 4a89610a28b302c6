"""What a run needs, made and checked before anything of it is written: data, grid, teacher, student, optimizer."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor

from ngd_timm.core.devices import autocast_type, open_device, precision_name
from ngd_timm.core.distributed import rank, world_size
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import sha256_file
from ngd_timm.core.hub import hub_id, pin
from ngd_timm.core.recipe import Recipe, to_yaml
from ngd_timm.core.version import __version__
from ngd_timm.evaluate.student import face_batches
from ngd_timm.grid.prototypes import GRID_FILE, PrototypeGrid
from ngd_timm.losses import NeuroGazeLoss
from ngd_timm.models.calibration import can_calibrate, uncalibrate
from ngd_timm.models.kd_cache import CachedTeacher
from ngd_timm.models.kd_teacher import KDTeacher, TeacherEnsemble, open_teacher
from ngd_timm.models.logit_adjustment import classifier_bias, logit_shift
from ngd_timm.models.ngd_models import DistillationWrapper, TimmModel
from ngd_timm.models.small_maps import small_maps_as_products
from ngd_timm.models.student import STUDENT_FILES, create_student, open_student, student_files, weights_sha256
from ngd_timm.train.gradient_share import GradientShare
from ngd_timm.train.task import NeuroGazeTask

if TYPE_CHECKING:
    from datasets import Dataset

    from ngd_timm.data import FaceBatches, FaceStream

__all__ = [
    "Setup",
    "data_hashes",
    "open_grid",
    "pinned",
    "prepare",
    "student_hash",
    "teacher_config_hash",
    "teacher_hash",
]

logger = logging.getLogger("ngd_timm.train")


@dataclass
class Setup:
    """Everything a run needs, made and checked before anything is written."""

    recipe: Recipe
    device: torch.device
    autocast: torch.dtype | None
    batches: Any
    valid: Any
    task: NeuroGazeTask
    gradient_share: GradientShare
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    grid: PrototypeGrid | None
    shift: Tensor | None  # what the deployed student's logits lose
    calibration: tuple[Tensor, Tensor] | None  # rows of validation and their classes, to fit its temperature on
    fingerprint: dict[str, Any]


def prepare(recipe: Recipe) -> Setup:
    """Load and check data, grid, teacher and student of a recipe; nothing is written.

    Raises:
        InputError: The first thing that can't be used.
    """
    from ngd_timm.data import FaceBatches, FaceStream, class_counts, load_split, load_stream
    from ngd_timm.data.batches import targets
    from ngd_timm.data.samplers import drawn_counts

    if recipe.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError("tensorboard=true needs the package tensorboard: pip install 'ngd-timm[tensorboard]'")
    torch.manual_seed(recipe.seed)
    device = open_device(recipe.device)
    if world_size() > 1 and device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    part = (rank(), world_size())
    _refuse_what_processes_cannot_share(recipe, device)
    data, classes = recipe.data, recipe.data.classes
    if data.root is None:
        raise InputError(f"{recipe.name}: data.root is not set; give data.root=FOLDER that holds {data.name}")
    grid = open_grid(recipe)
    model = DistillationWrapper(create_student(recipe.student, len(classes)), None if grid is None else grid.dim)
    cfg = model.student.pretrained_cfg
    if recipe.init is not None:
        _start_from(model.student, recipe.init, classes)
    opened = None
    if recipe.teacher_sources:
        opened = open_teacher(recipe.teacher_sources, classes, cfg["mean"], cfg["std"])

    chosen = _rows_wanted(recipe)
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
    reports = {}
    if not data.streaming:
        training, reports["train"] = load_split(data.name, data.root, "train", **chosen)
    held_out, reports["valid"] = load_split(data.name, data.root, "valid", **chosen)
    batches: FaceBatches | FaceStream
    if data.streaming:
        rows, tally = load_stream(data.name, data.root, "train", **chosen)
        batches = FaceStream(rows, buffer=data.shuffle_buffer, **drawn)
        counts, reports["train"] = batches.counts, batches.report(data.name, "train", tally)
        labels_drawn = counts
    else:
        counts = class_counts(training)
        drawn |= {"sampler": data.sampler, "in_memory": data.in_memory, "workers": data.workers}
        batches = FaceBatches(training, train=True, part=part, **drawn)
        labels_drawn = drawn_counts(targets(training), batches.labels, data.sampler, len(classes))
    shift = None
    if recipe.student.logit_adjustment:
        classifier_bias(model.student)  # refused now, not after an epoch
        shift = logit_shift(labels_drawn, recipe.student.logit_adjustment)
    calibration = None
    if recipe.student.calibrate:
        if can_calibrate(model.student):
            calibration = _calibration_rows(recipe, held_out)
        else:
            logger.warning(f"{recipe.student.backbone}: logits not linear in its classifier, so it stays uncalibrated")
    autocast = autocast_type(recipe.optim.amp, device)
    teacher: KDTeacher | TeacherEnsemble | CachedTeacher | None = opened
    if opened is not None and recipe.kd_cache is not None:
        key = _batches_key(recipe, opened, reports["train"].sha256, batches, autocast, device)
        teacher = CachedTeacher(opened, recipe.kd_cache, key, len(batches))
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
        # a share is set at the first step; until then any positive weight puts the term in
        proto_kd=loss.proto_kd if loss.proto_share is None else max(loss.proto_kd, 1.0),
        tau=loss.tau,
        sigma=loss.sigma,
        target=loss.target,
        d_geo=loss.d_geo,
        ramp=loss.ramp,
        positive_classes=loss.positive_classes,
        variance_cap=loss.variance_cap,
        margin=loss.margin,
        gather_distributed=True,
        label_smoothing=loss.label_smoothing,
        class_weights=(loss.class_weights, counts),
    )
    if recipe.optim.sync_bn and part[1] > 1:
        model.student = convert_sync_batchnorm(model.student)
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
    warmup = min(round(optim.warmup_epochs * steps), optim.epochs * steps - 1)
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
    # ask for pictures last: decoding them is the slow check
    valid = face_batches(model.student, held_out, workers=data.workers, part=part)
    if part[1] > 1:
        task.prepare_distributed([device.index] if device.type == "cuda" else None)
        # all start from one student, and each drops other units
        torch.manual_seed(recipe.seed + part[0] * 2**32)
    return Setup(
        recipe=recipe,
        device=device,
        autocast=autocast,
        batches=batches,
        valid=valid,
        task=task,
        gradient_share=GradientShare(task, recipe.loss.proto_share, recipe.share_every),
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler(device.type, enabled=autocast == torch.float16),
        grid=grid,
        shift=shift,
        calibration=calibration,
        fingerprint={
            **_fingerprint(recipe, reports, grid, autocast, device),
            "labels_drawn": dict(zip(classes, labels_drawn.tolist(), strict=True)),
        },
    )


def data_hashes(recipe: Recipe) -> dict[str, str]:
    """By split, the sha256 that a run of this recipe would write into its fingerprint for the data at hand.

    Raises:
        InputError: As `load_split` and `load_stream`.
    """
    from ngd_timm.data import FaceStream, load_split, load_stream

    data, chosen = recipe.data, _rows_wanted(recipe)
    if data.root is None:
        raise InputError(f"{recipe.name}: data.root is not set; give data.root=FOLDER that holds {data.name}")
    hashes = {"valid": load_split(data.name, data.root, "valid", **chosen)[1].sha256}
    if data.streaming:
        rows, _ = load_stream(data.name, data.root, "train", **chosen)
        batches = FaceStream(rows, image_size=recipe.student.image_size, batch_size=recipe.optim.batch_size)
        return {"train": batches.sha256, **hashes}
    return {"train": load_split(data.name, data.root, "train", **chosen)[1].sha256, **hashes}


def _rows_wanted(recipe: Recipe) -> dict[str, Any]:
    return recipe.data.model_dump(include={"label_rule", "drop_duplicates", "classes", "limit"})


def pinned(recipe: Recipe) -> Recipe:
    """The recipe with every Hub id at its present commit, so that a resumed run gets the same bytes.

    Raises:
        InputError: A repository that can't be read.
    """
    of = {"grid": GRID_FILE, "teacher": STUDENT_FILES[0], "init": STUDENT_FILES[0]}
    changes: dict[str, Any] = {}
    for key, filename in of.items():
        named = getattr(recipe, key)
        if isinstance(named, str):
            changes[key] = pin(named, filename)
        elif isinstance(named, tuple):
            changes[key] = tuple(pin(source, filename) for source in named)
    return recipe.model_copy(update=changes)


def _batches_key(
    recipe: Recipe,
    opened: KDTeacher | TeacherEnsemble,
    data_sha256: str,
    batches: FaceBatches | FaceStream,
    autocast: torch.dtype | None,
    device: torch.device,
) -> dict[str, Any]:
    """Everything that a teacher's logits depend on: which teacher, how, and which images in what order."""
    return {
        "teacher": teacher_hash(recipe),
        "teacher_adjustments": opened.adjustments,
        "teacher_config": teacher_config_hash(recipe),
        "data": data_sha256,
        "classes": recipe.data.classes,
        "augment": recipe.data.augment.model_dump(),
        "sampler": recipe.data.sampler,
        "seed": recipe.seed,
        "batch_size": recipe.optim.batch_size,
        "images": [batches.image_size, batches.in_chans, batches.mean, batches.std],
        "pipeline": [recipe.data.streaming, recipe.data.shuffle_buffer, getattr(batches, "in_memory", None)],
        "part": [rank(), world_size()],
        "arithmetic": [str(autocast), device.type, torch.__version__, __version__],
    }


def open_grid(recipe: Recipe) -> PrototypeGrid | None:
    """The grid that a recipe names, of the size that it asks for, centred where it says so, or the control made of it.

    Raises:
        InputError: Nothing of that name, or another size.
    """
    if recipe.grid is None:
        return None
    grid = PrototypeGrid.from_spec(recipe.grid)
    if recipe.grid_size not in (None, grid.size):
        raise InputError(
            f"{recipe.name}: grid={recipe.grid} is {grid.size}x{grid.size}, grid_size asks for {recipe.grid_size}; "
            f"build one with: ngd prototypes build TEACHER_RUN --size {recipe.grid_size} --out FILE"
        )
    if recipe.grid_control in ("random", "va"):
        grid = PrototypeGrid.random(grid.dim, grid.size, recipe.seed)
    if recipe.grid_center:
        grid = grid.centered()
    return grid.shuffled(recipe.seed) if recipe.grid_control == "shuffled" else grid


def _start_from(student: TimmModel, source: str, classes: tuple[str, ...]) -> None:
    start, names = open_student(source)
    if names != classes:
        raise InputError(f"init={source} has the classes {', '.join(names)}, the recipe {', '.join(classes)}")
    try:
        student.load_state_dict(uncalibrate(start).state_dict())
    except RuntimeError as error:
        raise InputError(
            f"init={source} is another backbone than the recipe's ({str(error).splitlines()[0]})"
        ) from None


def _calibration_rows(recipe: Recipe, valid: Dataset) -> tuple[Tensor, Tensor]:
    """Rows of validation and their classes, by majority where there are votes, to fit a temperature on."""
    from ngd_timm.data import load_split

    data = recipe.data
    rows, target = torch.arange(len(valid)), torch.tensor(valid["label"][:])
    if data.label_rule == "majority" or "votes" not in valid.column_names:
        return rows, target
    try:
        # duplicates and the limit are those of `valid`, of which these rows are some
        majority, _ = load_split(
            data.name, data.root or "", "valid", label_rule="majority", classes=data.classes, drop_duplicates=False
        )
    except InputError:  # no image with a majority
        return rows, target
    label_of = dict(zip(majority["source"][:], majority["label"][:], strict=True))
    kept = [(row, label_of[source]) for row, source in enumerate(valid["source"][:]) if source in label_of]
    if not kept:
        return rows, target
    rows, target = torch.tensor(kept).T
    return rows, target


def _refuse_what_processes_cannot_share(recipe: Recipe, device: torch.device) -> None:
    count = world_size()
    if recipe.optim.batch_size < count:
        raise InputError(
            f"optim.batch_size={recipe.optim.batch_size} is the batch of all {count} processes; give at least {count}"
        )
    if recipe.data.streaming and count > 1:
        raise InputError(f"data.streaming=true feeds one process, and there are {count}; leave it out, or use one")
    if recipe.optim.sync_bn and count > 1 and device.type != "cuda":
        raise InputError("optim.sync_bn=true needs GPUs, PyTorch synchronises no batch norm on the CPU; leave it out")


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
        "teacher": teacher_hash(recipe),
        "teacher_config": teacher_config_hash(recipe),
        "init": student_hash(recipe.init),
        "hub": _hub_ids(recipe),
        "precision": precision_name(autocast),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": world_size(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


def student_hash(source: str | None) -> str | None:
    """sha256 of a student's weights, by which a fingerprint knows a teacher or a start."""
    return None if source is None else weights_sha256(student_files(source))


def teacher_hash(recipe: Recipe) -> str | list[str] | None:
    """sha256 of the teacher's weights, of an ensemble's one each; None without logit KD."""
    hashes = [weights_sha256(student_files(source)) for source in recipe.teacher_sources]
    return hashes if len(hashes) > 1 else next(iter(hashes), None)


def teacher_config_hash(recipe: Recipe) -> list[str]:
    """sha256 of each teacher's config.json, which says what its logits mean and what images it takes."""
    return [sha256_file(student_files(source) / STUDENT_FILES[0]) for source in recipe.teacher_sources]


def _hub_ids(recipe: Recipe) -> dict[str, Any]:
    named = {key: getattr(recipe, key) for key in ("grid", "teacher", "init")}
    kept = {key: list(n) if isinstance(n, tuple) else n for key, n in named.items() if isinstance(n, (str, tuple))}
    return {key: n for key, n in kept.items() if any(map(hub_id, [n] if isinstance(n, str) else n))}
