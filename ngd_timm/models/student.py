"""Students in timm's own folder format: created, saved with all that deployment needs, found and read back."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm
import torch
from huggingface_hub.errors import HTTPError
from pydantic import Field
from timm.models import save_for_hf

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError, choices, one_line
from ngd_timm.core.files import (
    atomic_folder,
    is_leftover,
    packaged,
    packaged_versions,
    read_json,
    sha256_file,
    write_json,
)
from ngd_timm.core.hub import HubId, Snapshot, fetch, hub_id, refusal
from ngd_timm.core.images import per_channel
from ngd_timm.core.recipe import StudentConfig
from ngd_timm.core.schema import by_key, checked, record
from ngd_timm.models.ngd_models import TimmModel, for_channels, input_channels, normalisation
from ngd_timm.models.timm_folder import (
    FILES,
    TIMM_ERRORS,
    backbone_folder,
    check_input,
    check_output,
    label_names,
    open_backbone,
    published,
    read_model,
)

STUDENT_FILES = FILES
RUN_RECORD = ("recipe.yaml", "fingerprint.json")
PUBLISHED_FORMAT = "1"
NOTES = "ngd_timm"
"""The key of config.json, and the attribute of an opened student, for what timm has no place for: `temperature`;
`prior`, the class prior of training, by name in the file and in the order of the logits in the attribute;
`logit_adjustment`, the tau of its log that the bias lost before the temperature; `folded_from`, the sha256 of the grey
weights that an RGB student was made of; `face_crop`, the side of a crop over that of the detector's box."""

# what pretrained_cfg says of weights that a student may have started from and no longer has
_ORIGIN = (
    *("tag", "url", "file", "source", "hf_hub_id", "hf_hub_filename", "license", "description", "notes"),
    *("origin_url", "paper_name", "paper_ids"),
)

_VERSION = re.compile(r"student-.+-v(\d+)")

# for a backbone trained from scratch, near FER2013's own grey mean and std (0.508, 0.255)
_SCRATCH_MEAN, _SCRATCH_STD = (0.5,), (0.25,)


def create_student(config: StudentConfig, num_classes: int) -> TimmModel:
    """The timm model of a recipe, its size, channels and normalisation written into its own `pretrained_cfg`."""
    name, source = _backbone(config)
    mean, std = (source["mean"], source["std"]) if config.pretrained else (_SCRATCH_MEAN, _SCRATCH_STD)
    mean, std = (for_channels(values, config.in_chans) for values in (mean, std))
    kwargs: dict[str, Any] = {"in_chans": config.in_chans, "num_classes": num_classes, "drop_rate": config.drop_rate}
    if config.drop_path_rate is not None:
        kwargs["drop_path_rate"] = config.drop_path_rate
    if source.get("fixed_input_size"):
        kwargs["img_size"] = config.image_size
    kwargs |= config.model_args
    try:
        model: TimmModel = timm.create_model(name, pretrained=config.pretrained, **kwargs)
    except (HTTPError, OSError) as error:  # of the download
        raise refusal(error, HubId(source.get("hf_hub_id") or name)) from None
    except TIMM_ERRORS as error:
        options = {"image_size": config.image_size, "drop_path_rate": config.drop_path_rate, **config.model_args}
        given = ", ".join(f"{key}={value}" for key, value in options.items() if value is not None)
        raise InputError(f"student: {config.backbone} can't be made with {given} ({one_line(error)})") from None
    # after the weights are in: these describe the student, not the checkpoint it starts from
    own_mean, own_std = config.mean, config.std
    set_input(model, config.image_size, mean if own_mean is None else own_mean, std if own_std is None else own_std)
    model.pretrained_cfg |= {"label_names": None}
    return model


def _backbone(config: StudentConfig) -> tuple[str, dict[str, Any]]:
    """What timm opens a recipe's backbone by, and the input and weights that it was published with."""
    name = config.backbone
    if name.startswith("ngd_"):
        raise InputError(f"student.backbone: {name} is the wrapped {name[4:]}; give {name[4:]}, training wraps it")
    folder = backbone_folder(name, config.pretrained)
    if folder is not None:
        return f"local-dir:{folder}", open_backbone(folder, config.pretrained, name).pretrained_cfg
    if not timm.is_model(name) and hub_id(name):
        raise InputError(f"student.backbone: '{name}' is no timm name; for the repository write hf-hub:{name}")
    name, cfg = published(name)
    if config.pretrained and not cfg.has_weights:
        raise InputError(f"student.pretrained: timm has no weights of {name}; leave it out, or choose another backbone")
    return name, cfg.to_dict()


