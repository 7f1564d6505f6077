"""Counterexamples, each from fixed seeds, by enumeration."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rolesafe.depth import (
    DeepObjective,
    TabularModel,
    deep_optimum,
    fisher,
    gradient_contributions,
    martingale,
    position_kl,
    recoverability,
    recovery,
    recovery_information,
    recovery_kl,
    recovery_probabilities,
    required_weight,
    shortest_prefix,
    standard_optimum,
)

RECOVERY = (0,)


def source(seed: int) -> torch.Generator:
    """Return a source of random numbers."""
    return torch.Generator().manual_seed(seed)


def draws(count: int, vocabulary: int, length: int, *, scale: float = 1.0, seed: int = 0) -> TabularModel:
    """Return `count` random models."""
    return TabularModel.random(vocabulary, length, batch=(count,), scale=scale, generator=source(seed))


def harms(model: TabularModel, horizon: int, seed: int = 1) -> Tensor:
    """Return uniform harm of the first `horizon` tokens for each model, (B, *(V,) * T)."""
    values = torch.rand(model.shape(horizon), generator=source(seed), dtype=torch.float64)
    return values.reshape(*values.shape, *(1,) * (model.length - horizon)).expand(model.shape(model.length))


def recovery_curvature(count: int = 2000) -> dict[str, Any]:
    """Compare r' F^-1 r with the recovery information J (Thm. 19): the largest ratio over draws.

    With logits as parameters r' F^-1 r is E_Q[Q / P rho (1 - rho)].
    """
    model, attack = draws(count, 3, 4, scale=2.0), draws(count, 3, 4, scale=2.0, seed=7)
    information = recovery_information(model, attack, RECOVERY)
    exact = []
    for t, rho in enumerate(recovery_probabilities(model, RECOVERY)):
        exact.append(model.mean(t, attack.law[t] / model.law[t] * rho * (1 - rho), attack.law[t]))
    ratio = torch.stack(exact, -1) / information
    above = float((ratio[:, 1:] > 1).double().mean())
    return {"draws": count, "largest_ratio": float(ratio.max()), "share_above_1": above}


def published_objective(count: int = 200) -> dict[str, Any]:
    """Compare the optimum of Def. 17 as published with Thm. 20, Rem. 9 and Thm. 22, past the harm horizon.

    Rem. 9 multiplies the penalty by Q / P at the optimum. Thm. 22 promises a recovery probability for all prefixes
    of Q.
    """
    base, attack = draws(count, 3, 4, scale=1.5), draws(count, 3, 4, scale=1.5, seed=7)
    objective = DeepObjective(1.0, 3.0, 0.9, attack, RECOVERY, "policy")
    found = deep_optimum(base, harms(base, 1), objective)
    before, after = (recovery_probabilities(model, RECOVERY) for model in (base, found.model))
    plain, weighted = [], []
    for t in (1, 2, 3):
        weight, ratio = objective.weight(t + 1), attack.law[t] / found.model.law[t]
        plain.append(float((after[t] - recovery(before[t], weight)).abs().max()))
        weighted.append(float((after[t] - recovery(before[t], ratio * weight)).abs().max()))
    floor = recoverability(base, attack, RECOVERY)[:, 1:].amin(1)
    promised = recovery(floor, objective.weight(4))
    reached = recoverability(found.model, attack, RECOVERY)[:, 1:].amin(1)
    worst = int((promised - reached).argmax())
    return {
        "draws": count,
        "gap": found.gap,
        "thm20_error_by_position": plain,
        "rem9_error_by_position": weighted,
        "thm22_violated": float((reached < promised - 1e-9).double().mean()),
        "thm22_promised": float(promised[worst]),
        "thm22_reached": float(reached[worst]),
    }


def own_prefixes(count: int = 50, rounds: int = 100) -> dict[str, Any]:
    """Compare Thm. 20 with an optimum of Def. 17 whose prefixes are its own, Q = P: a fixed point over Q."""
    base = draws(count, 3, 4)
    harm, attack = harms(base, 1), base
    change = 1.0
    while change > 1e-10 and rounds > 0:
        objective = DeepObjective(1.0, 1.0, 0.9, attack, RECOVERY, "policy")
        found = deep_optimum(base, harm, objective, start=attack, sweeps=1)
        change = max(float((a - b).abs().max()) for a, b in zip(found.model.probs, attack.probs, strict=True))
        attack, rounds = found.model, rounds - 1
    before, after = (recovery_probabilities(model, RECOVERY) for model in (base, attack))
    errors = [float((after[t] - recovery(before[t], objective.weight(t + 1))).abs().max()) for t in (1, 2, 3)]
    return {"draws": count, "change": change, "error_by_position": errors}


def several_minima(trials: int = 10, starts: int = 8) -> dict[str, Any]:
    """Count the models for which random starts of Def. 17 as published end at stationary points of different value."""
    values, gap = [], 0.0
    for trial in range(trials):
        base = TabularModel.random(3, 3, scale=2.0, generator=source(100 + trial))
        attack = TabularModel.random(3, 3, generator=source(200 + trial))
        many = TabularModel([table.expand(starts, *table.shape) for table in base.tables])
        laws = [law.expand(many.shape(t)) for t, law in enumerate(attack.law[:-1])]
        harm = (torch.rand((3,) * 3, generator=source(trial)) < 0.5).double()
        first = TabularModel.random(3, 3, batch=(starts,), scale=4.0, generator=source(300 + trial))
        found = deep_optimum(many, harm, DeepObjective(2.0, 2.0, 1.0, laws, RECOVERY, "policy"), start=first)
        values.append(sorted({round(value, 5) for value in found.value.tolist()}))
        gap = max(gap, found.gap)
    most = max(values, key=len)
    return {
        "trials": trials,
        "starts": starts,
        "gap": gap,
        "with_several": sum(len(one) > 1 for one in values),
        "values": most,
    }


def remainder(count: int = 2000) -> dict[str, Any]:
    """Split the KL of shared parameters as Eq. 59 does, into the part of the own gradient and a remainder."""
    model = draws(count, 3, 4)
    harm = harms(model, 4)
    generator = source(3)
    rows = [torch.randn((*model.shape(t), 3), generator=generator, dtype=torch.float64) for t in range(1, 5)]
    slopes, information = gradient_contributions(model, harm, rows), fisher(model, rows)
    inverse = torch.linalg.inv(information.sum(1)).unsqueeze(1)
    own = (inverse @ slopes.unsqueeze(-1)).squeeze(-1)
    whole = own.sum(1, keepdim=True).expand_as(own)

    def half(step: Tensor) -> Tensor:
        return torch.einsum("btk,btkl,btl->bt", step, information, step) / 2

    rest = half(whole) - half(own)
    return {
        "draws": count,
        "negative": float((rest < 0).double().mean()),
        "lowest_over_kl": float((rest / half(whole)).min()),
    }


def incidental_recovery(strength: float = 3.0, length: int = 4) -> dict[str, Any]:
    """Train one distribution that all positions share (A.4): V = 3, uniform base, Harm = [first token is 2]."""
    # strength * p(2) + length * KL(p, uniform) is least at a Gibbs law
    logits = -strength / length * torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    tables = [logits.expand((3,) * t) for t in range(1, length + 1)]
    shared, base = TabularModel(tables), TabularModel([torch.zeros((3,) * t) for t in range(1, length + 1)])
    kl = position_kl(shared, base)
    rho = [float(rows.reshape(-1)[0]) for rows in recovery_probabilities(shared, RECOVERY)]
    return {"strength": strength, "length": length, "base_recovery": 1 / 3, "recovery": rho, "kl": kl.tolist()}


def within_horizon(count: int = 200, strength: float = 3.0) -> dict[str, Any]:
    """Compare Prop. 29 without recovery, base * exp(-strength h) / Z, with the optimum of Eq. 2 by position."""
    base = draws(count, 3, 4)
    harm = harms(base, 4)
    optimum = standard_optimum(base, harm, strength)
    h = martingale(optimum, harm).h
    errors = []
    for t in range(1, 5):
        claimed = (base.log_probs[t - 1] - strength * h[t]).softmax(-1)
        errors.append(float((claimed - optimum.probs[t - 1]).abs().max()))
    return {"draws": count, "strength": strength, "error_by_position": errors}


def recovery_cost() -> dict[str, Any]:
    """Return the KL of recovery for several base probabilities: it is not monotone in them (Thm. 22)."""
    bases = [0.001, 0.01, 0.05, 0.2, 0.5, 0.9]
    return {"weight": 4.0, "base": bases, "kl": [float(recovery_kl(base, 4.0)) for base in bases]}


def prefix_length() -> dict[str, Any]:
    """Return the position of Cor. 23 and the number of forced tokens for one case."""
    position = math.log(10.0 / required_weight(0.5, 0.01)) / math.log(1 / 0.9)
    forced = shortest_prefix(0.5, 0.01, 10.0, 0.9)
    rho = [float(recovery(0.01, 10.0 * 0.9 ** (n + 1))) for n in (int(forced) - 1, int(forced))]
    return {"position": position, "forced": forced, "recovery_before_and_after": rho}


EXAMPLES = {
    "recovery_curvature": recovery_curvature,
    "published_objective": published_objective,
    "own_prefixes": own_prefixes,
    "several_minima": several_minima,
    "remainder": remainder,
    "incidental_recovery": incidental_recovery,
    "within_horizon": within_horizon,
    "recovery_cost": recovery_cost,
    "prefix_length": prefix_length,
}
"""Name of each counterexample to the function that computes it."""
