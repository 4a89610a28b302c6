"""What `ngd predict` does: files in, lines, JSON or CSV out, and an exit that tells of files it could not read."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from ngd_timm.core.ending import Terminal, print_error
from ngd_timm.core.errors import InputError
from ngd_timm.core.files import atomic_folder, require_new_folder
from ngd_timm.predict.annotate import draw_photo, save_crops, write_rows, written
from ngd_timm.predict.faces import THRESHOLD, FaceDetector, detector_available
from ngd_timm.predict.predictor import VIDEOS, Photo, Predictor, images_at, student_and_images
from ngd_timm.predict.video import predict_video

logger = logging.getLogger("ngd_timm.predict")


def predict_files(
    arguments: Sequence[str],
    out: TextIO | Terminal,
    *,
    form: str = "text",
    crops: bool = False,
    small_faces: bool = False,
    threshold: float = THRESHOLD,
    annotate: Path | None = None,
    save_faces: Path | None = None,
    out_folder: Path | None = None,
    fps: float = 5.0,
    device: str = "auto",
    max_megapixels: float = 100,
    prior: str | Mapping[str, float] | None = None,
    views: int = 1,
) -> int:
    """Write the predictions of `[STUDENT] IMAGE…`; return how many images could not be read.

    Raises:
        InputError: No image could be read.
    """
    student, images = student_and_images(arguments)
    if not images:
        raise InputError(f"{student} is a student; give images after it, or folders of them")
    how: dict[str, Any] = {"prior": prior, "views": views}
    videos = [name for name in images if Path(name).suffix.lower() in VIDEOS]
    if videos or out_folder is not None:
        if len(images) != 1 or not videos or out_folder is None:
            raise InputError("a video is predicted by itself, into a folder: ngd predict clip.mp4 --out DIR")
        if crops or form != "text" or save_faces is not None:
            raise InputError("--crops, --save-faces, --json and --csv are of images; a video's faces go to faces.csv")
        predictor = Predictor(student, device, detector=FaceDetector(threshold, small_faces), **how)
        out.write(f"{predict_video(predictor, videos[0], out_folder, fps, annotate)}\n")
        return 0
    for option, folder in (("--annotate", annotate), ("--save-faces", save_faces)):
        if folder is not None:
            require_new_folder(folder, option)
    if annotate is not None and save_faces is not None:
        a, b = annotate.resolve(), save_faces.resolve()
        if a in (b, *b.parents) or b in a.parents:
            raise InputError(f"--annotate {annotate} and --save-faces {save_faces} lie in each other; give two folders")
    files = images_at(images)
    if not crops and not detector_available():
        logger.warning("the images are taken as face crops; to find faces: pip install 'ngd-timm[faces]'")
        crops = True
    detector = None if crops else FaceDetector(threshold, small_faces)
    predictor = Predictor(student, device, max_megapixels=max_megapixels, detector=detector, **how)
    errors: list[InputError] = []

    def failed(error: InputError) -> None:
        errors.append(error)
        if len(files) > 1:
            print_error(str(error))

    with contextlib.ExitStack() as stack:
        photos = predictor.photos(files, crops, failed)
        if annotate is not None:
            photos = written(photos, stack.enter_context(atomic_folder(annotate)), len(files), draw_photo)
        if save_faces is not None:
            place = stack.enter_context(atomic_folder(save_faces))
            photos = written(photos, place, len(files), partial(save_crops, scale=predictor.face_crop))
        _write(photos, predictor.classes, out, form, max(len(str(file)) for file in files))
        if len(errors) == len(files):
            raise errors[0] if len(files) == 1 else InputError(f"none of the {len(files)} images could be read")
    return len(errors)


def _write(photos: Iterator[Photo], classes: Sequence[str], out: TextIO | Terminal, form: str, width: int) -> None:
    if form == "csv":
        for _ in write_rows(photos, classes, out):
            pass
    elif form == "json":
        rows = [photo.as_dict() for photo in photos]
        if rows:
            out.write(json.dumps(rows, indent=2, allow_nan=False) + "\n")
    else:
        for photo in photos:
            for line in _lines(photo):
                out.write(f"{photo.source!s:{width}}  {line}\n")


def _lines(photo: Photo) -> Iterator[str]:
    if not photo.faces:
        yield "no face found"
    for number, face in enumerate(photo.faces, start=1):
        best = sorted(face.probabilities.items(), key=lambda item: -item[1])[:2]
        where = ""
        if face.box is not None:
            x, y, w, h = (round(value) for value in face.box)
            where = f"face {number} of {len(photo.faces)} at {x},{y} ({w} x {h} px): "
        plane = "" if face.valence is None else f"; valence {face.valence:+.2f}, arousal {face.arousal:+.2f}"
        notes = "".join(f"  ({note})" for note in face.notes)
        yield f"{where}{', '.join(f'{name} {100 * p:.0f} %' for name, p in best)}{plane}{notes}"
