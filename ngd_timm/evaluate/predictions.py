"""A student's predictions on a data set: logits, embeddings and targets, kept in one file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ngd_timm.core.devices import send
from ngd_timm.core.distributed import gather
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import atomic_path
from ngd_timm.evaluate.metrics import fer_metrics
from ngd_timm.models.ngd_models import DistillationWrapper, TimmModel

_NOTES = ("classes", "label_rule", "flip", "data_sha256")
_TENSORS = {
    "logits": (torch.float32, 2),
    "target": (torch.int64, 1),
    "embedding": (torch.float32, 2),
    "subject": (torch.int64, 1),
}


@dataclass(frozen=True, eq=False)
class Predictions:
    """A student's predictions on N images, in the order of the data set.

    Attributes:
        logits: (N, C) float32.
        target: (N,) int64; of soft labels the first largest.
        embedding: (N, D) float32 in the grid's space, not normalised; the pre-logits where a run has no projection;
            None of a bare student.
        subject: (N,) int64 codes of the subjects, or None where the set doesn't name them.
        classes: Names of the C classes.
        label_rule: How votes became labels, or `data.labels.GIVEN`.
        flip: Whether logits and embedding are averaged with the mirror image's.
        data_sha256: Of the images and targets (`LoadReport.sha256`).
    """

    logits: Tensor
    target: Tensor
    embedding: Tensor | None = None
    subject: Tensor | None = None
    classes: tuple[str, ...] = ()
    label_rule: str = "majority"
    flip: bool = False
    data_sha256: str = ""

    def described(self, classes: Sequence[str], label_rule: str, data_sha256: str) -> Predictions:
        """The same with what batches don't know."""
        return replace(self, classes=tuple(classes), label_rule=label_rule, data_sha256=data_sha256)

    def shifted(self, shift: Tensor) -> Predictions:
        """The same with (C,) added to the logits."""
        return replace(self, logits=self.logits + shift)

    def entry(self, temperature: float = 1.0, **notes: Any) -> dict[str, Any]:
        """The entry of metrics.json, with `notes` added; `temperature` as in `fer_metrics`."""
        metrics = fer_metrics(self.logits, self.target, self.classes, self.subject, temperature=temperature)
        return {**metrics, "label_rule": self.label_rule, "flip": self.flip, "prior": "training", **notes}


@torch.no_grad()
def predict(
    model: DistillationWrapper | TimmModel,
    batches: Any,
    device: torch.device,
    flip: bool = False,
    between_batches: Callable[[], object] | None = None,
) -> Predictions:
    """Predict every image once (twice with `flip`); a wrapped student gives its embeddings too."""
    wrapped = isinstance(model, DistillationWrapper)
    model.eval()
    collected: dict[str, list[Tensor]] = {"index": [], "target": [], "logits": [], "embedding": []}
    for batch in batches:
        if between_batches is not None:
            between_batches()
        images = send(batch.images, device)
        views = [images, images.flip(-1)] if flip else [images]
        outputs = [model(view, return_embedding=True) if wrapped else (model(view), None) for view in views]
        for name, parts in zip(("logits", "embedding"), zip(*outputs, strict=True), strict=True):
            if parts[0] is not None:
                collected[name].append((sum(parts) / len(parts)).float().cpu())
        target = batch.target
        collected["index"].append(batch.index)
        # numpy takes the first of equal votes, as `fer_metrics` does
        collected["target"].append(target if target.ndim == 1 else torch.from_numpy(target.numpy().argmax(axis=1)))
    rows = {name: torch.cat(parts) for name, parts in collected.items() if parts}
    if getattr(batches, "part", (0, 1))[1] > 1:
        rows = gather_rows(rows)
    subject = subject_codes(batches.dataset)
    return Predictions(rows["logits"], rows["target"], rows.get("embedding"), subject, flip=flip)


