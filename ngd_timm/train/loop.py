"""One training run: a recipe in, a run directory out. `train` reads top to bottom."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.utils import distribute_bn, unwrap_model
from torch import nn

from ngd_timm.core.distributed import agree, is_first, join, world_size
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import read_json, remove_leftovers, write_json, write_text
from ngd_timm.core.lock import is_unused, locked
from ngd_timm.core.recipe import Recipe, load_recipe, to_yaml
from ngd_timm.evaluate.metrics import fer_metrics
from ngd_timm.evaluate.predictions import Predictions, predict, prediction_file, write_predictions
from ngd_timm.evaluate.run_log import COLUMNS, epoch_line, summary_csv, with_bar, write_tensorboard
from ngd_timm.evaluate.student import check_specs, evaluate, summary_line
from ngd_timm.losses import COMPONENTS
from ngd_timm.models.calibration import calibrated, fit_temperature, temperature_line
from ngd_timm.models.kd_cache import CachedTeacher
from ngd_timm.models.logit_adjustment import adjusted
from ngd_timm.models.ngd_models import DistillationWrapper
from ngd_timm.models.student import rounded, save_student, weights_sha256
from ngd_timm.train.checkpoint import Progress, StateFiles, weights_are_finite
from ngd_timm.train.interruption import Interruption, Stopped
from ngd_timm.train.setup import Setup, pinned, prepare
from ngd_timm.train.task import NeuroGazeTask

__all__ = ["COLUMNS", "prepare", "resume", "train"]

logger = logging.getLogger("ngd_timm.train")

_LOOK_EVERY = 50


def train(recipe: Recipe, command: Sequence[str] | None = None) -> Path:
    """Run a recipe to its end; started by torchrun, with several processes that share every batch.

    Args:
        recipe: Validated, see `load_recipe`.
        command: The command line that started the run, for its fingerprint.

    Returns:
        The run directory: recipe.yaml, fingerprint.json, summary.csv, student/ (last epoch), student_best/ (best
        on validation by `best_metric`), last/ (checkpoint), predictions/ (logits and embeddings of validation and of
        `eval`), metrics.json, and lock (empty; held while a process trains the run). `ngd_timm.report` writes its page.

    Raises:
        InputError: Anything in the recipe or the data that can't be used; nothing is written then. A loss that is not
            finite; the last good state is kept then.
        Stopped: After SIGINT or SIGTERM, with the state saved.

    Example:
        See `recipes/` and the README: `train(load_recipe(Recipe, "b0_ce", ["data.root=ferplus/"]))`.
    """
    join()
    out = Path(recipe.out or f"runs/{recipe.name}-{recipe.seed}")
    _refuse_full(out)
    check_specs([f"{name}={root}" for name, root in recipe.eval.items()])
    setup = prepare(pinned(recipe))
    setup.fingerprint["command"] = command
    agree()  # all of them are ready, or nothing is written
    with _alone(out):
        _refuse_full(out)  # another may have begun it since
        _write_beginning(setup, out)
        return _run(setup, out, Progress())


def resume(run: str | Path) -> Path:
    """Continue a run from its last state, mid-epoch too, as if it had not stopped: the same student, to the last bit.

    Raises:
        InputError: No resume state there, or code, data, grid or the number of processes are no longer those that the
            run began with. Or another process trains it.
        Stopped: As `train`.
    """
    join()
    out = Path(run)
    if not (out / "recipe.yaml").is_file():
        raise InputError(f"{out} is not a run that can be continued: it has no recipe.yaml; start a new one")
    with _alone(out):
        setup = prepare(load_recipe(Recipe, out / "recipe.yaml"))
        states = StateFiles(out / "last", setup.recipe.save_every)
        if (out / "fingerprint.json").is_file():
            _refuse_changes(setup, out)
        elif states.epoch_file.exists() or states.step_file.exists():
            raise InputError(f"{out} is not a run that can be continued: it has no fingerprint.json; start a new one")
        progress = states.load(setup)
        agree()  # all have read before one writes
        _write_beginning(setup, out)
        if progress.epoch or progress.step:
            within = f", batch {progress.step} of {len(setup.batches)} of the next" if progress.step else ""
            logger.info(f"resuming {out} after epoch {progress.epoch} of {setup.recipe.optim.epochs}{within}")
        return _run(setup, out, progress)


def _alone(out: Path) -> contextlib.AbstractContextManager[None]:
    """Of torchrun's processes the first one writes, so it alone holds the lock."""
    return locked(out) if is_first() else contextlib.nullcontext()


def _refuse_full(out: Path) -> None:
    if is_first() and not is_unused(out):
        raise InputError(f"{out} is not empty; choose another out=DIR, or continue it with: {_command(out)}")


