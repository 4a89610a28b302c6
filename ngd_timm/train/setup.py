"""What a run trains with: data, grid, teacher, student, loss and optimizer, all checked before anything is written."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import Tensor

from ngd_timm.core.devices import CPU, autocast_type, open_device
from ngd_timm.core.distributed import rank, world_size
from ngd_timm.core.errors import InputError, one_line
from ngd_timm.core.recipe import OptimConfig, Recipe
from ngd_timm.core.small_maps import small_maps_as_products
from ngd_timm.core.version import __version__
from ngd_timm.evaluate.student import face_batches
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.losses import NeuroGazeLoss
from ngd_timm.models.calibration import can_calibrate, divide_logits
from ngd_timm.models.kd_cache import LogitCache
from ngd_timm.models.kd_teacher import KDTeacher, TeacherEnsemble, open_teacher
from ngd_timm.models.logit_adjustment import classifier_bias
from ngd_timm.models.ngd_models import DistillationWrapper, input_channels, wrap
from ngd_timm.models.rgb import grey_weights
from ngd_timm.models.student import class_prior, create_student, open_student, same_prior, temperature_of
from ngd_timm.train.batches import (
    TrainingBatch,
    on_device,
    with_expected_places,
    with_teacher_logits,
    with_unlabelled,
    without_end,
)
from ngd_timm.train.fingerprint import fingerprint_of, teacher_config_hash, teacher_hash
from ngd_timm.train.gradient_share import GradientShare
from ngd_timm.train.task import NeuroGazeTask

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from ngd_timm.data import FaceBatches, FaceStream
    from ngd_timm.data.fer import LoadReport


logger = logging.getLogger("ngd_timm.train")


@dataclass
class Setup:
    """Everything a run trains with."""

    recipe: Recipe
    device: torch.device
    precision: torch.dtype | None  # of autocast; None is float32
    batches: FaceBatches | FaceStream
    unlabelled: FaceBatches | None  # rows that every batch takes beside its own
    valid: FaceBatches
    best_on: dict[str, FaceBatches]  # the sets that choose student_best/, by name
    task: NeuroGazeTask
    teacher: KDTeacher | TeacherEnsemble | None
    logit_cache: LogitCache | None
    gradient_share: GradientShare
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    grid: PrototypeGrid | None
    calibration: tuple[Tensor, Tensor] | None  # validation rows and their classes, to fit the temperature on
    fingerprint: dict[str, Any]

    def autocast(self) -> torch.autocast:
        """The precision that student and teacher compute in."""
        return torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision is not None)

    def training_batches(self, epoch: int, first: int) -> Iterator[TrainingBatch]:
        """An epoch's batches from number `first` on, with the teacher's logits where there is a teacher."""
        self.batches.set_epoch(epoch)
        batches: Iterator[TrainingBatch] = on_device(self.batches.batches(first), self.device)
        if self.teacher is None:
            return batches
        if self.unlabelled is not None:
            more = on_device(without_end(self.unlabelled, epoch * len(self.batches) + first), self.device)
            batches = with_unlabelled(batches, more)
        teacher = self.autocast()(self.teacher.forward)
        taught = with_teacher_logits(batches, teacher, self.logit_cache, epoch, first)
        return taught if self.unlabelled is None else with_expected_places(taught, self.recipe.data.classes)

    @property
    def step_size(self) -> int:
        """Images of a training step, of all processes."""
        return self.batches.batch_size + (0 if self.unlabelled is None else self.unlabelled.batch_size)


def prepare(recipe: Recipe) -> Setup:
    """Load and check data, grid, teacher and student of a recipe; nothing is written."""
    if (tracker := recipe.tracker) != "none" and importlib.util.find_spec(tracker) is None:
        raise InputError(f"tracker={tracker} needs the package {tracker}: pip install 'ngd-timm[{tracker}]'")
    torch.manual_seed(recipe.seed)
    device = open_training_device(recipe)
    _source(recipe)  # refused before the grid is opened
    grid = open_grid(recipe)
    model = build_model(recipe, grid)
    cfg, classes, teacher = model.student.pretrained_cfg, recipe.data.classes, None
    if recipe.teacher is not None and not recipe.teacher_sources:
        logger.warning(f"the teacher ({recipe.teacher}) has no part, since loss.kd is 0; to learn from it: loss.kd=0.3")
    if recipe.teacher_sources:
        teacher = open_teacher(recipe.teacher_sources, classes, cfg["mean"], cfg["std"])
    data = open_data(recipe, model, device)
    if recipe.student.logit_adjustment:
        classifier_bias(model.student)  # refused now, not after an epoch
    criterion = NeuroGazeLoss.from_config(
        recipe.loss,
        grid,
        classes=classes,
        epochs=recipe.optim.epochs,
        class_counts=data.class_counts,
        gather_distributed=True,
    )
    weights = criterion.class_weights if recipe.loss.ce > 0 else None  # cross-entropy alone is weighted
    drawn = class_prior(data.labels_drawn)
    learned = drawn if weights is None else class_prior(data.labels_drawn * weights.numpy())
    model.student.ngd_timm = {"prior": learned}
    if recipe.student.logit_adjustment and not same_prior(learned, drawn):
        logger.warning(
            "the classes are weighted, the logits adjusted by their counts: the student will record no prior"
        )
    calibration = calibration_rows(recipe, model, data.valid)
    precision = autocast_type(recipe.optim.amp, device, model.student)
    cache = None
    if teacher is not None and recipe.kd_cache is not None:
        key = _logits_key(recipe, teacher, data, precision, device)
        cache = LogitCache(recipe.kd_cache, key, len(data.batches))
    task = build_task(recipe, model, criterion, device)
    optimizer = build_optimizer(recipe.optim, model)
    scheduler = build_scheduler(recipe.optim, optimizer, len(data.batches))
    # the images that are scored last: decoding them is the slow check
    best_on = open_sets(recipe, recipe.best_on)
    in_order = partial(face_batches, model.student, workers=recipe.data.workers, part=(rank(), world_size()))
    valid, chosen_by = in_order(data.valid), {name: in_order(rows) for name, (rows, _) in best_on.items()}
    if recipe.optim.compile:
        task.compile()
    if world_size() > 1:  # all start from one student, and each process has random numbers of its own
        task.prepare_distributed([device.index] if device.type == "cuda" else None)
        torch.manual_seed(recipe.seed + rank() * 2**32)
    fingerprint = fingerprint_of(recipe, data.reports, grid, precision, device)
    if best_on:
        fingerprint["best_on"] = {name: report.sha256 for name, (_, report) in best_on.items()}
    fingerprint["labels_drawn"] = dict(zip(classes, data.labels_drawn.tolist(), strict=True))
    return Setup(
        recipe=recipe,
        device=device,
        precision=precision,
        batches=data.batches,
        unlabelled=data.unlabelled,
        valid=valid,
        best_on=chosen_by,
        task=task,
        teacher=None if teacher is None else teacher.to(device),
        logit_cache=cache,
        gradient_share=GradientShare(task, recipe.loss.proto_share, recipe.share_every),
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler(device.type, enabled=precision == torch.float16),
        grid=grid,
        calibration=calibration,
        fingerprint=fingerprint,
    )


def open_training_device(recipe: Recipe) -> torch.device:
    """The recipe's device, each process's own of several; recipes that can't be shared by them are refused."""
    device, count = open_device(recipe.device), world_size()
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device={recipe.device}: training is written for cpu and cuda; give one of them, or auto")
    if count > 1 and device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    if recipe.optim.batch_size < count:
        raise InputError(f"optim.batch_size={recipe.optim.batch_size} is of all processes; give at least {count}")
    if recipe.optim.sync_bn and count > 1 and device.type != "cuda":
        raise InputError("optim.sync_bn=true needs GPUs, PyTorch synchronises no batch norm on the CPU; leave it out")
    return device


