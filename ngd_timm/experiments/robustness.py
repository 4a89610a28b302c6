"""Students under fifteen common corruptions and in other crops: the same images for all, differences paired."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ngd_timm.core.devices import autocast_type, open_device, precision_name
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import check_place, write_json, write_text
from ngd_timm.core.images import (
    InputTransform,
    check_pixels,
    decode_each,
    open_image,
    row_name,
    size_and_grey,
    to_mode,
)
from ngd_timm.core.progress import with_bar
from ngd_timm.core.recipe import DataConfig, Recipe
from ngd_timm.data import load_split, parse_spec
from ngd_timm.data.batches import held_in_memory, targets
from ngd_timm.data.synthetic.corruptions import CORRUPTIONS, FRAMINGS, SEVERITIES, SMALLEST, corrupt, reframe
from ngd_timm.evaluate.comparison import refuse_other_recipes
from ngd_timm.evaluate.metrics import METRICS, metrics_of_versions, summary
from ngd_timm.evaluate.predictions import subject_codes
from ngd_timm.evaluate.schema import read_fingerprint
from ngd_timm.evaluate.student import open_scored
from ngd_timm.models.ngd_models import TimmModel
from ngd_timm.report.plots import write_framing_plot, write_robustness_plot
from ngd_timm.report.tables import Table, robustness_tables

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger("ngd_timm.experiments")

_BATCH, _LARGE_BATCH = 256, 32  # images at once: small ones of one size as `ngd evaluate` takes them; others

_REMEDIES = {
    "classes": "compare students of the same classes",
    "label_rule": "give --label-rule",
    "drop_duplicates": "give --keep-duplicates",
    "eval_flip": "give --flip or --no-flip",
}


class _Version(NamedTuple):
    """The images under one corruption, or in another crop; without a name the clean ones."""

    change: str | None
    level: float  # of a corruption its severity


@dataclass(frozen=True, eq=False)
class _Student:
    shown: str
    sha256: str
    model: TimmModel
    classes: tuple[str, ...]
    recipe: Recipe | None
    is_seed: bool  # of its recipe, beside others, as a run is; its student/ folder and published students are not
    fingerprint: Mapping[str, Any]  # of a seed's run

    @property
    def seed(self) -> int | None:
        return self.recipe.seed if self.recipe is not None and self.is_seed else None

    @property
    def seed_of(self) -> str | None:
        return self.recipe.name if self.recipe is not None and self.is_seed else None

    @property
    def scoring(self) -> dict[str, Any]:
        """How its run is evaluated; a bare student has the defaults."""
        data = self.recipe.data if self.recipe else DataConfig()
        flip = self.recipe is not None and self.recipe.eval_flip
        rules = {"label_rule": data.label_rule, "drop_duplicates": data.drop_duplicates, "eval_flip": flip}
        return {"classes": self.classes, **rules}


def robustness(
    sources: Sequence[str | Path],
    spec: str,
    out: str | Path,
    *,
    severities: Sequence[int] = SEVERITIES,
    label_rule: str | None = None,
    drop_duplicates: bool | None = None,
    flip: bool | None = None,
    amp: str = "off",
    seed: int = 0,
    resamples: int = 2000,
) -> tuple[dict[str, Any], list[Table]]:
    """Score students on a data set, clean, corrupted and in other crops, and compare their recipes with the first one.

    Each image is corrupted once per corruption and severity, at its own size, before it is resized for a student; all
    students see the same. Runs whose recipes have one name are seeds of one recipe. Returns what robustness.json holds
    (percent over all classes), and the tables of table.md.
    """
    if not {*severities} <= {*SEVERITIES} or len({*severities}) < len(severities):
        allowed, got = (", ".join(map(str, levels)) for levels in (SEVERITIES, severities))
        raise InputError(f"severities must be different ones of {allowed}, got {got}")
    levels = sorted(severities)
    device = open_device("auto")
    autocast = autocast_type(amp, device)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; choose a folder with --out DIR")
    if (out / "ablation.json").exists():
        raise InputError(f"{out} holds an ablation, whose table.md would be lost; choose another folder with --out DIR")
    check_place(out / "robustness.json")
    name, root, split, key = parse_spec(spec)
    students = [_open(source) for source in sources]
    recipes = _grouped(students)
    classes = _shared(students, "classes")
    label_rule = label_rule or _shared(students, "label_rule")
    drop_duplicates = _shared(students, "drop_duplicates") if drop_duplicates is None else drop_duplicates
    flip = _shared(students, "eval_flip") if flip is None else flip
    dataset, report = load_split(
        name, root, split or "all", label_rule=label_rule, drop_duplicates=drop_duplicates, classes=classes
    )
    versions = [_Version(None, 0), *(_Version(name, level) for name in CORRUPTIONS for level in levels)]
    versions += [_Version(name, level) for name, shown in FRAMINGS.items() for level in shown]
    logger.info(f"{len(students)} students, {len(versions)} versions of {len(dataset)} images")
    predictions, target = _predict(students, dataset, versions, flip, seed, device, autocast)
    subjects = subject_codes(dataset)
    scores, redrawn = metrics_of_versions(predictions, target, len(classes), subjects, resamples, seed)
    results = {
        "data": {
            "key": key,
            "n": len(target),
            "sha256": report.sha256,
            "classes": list(classes),
            "label_rule": report.labels,
            "drop_duplicates": drop_duplicates,
        },
        "settings": {
            "corruptions": list(CORRUPTIONS),
            "severities": levels,
            "framings": {name: list(levels) for name, levels in FRAMINGS.items()},
            "seed": seed,
            "flip": flip,
            "prior": "training",
            "precision": precision_name(autocast),
            "bootstrap": {"unit": "image" if subjects is None else "subject", "resamples": resamples, "seed": seed},
        },
        "students": [
            {
                "student": student.shown,
                "recipe": next(name for name, places in recipes.items() if place in places),
                "seed": student.seed,
                "sha256": student.sha256,
                **_by_version(versions, {m: values[:, place] for m, values in scores.items()}, len(target)),
            }
            for place, student in enumerate(students)
        ],
        **_compare(recipes, students, versions, scores, redrawn),
    }
    tables = robustness_tables(results)
    write_json(out / "robustness.json", results)
    write_text(out / "table.md", "\n\n".join(table.markdown() for table in tables) + "\n")
    write_robustness_plot(results, out / "robustness.png")
    write_framing_plot(results, out / "framing.png")
    return results, tables


def _open(source: str | Path) -> _Student:
    student = open_scored(source)
    _, model, classes, run, recipe, sha256 = student
    is_seed = run is not None and Path(student.source).resolve() == run and (run / "student").is_dir()
    fingerprint = read_fingerprint(run / "fingerprint.json") if is_seed and run is not None else {}
    return _Student(student.shown, sha256, model, classes, recipe, is_seed, fingerprint)


def _grouped(students: Sequence[_Student]) -> dict[str, list[int]]:
    """Recipe to the places of its students, by seed; in the order in which the recipes come."""
    groups: dict[str, list[int]] = {}
    recipes = {student.seed_of for student in students}
    for place, student in enumerate(students):
        name, number = student.seed_of or student.shown, 1
        while student.seed_of is None and (name in groups or name in recipes):
            number += 1
            name = f"{student.shown} ({number})"
        groups.setdefault(name, []).append(place)
    for name, places in groups.items():
        if len(places) > 1:
            places.sort(key=lambda place: students[place].seed or 0)
            _refuse_other_runs(name, [students[place] for place in places])
    return groups


def _refuse_other_runs(name: str, students: Sequence[_Student]) -> None:
    """Seeds of one recipe have different seeds and train alike on the same images."""
    for student, after in pairwise(students):
        if student.seed == after.seed:
            raise InputError(
                f"{student.shown} and {after.shown} are both seed {student.seed} of the recipe {name}; leave one out, "
                "or give its student/ folder to have it count by itself"
            )
    runs = [(s.shown, s.recipe, s.fingerprint) for s in students if s.recipe is not None]
    refuse_other_recipes(name, runs, "give the student/ folder of one to have it count by itself")


def _shared(students: Sequence[_Student], key: str) -> Any:
    """The setting that all students have in common."""
    first, *others = (student.scoring[key] for student in students)
    for student, value in zip(students[1:], others, strict=True):
        if value != first:
            shown = " and ".join(", ".join(v) if isinstance(v, tuple) else str(v) for v in (first, value))
            raise InputError(
                f"{students[0].shown} and {student.shown} can't be compared: {key} is {shown}; {_REMEDIES[key]}"
            )
    return first


def _look(record: dict[str, Any]) -> tuple[int, int, bool]:
    """Size and colour of an image; a damaged one is found now, not hours later."""
    with open_image(record) as image:
        size = size_and_grey(image)
        check_pixels(image)
    return size


@torch.inference_mode()
def _predict(
    students: Sequence[_Student],
    dataset: Dataset,
    versions: Sequence[_Version],
    flip: bool,
    seed: int,
    device: torch.device,
    autocast: torch.dtype | None,
) -> tuple[np.ndarray, np.ndarray]:
    """(versions, students, N) class indices, and the (N,) true ones; a few images are held at a time."""
    layout = torch.preserve_format if autocast is None else torch.channels_last
    for student in students:
        student.model.to(device, memory_format=layout).eval()
    sizes = np.array(list(decode_each(dataset, _look)), dtype=np.int64)
    if (least := sizes[:, :2].min(axis=1)).min() < SMALLEST:
        raise InputError(
            f"{row_name(dataset, int(least.argmin()))}: a side of {least.min()} px; images to corrupt need at least "
            f"{SMALLEST}, remove it"
        )
    mode = "L" if sizes[:, 2].all() else "RGB"
    small = held_in_memory(sizes, len(mode))
    predictions = np.empty((len(versions), len(students), len(dataset)), dtype=np.uint8)
    step = _BATCH if small else _LARGE_BATCH
    blocks = _corrupted_blocks(dataset, versions, mode, small, step, seed)
    transforms = [InputTransform(student.model.pretrained_cfg) for student in students]
    total = len(versions) * -(-len(dataset) // step)
    for place, first, images in with_bar(blocks, total, "corrupting and scoring"):
        inputs: dict[Any, torch.Tensor] = {}
        for number, (student, prepare) in enumerate(zip(students, transforms, strict=True)):
            if prepare.key not in inputs:
                pixels = torch.stack([prepare(Image.fromarray(image)) for image in images])
                inputs[prepare.key] = prepare.normalize(pixels).to(device)
            views = inputs[prepare.key]
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                logits = student.model(views).float()
                if flip:
                    logits = (logits + student.model(views.flip(-1)).float()) / 2
            if not bool(logits.isfinite().all()):
                remedy = "its weights are damaged; train it again" if autocast is None else "try --amp off"
                raise InputError(f"{student.shown}'s logits are not finite in {precision_name(autocast)}: {remedy}")
            predictions[place, number, first : first + len(logits)] = logits.cpu().numpy().argmax(axis=1)
    target = targets(dataset)
    return predictions, target if target.ndim == 1 else target.argmax(axis=1)


def _corrupted_blocks(
    dataset: Dataset, versions: Sequence[_Version], mode: str, small: bool, step: int, seed: int
) -> Iterator[tuple[int, int, list[np.ndarray]]]:
    """Number of a version, place of the first image, and so many images, (H, W) or (H, W, 3); decoded once."""

    def decoded(record: dict[str, Any]) -> np.ndarray:
        with open_image(record) as image:
            return np.asarray(to_mode(image, mode))

    for first in range(0, len(dataset), step):
        clean = list(decode_each(dataset.select(range(first, min(first + step, len(dataset)))), decoded))
        parts = [np.stack(clean)] if small else [image[None] for image in clean]
        for number, (name, level) in enumerate(versions):
            images = clean
            if name in FRAMINGS:
                images = [reframe(image, name, level) for image in clean]
            elif name is not None:
                images = []
                for part in parts:
                    images += list(corrupt(part, name, int(level), seed, first + len(images)))
            yield number, first, images


def _by_version(versions: Sequence[_Version], scores: Mapping[str, np.ndarray], n: int) -> dict[str, Any]:
    """One student's entries, clean, by corruption and severity, and by crop and its level."""
    clean, *entries = ({"n": n, **{m: float(v[place]) for m, v in scores.items()}} for place in range(len(versions)))
    corrupted: dict[str, dict[str, Any]] = {name: {} for name in CORRUPTIONS}
    framed: dict[str, dict[str, Any]] = {name: {} for name in FRAMINGS}
    for (name, level), entry in zip(versions[1:], entries, strict=True):
        (framed if name in FRAMINGS else corrupted)[str(name)][f"{level:g}"] = entry
    return {"clean": clean, "corrupted": corrupted, "framed": framed}


