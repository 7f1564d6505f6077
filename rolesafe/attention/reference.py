"""The specification in eager PyTorch: dense, slow, exact in fp64. Every other backend is tested against it.

Legend: B batch, H query heads, G key/value heads, T queries, S keys, D head dim, R roles.

    s_ij  = softcap(scale * q_i.k_j) + scores_ij + bias[h, r_i, c_j]
    A_i   = softmax over visible j             -> o_i    the ordinary channel
    P_i   = softmax over visible privileged j  -> p_i    the privileged channel
    t_i   = d_i / (1 + d_i), d_i = max(0, mass_target - mass of A_i on privileged keys); 0 where i sees none
    o_i'  = (1 - t_i) o_i + t_i p_i
    out_i = (1 - w_i) o_i' + w_i p_i
    w_i   = share[h] where i sees a privileged key, else 0; 1 on dedicated heads; 1 for privileged i under integrity

A row of a channel that sees nothing is 0. The order of operations is that of the eager attention in transformers, so
with no role part the two agree bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rolesafe.attention.problem import Problem


def reference_attention(problem: Problem) -> Tensor:
    """Compute role-aware attention of `problem`: (B, H, T, Dv) in the dtype of q. Memory grows with T x S."""
    return reference_channels(problem)[0]


def reference_channels(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return output (B, H, T, Dv) and attention mass (B, H, T, S); its rows sum to 1, less the mass of sinks."""
    v = _per_query_head(problem.v, problem)
    mass, read = _mass_and_keys(problem)
    mass = torch.nn.functional.dropout(mass, problem.dropout)
    broken = ~torch.isfinite(v)
    if v.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(broken.any()):
        return torch.matmul(mass.to(v.dtype), v), mass
    # 0 * NaN is NaN: a value that is not finite must reach the rows that read its key, and no others.
    out = torch.matmul(mass.to(v.dtype), v.masked_fill(broken, 0.0))
    reached = torch.matmul(read.to(v.dtype), broken.to(v.dtype)) > 0
    return out.masked_fill(reached, float("nan")), mass


def reference_mass(problem: Problem) -> Tensor:
    """Return the attention mass (B, H, T, S) alone, before dropout."""
    return _mass_and_keys(problem)[0]


def _mass_and_keys(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return the attention mass (B, H, T, S) and the keys that each row reads, (B, H, T, S) bool."""
    p = problem
    k = _per_query_head(p.k, p)
    scores = torch.matmul(p.q, k.transpose(2, 3)) * p.scale  # (B, H, T, S)
    if p.softcap is not None:
        scores = torch.tanh(scores / p.softcap) * p.softcap
    if p.scores is not None:
        scores = scores + p.scores
    if p.bias is not None:
        # (H, B, T, S) -> (B, H, T, S); the bias comes after the cap, or a cap would make -inf visible again
        pairs = p.bias[:, p.roles.q_roles.long().unsqueeze(2), p.roles.k_roles.long().unsqueeze(1)]
        pairs = pairs.transpose(0, 1).to(scores.dtype)
        # not left to -inf alone: -inf + NaN is NaN
        scores = torch.where(torch.isneginf(pairs), pairs, scores + pairs)
    visible = visible_keys(p)
    read = visible & ~torch.isneginf(scores)
    ordinary = _softmax(scores, visible, p.sinks)
    mass = ordinary
    if p.needs_privileged:
        # No sink here: mass that is reserved for privileged keys must not be left to nobody.
        privileged_visible = visible & p.roles.privileged_keys[:, None, None, :]
        privileged = _softmax(scores, privileged_visible, None)
        seen = _seen(scores, privileged_visible)
        if p.mass_target:
            on_privileged = (ordinary * privileged_visible).sum(-1, keepdim=True)
            ordinary = torch.lerp(ordinary, privileged, torch.where(seen, p.weight_to_target(on_privileged), 0.0))
        weight, alone = _channel_weight(p, seen, scores)
        # `where` where one channel is read alone: 0 * NaN is NaN, and unread keys must have no effect.
        mass = torch.where(alone, privileged, torch.lerp(ordinary, privileged, weight))
        read = torch.where(alone, privileged_visible, visible) & ~torch.isneginf(scores)
    return mass, read


def _per_query_head(x: Tensor, p: Problem) -> Tensor:
    """Repeat keys or values (B, G, S, D) to (B, H, S, D)."""
    groups = p.q.shape[1] // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def visible_keys(problem: Problem) -> Tensor:
    """Return (B, 1 | H, T, S) bool: keys that order, window, padding and mask leave visible, without the table."""
    p = problem
    length, keys = p.q.shape[2], p.k.shape[2]
    visible = torch.ones(1, 1, length, keys, dtype=torch.bool, device=p.q.device)
    position = p.positional_mask(torch.arange(keys, device=p.q.device))
    if position is not None:
        visible = visible & position
    if p.roles.key_mask is not None:
        visible = visible & p.roles.key_mask[:, None, None, :]
    if p.mask is not None:
        visible = visible & p.mask
    return visible


def _seen(scores: Tensor, visible: Tensor) -> Tensor:
    """Return (B, H, T, 1) bool, True for rows that see any key after the table's -inf."""
    return (visible & (scores != float("-inf"))).any(-1, keepdim=True)


def _channel_weight(p: Problem, seen: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight of the privileged channel (B, H, T, 1), and True for rows that read that channel alone."""
    weight = torch.zeros_like(seen, dtype=like.dtype)
    alone = torch.zeros_like(seen)
    if p.share is not None:
        weight = weight + p.share.to(like.dtype)[:, None, None] * seen
        if p.share_is_fixed:
            alone = weight == 1
    if p.integrity:
        alone = alone | p.roles.privileged_queries[:, None, :, None]
    if p.dedicated:
        alone = alone | (torch.arange(p.q.shape[1], device=like.device)[:, None, None] < p.dedicated)
    return weight, alone


def _softmax(scores: Tensor, visible: Tensor, sinks: Tensor | None) -> Tensor:
    """Compute the softmax over visible keys, in fp32 at least; rows that see nothing are 0."""
    scores = scores.masked_fill(~visible, float("-inf"))
    if sinks is not None:
        sink = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sink], dim=-1)
    empty = (scores == float("-inf")).all(-1, keepdim=True)
    dtype = torch.promote_types(scores.dtype, torch.float32)
    mass = torch.softmax(scores.masked_fill(empty, 0.0), dim=-1, dtype=dtype).masked_fill(empty, 0.0)
    return (mass if sinks is None else mass[..., :-1]).to(scores.dtype)
