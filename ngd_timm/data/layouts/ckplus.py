"""CK+ as it is distributed: sequences from a neutral face to the apex, and an emotion for some of them.

Reference:
    Lucey et al.: "The Extended Cohn-Kanade Dataset (CK+)", 2010, and the read-me of the distribution: 593 sequences, of
    which 327 have an emotion file, named after the last frame, the apex.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import files_with, require_regular, subfolders
from ngd_timm.core.images import image_files
from ngd_timm.data.labels import CKPLUS_IDS
from ngd_timm.data.layouts.options import LayoutOptions, Source
from ngd_timm.data.layouts.rows import Piece, Rows, labels_of_ids, table_of_files

NO_EMOTION = "the apex of a sequence without an emotion"

_IMAGES = ("cohn-kanade-images", "extended-cohn-kanade-images/cohn-kanade-images")
_EMOTIONS = ("Emotion", "Emotion_labels/Emotion", "Emotion_labels")
_NEUTRAL = 0


def find_ckplus(source: Source) -> list[Piece] | None:
    """`cohn-kanade-images/S005/001/S005_001_00000011.png` and `Emotion/S005/001/S005_001_00000011_emotion.txt`.

    Each sequence with an emotion gives its last `options.apex_frames` frames, labelled with it, and with
    `options.neutral_frame` its first frame, labelled neutral. Sequences without one are dropped and counted.
    """
    root = source.root
    images = next((root / p for p in _IMAGES if (root / p).is_dir()), None)
    if images is None:
        return None
    emotions = next((root / p for p in _EMOTIONS if (root / p).is_dir()), None)
    if emotions is None:
        raise InputError(f"{root} has {images.name} but no folder Emotion; unpack Emotion_labels.zip there")
    read = partial(_read, images, emotions, root, source.options)
    return [Piece("CK+ sequences", images, None, images.name, read)]


def _read(images: Path, emotions: Path, root: Path, options: LayoutOptions) -> Rows:
    paths: list[Path] = []
    ids: list[int] = []
    unlabelled: list[bool] = []
    lost = {path.parent.relative_to(emotions) for path in files_with(emotions, (".txt",), deep=True)}
    for subject in subfolders(images):
        for sequence in subfolders(subject):
            frames = image_files(sequence)
            if not frames:
                continue
            lost.discard(sequence.relative_to(images))
            emotion = _emotion(emotions / subject.name / sequence.name)
            if emotion is None:
                used, numbers = frames[-1:], [_NEUTRAL]
            else:
                used, numbers = _frames(frames, *emotion, sequence, options)
            paths += used
            ids += numbers
            unlabelled += [emotion is None] * len(used)
    if lost:
        raise InputError(
            f"{images} lacks the images of {len(lost)} sequences with an emotion (first: {min(lost)}); unpack it whole"
        )
    label = labels_of_ids(ids, CKPLUS_IDS, images.name, "emotion")
    drop = np.array(unlabelled, dtype=bool)
    label[drop] = -1
    table = table_of_files(paths, root, subject=[p.parent.parent.name for p in paths])
    return Rows(table, None, tuple(CKPLUS_IDS.values()), label, None, {NO_EMOTION: drop})


def _frames(
    frames: list[Path], number: int, apex: str, sequence: Path, options: LayoutOptions
) -> tuple[list[Path], list[int]]:
    """The frames of a sequence that are used, and the class number of each."""
    names = [p.stem for p in frames]
    if apex not in names:
        raise InputError(f"{sequence} lacks {apex}.png, which its emotion file names; unpack the images again")
    frames = frames[: names.index(apex) + 1]
    if len(frames) < options.apex_frames + options.neutral_frame:
        raise InputError(
            f"{sequence} has {len(frames)} frames, fewer than apex_frames={options.apex_frames}"
            f"{' and a neutral one' if options.neutral_frame else ''}; lower apex_frames"
        )
    neutral = frames[:1] if options.neutral_frame else []
    last = frames[-options.apex_frames :]
    return [*neutral, *last], [_NEUTRAL] * len(neutral) + [number] * len(last)


def _emotion(folder: Path) -> tuple[int, str] | None:
    """The number in a sequence's emotion file and the frame it is named after; None where there is no file."""
    files = sorted(p for p in folder.glob("*_emotion.txt") if not p.name.startswith(".")) if folder.is_dir() else []
    if not files:
        return None
    if len(files) > 1:
        raise InputError(f"{folder} has {len(files)} emotion files, expected one; unpack Emotion_labels.zip again")
    require_regular(files[0])
    try:
        value = float(files[0].read_text(encoding="utf-8-sig"))
    except ValueError:
        raise InputError(f"{files[0]} does not hold one number, as 3.0000000e+00; unpack it again") from None
    if not value.is_integer():
        raise InputError(f"{files[0]} holds {value}, expected a whole number from 0 to {max(CKPLUS_IDS)}")
    return int(value), files[0].name.removesuffix("_emotion.txt")
