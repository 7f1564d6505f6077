"""`role_attention`: check a call and run it on a backend, without a silent fallback."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from rolesafe.attention.backends import resolve_problem
from rolesafe.attention.problem import Problem, RoleIndex
from rolesafe.attention.reference import reference_attention
from rolesafe.attention.sdpa import in_pieces, sdpa_attention
from rolesafe.roles.role import MAX_ROLES

Impl = Literal["auto", "reference", "sdpa", "triton"]


def role_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_roles: Tensor,
    k_roles: Tensor,
    *,
    bias: Tensor | None = None,
    share: Tensor | None = None,
    privileged: Sequence[int] = (0, 1),
    causal: bool = True,
    attention_mask: Tensor | None = None,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    impl: Impl = "auto",
    dedicated: int = 0,
    integrity: bool = False,
    mass_target: float = 0.0,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Compute attention that depends on the role of every token.

    With r_i the role of query i, c_j that of key j, and V_i the keys that order, window and masks leave visible::

        s_ij  = softcap(scale * q_i.k_j) + bias[h, r_i, c_j]
        o_i   = softmax(s_ij over j in V_i) . v                    the ordinary channel
        p_i   = softmax(s_ij over privileged j in V_i) . v         the privileged channel
        out_i = (1 - share[h]) o_i + share[h] p_i                  share = 0 where i sees no privileged key

    so the attention mass on privileged keys is at least ``share[h]``, whatever the other tokens are and however many.
    A row of a channel that sees no key is 0.

    Args:
        q: Queries (B, H, T, D), floating.
        k: Keys (B, G, S, D), dtype and device of `q`; H is a multiple of G.
        v: Values (B, G, S, Dv).
        q_roles: Role ids of the queries (B, T), integer.
        k_roles: Role ids of the keys (B, S), integer.
        bias: Table (H, R, R) added to the scores, R <= 16; ``-inf`` makes a pair of roles invisible to a head.
        share: Reserved share (H,) in [0, 1].
        privileged: Ids of the privileged roles.
        causal: Query i sees keys up to its own position i + S - T (aligned at the bottom right).
        attention_mask: (B, S) with 0 or False at padding, or a bool mask (B | 1, H | 1, T, S) that is combined with
            `causal` and `window`.
        lengths: Number of keys (B,) of each row before its padding, integer.
        cu_seqlens: Start of each document that is packed into one row, and the end of the last: (documents + 1,)
            integer, from 0 to T. B is 1 and T is S. Documents do not see each other.
        scale: Factor of the scores; default ``D ** -0.5``.
        window: Sliding window: a query sees the last `window` keys up to its own. Needs `causal`.
        softcap: ``softcap * tanh(score / softcap)`` before the bias (Gemma 2). Not with `sdpa`.
        impl: ``"reference"`` (the specification, dense), ``"sdpa"`` (linear memory, any device), ``"triton"`` (the
            fused kernel, NVIDIA GPUs), or ``"auto"``, see :func:`resolve_impl`. An explicit choice never falls back.
        dedicated: The first `dedicated` heads read the privileged channel alone, everywhere: they never read an
            unprivileged key, and give 0 where no privileged key is visible.
        integrity: Privileged queries read the privileged channel alone, in every head.
        mass_target: In [0, 1]: where a row's mass m on privileged keys is lower, log(mass_target / m) is added to their
            scores, before `share` (SpotLight). Not with `triton`.
        sinks: Logits (H,) of a key without value that takes mass in the ordinary channel (gpt-oss). Not with `sdpa`.
        dropout: Probability of dropping an attention weight. Not with `triton`.

    Returns:
        (B, H, T, Dv), dtype of `q`; under autocast its dtype, like PyTorch's attention.

    Raises:
        ValueError: An argument is invalid; the message names it, the expected and the given value.
        RuntimeError: The backend is not installed.
    """
    _check_shapes(q, k, v, q_roles, k_roles, bias, share, sinks)
    privileged = tuple(int(role) for role in privileged)
    num_roles = MAX_ROLES if bias is None else bias.shape[-1]
    for role in privileged:
        if not 0 <= role < num_roles:
            raise ValueError(f"`privileged`: expected ids in [0, {num_roles}), got {role}")
    if not 0 <= dedicated <= q.shape[1]:
        raise ValueError(f"`dedicated`: expected 0 to {q.shape[1]} (the heads of `q`), got {dedicated}")
    if window is not None and (window < 1 or not causal):
        raise ValueError(f"`window`: expected a positive length and causal=True, got {window} with causal={causal}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"`dropout`: expected a probability in [0, 1), got {dropout}")
    if not 0.0 <= mass_target <= 1.0:
        raise ValueError(f"`mass_target`: expected a number in [0, 1], got {mass_target}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"`softcap`: expected a positive, finite number, got {softcap}")
    _check_values(q_roles, k_roles, bias, share, num_roles)
    key_mask, mask = _split_mask(attention_mask, q, k)
    if lengths is not None:
        key_mask = _mask_of_lengths(lengths, key_mask, k)
    if cu_seqlens is not None:
        _check_documents(cu_seqlens, q, k)
    problem = Problem(
        q=q,
        k=k,
        v=v,
        roles=RoleIndex(q_roles, k_roles, privileged, key_mask),
        bias=bias,
        share=share,
        dedicated=dedicated,
        integrity=integrity,
        mass_target=mass_target,
        causal=causal,
        mask=mask,
        scale=q.shape[-1] ** -0.5 if scale is None else float(scale),
        window=window,
        softcap=softcap,
        sinks=sinks,
        dropout=dropout,
        documents=cu_seqlens,
    )
    return compute(problem, impl)


def compute(problem: Problem, impl: str) -> Tensor:
    """Run a checked problem on the backend of `impl`."""
    return run(problem, resolve_problem(problem, impl))


def run(problem: Problem, backend: str, repeats: list[Any] | None = None) -> Tensor:
    """Run a checked problem on `backend`, from :func:`resolve_problem`. `repeats`: see `triton_attention`."""
    device = problem.q.device.type
    if torch.is_autocast_enabled(device):
        # Tokens in autocast's dtype, as PyTorch's attention takes them; but the tables must not be rounded on the way.
        if problem.q.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
            problem = replace(problem, q=problem.q.to(dtype), k=problem.k.to(dtype), v=problem.v.to(dtype))
        with torch.autocast(device, enabled=False):
            return _run(problem, backend, None)  # a call of other tensors than the layer's
    return _run(problem, backend, repeats)


def _run(p: Problem, backend: str, repeats: list[Any] | None) -> Tensor:
    if backend == "triton":
        from rolesafe.attention.triton import triton_attention  # late: it imports triton

        return triton_attention(p, repeats)
    if p.documents is not None and backend == "sdpa" and (out := in_pieces(p)) is not None:
        return out
    if p.documents is not None:
        p = replace(p, mask=_same_document(p), documents=None)
    return reference_attention(p) if backend == "reference" else sdpa_attention(p)


def _same_document(p: Problem) -> Tensor:
    """Return packed documents as a mask (1, 1, T, T) bool, combined with the problem's own."""
    assert p.documents is not None
    position = torch.arange(p.q.shape[2], device=p.q.device)
    document = torch.searchsorted(p.documents.to(position.device).long(), position, right=True)
    inside = (document > 0) & (document < p.documents.shape[0])
    same = (document[:, None] == document) & inside
    return same[None, None] if p.mask is None else same & p.mask


def _check_documents(cu_seqlens: Tensor, q: Tensor, k: Tensor) -> None:
    length = q.shape[2]
    fits = cu_seqlens.ndim == 1 and cu_seqlens.shape[0] > 1 and _is_integer(cu_seqlens)
    if not fits or cu_seqlens.device != q.device:
        raise ValueError(
            f"`cu_seqlens`: expected integers of shape (documents + 1,) on {q.device}, got {_describe(cu_seqlens)}"
        )
    if q.shape[0] != 1 or k.shape[2] != length:
        raise ValueError(
            f"`cu_seqlens`: expected one row of packed documents, B = 1 and T = S, got B = {q.shape[0]}, T = {length}, "
            f"S = {k.shape[2]}"
        )
    _demand(
        (cu_seqlens[0] == 0) & (cu_seqlens[-1] == length) & (cu_seqlens[1:] >= cu_seqlens[:-1]).all(),
        lambda: f"`cu_seqlens`: expected ascending numbers from 0 to T = {length}, got {cu_seqlens.tolist()}",
    )


def _mask_of_lengths(lengths: Tensor, key_mask: Tensor | None, k: Tensor) -> Tensor:
    """Return the key mask (B, S) bool of the number of keys in each row."""
    if lengths.shape != k.shape[:1] or not _is_integer(lengths) or lengths.device != k.device:
        raise ValueError(
            f"`lengths`: expected integers of shape ({k.shape[0]},) on {k.device}, got {_describe(lengths)}"
        )
    _demand(
        ((lengths >= 0) & (lengths <= k.shape[2])).all(),
        lambda: f"`lengths`: expected 0 to {k.shape[2]} (the keys of a row), got {lengths.tolist()}",
    )
    inside = torch.arange(k.shape[2], device=k.device) < lengths[:, None]
    return inside if key_mask is None else inside & key_mask


def _check_shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_roles: Tensor,
    k_roles: Tensor,
    bias: Tensor | None,
    share: Tensor | None,
    sinks: Tensor | None,
) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4 or not x.is_floating_point():
            raise ValueError(f"`{name}`: expected a floating tensor of 4 dimensions, got {_describe(x)}")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"`{name}`: expected {q.dtype} on {q.device} like `q`, got {_describe(x)}")
    batch, heads, length, dim = q.shape
    groups, keys = k.shape[1], k.shape[2]
    if not dim:
        raise ValueError(f"`q`: expected a head dim of 1 at least, got {_describe(q)}")
    if k.shape[0] != batch or k.shape[3] != dim:
        raise ValueError(
            f"`k`: expected shape ({batch}, G, S, {dim}) to match `q` {tuple(q.shape)}, got {_describe(k)}"
        )
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"`v`: expected shape {(*k.shape[:3], 'Dv')} to match `k`, got {_describe(v)}")
    if groups == 0 or heads % groups:
        raise ValueError(f"`k`: expected a number of key/value heads that divides {heads} query heads, got {groups}")
    for name, roles, size in (("q_roles", q_roles, length), ("k_roles", k_roles, keys)):
        if not _is_integer(roles) or tuple(roles.shape) != (batch, size):
            raise ValueError(f"`{name}`: expected integer role ids of shape {(batch, size)}, got {_describe(roles)}")
        if roles.device != q.device:
            raise ValueError(f"`{name}`: expected device {q.device} like `q`, got {roles.device}")
    for name, table in (("bias", bias), ("share", share), ("sinks", sinks)):
        if table is not None and not table.is_floating_point():
            raise ValueError(f"`{name}`: expected floating numbers, got {_describe(table)}")
    if bias is not None:
        if bias.ndim != 3 or bias.shape[0] != heads or bias.shape[1] != bias.shape[2] or bias.shape[1] > MAX_ROLES:
            raise ValueError(f"`bias`: expected shape (H={heads}, R, R) with R <= {MAX_ROLES}, got {_describe(bias)}")
        if bias.device != q.device:
            raise ValueError(f"`bias`: expected device {q.device} like `q`, got {bias.device}")
    for name, vector in (("share", share), ("sinks", sinks)):
        if vector is not None and (tuple(vector.shape) != (heads,) or vector.device != q.device):
            raise ValueError(f"`{name}`: expected shape (H={heads},) on {q.device}, got {_describe(vector)}")


