"""Expressions of faces, in photographs or cropped, by a saved student."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from PIL import Image

from ngd_timm.core.affect import ANCHORS
from ngd_timm.core.devices import open_device, send
from ngd_timm.core.errors import InputError, choices
from ngd_timm.core.hub import hub_id
from ngd_timm.core.images import (
    DAMAGE,
    SUFFIXES,
    InputTransform,
    damage_reason,
    image_files,
    open_image,
    raise_image_limit,
    to_mode,
    upright,
)
from ngd_timm.models.logit_adjustment import prior_shift
from ngd_timm.models.student import STUDENT_FILES, notes_of, open_student, shipped_student, student_versions
from ngd_timm.predict.faces import FACE_CROP, Detector, Face, FaceDetector, crop_face, is_crop

VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
VIEWS = (1, 2, 6)
_SCALES = (0.925, 1.0, 1.075)  # of a crop's side: .86, .93 and 1 of the box's
_SMALLEST, _SQUARE = 24, 1.4  # px, longer side over shorter

ImageLike: TypeAlias = "str | Path | Image.Image | np.ndarray"
_SINGLE = (str, Path, Image.Image, np.ndarray)


@dataclass(frozen=True)
class Prediction:
    """A student's prediction for one face.

    Attributes:
        label: The most probable class.
        probabilities: Class to probability, in the student's order; softmax of its logits, which is no measure of doubt
            about images that are no faces.
        notes: Why the image may not be what the student was trained on; usually empty.
        source: The file, or None.
        box: (x, y, width, height) of the face in pixels of the upright image; None where the image is the face.
        score: The detector's, in [0, 1]; None where the image is the face.
        prior: The class prior behind the probabilities: "training", "uniform", or "given".
    """

    label: str
    probabilities: dict[str, float]
    notes: tuple[str, ...]
    source: str | None = None
    box: tuple[float, float, float, float] | None = None
    score: float | None = None
    prior: str = "training"

    @property
    def valence(self) -> float | None:
        """In [-1, 1]: the mean of the class anchors, weighed by the probabilities; None with a class that has none."""
        return self._expected(0)

    @property
    def arousal(self) -> float | None:
        """As `valence`."""
        return self._expected(1)

    def _expected(self, axis: int) -> float | None:
        if not set(self.probabilities) <= set(ANCHORS):
            return None
        return sum(p * ANCHORS[name][axis] for name, p in self.probabilities.items())

    def as_dict(self) -> dict[str, Any]:
        """Plain data that JSON can hold, without the source."""
        return {
            "box": None if self.box is None else [round(value, 1) for value in self.box],
            "score": None if self.score is None else round(self.score, 4),
            "label": self.label,
            "probabilities": {name: round(p, 6) for name, p in self.probabilities.items()},
            "valence": None if self.valence is None else round(self.valence, 4),
            "arousal": None if self.arousal is None else round(self.arousal, 4),
            "prior": self.prior,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Photo:
    """The faces of one image, largest first, each with its prediction.

    Attributes:
        faces: None were found where it is empty.
        source: The file, or None.
    """

    faces: tuple[Prediction, ...]
    source: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data that JSON can hold."""
        return {"source": self.source, "faces": [face.as_dict() for face in self.faces]}


