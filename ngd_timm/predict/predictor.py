"""Expressions of face crops by a saved student, with notes on images that are no face crop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ngd_timm.core.devices import open_device
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import atomic_folder, require_new_folder
from ngd_timm.core.hub import hub_id
from ngd_timm.core.images import DAMAGE, InputTransform, damage_reason, open_image, raise_image_limit, to_mode
from ngd_timm.models.student import STUDENT_FILES, open_student, shipped_student, student_versions

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".pgm", ".ppm")
_SMALLEST, _SQUARE = 24, 1.4  # px, longer side over shorter

ImageLike: TypeAlias = "str | Path | Image.Image | np.ndarray"
_SINGLE = (str, Path, Image.Image, np.ndarray)


@dataclass(frozen=True)
class Prediction:
    """A student's prediction for one image.

    Attributes:
        label: The most probable class.
        probabilities: Class to probability, in the student's order; softmax of its logits, which is no measure of doubt
            about images that are no faces.
        notes: Why the image may not be what the student was trained on; usually empty.
        source: The file, or None.
    """

    label: str
    probabilities: dict[str, float]
    notes: tuple[str, ...]
    source: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data that JSON can hold."""
        return {
            "source": self.source,
            "label": self.label,
            "probabilities": {name: round(p, 6) for name, p in self.probabilities.items()},
            "notes": list(self.notes),
        }