def gather_rows(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the rows (n, …) of all processes by their "index" (n,) in the data set, each row once."""
    parts = [part for part in gather(dict(rows)) if part]  # a process may have had no batch
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    _, first = np.unique(joined["index"].numpy(), return_index=True)
    return {name: values[torch.from_numpy(first)] for name, values in joined.items()}


def subject_codes(dataset: Any) -> Tensor | None:
    """(N,) int64, a number for each subject; None where the set names none, or one alone, of whom none can be drawn."""
    if "subject" not in dataset.column_names:
        return None
    names = [name or None for name in dataset["subject"][:]]
    known = sorted({name for name in names if name is not None})
    if not known:
        return None
    code = {name: number for number, name in enumerate(known)}
    # each image without a name is a subject of its own
    codes = [len(code) + row if name is None else code[name] for row, name in enumerate(names)]
    return torch.tensor(codes, dtype=torch.int64) if len({*codes}) > 1 else None


def prediction_file(run: str | Path, key: str) -> Path:
    """Where a run keeps its predictions on the data set `name:split` of metrics.json."""
    return Path(run) / "predictions" / f"{key.replace(':', '-')}.safetensors"


def write_predictions(path: str | Path, predictions: Predictions) -> Path:
    """Write predictions with embeddings atomically, as `read_predictions` reads them."""
    if predictions.embedding is None:
        raise InputError("predictions without embeddings are not kept: predict with the wrapped student")
    tensors = {name: getattr(predictions, name) for name in _TENSORS}
    notes = {
        "classes": json.dumps(list(predictions.classes)),
        "label_rule": predictions.label_rule,
        "flip": json.dumps(predictions.flip),
        "data_sha256": predictions.data_sha256,
    }
    with atomic_path(path) as temporary:
        save_file({k: t.contiguous() for k, t in tensors.items() if t is not None}, temporary, metadata=notes)
    return Path(path)


def read_predictions(path: str | Path) -> Predictions:
    """Read a run's predictions, checked.

    Args:
        path: `RUN/predictions/<name>-<split>.safetensors`.

    Raises:
        InputError: No such file, a damaged one, or tensors that don't fit together.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; write it with: ngd evaluate RUN --data name=root:split --predictions")
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error}); evaluate the run again") from None
    problem = _problem(tensors, notes)
    if problem:
        raise InputError(f"{path}: {problem}; evaluate the run again")
    return Predictions(
        **tensors,
        classes=tuple(json.loads(notes["classes"])),
        label_rule=notes["label_rule"],
        flip=json.loads(notes["flip"]),
        data_sha256=notes["data_sha256"],
    )


def _problem(tensors: dict[str, Tensor], notes: dict[str, str]) -> str | None:
    missing = [n for n in _NOTES if n not in notes] + [n for n in ("logits", "target", "embedding") if n not in tensors]
    if missing:
        return f"{', '.join(missing)} missing"
    try:
        classes, flip = json.loads(notes["classes"]), json.loads(notes["flip"])
    except json.JSONDecodeError:
        return "classes or flip are not JSON"
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes) or not isinstance(flip, bool):
        return "classes must be a list of names and flip true or false"
    rows = tensors["target"].numel()
    for name, tensor in tensors.items():
        if name not in _TENSORS:
            return f"unknown tensor '{name}'"
        dtype, dimensions = _TENSORS[name]
        if tensor.dtype != dtype or tensor.ndim != dimensions or len(tensor) != rows or not rows:
            shape = f"({rows}, …)" if dimensions == 2 else f"({rows},)"
            return f"{name} must be {shape} of {dtype}, got {tuple(tensor.shape)} of {tensor.dtype}"
        if not bool(torch.isfinite(tensor).all()):
            return f"{name} is not finite everywhere"
    if tensors["logits"].shape[1] != len(classes):
        return f"{tensors['logits'].shape[1]} logits for {len(classes)} classes"
    target = tensors["target"]
    if not bool(((target >= 0) & (target < len(classes))).all()):
        return f"targets outside 0..{len(classes) - 1}"
    return None