def require_bare(model: TimmModel, function: str) -> None:
    """Refuse a wrapper, on which notes of its student would be lost."""
    if hasattr(model, "student"):
        raise InputError(f"{function} takes the bare student: pass model.student")


def set_input(
    model: TimmModel,
    image_size: int,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> None:
    """Describe the images that a student of your own loop is trained on, where they differ from the backbone's.

    `Predictor`, `ngd evaluate`, exports and a KD teacher prepare images so, from the largest central square.

    Args:
        model: The timm model, for a wrapped one `model.student`; its `pretrained_cfg` is changed.
        image_size: Side in pixels.
        mean, std: Of pixels in [0, 1], one number or one a channel; None keeps the model's.

    Raises:
        InputError: Not one number, or one a channel, of pixels in [0, 1], or a std or size that is not above 0.

    Examples:
        >>> student = timm.create_model("resnet10t", num_classes=8)
        >>> set_input(student, 64, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        >>> student.pretrained_cfg["input_size"], student.pretrained_cfg["mean"]
        ((3, 64, 64), (0.5, 0.5, 0.5))
    """
    require_bare(model, "set_input")
    own_mean, own_std = normalisation(model)
    channels = input_channels(model)
    if image_size < 1:
        raise InputError(f"image_size must be a side in pixels, got {image_size}")
    model.pretrained_cfg = {
        **model.pretrained_cfg,
        "input_size": (channels, image_size, image_size),
        "test_input_size": None,
        "min_input_size": None,
        "pool_size": None,
        "mean": per_channel("mean", own_mean if mean is None else mean, channels),
        "std": per_channel("std", own_std if std is None else std, channels),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "test_crop_pct": None,
        "crop_mode": "center",
    }


def save_student(
    model: TimmModel,
    folder: str | Path,
    classes: Sequence[str] = CLASSES,
    weights: str = "float32",
    counts: Sequence[float] | None = None,
) -> Path:
    """Write a bare timm model as `config.json` (label names, input, temperature, prior) and `model.safetensors`.

    An earlier student in that folder is replaced only once the new one is complete.

    Args:
        model: The timm model, for a wrapped one `model.student`, with its input described by `set_input`.
        folder: Where to.
        classes: Class names in the order of the logits.
        weights: "float16" stores parameters of two dimensions or more in half the bytes; timm reads them as float32.
        counts: (C,) training examples a class, or sums of soft labels, for `Predictor(prior=…)`; default: what a run of
            `ngd train`, `adjust_logits` or an earlier file noted.

    Returns:
        The folder, which `timm.create_model("local-dir:<folder>", pretrained=True)` loads without this package.

    Raises:
        InputError: A wrapper instead of its student, names that don't fit the logits, or a weight beyond float16.

    Examples:
        >>> import tempfile
        >>> student = timm.create_model("resnet10t", num_classes=8)
        >>> folder = save_student(student, Path(tempfile.mkdtemp()) / "student")
        >>> sorted(p.name for p in folder.iterdir())
        ['config.json', 'model.safetensors']
    """
    require_bare(model, "save_student")
    if len(classes) != model.num_classes:
        raise InputError(f"the model has {model.num_classes} classes, not {len(classes)}: {', '.join(classes)}")
    notes = notes_of(model)
    prior = notes.get("prior") if counts is None else class_prior(counts)
    if prior is not None:
        if len(prior) != len(classes):
            raise InputError(f"counts are {len(prior)}, the model has {len(classes)} classes; give one number a class")
        if counts is not None and notes.get("logit_adjustment") and not same_prior(notes["prior"], prior):
            raise InputError(
                "counts are of another prior than the one that adjust_logits took out of these logits; give the same "
                "counts to both"
            )
        notes = {**notes, "prior": dict(zip(classes, prior, strict=True))}
    folder = Path(folder)
    if folder.is_file():
        raise InputError(f"{folder} is a file; choose an empty or new folder")
    if folder.exists():
        there = [path.name for path in folder.iterdir() if not is_leftover(path)]
        strange = [name for name in there if name not in STUDENT_FILES]
        if strange or (there and "config.json" not in there):
            raise InputError(
                f"{folder} holds something that is not a student ({', '.join((strange or there)[:3])}) and would be "
                "lost; choose an empty or new folder"
            )
    # safetensors takes neither channels_last strides nor two names of one tensor (CoaT uses modules twice)
    plain = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format)
    state = {name: tensor.clone() for name, tensor in plain.state_dict().items()} | _halves(plain, weights)
    plain.state_dict = lambda: state
    # of a student that was opened; they belong at the top
    plain.pretrained_cfg = {**plain.pretrained_cfg, "label_names": None}
    with atomic_folder(folder) as temporary:
        # at the top: timm refuses a key that it doesn't know in pretrained_cfg
        described = {"label_names": list(classes), **({NOTES: notes} if notes else {})}
        save_for_hf(plain, str(temporary), model_config=described, safe_serialization=True)
        config, tensors = (temporary / name for name in STUDENT_FILES)
        write_json(config, published_config(read_json(config)))
        tensors.chmod(config.stat().st_mode)  # safetensors writes for the owner alone
    return folder


