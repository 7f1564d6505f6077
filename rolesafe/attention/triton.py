"""Role-aware attention by the fused Triton kernel of `rolesafe_kernels`, on NVIDIA GPUs.

Legend: B batch, H query heads, T queries, S keys.
"""

from __future__ import annotations

from rolesafe_kernels import Repeat, RoleLayout, document_ranges, role_attention
from torch import Tensor

from rolesafe.attention.problem import Problem


def triton_attention(problem: Problem, repeats: list[Repeat] | None = None) -> Tensor:
    """Compute role-aware attention of `problem`: (B, H, T, Dv) in the dtype of q.

    `repeats` takes a call of the kernel that layers with the same roles, mask and settings can repeat, if it allows it.
    """
    p = problem
    roles, mask, key_mask = p.roles, p.mask, p.roles.key_mask
    if mask is not None and mask.shape[1:3] == (1, 1):
        # one query: its mask is a key mask
        one = mask
        key_mask = roles.keep_for(one, "one query", lambda: _hidden_keys(p, one))
        mask = None
    plain = p.bias is None and key_mask is None and not p.needs_privileged
    layout = None
    if not plain:

        def build() -> RoleLayout:
            return RoleLayout(roles.q_roles, roles.k_roles, roles.privileged, key_mask, roles.of_queries)

        layout = roles.keep("layout", build) if key_mask is None else roles.keep_for(key_mask, "layout", build)
    ranges = None
    if p.documents is not None:
        documents, length = p.documents, p.q.shape[2]
        ranges = roles.keep_for(
            documents,
            ("ranges", p.causal, p.window),
            lambda: document_ranges(documents, length, p.causal, p.window),
        )
    return role_attention(
        p.q,
        p.k,
        p.v,
        None if plain else roles.q_roles,
        None if plain else roles.k_roles,
        bias=p.bias,
        share=p.share,
        sinks=p.sinks,
        privileged=roles.privileged,
        dedicated=p.dedicated,
        integrity=p.integrity,
        causal=p.causal,
        key_mask=key_mask,
        mask=mask,
        ranges=ranges,
        scale=p.scale,
        window=p.window,
        softcap=p.softcap,
        layout=layout,
        repeats=repeats,
    )


def _hidden_keys(p: Problem, mask: Tensor) -> Tensor:
    seen = mask[:, 0, 0].expand(p.q.shape[0], -1)
    return seen if p.roles.key_mask is None else seen & p.roles.key_mask
