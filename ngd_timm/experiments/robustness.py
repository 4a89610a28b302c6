"""Students under fifteen common corruptions: the same damaged pictures for all of them, differences paired."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image

from ngd_timm.core.devices import autocast_type, open_device, precision_name
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import check_place, write_json, write_text
from ngd_timm.core.hub import hub_id
from ngd_timm.core.paths import last_part
from ngd_timm.core.recipe import Recipe
from ngd_timm.data.synthetic.corruptions import CORRUPTIONS, SEVERITIES, SMALLEST, corrupt
from ngd_timm.evaluate.metrics import METRICS, figures_of_sets, summary
from ngd_timm.evaluate.predictions import subject_codes
from ngd_timm.evaluate.run_log import with_bar
from ngd_timm.evaluate.student import open_scored
from ngd_timm.models.ngd_models import TimmModel
from ngd_timm.report.plots import write_robustness_plot
from ngd_timm.report.tables import Table, robustness_tables

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["robustness"]

logger = logging.getLogger("ngd_timm.experiments")

_BATCH, _LARGE_BATCH = 256, 32  # pictures at once: small ones of one size as `ngd evaluate` takes them; others

T = TypeVar("T")


class _Version(NamedTuple):
    """The pictures under one corruption; without a name the clean ones."""

    corruption: str | None
    severity: int


@dataclass(frozen=True, eq=False)
class _Student:
    shown: str
    sha256: str
    model: TimmModel
    classes: tuple[str, ...]
    recipe: Recipe | None
    is_seed: bool  # of its recipe, beside others; a run's student/ folder stands for itself

    @property
    def seed(self) -> int | None:
        return self.recipe.seed if self.recipe is not None and self.is_seed else None


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
    """Score students on a data set, clean and under every corruption, and compare their recipes with the first one.

    Each picture is corrupted once per corruption and severity, at its own size and in its own colours, before it is
    resized for a student; all students see the same. Runs whose recipes have one name are seeds of one
    recipe; a student without a recipe stands for itself.

    Args:
        sources: Run directories, student folders or Hub ids.
        spec: `name=root[:split]`; without a split all rows count.
        out: Folder for robustness.json, table.md and robustness.png; earlier ones are replaced.
        severities: Which of 1 to 5.
        label_rule: Instead of the runs'.
        drop_duplicates: Instead of the runs'.
        flip: Average with the mirror image; instead of as the runs.
        amp: Precision of the students' arithmetic, as a recipe's `optim.amp`. "off" is float32, with which clean
            figures are those of `ngd evaluate`; bf16 is about twice as fast where the processor has it.
        seed: Of the corruptions, and of the bootstrap.
        resamples: Of the bootstrap over pictures (over subjects where the set names them); a resample is the same for
            all corruptions, severities and students.

    Returns:
        What robustness.json holds (percent over all classes), and the tables of table.md.

    Raises:
        InputError: No student there, students that can't be compared, a data set that can't be read, an unknown
            precision.
    """
    from ngd_timm.data import load_split, parse_spec

    levels = _checked_severities(severities)
    device = open_device("auto")
    autocast = autocast_type(amp, device)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; choose a folder with --out DIR")
    check_place(out / "robustness.json")
    if not sources:
        raise InputError("no student to score; give run directories or student folders")
    name, root, split, key = parse_spec(spec)
    students = [_open(source) for source in sources]
    recipes = _grouped(students)
    classes = _shared("classes", [(s, s.classes) for s in students], "compare students of the same classes")
    own = [(s, s.recipe) for s in students]
    label_rule = label_rule or _shared(
        "label_rule", [(s, r.data.label_rule if r else "majority") for s, r in own], "give --label-rule"
    )
    if drop_duplicates is None:
        dropped = [(s, r.data.drop_duplicates if r else True) for s, r in own]
        drop_duplicates = _shared("drop_duplicates", dropped, "give --keep-duplicates")
    if flip is None:
        flip = _shared("eval_flip", [(s, r.eval_flip if r else False) for s, r in own], "give --flip or --no-flip")
    dataset, report = load_split(
        name, root, split or "all", label_rule=label_rule, drop_duplicates=drop_duplicates, classes=classes
    )
    versions = [_Version(None, 0), *(_Version(name, level) for name in CORRUPTIONS for level in levels)]
    logger.info(f"{len(students)} students, {len(versions)} versions of {len(dataset)} pictures")
    answers, target = _answers(students, dataset, versions, flip, seed, device, autocast)
    subjects = subject_codes(dataset)
    whole, redrawn = figures_of_sets(answers, target, len(classes), subjects, resamples, seed)
    found = {
        "data": {
            "key": key,
            "n": len(target),
            "sha256": report.sha256,
            "classes": list(classes),
            "label_rule": label_rule,
            "drop_duplicates": drop_duplicates,
        },
        "settings": {
            "corruptions": list(CORRUPTIONS),
            "severities": list(levels),
            "seed": seed,
            "flip": flip,
            "precision": precision_name(autocast),
            "bootstrap": {"unit": "image" if subjects is None else "subject", "resamples": resamples, "seed": seed},
        },
        "students": [
            {
                "student": student.shown,
                "recipe": next(name for name, places in recipes.items() if place in places),
                "seed": student.seed,
                "sha256": student.sha256,
                **_by_version(versions, {m: values[:, place] for m, values in whole.items()}, len(target)),
            }
            for place, student in enumerate(students)
        ],
        **_compared(recipes, students, versions, whole, redrawn),
    }
    tables = robustness_tables(found)
    write_json(out / "robustness.json", found)
    write_text(out / "table.md", "\n\n".join(table.markdown() for table in tables) + "\n")
    write_robustness_plot(found, out / "robustness.png")
    return found, tables


def _checked_severities(severities: Sequence[int]) -> tuple[int, ...]:
    if not severities or any(level not in SEVERITIES for level in severities) or len({*severities}) < len(severities):
        raise InputError(
            f"severities must be different ones of {', '.join(map(str, SEVERITIES))}, got "
            f"{', '.join(map(str, severities)) or 'none'}"
        )
    return tuple(sorted(severities))


def _open(source: str | Path) -> _Student:
    source, model, classes, run, recipe, sha256 = open_scored(source)
    shown = source if hub_id(source) is not None else last_part(source)
    return _Student(shown, sha256, model, classes, recipe, run is not None and Path(source).resolve().parent != run)


def _grouped(students: Sequence[_Student]) -> dict[str, list[int]]:
    """Recipe to the places of its students, by seed; in the order in which the recipes come."""
    groups: dict[str, list[int]] = {}
    taken = {student.recipe.name for student in students if student.recipe is not None and student.is_seed}
    for place, student in enumerate(students):
        if student.recipe is not None and student.is_seed:
            groups.setdefault(student.recipe.name, []).append(place)
            continue
        name, number = student.shown, 1
        while name in groups or name in taken:
            number += 1
            name = f"{student.shown} ({number})"
        groups[name] = [place]
    for name, places in groups.items():
        seeds = {place: recipe.seed for place in places if (recipe := students[place].recipe) is not None}
        if len(set(seeds.values())) < len(seeds):
            twice = next(seed for seed in seeds.values() if list(seeds.values()).count(seed) > 1)
            same = [students[place].shown for place, seed in seeds.items() if seed == twice]
            raise InputError(
                f"{' and '.join(same)} are both seed {twice} of the recipe {name}; leave one out, or give its student/ "
                "folder to have it count by itself"
            )
        _refuse_other_settings(name, [students[place] for place in places])
        places.sort(key=lambda place: seeds.get(place, 0))
    return groups


def _refuse_other_settings(name: str, students: Sequence[_Student]) -> None:
    """Seeds of one recipe differ in the seed, and in what lies where."""
    recipes = [student.recipe for student in students if student.recipe is not None]
    told = [r.model_dump(exclude={"seed", "out", "init", "teacher", "kd_cache", "device"}) for r in recipes]
    for student, other in zip(students, told, strict=False):
        if changed := [key for key, value in told[0].items() if other[key] != value]:
            raise InputError(
                f"{students[0].shown} and {student.shown} are both of the recipe {name}, but {', '.join(changed)} "
                "differs, so they are not its seeds; give the student/ folder of one to have it count by itself"
            )


def _shared(what: str, values: Sequence[tuple[_Student, T]], mend: str) -> T:
    (first, value), *others = values
    for other, its in others:
        if its != value:
            shown = [", ".join(v) if isinstance(v, tuple) else str(v) for v in (value, its)]
            raise InputError(
                f"{first.shown} and {other.shown} can't be compared: {what} is {shown[0]} and {shown[1]}; {mend}"
            )
    return value


@torch.inference_mode()
def _answers(
    students: Sequence[_Student],
    dataset: Dataset,
    versions: Sequence[_Version],
    flip: bool,
    seed: int,
    device: torch.device,
    autocast: torch.dtype | None,
) -> tuple[np.ndarray, np.ndarray]:
    """(versions, students, N) class indices, and the (N,) true ones; a few pictures are held at a time."""
    from ngd_timm.core.images import InputTransform, check_image, decode_each, image_size_and_grey, row_name
    from ngd_timm.data.batches import held_in_memory, targets

    layout = torch.preserve_format if autocast is None else torch.channels_last
    for student in students:
        student.model.to(device, memory_format=layout).eval()
    sizes = np.array(list(decode_each(dataset, image_size_and_grey, "opened")), dtype=np.int64)
    if (least := sizes[:, :2].min(axis=1)).min() < SMALLEST:
        raise InputError(
            f"{row_name(dataset, int(least.argmin()))}: a side of {least.min()} px; pictures to corrupt need at least "
            f"{SMALLEST}, remove it"
        )
    mode = "L" if sizes[:, 2].all() else "RGB"
    small = held_in_memory(sizes, len(mode))
    for _ in decode_each(dataset, check_image):  # a damaged picture is found now, not hours later
        pass
    answers = np.empty((len(versions), len(students), len(dataset)), dtype=np.uint8)
    step = _BATCH if small else _LARGE_BATCH
    work = _versions_of_blocks(dataset, versions, mode, small, step, seed)
    transforms = [InputTransform(student.model.pretrained_cfg) for student in students]
    total = len(versions) * -(-len(dataset) // step)
    for place, first, images in with_bar(work, total, "corrupting and scoring"):
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
                mend = "its weights are damaged; train it again" if autocast is None else "try --amp off"
                raise InputError(f"{student.shown}'s answers are not finite in {precision_name(autocast)}: {mend}")
            answers[place, number, first : first + len(logits)] = logits.cpu().numpy().argmax(axis=1)
    target = targets(dataset)
    return answers, target if target.ndim == 1 else target.argmax(axis=1)


def _versions_of_blocks(
    dataset: Dataset, versions: Sequence[_Version], mode: str, small: bool, step: int, seed: int
) -> Iterator[tuple[int, int, list[np.ndarray]]]:
    """Number of a version, place of the first picture, and so many pictures, (H, W) or (H, W, 3); decoded once."""
    from ngd_timm.core.images import decode_each, open_image, to_mode

    def decoded(record: dict[str, Any]) -> np.ndarray:
        with open_image(record) as image:
            return np.asarray(to_mode(image, mode))

    for first in range(0, len(dataset), step):
        rows = range(first, min(first + step, len(dataset)))
        pictures = list(decode_each(dataset.select(rows), decoded))
        parts = [np.stack(pictures)] if small else [picture[None] for picture in pictures]
        for number, (name, severity) in enumerate(versions):
            if name is None:
                yield number, first, pictures
                continue
            changed: list[np.ndarray] = []
            for part in parts:
                changed += list(corrupt(part, name, severity, seed, first + len(changed)))
            yield number, first, changed


def _by_version(versions: Sequence[_Version], figures: Mapping[str, np.ndarray], n: int) -> dict[str, Any]:
    entries = [{"n": n, **{m: float(values[place]) for m, values in figures.items()}} for place in range(len(versions))]
    corrupted: dict[str, dict[str, Any]] = {}
    for (name, severity), entry in zip(versions, entries, strict=True):
        if name is not None:
            corrupted.setdefault(name, {})[str(severity)] = entry
    return {"clean": entries[0], "corrupted": corrupted}


def _compared(
    recipes: Mapping[str, list[int]],
    students: Sequence[_Student],
    versions: Sequence[_Version],
    whole: Mapping[str, np.ndarray],
    redrawn: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Each recipe's means over severities and seeds, and what the others have more than the first."""
    rows = {name: [i for i, v in enumerate(versions) if v.corruption == name] for name in CORRUPTIONS}
    rows |= {"mean": [i for i, v in enumerate(versions) if v.corruption], "clean": [0]}
    means: dict[str, Any] = {name: {} for name in recipes}
    first, *others = recipes
    seeds = {name: [students[i].seed for i in of] for name, of in recipes.items()}
    differences: list[dict[str, Any]] = [{"a": name, "b": first} for name in others]
    for row, places in rows.items():
        per_seed = {name: {m: whole[m][places][:, of].mean(axis=0) for m in METRICS} for name, of in recipes.items()}
        drawn = {
            name: {m: redrawn[m][places][:, of].mean(axis=(0, 1)) for m in METRICS} for name, of in recipes.items()
        }
        for name in recipes:
            means[name][row] = {m: summary(per_seed[name][m], drawn[name][m]) for m in METRICS}
        for difference in differences:
            a = difference["a"]
            difference[row] = {}
            for m in METRICS:
                if seeds[a] == seeds[first]:
                    values = per_seed[a][m] - per_seed[first][m]
                else:  # seeds that have no counterpart: the difference of the means, without a spread
                    values = np.array([per_seed[a][m].mean() - per_seed[first][m].mean()])
                difference[row][m] = summary(values, drawn[a][m] - drawn[first][m])
    return {"recipes": means, "differences": differences}
