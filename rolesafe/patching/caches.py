"""KV caches of a patched model: their argument names in transformers, and their binding to roles.

transformers calls it `cache` from 5.24 on, `past_key_values` before. The keys and values in a cache depend on the roles
that they were computed with. So a cache keeps the roles of its tokens and the patch that computed them, follows every
change of its rows or its length, and is compared with `role_ids` at each use.

Legend: B batch, N tokens from the first one, T of them new, C tokens that a cache keeps the roles of.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache

from rolesafe.patching.guards import demand

if TYPE_CHECKING:
    from rolesafe.patching.inputs import RoleInputs

NAMES = ("cache", "past_key_values")
NOBODY = -1
"""Role id of a slot in a static cache without a token of the patched model."""


def cache_argument(forward: Callable[..., Any]) -> str:
    """Return the name of the cache argument of a model's `forward`.

    Raises:
        ValueError: It has none.
    """
    parameters = inspect.signature(forward).parameters
    for name in NAMES:
        if name in parameters:
            return name
    raise ValueError(f"`forward`: expected an argument named one of {NAMES}, got {tuple(parameters)}")


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """Return the cache among the keyword arguments of a forward pass, under either name; None without one."""
    return next((arguments[name] for name in NAMES if arguments.get(name) is not None), None)


def output_cache(output: Any) -> Any:
    """Return the cache in the output of a forward pass or of `generate`; None without one."""
    if isinstance(output, tuple):
        return next((item for item in output if isinstance(item, Cache)), None)
    # `hasattr` first: from 5.24 on the old name is a property that warns
    return next((getattr(output, name) for name in NAMES if hasattr(output, name)), None)


def is_static(cache: Any) -> bool:
    """Return True for a cache of one size for all steps."""
    return bool(getattr(cache, "is_compileable", False))


# ------------------------------------------------------------------------------------------------ roles of the keys


class _KeepsRoles:
    """Mixed into the class of a cache, in front of its own: the roles follow the keys.

    Attributes:
        rolesafe_roles: (B, C) int8 roles of the cached tokens, `NOBODY` where there is none; None: unknown.
        rolesafe_owner: Patch and strength of the model that filled it.
        rolesafe_tokens: (P,) ids of the frozen prompt that it began with; None without one.
    """

    rolesafe_roles: Tensor | None = None
    rolesafe_owner: tuple[str, float] | None = None
    rolesafe_tokens: Tensor | None = None
    rolesafe_base: type[Cache]

    def crop(self, *args: Any, **kwargs: Any) -> None:
        super().crop(*args, **kwargs)  # type: ignore[misc]
        if self.rolesafe_roles is not None:
            length, roles = self.get_seq_length(), self.rolesafe_roles  # type: ignore[attr-defined]
            if is_static(self):
                roles.masked_fill_(torch.arange(roles.shape[1], device=roles.device) >= length, NOBODY)
            else:
                self.rolesafe_roles = roles[:, :length]

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.rolesafe_owner = self.rolesafe_tokens = None
        if self.rolesafe_roles is not None:  # in place: compiled code knows a static cache by its addresses
            self.rolesafe_roles.fill_(NOBODY)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        change_rows(self, lambda roles: roles.index_select(0, beam_idx.to(roles.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        change_rows(self, lambda roles: roles.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        change_rows(self, lambda roles: roles[indices.to(roles.device)])

    def __reduce__(self) -> Any:
        return _new_like, (self.rolesafe_base,), self.__dict__


@functools.cache
def _class_that_keeps_roles(base: Any) -> Any:
    return type(base.__name__, (_KeepsRoles, base), {"rolesafe_base": base, "__doc__": base.__doc__})


def _new_like(base: Any) -> Any:
    kind = _class_that_keeps_roles(base)
    return kind.__new__(kind)


def follow(cache: Any) -> None:
    """Make this instance of a cache keep the roles of its keys through crop, reset and changes of its rows."""
    if isinstance(cache, Cache) and not isinstance(cache, _KeepsRoles):
        kind: Any = type(cache)
        cache.__class__ = _class_that_keeps_roles(kind)


def cache_class(cache: Any) -> type:
    """Return the class of `cache` in transformers, whether it keeps roles or not."""
    return getattr(cache, "rolesafe_base", type(cache))


def change_rows(cache: Any, change: Callable[[Tensor], Tensor]) -> None:
    """Apply `change` to the roles (B, C) that `cache` keeps, after its keys were changed layer by layer."""
    if getattr(cache, "rolesafe_roles", None) is not None:
        cache.rolesafe_roles = change(cache.rolesafe_roles)


def bind_frozen(cache: Any, tokens: Tensor, role_ids: Tensor, owner: tuple[str, float]) -> None:
    """Bind a cache that was filled from a frozen prompt to its tokens (P,), their roles (B, P) and their patch."""
    follow(cache)
    cache.rolesafe_roles, cache.rolesafe_owner, cache.rolesafe_tokens = role_ids.to(torch.int8), owner, tokens


def check_frozen(cache: Any, input_ids: Any) -> None:
    """Raise where the rows (B, N) of a call of `generate` do not begin with the frozen prompt of its cache.

    Raises:
        ValueError: They do not, or `input_ids` is None.
    """
    tokens = getattr(cache, "rolesafe_tokens", None)
    if tokens is None:
        return
    size = len(tokens)
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.shape[1] <= size:
        got = "none" if not isinstance(input_ids, Tensor) else f"shape {tuple(input_ids.shape)}"
        raise ValueError(
            f"`input_ids`: expected whole rows that go on after the {size} tokens of the frozen prompt in the cache, "
            f"got {got}. Pass the result of `FrozenPrompt.inputs`."
        )
    if not torch.equal(input_ids[:, :size], tokens.to(input_ids.device).expand(input_ids.shape[0], -1)):
        raise ValueError(
            f"`input_ids`: expected rows that begin with the {size} tokens of the frozen prompt in the cache, got "
            "others. Pass the result of `FrozenPrompt.inputs`, or no cache."
        )


def check_cache(cache: Any, role_ids: Tensor, past: int | Tensor, owner: tuple[str, float]) -> None:
    """Raise where the keys in `cache` were not computed by this patch, at this strength, with these roles.

    On a GPU and in compiled code the roles are compared by a device-side assertion.

    Args:
        role_ids: (B, N).
        past: Number of tokens in the cache.
        owner: Patch and strength of the model that reads it.

    Raises:
        ValueError: The cache was filled by another model or patch, at another strength, or with other roles.
    """
    if not isinstance(past, Tensor) and past == 0:
        return
    kept, filled_by = getattr(cache, "rolesafe_roles", None), getattr(cache, "rolesafe_owner", None)
    if filled_by != owner and not (filled_by is None and isinstance(past, Tensor)):
        if filled_by is None:
            source = "another model, without roles"
        elif filled_by[0] != owner[0]:
            source = "another patched model"
        else:
            source = f"this model at strength {filled_by[1]} (it has {owner[1]} now)"
        raise ValueError(f"`cache`: expected keys that this patched model computed, got keys of {source}. {_FILL}")
    if isinstance(past, Tensor) and kept is None:
        demand(past == 0, f"`cache`: expected keys of this patched model, got keys of another model. {_FILL}")
        return
    if kept is None or kept.shape[0] != role_ids.shape[0]:
        rows = "no" if kept is None else kept.shape[0]
        raise ValueError(f"`cache`: expected {role_ids.shape[0]} rows with roles, got {rows} rows with them. {_FILL}")
    size = min(kept.shape[1], role_ids.shape[1]) if isinstance(past, Tensor) else past
    if kept.shape[1] < size:
        raise ValueError(
            f"`cache`: expected roles of all its {past} tokens, got those of {kept.shape[1]}: another model, without "
            f"roles, added tokens. {_FILL}"
        )
    kept, now = kept[:, :size].to(role_ids.device), role_ids[:, :size]
    same = kept == now
    if isinstance(past, Tensor):
        same = same | (torch.arange(size, device=same.device) >= past.to(same.device))
    demand(same.all(), "`cache`: its roles differ from `role_ids`", lambda: _difference(kept, now))


_FILL = "Fill a new cache with this model, its `role_ids` and its strength."


def _difference(kept: Tensor, now: Tensor) -> str:
    row, position = (int(i) for i in (kept != now).nonzero()[0])
    was, is_now = int(kept[row, position]), int(now[row, position])
    computed = "by another model, without roles" if was == NOBODY else f"with role {was}"
    return (
        f"`role_ids`: expected the roles of the tokens in the cache, got role {is_now} for token {position} of row "
        f"{row}, which was computed {computed}. Pass the roles of the cached tokens unchanged, or fill a new cache."
    )


def record_roles(cache: Any, inputs: RoleInputs) -> None:
    """Bind `cache` to the roles of the tokens that a forward pass put into it."""
    if not torch.compiler.is_compiling():
        follow(cache)
    kept, new = getattr(cache, "rolesafe_roles", None), inputs.q_roles.to(torch.int8)
    cache.rolesafe_owner = inputs.owner
    if not is_static(cache):
        old = None if kept is None or inputs.past == 0 else kept[:, : inputs.past].to(new.device)
        cache.rolesafe_roles = new if old is None else torch.cat([old, new], 1)
        return
    size = max(cache.get_max_length(), inputs.role_ids.shape[1])
    if kept is None or kept.shape[0] != new.shape[0] or kept.device != new.device:
        kept = new.new_full((new.shape[0], size), NOBODY)
        if not torch.compiler.is_compiling():
            torch._dynamo.mark_static_address(kept)  # as transformers does with the keys: it is written in place
    elif kept.shape[1] < size:
        kept = torch.nn.functional.pad(kept, (0, size - kept.shape[1]), value=NOBODY)
    kept.index_copy_(1, inputs.q_positions(), new)
    cache.rolesafe_roles = kept
