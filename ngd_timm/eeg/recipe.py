"""The teacher's recipe: which recordings, which backbone, how it is fitted and scored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ngd_timm.recipe import StrictModel

__all__ = ["TeacherRecipe"]


class TeacherData(StrictModel):
    """Which recordings, and in how many folds of subjects."""

    name: Literal["gameemo", "bandpower"] = "gameemo"
    root: str | None = None
    folds: Annotated[int, Field(ge=3, le=50)] = 5  # two folds share no training recordings to align them on
    bands: tuple[str, ...] | None = None


class TeacherModel(StrictModel):
    """The timm backbone that sees topographic maps, bands as channels."""

    backbone: str = "resnet10t"
    image_size: Annotated[int, Field(ge=16, le=512)] = 32
    embedding_dim: Annotated[int, Field(ge=2, le=4096)] = 64
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0


class TeacherAugment(StrictModel):
    """What a training sample goes through; everything at its zero (average: 1) is off."""

    average: Annotated[int, Field(ge=1)] = 4  # a sample is the mean of 1 to this many windows of its trial
    noise: Annotated[float, Field(ge=0)] = 0.2  # standard deviations of the z-score
    channel_drop: Annotated[float, Field(ge=0, lt=1)] = 0.1  # set to the subject's mean, which is 0
    mixup: Annotated[float, Field(ge=0)] = 0.4  # Beta(a, a); maps and ratings are mixed alike


class TeacherOptim(StrictModel):
    """Optimizer and schedule, handed to timm's own factories; epochs are fixed, nothing is chosen on held-out data."""

    opt: str = "adamw"
    epochs: Annotated[int, Field(ge=1)] = 12
    batch_size: Annotated[int, Field(ge=4)] = 64
    samples_per_trial: Annotated[int, Field(ge=1)] = 8
    lr: Annotated[float, Field(gt=0)] = 1.0e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup: Annotated[int, Field(ge=0)] = 1
    clip_grad: Annotated[float, Field(gt=0)] | None = 1.0
    ccc: Annotated[float, Field(ge=0)] = 1.0
    mse: Annotated[float, Field(ge=0)] = 1.0


class TeacherScores(StrictModel):
    """How often subjects are resampled for an interval, and ratings permuted for chance."""

    bootstrap: Annotated[int, Field(ge=1)] = 2000
    permutations: Annotated[int, Field(ge=1)] = 2000


class TeacherRecipe(StrictModel):
    """A teacher run.

    Example:
        >>> TeacherRecipe(name="mine", data={"name": "bandpower", "root": "mine.npz"}).data.folds
        5
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    out: str | None = None
    data: TeacherData = TeacherData()
    teacher: TeacherModel = TeacherModel()
    augment: TeacherAugment = TeacherAugment()
    optim: TeacherOptim = TeacherOptim()
    scores: TeacherScores = TeacherScores()
    device: str = "auto"
