"""A frozen classifier that teaches by its logits: fed as it wants to be, read in the student's class order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import read_json
from ngd_timm.core.hub import hub_id, pin
from ngd_timm.core.recipe import Recipe, load_recipe
from ngd_timm.models.logit_adjustment import classifier_bias, logit_shift
from ngd_timm.models.ngd_models import TimmModel, input_channels, normalisation
from ngd_timm.models.student import label_names, open_student, run_folder, student_versions, temperature_of

__all__ = ["KDTeacher", "TeacherEnsemble", "open_teacher"]

_LUMINANCE = (0.299, 0.587, 0.114)


class KDTeacher(nn.Module):
    """Always in eval, without gradients, and with no entry in any state dict: the model is held, not registered.

    It teaches the logits that were learned: a temperature folded into its classifier is divided out again.

    Args:
        model: A timm classifier with its own `pretrained_cfg`.
        teacher_classes: What its logits mean.
        classes: The student's classes, a subset of the teacher's.
        student_mean, student_std: Normalisation of the images that `forward` is given, one value a channel.

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
    """τ of the logit adjustment that `open` took back."""

    def __init__(
        self,
        model: TimmModel,
        teacher_classes: Sequence[str],
        classes: Sequence[str],
        student_mean: Sequence[float],
        student_std: Sequence[float],
    ) -> None:
        super().__init__()
        missing = [c for c in classes if c not in teacher_classes]
        if missing:
            raise InputError(
                f"the teacher does not know {', '.join(missing)}; it knows {', '.join(teacher_classes)}. Train "
                "one on the student's classes"
            )
        self._held: list[TimmModel] = [model.eval().requires_grad_(False)]
        self.temperature = temperature_of(model)
        cfg = model.pretrained_cfg
        self.in_chans, self.size = input_channels(model), (int(cfg["input_size"][1]), int(cfg["input_size"][2]))
        mean, std = normalisation(model)
        self.same_normalisation = (tuple(student_mean), tuple(student_std)) == (mean, std)
        self.register_buffer("student_mean", torch.tensor(student_mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("student_std", torch.tensor(student_std).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("luminance", torch.tensor(_LUMINANCE).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("order", torch.tensor([list(teacher_classes).index(c) for c in classes]), persistent=False)

    @classmethod
    def open(
        cls,
        source: str | Path | TimmModel,
        classes: Sequence[str],
        student_mean: Sequence[float],
        student_std: Sequence[float],
    ) -> KDTeacher:
        """From a run directory, a student folder, a Hub id, a student in the wheel, or a timm model with label names.

        It teaches what it learned: where its run took tau · log prior from the saved bias (`student.logit_adjustment`),
        that is given back; a model, or a student without its recipe.yaml and fingerprint.json, keeps it.
        """
        if isinstance(source, nn.Module):
            return cls(source, label_names(source, "teacher"), classes, student_mean, student_std)
        shipped = student_versions()
        if hub_id(source) is None and not Path(source).exists() and str(source) not in shipped:
            raise InputError(
                f"teacher '{source}' does not exist; give a finished run directory, user/repo on the Hub, or a student "
                f"that ships ({', '.join(shipped)})"
            )
        source = pin(str(source), "config.json")
        model, names = open_student(source)
        tau = _take_back_adjustment(model, names, source)
        teacher = cls(model, names, classes, student_mean, student_std)
        teacher.adjustments = (tau,)
        return teacher

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> KDTeacher:
        super()._apply(fn, recurse)
        self._held[0]._apply(fn, recurse)
        return self

    @property
    def model(self) -> TimmModel:
        """The classifier."""
        return self._held[0]

    def adapt(self, images: Tensor) -> Tensor:
        """The student's images as this model wants them."""
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


class TeacherEnsemble(nn.Module):
    """Several frozen classifiers as one: the mean of their logits. Like a `KDTeacher` it has no entry in a state dict.

    Args:
        teachers: At least one, each made for the same student.

    Shape:
        images (B, C, H, W) as the student sees them; output: (B, classes) logits.

    Example:
        >>> import timm
        >>> models = [timm.create_model("test_resnet", num_classes=8, in_chans=1) for _ in range(2)]
        >>> ensemble = TeacherEnsemble([KDTeacher(m, range(8), range(8), (0.5,), (0.25,)) for m in models])
        >>> tuple(ensemble(torch.zeros(4, 1, 32, 32)).shape)
        (4, 8)
    """

    def __init__(self, teachers: Sequence[KDTeacher]) -> None:
        super().__init__()
        if not teachers:
            raise InputError("an ensemble needs at least one teacher")
        self._held = list(teachers)

    @property
    def adjustments(self) -> tuple[float, ...]:
        """Those of its teachers."""
        return tuple(tau for teacher in self._held for tau in teacher.adjustments)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> TeacherEnsemble:
        super()._apply(fn, recurse)
        for teacher in self._held:
            teacher._apply(fn, recurse)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        # autocast gives logits of low precision, of which only one rounding is wanted
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


def _take_back_adjustment(model: TimmModel, names: Sequence[str], source: str) -> float:
    """Give the bias back what the student's run took from it; τ of that, 0 where nothing is known of a run."""
    run = run_folder(source)
    if run is None:
        return 0.0
    recipe = load_recipe(Recipe, run / "recipe.yaml")
    tau = recipe.student.logit_adjustment
    if tau:
        fingerprint = read_json(run / "fingerprint.json")
        try:
            drawn_once = recipe.data.sampler == "random"
            counts = fingerprint["data"]["train"]["counts"] if drawn_once else fingerprint["labels_drawn"]
            shift = logit_shift([counts[name] for name in names], tau)
        except (KeyError, TypeError):
            raise InputError(
                f"{source}: its logits were adjusted, and {run / 'fingerprint.json'} lacks the counts of its classes "
                "to take that back; train the teacher again"
            ) from None
        bias = classifier_bias(model)
        bias.data.add_(shift.to(bias) / temperature_of(model))
    return tau
