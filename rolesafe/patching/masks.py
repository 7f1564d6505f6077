"""Attention masks of a patched model.

Legend: B batch, T new tokens, S keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function, prepare_padding_mask, sdpa_mask

from rolesafe.patching.families import CHOOSES_KEYS, NOT_CAUSAL

COMPACT_DEVICES = ("cuda",)
"""Devices where a causal mask is passed on as the padding alone: the fused kernel there computes causal order."""


def role_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    config: Any = None,
    **kwargs: Any,
) -> Tensor | None:
    """Return the padding (B, S) bool, or the mask of `sdpa_mask`; in the signature of transformers' mask functions.

    (B, S) means "causal, aligned at the bottom right, without the keys that are False": nothing of size T x S is
    allocated. Windows, chunks, packed or bidirectional sequences, static caches that are not full, and families that
    read the mask before attention, or do not say that it is causal, keep their (B, 1, T, S) mask. On a CPU all keep it,
    for the base model's own call; `padding_of` returns the (B, S) bool that it was made from.
    """
    compact = (
        getattr(config, "model_type", None) not in CHOOSES_KEYS | NOT_CAUSAL
        and mask_function is causal_mask_function
        and q_length > 1
        and kwargs.get("allow_is_causal_skip", True)
        and isinstance(q_offset, int)
        and q_offset + q_length == kv_offset + kv_length
    )
    on_device = torch.device(device).type in COMPACT_DEVICES
    if not compact or not on_device:
        full: Tensor | None = sdpa_mask(
            batch_size,
            q_length,
            kv_length,
            q_offset,
            kv_offset,
            mask_function,
            attention_mask,
            device=device,
            config=config,
            **kwargs,
        )
        if compact and full is not None and not torch.compiler.is_compiling() and not full.is_inference():
            padding = _padding(batch_size, q_length, kv_length, kv_offset, attention_mask, full.device)
            full.rolesafe_padding = (padding, full._version)  # type: ignore[attr-defined]
        return full
    return _padding(batch_size, q_length, kv_length, kv_offset, attention_mask, device)


def _padding(
    batch_size: int,
    q_length: int,
    kv_length: int,
    kv_offset: int,
    attention_mask: Tensor | None,
    device: torch.device | str,
) -> Tensor | None:
    """Return (B, S) bool, False at padding; None where causal order alone is meant, aligned at the top left."""
    padding: Tensor | None = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is not None:
        return padding[:, kv_offset : kv_offset + kv_length].to(torch.bool)
    if q_length == kv_length:
        return None
    return torch.ones(batch_size, kv_length, dtype=torch.bool, device=device)


def padding_of(mask: Tensor) -> Tensor | None:
    """Return the padding (B, S) bool that a mask (B, 1, T, S) of :func:`role_mask` adds to causal order, or None.

    None where the mask holds more, or was copied or changed on its way.
    """
    if torch.compiler.is_compiling():
        return None
    padding, version = getattr(mask, "rolesafe_padding", (None, None))
    return padding if padding is not None and mask._version == version else None


def split_mask(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Split a float mask (B, 1 | H, T, S) into the keys that it leaves visible, bool, and the numbers added to them."""
    visible = mask > torch.finfo(mask.dtype).min / 2
    return visible, torch.where(visible, mask, 0.0)


def bool_mask(mask: Tensor | None, name: str) -> Tensor | None:
    """Return `mask` (B, 1 | H, T, S) bool, or None; a ValueError names the attention `name` otherwise."""
    if mask is None or (mask.dtype == torch.bool and mask.ndim == 4):
        return mask
    raise ValueError(
        f"`attention_mask`: {name} passes its attention a {mask.dtype} mask of shape {tuple(mask.shape)}; expected a "
        "bool mask (B, 1, T, S), True where a key is seen. Pass the model a (B, S) mask of zeros and ones."
    )
