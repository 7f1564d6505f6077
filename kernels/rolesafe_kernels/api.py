"""`role_attention` of the fused kernel: check a call, prepare the roles, choose between the kernels.

B batch, H query heads, G key/value heads, T queries, S keys, D and DV head dims, R roles
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rolesafe_kernels.call import MAX_ROLES, packed
from rolesafe_kernels.decode import role_attn_decode
from rolesafe_kernels.launch import INTERPRET, architecture, launch_of
from rolesafe_kernels.ops import build_bits, build_blocks, role_attn_fwd, role_blocks
from rolesafe_kernels.plan import Plan, Repeat, Settings, decodes
from rolesafe_kernels.replay import PLANS, form, is_eager

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_DIM = 256


class RoleLayout:
    """Roles of one problem in the kernels' form, prepared at the first use and kept: build one for all layers.

    Args:
        q_roles: (B, T) integer role ids of the queries. A token with an id outside [0, 16) sees nothing
            and is hidden from all queries.
        k_roles: (B, S) of the keys.
        privileged: Ids of the privileged roles.
        key_mask: (B, S), 0 or False where a key is hidden; None: none is.
        queries: Takes what is prepared of `q_roles`, to share among layouts with the same ones.
    """

    def __init__(
        self,
        q_roles: Tensor,
        k_roles: Tensor,
        privileged: Sequence[int] = (0, 1),
        key_mask: Tensor | None = None,
        queries: dict[Any, Any] | None = None,
    ) -> None:
        self.q_roles, self.k_roles, self.key_mask = q_roles, k_roles, key_mask
        self.privileged = role_bits(privileged)
        self._kept: dict[Any, Any] = {}
        self._queries = {} if queries is None else queries

    def keys(self, like: Tensor, dim: int, kernel: str) -> tuple[Tensor, Tensor]:
        """Return roles (B, S) int8 and lists of blocks for `kernel`, for tokens such as `like` of head dim `dim`."""
        return self._blocks("keys", like, dim, kernel)

    def queries(self, like: Tensor, dim: int, kernel: str) -> tuple[Tensor, Tensor]:
        """Return roles (B, T) int8 and lists of blocks of the queries."""
        return self._blocks("queries", like, dim, kernel)

    def of_block(self, side: str, block: int) -> tuple[Tensor, Tensor]:
        """Return the same of "keys" or "queries" for blocks of `block` tokens, without a registered operation."""
        side = self._side(side)
        return self._keep(side, block, lambda: build_blocks(*self._tokens(side), self.privileged, block))

    def roles_of_queries(self, block: int) -> Tensor:
        """Return the roles (B, T) int8 of the queries alone; `block` as in `of_block`."""
        if self._side("queries") == "keys":
            return self.of_block("keys", block)[0]
        roles: Tensor = self._keep("queries", "roles", lambda: build_bits(self.q_roles, None, block)[0])
        return roles

    def _blocks(self, side: str, like: Tensor, dim: int, kernel: str) -> tuple[Tensor, Tensor]:
        side = self._side(side)
        roles, mask = self._tokens(side)
        compiling = torch.compiler.is_compiling()
        block: Any = kernel if compiling else getattr(launch_of(like.device, like.dtype, dim), kernel).block
        if is_eager(roles, mask):
            return self.of_block(side, block)
        return self._keep(side, block, lambda: role_blocks(roles, mask, self.privileged, like.dtype, dim, kernel))

    def _keep(self, side: str, block: Any, compute: Callable[[], Any]) -> Any:
        kept, key = (self._kept, block) if side == "keys" else (self._queries, (block, self.privileged))
        if key not in kept:
            kept[key] = compute()
        return kept[key]

    def _side(self, side: str) -> str:
        """Return the side that is prepared: queries that are the keys are prepared once."""
        return "keys" if self.q_roles is self.k_roles and self.key_mask is None else side

    def _tokens(self, side: str) -> tuple[Tensor, Tensor | None]:
        return (self.k_roles, self.key_mask) if side == "keys" else (self.q_roles, None)


def unsupported(device: torch.device, dtype: torch.dtype, dim: int) -> str | None:
    """Return the reason why such tensors are unsupported, and an alternative; None if they are supported.

    Args:
        dim: The wider of the head dims.
    """
    if dtype not in DTYPES:
        return f"expected {', '.join(map(str, DTYPES))}, got {dtype}. Use impl='sdpa' or 'reference'."
    if dim > MAX_DIM:
        return f"expected head dims up to {MAX_DIM}, got {dim}. Use impl='sdpa'."
    if INTERPRET:
        if dtype == torch.bfloat16:
            return "Triton's interpreter multiplies bfloat16 wrongly without an error. Use float16, float32, or a GPU."
        if device.type != "cpu":
            return f"expected CPU tensors, because TRITON_INTERPRET is set, got tensors on {device}. Unset it."
        return None
    if device.type != "cuda":
        return f"expected tensors on a CUDA device, got {device}. Use impl='sdpa', or move them with .to('cuda')."
    if torch.version.hip is not None:
        return "expected an NVIDIA GPU, got a PyTorch that is built for ROCm. Use impl='sdpa'."
    arch = architecture(device)
    if arch < 80:
        return f"expected compute capability 8.0 or newer, got {arch / 10} on {device}. Use impl='sdpa'."
    return None


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_roles: Tensor | None,
    k_roles: Tensor | None,
    bias: Tensor | None,
    share: Tensor | None,
    sinks: Tensor | None,
    mask: Tensor | None,
    key_mask: Tensor | None,
    privileged: Sequence[int],
    dedicated: int,
    integrity: bool,
    scale: float | None,
    window: int | None,
    softcap: float | None,
    causal: bool,
    layout: RoleLayout | None,
    ranges: tuple[Tensor, Tensor] | None,
) -> None:
    """Raise ValueError for a call that would read out of bounds or give wrong results. Reads no data."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4 or x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"`{name}`: expected 4 dimensions, {q.dtype} on {q.device} like `q`, got {describe(x)}")
    batch, heads, length, dim = q.shape
    groups, keys = k.shape[1], k.shape[2]
    if k.shape[0] != batch or k.shape[3] != dim:
        raise ValueError(f"`k`: expected shape ({batch}, G, S, {dim}) to match `q`, got {describe(k)}")
    if v.shape[:3] != k.shape[:3] or not v.shape[3] or not dim:
        raise ValueError(f"`v`: expected shape ({batch}, {groups}, {keys}, DV) to match `k`, DV > 0, got {describe(v)}")
    if not groups or heads % groups:
        raise ValueError(f"`k`: expected a number of heads that divides the {heads} of `q`, got {groups}")
    reason = unsupported(q.device, q.dtype, max(dim, v.shape[3]))
    if reason is not None:
        raise ValueError(f"`q`: {reason}")
    if (q_roles is None) != (k_roles is None):
        missing = "q_roles" if q_roles is None else "k_roles"
        raise ValueError(f"`{missing}`: expected roles of queries and keys, or of neither, got None")
    asked = bias is not None or share is not None or key_mask is not None or dedicated or integrity
    if q_roles is None and asked:
        raise ValueError(
            "`q_roles`: expected role ids, got None. A bias, a share, dedicated heads, integrity and a key mask need "
            "them."
        )
    shapes = (
        ("q_roles", q_roles, (batch, length)),
        ("k_roles", k_roles, (batch, keys)),
        ("key_mask", key_mask, (batch, keys)),
        ("share", share, (heads,)),
        ("sinks", sinks, (heads,)),
    )
    for name, tensor, shape in shapes:
        if tensor is not None and (tuple(tensor.shape) != shape or tensor.device != q.device):
            raise ValueError(f"`{name}`: expected shape {shape} on {q.device}, got {describe(tensor)}")
    for name, roles in (("q_roles", q_roles), ("k_roles", k_roles)):
        if roles is not None and (roles.is_floating_point() or roles.is_complex() or roles.dtype == torch.bool):
            raise ValueError(f"`{name}`: expected integer role ids, got {describe(roles)}")
    for name, tensor in (("bias", bias), ("share", share), ("sinks", sinks)):
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"`{name}`: expected floating numbers, got {describe(tensor)}")
    if layout is not None:
        check_layout(layout, q, k, q_roles, k_roles, key_mask, privileged)
    if bias is not None:
        square = bias.ndim == 3 and bias.shape[0] == heads and bias.shape[1] == bias.shape[2]
        if not square or not 1 <= bias.shape[1] <= MAX_ROLES or bias.device != q.device:
            raise ValueError(
                f"`bias`: expected shape ({heads}, R, R), R <= {MAX_ROLES}, on {q.device}, got {describe(bias)}"
            )
    for name, pairs, size in () if ranges is None else (("ranges", ranges[0], length), ("ranges", ranges[1], keys)):
        fits = tuple(pairs.shape) == (batch, 2, size) and pairs.dtype == torch.int32 and pairs.is_contiguous()
        if not fits or pairs.device != q.device:
            raise ValueError(
                f"`{name}`: expected dense int32 ({batch}, 2, {size}) on {q.device}, got {describe(pairs)}"
            )
    if mask is not None:
        fits = mask.ndim == 4 and mask.shape[0] in (1, batch) and mask.shape[1] in (1, heads)
        if not fits or tuple(mask.shape[2:]) != (length, keys) or mask.dtype != torch.bool or mask.device != q.device:
            raise ValueError(
                f"`mask`: expected bool ({batch} | 1, {heads} | 1, {length}, {keys}) on {q.device}, "
                f"got {describe(mask)}"
            )
    for role in privileged:
        if not 0 <= role < MAX_ROLES:
            raise ValueError(f"`privileged`: expected ids in [0, {MAX_ROLES}), got {role}")
    if not 0 <= dedicated <= heads:
        raise ValueError(f"`dedicated`: expected 0 to {heads} (the heads of `q`), got {dedicated}")
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"`scale`: expected a positive, finite number, got {scale}. Use impl='sdpa' for others.")
    if window is not None and (window < 1 or not causal):
        raise ValueError(f"`window`: expected a positive length and causal=True, got {window} with causal={causal}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"`softcap`: expected a positive, finite number, got {softcap}")
    if batch > 32_767 or heads > 65_535:
        raise ValueError(
            f"`q`: expected at most 32767 sequences and 65535 heads (the launch grid), got {batch} and {heads}"
        )


def check_layout(
    layout: RoleLayout,
    q: Tensor,
    k: Tensor,
    q_roles: Tensor | None,
    k_roles: Tensor | None,
    key_mask: Tensor | None,
    privileged: Sequence[int],
) -> None:
    """Raise ValueError unless `layout` was made of the roles, the mask and the privileged ids of the call."""
    made_of = (layout.q_roles is q_roles, layout.k_roles is k_roles, layout.key_mask is key_mask)
    if all(made_of) and layout.privileged == role_bits(privileged):
        return
    for name, roles, x in (("q_roles", layout.q_roles, q), ("k_roles", layout.k_roles, k)):
        shape = (x.shape[0], x.shape[2])
        if q_roles is None or tuple(roles.shape) != shape or roles.device != q.device:
            raise ValueError(f"`layout`: expected `{name}` of shape {shape} on {q.device}, got {describe(roles)}")
    raise ValueError(
        "`layout`: expected the layout of the `q_roles`, `k_roles`, `key_mask` and `privileged` of this call, got "
        "another. Build it with RoleLayout(q_roles, k_roles, privileged, key_mask)."
    )


def role_bits(privileged: Sequence[int]) -> int:
    """Return a number with bit r set for each role r of `privileged`."""
    return sum(1 << role for role in set(privileged))


def describe(x: Tensor) -> str:
    return f"{x.dtype} of shape {tuple(x.shape)} on {x.device}"


def document_ranges(cu_seqlens: Tensor, length: int, causal: bool, window: int | None) -> tuple[Tensor, Tensor]:
    """Return the range of visible keys of each query, and of queries of each key, for documents packed in one row.

    A range is its first index and the one after its last: (1, 2, T) and (1, 2, S) int32.

    Args:
        cu_seqlens: (documents + 1,) integer, the start of each document, from 0 to `length`. Tokens outside see
            nothing.
        length: T, which is S here.
    """
    position = torch.arange(length, device=cu_seqlens.device)
    starts = cu_seqlens.long().clamp(0, length)
    document = torch.searchsorted(starts, position, right=True) - 1
    inside = (document >= 0) & (document < starts.shape[0] - 1)
    document = document.clamp(0, max(starts.shape[0] - 2, 0))
    start, stop = starts[document], starts[document + 1]
    first_key, last_key = start, position + 1 if causal else stop
    first_query, last_query = position if causal else start, stop
    if window is not None:
        first_key = torch.maximum(first_key, position + 1 - window)
        last_query = torch.minimum(last_query, position + window)
    pairs = (torch.stack([first_key, last_key]), torch.stack([first_query, last_query]))
    ranges, q_ranges = (torch.where(inside, pair, 0).to(torch.int32)[None] for pair in pairs)
    return ranges, q_ranges


def role_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_roles: Tensor | None = None,
    k_roles: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    share: Tensor | None = None,
    sinks: Tensor | None = None,
    privileged: Sequence[int] = (0, 1),
    dedicated: int = 0,
    integrity: bool = False,
    causal: bool = True,
    key_mask: Tensor | None = None,
    mask: Tensor | None = None,
    ranges: tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    layout: RoleLayout | None = None,
    repeats: list[Repeat] | None = None,
) -> Tensor:
    """Compute role-aware attention by the fused kernel. ``rolesafe.role_attention`` describes each argument.

    Args:
        q: (B, H, T, D) fp16, bf16 or fp32 on a CUDA device. `k`: (B, G, S, D), `v`: (B, G, S, DV).
        q_roles, k_roles: (B, T), (B, S) integer; None: plain attention.
        key_mask: (B, S), 0 or False where a key is hidden. `mask`: bool (B | 1, H | 1, T, S), read tile by tile.
        ranges: For packed documents, from :func:`document_ranges`; they replace order and window.
        layout: Prepared :class:`RoleLayout` of `q_roles`, `k_roles`, `privileged`, `key_mask`, to share among layers.
        repeats: Takes a :class:`Repeat` where other layers can repeat this call: decoding in eager mode.

    Returns:
        (B, H, T, DV), a view of (B, T, H, DV). Rows that see nothing are 0.

    Raises:
        ValueError: The kernels cannot compute this; the message names the argument, the expected and the given value.
    """
    pairs = (None, None) if ranges is None else ranges
    tensors = (q, k, v, q_roles, k_roles, bias, share, sinks, key_mask, mask, *pairs)
    train = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, bias, share, sinks))
    call = (privileged, dedicated, integrity, scale, window, softcap, causal)
    eager = is_eager(*tensors)
    if eager:
        key = (*map(form, tensors), q_roles is k_roles, *privileged, *call[1:], train)
        plan = PLANS.find(key)
        if plan is None:
            check(q, k, v, q_roles, k_roles, bias, share, sinks, mask, key_mask, *call, layout, ranges)
            plan = Plan(q, k, v, ranges, settings_of(q, *call), train, is_key_mask(mask, q, q_roles))
            PLANS.keep(key, plan)
        elif layout is not None:
            check_layout(layout, q, k, q_roles, k_roles, key_mask, privileged)
        attend: Any = plan
        of_keys = plan.of_keys
    else:
        check(q, k, v, q_roles, k_roles, bias, share, sinks, mask, key_mask, *call, layout, ranges)
        attend = partial(registered, settings_of(q, *call), train)
        of_keys = is_key_mask(mask, q, q_roles)
    if of_keys and mask is not None:
        seen = mask[:, 0, 0].expand(q.shape[0], -1)
        key_mask, mask, layout = seen if key_mask is None else seen & key_mask.bool(), None, None
    if layout is None and q_roles is not None and k_roles is not None:
        layout = RoleLayout(q_roles, k_roles, privileged, key_mask)
    more = {"repeats": repeats} if eager else {}
    return attend(q, k, v, layout, bias, share, sinks, mask, pairs, **more)


