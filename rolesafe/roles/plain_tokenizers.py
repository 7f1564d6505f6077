"""Copies of a tokenizer's components that add no space in front of a text."""

from __future__ import annotations

import copy
import json
from typing import Any


def without_prefix(component: Any, everywhere: bool) -> Any:
    """Return a normalizer or pre-tokenizer that adds no space in front of a text.

    Without `everywhere`, change only those that add it to the first text alone.
    """
    if component is None:
        return None
    before = json.loads(component.__getstate__())
    after = _edit(before, everywhere)
    if after == before:
        return component
    if after is None:
        return None
    edited = copy.deepcopy(component)
    edited.__setstate__(json.dumps(after).encode())
    return edited


def _edit(component: dict[str, Any], everywhere: bool) -> dict[str, Any] | None:
    component = dict(component)
    kind = component["type"]
    if kind == "Sequence":
        (key,) = (key for key in ("normalizers", "pretokenizers") if key in component)
        edited = [_edit(inner, everywhere) for inner in component[key]]
        component[key] = [inner for inner in edited if inner is not None]
    elif kind == "Metaspace" and (everywhere or component.get("prepend_scheme") == "first"):
        component["prepend_scheme"] = "never"
    elif kind == "ByteLevel" and everywhere:
        component["add_prefix_space"] = False
    elif kind == "Prepend" and everywhere:
        return None
    return component
