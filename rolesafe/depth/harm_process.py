"""Martingale of the conditional expected harm, exact by enumeration (Young, arXiv 2603.04851, sections 4 to 6).

Shapes as in :mod:`rolesafe.depth.tabular`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from rolesafe.depth.tabular import TabularModel, harm_table, total

Harms = Tensor | Callable[[Tensor], Tensor]
"""Harm of sequences: a table of shape (V,) * T, or a function of (n, T) tokens that returns (n,)."""


@dataclass(frozen=True, eq=False)
class Martingale:
    """Conditional expected harm and its decomposition over positions.

    Attributes:
        h: Expected harm after prefixes of 0..T tokens (Def. 1): T + 1 arrays of shape (*B, *(V,) * t). ``h[T]`` is
            Harm.
        innovations: ``h[t] - h[t - 1]`` for t = 1..T (Def. 3): T arrays of shape (*B, *(V,) * t).
        information: (*B, T) harm information I_t, the variance of the innovation (Def. 5).
        residual: (*B, T + 1) variance of Harm that is left after 0..T tokens, S_t = E[Var(Harm | first t tokens)]. It
            is computed from its definition; Prop. 6 and Cor. 7 relate it to `information`.
        horizon: Harm horizon (Thm. 9), the least number of tokens that determine Harm almost surely under the model; an
            int, or int64 of shape (*B,). A model with full support has the horizon of Harm alone: real models need
            :func:`rolesafe.depth.horizon`, which has a tolerance.
    """

    h: tuple[Tensor, ...]
    innovations: tuple[Tensor, ...]
    information: Tensor
    residual: Tensor
    horizon: int | Tensor


def martingale(model: TabularModel, harm: Harms) -> Martingale:
    """Return the martingale of `harm` under `model` (Def. 1 to 5, Prop. 2 to 6, Cor. 7, Thm. 9).

    >>> import torch
    >>> from rolesafe.depth import TabularModel, martingale
    >>> uniform = TabularModel([torch.zeros((2,) * t) for t in (1, 2, 3)])
    >>> found = martingale(uniform, lambda y: y[:, 0] * y[:, 1])  # decided by the first two tokens
    >>> found.information.tolist(), found.horizon
    ([0.0625, 0.125, 0.0], 2)

    Args:
        model: One model or a batch.
        harm: Values in [0, 1], see :func:`rolesafe.depth.harm_table`.

    Raises:
        ValueError: As :func:`rolesafe.depth.harm_table`.
    """
    h = expected_harm(model, harm)
    innovations = differences(h)
    information = [model.mean(t, innovation.square()) for t, innovation in enumerate(innovations, 1)]
    length = model.length
    residual = []
    for t, mean in enumerate(h):
        spread = h[length] - mean.reshape(*mean.shape, *(1,) * (length - t))
        residual.append(model.mean(length, spread.square()))
    return Martingale(
        h=h,
        innovations=innovations,
        information=torch.stack(information, -1),
        residual=torch.stack(residual, -1),
        horizon=_horizon(model, h[length].detach()),
    )


def expected_harm(model: TabularModel, harm: Harms) -> tuple[Tensor, ...]:
    """Return the expected harm after prefixes of 0..T tokens (Def. 1): T + 1 arrays of shape (*B, *(V,) * t)."""
    return expected(model, harm_table(model, harm))


def differences(h: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the innovations ``h[t] - h[t - 1]`` (Def. 3): T arrays."""
    return tuple(after - before.unsqueeze(-1) for before, after in pairwise(h))


def expected(model: TabularModel, values: Tensor) -> tuple[Tensor, ...]:
    """Return the conditional means of values of sequences, (*B, *(V,) * T), after prefixes of 0..T tokens."""
    h = [values]
    for probs in reversed(model.probs):
        # relative to one token's value, so that equal values give exactly that value: no information past the horizon
        base = h[0][..., :1]
        h.insert(0, base.squeeze(-1) + (probs * (h[0] - base)).sum(-1))
    return tuple(h)


def _horizon(model: TabularModel, harm: Tensor) -> int | Tensor:
    """Return the least k at which Harm is constant over all continuations of positive probability."""
    reachable = [(law > 0) for law in model.law]
    high = torch.where(reachable[-1], harm, -torch.inf)
    low = torch.where(reachable[-1], harm, torch.inf)
    found = torch.full(model.batch, model.length, dtype=torch.int64)
    for t in range(model.length - 1, -1, -1):
        high, low = high.amax(-1), low.amin(-1)
        open_prefixes = total(((high > low) & reachable[t]).long(), t)
        found = torch.where((open_prefixes == 0) & (found == t + 1), t, found)
    return found if model.batch else int(found)