def _run(setup: Setup, out: Path, progress: Progress) -> Path:
    """Train and score; after a signal save a checkpoint and say how to continue."""
    states = StateFiles(out / "last", setup.recipe.save_every, (progress.epoch, progress.step))
    with Interruption() as stop:
        try:
            _train_and_score(setup, out, progress, states, stop)
        except Stopped as stopped:
            if progress.step:
                states.save(setup, progress)
                agree()  # torchrun ends all as soon as one is gone
            where = f"{out} stopped after epoch {progress.epoch}, batch {progress.step} of the next"
            raise Stopped(stopped.number, f"{where}; continue with: {_command(out)}") from None
    return out


def _train_and_score(setup: Setup, out: Path, progress: Progress, states: StateFiles, stop: Interruption) -> None:
    recipe, predicted = setup.recipe, None
    if progress.epoch and not progress.step:
        _publish(setup, out, progress)  # the state is written first; what follows from it may be missing
    while progress.epoch < recipe.optim.epochs:
        began = time.perf_counter() - progress.seconds
        row = _train_epoch(setup, progress, states, stop)
        predicted = _predict(setup, stop)
        figures = fer_metrics(predicted.logits, predicted.target, recipe.data.classes, resamples=0)["8way"]
        row |= {f"valid_{name}": value for name, value in figures.items()}
        if setup.calibration is not None:
            rows, classes = setup.calibration
            row["temperature"] = fit_temperature(predicted.logits[rows], classes)
        row["seconds"] = time.perf_counter() - began
        progress.finish_epoch(row)
        states.save(setup, progress)
        _publish(setup, out, progress)
        if is_first():
            logger.info(epoch_line(row, recipe.optim.epochs))

    temperature = progress.rows[-1].get("temperature")
    if predicted is None or temperature is not None:
        # a run that stopped between its last epoch and its figures has only the weights; what is saved is scored
        predicted = _predict(setup, stop, temperature)
    if is_first():
        _score(setup, out, predicted, temperature, stop)


def _train_epoch(setup: Setup, progress: Progress, states: StateFiles, stop: Interruption) -> dict[str, Any]:
    """The rest of a pass over the training set. Returns the epoch's row of summary.csv, validation left out."""
    recipe, task, optimizer = setup.recipe, setup.task, setup.optimizer
    began, epoch, steps = time.perf_counter() - progress.seconds, progress.epoch, len(setup.batches)
    watched = [*COMPONENTS, "loss"] if setup.scaler.is_enabled() else [*COMPONENTS, "loss", "grad_norm"]
    look_every = 1 if setup.device.type == "cpu" else _LOOK_EVERY
    task.set_epoch(epoch)
    task.train()
    setup.batches.set_epoch(epoch)
    rest = setup.batches.batches(progress.step)
    for batch in with_bar(rest, steps - progress.step, f"epoch {epoch + 1}/{recipe.optim.epochs}"):
        update = epoch * steps + progress.step
        batch = batch.to(setup.device)
        images = batch.images.to(memory_format=torch.channels_last)
        target, va = batch.target, batch.valence_arousal
        if isinstance(task.teacher, CachedTeacher):
            task.teacher.at(epoch, progress.step)
        setup.scheduler.step_update(update)
        with torch.autocast(setup.device.type, dtype=setup.autocast, enabled=setup.autocast is not None):
            shares = setup.gradient_share.measure(update, images, target, va)
            result = task(images, target, va)
        if shares:
            progress.means.add({f"share_{name}": torch.tensor(share) for name, share in shares.items()})
        optimizer.zero_grad(set_to_none=True)
        setup.scaler.scale(result["loss"]).backward()
        setup.scaler.unscale_(optimizer)
        limit = recipe.optim.clip_grad or math.inf
        norm = nn.utils.clip_grad_norm_(task.get_clip_parameters(), limit)
        setup.scaler.step(optimizer)
        setup.scaler.update()
        task.update_ema(update)
        result["grad_norm"] = norm
        del result["output"]
        progress.means.add(result, setup.batches.batch_size, progress.step, [n for n in watched if n in result])
        progress.step += 1
        signalled, due = agree(stop.number, int(states.due()))
        last = progress.step == steps
        if signalled or due or last or progress.step % look_every == 0:
            _refuse_nonfinite(setup, progress, states, weights=bool(signalled or due or last))
        progress.seconds = time.perf_counter() - began
        if signalled:
            raise Stopped(signalled)
        if due and not last:
            states.save(setup, progress)
    criterion = task.criterion
    return {
        "epoch": epoch,
        "lr": optimizer.param_groups[0]["lr"],
        **progress.means.means(),
        "geo_ramp": None if criterion.d_geo is None else criterion.ramp_at(epoch),
        "lambda_proto_kd": None if criterion.proto_kd is None else criterion.weights["proto_kd"],
        "images_per_second": progress.means.count / (time.perf_counter() - began),
    }


def _refuse_nonfinite(setup: Setup, progress: Progress, states: StateFiles, weights: bool) -> None:
    found = progress.means.first_not_finite()
    if found is None and (not weights or weights_are_finite(setup)):
        return
    step, name = found or (progress.step - 1, "a weight")
    epoch, batch = states.kept
    raise InputError(
        f"{name} became NaN or infinite in epoch {progress.epoch + 1}, batch {step + 1}; the last good state is kept: "
        f"after epoch {epoch}, batch {batch} of the next. Lower optim.lr, or set optim.amp=off"
    )


