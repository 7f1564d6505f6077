"""The fused kernel's arithmetic in half precision, in PyTorch: the interpreter multiplies bf16 wrongly.

B batch, H query heads, T queries, S keys, R roles
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rolesafe.attention import Problem, RoleIndex
from rolesafe.attention.problem import is_privileged
from rolesafe.attention.reference import visible_keys
from tools.inputs import ROLES, Features, Inputs


def emulate(x: Inputs, features: Features, *, rounded: bool = True, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return output (B, H, T, DV) and table gradient (H, R, R) as the kernels round them; in fp32 unless `rounded`.

    Masses, p, p - o and the output are rounded to the dtype of `x`, and row means come from the rounded output.
    Supports bias, share, dedicated heads, integrity, score cap, sinks, window and padding.

    Args:
        scale: Factor of the masses in the backward: not 1 for a wrong kernel.
    """

    def low(t: Tensor) -> Tensor:
        return t.to(x.q.dtype).float() if rounded else t

    q, k, v, grad = (t.detach().float() for t in (x.q, x.k, x.v, x.grad))
    heads = q.shape[1]
    k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if features.softcap:
        scores = torch.tanh(scores / features.softcap) * features.softcap
    scores = scores + x.bias.detach()[:, x.q_roles[:, :, None], x.k_roles[:, None, :]].transpose(0, 1)
    index = RoleIndex(x.q_roles, x.k_roles, features.privileged, x.attention_mask)
    problem = Problem(q=x.q, k=x.k, v=x.v, roles=index, causal=features.causal, window=features.window)
    of_key = is_privileged(x.k_roles, features.privileged)[:, None, None, :]
    of_query = is_privileged(x.q_roles, features.privileged)[:, None, :, None]
    dedicated = (torch.arange(heads) < round(features.dedicated * heads))[:, None, None]
    alone = dedicated | (of_query & features.integrity)
    scores = scores.masked_fill(~(visible_keys(problem) & (of_key | ~alone)), -torch.inf)

    def softmax(scores: Tensor, sink: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return masses before their division, and the divisor."""
        top = scores.amax(-1, keepdim=True)
        top = top if sink is None else torch.maximum(top, sink)
        top = torch.where(top.isinf(), 0.0, top)
        mass = (scores - top).exp()
        total = mass.sum(-1, keepdim=True)
        total = total if sink is None else total + (sink - top).exp()
        return mass, torch.where(total > 0, total, 1.0)

    sink = torch.where(alone, -torch.inf, x.sinks.detach()[:, None, None]) if features.sinks else None
    mass, total = softmax(scores, sink)
    rest_gain: Tensor | float = 0.0
    if features.share:
        own, own_total = softmax(scores.masked_fill(~of_key, -torch.inf))
        p = low(low(own) @ v / own_total)
        rest = low(mass.masked_fill(of_key, 0.0)) @ v / total
        part = mass.masked_fill(~of_key, 0.0).sum(-1, keepdim=True) / total
        sees = (own.sum(-1, keepdim=True) > 0) & ~dedicated
        share = torch.where(sees, x.share.detach()[:, None, None], 0.0)
        difference = torch.where(dedicated, 0.0, low(p * (1 - part) - rest))
        out = low(rest * (1 - share) + p * torch.where(share == 1, 1.0, share + (1 - share) * part))
        gain = torch.where(sees, (difference * grad).sum(-1, keepdim=True), 0.0)
        of_share = share * own / own_total
        mass, total = mass / total * (1 - share) + of_share, torch.ones(())
        rest_gain = share * gain * torch.ones_like(mass) - gain * of_share / torch.where(mass > 0, mass, 1.0)
    else:
        out = low(low(mass) @ v / total)
    delta = (out * grad).sum(-1, keepdim=True) - rest_gain
    score_grad = mass / total * scale * (grad @ v.mT - delta)
    table = torch.einsum(
        "btr,bhts,bsc->hrc", one_hot(x.q_roles, ROLES).float(), score_grad, one_hot(x.k_roles, ROLES).float()
    )
    return out, table