class Predictor:
    """Predicts the expression of faces with a saved student.

    `Predictor()(images)` takes images that are cropped to one centred face, `Predictor().photo(image)` finds the faces
    in a photograph first. Images are prepared as the student's config.json says.

    Args:
        source: A run directory, a student folder, a Hub id, or the name of a bundled student; None is the newest
            of those.
        device: "auto", "cpu" or "cuda".
        batch_size: Faces at once.
        max_megapixels: Open images of more than 100 megapixels too, up to this many.
        detector: From an upright RGB PIL image to its `Face`s; default: a `FaceDetector` where a photograph is given.
        prior: "training" takes the student as it is; "uniform" takes the log of its training prior out of its
            calibrated logits, as if all classes were equally common; a probability (or count) of each class replaces
            it. Default: "uniform"; of a student that records no training prior "training".
        views: 2 averages logits with the mirror image's; 6 also over crops of .86, .93 and 1 of a detected box's side.

    Raises:
        InputError: No student there, one without label names, or a prior where it records none.

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
        detector: Detector | None = None,
        prior: str | Mapping[str, float] | None = None,
        views: int = 1,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        if views not in VIEWS:
            raise choices("number of views", views, VIEWS)
        if max_megapixels is not None:
            raise_image_limit(max_megapixels)
        self.device, self.batch_size, self.detector = open_device(device), batch_size, detector
        model, self.classes = open_student(shipped_student() if source is None else source)
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.transform = InputTransform(model.pretrained_cfg)
        notes = notes_of(model)
        self.face_crop, self.views = float(notes.get("face_crop", FACE_CROP)), views
        prior = ("uniform" if "prior" in notes else "training") if prior is None else prior
        self.prior = prior if isinstance(prior, str) else "given"
        self._shift = prior_shift(model, self.classes, prior)

    @overload
    def __call__(self, images: ImageLike) -> Prediction: ...  # type: ignore[overload-overlap]  # str is Iterable[str]
    @overload
    def __call__(self, images: Iterable[ImageLike]) -> list[Prediction]: ...
    def __call__(self, images: ImageLike | Iterable[ImageLike]) -> Prediction | list[Prediction]:
        """The prediction of one face crop, or a list of those of several."""
        if isinstance(images, _SINGLE):
            return next(self.stream([images]))
        return list(self.stream(images))

    def stream(self, images: Iterable[ImageLike]) -> Iterator[Prediction]:
        """As a call with several images, lazily, for more images than memory holds."""
        for photo in self.photos(images, crops=True):
            yield from photo.faces

    def photo(self, image: ImageLike) -> list[Prediction]:
        """The faces in a photograph, largest first; an image that one face fills is taken as it is."""
        return list(next(self.photos([image])).faces)

    def photos(
        self,
        images: Iterable[ImageLike],
        crops: bool = False,
        on_error: Callable[[InputError], object] | None = None,
    ) -> Iterator[Photo]:
        """The faces of each image, lazily and in order.

        Args:
            images: Photographs.
            crops: Each is cropped to one face, so none is searched for.
            on_error: Called for each image that can't be opened, which is then left out; default: the error is raised.
        """
        if isinstance(images, (*_SINGLE, bytes)) or not isinstance(images, Iterable):
            raise _not_an_image("images", images)
        if not crops and self.detector is None:
            self.detector = FaceDetector()
        waiting: list[_Found] = []
        for one in self._found(images, crops, on_error):
            waiting.append(one)
            if max(len(waiting), sum(len(photo.pixels) for photo in waiting)) >= self.batch_size:
                yield from self._predicted(waiting)
                waiting = []
        yield from self._predicted(waiting)

    def _found(
        self, images: Iterable[ImageLike], crops: bool, on_error: Callable[[InputError], object] | None
    ) -> Iterator[_Found]:
        """The model's input of every face in every image, so that no more than one image is held."""
        for index, image in enumerate(images):
            try:
                found = self._faces_of(image, index, crops)
            except InputError as error:
                if on_error is None:
                    raise
                on_error(error)
            else:
                yield found

    def _faces_of(self, image: ImageLike, index: int, crops: bool) -> _Found:
        """The model's input of every face in an image, the `index`th."""
        opened, source = _open(image, index)
        usable = partial(_usable, f"image {index}" if source is None else source)
        with usable():
            frames = _frame_notes(opened)
            photo = upright(opened) if crops else to_mode(opened, "RGB")
        faces: list[Face] = []
        if not crops:
            assert self.detector is not None
            faces = list(self.detector(photo))
        with usable():
            if crops or is_crop(photo, faces):
                notes = (*_notes(photo), *frames, *([] if crops else ["taken as a face crop"]))
                return _Found([self.transform(photo)[None]], [None], [notes], source)
            scales = [self.face_crop * scale for scale in (_SCALES if self.views == VIEWS[-1] else (1.0,))]
            crops_of = ([crop_face(photo, face, scale) for scale in scales] for face in faces)
            pixels = [torch.stack([self.transform(crop) for crop in own]) for own in crops_of]
        return _Found(pixels, faces, [(*_face_notes(face), *frames) for face in faces], source)

    @torch.inference_mode()
    def _predicted(self, photos: Sequence[_Found]) -> Iterator[Photo]:
        pixels = [face for photo in photos for face in photo.pixels]
        rows = iter(self._probabilities(pixels))
        for photo in photos:
            faces = []
            for face, notes in zip(photo.faces, photo.notes, strict=True):
                probabilities = dict(zip(self.classes, next(rows), strict=True))
                label = max(probabilities, key=probabilities.__getitem__)
                box, score = (None, None) if face is None else (face.box, face.score)
                faces.append(Prediction(label, probabilities, notes, photo.source, box, score, self.prior))
            yield Photo(tuple(faces), photo.source)

    def _probabilities(self, pixels: Sequence[torch.Tensor]) -> list[list[float]]:
        """Of each face, from its crops (V, C, H, W)."""
        if not pixels:
            return []
        logits = torch.cat([self._logits(part) for part in torch.cat(list(pixels)).split(self.batch_size)])
        if not logits.isfinite().all():
            raise InputError("the student's logits are not finite, so its weights are damaged; save it again")
        faces = torch.stack([own.mean(dim=0) for own in logits.split([len(face) for face in pixels])])
        return (faces + self._shift).softmax(dim=1).tolist()

    def _logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Of a batch, on the CPU: a device is waited for once."""
        images = self.transform.normalize(send(pixels, self.device)).to(memory_format=torch.channels_last)
        logits: torch.Tensor = self.model(images).float()
        if self.views > 1:
            logits = (logits + self.model(images.flip(-1)).float()) / 2
        return logits.cpu()


@dataclass(frozen=True)
class _Found:
    """One image's faces as the model takes them, (V, C, H, W) each; None for a face that is the whole image."""

    pixels: list[torch.Tensor]
    faces: Sequence[Face | None]
    notes: list[tuple[str, ...]]
    source: str | None


