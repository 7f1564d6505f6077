"""The deep alignment objective (arXiv 2603.04851, Def. 17) and its variant whose optimum is the published one.

Shapes as in :mod:`rolesafe.depth.tabular`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rolesafe.arguments import is_number
from rolesafe.depth.harm_process import Harms, expected_harm
from rolesafe.depth.recovery_theory import Prefixes, check_penalty, prefix_laws, recovery_mask, recovery_probabilities
from rolesafe.depth.tabular import TabularModel

Weights = Literal["prefix", "policy"]


@dataclass(frozen=True, eq=False)
class DeepObjective:
    """Deep alignment objective, to be minimised.

    ``strength * E[Harm] + sum_t E_W[KL(P_t, base_t)] + sum_t recovery * discount ** t * E_Q[1 - rho_t]`` where rho_t
    is the probability that the next token is a recovery token, and Q the law of `prefixes`.

    Attributes:
        strength: lambda >= 0, weight of the expected harm.
        recovery: mu >= 0, weight of the recovery penalty.
        discount: gamma in [0, 1].
        prefixes: Q: a model that writes the prefixes, or T laws of prefixes of 0..T-1 tokens.
        tokens: Ids of the recovery tokens.
        kl: Law W of the prefixes in the KL term. ``"policy"``: the model's own, as published (Def. 17). That objective
            is not convex, and Thm. 20 and 22 do not describe its optimum. ``"prefix"``: Q, with which Thm. 20 is exact
            after the harm horizon and Thm. 22 holds.
    """

    strength: float
    recovery: float
    discount: float
    prefixes: Prefixes
    tokens: tuple[int, ...]
    kl: Weights = "prefix"

    def __post_init__(self) -> None:
        if not is_number(self.strength) or self.strength < 0:
            raise ValueError(f"`strength`: expected a number >= 0, got {self.strength!r}.")
        if not is_number(self.recovery) or self.recovery < 0:
            raise ValueError(f"`recovery`: expected a number >= 0, got {self.recovery!r}.")
        check_penalty(self.recovery, self.discount)
        if self.kl not in ("prefix", "policy"):
            raise ValueError(f"`kl`: expected 'prefix' or 'policy', got {self.kl!r}.")
        if not len(self.tokens):
            raise ValueError("`tokens`: expected at least one recovery token, got none.")

    def weight(self, t: int) -> float:
        """Return the penalty a_t of position `t`, from 1."""
        return self.recovery * self.discount**t

    def laws(self, model: TabularModel) -> tuple[Tensor, ...]:
        """Return Q for `model`: T laws of prefixes of 0..T-1 tokens."""
        return prefix_laws(model, self.prefixes)

    def mask(self, model: TabularModel) -> Tensor:
        """Return 1 for recovery tokens, (V,)."""
        return recovery_mask(model, self.tokens)

    def value(self, model: TabularModel, base: TabularModel, harm: Harms) -> Tensor:
        """Return the objective of `model`, (*B,)."""
        laws = self.laws(model)
        kl = position_kl(model, base, laws if self.kl == "prefix" else None)
        failures = [
            self.weight(t + 1) * model.mean(t, 1 - rho, laws[t])
            for t, rho in enumerate(recovery_probabilities(model, self.tokens))
        ]
        return self.strength * expected_harm(model, harm)[0] + kl.sum(-1) + torch.stack(failures, -1).sum(-1)


def standard_objective(model: TabularModel, base: TabularModel, harm: Harms, strength: float) -> Tensor:
    """Return the standard objective strength * E[Harm] + KL(model, base) (Eq. 2), (*B,)."""
    return strength * expected_harm(model, harm)[0] + position_kl(model, base).sum(-1)


def conditional_kl(model: TabularModel, base: TabularModel) -> tuple[Tensor, ...]:
    """Return KL(model, base) of the next token after every prefix of 0..T-1 tokens, in nats: T arrays.

    It is ``inf`` where the model gives a token probability that the base does not.
    """
    found = []
    for probs, ours, theirs in zip(model.probs, model.log_probs, base.log_probs, strict=True):
        found.append(torch.where(probs > 0, probs * (ours - theirs), 0.0).sum(-1))
    return tuple(found)


def position_kl(model: TabularModel, base: TabularModel, prefixes: Prefixes | None = None) -> Tensor:
    """Return the KL divergence of each position, averaged over prefixes, in nats, (*B, T).

    Args:
        model: Aligned model.
        base: Base model.
        prefixes: Laws of the prefixes; default: the model's own, which makes the sum KL(model, base) of sequences.
    """
    laws = model.law if prefixes is None else prefix_laws(model, prefixes)
    return torch.stack([model.mean(t, kl, laws[t]) for t, kl in enumerate(conditional_kl(model, base))], -1)
