"""Recipes: one YAML of data a run, validated, with no code in it and no unknown keys."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from ngd_timm.core.affect import ANCHORS, CLASSES
from ngd_timm.core.errors import InputError, choices, one_line, quoted
from ngd_timm.core.files import packaged
from ngd_timm.core.safe_yaml import read_yaml, write_yaml

_MAX_BYTES = 1 << 20

Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


class StrictModel(BaseModel):
    """Base of every recipe section: unknown keys are errors, values are checked, instances don't change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


# what a timm model takes from YAML, and from the config.json that it is deployed with
ModelArg = bool | int | float | str | list[int] | list[float] | list[str]
_INSTEAD = {
    "pretrained": "student.pretrained",
    "in_chans": "student.in_chans",
    "num_classes": "data.classes",
    "drop_rate": "student.drop_rate",
    "drop_path_rate": "student.drop_path_rate",
    "img_size": "student.image_size",
    "checkpoint_path": "init",
    **dict.fromkeys(("pretrained_cfg", "pretrained_cfg_overlay"), "student.image_size, student.mean and student.std"),
    **dict.fromkeys(("model_name", "features_only", "cache_dir", "scriptable", "exportable", "no_jit"), "nothing"),
}


class StudentConfig(StrictModel):
    """The timm backbone that is trained and deployed, and its input."""

    backbone: str = "resnet18"
    pretrained: bool = False
    image_size: Annotated[int, Field(ge=16, le=1024)] = 64
    in_chans: Literal[1, 3] = 1
    mean: Share | None = None
    std: Annotated[float, Field(gt=0, le=1)] | None = None
    projection: Literal["linear", "none"] = "linear"  # none: the embedding is the backbone's pooled features
    drop_rate: ShareBelowOne = 0.0
    drop_path_rate: ShareBelowOne | None = None
    weights: Literal["float32", "float16"] = "float32"  # what matrices are stored in; scored as stored
    logit_adjustment: Annotated[float, Field(ge=0, le=2)] = 0.0  # tau · log prior leaves the bias of what is saved
    calibrate: bool = True  # a temperature fitted on validation divides the logits of what is saved
    model_args: dict[str, ModelArg] = {}  # more arguments of timm.create_model, as channels: [32, 64, 128, 256]

    @model_validator(mode="after")
    def _own_keys_are_not_repeated(self) -> StudentConfig:
        for key in _INSTEAD:
            if key in self.model_args:
                raise ValueError(f"student.model_args: {key} is no argument to give here; write {_INSTEAD[key]}")
        return self


class AugmentConfig(StrictModel):
    """Training augmentation; everything at its zero is off. Angles in radians, shift and blur as shares of the side."""

    flip: Share = 0.5
    rotate: Annotated[float, Field(ge=0, le=3.2)] = 0.2
    scale: ShareBelowOne = 0.15
    shift: Share = 0.15
    brightness: Share = 0.2
    contrast: Share = 0.2
    erase: Share = 0.25
    gamma: Annotated[float, Field(ge=0, le=3)] = 0.0  # exponents between exp(-gamma) and exp(gamma)
    stretch: Share = 0.0  # chance that the contrast is stretched
    blur: Annotated[float, Field(ge=0, le=0.25)] = 0.0  # sigma
    downscale: ShareBelowOne = 0.0