def open_grid(recipe: Recipe) -> PrototypeGrid | None:
    """The grid that a recipe names, of the size that it requires, or the control made of it."""
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


def build_model(recipe: Recipe, grid: PrototypeGrid | None) -> DistillationWrapper:
    """The student with an embedding in the grid's space, its weights from `init` where there is one."""
    classes = recipe.data.classes
    model = wrap(create_student(recipe.student, len(classes)), grid=grid, projection=recipe.student.projection)
    if recipe.init is None:
        return model
    start, names = open_student(recipe.init)
    if names != classes:
        raise InputError(f"init={recipe.init} has the classes {', '.join(names)}, the recipe {', '.join(classes)}")
    divide_logits(start, 1 / temperature_of(start))
    weights = start.state_dict()
    try:
        if input_channels(start) > input_channels(model.student):
            weights = grey_weights(weights, {name: t.shape for name, t in model.student.state_dict().items()})
        model.student.load_state_dict(weights)
    except (RuntimeError, LookupError) as error:
        raise InputError(f"init={recipe.init} is another backbone than the recipe's ({one_line(error)})") from None
    return model


class TrainingData(NamedTuple):
    """Batches with and without labels, the validation set, and (classes,) counts: of the training set, of its draws."""

    batches: FaceBatches | FaceStream
    unlabelled: FaceBatches | None
    valid: Dataset
    class_counts: np.ndarray
    labels_drawn: np.ndarray
    reports: dict[str, Any]