def _compare(
    recipes: Mapping[str, list[int]],
    students: Sequence[_Student],
    versions: Sequence[_Version],
    scores: Mapping[str, np.ndarray],
    redrawn: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Each recipe's means over severities and seeds, and the others' differences to the first."""
    rows = {name: [i for i, v in enumerate(versions) if v.change == name] for name in CORRUPTIONS}
    rows |= {"mean": [i for i, v in enumerate(versions) if v.change in CORRUPTIONS], "clean": [0]}
    rows |= {f"{v.change} {v.level:g}": [i] for i, v in enumerate(versions) if v.change in FRAMINGS}
    first, *others = recipes
    seeds = {name: [students[i].seed for i in places] for name, places in recipes.items()}
    means: dict[str, Any] = {name: {row: {} for row in rows} for name in recipes}
    differences: list[dict[str, Any]] = [{"a": name, "b": first, **{row: {} for row in rows}} for name in others]
    for row, places in rows.items():
        for m in METRICS:
            per_seed = {name: scores[m][places][:, own].mean(axis=0) for name, own in recipes.items()}
            resampled = {name: redrawn[m][places][:, own].mean(axis=(0, 1)) for name, own in recipes.items()}
            for name in recipes:
                means[name][row][m] = summary(per_seed[name], resampled[name])
            for difference in differences:
                a = difference["a"]
                if seeds[a] == seeds[first]:
                    values = per_seed[a] - per_seed[first]
                else:  # seeds that have no counterpart: the difference of the means, without a spread
                    values = np.array([per_seed[a].mean() - per_seed[first].mean()])
                difference[row][m] = summary(values, resampled[a] - resampled[first])
    return {"recipes": means, "differences": differences}
