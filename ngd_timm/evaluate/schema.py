"""What the JSON files of runs and ablations must hold when they are read back; what is written is never checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from ngd_timm.core.schema import Amount, Count, Name, Pair, Part, Percent, Points, read_checked

Protocol = Literal["8way", "present", "present_unmasked"]
_Unit = Literal["image", "subject"]


class _Bootstrap(Part):
    unit: _Unit


class Metrics(Part):
    acc: Percent
    macro_f1: Percent
    bacc: Percent


class _Intervals(Part):
    acc: Pair
    macro_f1: Pair
    bacc: Pair


class _ClassScores(Part):
    precision: Percent
    recall: Percent
    f1: Percent
    support: Count


class _Bin(Part):
    n: Count
    confidence: Percent | None
    accuracy: Percent | None

    @model_validator(mode="after")
    def _is_whole(self) -> _Bin:
        if self.n and (self.confidence is None or self.accuracy is None):
            raise ValueError("a bin of images has a confidence and an accuracy")
        return self


class ScoredOnce(Part):
    """An entry of metrics.json as a page of results keeps it: without what other numbers say already."""

    n: PositiveInt
    present_classes: list[str]
    all_classes: Annotated[Metrics, Field(alias="8way")]
    ci95: dict[Protocol, _Intervals] = {}
    bootstrap: _Bootstrap | None = None
    per_class: dict[str, _ClassScores]
    confusion: list[list[Count]]
    confusion_present: list[list[Count]] = []
    calibration: list[_Bin] = []
    ece: Percent | None = None
    temperature: Amount = 1.0
    label_rule: str = ""
    flip: bool = False
    prior: str | dict[str, float] = ""
    drop_duplicates: bool = True
    student_sha256: str | None = None
    folded_from: str | None = None
    dataset_id: str = ""

    @model_validator(mode="after")
    def _numbers_agree(self) -> ScoredOnce:
        size, classes = len(self.per_class), set(self.per_class)
        for matrix in (self.confusion, self.confusion_present or self.confusion):
            if len(matrix) != size or any(len(row) != size for row in matrix) or sum(map(sum, matrix)) != self.n:
                raise ValueError(f"confusion is not of {size} classes and {self.n} images")
        support = [scores.support for scores in self.per_class.values()]
        present = [name for name, row in zip(self.per_class, self.confusion, strict=True) if sum(row)]
        if [*map(sum, self.confusion)] != support or not set(self.present_classes) == set(present) <= classes:
            raise ValueError("per_class, present_classes and confusion are of different images")
        return self


class Entry(ScoredOnce):
    """An entry of metrics.json."""

    present: Metrics


class _Split(Part):
    kept: Count = 0
    read: Count = 0
    labels: str = ""
    dropped: dict[str, Count] = {}
    counts: dict[str, Amount] = {}
    sha256: str = ""
    dataset_id: str | None = None


class Fingerprint(Part):
    """fingerprint.json of a student's run; a published one has a few keys more, and older ones have fewer."""

    data: dict[str, _Split] = {}
    grid: str | None = None
    teacher: str | list[str] | None = None
    teacher_config: list[str] = []
    init: str | None = None
    backbone: str | None = None
    precision: str = ""
    processes: PositiveInt = 1
    packages: dict[str, str] = {}
    labels_drawn: dict[str, Amount] = {}
    command: list[str] | None = None
    share_proto_kd: Percent | None = None


class _Summary(Part):
    mean: Points
    ci95: Pair
    per_seed: list[Points]
    seed_sd: Amount | None
    seed_ci95: Pair | None


class _Summaries(Part):
    acc: _Summary
    macro_f1: _Summary
    bacc: _Summary


class _Row(Part):
    bootstrap: _Bootstrap
    all_classes: Annotated[_Summaries, Field(alias="8way")]
    present: _Summaries


class _Difference(_Row):
    a: str
    b: str


class _Compared(Part):
    n: PositiveInt
    classes: list[str]
    present_classes: list[str]
    label_rule: str = ""
    flip: bool = False
    recipes: Annotated[dict[str, _Row], Field(min_length=1)]
    differences: list[_Difference]


class _Shares(Part):
    ce: Percent | None
    kd: Percent | None
    proto_kd: Percent | None
    d_geo: Percent | None


class _Training(Part):
    share: _Shares
    lambda_proto_kd: Amount | None
    epochs: Count
    minutes: Amount


class _Choose(Part):
    metric: Literal["acc", "macro_f1", "bacc"]
    valid: str
    sets: Annotated[list[str], Field(min_length=1)]


class _Swept(Part):
    recipe: str
    values: dict[str, Any]


class Comparison(Part):
    """ablation.json."""

    recipes: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[Count], Field(min_length=1)]
    warm_start: bool
    runs: dict[str, list[Name]]
    sets: Annotated[dict[Name, _Compared], Field(min_length=1)]
    training: dict[str, _Training]
    swept: dict[str, _Swept] = {}
    choose: _Choose | None = None
    command: list[str] | None = None

    @model_validator(mode="after")
    def _recipes_are_in_every_part(self) -> Comparison:
        parts = [{*self.runs}, {*self.training}, *({*found.recipes} for found in self.sets.values())]
        if not all({*self.recipes, *self.swept} <= part for part in parts):
            raise ValueError("a recipe is not in every one of runs, training and sets")
        if self.choose and not {self.choose.valid, *self.choose.sets} <= self.sets.keys():
            raise ValueError("choose names sets that are not there")
        return self


def read_entries(path: str | Path, shown: str | None = None) -> dict[str, Any]:
    """The entries of metrics.json by set."""
    return read_checked(dict[Name, Entry], path, shown, "evaluate the run again")


def read_fingerprint(path: str | Path, shown: str | None = None) -> dict[str, Any]:
    """fingerprint.json of a student's run."""
    return read_checked(Fingerprint, path, shown, "restore it, or train again")


def read_comparison(folder: Path) -> dict[str, Any]:
    """ablation.json of a folder."""
    return read_checked(Comparison, folder / "ablation.json", fix="run the same ngd ablate again")