def open_data(recipe: Recipe, model: DistillationWrapper, device: torch.device) -> TrainingData:
    """Load the splits `train` and `valid`; every training image is decoded once."""
    from ngd_timm.data import FaceBatches, FaceStream, class_counts, load_split, load_splits, load_stream
    from ngd_timm.data.batches import targets
    from ngd_timm.data.samplers import drawn_counts

    data, cfg, reports = recipe.data, model.student.pretrained_cfg, {}
    place, rows = _source(recipe)
    options: dict[str, Any] = {
        "image_size": recipe.student.image_size,
        "in_chans": recipe.student.in_chans,
        "mean": cfg["mean"],
        "std": cfg["std"],
        "batch_size": recipe.optim.batch_size,
        "augment": data.augment,
        "seed": recipe.seed,
        "ahead": device.type == "cuda",
        "device": device if device.type == "cuda" else CPU,  # other devices lack operators for it
    }
    unlabelled = None
    if data.unlabelled:
        unlabelled, reports["unlabelled"] = open_unlabelled(recipe, options)
    if data.streaming:
        training, tally = load_stream(*place, "train", **rows)
        valid, reports["valid"] = load_split(*place, "valid", download=False, **rows)
        stream = FaceStream(training, buffer=data.shuffle_buffer, part=(rank(), world_size()), **options)
        reports["train"] = stream.report(data.name, "train", tally)
        return TrainingData(stream, unlabelled, valid, stream.counts, stream.counts, reports)
    loaded = load_splits(*place, ["train", "valid"], **rows)
    (training, reports["train"]), (valid, reports["valid"]) = loaded["train"], loaded["valid"]
    options |= data.model_dump(include={"sampler", "epoch_repeats", "in_memory", "workers"})
    batches = FaceBatches(training, train=True, part=(rank(), world_size()), **options)
    labels_drawn = drawn_counts(targets(training), batches.labels, data.sampler, len(data.classes))
    return TrainingData(batches, unlabelled, valid, class_counts(training), labels_drawn, reports)


def open_unlabelled(recipe: Recipe, options: dict[str, Any]) -> tuple[FaceBatches, LoadReport]:
    """Batches of the images without labels, with the `options` of the labelled ones, and what was read."""
    from ngd_timm.data import FaceBatches
    from ngd_timm.data.unlabelled import load_unlabelled

    data, size = recipe.data, recipe.optim.batch_size
    images, report = load_unlabelled(data.name, data.unlabelled, data.classes)
    rows = round(data.unlabelled_share * size)
    if rows < world_size():
        raise InputError(
            f"data.unlabelled_share={data.unlabelled_share:g} of optim.batch_size={size} is {rows} images a step, for "
            f"{world_size()} process(es); raise it"
        )
    # a seed that no recipe can have, so that no labelled batch is augmented alike
    if len(images) < rows:
        raise InputError(
            f"data.unlabelled holds {len(images)} images, and a step takes {rows} of them "
            f"(data.unlabelled_share={data.unlabelled_share:g} of optim.batch_size={size}); lower the share or add some"
        )
    options = {**options, "batch_size": rows, "seed": recipe.seed + 2**31, "workers": data.workers}
    return FaceBatches(images, train=True, part=(rank(), world_size()), **options), report


def open_sets(recipe: Recipe, names: Iterable[str]) -> dict[str, tuple[Dataset, LoadReport]]:
    """Sets of `eval` with their reports, labelled as at the end of the run."""
    from ngd_timm.data import load_split, parse_spec

    loaded, options = {}, recipe.data.model_dump(include={"label_rule", "drop_duplicates", "classes"})
    for key in names:
        name, root, split, _ = parse_spec(f"{key}={recipe.eval[key]}")
        loaded[key] = load_split(name, root, split or "all", **options)
    return loaded


def calibration_rows(recipe: Recipe, model: DistillationWrapper, valid: Dataset) -> tuple[Tensor, Tensor] | None:
    """Rows of validation and their classes to fit a temperature on, by majority where there are votes."""
    from ngd_timm.data import load_split

    if not recipe.student.calibrate:
        return None
    if not can_calibrate(model.student):
        logger.warning(f"{recipe.student.backbone}: logits not linear in its classifier, so it stays uncalibrated")
        return None
    everything = torch.arange(len(valid)), torch.tensor(valid["label"][:])
    if recipe.data.label_rule == "majority" or "votes" not in valid.column_names:
        return everything
    place, rows = _source(recipe)
    # duplicates and the limit are those of `valid`, of which these rows are some
    rows |= {"label_rule": "majority", "drop_duplicates": False, "limit": None}
    try:
        majority, _ = load_split(*place, "valid", download=not recipe.data.streaming, **rows)
    except InputError as error:  # no image with a majority
        logger.warning(f"{error}; the temperature is fitted on the labels of the rule {recipe.data.label_rule}")
        return everything
    label_of = dict(zip(majority["source"][:], majority["label"][:], strict=True))
    kept = [(row, label_of[source]) for row, source in enumerate(valid["source"][:]) if source in label_of]
    if not kept:
        return everything
    row, label = torch.tensor(kept).T
    return row, label


