"""What a run logs while it trains: summary.csv, a line an epoch, a progress bar, a tracker of the user's."""

from __future__ import annotations

import csv
import io
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
from pydantic import Field

from ngd_timm.core.commands import without_folders
from ngd_timm.core.distributed import is_first
from ngd_timm.core.errors import InputError, one_line
from ngd_timm.core.files import write_json
from ngd_timm.core.recipe import Recipe, to_yaml
from ngd_timm.core.schema import Count, read_checked, record
from ngd_timm.evaluate.metrics import METRIC_NAMES, METRICS
from ngd_timm.losses import COMPONENTS

COLUMNS = (
    *("epoch", "lr", "loss", *COMPONENTS, "geo_ramp"),
    *(f"share_{name}" for name in COMPONENTS),
    *("lambda_proto_kd", "positive_variance", "grad_norm", "valid_acc", "valid_macro_f1", "valid_bacc"),
    *("temperature", "seconds", "images_per_second"),
)
_PRESENT = "_present_"
_TRACKED = record({"id": Annotated[str, Field(pattern=r"^[0-9a-f]+$")], "epochs": Count})
_LARGEST = 1e30  # of a value of summary.csv
Row: TypeAlias = dict[str, float | None]
"""Of summary.csv, by column; None where there is no number."""
_STATE = ("checkpoint", "checkpoint_ema", "optimizer", "scaler", "random", "epoch", "step", "rows", "means")


def present_column(name: str, metric: str) -> str:
    """The column of summary.csv with a metric, present-only, of a set of `best_on`."""
    return f"{name}{_PRESENT}{metric}"


def choice_score(recipe: Recipe, row: Mapping[str, Any]) -> float:
    """What `student_best/` is chosen by, of an epoch's row: on validation, or the mean over the sets of `best_on`."""
    columns = [present_column(name, recipe.best_metric) for name in recipe.best_on]
    columns = columns or [f"valid_{recipe.best_metric}"]
    return sum(row[column] for column in columns) / len(columns)


def choice_note(recipe: Recipe) -> str:
    """What a reader of scores on the sets of `best_on` has to know."""
    metric, sets = METRIC_NAMES[recipe.best_metric], " and ".join(recipe.best_on)
    return f"student_best/ was chosen by its present-only {metric} on {sets}, so its scores there are optimistic"


def choices_of_epoch(recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The rows of summary.csv that each way to choose an epoch would take, by the way's name in words.

    Args:
        recipe: Of the run; without `best_on` only validation can choose.
        rows: As `read_rows` gives them; of equal epochs the first is taken.

    Examples:
        >>> recipe = Recipe(name="mine", eval={"ckplus": "ck"}, best_on=("ckplus",))
        >>> rows = [{"epoch": e, "valid_acc": v, "ckplus_present_acc": c} for e, v, c in [(0, 70, 60), (1, 80, 50)]]
        >>> {way: row["epoch"] for way, row in choices_of_epoch(recipe, rows).items()}
        {'best by validation': 1, 'best by ckplus': 0, 'last epoch': 1}
    """
    ways = [(), *((name,) for name in recipe.best_on), *[recipe.best_on] * (len(recipe.best_on) > 1)]
    chosen = {}
    for way in ways:
        by = recipe.model_copy(update={"best_on": way})
        chosen[f"best by {' and '.join(way) or 'validation'}"] = max(rows, key=lambda row: choice_score(by, row))
    return {**chosen, "last epoch": rows[-1]}


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    parts = [f"{name} {row[name]:.4g}" for name in ("loss", *COMPONENTS) if row.get(name) is not None]
    shares = [f"{name} {row[f'share_{name}']:.2g}%" for name in COMPONENTS[1:] if row.get(f"share_{name}") is not None]
    valid = [f"{name} {row[f'valid_{metric}']:.2f}" for metric, name in METRIC_NAMES.items()]
    chosen_on = {
        name: [f"{title} {row[present_column(name, metric)]:.2f}" for metric, title in METRIC_NAMES.items()]
        for name in (column.removesuffix(f"{_PRESENT}acc") for column in row if column.endswith(f"{_PRESENT}acc"))
    }
    return (
        f"epoch {row['epoch'] + 1}/{epochs}  {'  '.join(parts)}"
        + (f"  gradient {' '.join(shares)}" if shares else "")
        + f"  valid {' '.join(valid)}"
        + "".join(f"  {name} present-only {' '.join(scores)}" for name, scores in chosen_on.items())
        + f"  {row['seconds']:.0f} s, {row['images_per_second']:.0f} images/s"
    )


@contextmanager
def tracking(recipe: Recipe, out: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that logs an epoch's row to the recipe's tracker, once; a resumed run goes on in the same one."""
    if recipe.tracker == "none" or not is_first():
        yield lambda row: None
        return
    file = out / "tracker.json"
    known: dict[str, Any] = {"id": secrets.token_hex(4), "epochs": 0}
    if file.is_file():
        known = read_checked(_TRACKED, file, fix="remove it, then the tracker begins anew")
    write_json(file, known)
    with redirect_stdout(sys.stderr):  # where a run prints
        log, close = _TRACKERS[recipe.tracker](out.resolve(), known["id"], known["epochs"], without_folders(recipe))

    def log_once(row: dict[str, Any]) -> None:
        if row["epoch"] >= known["epochs"]:
            log({name: value for name, value in row.items() if value is not None and name != "epoch"}, row["epoch"])
            known["epochs"] = row["epoch"] + 1
            write_json(file, known)

    try:
        yield log_once
    finally:
        with redirect_stdout(sys.stderr):
            close()


_Tracker: TypeAlias = tuple[Callable[[dict[str, Any], int], None], Callable[[], object]]
_PROJECT = "ngd-timm"


def _tensorboard(out: Path, identity: str, epochs: int, recipe: Recipe) -> _Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(out / "tensorboard"), purge_step=epochs)
    if epochs == 0:
        writer.add_text("recipe", to_yaml(recipe).replace("\n", "  \n"))

    def log(row: dict[str, Any], epoch: int) -> None:
        for name, value in row.items():
            writer.add_scalar(name, value, epoch)
        writer.flush()

    return log, writer.close


