"""What a file of JSON must hold: types that are checked when it is read, and one line about what doesn't fit."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from ngd_timm.core.errors import InputError, quoted
from ngd_timm.core.files import read_json

Count = Annotated[int, Field(ge=0, le=1 << 53)]
Amount = Annotated[float, Field(ge=0, le=1e12)]
Points = Annotated[float, Field(ge=-1e6, le=1e6)]
Percent = Annotated[float, Field(ge=-0.001, le=100.001)]  # a mean of hundreds may round above
Name = Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f]*[^/\\\x00-\x1f.]$")]  # of one file or folder
Pair = Annotated[list[Points], Field(min_length=2, max_length=2)]


class _Object(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


def record(needed: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> Any:
    """The type of an object with these keys, each of a type; other keys are allowed, and nothing is converted."""
    fields: dict[str, Any] = {key: (kind, ...) for key, kind in needed.items()}
    fields |= {key: (kind, None) for key, kind in (optional or {}).items()}
    return create_model("", __base__=_Object, **fields)


def listed(kind: Any, least: int = 0) -> Any:
    """The type of a list of at least so many."""
    return Annotated[list[kind], Field(min_length=least)]


def by_key(kind: Any, keys: Collection[str] | Any = str, least: int = 0) -> Any:
    """The type of an object of equal parts; where the keys are named, it has no others, and `least` of them."""
    names: Any = Literal[tuple(keys)] if isinstance(keys, (tuple, list)) else keys
    return Annotated[dict[names, kind], Field(min_length=least)]


def checked(kind: Any, value: Any, what: str, *key: str, fix: str = "") -> Any:
    """A value, parsed as a type; `what` and `key` say where it stands, `fix` what to do if it doesn't fit."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = [*key, *(quoted(part) for part in problem["loc"] if part != "[key]")]
        name, at = "".join(f" '{part}'" for part in place[:1]), ".".join(place[1:])
        message = re.sub(r" or instance of.*", "", problem["msg"])
        got = "" if problem["type"] == "missing" else f", got '{quoted(problem['input'])}'"
        raise InputError(f"{what}{name}: {message}{f' at {at}' if at else ''}{got}{fix}") from None


def read_checked(kind: Any, path: str | Path, shown: str | None = None, fix: str = "create it again") -> dict[str, Any]:
    """A JSON object from a file, as it stands there, that fits a type; `fix` is what to do if it doesn't."""
    value = read_json(path, shown)
    checked(kind, value, str(path) if shown is None else f"{shown}: {Path(path).name}", fix=f"; {fix}")
    return value
