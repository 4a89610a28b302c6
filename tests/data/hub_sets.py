"""Tiny copies of data sets on the Hub: published columns, features and class names, a drawn face a class and split."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import Array2D, ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from writers import encoded

from ngd_timm.core.affect import CLASSES, anchors
from ngd_timm.data.labels import class_of
from ngd_timm.data.synthetic.tiny import tiny_face

Files = dict[str, bytes]


class HubSet(NamedTuple):
    """A data set's name here, its id on the Hub with the options that it needs, and the splits and files of a copy."""

    name: str
    root: str
    splits: Mapping[str, str]  # by our name, the set's own
    files: Callable[[Sequence[str]], Files]  # of the set's own split names


def face(label: str, split: str) -> Image.Image:
    return tiny_face(class_of("ferplus", label), sum(map(ord, split)))


def parquet(data: dict[str, Any], features: Features) -> bytes:
    buffer = io.BytesIO()
    Dataset.from_dict(data, features=features).to_parquet(buffer)
    return buffer.getvalue()


def image_and_label(names: str, column: str = "image", label: str = "label", text: bool = False) -> Any:
    """An image and a `ClassLabel`, or a name as text, in `data/SPLIT-00000-of-00001.parquet`."""
    classes = names.split()

    def files(splits: Sequence[str]) -> Files:
        image = Value("binary") if column == "img_bytes" else ImageFeature()
        features = Features({column: image, label: Value("string") if text else ClassLabel(names=classes)})
        out: Files = {}
        for split in splits:
            images: list[Any] = [encoded(face(c, split)) for c in classes]
            if column != "img_bytes":
                images = [{"bytes": data, "path": f"{c}.png"} for data, c in zip(images, classes, strict=True)]
            rows = {column: images, label: classes if text else [*range(len(classes))]}
            if text:  # CK+'s own file names
                features["file"] = Value("string")
                rows["file"] = [f"S01{i}_004_00000017.png" for i in range(len(classes))]
            folder = "default/" if column == "img_bytes" else "data/"
            place = f"{split}/0000" if column == "img_bytes" else f"{split}-00000-of-00001"
            out[f"{folder}{place}.parquet"] = parquet(rows, features)
        return out

    return files


def webdataset(splits: Sequence[str]) -> Files:
    names = ["angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised"]
    out: Files = {"classnames.txt": "\n".join(names).encode()}
    for split in splits:
        for shard in range(2):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as tar:
                for i in range(shard, len(names), 2):
                    image = encoded(face(names[i], split), "JPEG", quality=95)
                    for suffix, data in (("jpg", image), ("cls", str(i).encode())):
                        member = tarfile.TarInfo(f"s{i:07d}.{suffix}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
            out[f"{split}/{shard}.tar"] = buffer.getvalue()
        out[f"{split}/nshards.txt"] = b"2"
    return out


def enhanced(splits: Sequence[str]) -> Files:
    names = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
    image = Array2D((48, 48), "uint8")
    text, number = Value("string"), Value("float32")
    features = Features(
        {"sample_id": text, "image": image, "emotion": Value("int64"), "emotion_name": text, "pixels": text}
        | {"usage": text, "quality_score": number, "sample_weight": number}
    )
    out: Files = {}
    for split in splits:
        pixels = [np.asarray(face(c, split)) for c in names]
        rows = {"sample_id": names, "image": pixels, "emotion": [*range(7)], "emotion_name": names}
        rows |= {"pixels": [" ".join(map(str, p.ravel())) for p in pixels], "usage": [split] * 7}
        rows |= {"quality_score": [1.0] * 7, "sample_weight": [1.0] * 7}
        out[f"{split}.parquet"] = parquet(rows, features)
    return out


def list_of_one(splits: Sequence[str]) -> Files:
    names = ["surprise", "fear", "disgust", "happy", "sad", "angry", "neutral"]
    features = Features({"image": ImageFeature(), "label": List(Value("int64"))})
    return {
        f"data/{split}-00000-of-00001.parquet": parquet(
            {
                "image": [{"bytes": encoded(face(c, split)), "path": None} for c in names],
                "label": [[i + 1] for i in range(7)],
            },
            features,
        )
        for split in splits
    }


def rated(splits: Sequence[str]) -> Files:
    names = [c for c in CLASSES if c != "contempt"]
    images = [{"bytes": encoded(face(c, "train")), "path": None} for c in names]
    places = dict(zip(("valence", "arousal"), anchors(names).T.round(1).tolist(), strict=True))
    text = Value("string")
    features = Features({"image": ImageFeature(), "label": text, "valence": Value("float64")})
    features |= {"arousal": Value("float64"), "prompt_label": text, "file_name": text}
    rows = {"image": images, "label": names, **places, "prompt_label": names, "file_name": names}
    return {"all.parquet": parquet(rows, Features(features))}


SEVEN = "angry disgust fear happy neutral sad surprise"
TRAIN, TEST = {"train": "train"}, {"train": "train", "test": "test"}
HUB_SETS: Sequence[HubSet] = (
    HubSet("fer2013", "clip-benchmark/wds_fer2013", TEST, webdataset),
    HubSet(
        "fer2013",
        "Jeneral/fer-2013@refs/convert/parquet",
        TEST,
        image_and_label("angry disgust fear happy sad surprise neutral", "img_bytes", "labels"),
    ),
    HubSet("fer2013", "abhilash88/fer2013-enhanced", {**TEST, "valid": "validation"}, enhanced),
    HubSet("rafdb", "Mat303/raf-db-tcc", TRAIN, list_of_one),
    HubSet("affectnet", "Piro17/affectnethq", TRAIN, image_and_label(SEVEN)),
    HubSet(
        "affectnet",
        "Mauregato/affectnet_short",
        {"train": "train", "valid": "val"},
        image_and_label("anger surprise contempt happy neutral fear sad disgust"),
    ),
    HubSet("rafdb", "deanngkl/raf-db-7emotions", TRAIN, image_and_label(SEVEN)),
    HubSet("ferplus", "deanngkl/ferplus-7cls", TRAIN, image_and_label(SEVEN)),
    HubSet("fer2013", "AutumnQiu/fer2013", {**TEST, "valid": "valid"}, image_and_label(SEVEN)),
    HubSet("fer2013", "3una/Fer2013", TEST, image_and_label(SEVEN)),
    HubSet(
        "affectnet",
        "FastJobs/Visual_Emotional_Analysis",
        TRAIN,
        image_and_label("anger contempt disgust fear happy neutral sad surprise"),
    ),
    HubSet("ferplus", "dannyroxas/EMOTION_PHOTOS", TRAIN, image_and_label(SEVEN)),
    HubSet(
        "ckplus",
        "AlirezaF138/ckplus-dataset",
        TRAIN,
        image_and_label("anger contempt disgust fear happy sadness surprise", text=True),
    ),
    HubSet("diffusionfer", "marvanG/DiffusionFER", {}, rated),
)
