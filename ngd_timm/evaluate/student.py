"""Evaluation of a student on any number of data sets, in both protocols."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ngd_timm.core.affect import ANCHORS, AXES, anchors
from ngd_timm.core.devices import open_device
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import check_place, write_json
from ngd_timm.core.hub import hub_id, pin
from ngd_timm.core.paths import last_part
from ngd_timm.core.recipe import DataConfig, Recipe, load_recipe
from ngd_timm.evaluate.metrics import (
    METRIC_NAMES,
    paired_difference,
    protocol_name,
    rating_scores,
    require_temperature,
    scoring_name,
    shown_protocols,
)
from ngd_timm.evaluate.predictions import Predictions, predict, prediction_file, write_predictions
from ngd_timm.evaluate.run_log import choice_note, read_rows, read_state
from ngd_timm.evaluate.schema import read_entries
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.losses.proto_kd import ProtoKDLoss
from ngd_timm.models.logit_adjustment import prior_shift
from ngd_timm.models.ngd_models import DistillationWrapper, TimmModel
from ngd_timm.models.student import notes_of, read_student, run_folder, student_files, temperature_of, weights_sha256

logger = logging.getLogger("ngd_timm.evaluate")


def face_batches(
    model: TimmModel, dataset: Any, batch_size: int = 256, workers: int = 0, part: tuple[int, int] = (0, 1)
) -> Any:
    """Batches in order, without augmentation, prepared as the model's `pretrained_cfg` requires."""
    from ngd_timm.core.images import InputTransform
    from ngd_timm.data import FaceBatches

    transform = InputTransform(model.pretrained_cfg)
    return FaceBatches(
        dataset,
        image_size=transform.size[-1],
        in_chans=transform.size[0],
        mean=transform.mean,
        std=transform.std,
        batch_size=batch_size,
        train=False,
        transform=transform,
        workers=workers,
        part=part,
    )


