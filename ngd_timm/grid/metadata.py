"""The published format of a grid's metadata, version 1: which keys mean what, and which texts they may hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Json

from ngd_timm.core.errors import InputError
from ngd_timm.core.schema import Count, Part, checked

FORMAT_VERSION = "1"

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Whole = Annotated[str, Field(pattern=r"^[0-9]+$")]
Number = Annotated[str, Field(pattern=r"^-?[0-9]+(\.[0-9]+)?$")]
Names = Annotated[str, Field(pattern=r"^[^,]+(,[^,]+)*$")]


Axis = Literal["valence", "arousal"]
FoldsBy = Literal["subject", "stimulus", "both"]
Probability = Annotated[float, Field(ge=0, le=1)]
Unit = Annotated[float, Field(ge=-1.001, le=1.001)]  # of a rounded cosine or correlation
Interval = Annotated[list[Unit], Field(min_length=2, max_length=2)]


class Chance(Part):
    """What permuted ratings give, and the one-sided p of the score."""

    chance: Unit
    p: Probability


class Score(Chance):
    """One score with its 95 % interval, what chance gives, and p."""

    value: Unit
    ci95: Interval
    given_number: Chance = Chance(chance=0, p=1)
    given_stimulus: Chance = Chance(chance=0, p=1)


class DecisionScores(Part, extra="forbid"):
    """Of decisions between high and low, on one axis; of predictions too where there are any."""

    bacc: Score
    ccc: Score = Field(None, validate_default=False)  # type: ignore[assignment]


class AxisScores(DecisionScores):
    """Of decisions and of predictions, on one axis."""

    ccc: Score = Field()


class Scores(Part):
    """Held-out scores of a teacher and of what it is compared with, by axis."""

    teacher: Annotated[dict[Axis, AxisScores], Field(min_length=2)]
    ridge: dict[Axis, AxisScores] = {}
    logistic_regression: dict[Axis, DecisionScores] = {}
    trial_number: dict[Axis, DecisionScores] = {}
    stimulus_alone: dict[Axis, DecisionScores] = {}
    folds_by: FoldsBy = "subject"
    kind: str = ""
    folds: dict[FoldsBy, dict[str, dict[Axis, DecisionScores]]] = {}


class _Mantel(Part):
    r: Unit
    p: Probability


class _Cosine(Part):
    value: Unit
    ci95: Interval


class _Stability(Part):
    cosine: _Cosine
    centered: Score


class GridTests(Part):
    """The tests of a grid of one size."""

    mantel: _Mantel
    mantel_centered: _Mantel
    stability: _Stability
    filled: Count
    cells: Count
    mean_cosine: Unit


Size = Annotated[str, Field(pattern=r"^[0-9]{1,3}$")]


class _Run(Part):
    dataset: str
    scores: Scores


class _Set(Part):
    dataset: str
    subjects: int
    windows: int
    counts: list[int]


def _shorten(schema: dict[str, Any]) -> None:
    for entry in schema["properties"].values():
        entry.pop("title", None)
        entry.pop("default", None)  # ours when reading; a file has no defaults


class GridMetadata(BaseModel):
    """The `__metadata__` of a grid's safetensors file, version 1. Every value is a string; other keys are allowed.

    `ngd_timm/grid/metadata-v1.schema.json` is the JSON schema of this class, and a file is checked by it when loaded.
    """

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        title="Valence/arousal grid: metadata, version 1",
        json_schema_extra=_shorten,
    )
    __pydantic_extra__: dict[str, str] = Field(init=False)

    format_version: Annotated[Literal["1"], Field(description="Version of this format.")]
    sha256: Annotated[Hash, Field(description="Of the three tensors; the metadata have no part in it.")]
    metadata_sha256: Annotated[Hash, Field(description="Of all other keys, as JSON with sorted keys.")]
    dataset: Annotated[str, Field(description="Whose data; needed for a card. Several are joined by ' + '.")] = ""
    support: Annotated[str, Field(description="Unlabelled recordings that were used.")] = ""
    source: Annotated[Literal["table", "distances"] | None, Field(description="Not from an EEG teacher.")] = None
    provenance: Annotated[str, Field(description="Where the rows come from, in words.")] = ""
    control: Annotated[str, Field(description="The kind of control, if it is one: random, shuffled, va.")] = ""
    simulated: Annotated[Literal["true"] | None, Field(description="Of made-up data.")] = None
    centered: Annotated[Literal["true", "false"], Field(description="Whether the mean row was subtracted.")] = "false"
    min_subjects: Annotated[Whole, Field(description="Cells of fewer subjects count as empty.")] = "1"
    subjects_per_cell: Annotated[
        str, Field(pattern=r"^[0-9]+(,[0-9]+)*$", description="S*S numbers, cell k = i_valence * S + i_arousal.")
    ] = "0"
    subjects: Annotated[Whole, Field(description="In all.")] = "0"
    trials: Annotated[Whole, Field(description="In all.")] = "0"
    windows: Annotated[Whole, Field(description="Embeddings in all.")] = "0"
    channels: Annotated[Names, Field(description="Electrodes.")] = ""
    bands: Annotated[Names, Field(description="Of EEG power.")] = ""
    mantel_r: Annotated[Number, Field(description="1 - cosine against distance on the plane, over filled cells.")] = ""
    mantel_p: Annotated[Number, Field(description="Its one-sided permutation p.")] = ""
    mantel_r_centered: Annotated[Number, Field(description="The declared test: of the centred grid.")] = ""
    mantel_p_centered: Annotated[Number, Field(description="Its one-sided permutation p.")] = ""
    mantel_permutations: Annotated[Whole, Field(description="Of ratings within a subject.")] = "0"
    scores: Annotated[Json[dict[str, Any]], Field(description="Held-out scores of the teacher and its baselines.")] = {}
    grids: Annotated[Json[dict[str, Any]], Field(description="Tests of grids by size.")] = {}
    preprocessing: Annotated[Json[dict[str, Any]], Field(description="From signal to features.")] = {}
    runs: Annotated[Json[list[dict[str, Any]]], Field(description="Of a pooled grid, what each teacher has.")] = []
    sets: Annotated[Json[list[dict[str, Any]]], Field(description="Of several sets, the counts of each.")] = []
    data_sha256: Annotated[Hash, Field(description="Of the data.")] = ""
    source_sha256: Annotated[Hash, Field(description="Of the file that it was made from.")] = ""
    command: Annotated[str, Field(description="What built it.")] = ""


def check_metadata(notes: Mapping[str, str], cells: int) -> None:
    """Check a file's metadata, all keys included, of a grid with so many cells.

    Raises:
        InputError: The first key that doesn't fit, and how.
    """
    known = checked(GridMetadata, notes, "metadata")
    checked(Scores | None, known.scores or None, "metadata", "scores")
    checked(dict[Size, GridTests], known.grids, "metadata", "grids")
    checked(list[_Run], known.runs, "metadata", "runs")
    checked(list[_Set], known.sets, "metadata", "sets")
    if "subjects_per_cell" in notes and (count := known.subjects_per_cell.count(",") + 1) != cells:
        raise InputError(f"metadata 'subjects_per_cell' has {count} numbers for {cells} cells")
