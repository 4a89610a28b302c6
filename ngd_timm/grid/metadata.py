"""The published format of a grid's metadata, version 1: which keys mean what, and which texts they may hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Json

from ngd_timm.core.affect import AXES
from ngd_timm.core.errors import InputError
from ngd_timm.core.schema import Count, by_key, checked, listed, record
from ngd_timm.grid.verdict import FOLDS

FORMAT_VERSION = "1"

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Whole = Annotated[str, Field(pattern=r"^[0-9]+$")]
Number = Annotated[str, Field(pattern=r"^-?[0-9]+(\.[0-9]+)?$")]
Names = Annotated[str, Field(pattern=r"^[^,]+(,[^,]+)*$")]


Unit = Annotated[float, Field(ge=-1.001, le=1.001)]  # of a rounded cosine or correlation
_INTERVAL = Annotated[list[Unit], Field(min_length=2, max_length=2)]
_P = Annotated[float, Field(ge=0, le=1)]
_CHANCE = {"chance": Unit, "p": _P}
_GIVEN = dict.fromkeys(("given_number", "given_stimulus"), record(_CHANCE))
_SCORE = record({**_CHANCE, "value": Unit, "ci95": _INTERVAL}, _GIVEN)
_BOTH = by_key(_SCORE, ("bacc", "ccc"), least=2)  # of decisions between high and low, and of predictions
_DECISIONS = by_key(record({"bacc": _SCORE}, {"ccc": _SCORE}), AXES)
SCORES_NEEDED = {"teacher": by_key(_BOTH, AXES, least=2)}
SCORES_OPTIONAL = {"ridge": by_key(_BOTH, AXES), "logistic_regression": _DECISIONS, "trial_number": _DECISIONS}
SCORES_OPTIONAL |= {"stimulus_alone": _DECISIONS, "folds_by": Literal["subject", "stimulus", "both"], "kind": str}
SCORES_OPTIONAL |= {"folds": by_key(by_key(_DECISIONS), tuple(FOLDS))}
"""Held-out scores of a teacher and of what it is compared with, by axis."""
_SCORES = record(SCORES_NEEDED, SCORES_OPTIONAL)
_MANTEL = record({"r": Unit, "p": _P})
_HALVES = record({"cosine": record({"value": Unit, "ci95": _INTERVAL}), "centered": _SCORE})
_TESTS = {"mantel": _MANTEL, "mantel_centered": _MANTEL, "stability": _HALVES}
SIZE = Annotated[str, Field(pattern=r"^[0-9]{1,3}$")]
GRIDS = by_key(record({**_TESTS, "filled": Count, "cells": Count, "mean_cosine": Unit}), SIZE)
"""The tests of grids by size."""
_RUN = record({"dataset": str, "scores": _SCORES})
_SET = record({"dataset": str, "subjects": Count, "windows": Count, "counts": listed(Count)})


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
    mantel_permutations: Annotated[Whole, Field(description="Of ratings in a subject, or of held-out stimuli.")] = "0"
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
    for key, kind in (("scores", _SCORES), ("grids", GRIDS), ("runs", listed(_RUN)), ("sets", listed(_SET))):
        if value := getattr(known, key):
            checked(kind, value, "metadata", key)
    if "subjects_per_cell" in notes and (count := known.subjects_per_cell.count(",") + 1) != cells:
        raise InputError(f"metadata 'subjects_per_cell' has {count} numbers for {cells} cells")