def _wandb(out: Path, identity: str, epochs: int, recipe: Recipe) -> _Tracker:
    import wandb

    options = {"id": identity, "name": out.name, "resume": "allow", "config": recipe.model_dump(mode="json")}
    project, folder = os.environ.get("WANDB_PROJECT", _PROJECT), os.environ.get("WANDB_DIR", str(out))
    try:
        run = wandb.init(project=project, dir=folder, **options)
    except wandb.Error as error:
        raise InputError(
            f"tracker=wandb: {one_line(error).rstrip('.')}; log in (wandb login) or set WANDB_MODE=offline, then go on "
            f"with: ngd train --resume {out}"
        ) from None
    return lambda row, epoch: run.log(row, step=epoch), run.finish


def _trackio(out: Path, identity: str, epochs: int, recipe: Recipe) -> _Tracker:
    import trackio

    name, config = f"{out.name}-{identity}", recipe.model_dump(mode="json")
    run = trackio.init(project=_PROJECT, name=name, resume="allow", config=config, embed=False)
    return lambda row, epoch: run.log(row, step=epoch), trackio.finish


_TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}


def summary_csv(rows: list[dict[str, Any]], best_on: Sequence[str] = ()) -> str:
    """All rows as the text of summary.csv."""
    text = io.StringIO()
    columns = [*COLUMNS, *(present_column(name, metric) for name in best_on for metric in METRICS)]
    writer = csv.DictWriter(text, columns, extrasaction="raise", restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


def read_rows(path: Path, needed: Sequence[str] = ()) -> list[Row]:
    """The rows of summary.csv, one an epoch; a column that is needed has a number in every row."""
    if not path.is_file():
        raise InputError(f"{path} is missing; it lies in the directory that the run was trained into")
    try:
        return parse_rows(path.read_text(encoding="utf-8"), str(path), needed)
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text; bring the file again, or continue the run") from None


def parse_rows(table: str, shown: str, needed: Sequence[str] = ()) -> list[Row]:
    """The rows of the text of a summary.csv, which messages call `shown`."""
    try:
        texts = list(csv.DictReader(io.StringIO(table, newline="")))
    except csv.Error as error:
        raise InputError(f"{shown} is not CSV ({error})") from None
    if not texts or "epoch" not in texts[0]:
        raise InputError(f"{shown} has no epochs; train the run first")
    rows: list[Row] = []
    for number, text in enumerate(texts):
        try:
            row = {name: float(cell) if cell else None for name, cell in text.items() if name in texts[0]}
            values = [row[name] for name in ("epoch", "seconds", *needed)]
            whole = None not in text and None not in text.values() and None not in values and values[0] == number
            if not whole or not all(abs(value or 0) <= _LARGEST for value in row.values()):
                raise ValueError
        except (ValueError, TypeError, KeyError):
            raise InputError(
                f"{shown}: row {number + 1} is not whole; bring the file again, or continue the run"
            ) from None
        rows.append(row)
    return rows


def read_state(file: Path) -> dict[str, Any]:
    """A checkpoint's content, read without pickled code; where it is damaged or lacks something, `InputError`."""
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        missing = [key for key in _STATE if key not in state]
        missing += [key for key in ("epoch", "step") if type(state.get(key)) is not int]
    except Exception as error:  # torch raises a dozen kinds for a damaged file
        raise InputError(f"{file} is not a readable checkpoint ({type(error).__name__})") from None
    if missing:
        raise InputError(f"{file} is not a whole checkpoint (it lacks {', '.join(missing)})")
    return state
