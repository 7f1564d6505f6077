"""Attention that layers repeat: those of one forward pass that differ in tensors alone make the same call of a kernel.

Legend: B batch, H query heads, G key/value heads, T queries, S keys, D head dim, R roles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from rolesafe.patching.families import cache_layer

if TYPE_CHECKING:
    from rolesafe.patching.inputs import RoleInputs

Tables = tuple[Tensor | None, Tensor | None]
"""Bias table (H, R, R) and share (H,) at full strength."""


class Repeated(NamedTuple):
    """The attention of one layer.

    Attributes:
        mask: Mask that it was given.
        layout: See `RoleInputs.layout`.
        settings: All else that it depends on, except for tensors, see `_settings`.
        device: Type of its device.
        call: Returns the attention (B, T, H, Dv) of other q, k, v, bias, share and sinks; None where they have another
            form.
    """

    mask: Tensor | None
    layout: tuple[int, int]
    settings: tuple[Any, ...]
    device: str
    call: Callable[..., Tensor | None]


def keep(
    inputs: RoleInputs, module: nn.Module, mask: Tensor | None, given: tuple[Any, ...], device: str, call: Any
) -> None:
    """Keep `call`, the attention of `module`, for other layers. `given`: numbers that it passed to its attention."""
    heads: Any = module._modules["rolesafe_heads"]
    if not hasattr(type(module), "is_kv_shared_layer"):
        layout = inputs.layout(cache_layer(module))
        inputs.repeats.append(Repeated(mask, layout, _settings(module, heads, given), device, call))


def repeat(
    inputs: RoleInputs,
    module: nn.Module,
    tokens: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    sinks: Tensor | None,
    given: tuple[Any, ...],
) -> tuple[Tensor | None, Tables | None]:
    """Return the attention (B, T, H, Dv) of `module` as a repetition of another layer's, and the tables that it read.

    The attention is None where there is none to repeat: no layer with these settings, this mask and this key layout ran
    before, a tensor has another form, or autocast changes the `tokens` (q, k, v). The tables are None where they were
    not read.
    """
    parts, own = module._modules, module.__dict__
    heads: Any = parts.get("rolesafe_heads")
    if not hasattr(heads, "reserved_share") or parts.get("rolesafe_added") is not None:
        return None, None
    layer = own.get("layer_idx")
    if layer is None or own.get("is_kv_shared_layer"):
        layer = cache_layer(module)
    layout, settings = inputs.layout(layer), _settings(module, heads, given)
    tables: Tables | None = None
    for one in inputs.repeats:
        if one.mask is not mask or one.settings != settings or one.layout != layout:
            continue
        if torch.is_autocast_enabled(one.device):
            continue
        if tables is None:
            tables = heads(tokens[0].device)
        bias, share = tables
        if share is not None and heads.strength < 1:  # as in the layer that was kept
            share = share * heads.strength
        output = one.call(*tokens, bias, share, sinks)
        if output is not None:
            inputs.took_part(heads)
            return output, tables
    return None, tables


def _settings(module: nn.Module, heads: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return (
        type(module), module.__dict__.get("is_causal"), module.training, heads.heads, heads.strength, heads.dedicated,
        heads.integrity, heads.mass_target, *given,
    )  # fmt: skip
