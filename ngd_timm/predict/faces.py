"""Faces in photographs: YuNet finds them, and a square about a face's box is what a student takes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from ngd_timm.core.errors import InputError, one_line
from ngd_timm.core.files import packaged

FACE_CROP = 0.93
"""Side of the square about a face over the longer side of its box: on FER+ YuNet's box is 1.04 of the image's side."""
THRESHOLD = 0.6
_MODEL = "face_detection_yunet_2023mar.onnx"
_OVERLAP = 0.3  # of two boxes, above which they are one face
_FIRST, _FULL = 640, 4096  # px, the longer side of an image for large and for small faces
_TILE = 2048  # px: of a larger one at once the detector would take gigabytes
_RANGE = 300  # px, the largest face that the detector is made for
_FILLS, _ASPECT, _CROP = 0.7, 1.25, 128


@dataclass(frozen=True)
class Face:
    """A face in an image.

    Attributes:
        box: (x, y, width, height) in pixels of the upright image; it may reach beyond.
        score: The detector's, in [0, 1].
    """

    box: tuple[float, float, float, float]
    score: float

    @property
    def side(self) -> float:
        """The longer side of the box, in pixels."""
        return max(self.box[2:])


Detector: TypeAlias = Callable[[Image.Image], Sequence[Face]]


class FaceDetector:
    """OpenCV's face detector YuNet, bundled. It sees faces of about 10 to 300 pixels.

    An image is looked at with a longer side of 640 pixels, and at full size (up to 4,096) where that finds no face.

    Args:
        threshold: Of the score, in [0, 1].
        small_faces: Look at every image at full size too.

    Raises:
        InputError: OpenCV is not installed, or a threshold outside.

    Examples:
        >>> FaceDetector()(Image.new("RGB", (64, 64)))
        []

    Reference:
        Wu et al., "YuNet: A tiny millisecond-level face detector", Machine Intelligence Research 20 (2023), 656-665.
    """

    def __init__(self, threshold: float = THRESHOLD, small_faces: bool = False) -> None:
        if not 0 <= threshold <= 1:
            raise InputError(f"the threshold of a face's score must lie in [0, 1], got {threshold}")
        if not detector_available():
            raise InputError("finding faces needs OpenCV: pip install 'ngd-timm[faces]'; or give crops with --crops")
        try:
            import cv2

            create = cv2.FaceDetectorYN.create
        except (ImportError, AttributeError) as error:
            raise InputError(
                f"OpenCV can't be used ({one_line(error)}): pip install 'ngd-timm[faces]'; or give crops with --crops"
            ) from None
        self.small_faces = small_faces
        level = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        try:
            file = str(packaged("hub") / "detector" / _MODEL)
            self._net: Any = create(file, "", (_FIRST, _FIRST), threshold, _OVERLAP)
        finally:
            cv2.utils.logging.setLogLevel(level)

    def __call__(self, image: Image.Image) -> list[Face]:
        """The faces of an upright RGB image, largest first."""
        faces = self._look(image, _FIRST)
        if max(image.size) > _FIRST and (self.small_faces or not faces):
            # of a face above its range, as large as it is looked at, the detector sees parts
            largest = _RANGE * max(1.0, max(image.size) / _FULL)
            small = [face for face in self._look(image, _FULL) if face.side <= largest]
            faces += [face for face in small if all(overlap(face, other) <= _OVERLAP for other in faces)]
        return sorted(faces, key=lambda face: -face.side)

    def _look(self, image: Image.Image, longest: int) -> list[Face]:
        scale = min(1.0, longest / max(image.size))
        if scale < 1:
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        tiles = [self._tile(image, left, top, scale) for left, top in product(*map(_starts, image.size))]
        if len(tiles) == 1:
            return tiles[0]
        kept: list[Face] = []  # a face that a tile cuts is whole in its neighbour, with a higher score
        for face in sorted(chain(*tiles), key=lambda face: -face.score):
            if all(overlap(face, other) <= _OVERLAP for other in kept):
                kept.append(face)
        return kept

    def _tile(self, image: Image.Image, left: int, top: int, scale: float) -> list[Face]:
        tile = image.crop((left, top, min(left + _TILE, image.width), min(top + _TILE, image.height)))
        self._net.setInputSize(tile.size)
        _, rows = self._net.detect(np.ascontiguousarray(np.asarray(tile)[:, :, ::-1]))
        if rows is None:
            return []
        rows = rows.astype(np.float64)
        rows[:, :2] += (left, top)
        return [Face(tuple((row[:4] / scale).tolist()), float(row[14])) for row in rows]


def _starts(side: int) -> range:
    """Where tiles begin, which share a face's width, so that each face is whole in one."""
    return range(0, max(1, side - _RANGE), _TILE - _RANGE)


def detector_available() -> bool:
    """Whether OpenCV is installed."""
    return importlib.util.find_spec("cv2") is not None


def overlap(a: Face, b: Face) -> float:
    """The part of the smaller box that lies in the other, in [0, 1]."""
    smaller = min(_area(a), _area(b))
    return _shared(a, b) / smaller if smaller > 0 else 0.0


def overlap_over_union(a: Face, b: Face) -> float:
    """The intersection of two boxes over their union."""
    union = _area(a) + _area(b) - _shared(a, b)
    return _shared(a, b) / union if union > 0 else 0.0


def _area(face: Face) -> float:
    return face.box[2] * face.box[3]


def _shared(a: Face, b: Face) -> float:
    """The area of the intersection of two boxes."""
    area = 1.0
    for axis in (0, 1):
        left, right = max(a.box[axis], b.box[axis]), min(f.box[axis] + f.box[axis + 2] for f in (a, b))
        area *= max(0.0, right - left)
    return area


def is_crop(image: Image.Image, faces: Sequence[Face]) -> bool:
    """Whether an image is a face crop already: one face fills it, or it is small and shows none."""
    short, long = sorted(image.size)
    if not faces:
        return long <= _CROP
    return len(faces) == 1 and faces[0].side >= _FILLS * short and long <= _ASPECT * short


def crop_face(image: Image.Image, face: Face, scale: float = FACE_CROP) -> Image.Image:
    """The square of side `scale` times the box's longer side about a face, black beyond the image's edges."""
    x, y, width, height = face.box
    side = max(1, round(scale * face.side))
    left, top = round(x + (width - side) / 2), round(y + (height - side) / 2)
    return image.crop((left, top, left + side, top + side))
