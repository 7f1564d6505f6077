"""YAML of recipes: numbers as in YAML 1.2, no duplicate keys, no objects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Safe loader that reads ``1e-4`` as a number and rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise yaml.YAMLError(f"expected names as keys, got {name!r} in line {key.start_mark.line + 1}")
            if name in seen:
                raise yaml.YAMLError(f"expected each key once, got {name!r} again in line {key.start_mark.line + 1}")
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_yaml(text: str) -> dict[str, Any]:
    """Return the mapping in a YAML document.

    Raises:
        ValueError: The text is no YAML, no mapping, or has a key twice.
    """
    try:
        found = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(
            f"`recipe`: expected YAML, got something else: {' '.join(str(error).split())}. Correct the file."
        ) from error
    if not isinstance(found, dict):
        raise ValueError(
            f"`recipe`: expected a YAML mapping of names to values, got {type(found).__name__}. Correct the file."
        )
    return found


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Return `values` as a YAML document, in their order."""
    return str(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=120))
