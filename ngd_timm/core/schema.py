"""What a file of JSON must hold: models that check it, and one line about what doesn't fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ngd_timm.core.errors import InputError, quoted
from ngd_timm.core.files import read_json


class Part(BaseModel):
    """Base of every model; other keys are allowed, and nothing is converted."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)


Count = Annotated[int, Field(ge=0, le=1 << 53)]
Amount = Annotated[float, Field(ge=0, le=1e12)]
Percent = Annotated[float, Field(ge=-0.001, le=100.001)]  # a mean of hundreds may round above
Points = Annotated[float, Field(ge=-1e6, le=1e6)]
Pair = Annotated[list[Points], Field(min_length=2, max_length=2)]
Name = Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f]*[^/\\\x00-\x1f.]$")]  # of one file or folder


def checked(kind: Any, value: Any, what: str, *key: str, fix: str = "") -> Any:
    """A value, parsed as a type; `what` and `key` say where it stands, `fix` what to do if it doesn't fit."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = [*key, *(quoted(part) for part in problem["loc"] if part != "[key]")]
        name, at = "".join(f" '{part}'" for part in place[:1]), ".".join(place[1:])
        message = re.sub("^Value error, | or instance of \\w+", "", problem["msg"])
        got = "" if problem["type"] in ("missing", "value_error") else f", got '{quoted(problem['input'])}'"
        raise InputError(f"{what}{name}: {message}{f' at {at}' if at else ''}{got}{fix}") from None


def read_checked(kind: Any, path: str | Path, shown: str | None = None, fix: str = "create it again") -> dict[str, Any]:
    """A JSON object from a file, as it stands there, that fits a type; `fix` is what to do if it doesn't."""
    value = read_json(path, shown)
    checked(kind, value, str(path) if shown is None else f"{shown}: {Path(path).name}", fix=f"; {fix}")
    return value
