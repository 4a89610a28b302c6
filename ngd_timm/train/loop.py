"""One training run: a recipe in, a run directory out. `train` reads top to bottom."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm.utils import distribute_bn, unwrap_model
from torch import nn

from ngd_timm.core.distributed import agree, is_first, join, world_size
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import remove_leftovers, write_json, write_text
from ngd_timm.core.images import check_images
from ngd_timm.core.lock import is_unused, locked
from ngd_timm.core.progress import with_bar
from ngd_timm.core.recipe import Recipe, load_recipe, to_yaml
from ngd_timm.evaluate.metrics import fer_metrics
from ngd_timm.evaluate.predictions import Predictions, predict, prediction_file, write_predictions
from ngd_timm.evaluate.run_log import (
    choice_note,
    choice_score,
    epoch_line,
    present_column,
    summary_csv,
    tracking,
)
from ngd_timm.evaluate.student import check_specs, evaluate, hub_note, summary_line
from ngd_timm.losses import COMPONENTS
from ngd_timm.models.calibration import divide_logits, fit_temperature, temperature_line
from ngd_timm.models.logit_adjustment import adjust_logits
from ngd_timm.models.ngd_models import DistillationWrapper
from ngd_timm.models.student import round_matrices, save_student, weights_sha256
from ngd_timm.train.averaging import renew_batch_norm, update_average
from ngd_timm.train.checkpoint import Checkpoints, Progress, weights_are_finite
from ngd_timm.train.fingerprint import pinned, refuse_changes, resume_command
from ngd_timm.train.interruption import Interruption, Stopped
from ngd_timm.train.setup import Setup, open_sets, prepare

if TYPE_CHECKING:
    from ngd_timm.data import FaceBatches

logger = logging.getLogger("ngd_timm.train")

_CHECK_EVERY = 50  # steps on a GPU, which a look at a loss makes wait


def train(recipe: Recipe, command: Sequence[str] | None = None) -> Path:
    """Run a recipe to its end; several processes that torchrun started share every batch."""
    join()
    out = Path(recipe.out or f"runs/{recipe.name}-{recipe.seed}")
    _require_unused(out)
    _refuse_own_validation(recipe)
    _refuse_unreadable_sets(recipe)
    setup = prepare(pinned(recipe))
    setup.fingerprint["command"] = command
    agree()  # all processes are ready, or nothing is written
    with _lock(out):
        _require_unused(out)  # another process may have begun it since
        _begin(setup, out)
        return _run(setup, out, Progress())


def resume(run: str | Path, command: Sequence[str] | None = None) -> Path:
    """Continue a run from its last checkpoint, mid-epoch too; it ends in the same student, to the last bit.

    The command is noted where the run had not got as far as to note its own.
    """
    join()
    out = Path(run)
    if not (out / "recipe.yaml").is_file():
        raise InputError(f"{out} is not a run that can be continued: it has no recipe.yaml; start a new one")
    with _lock(out):
        recipe = load_recipe(Recipe, out / "recipe.yaml")
        _refuse_unreadable_sets(recipe)
        setup = prepare(recipe)
        checkpoints = Checkpoints(out / "last", setup.recipe.save_every)
        if (out / "fingerprint.json").is_file():
            refuse_changes(out, setup.fingerprint)
        elif checkpoints.epoch_file.exists() or checkpoints.step_file.exists():
            raise InputError(f"{out} is not a run that can be continued: it has no fingerprint.json; start a new one")
        setup.fingerprint["command"] = command
        progress = checkpoints.load(setup)
        agree()  # all processes have read before one writes
        _begin(setup, out)
        if is_first() and not progress.step:  # a kill after an epoch's checkpoint leaves the one within the epoch
            checkpoints.step_file.unlink(missing_ok=True)
        if progress.epoch or progress.step:
            within = f", batch {progress.step} of {len(setup.batches)} of the next" if progress.step else ""
            logger.info(f"resuming {out} after epoch {progress.epoch} of {setup.recipe.optim.epochs}{within}")
        return _run(setup, out, progress)


def _run(setup: Setup, out: Path, progress: Progress) -> Path:
    """Train and score; after a signal save a checkpoint and report the command that continues the run."""
    checkpoints = Checkpoints(out / "last", setup.recipe.save_every, (progress.epoch, progress.step))
    with Interruption() as stop, tracking(setup.recipe, out) as track:
        try:
            _train_and_score(setup, out, progress, checkpoints, stop, track)
        except Stopped as stopped:
            if progress.step:
                checkpoints.save(setup, progress)
                agree()  # torchrun ends all processes as soon as one is gone
            where = f"{out} stopped after epoch {progress.epoch}, batch {progress.step} of the next"
            raise Stopped(stopped.number, f"{where}; continue with: {resume_command(out)}") from None
    return out


def _train_and_score(
    setup: Setup,
    out: Path,
    progress: Progress,
    checkpoints: Checkpoints,
    stop: Interruption,
    track: Callable[[dict[str, Any]], None],
) -> None:
    recipe, predictions = setup.recipe, None
    if progress.epoch and not progress.step:
        _write_epoch(setup, out, progress)  # a kill after the checkpoint may have left it out
        track(progress.rows[-1])
    while progress.epoch < recipe.optim.epochs:
        began = time.perf_counter() - progress.seconds
        row = _train_epoch(setup, progress, checkpoints, stop)
        renew_batch_norm(setup, progress.epoch)
        predictions = _predict(setup, setup.valid, stop)
        row |= {f"valid_{name}": value for name, value in _scores(setup, predictions, "8way").items()}
        for key, batches in setup.best_on.items():
            scores = _scores(setup, _predict(setup, batches, stop), "present")
            row |= {present_column(key, name): value for name, value in scores.items()}
        if setup.calibration is not None:
            rows, classes = setup.calibration
            row["temperature"] = fit_temperature(predictions.logits[rows], classes)
        row["seconds"] = time.perf_counter() - began
        progress.finish_epoch(row)
        checkpoints.save(setup, progress)
        _write_epoch(setup, out, progress)
        track(row)
        if is_first():
            logger.info(epoch_line(row, recipe.optim.epochs))

    temperature = progress.rows[-1].get("temperature")
    if predictions is None or temperature is not None:
        # of the student as it is saved
        predictions = _predict(setup, setup.valid, stop, temperature)
    if is_first():
        _write_metrics(setup, out, predictions, temperature, stop)


def _train_epoch(setup: Setup, progress: Progress, checkpoints: Checkpoints, stop: Interruption) -> dict[str, Any]:
    """The rest of a pass over the training set. Returns the epoch's row of summary.csv, validation left out."""
    task, optimizer, scaler = setup.task, setup.optimizer, setup.scaler
    epoch, steps, optim = progress.epoch, len(setup.batches), setup.recipe.optim
    began = time.perf_counter() - progress.seconds
    task.set_epoch(epoch)
    task.train()
    batches = setup.training_batches(epoch, progress.step)
    for batch in with_bar(batches, steps - progress.step, f"epoch {epoch + 1}/{optim.epochs}"):
        update = epoch * steps + progress.step
        setup.scheduler.step_update(update)
        with setup.autocast():
            shares = setup.gradient_share.measure(update, batch)
            losses = task(*batch)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(losses["loss"]).backward()
        scaler.unscale_(optimizer)
        losses["grad_norm"] = nn.utils.clip_grad_norm_(task.get_clip_parameters(), optim.clip_grad or math.inf)
        scaler.step(optimizer)
        scaler.update()
        update_average(setup, update)
        del losses["output"]
        progress.finish_step(losses, shares, setup.step_size)
        _after_step(setup, progress, checkpoints, stop, began)
    criterion = task.criterion
    return {
        "epoch": epoch,
        "lr": optimizer.param_groups[0]["lr"],
        **progress.means.means(),
        "geo_ramp": None if criterion.d_geo is None else criterion.ramp_at(epoch),
        "lambda_proto_kd": None if criterion.proto_kd is None else criterion.weights["proto_kd"],
        "images_per_second": progress.means.count / (time.perf_counter() - began),
    }


