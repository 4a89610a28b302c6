"""Frozen classifiers that teach by their logits, of the student's images and in the student's class order."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import read_json
from ngd_timm.core.hub import pin
from ngd_timm.core.images import LUMINANCE
from ngd_timm.core.recipe import Recipe, load_recipe
from ngd_timm.models.logit_adjustment import classifier_bias, logit_shift
from ngd_timm.models.ngd_models import TimmModel, input_channels, normalisation
from ngd_timm.models.student import notes_of, open_student, run_folder, temperature_of
from ngd_timm.models.timm_folder import label_names


class _Frozen(nn.Module):
    """Holds models without registering them: they move with `.to()` and have no entry in any state dict."""

    def __init__(self, *models: nn.Module) -> None:
        super().__init__()
        self._held = [model.eval().requires_grad_(False) for model in models]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for model in self._held:
            model._apply(fn, recurse)
        return self


class KDTeacher(_Frozen):
    """A frozen classifier, always in eval mode, without gradients and without an entry in any state dict.

    It teaches the logits that were learned: a temperature folded into its classifier is divided out again, and `open`
    also reverts a logit adjustment.

    Args:
        model: A timm classifier with its own `pretrained_cfg`.
        teacher_classes: The classes of its logits.
        classes: The student's classes, a subset of the teacher's.
        student_mean, student_std: Normalisation of the images that `forward` takes, one value a channel.

    Shape:
        images (B, C, H, W) as the student sees them; output: (B, len(classes)) logits.

    Raises:
        InputError: A class of the student that the teacher does not know.
    """

    student_mean: Tensor
    student_std: Tensor
    luminance: Tensor
    mean: Tensor
    std: Tensor
    order: Tensor
    adjustments: tuple[float, ...] = (0.0,)
    """τ of the logit adjustment that `open` reverted."""

    def __init__(
        self,
        model: TimmModel,
        teacher_classes: Sequence[str],
        classes: Sequence[str],
        student_mean: Sequence[float],
        student_std: Sequence[float],
    ) -> None:
        super().__init__(model)
        missing = [c for c in classes if c not in teacher_classes]
        if missing:
            raise InputError(
                f"the teacher does not know {', '.join(missing)}, but {', '.join(teacher_classes)}; train another"
            )
        self.temperature = temperature_of(model)
        self.in_chans, self.size = input_channels(model), tuple(model.pretrained_cfg["input_size"][1:])
        mean, std = normalisation(model)
        self.same_normalisation = (tuple(student_mean), tuple(student_std)) == (mean, std)
        for name, values in (
            ("student_mean", student_mean),
            ("student_std", student_std),
            ("luminance", LUMINANCE),
            ("mean", mean),
            ("std", std),
        ):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("order", torch.tensor([list(teacher_classes).index(c) for c in classes]), persistent=False)

    @classmethod
    def open(
        cls,
        source: str | Path | TimmModel,
        classes: Sequence[str],
        student_mean: Sequence[float],
        student_std: Sequence[float],
    ) -> KDTeacher:
        """Open a run directory, a student folder, a Hub id, a bundled student, or a timm model with label names.

        Where tau · log prior was subtracted from its bias (`student.logit_adjustment`), by what its run or its
        config.json records, that is reverted. A model that timm itself opened has no such record: give its folder, or
        open it by `load_student`.
        """
        if isinstance(source, nn.Module):
            adjusted = "logit_adjustment" in notes_of(source)
            model, names, run = copy.deepcopy(source) if adjusted else source, label_names(source, "teacher"), None
        else:
            source = pin(str(source), "config.json")
            (model, names), run = open_student(source), run_folder(source)
        tau = _revert_run(model, names, run) if run is not None else _revert_notes(model)
        teacher = cls(model, names, classes, student_mean, student_std)
        teacher.adjustments = (tau,)
        return teacher

    @property
    def model(self) -> TimmModel:
        """The classifier."""
        return self._held[0]

    def adapt(self, images: Tensor) -> Tensor:
        """The student's images in this model's channels, normalisation and size."""
        if not self.same_normalisation:
            images = images * self.student_std + self.student_mean
            if images.shape[1] != self.in_chans:
                grey = images if images.shape[1] == 1 else (images * self.luminance).sum(dim=1, keepdim=True)
                images = grey.expand(-1, self.in_chans, -1, -1)
            images = (images - self.mean) / self.std
        if images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        return images

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(self.adapt(images))[:, self.order]
        return logits if self.temperature == 1 else logits * self.temperature


class TeacherEnsemble(_Frozen):
    """The mean of several teachers' logits."""

    def __init__(self, teachers: Sequence[KDTeacher]) -> None:
        super().__init__(*teachers)
        if not teachers:
            raise InputError("an ensemble needs at least one teacher")
        self.adjustments = tuple(tau for teacher in teachers for tau in teacher.adjustments)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        # under autocast logits come in low precision, and the mean must not be rounded once more
        return torch.stack([teacher(images).float() for teacher in self._held]).mean(dim=0)


def open_teacher(
    sources: str | Path | TimmModel | Sequence[str | Path | TimmModel],
    classes: Sequence[str],
    student_mean: Sequence[float],
    student_std: Sequence[float],
) -> KDTeacher | TeacherEnsemble:
    """The teacher of one source, or an ensemble of several; see `KDTeacher.open`."""
    if isinstance(sources, (str, Path, nn.Module)):
        sources = [sources]
    teachers = [KDTeacher.open(source, classes, student_mean, student_std) for source in sources]
    return teachers[0] if len(teachers) == 1 else TeacherEnsemble(teachers)


def _revert_notes(model: TimmModel) -> float:
    """Add to the bias what was subtracted from it, as its config.json notes; τ of that."""
    notes = notes_of(model)
    tau = float(notes.get("logit_adjustment", 0.0)) if "prior" in notes else 0.0
    if tau:
        _add_to_bias(model, logit_shift(notes["prior"], tau))
    return tau


def _revert_run(model: TimmModel, names: Sequence[str], run: Path) -> float:
    """Add to the bias what the student's run subtracted from it; τ of that."""
    recipe = load_recipe(Recipe, run / "recipe.yaml")
    tau = recipe.student.logit_adjustment
    if tau:
        fingerprint = read_json(run / "fingerprint.json")
        try:
            random = recipe.data.sampler == "random"
            counts = fingerprint["data"]["train"]["counts"] if random else fingerprint["labels_drawn"]
            shift = logit_shift([counts[name] for name in names], tau)
        except (KeyError, TypeError):
            raise InputError(
                f"{run}: its logits were adjusted, and its fingerprint.json lacks the counts of its classes to revert "
                "that; train the teacher again"
            ) from None
        _add_to_bias(model, shift)
    return tau


def _add_to_bias(model: TimmModel, shift: Tensor) -> None:
    bias = classifier_bias(model)
    bias.data.add_(shift.to(bias) / temperature_of(model))