def settings_of(
    q: Tensor,
    privileged: Sequence[int],
    dedicated: int,
    integrity: bool,
    scale: float | None,
    window: int | None,
    softcap: float | None,
    causal: bool,
) -> Settings:
    """Return the numbers of a checked call as the operations take them."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return Settings(scale, softcap or 0.0, window or 0, causal, dedicated, integrity, role_bits(privileged))


def is_key_mask(mask: Tensor | None, q: Tensor, q_roles: Tensor | None) -> bool:
    """Return True where `mask` can be a key mask: that of one query, the same for all heads."""
    return mask is not None and q.shape[2] == 1 and mask.shape[1] == 1 and q_roles is not None


def registered(
    settings: Settings,
    train: bool,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: RoleLayout | None,
    bias: Tensor | None,
    share: Tensor | None,
    sinks: Tensor | None,
    mask: Tensor | None,
    ranges: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """Compute a checked call by the registered operations, which compilers, transforms and modes know."""
    q, k, v = packed(q), packed(k), packed(v)
    dim = max(q.shape[3], v.shape[3])
    decode = decodes(q, k, train, ranges[0])
    kernel = "decode" if decode else "forward"
    q_roles = k_roles = blocks = dq_blocks = dkdv_blocks = None
    if layout is not None:
        k_roles, blocks = layout.keys(q, dim, kernel)
        q_roles, dkdv_blocks = layout.queries(q, dim, "dkdv" if train else kernel)
        if train:
            dq_blocks = layout.keys(q, dim, "dq")[1]
    if decode:
        return role_attn_decode(q, k, v, q_roles, k_roles, blocks, bias, share, sinks, mask, *settings, 0)
    tensors = (q_roles, k_roles, blocks, dq_blocks, dkdv_blocks, bias, share, sinks, mask, *ranges)
    return role_attn_fwd(q, k, v, *tensors, *settings, train)[0]