def _after_step(setup: Setup, progress: Progress, checkpoints: Checkpoints, stop: Interruption, began: float) -> None:
    """Refuse values that are not finite, stop on a signal, write a checkpoint where one is due."""
    signalled, due = agree(stop.number, int(checkpoints.due()))
    last = progress.step == len(setup.batches)
    may_be_saved = bool(signalled or due or last)
    if may_be_saved or setup.device.type == "cpu" or progress.step % _CHECK_EVERY == 0:
        _refuse_nonfinite(setup, progress, checkpoints, may_be_saved)
    progress.seconds = time.perf_counter() - began
    if signalled:
        raise Stopped(signalled)
    if due and not last:
        checkpoints.save(setup, progress)


def _refuse_nonfinite(setup: Setup, progress: Progress, checkpoints: Checkpoints, weights: bool) -> None:
    # the fp16 scaler skips a step whose gradient overflows
    watched = (*COMPONENTS, "loss") if setup.scaler.is_enabled() else (*COMPONENTS, "loss", "grad_norm")
    found = progress.means.first_not_finite(watched)
    if found is None and (not weights or weights_are_finite(setup)):
        return
    step, name = found or (progress.step - 1, "a weight")
    epoch, batch = checkpoints.kept
    raise InputError(
        f"{name} became NaN or infinite in epoch {progress.epoch + 1}, batch {step + 1}; the last good checkpoint is "
        f"kept: after epoch {epoch}, batch {batch} of the next. Lower optim.lr, or set optim.amp=off"
    )


