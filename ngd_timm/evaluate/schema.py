"""What the JSON files of runs and ablations must hold when they are read back; what is written is never checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from ngd_timm.core.errors import InputError
from ngd_timm.core.schema import Amount, Count, Name, Pair, Percent, Points, by_key, listed, read_checked, record
from ngd_timm.evaluate.metrics import METRICS, PROTOCOLS
from ngd_timm.losses import COMPONENTS

_SAMPLED = record({"unit": Literal["image", "subject"]})
_SCORES = by_key(Percent, METRICS, len(METRICS))
_CLASS = record({"precision": Percent, "recall": Percent, "f1": Percent, "support": Count})
_BIN = record({"n": Count, "confidence": Percent | None, "accuracy": Percent | None})
_SCORED = {"n": PositiveInt, "present_classes": listed(str), "8way": _SCORES, "present": _SCORES}
_SCORED |= {"per_class": by_key(_CLASS), "confusion": listed(listed(Count))}
_MORE = {"ci95": by_key(by_key(Pair, METRICS, len(METRICS)), PROTOCOLS), "confusion_present": listed(listed(Count))}
_MORE |= {"bootstrap": _SAMPLED, "calibration": listed(_BIN), "temperature": Amount, "prior": str | dict[str, float]}
_MORE |= {"drop_duplicates": bool, "student_sha256": str, "folded_from": str, "dataset_id": str}
_MORE |= {"ece": Percent, "label_rule": str, "flip": bool}
_ENTRY = record(_SCORED, _MORE)

_SPLIT = {"kept": Count, "read": Count, "labels": str, "dropped": by_key(Count), "sha256": str}
_SPLIT |= {"counts": by_key(Amount), "dataset_id": str | None}
_STARTED = {"data": by_key(record({}, _SPLIT)), "labels_drawn": by_key(Amount)}
_STARTED |= {"teacher": str | list[str] | None, "teacher_config": listed(str), "packages": by_key(str)}
_STARTED |= {"grid": str | None, "init": str | None, "backbone": str | None, "command": list[str] | None}
_FINGERPRINT = record({}, {**_STARTED, "precision": str, "processes": PositiveInt, "share_proto_kd": Percent})

_MEAN = record({"mean": Points, "ci95": Pair, "seed_sd": Amount | None, "seed_ci95": Pair | None})
_MEANS = by_key(_MEAN, METRICS, len(METRICS))
_ROW = {"bootstrap": _SAMPLED, "8way": _MEANS, "present": _MEANS}
_SET = {"n": PositiveInt, "classes": listed(str), "present_classes": listed(str)}
_SET |= {"recipes": by_key(record(_ROW), least=1), "differences": listed(record({**_ROW, "a": str, "b": str}))}
_TRAINING = {"share": by_key(Percent | None, COMPONENTS, len(COMPONENTS)), "lambda_proto_kd": Amount | None}
_TRAINING |= {"epochs": Count, "minutes": Amount}
_CHOICE = record({"metric": Literal["acc", "macro_f1", "bacc"], "valid": str, "sets": listed(str, 1)})
_SWEPT = by_key(record({"recipe": str, "values": dict[str, Any]}))
_TABLE = {"recipes": listed(str, 1), "seeds": listed(Count, 1), "warm_start": bool, "runs": by_key(listed(Name))}
_TABLE |= {
    "sets": by_key(record(_SET, {"label_rule": str, "flip": bool, "counts": by_key(PositiveInt)}), Name, 1),
    "training": by_key(record(_TRAINING, {"images": Count | None, "epoch_repeats": PositiveInt})),
}
_ABLATION = record(_TABLE, {"swept": _SWEPT, "choose": _CHOICE | None, "command": list[str] | None})


def read_entries(path: str | Path, shown: str | None = None) -> dict[str, Any]:
    """The entries of metrics.json by set."""
    entries = read_checked(by_key(_ENTRY, Name), path, shown, "evaluate the run again")
    for key, entry in entries.items():
        if not _agrees(entry):
            raise InputError(f"{shown or path}: metrics.json has numbers of {key} that don't agree; evaluate it again")
    return entries


def _agrees(entry: Mapping[str, Any]) -> bool:
    """Whether all numbers of an entry are of the same images and classes."""
    classes, matrix = entry["per_class"], entry["confusion"]
    for counts in (matrix, entry.get("confusion_present", matrix)):
        if {len(counts), *map(len, counts)} != {len(classes)} or sum(map(sum, counts)) != entry["n"]:
            return False
    present = {name for name, row in zip(classes, matrix, strict=True) if sum(row)}
    known = all(
        b["confidence"] is not None and b["accuracy"] is not None for b in entry.get("calibration", ()) if b["n"]
    )
    support = [scores["support"] for scores in classes.values()]
    return known and support == [*map(sum, matrix)] and set(entry["present_classes"]) == present


def read_fingerprint(path: str | Path, shown: str | None = None) -> dict[str, Any]:
    """fingerprint.json of a student's run."""
    return read_checked(_FINGERPRINT, path, shown, "restore it, or train again")


def read_comparison(folder: Path) -> dict[str, Any]:
    """ablation.json of a folder."""
    file = folder / "ablation.json"
    found = read_checked(_ABLATION, file, fix="run the same ngd ablate again")
    rows, choice = {*found["recipes"], *found.get("swept", ())}, found.get("choose") or {"valid": None, "sets": []}
    parts = [found["runs"], found["training"], *(part["recipes"] for part in found["sets"].values())]
    if not all(rows <= {*part} for part in parts) or not {*choice["sets"]} <= {*found["sets"]}:
        raise InputError(f"{file}: a recipe or a set is not in all of its parts; run the same ngd ablate again")
    return found