def student_and_images(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split the arguments of `ngd predict [STUDENT] IMAGE…`: the first is a student if it names one."""
    first, *rest = arguments
    path = Path(first)
    if path.is_dir():
        named = any((path / name).exists() for name in (*STUDENT_FILES, "student/config.json", "recipe.yaml"))
    elif path.exists() or path.suffix.lower() in (*SUFFIXES, *VIDEOS):
        named = False
    else:
        named = first in student_versions() or (bool(rest) and hub_id(first) is not None)
    return (first, rest) if named else (None, list(arguments))


def images_at(paths: Sequence[str | Path]) -> list[Path]:
    """Files as they are, folders as the images in them and below, in order."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = image_files(path, deep=True)
            if not inside:
                raise InputError(f"{path} holds no images ({', '.join(SUFFIXES)})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"no image {path}, nor a student; give files or folders of face crops")
    return found


def _open(image: ImageLike, index: int) -> tuple[Image.Image, str | None]:
    """An image with its pixels, and its file's name."""
    if isinstance(image, Image.Image):
        if not all(image.size):
            raise _not_an_image(f"image {index}", f"one of {image.width} x {image.height} px")
        return image, None
    if isinstance(image, np.ndarray):
        shaped = image.ndim in (2, 3) and image.shape[2:] in ((), (3,), (4,)) and image.size
        if image.dtype not in (np.uint8, np.uint16) or not shaped:
            raise _not_an_image(f"image {index}", f"{image.dtype} {image.shape}")
        if image.dtype == np.uint16:
            image = (image >> 8).astype(np.uint8)
        return Image.fromarray(image), None
    if not isinstance(image, (str, Path)):
        raise _not_an_image(f"image {index}", image)
    try:
        opened = open_image(image)
        opened.load()  # of an animation the first frame
    except DAMAGE as error:
        raise InputError(f"{image} is not a readable image ({damage_reason(error)})") from None
    return opened, str(image)


@contextmanager
def _usable(shown: str) -> Iterator[None]:
    """One line where PIL can't: a colour space that it can't convert, a line of pixels, frames cut short."""
    try:
        yield
    except DAMAGE as error:
        raise InputError(f"{shown} is not a usable image ({damage_reason(error)})") from None


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


def _face_notes(face: Face) -> tuple[str, ...]:
    return (f"tiny ({face.side:.0f} px): too small to tell much",) if face.side < _SMALLEST else ()


def _frame_notes(image: Image.Image) -> tuple[str, ...]:
    frames = getattr(image, "n_frames", 1) if image.format in ("GIF", "WEBP", "PNG") else 1
    return (f"the first of {frames} frames",) if frames > 1 else ()
