"""Recovery: its probability after a prefix, its exact optimum, guarantees and attack lengths (arXiv 2603.04851,
section 9).

Positions count from 1; the weight of the recovery penalty at position t is a_t = mu * gamma ** t. Shapes of tables as
in :mod:`rolesafe.depth.tabular`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from rolesafe.arguments import is_integer, is_number
from rolesafe.depth.gradients import Jacobian, through
from rolesafe.depth.tabular import TabularModel

Prefixes = TabularModel | Sequence[Tensor]
"""Adversarial law of prefixes: a model that writes them, or the laws of 0..T-1 tokens, each of sum 1."""


def recovery(base: Tensor | float, weight: Tensor | float) -> Tensor:
    """Return the optimal recovery probability sigmoid(logit(base) + weight) after a prefix (Thm. 20).

    It is exact after the harm horizon for the objective with ``kl="prefix"``, see
    :class:`rolesafe.depth.DeepObjective`. For the objective as published it is exact at a single prefix, but not the
    minimiser over all positions.

    >>> from rolesafe.depth import recovery
    >>> round(float(recovery(0.01, 5.0)), 4)
    0.5999

    Args:
        base: Recovery probability of the base model, in [0, 1].
        weight: Penalty a_t of the position, or w a_t with an importance weight w (Rem. 9).
    """
    probability, added = _probability("base", base), torch.as_tensor(weight, dtype=torch.float64)
    return torch.sigmoid(torch.logit(probability) + added)


def recovery_kl(base: Tensor | float, weight: Tensor | float) -> Tensor:
    """Return the KL divergence from the base model, in nats, at the optimum of :func:`recovery` (Thm. 20).

    Args:
        base: Recovery probability of the base model, in [0, 1].
        weight: Penalty a_t of the position.
    """
    probability, added = _probability("base", base), torch.as_tensor(weight, dtype=torch.float64)
    partition = torch.logaddexp(torch.log1p(-probability), probability.log() + added)
    return added * recovery(base, weight) - partition


def recovery_probabilities(model: TabularModel, tokens: Sequence[int]) -> tuple[Tensor, ...]:
    """Return the probability that the next token is one of `tokens`, after prefixes of 0..T-1 tokens (Def. 16)."""
    return tuple((probs * recovery_mask(model, tokens)).sum(-1) for probs in model.probs)


def recovery_information(model: TabularModel, prefixes: Prefixes, tokens: Sequence[int]) -> Tensor:
    """Return the recovery information J_t = E_Q[rho (1 - rho)] of each position (Def. 18), (*B, T)."""
    laws = prefix_laws(model, prefixes)
    rhos = recovery_probabilities(model, tokens)
    return torch.stack([model.mean(t, rho * (1 - rho), laws[t]) for t, rho in enumerate(rhos)], -1)


def recovery_gradient(model: TabularModel, prefixes: Prefixes, tokens: Sequence[int]) -> tuple[Tensor, ...]:
    """Return the gradient of the recovery failure E_Q[1 - rho] by the logits: T arrays, shapes as ``model.tables``.

    For shared parameters see :func:`recovery_contributions`.
    """
    laws, mask = prefix_laws(model, prefixes), recovery_mask(model, tokens)
    rows = zip(laws, model.probs, recovery_probabilities(model, tokens), strict=True)
    return tuple(law.unsqueeze(-1) * probs * (rho.unsqueeze(-1) - mask) for law, probs, rho in rows)


def recovery_contributions(
    model: TabularModel, prefixes: Prefixes, tokens: Sequence[int], jacobian: Jacobian
) -> Tensor:
    """Return the recovery gradient of each position by K shared parameters (Lem. 28), (*B, T, K)."""
    return through(recovery_gradient(model, prefixes, tokens), jacobian)


def recoverability(model: TabularModel, prefixes: Prefixes, tokens: Sequence[int]) -> Tensor:
    """Return the lowest recovery probability over the prefixes that `prefixes` reaches, by position (Def. 21), (*B, T).

    A model is (delta, T)-recoverable if all positions up to T are at least delta.
    """
    laws, found = prefix_laws(model, prefixes), []
    for t, rho in enumerate(recovery_probabilities(model, tokens)):
        reached = torch.where(laws[t] > 0, rho, 1.0)
        found.append(reached.flatten(-t).amin(-1) if t else reached)
    return torch.stack(found, -1)


def guarantee(floor: float, strength: float, discount: float, length: int) -> float:
    """Return the recovery probability delta that holds from the harm horizon to position `length` (Thm. 22).

    It holds for every prefix of the adversarial law at the optimum with ``kl="prefix"``. For the objective as published
    it fails where the law of prefixes is below the model's own, see docs/depth-theory.md.

    Args:
        floor: Lowest recovery probability of the base model after those prefixes, in (0, 1).
        strength: mu >= 0.
        discount: gamma in [0, 1].
        length: Last position T.
    """
    _check_open("floor", floor)
    check_penalty(strength, discount)
    _check_length(length)
    return float(recovery(floor, strength * discount**length))


def guarantee_kl(floor: float, strength: float, discount: float, positions: Iterable[int]) -> float:
    """Return an upper bound, in nats, of the summed KL divergence of recovery at `positions` (Thm. 22, Rem. 6).

    It is the sum of min(a_t, a_t^2 / 8, log(1 / floor)), for importance weight 1.

    Args:
        floor: Lowest recovery probability of the base model, in (0, 1).
        strength: mu >= 0.
        discount: gamma in [0, 1].
        positions: Positions after the harm horizon, from 1.
    """
    _check_open("floor", floor)
    check_penalty(strength, discount)
    weights = [strength * discount**t for t in positions]
    return math.fsum(min(a, a * a / 8, -math.log(floor)) for a in weights)


def required_weight(target: float, floor: float) -> float:
    """Return the penalty a_t that raises recovery from `floor` to `target`: logit(target) - logit(floor) (Rem. 10)."""
    _check_open("target", target)
    _check_open("floor", floor)
    return _logit(target) - _logit(floor)


def shortest_prefix(target: float, floor: float, strength: float, discount: float) -> int | float:
    """Return the least number of forced tokens after which recovery may be below `target` (Cor. 23).

    Cor. 23 gives a position x; position t is below `target` if t > x, so the number of tokens is floor(x).

    >>> from rolesafe.depth import shortest_prefix
    >>> shortest_prefix(0.5, 0.01, 10.0, 0.9), shortest_prefix(0.5, 0.01, 10.0, 1.0)
    (7, inf)

    Args:
        target: Recovery probability delta in (0, 1).
        floor: Lowest recovery probability of the base model, in (0, 1).
        strength: mu >= 0.
        discount: gamma in [0, 1].

    Returns:
        An int >= 0; ``math.inf`` if no number is enough: ``target <= floor``, or no discount and a large strength.
    """
    needed = required_weight(target, floor)
    check_penalty(strength, discount)
    if needed <= 0 or (discount == 1.0 and strength >= needed):
        return math.inf
    if discount in (0.0, 1.0) or strength * discount < needed:
        return 0
    forced = max(0, math.floor(math.log(strength / needed) / -math.log(discount)))
    while strength * discount ** (forced + 1) >= needed:  # the logarithms round
        forced += 1
    while forced > 0 and strength * discount**forced < needed:
        forced -= 1
    return forced


def recovery_mask(model: TabularModel, tokens: Sequence[int]) -> Tensor:
    """Return 1 for the recovery tokens and 0 for the others, (V,) float64.

    Raises:
        ValueError: There is no recovery token, or one is not in the vocabulary.
    """
    chosen = sorted({int(token) for token in tokens})
    if not chosen:
        raise ValueError("`tokens`: expected at least one recovery token, got none. Name those that begin a refusal.")
    if chosen[0] < 0 or chosen[-1] >= model.vocabulary:
        raise ValueError(f"`tokens`: expected ids in 0..{model.vocabulary - 1}, got {chosen[0]}..{chosen[-1]}.")
    mask = torch.zeros(model.vocabulary, dtype=torch.float64)
    mask[chosen] = 1.0
    return mask


def prefix_laws(model: TabularModel, prefixes: Prefixes) -> tuple[Tensor, ...]:
    """Return the laws of prefixes of 0..T-1 tokens: T arrays of shape (*B, *(V,) * t).

    Raises:
        ValueError: A shape does not fit, or a law is negative or does not sum to 1 within 1e-9.
    """
    if isinstance(prefixes, TabularModel):
        if (prefixes.vocabulary, prefixes.length) != (model.vocabulary, model.length):
            raise ValueError(
                f"`prefixes`: expected {model.vocabulary} tokens and {model.length} positions, got "
                f"{prefixes.vocabulary} and {prefixes.length}."
            )
        return tuple(law.expand(model.shape(t)) for t, law in enumerate(prefixes.law[:-1]))
    if len(prefixes) != model.length:
        raise ValueError(
            f"`prefixes`: expected {model.length} laws, of prefixes of 0..{model.length - 1} tokens, got "
            f"{len(prefixes)}."
        )
    laws = []
    for t, given in enumerate(prefixes):
        law = torch.as_tensor(given, dtype=torch.float64)
        own = (model.vocabulary,) * t
        if tuple(law.shape) not in {own, model.shape(t)}:
            raise ValueError(
                f"`prefixes`: expected shape {model.shape(t)} for prefixes of {t} tokens, got {tuple(law.shape)}."
            )
        sums = law.flatten(-t).sum(-1) if t else law
        if bool((law < 0).any()) or not torch.allclose(sums, law.new_ones(()), rtol=0, atol=1e-9):
            raise ValueError(f"`prefixes`: expected probabilities of sum 1 for prefixes of {t} tokens, got others.")
        laws.append(law.expand(model.shape(t)))
    return tuple(laws)


def check_penalty(strength: float, discount: float) -> None:
    """Check mu and gamma.

    Raises:
        ValueError: `strength` is not a number >= 0, or `discount` is not in [0, 1].
    """
    if not is_number(strength) or strength < 0:
        raise ValueError(f"`strength`: expected a number >= 0, got {strength!r}.")
    if not is_number(discount) or not 0 <= discount <= 1:
        raise ValueError(f"`discount`: expected a number in [0, 1], got {discount!r}.")


def _probability(name: str, value: Tensor | float) -> Tensor:
    found = torch.as_tensor(value, dtype=torch.float64)
    if not bool(((found >= 0) & (found <= 1)).all()):
        raise ValueError(f"`{name}`: expected probabilities in [0, 1], got {value!r:.80}.")
    return found


def _check_open(name: str, value: float) -> None:
    if not is_number(value) or not 0 < value < 1:
        raise ValueError(f"`{name}`: expected a probability in (0, 1), got {value!r}.")


def _check_length(length: int) -> None:
    if not is_integer(length, 1):
        raise ValueError(f"`length`: expected a number >= 1, got {length!r}.")


def _logit(value: float) -> float:
    return math.log(value) - math.log1p(-value)
