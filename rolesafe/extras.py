"""Import of optional dependencies."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def require(module: str, extra: str) -> Any:
    """Import and return `module`, which the extra `extra` of rolesafe installs.

    Raises:
        ImportError: It is not installed; the message names the extra.
    """
    try:
        return import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise ImportError(f'{name} is not installed. Run `pip install "rolesafe[{extra}]"`.') from error
