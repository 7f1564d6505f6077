"""A model and its tokenizer from a directory or the hub, with a role layer or without, never with remote code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Loaded:
    """What :func:`load` read; `notes` say what a reader of an audit has to know about it."""

    model: Any
    tokenizer: Any
    notes: tuple[str, ...]


def load(path: str, *, preset: str | None = None, device: str | None = None, dtype: str = "auto") -> Loaded:
    """Read a causal language model of transformers, or a checkpoint that rolesafe saved.

    Args:
        path: A directory or hub id.
        preset: Patch a plain model with this preset, untrained: a look at the mechanism, not at its effect.
        device: Such as ``"cpu"`` or ``"cuda"``; default: a GPU where there is one.
        dtype: One of :data:`DTYPES`; ``"auto"``: as it was saved.

    Raises:
        ValueError: There is no such model, or an argument does not fit it.
    """
    import torch

    from rolesafe.config import RoleConfig
    from rolesafe.patching import is_patched, patch
    from rolesafe.roles.templates import DEFAULT_TEMPLATE
    from rolesafe.terminal import first_line

    if dtype not in DTYPES:
        raise ValueError(f"`dtype`: expected one of {DTYPES}, got {dtype!r}")
    config = None if preset is None else RoleConfig.preset(preset)
    model, tokenizer = _read(path, dtype)
    notes = []
    if config is not None:
        if is_patched(model):
            raise ValueError(
                f"`preset`: expected none for {path!r}, which has a role layer of its own, got {preset!r}; leave it out"
            )
        patch(model, config)
        notes.append(
            f"the plain model was patched with preset {preset!r} for this audit and not trained: what the role layer "
            "guarantees can be seen, what it is good for cannot"
        )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = DEFAULT_TEMPLATE
        notes.append("the tokenizer has no chat template: rolesafe's default one is used, which the model may not know")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:  # no such device, or a torch without it
        raise ValueError(f"`device`: {device!r} cannot be used: {first_line(error)}") from error
    return Loaded(model.eval(), tokenizer, tuple(notes))


def _read(path: str, dtype: str) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    from rolesafe.patching.loading import UNREADABLE, is_alone, read_model
    from rolesafe.terminal import first_line

    model = read_model(path, dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except UNREADABLE as error:
        base = getattr(model.config, "name_or_path", "")
        if not is_alone(path) or not base or base == path:
            raise ValueError(
                f"`model`: expected a tokenizer beside the model in {path!r}, found none: {first_line(error)} Save "
                "it there with tokenizer.save_pretrained(directory)."
            ) from error
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    return model, tokenizer
