"""Backward: gradients of q, k, v, bias, share and sinks, from the row statistics of the forward.

There are no atomics, so the bits are the same every time.

A key of role c gives query i the mass a = exp2(s + lambda) where lambda is one of two numbers of the row, for
privileged keys and for the others, and its score the gradient a (do . v - delta), delta again one of two. So both
channels cost as much as one:

    lambda_rest = log2(1 - w) - lse_o                       delta_rest = do . o
    lambda_priv = log2((1 - w) / 2^lse_o + w / 2^lse_p)     delta_priv = mean of do . o and do . p, so weighted
"""

from rolesafe_kernels.backward.dkdv import role_attn_bwd_dkdv_kernel
from rolesafe_kernels.backward.dq import role_attn_bwd_dq_kernel
from rolesafe_kernels.backward.rows import role_attn_bwd_rows_kernel

__all__ = ["role_attn_bwd_dkdv_kernel", "role_attn_bwd_dq_kernel", "role_attn_bwd_rows_kernel"]
