"""Expressions of the faces in a video: a row for each face and sampled frame, tracks, a timeline."""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import atomic_folder, atomic_path, check_place, require_new_folder
from ngd_timm.core.plots import RULE, STYLES, png_figure
from ngd_timm.core.progress import with_bar
from ngd_timm.predict.annotate import face_columns, face_values
from ngd_timm.predict.faces import Face, detector_available, overlap_over_union
from ngd_timm.predict.predictor import Prediction, Predictor

_SAME, _LOST = 0.3, 1.0  # overlap over union of one face in two frames; seconds after which a track has ended
_LABEL = 18  # px
_ROUNDING = 1e-3  # seconds, as Matroska states times


def predict_video(
    predictor: Predictor, file: str | Path, out: str | Path, fps: float = 5.0, annotate: str | Path | None = None
) -> Path:
    """Write faces.csv and timeline.png of a video into a new folder; with `annotate` also a video with boxes.

    Args:
        predictor: With its detector.
        file: A video that OpenCV reads.
        out: The new folder.
        fps: Frames a second that are looked at, at most the video's own; by the time that each frame states.
        annotate: The MP4 file of the sampled frames with boxes and labels.

    Raises:
        InputError: No video, one without frames, or a rate that is not above 0.
    """
    out = Path(out)
    if not 0 < fps < math.inf:
        raise InputError(f"--fps must be a number above 0, got {fps}")
    if not detector_available():
        raise InputError("reading a video needs OpenCV: pip install 'ngd-timm[faces]'")
    require_new_folder(out, "--out")
    if annotate is not None:
        _check_annotate(Path(annotate), Path(file), out)
    sampled = _frames(Path(file), fps)
    first = next(sampled, None)
    if first is None:
        raise InputError(f"{file} is not a video with frames that OpenCV can read")
    frames = _predicted(predictor, itertools.chain([first], sampled))
    with atomic_folder(out) as folder, contextlib.ExitStack() as stack:
        if annotate is not None:
            frames = _drawn(frames, stack.enter_context(atomic_path(annotate)), first.rate)
        rows = list(_write_rows(frames, predictor.classes, folder / "faces.csv"))
        _plot_timeline(rows, folder / "timeline.png")
    return out


def _check_annotate(path: Path, file: Path, out: Path) -> None:
    """Refuse a place for the video with boxes where it would take another's, or be lost."""
    place = path.resolve()
    if path.suffix.lower() != ".mp4" or place == file.resolve() or out.resolve() in (place, *place.parents):
        raise InputError(
            f"--annotate {path} is no place for the video; give an .mp4 that is neither {file} nor {out}, nor in it"
        )
    check_place(path)


class _Sampled(NamedTuple):
    """A frame that is looked at."""

    time: float  # seconds
    image: Image.Image
    rate: float  # such frames a second


class _Row(NamedTuple):
    """What the timeline shows of a face."""

    time: float
    track: int
    label: str
    valence: float | None
    arousal: float | None


@dataclass(frozen=True)
class _Frame:
    time: float  # seconds
    image: Image.Image
    faces: list[tuple[int, Prediction]]  # with their track


def _frames(file: Path, fps: float) -> Iterator[_Sampled]:
    """The sampled frames; the others are not decoded."""
    import cv2

    if not file.is_file():
        raise InputError(f"no video {file}")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # else FFmpeg prints what it thinks of a damaged file
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    video = cv2.VideoCapture(str(file))
    try:
        rate = video.get(cv2.CAP_PROP_FPS)
        count = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
        time = due = 0.0
        slack = min(_ROUNDING, 0.25 / fps)
        for number in with_bar(itertools.count(), count or None, file.name):
            if not video.grab():
                break
            time = _time(video, number, rate, time)
            if time < due:
                continue
            due = (math.floor((time + slack) * fps) + 1) / fps - slack
            decoded, pixels = video.retrieve()
            if decoded:
                yield _Sampled(time, Image.fromarray(pixels[:, :, ::-1].copy()), min(rate, fps) if rate > 0 else fps)
    finally:
        video.release()
        cv2.utils.logging.setLogLevel(level)