class Predictor:
    """Predicts the expression of face crops with a saved student.

    Images are prepared as the student's config.json says. Faces are not searched for: give images that are cropped to
    one centred face.

    Args:
        source: A run directory, a student folder, a Hub id, or the name of a bundled student; None is the newest
            of those.
        device: "auto", "cpu" or "cuda".
        batch_size: Images at once.
        max_megapixels: Open images of more than 100 megapixels too, up to this many.

    Raises:
        InputError: No student there, or one without label names.

    Examples:
        >>> import tempfile, timm
        >>> from ngd_timm import save_student
        >>> from ngd_timm.data.synthetic.schematic import draw_face
        >>> student = timm.create_model("test_resnet", num_classes=8, in_chans=1)
        >>> predictor = Predictor(save_student(student, Path(tempfile.mkdtemp()) / "student"))
        >>> prediction = predictor(draw_face("fear", seed=1))
        >>> len(prediction.probabilities), round(sum(prediction.probabilities.values()), 3)
        (8, 1.0)
        >>> len(predictor([draw_face("fear", seed=1), draw_face("anger", seed=2)]))
        2
    """

    def __init__(
        self,
        source: str | Path | None = None,
        device: str = "auto",
        batch_size: int = 64,
        max_megapixels: float | None = None,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        if max_megapixels is not None:
            raise_image_limit(max_megapixels)
        self.device, self.batch_size = open_device(device), batch_size
        model, self.classes = open_student(shipped_student() if source is None else source)
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.transform = InputTransform(model.pretrained_cfg)

    @overload
    def __call__(self, images: ImageLike) -> Prediction: ...  # type: ignore[overload-overlap]  # str is Iterable[str]
    @overload
    def __call__(self, images: Iterable[ImageLike]) -> list[Prediction]: ...
    def __call__(self, images: ImageLike | Iterable[ImageLike]) -> Prediction | list[Prediction]:
        """The prediction of one image, or a list of those of several."""
        if isinstance(images, _SINGLE):
            return next(self.stream([images]))
        return list(self.stream(images))

    @torch.inference_mode()
    def stream(self, images: Iterable[ImageLike]) -> Iterator[Prediction]:
        """As a call with several images, lazily, for more images than memory holds."""
        if isinstance(images, (*_SINGLE, bytes)) or not isinstance(images, Iterable):
            raise _not_an_image("images", images)
        rest = enumerate(images)
        while chunk := list(islice(rest, self.batch_size)):
            opened = [_open(image, i) for i, image in chunk]
            pixels = torch.stack([self.transform(image) for image, _ in opened])
            views = self.transform.normalize(pixels.to(self.device)).to(memory_format=torch.channels_last)
            logits = self.model(views)
            if not bool(logits.isfinite().all()):
                raise InputError("the student's logits are not finite, so its weights are damaged; save it again")
            for row, (image, source) in zip(logits.float().softmax(dim=1).tolist(), opened, strict=True):
                probabilities = dict(zip(self.classes, row, strict=True))
                label = max(probabilities, key=probabilities.__getitem__)
                yield Prediction(label, probabilities, _notes(image), source)


def student_and_images(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split the arguments of `ngd predict [STUDENT] IMAGE…`: the first is a student if it names one."""
    first, *rest = arguments
    path = Path(first)
    if path.is_dir():
        named = any((path / name).exists() for name in (*STUDENT_FILES, "student", "recipe.yaml"))
    else:
        named = not path.exists() and (first in student_versions() or (bool(rest) and hub_id(first) is not None))
    return (first, rest) if named else (None, list(arguments))


def image_files(paths: Sequence[str | Path]) -> list[Path]:
    """Files as they are, folders as the images in them, recursively and sorted."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise InputError(f"{path} holds no images ({', '.join(SUFFIXES)})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"no image {path}, nor a student; give files or folders of face crops")
    return found


def annotate_all(predictions: Sequence[Prediction], folder: str | Path) -> None:
    """Write a PNG for every prediction of a file, the image beside its probabilities, into a new folder, in order."""
    folder = Path(folder)
    require_new_folder(folder, "--annotate")
    digits = len(str(len(predictions)))
    with atomic_folder(folder) as temporary:
        for number, prediction in enumerate(predictions, start=1):
            if prediction.source is not None:
                name = f"{number:0{digits}d}-{Path(prediction.source).stem}.png"
                _annotated(_open(prediction.source, number)[0], prediction).save(temporary / name)


def _annotated(image: Image.Image, prediction: Prediction) -> Image.Image:
    """The image beside a bar for each class, the most probable one in colour, above the notes."""
    side, bar, row = 256, 180, 28
    height = max(side, row * len(prediction.probabilities) + 16)
    canvas = Image.new("RGB", (side + 130 + bar + 70, height + 22 * len(prediction.notes)), "white")
    sampling = Image.Resampling.NEAREST if max(image.size) < side else Image.Resampling.BICUBIC
    face = ImageOps.contain(to_mode(image, "RGB"), (side, side), sampling)
    canvas.paste(face, ((side - face.width) // 2, (height - face.height) // 2))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=15)
    top = (height - row * len(prediction.probabilities)) // 2
    for i, (name, p) in enumerate(prediction.probabilities.items()):
        y, ink = top + i * row, "#0072B2" if name == prediction.label else "#888888"
        draw.text((side + 120, y + row / 2), name, fill="black", font=font, anchor="rm")
        draw.rectangle((side + 130, y + 5, side + 130 + max(1.0, bar * p), y + row - 6), fill=ink)
        draw.text((side + 136 + bar * p, y + row / 2), f"{100 * p:.0f} %", fill="black", font=font, anchor="lm")
    for i, note in enumerate(prediction.notes):
        draw.text((8, height + 22 * i + 10), note, fill="#D55E00", font=font, anchor="lm")
    return canvas


def _open(image: ImageLike, index: int) -> tuple[Image.Image, str | None]:
    """An image with its pixels, and its file's name."""
    if isinstance(image, Image.Image):
        return image, None
    if isinstance(image, np.ndarray):
        if image.dtype not in (np.uint8, np.uint16) or image.shape[2:] not in ((), (3,), (4,)) or not image.size:
            raise _not_an_image(f"image {index}", f"{image.dtype} {image.shape}")
        if image.dtype == np.uint16:
            image = (image >> 8).astype(np.uint8)
        return Image.fromarray(image), None
    if not isinstance(image, (str, Path)):
        raise _not_an_image(f"image {index}", image)
    try:
        opened = open_image(image)
        opened.load()
    except DAMAGE as error:
        raise InputError(f"{image} is not a readable image ({damage_reason(error)})") from None
    return opened, str(image)


def _not_an_image(what: str, value: object) -> InputError:
    shown = value if isinstance(value, str) else type(value).__name__
    return InputError(
        f"{what}: expected a file, a PIL image, a uint8 or uint16 array (H, W), (H, W, 3) or (H, W, 4), or a list of "
        f"them, got {shown}"
    )


def _notes(image: Image.Image) -> tuple[str, ...]:
    size, notes = f"({image.width} x {image.height} px)", []
    if min(image.size) < _SMALLEST:
        notes.append(f"tiny {size}: too small to tell much")
    if max(image.size) > _SQUARE * min(image.size):
        notes.append(f"far from square {size}: crop it to one centred face first")
    return tuple(notes)
