"""Every example in a docstring runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import ngd_timm

MODULES = [m.name for m in pkgutil.walk_packages(ngd_timm.__path__, "ngd_timm.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run_and_print_what_they_say(name: str) -> None:
    module = importlib.import_module(name)
    globs = {**vars(module), "torch": importlib.import_module("torch"), "np": importlib.import_module("numpy")}
    result = doctest.testmod(module, globs=globs, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