def published_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json without what it inherited from other weights, and as transformers reads it too.

    Transformers takes the number of classes from the top alone, and opens a model in the type of its first weights.
    """
    kept = {key: value for key, value in config["pretrained_cfg"].items() if key not in _ORIGIN}
    arguments = {key: value for key, value in config.get("model_args", {}).items() if key != "num_classes"}
    return {**config, "model_args": arguments, "pretrained_cfg": kept, "dtype": "float32"}


@torch.no_grad()
def round_matrices(model: torch.nn.Module, weights: str) -> None:
    """Round a model's matrices, in place, to what a file in `weights` ("float32" or "float16") can store."""
    for name, half in _halves(model, weights).items():
        model.get_parameter(name).copy_(half)


def _halves(model: torch.nn.Module, weights: str) -> dict[str, torch.Tensor]:
    """The parameters of two dimensions or more in half the bytes; nothing for float32."""
    if weights == "float32":
        return {}
    if weights != "float16":
        raise choices("dtype of the weights", weights, ("float32", "float16"))
    halves = {name: p.detach().half() for name, p in model.named_parameters() if p.ndim > 1}
    for name, half in halves.items():
        if not half.isfinite().all():
            raise InputError(f"{name} has values that float16 can't hold; store it with student.weights=float32")
    return halves


def student_versions() -> list[str]:
    """Names of the bundled students, oldest first."""
    return packaged_versions(_VERSION, STUDENT_FILES[1])


def shipped_student() -> str:
    """Name of the newest bundled student; a fast one is taken by its name alone."""
    return [version for version in student_versions() if "-fast-" not in version][-1]


def load_student(version: str | None = None) -> TimmModel:
    """A bundled student in eval mode: the default, or one by version. `ngd_timm.Predictor()` prepares its images too.

    Raises:
        InputError: An unknown version; the message lists the known ones.

    Examples:
        >>> student = load_student()
        >>> tuple(student(torch.zeros(1, *student.pretrained_cfg["input_size"])).shape)
        (1, 8)
    """
    if version is not None and version not in (known := student_versions()):
        raise choices("student version", version, known)
    return open_student(version or shipped_student())[0]


def student_folder(source: str | Path) -> Path:
    """The student of a run directory, the folder itself where it is one, or a bundled one by its name."""
    if source in student_versions():  # ./NAME is a folder
        return packaged("hub") / str(source)
    path = Path(source)
    for candidate in (path / "student", path):
        if all((candidate / name).is_file() for name in STUDENT_FILES):
            return candidate
    raise InputError(
        f"{path} is neither a run directory (with student/), nor a student (config.json and model.safetensors), nor "
        f"a bundled one ({', '.join(student_versions())})"
    )


def open_student(source: str | Path) -> tuple[TimmModel, tuple[str, ...]]:
    """A student in eval mode and its class names, from a run directory, a folder, a bundled name, or the Hub."""
    return read_student(student_files(source), str(source))


def student_files(source: str | Path) -> Path:
    """The folder of a student's config.json and model.safetensors, fetched and checked where it is on the Hub."""
    repository = hub_id(source)
    if repository is None:
        return student_folder(source)
    snapshot = fetch(repository, STUDENT_FILES, ["fingerprint.json"])
    check_published(snapshot)
    return snapshot.folder


