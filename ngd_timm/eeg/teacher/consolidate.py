"""From a teacher run to the frozen grid: held-out embeddings in one frame, averaged over the plane."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from ngd_timm.core.affect import cell_of
from ngd_timm.core.commands import public_fingerprint, shown_command
from ngd_timm.core.errors import InputError
from ngd_timm.core.paths import without_paths
from ngd_timm.core.version import __version__
from ngd_timm.eeg.signal.bandpower import NORMALISATION
from ngd_timm.eeg.teacher.fitted import FittedTeacher, read_teacher
from ngd_timm.grid.averages import numbered
from ngd_timm.grid.mantel import HeldOut, mantel_notes
from ngd_timm.grid.prototypes import PrototypeGrid
from ngd_timm.grid.verdict import WHO

_OWN = ("dataset", "data_sha256", "subjects", "trials", "windows", "scores", "grids", "teacher_recipe_sha256")

_COMMAND = "ngd teacher fit recipe.yaml data.root=…"  # of a run that doesn't know its own

_KINDS = {
    "topomap": "{} on {} px maps",
    "ridge": "ridge regression on log power",
    "riemann": "ridge regression on tangent vectors of co-spectra",
}
_SPLITS = {
    "subject": "{} folds by subject, seed {}; every embedding is of a held-out subject",
    "stimulus": "{} folds by stimulus, seed {}; every embedding is of a held-out stimulus",
    "both": "{} folds by subject and by stimulus, seed {}; every embedding is of a held-out subject at a held-out "
    "stimulus",
}


def preview_grid(teacher: FittedTeacher, min_subjects: int = 3) -> PrototypeGrid | None:
    """The 5×5 grid of a teacher run without its Mantel test, for plots; None if it has fewer than two cells."""
    rows = (teacher.aligned, teacher.valence_arousal, teacher.subject)
    counts = PrototypeGrid.build(*rows).metadata["subjects_per_cell"].split(",")
    if sum(int(count) >= min_subjects for count in counts) < 2:
        return None
    return PrototypeGrid.build(*rows, min_subjects=min_subjects)


def build_grid(
    runs: str | Path | Sequence[str | Path], size: int = 5, center: bool = False, min_subjects: int = 1
) -> PrototypeGrid:
    """The prototype grid of a teacher run, or of several; its metadata say what it was built from, and the tests.

    Runs of different data have embeddings in frames of their own: each run's averages are rotated onto the first's,
    and subjects weigh equally whatever run they are of.

    Raises:
        InputError: Not a teacher run; runs that can't be pooled: the same subjects twice, another `embedding_dim`.
    """
    places = [Path(run) for run in ([runs] if isinstance(runs, (str, Path)) else runs)]
    for k, place in enumerate(places):
        if place.resolve() in (before.resolve() for before in places[:k]):
            raise InputError(f"{place} is named twice; a pooled grid takes each run once")
    teachers = [read_teacher(place) for place in places]
    parts = [_provenance(teacher) for teacher in teachers]
    _check_poolable(places, teachers)
    single = len(teachers) == 1
    pool, frames = _pool(teachers)
    notes = parts[0] if single else _pooled_provenance(teachers, parts)
    rows = (pool.aligned, pool.valence_arousal, pool.subject)
    settings = (size, pool.recipe.scores.permutations, pool.recipe.seed)
    options = {"min_subjects": min_subjects, "frames": None if single else frames, "held_out": pool.held_out}
    notes |= mantel_notes(*rows, pool.trial, *settings, **options)
    notes |= {
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "built_with": f"ngd_timm {__version__}",
        "command": _commands(teachers, size, min_subjects, center),
    }
    grid = PrototypeGrid.build(*rows, size, min_subjects, center, notes, None if single else frames)
    sets = _counts_by_set(teachers, pool, frames, grid)
    return grid if len(sets) == 1 else replace(grid, metadata={**grid.metadata, "sets": json.dumps(sets)})


def add_scores(grid: PrototypeGrid, runs: Sequence[str | Path]) -> PrototypeGrid:
    """The grid with the scores of teachers that were fitted on its recordings in other folds, for its card.

    Raises:
        InputError: Not a grid of one teacher; a run of other recordings, of another kind of teacher, or in folds that
            are scored already.
    """
    if "scores" not in grid.metadata:
        raise InputError("scores of other folds are added to a grid of one teacher run, and this one is not")
    scores, commands = json.loads(grid.metadata["scores"]), grid.metadata.get("command", "").split("\n")
    for run in map(Path, runs):
        teacher = read_teacher(run)
        by, folds = teacher.recipe.data.folds_by, scores.setdefault("folds", {})
        if teacher.fingerprint.get("data_sha256") != grid.metadata.get("data_sha256"):
            raise InputError(f"{run} was fitted on other recordings than the grid; fit it on the same, by other folds")
        kind, own = teacher.recipe.teacher.kind, scores.get("kind", "topomap")
        if kind != own:
            raise InputError(f"{run} is a teacher of kind {kind}, the grid's is {own}; fit one of that kind")
        if by == scores.get("folds_by", "subject") or "teacher" in folds.get(by, {}):
            raise InputError(f"{run}: scores of a teacher in folds by {by} are there already; name a run of others")
        folds.setdefault(by, {})["teacher"] = teacher.scores["teacher"]
        fit = shown_command(public_fingerprint(teacher.fingerprint), _COMMAND)
        commands = [*commands[:-1], f"{fit} out=runs/{by}", f"{commands[-1]} --scored runs/{by}"]
    notes = {"scores": json.dumps(scores), "command": "\n".join(commands)}
    return replace(grid, metadata={**grid.metadata, **notes})


def _pool(teachers: Sequence[FittedTeacher]) -> tuple[FittedTeacher, np.ndarray]:
    """The rows of all runs, with subjects that no two runs share, and the run of each row (N,)."""
    frames = np.repeat(np.arange(len(teachers)), [len(teacher.subject) for teacher in teachers])
    columns = ("subject", "trial", "valence_arousal", "aligned")
    pool: dict[str, Any] = {name: np.concatenate([getattr(teacher, name) for teacher in teachers]) for name in columns}
    pool["subject"] = numbered(np.column_stack([frames, pool["subject"]]))
    pool["held_out"] = None
    if parts := [teacher.held_out for teacher in teachers if teacher.held_out is not None]:
        names = [np.concatenate([part.stimulus for part in parts])]
        names += [*np.concatenate([part.fold.reshape(len(part.stimulus), -1) for part in parts]).T]
        stimulus, *folds = (numbered(np.column_stack([frames, column])) for column in names)
        pool["held_out"] = HeldOut(stimulus, np.column_stack(folds))
    return replace(teachers[0], **pool), frames


def _counts_by_set(
    teachers: Sequence[FittedTeacher], pool: FittedTeacher, frames: np.ndarray, grid: PrototypeGrid
) -> list[dict[str, Any]]:
    """How many windows and subjects of each set are behind each cell that holds data."""
    cells, filled = cell_of(pool.valence_arousal, grid.size), grid.counts.numpy() > 0
    numbers = np.concatenate([teacher.set_number for teacher in teachers])
    out = []
    for run, number, name in ((r, k, name) for r, t in enumerate(teachers) for k, name in enumerate(t.set_names)):
        own = (frames == run) & (numbers == number)
        pairs = np.unique(np.stack([cells[own], pool.subject[own]]), axis=1)
        windows, subjects = (np.bincount(c, minlength=len(filled)) * filled for c in (cells[own], pairs[0]))
        count = {"subjects": len(np.unique(pool.subject[own])), "windows": int(own.sum())}
        out.append({"dataset": name, **count, "counts": windows.tolist(), "subjects_per_cell": subjects.tolist()})
    return out


def _check_poolable(places: Sequence[Path], teachers: Sequence[FittedTeacher]) -> None:
    """Runs of one width and kind of folds, of different subjects, all simulated or none."""
    first = teachers[0]
    for place, teacher in zip(places[1:], teachers[1:], strict=True):
        width, other = first.aligned.shape[1], teacher.aligned.shape[1]
        if width != other:
            raise InputError(
                f"{places[0]} has embeddings of {width} values and {place} of {other}; fit both with the same "
                "teacher.embedding_dim"
            )
        by, others = (run.recipe.data.folds_by for run in (first, teacher))
        if by != others:
            raise InputError(
                f"{places[0]} has folds by {by} and {place} by {others}, and one test can't be of both; fit them with "
                "the same data.folds_by"
            )
        if first.fingerprint.get("simulated") != teacher.fingerprint.get("simulated"):
            raise InputError(
                f"one of {places[0]} and {place} is of simulated EEG and the other is not; pool like with like"
            )
    seen: list[tuple[Path, str, set[tuple[float, ...]]]] = []
    for place, teacher in zip(places, teachers, strict=True):
        for name, trials in teacher.ratings:
            for before, other, rated in seen:
                # a trial may agree by chance, most of them only where they are the same ones
                if name == other and 2 * len(trials & rated) > min(len(trials), len(rated)):
                    raise InputError(
                        f"{before} and {place} are both of {name}, and its subjects would count twice; pool runs of "
                        "different recordings"
                    )
        seen += [(place, *rated) for rated in teacher.ratings]


def _provenance(teacher: FittedTeacher) -> dict[str, str]:
    recipe, scores = teacher.recipe, teacher.scores
    fingerprint = public_fingerprint(teacher.fingerprint)  # the grid is published, folders are not
    notes = {
        "dataset": fingerprint["dataset"],
        "data_sha256": fingerprint["data_sha256"],
        "subjects": str(len(np.unique(teacher.subject))),
        "trials": str(fingerprint["trials"]),
        "windows": str(len(teacher.subject)),
        "channels": ",".join(fingerprint["channels"]),
        "bands": ",".join(fingerprint["bands"]),
        "normalisation": NORMALISATION,
        "split": _SPLITS[recipe.data.folds_by].format(recipe.data.folds, recipe.seed),
        "frame": "teachers of the folds brought into fold 0's frame by orthogonal Procrustes on shared training data",
        "frame_agreement": ",".join(f"{a:.3f}" for a in teacher.agreement),
        "teacher": (
            _KINDS[recipe.teacher.kind].format(without_paths(recipe.teacher.backbone), recipe.teacher.image_size)
            + f", {recipe.teacher.embedding_dim}-d embedding"
        ),
        "teacher_recipe_sha256": fingerprint["recipe_sha256"],
        "scores": json.dumps({key: scores[key] for key in (*WHO, "folds_by", "kind", "folds") if key in scores}),
        "grids": json.dumps(scores["grids"]),
        "preprocessing": json.dumps(fingerprint["notes"]),
    }
    if support := fingerprint.get("support"):
        subjects, windows = support["subjects"], support["windows"]
        notes["support"] = f"{support['dataset']}, {subjects} subjects, {windows} windows, unlabelled"
    if fingerprint["simulated"]:
        notes["simulated"] = "true"
    return notes


def _pooled_provenance(teachers: Sequence[FittedTeacher], parts: Sequence[dict[str, str]]) -> dict[str, str]:
    """What the runs have in common, and in `runs` what each has to itself."""
    names = [name for teacher in teachers for name in teacher.set_names]
    common = {key: value for key, value in parts[0].items() if all(part.get(key) == value for part in parts)}
    own = [{key: value for key, value in part.items() if key in _OWN or key not in common} for part in parts]
    for part in own:
        del part["grids"]  # tests of another grid
    supports = dict.fromkeys(part["support"] for part in parts if "support" in part)
    return {
        **{key: value for key, value in common.items() if key not in _OWN},
        **{key: str(sum(int(part[key]) for part in parts)) for key in ("subjects", "trials", "windows")},
        "dataset": " + ".join(names),
        **({"support": " + ".join(supports)} if supports else {}),
        "runs": json.dumps([{k: json.loads(v) if v[:1] == "{" else v for k, v in part.items()} for part in own]),
        "pooling": f"{len(teachers)} teachers fitted apart; the averages of each are rotated onto the first one's by "
        "orthogonal Procrustes over the cells of the plane; that uses the ratings, so every permutation of the Mantel "
        "test rotates anew",
        "stability": "not tested: each half of the subjects would need rotations of its own",
    }


def _commands(teachers: Sequence[FittedTeacher], size: int, min_subjects: int, center: bool) -> str:
    lines = [shown_command(public_fingerprint(teacher.fingerprint), _COMMAND) for teacher in teachers]
    runs = [f"runs/{teacher.recipe.name}-{teacher.recipe.seed}" for teacher in teachers]
    build = f"ngd prototypes build {' '.join(runs)} --out grid.safetensors"
    build += f" --size {size}" * (size != 5) + f" --min-subjects {min_subjects}" * (min_subjects != 1)
    return "\n".join([*lines, f"{build}{' --center' * center}"])
