"""Attention masks of a patched model.

Legend: B batch, T new tokens, S keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function, prepare_padding_mask, sdpa_mask

from rolesafe.patching.families import CHOOSES_KEYS

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
    read the mask before attention keep their (B, 1, T, S) mask.
    """
    compact = (
        torch.device(device).type in COMPACT_DEVICES
        and getattr(config, "model_type", None) not in CHOOSES_KEYS
        and mask_function is causal_mask_function
        and q_length > 1
        and kwargs.get("allow_is_causal_skip", True)
        and isinstance(q_offset, int)
        and q_offset + q_length == kv_offset + kv_length
    )
    if not compact:
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
        return full
    padding: Tensor | None = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is not None:
        return padding[:, kv_offset : kv_offset + kv_length].to(torch.bool)
    if q_length == kv_length:
        return None
    return torch.ones(batch_size, kv_length, dtype=torch.bool, device=device)