def _predict(setup: Setup, batches: FaceBatches, stop: Interruption, temperature: float | None = None) -> Predictions:
    """Predictions of the student as it would be saved, uncalibrated without a temperature; processes share the set."""
    if world_size() > 1:
        # each process's batch norm has seen other images; the first one's statistics count, as at every step
        distribute_bn(_trained_model(setup), world_size(), reduce=False)
    # several processes have different numbers of batches, so they stop together at the next step
    between_batches = stop.check if world_size() == 1 else None
    model = _deployed_copy(setup, temperature)
    return predict(model, batches, setup.device, setup.recipe.eval_flip, between_batches)


def _scores(setup: Setup, predictions: Predictions, protocol: str) -> dict[str, float]:
    classes = setup.recipe.data.classes
    scores: dict[str, float] = fer_metrics(predictions.logits, predictions.target, classes, resamples=0)[protocol]
    return scores


def _begin(setup: Setup, out: Path) -> None:
    """Write recipe and grid, and last the fingerprint: a run without one has not begun, and all is written again."""
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


def _write_epoch(setup: Setup, out: Path, progress: Progress) -> None:
    """Write what follows from the checkpoint of a finished epoch: students, summary.csv."""
    if not is_first():
        return
    recipe, student = setup.recipe, _deployed_copy(setup, progress.rows[-1].get("temperature")).student
    *earlier, latest = [choice_score(recipe, row) for row in progress.rows]
    save_student(student, out / "student", recipe.data.classes, recipe.student.weights)
    if latest > max(earlier, default=-math.inf):
        save_student(student, out / "student_best", recipe.data.classes, recipe.student.weights)
    write_text(out / "summary.csv", summary_csv(progress.rows, recipe.best_on))


def _write_metrics(
    setup: Setup, out: Path, predictions: Predictions, temperature: float | None, stop: Interruption
) -> None:
    """Score validation and the sets of `eval`, and write predictions and metrics.json."""
    recipe, key = setup.recipe, f"{setup.recipe.data.name}:valid"
    valid = setup.fingerprint["data"]["valid"]
    predictions = predictions.described(recipe.data.classes, valid["labels"], valid["sha256"])
    notes: dict[str, Any] = {"drop_duplicates": recipe.data.drop_duplicates, "student_temperature": temperature or 1.0}
    notes |= {"student_sha256": weights_sha256(out / "student"), **hub_note(valid.get("dataset_id"))}
    metrics = {key: predictions.entry(**notes)}
    if temperature is not None and setup.calibration is not None:
        logger.info(temperature_line(temperature, len(setup.calibration[0])))
    if recipe.eval:
        sets = _eval_specs(recipe)
        metrics |= evaluate(out, sets, predictions=True, renew=True, device=recipe.device, between_batches=stop.check)
    stop.check()
    for name, entry in metrics.items():
        logger.info(summary_line(name, entry))
    if recipe.best_on:
        logger.info(choice_note(recipe))
    write_predictions(prediction_file(out, key), predictions)
    write_json(out / "metrics.json", metrics)


def _eval_specs(recipe: Recipe) -> list[str]:
    return [f"{name}={root}" for name, root in recipe.eval.items()]


def _refuse_unreadable_sets(recipe: Recipe) -> None:
    """Refuse what `eval` can't read before the training, not after it."""
    check_specs(_eval_specs(recipe))
    # `prepare` opens those of best_on
    for rows, _ in open_sets(recipe, [name for name in recipe.eval if name not in recipe.best_on]).values():
        check_images(rows)


def _refuse_own_validation(recipe: Recipe) -> None:
    """A set of `eval` under the name of the run's validation set would take the place of its scores."""
    from ngd_timm.data import parse_spec

    for spec in _eval_specs(recipe):
        name, root, _, key = parse_spec(spec)
        if key == f"{recipe.data.name}:valid":
            raise InputError(
                f"eval: {key} is the run's own validation set, which is scored anyway; leave it out, or give another "
                f"set a title: 'eval={{mine:{name}: {root}:valid}}'"
            )


def _lock(out: Path) -> contextlib.AbstractContextManager[None]:
    """The run's lock, which the only process that writes holds: the first."""
    return locked(out) if is_first() else contextlib.nullcontext()


def _require_unused(out: Path) -> None:
    if is_first() and not is_unused(out):
        raise InputError(f"{out} is not empty; choose another out=DIR, or continue it with: {resume_command(out)}")


def _trained_model(setup: Setup) -> DistillationWrapper:
    """The trained model, or its moving average where there is one."""
    task = setup.task
    model: DistillationWrapper = unwrap_model(task.get_trainable_module(ema=task.has_ema()))
    return model


def _deployed_copy(setup: Setup, temperature: float | None) -> DistillationWrapper:
    """A copy of the trained model as it is scored and saved: adjusted, calibrated and rounded."""
    model = copy.deepcopy(_trained_model(setup))
    if tau := setup.recipe.student.logit_adjustment:
        adjust_logits(model.student, list(setup.fingerprint["labels_drawn"].values()), tau)
    if temperature is not None:
        divide_logits(model.student, temperature)
    round_matrices(model.student, setup.recipe.student.weights)
    return model