def _time(video: Any, number: int, rate: float, before: float) -> float:
    """Seconds at which the frame just grabbed is shown; by the rate, or one a second, where frames state no time."""
    import cv2

    stated = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
    return stated if stated > before else number / rate if rate > 0 else float(number)


def _predicted(predictor: Predictor, frames: Iterable[_Sampled]) -> Iterator[_Frame]:
    """Predictions of each frame; faces that overlap from frame to frame are one track."""
    last: dict[int, tuple[float, Face]] = {}
    count = 0
    for time, image, _ in frames:
        last = {track: seen for track, seen in last.items() if time - seen[0] <= _LOST}
        free, faces = dict(last), []
        for prediction in predictor.photo(image):
            face = Face(prediction.box or (0.0, 0.0, image.width, image.height), prediction.score or 1.0)
            overlaps = {track: overlap_over_union(face, before) for track, (_, before) in free.items()}
            track = max(overlaps, key=overlaps.__getitem__, default=0)
            if overlaps.get(track, 0.0) < _SAME:
                count += 1
                track = count
            free.pop(track, None)
            last[track] = time, face
            faces.append((track, prediction))
        yield _Frame(time, image, faces)


def _write_rows(frames: Iterable[_Frame], classes: Sequence[str], path: Path) -> Iterator[_Row]:
    """Write a row for every face, and pass on what the timeline shows of it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["time", "track", *face_columns(classes)])
        for frame in frames:
            for track, face in frame.faces:
                values = face_values(face, (0.0, 0.0, *frame.image.size))
                writer.writerow([round(frame.time, 3), track, *values])
                yield _Row(frame.time, track, face.label, face.valence, face.arousal)


def _drawn(frames: Iterable[_Frame], path: Path, fps: float) -> Iterator[_Frame]:
    """Pass frames on, and write them with boxes and labels as an MP4 of the first one's size."""
    import cv2

    writer, size, font = None, (0, 0), ImageFont.load_default(size=_LABEL)
    try:
        for frame in frames:
            image = frame.image.copy()
            draw = ImageDraw.Draw(image)
            for track, face in frame.faces:
                color = _style(track)[0]
                x, y, width, height = face.box or (0.0, 0.0, *image.size)
                draw.rectangle((x, y, x + width, y + height), outline=color, width=3)
                label = f"{track}: {face.label} {100 * face.probabilities[face.label]:.0f} %"
                at, anchor = (max(x, 0.0), max(y, 0.0)), "lb" if y > 1.3 * _LABEL else "lt"
                draw.text(at, label, fill="white", font=font, anchor=anchor, stroke_width=2, stroke_fill=color)
            if writer is None:
                size = image.size
                # by another name: the suffix tells OpenCV the container
                writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
                if not writer.isOpened():
                    raise InputError(f"this OpenCV writes no MP4 video to {path.name}; leave --annotate out")
            if image.size != size:
                image = image.resize(size)
            writer.write(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))
            yield frame
    finally:
        if writer is not None:
            writer.release()


def _plot_timeline(rows: Sequence[_Row], path: Path) -> None:
    """Label, valence and arousal of every track over time."""
    names = list(dict.fromkeys(row.label for row in rows))
    with png_figure(path, (9, 5)) as figure:
        labels, valence, arousal = figure.subplots(3, 1, sharex=True)
        for track in dict.fromkeys(row.track for row in rows):
            own, (color, marker) = [row for row in rows if row.track == track], _style(track)
            times = [row.time for row in own]
            labels.plot(
                times, [names.index(row.label) for row in own], marker, color=color, ms=4, label=f"face {track}"
            )
            valence.plot(times, [row.valence for row in own], color=color)
            arousal.plot(times, [row.arousal for row in own], color=color)
        labels.set(yticks=range(len(names)), yticklabels=names, title="" if rows else "no face found")
        for axes, name in ((valence, "valence"), (arousal, "arousal")):
            axes.axhline(0, color=RULE, lw=0.8)
            axes.set(ylabel=name, ylim=(-1, 1))
        arousal.set(xlabel="seconds")
        if 0 < len({row.track for row in rows}) <= len(STYLES):
            labels.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _style(track: int) -> tuple[str, str]:
    return STYLES[(track - 1) % len(STYLES)]