class DataConfig(StrictModel):
    """The training images, their label rule, sampling and augmentation."""

    name: str = "ferplus"
    root: str | None = None
    label_rule: Literal["majority", "argmax", "votes"] = "majority"
    drop_duplicates: bool = True
    limit: PositiveInt | None = None
    label_fraction: Annotated[float, Field(gt=0, le=1)] | None = None  # of the training images, by class
    epoch_repeats: PositiveInt = 1  # passes over the training images in an epoch
    unlabelled: Names = ()  # roots of images for logit KD, whose labels are not read
    unlabelled_share: Annotated[float, Field(gt=0, le=4)] = 0.25  # so many a step beside optim.batch_size, as a share
    sampler: Literal["random", "class_aware"] = "random"
    classes: tuple[str, ...] = CLASSES
    augment: AugmentConfig = AugmentConfig()
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    in_memory: bool | None = None
    streaming: bool = False
    shuffle_buffer: PositiveInt = 10_000

    @model_validator(mode="after")
    def _streams_in_shuffled_order(self) -> DataConfig:
        if self.streaming and self.sampler != "random":
            raise ValueError(f"data.sampler={self.sampler} needs the whole set at hand; leave data.streaming out")
        if self.streaming and self.in_memory:
            raise ValueError("data.in_memory and data.streaming exclude each other; leave one out")
        if self.streaming and self.label_fraction is not None:
            raise ValueError(
                "data.label_fraction is counted over the whole set, which data.streaming does not hold; leave one out"
            )
        if self.streaming and self.epoch_repeats > 1:
            raise ValueError("data.epoch_repeats is for small sets, which data.streaming is not for; leave one out")
        return self

    @field_validator("classes")
    @classmethod
    def _known_classes(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        for name in classes:
            if name not in ANCHORS:
                raise choices("class", name, CLASSES)
        if len(set(classes)) != len(classes) or len(classes) < 2:
            raise ValueError(f"classes must be at least two different names, got {list(classes)}")
        return classes


def ramp_shares(ramp: Sequence[float]) -> tuple[float, float]:
    """D-Geo's ramp as two shares of the run, checked."""
    try:
        start, end = (float(share) for share in ramp)
    except (TypeError, ValueError):
        start = end = math.nan
    if not 0 <= start <= end <= 1:
        raise InputError(
            f"ramp must be two shares of the run, 0 <= start <= end <= 1, got {quoted(ramp)}; divide epochs by the "
            "length of the run: epochs 20 to 60 of 100 are (0.2, 0.6)"
        )
    return start, end


class LossConfig(StrictModel):
    """Weights and settings of the objective; a weight of 0 leaves its term out."""

    ce: NonNegativeFloat = 1.0
    kd: NonNegativeFloat = 0.0
    kd_mode: Literal["mse", "mse_probs", "kl"] = "mse"
    temperature: PositiveFloat = 5.0
    proto_kd: NonNegativeFloat = 0.0
    proto_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    tau: PositiveFloat = 0.90
    sigma: PositiveFloat = 0.4
    target: Literal["prototype", "va"] = "prototype"
    d_geo: NonNegativeFloat = 0.0
    ramp: tuple[float, float] = (0.2, 0.6)
    positive_classes: tuple[str, ...] = ("happiness", "surprise")
    variance_cap: NonNegativeFloat = 0.2
    margin: NonNegativeFloat = 0.5
    d_geo_on: Literal["embedding", "features"] = "embedding"
    label_smoothing: ShareBelowOne = 0.055
    class_weights: Literal["none", "balanced", "effective_number"] = "effective_number"

    @property
    def uses_grid(self) -> bool:
        """Whether Proto-KD has a part."""
        return self.proto_kd > 0 or self.proto_share is not None

    @model_validator(mode="after")
    def _a_temperature_has_an_effect(self) -> LossConfig:
        default = type(self).model_fields["temperature"].default
        if self.kd > 0 and self.kd_mode == "mse" and self.temperature != default:
            raise ValueError(
                f"temperature={self.temperature:g} has no effect on kd_mode=mse, which is of logits; write kd_mode=kl "
                f"or kd_mode=mse_probs, or leave temperature at {default:g}"
            )
        return self

    @model_validator(mode="after")
    def _a_share_is_no_weight(self) -> LossConfig:
        if self.proto_share is not None and self.proto_kd > 0:
            raise ValueError(
                f"proto_kd={self.proto_kd:g} has no effect beside proto_share={self.proto_share:g}, which sets the "
                "weight; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _a_share_is_of_more_than_itself(self) -> LossConfig:
        if self.proto_share is not None and self.ce == 0 and self.kd == 0:
            raise ValueError(
                f"proto_share={self.proto_share} is a share of the gradient beside loss.ce or loss.kd, and both are 0; "
                "give loss.proto_kd a weight instead"
            )
        return self

    @field_validator("ramp", mode="before")
    @classmethod
    def _ramp_is_two_shares(cls, value: Any) -> tuple[float, float]:
        return ramp_shares(value)


class OptimConfig(StrictModel):
    """Optimizer and schedule, passed to timm's own factories."""

    opt: str = "adamw"
    epochs: PositiveInt = 100
    batch_size: Annotated[int, Field(ge=2)] = 128  # over all processes
    lr: PositiveFloat = 2.0e-4
    weight_decay: NonNegativeFloat = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int | float = 0
    clip_grad: PositiveFloat | None = 1.0
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    swa: Annotated[float, Field(gt=0, lt=1)] | None = None  # the last share of the epochs, whose weights are averaged
    sync_bn: bool = False
    compile: bool = False  # by torch.compile

    @field_validator("amp", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value  # in YAML off is false

    @model_validator(mode="after")
    def _warmup_fits(self) -> OptimConfig:
        limit = self.epochs if isinstance(self.warmup, int) else 1
        if not 0 <= self.warmup < limit:
            raise ValueError(f"warmup must be epochs (an integer) or a fraction of the run below 1, got {self.warmup}")
        return self

    @model_validator(mode="after")
    def _weights_are_averaged_once(self) -> OptimConfig:
        if self.ema is not None and self.swa is not None:
            raise ValueError("optim.ema and optim.swa both average the weights; leave one out")
        return self

    @property
    def warmup_epochs(self) -> float:
        """Length of the linear warm-up in epochs."""
        return self.warmup if isinstance(self.warmup, int) else self.warmup * self.epochs

    def averaged_before(self, epoch: int) -> int:
        """How many epochs the average of `swa` holds before an epoch, numbered from 0, enters it."""
        first = self.epochs - max(round((self.swa or 0) * self.epochs), 1)
        return max(epoch - first, 0)


class TeacherRun(StrictModel):
    """`teacher: {run: b0_ce}`: in an ablation the same seed's run of that recipe."""

    run: str


class Recipe(StrictModel):
    """A training run. See `recipes/` for the packaged ones."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    out: str | None = None
    student: StudentConfig = StudentConfig()
    data: DataConfig = DataConfig()
    grid: str | None = None
    grid_control: Literal["none", "shuffled", "random", "va"] = "none"  # made of `grid`, from the seed
    grid_size: Annotated[int, Field(ge=2, le=64)] | None = None
    grid_center: bool = False
    teacher: str | tuple[str, ...] | TeacherRun | None = None
    loss: LossConfig = LossConfig()
    allow_stacked_balancing: bool = False
    optim: OptimConfig = OptimConfig()
    init: str | None = None
    eval: dict[str, str] = {}
    eval_flip: bool = False
    best_metric: Literal["acc", "macro_f1", "bacc"] = "acc"  # chooses student_best/: 8-way on validation
    best_on: Names = ()  # names from `eval`: then its mean on these sets, present-only, chooses
    kd_cache: str | None = None  # a folder for the teacher's logits, shared by runs that draw the same batches
    share_every: NonNegativeInt = 100
    # minutes between checkpoints within an epoch, 0 for none; auto keeps their cost at 1 % of the time
    save_every: Literal["auto"] | NonNegativeFloat = "auto"
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    device: str = "auto"

    @field_validator("teacher", mode="before")
    @classmethod
    def _one_of_the_ways_to_name_a_teacher(cls, value: Any) -> Any:
        several = isinstance(value, (list, tuple)) and len(value) > 1 and all(isinstance(v, str) for v in value)
        run = isinstance(value, dict) and list(value) == ["run"] and isinstance(value["run"], str)
        if value is None or isinstance(value, (str, TeacherRun)) or several or run:
            return value
        raise ValueError(
            "teacher must be a run directory, a student's folder or version, hf-hub:user/repo, a list of "
            f"at least two of them (an ensemble), or in an ablation {{run: RECIPE}}, got {value!r}"
        )

    @field_validator("grid")
    @classmethod
    def _a_control_is_no_grid(cls, value: str | None) -> str | None:
        if value in ("random", "shuffled"):
            raise ValueError(
                f"grid={value} is a control, not a grid; write grid: gameemo-v2 (or yours, whose width and size the "
                f"control takes) with grid_control: {value}"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _va_control_aims_at_the_plane(cls, data: Any) -> Any:
        """Sets `loss.target: va`, so that readers of the loss section need no second key."""
        if not isinstance(data, dict) or data.get("grid_control") != "va":
            return data
        loss = data.get("loss", {})
        if isinstance(loss, LossConfig):
            loss = loss.model_dump(exclude_unset=True)
        return {**data, "loss": {"target": "va", **loss}} if isinstance(loss, dict) else data

    @model_validator(mode="after")
    def _control_fits(self) -> Recipe:
        if self.grid_control != "none" and self.grid is None:
            raise ValueError(f"grid_control={self.grid_control} needs a grid; give grid=gameemo-v2 or a grid file")
        if self.grid_control == "va" and self.loss.target != "va":
            raise ValueError(
                f"grid_control=va is aimed at the plane and loss.target={self.loss.target} is not; leave loss.target "
                "out, or write grid_control: random"
            )
        if self.grid_control == "random" and self.loss.target == "va":
            raise ValueError("grid_control=random with loss.target=va is grid_control=va; write that, without target")
        return self

    @model_validator(mode="after")
    def _choice_is_on_sets_that_are_scored(self) -> Recipe:
        for name in self.best_on:
            if name not in self.eval:
                raise ValueError(
                    f"best_on names {quoted(name)}, which is not in eval ({', '.join(self.eval) or 'empty'}); add "
                    f"it there, as eval={{{quoted(name)}: ROOT}}, or leave best_on empty to choose on validation"
                )
        if len(set(self.best_on)) != len(self.best_on):
            raise ValueError(f"best_on names a set twice: {', '.join(self.best_on)}; write each once")
        return self

    @model_validator(mode="after")
    def _classes_are_balanced_once(self) -> Recipe:
        corrections = {
            "data.sampler": (self.data.sampler, "random"),
            "loss.class_weights": (self.loss.class_weights if self.loss.ce > 0 else "none", "none"),
            "student.logit_adjustment": (self.student.logit_adjustment, 0),
        }
        on = {key: (value, off) for key, (value, off) in corrections.items() if value != off}
        if len(on) > 1 and not self.allow_stacked_balancing:
            raise ValueError(
                f"{' and '.join(f'{key}={value}' for key, (value, _) in on.items())} each correct the same class "
                f"imbalance; keep one of them ({', '.join(f'{key}={off}' for key, (_, off) in on.items())} turn them "
                "off), or give allow_stacked_balancing=true"
            )
        return self

    @model_validator(mode="after")
    def _terms_have_what_they_need(self) -> Recipe:
        if self.loss.kd > 0 and self.teacher is None:
            raise ValueError(
                "loss.kd is above 0 but there is no teacher; give teacher=RUN_DIRECTORY (a finished b0_ce) or loss.kd=0"
            )
        if self.data.unlabelled and self.loss.kd == 0:
            raise ValueError(
                "data.unlabelled are images for a teacher to label, and loss.kd is 0; give teacher=RUN with loss.kd, "
                "or leave them out"
            )
        if self.loss.uses_grid and self.grid is None:
            if (size := self.grid_size) is None:
                raise ValueError("loss.proto_kd is above 0 but there is no grid; give grid=gameemo-v2 or a grid file")
            raise ValueError(
                f"{self.name} needs a {size}x{size} grid and none is packaged; build one from a teacher run (ngd "
                f"teacher fit, then: ngd prototypes build TEACHER_RUN --size {size} --min-subjects 3 --out "
                f"grid{size}.safetensors) and give grid=grid{size}.safetensors"
            )
        unknown = [c for c in self.loss.positive_classes if c not in self.data.classes]
        if unknown and self.loss.d_geo > 0:
            raise choices("positive class", unknown[0], self.data.classes)
        return self

    @property
    def teacher_sources(self) -> tuple[str, ...]:
        """The teachers of logit KD, of which several are an ensemble; none where the term is off."""
        if self.loss.kd == 0 or self.teacher is None:
            return ()
        if isinstance(self.teacher, TeacherRun):
            run = self.teacher.run
            raise InputError(
                f"{self.name}: teacher {{run: {run}}} is the same seed's run in an ablation, so there is no teacher "
                f"for a single run; give teacher=RUN_DIRECTORY (a finished {run}, say runs/{run}-0), or use: "
                f"ngd ablate {run} {self.name}"
            )
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher


ModelT = TypeVar("ModelT", bound=StrictModel)


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(p.stem for p in packaged("recipes").glob("*.yaml"))


def to_yaml(recipe: StrictModel) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back to an equal one."""
    return write_yaml(recipe.model_dump(mode="json"))


def load_recipe(model: type[ModelT], name: str | Path, overrides: Sequence[str] = ()) -> ModelT:
    """Read a recipe by packaged name or path over its `base`, apply `key.sub=value` overrides, and validate it."""
    path = _find(name)
    data = _with_base(path)
    for override in overrides:
        _apply(data, override)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{path.name}: {_first_problem(model, error)}") from None


def _find(name: str | Path) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if not path.is_file():
            raise InputError(f"no recipe file {path}")
        return path
    if str(name) not in recipe_names():
        raise choices("recipe", name, recipe_names())
    return packaged("recipes") / f"{name}.yaml"


def _with_base(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's keys over those of its `base`, recursively."""
    if path.resolve() in seen:
        raise InputError(f"{path}: its base leads back to itself; name a recipe that does not build on this one")
    data = _parse(path)
    base = data.pop("base", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise InputError(f"{path}: base must be the name or path of a recipe, got {quoted(repr(base))}")
    if Path(base).suffix in (".yaml", ".yml"):
        base = str(path.parent / base)
    return _merged(_with_base(_find(base), (*seen, path.resolve())), data)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(merged.get(key), Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _parse(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{path}: a recipe is at most {_MAX_BYTES >> 20} MiB; this is not one")
    try:
        data = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({one_line(error)})") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: a recipe is a mapping of keys, got {type(data).__name__}")
    return data


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not key:
        raise InputError(f"'{quoted(override)}' is not key=value; write for example optim.epochs=12")
    try:
        value = read_yaml(raw)
    except yaml.YAMLError:
        raise InputError(f"the value in '{quoted(override)}' is not valid YAML") from None
    *parents, leaf = key.split(".")
    for part in parents:
        if data.get(part) is None:
            data[part] = {}
        if not isinstance(data[part], dict):
            raise InputError(f"'{quoted(override)}': '{part}' is a value, not a section")
        data = data[part]
    data[leaf] = value


def _first_problem(model: type[StrictModel], error: ValidationError) -> str:
    problem, *others = error.errors(include_url=False)
    where = _place(model, problem)
    key = quoted(".".join(where))
    if problem["type"] == "extra_forbidden":
        known = list(_keys(model))
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
        near = near or [k for k in known if k.split(".")[-1] == where[-1]]
        siblings = [k.split(".")[-1] for k in known if k.split(".")[:-1] == where[:-1]]
        hint = f"; did you mean '{near[0]}'?" if near else "."
        return f"unknown key '{key}'{hint} Allowed here: {', '.join(siblings)}"
    of_field = [problem, *(other for other in others if _place(model, other) == where)]  # each kind that it may be of
    messages = dict.fromkeys(" ".join(entry["msg"].removeprefix("Value error, ").split()) for entry in of_field)
    message = " or ".join(messages)[:600]
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message}, got {quoted(repr(problem['input']))}"


def _place(model: type[StrictModel], problem: Any) -> list[str]:
    """The parts of the key of a problem, without places in a list and what a value of several kinds was read as."""
    where, known = [part for part in problem["loc"] if isinstance(part, str)], set(_keys(model))
    if problem["type"] == "extra_forbidden":
        return where
    depth = max((n for n in range(1, len(where) + 1) if ".".join(where[:n]) in known), default=len(where))
    return where[:depth]


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, f"{prefix}{name}.")
