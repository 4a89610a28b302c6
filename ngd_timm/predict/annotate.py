"""What is written of photographs: drawn with boxes, probabilities and the plane; their faces' crops; CSV rows."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ngd_timm.core.affect import ANCHORS
from ngd_timm.core.images import open_image, to_mode
from ngd_timm.core.plots import INK, RULE, STYLES, png_figure
from ngd_timm.predict.faces import Face, crop_face

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ngd_timm.predict.predictor import Photo, Prediction

_STEM = 200  # bytes of a file's name that are kept; file systems take 255 in all
_DRAWN = 800  # px, the longer side of a photograph as it is drawn
_PREDICTED = ("score", "label", "valence", "arousal", "prior")
_BOX = ("x", "y", "width", "height")


def written(photos: Iterable[Photo], folder: Path, count: int, write: Callable[[Photo, Path], None]) -> Iterator[Photo]:
    """Pass photos of files on, each written to a PNG's path in a folder; `count` is how many there are."""
    digits = len(str(count))
    for number, photo in enumerate(photos, start=1):
        if photo.source is not None:
            stem = os.fsdecode(os.fsencode(Path(photo.source).stem)[:_STEM])
            write(photo, folder / f"{number:0{digits}d}-{stem}.png")
        yield photo


def save_crops(photo: Photo, path: Path, scale: float) -> None:
    """Save the RGB crop of every face, with the face's number after the name of the path.

    `scale` is a crop's side over the longer side of its box. An image that was taken as one face is saved whole.
    """
    image = to_mode(open_image(str(photo.source)), "RGB")
    for number, face in enumerate(photo.faces, start=1):
        crop = image if face.box is None else crop_face(image, Face(face.box, face.score or 0.0), scale)
        crop.save(path.with_name(f"{path.stem}-{number}.png"))


def draw_photo(photo: Photo, path: Path) -> None:
    """Draw a photograph's boxes and labels; beside it the probabilities and the plane with a dot a face."""
    image = to_mode(open_image(str(photo.source)), "RGB")
    with png_figure(path, (10, 5)) as figure:
        picture, bars, plane = figure.subplot_mosaic("aab;aac", width_ratios=(1, 1, 1.1)).values()
        draw_boxes(picture, image, photo.faces)
        draw_bars(bars, photo.faces)
        draw_plane(plane, photo.faces)


def draw_boxes(axes: Axes, image: Image.Image, faces: Sequence[Prediction]) -> None:
    """Draw an image, which is scaled down in place, with boxes and labels."""
    from matplotlib.patches import Rectangle

    width, height = image.size
    image.thumbnail((_DRAWN, _DRAWN))
    axes.imshow(np.asarray(image), extent=(0, width, height, 0), interpolation="antialiased")
    for i, face in enumerate(faces):
        label = f"{face.label} {100 * face.probabilities[face.label]:.0f} %"
        x, y, w, h = face.box or (0, 0, width, height)
        box = {"fc": _color(i), "ec": "none", "pad": 1.5}
        if face.box is not None:
            axes.add_patch(Rectangle((x, y), w, h, fill=False, ec=_color(i), lw=2))
        above = y > 0.06 * height
        style = {"color": "white", "fontsize": 9, "bbox": box, "va": "bottom" if above else "top", "clip_on": True}
        axes.text(max(x, 0), max(y, 0), label, **style)  # type: ignore[arg-type]
    notes = dict.fromkeys(note for face in faces for note in face.notes)
    axes.set_title("\n".join(notes) if faces else "no face found", fontsize=9, color=INK)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")


def draw_bars(axes: Axes, faces: Sequence[Prediction]) -> None:
    """Draw a bar for every class and face."""
    names = list(faces[0].probabilities) if faces else list(ANCHORS)
    thickness = 0.8 / max(1, len(faces))
    for i, face in enumerate(faces):
        places = np.arange(len(names)) + (i - (len(faces) - 1) / 2) * thickness
        axes.barh(places, [100 * p for p in face.probabilities.values()], thickness, color=_color(i))
    axes.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 100), xlabel="probability, %")
    axes.invert_yaxis()


def draw_plane(axes: Axes, faces: Sequence[Prediction]) -> None:
    """Draw the valence/arousal plane with a dot for every face."""
    angle = np.linspace(0, 2 * math.pi, 200)
    axes.plot(np.cos(angle), np.sin(angle), color=RULE, lw=1)
    axes.axhline(0, color=RULE, lw=0.8)
    axes.axvline(0, color=RULE, lw=0.8)
    for name, (valence, arousal) in ANCHORS.items():
        side = {"fear": "right", "anger": "left"}.get(name, "center")  # which are neighbours
        above = arousal > 0.3  # a face at the anchor leaves its name legible
        beside = arousal + (0.06 if above else -0.06)
        va = "bottom" if above else "top"
        axes.text(valence, beside, name, fontsize=7, color="#777777", ha=side, va=va)
    for i, face in enumerate(faces):
        if face.valence is not None and face.arousal is not None:
            axes.plot(face.valence, face.arousal, STYLES[i % len(STYLES)][1], color=_color(i), ms=8, mec="white")
    axes.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), xlabel="valence", ylabel="arousal", aspect="equal")


def _color(number: int) -> str:
    return STYLES[number % len(STYLES)][0]


def write_rows(photos: Iterable[Photo], classes: Sequence[str], file: Any) -> Iterator[Photo]:
    """Pass photos on, and write a CSV row for every face; the columns' names come with the first photo."""
    writer, head = csv.writer(file, lineterminator="\n"), False
    for photo in photos:
        if not head:
            writer.writerow(["source", "face", *face_columns(classes)])
            head = True
        for number, face in enumerate(photo.faces, start=1):
            writer.writerow([photo.source, number, *face_values(face, (None,) * 4)])
        yield photo


def face_columns(classes: Sequence[str]) -> list[str]:
    """The names of `face_values`."""
    return [*_BOX, *_PREDICTED, *classes, "notes"]


def face_values(face: Prediction, whole: Sequence[float | None]) -> list[Any]:
    """A face as a row of CSV files has it; `whole` is the box of one that has none."""
    row = face.as_dict()
    predicted = [row[key] for key in _PREDICTED]
    return [*(row["box"] or whole), *predicted, *row["probabilities"].values(), "; ".join(row["notes"])]