def _check_values(q_roles: Tensor, k_roles: Tensor, bias: Tensor | None, share: Tensor | None, num_roles: int) -> None:
    for name, roles in (("q_roles", q_roles), ("k_roles", k_roles)):
        _demand(
            ((roles >= 0) & (roles < num_roles)).all(),
            lambda name=name, roles=roles: (
                f"`{name}`: expected role ids in [0, {num_roles}), got {int(roles.min())} to {int(roles.max())}"
            ),
        )
    if bias is not None:
        _demand(
            (bias < float("inf")).all(),  # false for NaN too
            lambda: "`bias`: expected finite entries or -inf, got NaN or +inf",
        )
    if share is not None:
        _demand(
            ((share >= 0) & (share <= 1)).all(),
            lambda: f"`share`: expected numbers in [0, 1], got {share.min().item()} to {share.max().item()}",
        )


def _demand(holds: Tensor, message: object) -> None:
    """Raise where `holds` is False: at once on a CPU, by a device-side assertion (no sync) elsewhere."""
    if torch.compiler.is_compiling() or not holds.numel():
        return
    if holds.device.type != "cpu":
        torch._assert_async(holds)
    elif not bool(holds):
        raise ValueError(message())  # type: ignore[operator]


def _split_mask(mask: Tensor | None, q: Tensor, k: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return key padding (B, S) and full mask (B | 1, H | 1, T, S), both bool; at most one of them is set."""
    if mask is None:
        return None, None
    if mask.device != q.device:
        raise ValueError(f"`attention_mask`: expected device {q.device} like `q`, got {mask.device}")
    batch, heads, length, _ = q.shape
    keys = k.shape[2]
    if mask.ndim == 2 and tuple(mask.shape) == (batch, keys):
        return mask.to(torch.bool), None
    if (
        mask.ndim == 4
        and mask.dtype == torch.bool
        and mask.shape[0] in (1, batch)
        and mask.shape[1] in (1, heads)
        and tuple(mask.shape[2:]) == (length, keys)
    ):
        return None, mask
    raise ValueError(
        f"`attention_mask`: expected padding of shape {(batch, keys)} or a bool mask of shape "
        f"({batch} | 1, {heads} | 1, {length}, {keys}), got {_describe(mask)}"
    )


def _is_integer(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def _describe(x: Tensor) -> str:
    return f"{x.dtype} of shape {tuple(x.shape)} on {x.device}"