def evaluate(
    source: str | Path,
    specs: Sequence[str],
    out: str | Path | None = None,
    *,
    temperature: float = 1.0,
    predictions: bool = False,
    renew: bool = False,
    label_rule: str | None = None,
    drop_duplicates: bool | None = None,
    flip: bool | None = None,
    prior: str | Mapping[str, float] = "training",
    against: str | Path | None = None,
    device: str = "auto",
    between_batches: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Score a saved student on data sets `name=root[:split]`, by default as its recipe says; in metrics.json's form.

    `prior` is the class prior of its predictions, as in `Predictor`. `against`, another student, is scored in the same
    way on the same images; "against" of an entry is then the `paired_difference` to it. `predictions` are kept in a
    run's folder; those behind its metrics.json are written anew only with `renew`.
    """
    from ngd_timm.data import load_split, parse_spec

    if not specs:
        raise InputError("nothing to evaluate on; give --data name=root[:split]")
    require_temperature(temperature)
    if out is not None:
        check_place(out)
    source, bare, classes, run, recipe, sha256 = open_scored(source)
    model: DistillationWrapper | TimmModel = bare
    parsed = [parse_spec(spec) for spec in specs]
    keys = [key for *_, key in parsed]
    check_specs(specs)
    if recipe and Path(source).name == "student_best" and {name for name, *_ in parsed} & set(recipe.best_on):
        logger.warning(f"{source}: {choice_note(recipe)}")
    if predictions:
        if prior != "training":
            raise InputError("predictions are kept at the training prior; leave --predictions or --prior out")
        if recipe is None or run != Path(source).resolve():
            raise InputError(f"{source} is not a run directory, so it has no place for predictions; leave them out")
        if not renew:
            _refuse_kept(Path(source), keys)
        model = _wrapped(bare, Path(source))
    shift = prior_shift(bare, classes, prior)
    opponent = None if against is None else _open_opponent(against, source, classes, prior)
    data = recipe.data if recipe else DataConfig()
    label_rule = label_rule or data.label_rule
    drop = data.drop_duplicates if drop_duplicates is None else drop_duplicates
    flip = bool(recipe and recipe.eval_flip) if flip is None else flip
    place = open_device(device)
    model.to(place)
    notes: dict[str, Any] = {"prior": prior if isinstance(prior, str) else dict(prior)}
    notes |= {"drop_duplicates": drop, "student_sha256": sha256, "student_temperature": temperature_of(bare)}
    if (folded_from := notes_of(bare).get("folded_from")) is not None:
        notes["folded_from"] = folded_from
    results: dict[str, Any] = {}
    kept: dict[str, Predictions] = {}
    for name, root, split, key in parsed:
        dataset, report = load_split(
            name, root, split or "all", label_rule=label_rule, drop_duplicates=drop, classes=classes
        )
        predicted = predict(model, face_batches(model, dataset), place, flip, between_batches)
        predicted = predicted.described(classes, report.labels, report.sha256)
        shifted = predicted.shifted(temperature * shift)  # the prior goes out of logits / temperature
        results[key] = shifted.entry(temperature, **notes, **hub_note(report.dataset_id))
        if ratings := _rated(dataset, shifted, temperature, None if recipe is None or run is None else (recipe, run)):
            results[key]["ratings"] = ratings
        if opponent is not None:
            other, other_shift = opponent
            rival = predict(other.model.to(place), face_batches(other.model, dataset), place, flip, between_batches)
            logits = [shifted.logits], [rival.logits + temperature * other_shift]
            difference = paired_difference(*logits, shifted.target, classes, shifted.subject)
            results[key]["against"] = {"student": other.shown, "student_sha256": other.sha256, **difference}
        kept[key] = predicted
    if predictions:
        for key, predicted in kept.items():
            write_predictions(prediction_file(source, key), predicted)
    if out is not None:
        write_json(out, results)
    return results


def hub_note(dataset_id: str | None) -> dict[str, str]:
    """The note in metrics.json that names a Hub data set and its commit; none for other data."""
    return {"dataset_id": dataset_id} if dataset_id else {}


class Scored(NamedTuple):
    """A student, with all that its scores depend on."""

    source: str  # a Hub id at one commit
    model: TimmModel
    classes: tuple[str, ...]
    run: Path | None  # the folder of its run's recipe.yaml; None of a bare student
    recipe: Recipe | None
    sha256: str  # of its weights

    @property
    def shown(self) -> str:
        """Its name in tables: a Hub id, or the last part of its path."""
        return self.source if hub_id(self.source) is not None else last_part(self.source)


def open_scored(source: str | Path) -> Scored:
    """Open a run's student, or any saved student, for scoring."""
    source = pin(str(source), "config.json")
    folder = student_files(source)
    model, classes = read_student(folder, source)
    run = run_folder(source)
    recipe = None if run is None else load_recipe(Recipe, run / "recipe.yaml")
    return Scored(source, model, classes, run, recipe, weights_sha256(folder))


def _open_opponent(
    against: str | Path, source: str, classes: tuple[str, ...], prior: str | Mapping[str, float]
) -> tuple[Scored, torch.Tensor]:
    """Another student of the same classes, and what to add to its logits."""
    other = open_scored(against)
    if other.classes != classes:
        raise InputError(
            f"{against} predicts {', '.join(other.classes)}, {source} {', '.join(classes)}; compare students of the "
            "same classes in one order"
        )
    try:
        return other, prior_shift(other.model, classes, prior)
    except InputError as error:
        raise InputError(f"{against}: {error}") from None


def check_specs(specs: Sequence[str]) -> None:
    """Refuse data sets that are missing or named twice, before any image is read."""
    from ngd_timm.data import parse_spec
    from ngd_timm.data.fer import choose
    from ngd_timm.data.layouts import look_at

    parsed = [parse_spec(spec) for spec in specs]
    keys = [key for *_, key in parsed]
    if len(set(keys)) != len(keys):
        raise InputError(f"the same data set twice: {', '.join(keys)}; score them one by one")
    for name, root, split, _ in parsed:
        choose(look_at(root, name), split, root)


def summary_line(key: str, entry: dict[str, Any]) -> str:
    """One line of an entry: n, label rule, flip and both protocols, with intervals where it has them.

    A second one has the difference to another student, where there is one.
    """
    parts = []
    for protocol in ("8way", "present"):
        intervals = entry.get("ci95", {}).get(protocol, {})
        spans = {metric: f" [{low:.1f}, {high:.1f}]" for metric, (low, high) in intervals.items()}
        scores = [f"{name} {entry[protocol][m]:.2f}{spans.get(m, '')}" for m, name in METRIC_NAMES.items()]
        parts.append(f"{protocol_name(protocol, entry)} {', '.join(scores)}")
    for name, scores in entry.get("ratings", {}).items():
        by_axis = ", ".join(f"{axis} r {s['r']:.2f} CCC {s['ccc']:.2f}" for axis, s in scores.items())
        parts.append(f"ratings by {name} {by_axis}")
    line = f"{key} (n = {entry['n']}, {scoring_name(entry)}): {'; '.join(parts)}; ECE {entry['ece']:.2f}"
    if difference := entry.get("against"):
        parts = []
        for protocol in shown_protocols(entry):
            found = ((name, difference[protocol][m]) for m, name in METRIC_NAMES.items())
            scores = [f"{name} {d['mean']:+.2f} [{d['ci95'][0]:+.1f}, {d['ci95'][1]:+.1f}]" for name, d in found]
            parts.append(f"{protocol_name(protocol, entry)} {', '.join(scores)}")
        line += f"\n  minus {difference['student']} on the same {difference['bootstrap']['unit']}s: {'; '.join(parts)}"
    return line


def _rated(dataset: Any, predicted: Predictions, temperature: float, run: tuple[Recipe, Path] | None) -> dict[str, Any]:
    """`rating_scores` of the classes' anchors and, of embeddings on a run's grid, of their places there."""
    if not set(AXES) <= set(dataset.column_names) or not set(predicted.classes) <= set(ANCHORS):
        return {}
    ratings = np.stack([np.array(dataset[name][:], dtype=np.float64) for name in AXES], axis=1)
    probabilities = (predicted.logits.double() / temperature).softmax(dim=1)
    places = {"anchors": probabilities @ torch.from_numpy(anchors(predicted.classes)).double()}
    if run is not None and predicted.embedding is not None and (grid := run[1] / "grid.safetensors").is_file():
        loss = ProtoKDLoss(PrototypeGrid.load(grid), tau=run[0].loss.tau, classes=predicted.classes)
        places["grid"] = loss.place(predicted.embedding)
    scores = {name: rating_scores(place, ratings) for name, place in places.items()}
    return {name: score for name, score in scores.items() if score}


def _refuse_kept(run: Path, keys: Sequence[str]) -> None:
    """Never overwrite the predictions behind a run's metrics.json."""
    file = run / "metrics.json"
    own = set(read_entries(file)) if file.is_file() else set()
    if twice := [key for key in keys if key in own and prediction_file(run, key).is_file()]:
        raise InputError(f"{run} keeps its own predictions of {', '.join(twice)}; leave --predictions or the set out")


def _wrapped(student: TimmModel, run: Path) -> DistillationWrapper:
    """The student with the projection of the run's last checkpoint, so that embeddings lie in the grid's space."""
    file = run / "last" / "state.pt"
    if not file.is_file():
        raise InputError(f"{run} has no {file.name} in last/, where the projection of embeddings is; train it again")
    try:
        state = read_state(file)
    except InputError as error:
        raise InputError(f"{error}; fix it with: ngd train --resume {run}") from None
    # summary.csv is written after the student, which is written after the checkpoint
    if state["epoch"] != len(read_rows(run / "summary.csv")):
        raise InputError(f"{run}: student/ and last/ are of different epochs; fix it with: ngd train --resume {run}")
    try:
        ema = state["checkpoint_ema"]
        projection = (ema["task_state_ema"] if ema else state["checkpoint"]["task_state"])["projection"]
        model = DistillationWrapper(student, None if projection is None else projection["weight"].shape[0])
        if model.projection is not None:
            model.projection.load_state_dict(projection)
    except Exception as error:  # torch checks little of what it loads, and in a dozen ways
        raise InputError(
            f"{file} holds no projection of this student ({type(error).__name__}); train it again"
        ) from None
    return model