def weights_sha256(folder: str | Path) -> str:
    """sha256 of the weights in a student's folder, its identity in metrics and fingerprints."""
    return sha256_file(Path(folder) / STUDENT_FILES[1])


def run_folder(source: str | Path) -> Path | None:
    """The folder of recipe.yaml and fingerprint.json of a student's run; None where there is none."""
    repository = hub_id(source)
    if repository is None:
        student = student_folder(source).resolve()
        places = [student, student.parent] if student.name in ("student", "student_best") else [student]
    else:
        snapshot = fetch(repository, [STUDENT_FILES[0]], list(RUN_RECORD))
        check_published(snapshot)
        if "fingerprint.json" in snapshot.names and "recipe.yaml" not in snapshot.names:
            raise InputError(
                f"{source}: it lacks recipe.yaml, which says how its logits were adjusted and how it is scored; push "
                "the run again"
            )
        places = [snapshot.folder]
    return next((place for place in places if all((place / name).is_file() for name in RUN_RECORD)), None)


def check_published(snapshot: Snapshot) -> None:
    """Compare the files of a repository with the hashes that `ngd push` wrote into its fingerprint.json, if it did."""
    if "fingerprint.json" not in snapshot.names:
        return
    try:
        fingerprint = json.loads((snapshot.folder / "fingerprint.json").read_text(encoding="utf-8"))
        version, hashes = fingerprint["format_version"], dict(fingerprint["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{snapshot.id}: fingerprint.json is not as ngd push wrote it; push the run again") from None
    if version != PUBLISHED_FORMAT:
        raise InputError(f"{snapshot.id}: run format {version!r}, this reads {PUBLISHED_FORMAT!r}; upgrade ngd-timm")
    for name in snapshot.names:
        if name != "fingerprint.json" and sha256_file(snapshot.folder / name) != hashes.get(name):
            raise InputError(f"{snapshot.id}: {name} is not the file that was pushed (sha256 differs); push it again")


def read_student(folder: str | Path, shown: str) -> tuple[TimmModel, tuple[str, ...]]:
    """A student from its folder, in eval mode, and its class names; messages call it `shown`."""
    model = read_model(folder, shown)
    check_input(model, shown)
    classes = label_names(model, shown)
    notes = read_json(Path(folder) / STUDENT_FILES[0], shown).get(NOTES, {})
    positive = Annotated[float, Field(gt=0)]
    optional = {"temperature": positive, "face_crop": positive, "folded_from": str, "logit_adjustment": float}
    kind = record({}, {**optional, "prior": by_key(positive, classes, len(classes))})
    checked(kind, notes, f"{shown}: {NOTES} in config.json", fix="; save the student again")
    if "logit_adjustment" in notes and "prior" not in notes:
        raise InputError(f"{shown}: {NOTES} in config.json has a logit_adjustment and no prior; save the student again")
    if "prior" in notes:
        notes = {**notes, "prior": [float(notes["prior"][name]) for name in classes]}
    model.ngd_timm = notes
    check_output(model.eval(), len(classes), shown)
    return model, classes


def class_prior(counts: np.ndarray | Sequence[float]) -> list[float]:
    """The share of each class in its training examples, to six digits; a class without any counts as one example."""
    n = np.asarray(counts, dtype=np.float64)
    if n.ndim != 1 or not np.isfinite(n).all() or (n < 0).any():
        raise InputError(f"counts must be one number a class, from 0; got {n.tolist()}")
    n = np.where(n > 0, n, 1)
    return [float(f"{p:.6g}") for p in n / n.sum()]


def same_prior(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two are one but for rounding."""
    return len(a) == len(b) and np.allclose(a, b, rtol=1e-3, atol=0)


def notes_of(model: TimmModel) -> dict[str, Any]:
    """What a model carries under `NOTES`; empty of one that carries nothing."""
    notes: dict[str, Any] = getattr(model, NOTES, {})
    return notes


def temperature_of(model: TimmModel) -> float:
    """The temperature that is folded into a model's classifier (`ngd_timm.calibrate`); 1 where none is."""
    return float(notes_of(model).get("temperature", 1.0))
