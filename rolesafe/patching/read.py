"""Any causal language model from disk or hub: plain, or with the role layer that it was saved with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from rolesafe.patching.checkpoint import ROLE_CONFIG_NAME, from_pretrained, read_config
from rolesafe.patching.seal import is_sealed
from rolesafe.terminal import first_line

UNREADABLE = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, OSError),
    *(RuntimeError, SafetensorError, StrictDataclassError, TypeError, ValueError),
)
"""What transformers raises for a checkpoint whose files are missing, cut short, or hold values of the wrong kind."""


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn whatever the reading of a checkpoint raises into one clear error.

    Raises:
        ValueError: There is no such model, or its files cannot be read.
    """
    try:
        yield
    except UNREADABLE as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(
            f"`model`: expected a directory or hub id of a causal language model that transformers has the code of, "
            f"got {path!r}: {reason}"
        ) from error


def read_model(path: str, dtype: str = "auto") -> Any:
    """The model at `path`, patched if it was saved so, in eval mode. Never runs code of a checkpoint.

    Args:
        path: A directory or hub id.
        dtype: As for `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ValueError: There is no such model, or its role layer does not load.
    """
    from transformers import AutoModelForCausalLM

    with reading(path):
        if is_alone(path) or is_sealed(read_config(path)):
            return from_pretrained(path, dtype=dtype)
        return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False, use_safetensors=True, dtype=dtype)


def is_alone(path: str) -> bool:
    """Whether there is a role layer without its model in the directory `path`."""
    return (Path(path) / ROLE_CONFIG_NAME).is_file()
