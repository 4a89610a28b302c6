"""Altered files are read, or refused in one line with nothing written; nothing in them runs."""

from __future__ import annotations

from typing import Any

import pytest
from artifacts import FILES


@pytest.mark.fuzz
@pytest.mark.parametrize("name", FILES)
def test_what_was_altered_is_read_or_refused_in_one_line(name: str, holds: Any) -> None:
    holds(name, FILES[name])