def _predict(setup: Setup, stop: Interruption, temperature: float | None = None) -> Predictions:
    """Answers to the validation set, each process to its share of it; without a temperature they are uncalibrated."""
    model = _model(setup.task)
    if world_size() > 1:
        # batch norm has seen other pictures on each; as at every step the first one's statistics count
        distribute_bn(model, world_size(), reduce=False)
    with (
        adjusted(model.student, setup.shift),
        calibrated(model.student, temperature),
        rounded(model.student, setup.recipe.student.weights),
    ):
        # several processes have different numbers of batches, so they stop together at the next step
        between_batches = stop.check if world_size() == 1 else None
        return predict(model, setup.valid, setup.device, setup.recipe.eval_flip, between_batches)


def _write_beginning(setup: Setup, out: Path) -> None:
    """The fingerprint comes last: with it a run has begun, without it all of this is written again."""
    if not is_first():
        return
    for folder in (out, out / "last", out / "predictions"):
        remove_leftovers(folder)
    if (out / "fingerprint.json").is_file():
        return
    write_text(out / "recipe.yaml", to_yaml(setup.recipe))
    if setup.grid is not None:
        setup.grid.save(out / "grid.safetensors")
    write_json(out / "fingerprint.json", setup.fingerprint)


def _publish(setup: Setup, out: Path, progress: Progress) -> None:
    """What follows from the state of a finished epoch: students, summary.csv, TensorBoard."""
    if not is_first():
        return
    recipe, student = setup.recipe, _model(setup.task).student
    *earlier, latest = [row[f"valid_{recipe.best_metric}"] for row in progress.rows]
    with adjusted(student, setup.shift), calibrated(student, progress.rows[-1].get("temperature")):
        save_student(student, out / "student", recipe.data.classes, recipe.student.weights)
        if latest > max(earlier, default=-math.inf):
            save_student(student, out / "student_best", recipe.data.classes, recipe.student.weights)
    write_text(out / "summary.csv", summary_csv(progress.rows))
    if recipe.tensorboard:
        write_tensorboard(out / "tensorboard", progress.rows[-1])


def _score(setup: Setup, out: Path, predicted: Predictions, temperature: float | None, stop: Interruption) -> None:
    """Figures and report of a run that has ended."""
    recipe, key = setup.recipe, f"{setup.recipe.data.name}:valid"
    data_sha256 = setup.fingerprint["data"]["valid"]["sha256"]
    predicted = predicted.described(recipe.data.classes, recipe.data.label_rule, data_sha256)
    write_predictions(prediction_file(out, key), predicted)
    notes = {"drop_duplicates": recipe.data.drop_duplicates, "student_temperature": temperature or 1.0}
    metrics = {key: predicted.entry(**notes, student_sha256=weights_sha256(out / "student"))}
    if temperature is not None and setup.calibration is not None:
        logger.info(temperature_line(temperature, len(setup.calibration[0])))
    if recipe.eval:
        # of a run that is finished a second time; its predictions are made anew
        (out / "metrics.json").unlink(missing_ok=True)
        specs = [f"{name}={root}" for name, root in recipe.eval.items()]
        metrics |= evaluate(out, specs, predictions=True, between_batches=stop.check)
    stop.check()
    for name, figures in metrics.items():
        logger.info(summary_line(name, figures))
    write_json(out / "metrics.json", metrics)


def _refuse_changes(setup: Setup, out: Path) -> None:
    before = read_json(out / "fingerprint.json", str(out))
    processes = before.get("processes", 1)
    if processes != world_size():
        raise InputError(
            f"{out} was begun by {processes} process(es), now there are {world_size()}, and each has random numbers of "
            f"its own; continue it with: {_command(out, processes)}"
        )
    precision = setup.fingerprint["precision"]
    if before.get("precision", precision) != precision:
        raise InputError(
            f"{out} was begun in {before['precision']}, here it would go on in {precision} (optim.amp goes by the "
            "machine); continue it where it was begun, or start a new run"
        )
    for key in ("recipe", "data", "grid", "teacher", "teacher_config", "init"):
        if before.get(key) != json.loads(json.dumps(setup.fingerprint.get(key))):
            what = "the teacher's config.json" if key == "teacher_config" else key
            raise InputError(f"{out}: {what} is not what the run began with (see fingerprint.json); start a new run")


def _command(out: Path, processes: int | None = None) -> str:
    count = processes or world_size()
    several = f"torchrun --nproc-per-node {count} -m ngd_timm.cli" if count > 1 else "ngd"
    return f"{several} train --resume {out}"


def _model(task: NeuroGazeTask) -> DistillationWrapper:
    """What is scored and saved: the moving average where there is one."""
    model: DistillationWrapper = unwrap_model(task.get_trainable_module(ema=task.has_ema()))
    return model
