"""Which number is which class: a JSON, a list of names or a data set's card beside a set of numbered labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from ngd_timm.core.affect import CLASSES
from ngd_timm.core.errors import InputError, one_line
from ngd_timm.data.labels import class_of

CLASS_NAMES = "classnames.txt"
"""The file of a webdataset's class names, one a line, from number 0 on: clip-benchmark's sets on the Hub."""
FORMS = '{"0": "neutral", …}, {"neutral": 0, …} or ["neutral", …]'


def read_class_map(path: str | Path) -> Mapping[int, str]:
    """Read which number is which class, by FER+'s name, from a JSON object in either direction or a list of names.

    Raises:
        InputError: Another form, an unknown class, or a class or number that stands twice.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "class_map.json"
        >>> _ = path.write_text('{"happy": 0, "sad": 1}')
        >>> read_class_map(path)
        {0: 'happiness', 1: 'sadness'}
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no class map at {path}; give a JSON file of the form {FORMS}")
    try:
        # an object as its pairs: a dict would keep the last of two equal keys
        data = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=tuple)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({one_line(error)}); a class map is {FORMS}") from None
    pairs = list(enumerate(data)) if isinstance(data, list) else list(data) if isinstance(data, tuple) else []
    if pairs and all(type(number) is int for _, number in pairs):
        pairs = [(number, name) for name, number in pairs]
    if not pairs or not all(re.fullmatch(r"\d{1,18}", str(number)) and isinstance(name, str) for number, name in pairs):
        raise InputError(f"{path} must map numbers to class names, as {FORMS}")
    known: dict[int, str] = {}
    for number, name in ((int(number), name) for number, name in pairs):
        try:
            expression = class_of("ferplus", name)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        if number in known or expression in known.values():
            twice = f"number {number}" if number in known else f"class {expression}"
            raise InputError(f"{path} has the {twice} twice; each number is one class, each class one number")
        known[number] = expression
    return known


def read_class_names(path: Path) -> Mapping[int, str]:
    """The class names in a `classnames.txt`."""
    return dict(enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()))


def names_in_card(path: Path, column: str) -> Mapping[int, str] | None:
    """A column's class names in the `dataset_info` of a data set's README.md, None where it has none."""
    from huggingface_hub import metadata_load

    try:
        info = (metadata_load(path) or {}).get("dataset_info") or []
        features = [f for config in (info if isinstance(info, list) else [info]) for f in config.get("features") or []]
        found = []
        for dtype in (f["dtype"] for f in features if f.get("name") == column):
            names = dtype.get("class_label", dtype).get("names") if isinstance(dtype, dict) else None
            pairs = names.items() if isinstance(names, dict) else enumerate(names or [])
            found.append({int(number): str(name) for number, name in pairs})
    except (OSError, ValueError, AttributeError, KeyError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: its dataset_info can't be read ({one_line(error)})") from None
    if any(names != found[0] for names in found):
        raise InputError(
            f"{path} numbers the classes of '{column}' otherwise in one config than in another; say which holds, "
            "ROOT,names=angry/disgusted/…"
        )
    return (found[0] or None) if found else None


def names_of(ids: Iterable[int], known: Mapping[int, str], where: str) -> list[str]:
    """The class of each number; one that the map lacks is refused."""
    ids = list(ids)
    strange = next((number for number in ids if number not in known), None)
    if strange is not None:
        raise InputError(f"{where} {strange} is not in the class map, which has {shown_ids(known)}")
    return [known[number] for number in ids]


def shown_ids(known: Mapping[int, str]) -> str:
    """Numbers with their classes, for messages."""
    return ", ".join(f"{number} {name}" for number, name in known.items())


def logit_classes(text: str | None) -> tuple[str, ...]:
    """The order of a model's logits: names with commas, or the JSON file of a class map from 0 on; None is FER+'s."""
    if text is None:
        return CLASSES
    if not text.endswith(".json"):
        classes = tuple(class_of("ferplus", name) for name in text.split(","))
        if len(set(classes)) < len(classes):
            raise InputError(f"--classes has a class twice: {', '.join(classes)}")
        return classes
    known = read_class_map(text)
    if sorted(known) != list(range(len(known))):
        raise InputError(f"{text} numbers classes {', '.join(map(str, sorted(known)))}; logits are numbered from 0 on")
    return tuple(known[number] for number in sorted(known))
