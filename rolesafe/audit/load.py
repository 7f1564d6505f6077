"""Loading of a model and its tokenizer from a directory or the hub, without remote code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""``"auto"``: as saved."""


@dataclass(frozen=True)
class Loaded:
    """Result of :func:`load`; `notes` limit the meaning of an audit."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    notes: tuple[str, ...]


def load(path: str, *, preset: str | None = None, device: str | None = None, dtype: Dtype = "auto") -> Loaded:
    """Load a causal language model of transformers, or a checkpoint of rolesafe.

    Args:
        path: Directory or hub id.
        preset: Patch a plain model with this preset, untrained: shows the mechanism, not its effect.
        device: Such as ``"cpu"`` or ``"cuda"``; default: a GPU if available.
        dtype: Of the weights.

    Raises:
        ValueError: There is no such model, or an argument does not fit it.
    """
    import torch

    from rolesafe.config import RoleConfig
    from rolesafe.patching import is_patched, patch
    from rolesafe.roles.templates import DEFAULT_TEMPLATE
    from rolesafe.terminal import first_line

    if dtype not in get_args(Dtype):
        raise ValueError(f"`dtype`: expected one of {get_args(Dtype)}, got {dtype!r}")
    config = None if preset is None else RoleConfig.preset(preset)
    model, tokenizer = _read(path, dtype)
    notes = []
    if config is not None:
        if is_patched(model):
            raise ValueError(
                f"`preset`: expected none for {path!r}, which has its own role layer, got {preset!r}. Leave it out."
            )
        patch(model, config)
        notes.append(
            f"the plain model was patched with preset {preset!r} for this audit and not trained: the audit shows the "
            "guarantees of the role layer, not its effect"
        )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = DEFAULT_TEMPLATE
        notes.append("the tokenizer has no chat template: rolesafe's default is used, unknown to the model")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:  # no such device, or a build of torch without it
        raise ValueError(f"`device`: {device!r} cannot be used: {first_line(error)}") from error
    return Loaded(model.eval(), tokenizer, tuple(notes))


def _read(path: str, dtype: Dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
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
                f"`model`: expected a tokenizer in the model's directory {path!r}, found none: {first_line(error)} "
                "Save it there with `tokenizer.save_pretrained`."
            ) from error
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    return model, tokenizer
