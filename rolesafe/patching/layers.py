"""Parts of a role layer in a model: their names, and the hooks that call them at the decoder layers.

Modules are known by name, never by identity or type: copies, replicas and wrappers keep the names.

Legend: B batch, T new tokens, d hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rolesafe.config import RoleConfig
from rolesafe.patching.inputs import RoleInputs

MISSING = (
    "`role_ids`: expected the role of every token, got none. This model is role-aware and does not run without roles: "
    "pass what `rolesafe.encode(tokenizer, messages)` returns, or take the role layer off with rolesafe.unpatch(model)."
)

ENTRY_PARTS = ("rolesafe_data", "rolesafe_embedding")
"""Names of the parts at the input of a decoder layer, in the order in which they act."""

PARTS = ("rolesafe_heads", "rolesafe_added", *ENTRY_PARTS, "rolesafe_last")
"""Names under which a patch hangs its parts into attention modules and decoder layers."""


@dataclass(frozen=True)
class RoleLayers:
    """Description of a model's role layer, kept in the model and in its entry module. Holds names, no modules.

    Attributes:
        entry: Path in the model of the module that reads the tokens.
        stack: Path in the entry module of the list of decoder layers.
        parts: Names of the parts of every decoder layer; each must take part in every forward pass.
        arguments: Names of the arguments of the entry module's forward, in order.
        cache_layers: See :class:`RoleInputs`.
        impl: Attention backend.
        patch: Random name of this patch, which binds caches to it.
    """

    config: RoleConfig
    entry: str
    stack: str
    parts: tuple[tuple[str, ...], ...]
    arguments: tuple[str, ...]
    cache_layers: tuple[int, ...]
    impl: str
    patch: str


def enter_layer(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of a decoder layer: what its parts do to its input hidden states (B, T, d)."""
    inputs = _inputs(layer, kwargs)
    inputs.entered.add(layer.rolesafe_layer)  # type: ignore[arg-type]
    parts = [part for name in ENTRY_PARTS if (part := layer._modules.get(name)) is not None]
    if not parts:
        return None
    hidden = args[0] if args else kwargs["hidden_states"]
    for part in parts:
        hidden = _apply(part, hidden, inputs)
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def leave_layer(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Forward hook of the last decoder layer: add a role embedding to its output hidden states (B, T, d)."""
    inputs = _inputs(layer, kwargs)
    hidden = output[0] if isinstance(output, tuple) else output
    hidden = _apply(layer.rolesafe_last, hidden, inputs)
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _inputs(layer: nn.Module, kwargs: dict[str, Any]) -> RoleInputs:
    inputs = kwargs.get("role_inputs")
    if not isinstance(inputs, RoleInputs):
        raise ValueError(f"`role_ids` did not reach {type(layer).__name__}. {MISSING}")
    return inputs


def _apply(part: Any, hidden: Tensor, inputs: RoleInputs) -> Tensor:
    changed: Tensor = part(hidden, inputs.q_roles.to(hidden.device))
    inputs.took_part(part)
    return changed
