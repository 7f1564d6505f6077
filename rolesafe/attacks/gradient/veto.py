"""Searches that know a veto over the tokens of the reply: a constant mask in the loss, and a target that it allows.

A vetoed token has probability exactly 0, so a wanted reply that holds one has an infinite loss without a gradient. An
attacker that knows the veto aims for the nearest reply that is allowed, and counts probabilities among allowed tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

_NAME = "rolesafe_veto"


class Veto(Protocol):
    """Veto over the tokens of a reply, such as :class:`rolesafe.court.CourtVeto`."""

    def aim(self, ids: Sequence[int]) -> list[int]:
        """Return the reply nearest to the reply `ids` in which no token is vetoed."""
        ...

    def mask(self, ids: Sequence[int], size: int) -> Tensor:
        """Return (W, V) bool, True where one of the `size` tokens is vetoed at a position of the reply `ids` (W,)."""
        ...


@contextmanager
def known_veto(model: nn.Module, veto: Veto) -> Iterator[None]:
    """Let searches on `model` know a veto within the context.

    Raises:
        ValueError: Another one is known already.
    """
    if veto_of(model) is not None:
        raise ValueError(
            "`veto`: expected a model without a known veto, got one with another. Leave its context first."
        )
    model.__dict__[_NAME] = veto
    try:
        yield
    finally:
        model.__dict__.pop(_NAME, None)


def veto_of(model: Any) -> Veto | None:
    """Return the veto that is known for a model, or None."""
    found: Veto | None = model.__dict__.get(_NAME)
    return found