def build_task(
    recipe: Recipe, model: DistillationWrapper, criterion: NeuroGazeLoss, device: torch.device
) -> NeuroGazeTask:
    """Model and loss as a task on the device, with a second copy of the weights where the recipe averages them."""
    optim = recipe.optim
    if optim.sync_bn and world_size() > 1:
        model.student = convert_sync_batchnorm(model.student)
    small_maps_as_products(model.to(device).to(memory_format=torch.channels_last))
    task = NeuroGazeTask(model, criterion, device=device, verbose=False)
    if optim.ema is not None:
        task.setup_ema(decay=optim.ema, use_warmup=True)
    elif optim.swa is not None:
        task.setup_ema(decay=0.0)  # set anew for every epoch: see `update_average`
    return task


def build_optimizer(optim: OptimConfig, model: DistillationWrapper) -> torch.optim.Optimizer:
    """timm's optimizer of that name, fused where torch has it."""
    if optim.opt in list_optimizers() and get_optimizer_info(optim.opt).second_order:
        raise InputError(f"optim.opt={optim.opt} needs second derivatives, which are not computed; take another")
    fused: dict[str, Any] = {"fused": True} if optim.opt in ("adam", "adamw", "sgd") else {}
    try:
        return create_optimizer_v2(model, opt=optim.opt, lr=optim.lr, weight_decay=optim.weight_decay, **fused)
    except (AssertionError, ValueError) as error:
        raise InputError(f"optim.opt={optim.opt}: {one_line(error)}") from None


def build_scheduler(optim: OptimConfig, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    """timm's learning-rate schedule, counted in updates, so that a warm-up may be a fraction of an epoch."""
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
    return scheduler


def data_hashes(recipe: Recipe) -> dict[str, str]:
    """The sha256 of the splits `train` and `valid` that a run of this recipe would write into its fingerprint."""
    from ngd_timm.data import FaceStream, load_split, load_splits, load_stream

    place, rows = _source(recipe)
    if recipe.data.streaming:
        valid = load_split(*place, "valid", download=False, **rows)[1].sha256
        training, _ = load_stream(*place, "train", **rows)
        stream = FaceStream(training, image_size=recipe.student.image_size, batch_size=recipe.optim.batch_size)
        return {"train": stream.sha256, "valid": valid}
    loaded = load_splits(*place, ["train", "valid"], **rows)
    return {split: loaded[split][1].sha256 for split in ("train", "valid")}


def _source(recipe: Recipe) -> tuple[tuple[str, str], dict[str, Any]]:
    """Name and root of the data set, and the rows to take of it."""
    data = recipe.data
    if data.root is None:
        raise InputError(f"{recipe.name}: data.root is not set; give data.root=FOLDER that holds {data.name}")
    return (data.name, data.root), data.model_dump(
        include={"label_rule", "drop_duplicates", "classes", "limit", "label_fraction"}
    )


def _logits_key(
    recipe: Recipe,
    teacher: KDTeacher | TeacherEnsemble,
    data: TrainingData,
    precision: torch.dtype | None,
    device: torch.device,
) -> dict[str, Any]:
    """Everything that a teacher's logits depend on: the teacher, its precision, and which images in what order."""
    batches = data.batches
    return {
        "teacher": teacher_hash(recipe),
        "teacher_adjustments": teacher.adjustments,
        "teacher_config": teacher_config_hash(recipe),
        "data": data.reports["train"].sha256,
        "unlabelled": data.unlabelled and [data.reports["unlabelled"].sha256, data.unlabelled.batch_size],
        "classes": recipe.data.classes,
        "augment": recipe.data.augment.model_dump(),
        "sampler": [recipe.data.sampler, recipe.data.epoch_repeats],
        "seed": recipe.seed,
        "batch_size": recipe.optim.batch_size,
        "images": [batches.image_size, batches.in_chans, batches.mean, batches.std],
        "pipeline": [recipe.data.streaming, recipe.data.shuffle_buffer, getattr(batches, "in_memory", None)],
        "part": [rank(), world_size()],
        "arithmetic": [str(precision), device.type, torch.__version__, __version__],
    }
