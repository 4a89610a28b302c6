"""The teacher's recipe: which recordings, which backbone, how it is fitted and scored.

The paper says "EEG topographic maps" and "valence and arousal"; every number here is our reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from ngd_timm.core.recipe import StrictModel

BANDS: Mapping[str, tuple[float, float]] = {
    "delta": (1.0, 4.0),
    "theta": (4.0, 8.0),
    "alpha": (8.0, 13.0),
    "beta": (13.0, 30.0),
    "gamma": (30.0, 45.0),
}
"""Frequency bands, in Hz from and up to."""

BandPowerName = Literal["gameemo", "bandpower"]
RecordingName = Literal["dreamer", "mahnob", "deap", "faced", "bids", "recordings"]


class Source(StrictModel):
    """A set of recordings: the name of its layout, and where it lies."""

    name: BandPowerName | RecordingName
    root: str | None = None


class TeacherData(StrictModel):
    """Which recordings, how their signal becomes band power, and in how many folds of subjects, stimuli or both."""

    name: BandPowerName | RecordingName = "gameemo"
    root: str | None = None
    also: tuple[Source, ...] = ()  # rated as well, and pooled with `root`
    # electrodes of a pool: those that all sets have, or the first set's, interpolated where another lacks them
    montage: Literal["intersection", "interpolate"] = "intersection"
    support: Source | None = None  # for the consistency loss; its ratings are not used
    folds: Annotated[int, Field(ge=3, le=50)] = 5  # two folds share no training recordings to align them on
    # both: a cell of subjects x stimuli is predicted by a model that saw neither its subjects nor its stimuli
    folds_by: Literal["subject", "stimulus", "both"] = "subject"
    bands: tuple[str, ...] | None = None  # of BANDS, or of the file; None: all
    channels: tuple[str, ...] | None = None  # None: all that the data have
    # where the ratings of a BIDS data set stand: columns of events.tsv, or of the table that `ratings` names
    ratings: str | None = None
    valence: str = "valence"
    arousal: str = "arousal"
    stimulus: str | None = None
    scale: tuple[float, float] = (1.0, 9.0)
    # the keys from here on are about signals; files of band power take none of them
    window_s: Annotated[float, Field(ge=1, le=60)] = 4.0  # seconds, no overlap
    highpass: Annotated[float, Field(gt=0, lt=4)] = 1.0  # Hz
    lowpass: Annotated[float, Field(gt=4)] = 45.0  # Hz
    notch: Literal[50, 60] | None = 50  # Hz, mains and its harmonics
    artefact_uv: Annotated[float, Field(gt=0)] | None = 200.0  # a window that swings wider (peak to peak) is dropped
    baseline: bool = True  # divide by the mean (of logs) baseline power, where the recordings have a baseline
    cache: bool = True  # keep band power under $XDG_CACHE_HOME/ngd_timm, or ~/.cache/ngd_timm

    @model_validator(mode="after")
    def _keys_fit_the_sets(self) -> TeacherData:
        if self.montage != "intersection" and not self.also:
            raise ValueError("data.montage=interpolate is about several sets; name the others in data.also")
        if self.scale[0] >= self.scale[1]:
            raise ValueError(f"data.scale is [lowest, highest] rating, got {list(self.scale)}")
        if sum(source.name == "bids" for source in (self, *self.also, self.support) if source is not None) > 1:
            raise ValueError(
                f"data.{', data.'.join(BIDS_KEYS)} are of one BIDS data set, and several are named; fit a teacher on "
                "each, and pool their grids"
            )
        if "bids" not in self.names:
            for key in BIDS_KEYS:
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"data.{key} is about BIDS data sets, and there is none; see data.name")
        if self.name in get_args(RecordingName) and self.bands is not None:
            unknown = [band for band in self.bands if band not in BANDS]
            if unknown:
                raise ValueError(f"unknown band {', '.join(unknown)}; allowed: {', '.join(BANDS)}")
        return self

    @property
    def names(self) -> set[str]:
        """The layouts of all sets that are read."""
        return {source.name for source in (self, *self.also, self.support) if source is not None}


SIGNAL_KEYS = ("window_s", "highpass", "lowpass", "notch", "artefact_uv", "baseline")
"""Keys of `TeacherData` that change what a signal's band power is."""

BIDS_KEYS = ("ratings", "valence", "arousal", "stimulus", "scale")
"""Keys of `TeacherData` that say where the ratings of a BIDS data set stand."""


class TeacherModel(StrictModel):
    """What reads valence and arousal: a timm backbone that sees topographic maps, bands as channels, or a ridge."""

    # ridge: of the trials' z-scored log power; riemann: of tangent vectors of the signals' co-spectra (pyriemann). Both
    # take nothing else from here than embedding_dim, and nothing from augment and optim.
    kind: Literal["topomap", "ridge", "riemann"] = "topomap"
    backbone: str = "resnet10t"
    image_size: Annotated[int, Field(ge=16, le=512)] = 32
    embedding_dim: Annotated[int, Field(ge=2, le=4096)] = 64
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0


class TeacherAugment(StrictModel):
    """Augmentation of a training sample; everything at its zero (average: 1) is off."""

    average: Annotated[int, Field(ge=1)] = 4  # a sample is the mean of 1 to this many windows of its trial
    noise: Annotated[float, Field(ge=0)] = 0.2  # stds of the z-score
    channel_drop: Annotated[float, Field(ge=0, lt=1)] = 0.1  # set to the subject's mean, which is 0
    mixup: Annotated[float, Field(ge=0)] = 0.4  # Beta(a, a); maps and ratings are mixed alike


class TeacherOptim(StrictModel):
    """Optimizer and schedule, for timm's own factories; epochs are fixed, nothing is selected on held-out data."""

    opt: str = "adamw"
    epochs: Annotated[int, Field(ge=1)] = 12
    batch_size: Annotated[int, Field(ge=4)] = 64
    # in an epoch, never more than the trial has windows; the time of a fit is in proportion to it
    samples_per_trial: Annotated[int, Field(ge=1)] = 8
    lr: Annotated[float, Field(gt=0)] = 1.0e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup: Annotated[int, Field(ge=0)] = 1
    clip_grad: Annotated[float, Field(gt=0)] | None = 1.0
    fast: bool = False  # fused optimizer, small maps as matrix products: four tenths less time, other rounding
    ccc: Annotated[float, Field(ge=0)] = 1.0
    mse: Annotated[float, Field(ge=0)] = 1.0
    consistency: Annotated[float, Field(ge=0)] = 0.0  # weight of agreement between two views of unlabelled windows


class TeacherScores(StrictModel):
    """How often subjects are resampled for an interval, and ratings permuted for chance."""

    bootstrap: Annotated[int, Field(ge=1)] = 2000
    permutations: Annotated[int, Field(ge=1)] = 2000


class TeacherRecipe(StrictModel):
    """A teacher run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    out: str | None = None
    data: TeacherData = TeacherData()
    teacher: TeacherModel = TeacherModel()
    augment: TeacherAugment = TeacherAugment()
    optim: TeacherOptim = TeacherOptim()
    scores: TeacherScores = TeacherScores()
    device: str = "auto"

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> TeacherRecipe:
        kind = self.teacher.kind
        if kind != "topomap" and (self.data.support is not None or self.optim.consistency > 0):
            raise ValueError(
                f"teacher.kind={kind} learns from rated trials alone; set optim.consistency=0, and no data.support"
            )
        if kind == "riemann" and self.data.also:
            raise ValueError("teacher.kind=riemann reads one set; leave data.also out, or use teacher.kind=ridge")
        return self
