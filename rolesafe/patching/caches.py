"""The key/value cache under either name that transformers gives it: `cache` from 5.24 on, `past_key_values` before."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

NAMES = ("cache", "past_key_values")


def cache_argument(forward: Callable[..., Any]) -> str:
    """What `forward` of a model calls its cache.

    Raises:
        ValueError: It has none.
    """
    parameters = inspect.signature(forward).parameters
    for name in NAMES:
        if name in parameters:
            return name
    raise ValueError(f"`forward`: expected an argument named one of {NAMES}, got {tuple(parameters)}")


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """The cache among the keyword arguments of a forward pass, under whichever name; None: there is none."""
    return next((arguments[name] for name in NAMES if arguments.get(name) is not None), None)


def output_cache(output: Any) -> Any:
    """The cache that a forward pass or `generate` returned; None: it returned none."""
    # `hasattr` first: from 5.24 on the old name is a property that warns
    return next((getattr(output, name) for name in NAMES if hasattr(output, name)), None)
