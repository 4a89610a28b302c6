"""YAML of plain data: no code, no aliases, no duplicate keys, and whatever can't be read is a `YAMLError`."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from ngd_timm.core.errors import quoted

_DEEPEST = 20
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# what PyYAML's constructors raise where a tag and its text don't fit: 2024-13-45, !!int "", !!bool x, 5000 digits
_CONSTRUCTOR_ERRORS = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)


def read_yaml(text: str) -> Any:
    """Plain data from YAML, with the floats of YAML 1.2 (2e-4 is a number)."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except _CONSTRUCTOR_ERRORS as error:
        raise yaml.YAMLError(f"{error or type(error).__name__}") from None


def write_yaml(value: Any) -> str:
    """YAML that `read_yaml` reads back to an equal value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a short file could grow into a huge one
            raise yaml.YAMLError("aliases (*name) are not allowed in a recipe")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.YAMLError(f"nested more than {_DEEPEST} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.YAMLError("a list, a mapping or a set is no key")
            if key in seen:
                raise yaml.YAMLError(f"key '{quoted(key)}' stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int:
        number = int(self.construct_yaml_int(node))
        if number.bit_length() > 64:  # Python refuses to print thousands of digits even in a message
            raise yaml.YAMLError("a whole number of more than 64 bits")
        return number

    def construct_text(self, node: yaml.ScalarNode) -> str:
        text = str(self.construct_scalar(node))
        if _CONTROL.search(text):
            raise yaml.YAMLError(f"control characters, or half of one, in {quoted(ascii(text))}")
        return text


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would take for a number: a folder may be called 1e5."""


for _side in (_Loader, _Dumper):
    _float = re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)$")
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _float, list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
