"""Call role-aware attention without a model, and check the fused kernel against the fp64 reference.

    python examples/kernel_alone.py                        # on an NVIDIA GPU
    TRITON_INTERPRET=1 python examples/kernel_alone.py     # on a CPU, slowly: Triton's interpreter

Where neither is available the kernel is skipped and `sdpa` alone is checked.
"""

import os

import torch

from rolesafe import role_attention

device = "cuda" if torch.cuda.is_available() else "cpu"
B, H, G, T, D, R = 1, 4, 2, 64, 16, 5  # batch, query heads, key/value heads, tokens, head dim, roles
torch.manual_seed(0)
q = torch.randn(B, H, T, D, device=device)
k, v = (torch.randn(B, G, T, D, device=device) for _ in range(2))
roles = torch.full((B, T), 2, device=device)  # user
roles[:, :8] = 0  # the system prompt comes first
bias = torch.randn(H, R, R, device=device, requires_grad=True)
share = torch.full((H,), 0.5, device=device)


def run(impl: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output and the gradient of the bias."""
    table = bias.detach().to(dtype).requires_grad_()
    out = role_attention(
        q.to(dtype), k.to(dtype), v.to(dtype), roles, roles, bias=table, share=share.to(dtype), dedicated=1, impl=impl
    )
    (gradient,) = torch.autograd.grad(out.square().sum(), table)
    return out.double(), gradient.double()


exact, exact_gradient = run("reference", torch.float64)
runs_kernel = device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
for impl in ("sdpa", "triton"):
    if impl == "triton" and not runs_kernel:
        print("triton: skipped, no NVIDIA GPU; set TRITON_INTERPRET=1 for the interpreter")
        continue
    out, gradient = run(impl, torch.float32)
    print(
        f"{impl}: output differs by {(out - exact).abs().max():.1e}, "
        f"gradient of the bias by {(gradient - exact_gradient).abs().max():.1e}"
    )
