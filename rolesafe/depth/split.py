"""Functional and incidental parts of a KL divergence.

The split of the paper (Eq. 59) has a remainder that may be negative. This one is an information projection: both parts
are never negative, and the functional part is 0 where the expected harm does not depend on the next token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_STEPS = 200
"""Steps of the bracketed Newton iteration; about ten are enough unless a tilt is extreme."""


@dataclass(frozen=True, eq=False)
class KLSplit:
    """KL(p, p0) of next-token laws in two parts, in nats; (...) each.

    Attributes:
        functional: Least KL(q, p0) of any q with the expected harm of p; q = p0 * exp(-tilt * h) / Z.
        incidental: The rest, KL(p, q).
        tilt: Infinite where p has the least or the largest harm possible.
    """

    functional: Tensor
    incidental: Tensor
    tilt: Tensor


@torch.no_grad()
def kl_split(p: Tensor, p0: Tensor, h: Tensor) -> KLSplit:
    """Split KL(p, p0) into the part that the change of expected harm needs and the rest.

    >>> import torch
    >>> from rolesafe.depth import kl_split
    >>> p0, p = torch.tensor([0.25, 0.25, 0.5]), torch.tensor([0.5, 0.25, 0.25])
    >>> constant = kl_split(p, p0, torch.tensor([0.3, 0.3, 0.3]))
    >>> float(constant.functional), round(float(constant.incidental), 4)
    (0.0, 0.1733)

    Args:
        p: (..., V) probabilities of the aligned model.
        p0: (..., V) of the base model, positive where `p` is.
        h: (..., V) expected harm after each token, such as the base model's.

    Raises:
        ValueError: A law does not sum to 1 within 1e-6, or p is positive where p0 is 0.
    """
    p, p0, h = (torch.as_tensor(x, dtype=torch.float64) for x in (p, p0, h))
    shape = (p + p0 + h).shape
    p, p0, h = p.expand(shape), p0.expand(shape), h.expand(shape)
    for name, law in (("p", p), ("p0", p0)):
        if bool((law < 0).any()) or not torch.allclose(law.sum(-1), law.new_ones(()), rtol=0, atol=1e-6):
            raise ValueError(f"`{name}`: expected probabilities of sum 1 over the last axis, got others.")
    if bool(((p > 0) & (p0 <= 0)).any()):
        raise ValueError("`p0`: expected a positive probability wherever `p` has one, got 0.")
    whole = torch.where(p > 0, p * (p.clamp_min(1e-300).log() - p0.clamp_min(1e-300).log()), 0.0).sum(-1)
    log_base = p0.log()
    supported = torch.where(p0 > 0, h, torch.nan)
    low = torch.nan_to_num(supported, nan=torch.inf).amin(-1)
    high = torch.nan_to_num(supported, nan=-torch.inf).amax(-1)
    wanted = (p * (h - low.unsqueeze(-1))).sum(-1)  # of h - low: exact where h is constant
    width = high - low
    scaled = (h - low.unsqueeze(-1)) / torch.where(width > 0, width, 1.0).unsqueeze(-1)
    scaled = torch.where(p0 > 0, scaled, 0.0)  # in [0, 1]
    target = wanted / torch.where(width > 0, width, 1.0)
    tilt = _tilt(log_base, scaled, target)
    functional = _projected(log_base, scaled, tilt, target)
    flat = width <= 0
    tilt = torch.where(flat, 0.0, tilt / torch.where(width > 0, width, 1.0))
    functional = torch.where(flat, 0.0, functional).clamp_min(0.0)
    functional = torch.minimum(functional, whole)
    return KLSplit(functional=functional, incidental=whole - functional, tilt=tilt)


def _tilt(log_base: Tensor, h: Tensor, target: Tensor) -> Tensor:
    """Return c with mean `target` of h under base * exp(-c h) / Z, for h in [0, 1]: Newton, bracketed by bisection."""
    least, largest = target.new_full(target.shape, -800.0), target.new_full(target.shape, 800.0)
    c = torch.zeros_like(target)
    for _ in range(MOST_STEPS):
        q = (log_base - c.unsqueeze(-1) * h).softmax(-1)
        mean = (q * h).sum(-1)
        variance = (q * (h - mean.unsqueeze(-1)).square()).sum(-1)
        error = mean - target
        least, largest = torch.where(error > 0, c, least), torch.where(error < 0, c, largest)
        step = c + error / variance.clamp_min(1e-300)
        inside = (step > least) & (step < largest)
        new = torch.where(error == 0, c, torch.where(inside, step, (least + largest) / 2))
        if bool(((new - c).abs() <= 1e-15 * (1 + c.abs())).all()):
            c = new
            break
        c = new
    c = torch.where(target <= 0, torch.inf, torch.where(target >= 1, -torch.inf, c))
    return c


def _projected(log_base: Tensor, h: Tensor, tilt: Tensor, target: Tensor) -> Tensor:
    """Return KL(q, base) for q = base * exp(-tilt h) / Z with mean `target` of h; also for an infinite tilt."""
    finite = torch.where(tilt.isfinite(), tilt, 0.0)
    value = -finite * target - (log_base - finite.unsqueeze(-1) * h).logsumexp(-1)
    ends = torch.where(h == torch.where(tilt > 0, 0.0, 1.0).unsqueeze(-1), log_base, -torch.inf)
    return torch.where(tilt.isfinite(), value, -ends.logsumexp(-1))
