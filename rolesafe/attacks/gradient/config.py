"""Configurations of the attacks that read the model: gradients, its own predictions, its embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rolesafe.attacks.config import SearchAttackConfig, option, points
from rolesafe.attacks.gradient.objective import Objective
from rolesafe.attacks.search import Found, SearchContext

Place = Literal["suffix", "prefix"]
Carrier = Literal["request", "injection"]


@dataclass(frozen=True, kw_only=True)
class SlotConfig(SearchAttackConfig):
    """Base class of the attacks that fill a slot of tokens in the attacker's message.

    Args:
        objective, weight, mellowmax_alpha: The loss, see :func:`rolesafe.attacks.gradient.losses.make_loss`.
        length: Number of tokens of the slot.
        place: ``"suffix"``: the slot follows the carrier; ``"prefix"``: it precedes it.
        carrier: The rest of the message. ``"request"``: the user's request; ``"injection"``: the request and the
            contrary policy in the system text's own words.
        early_stop: Stop as soon as the greedy reply to the best slot contains `success`.
        check_every: Steps between two of these replies. The reply is asked for at once where the wanted reply has
            become the greedy one.
    """

    objective: Objective = "ce"
    weight: float = option(1.0, least=0)
    mellowmax_alpha: float = option(1.0, above=0)
    length: int = 20
    place: Place = "suffix"
    carrier: Carrier = "request"
    early_stop: bool = True
    check_every: int = 10


@dataclass(frozen=True, kw_only=True)
class GCGConfig(SlotConfig):
    """Exchange tokens of the slot by gradient (GCG); see :mod:`rolesafe.attacks.gradient.gcg`.

    Args:
        num_steps: Maximum number of steps.
        search_width: Candidates per step.
        topk: Tokens with the steepest gradient to choose from at each position of the slot. At most a quarter of the
            allowed tokens is used: with all of them the gradient would choose nothing.
        n_replace: Number of tokens that a candidate changes.
        buffer_size: Number of slots kept; each step continues from the best one. 0: each step continues from the best
            candidate of the previous step, even if it is worse.
        init: Text that the slot starts with; default: tokens drawn from the vocabulary. `length` is then not used.
        ascii_only: Fill the slot with printable ASCII only.
        draft: Directory or hub id of the draft model of probe sampling, with the same tokenizer; empty: none. The draft
            ranks all candidates. The model sees a sample, and the fewer of the rest the better the two agree on it.
        sampling_factor: The sample is one in this many candidates.
        reduction: Without any agreement, one candidate in half this number is kept; at full agreement one in all.
        prefix_cache: Keep the keys and values of the tokens that candidates share. Changes the time, not the result.
    """

    name = "gcg"
    about = "tokens exchanged by gradient (GCG), with losses that know the defence"
    grid = tuple(
        {
            "num_steps": steps,
            "search_width": 512,
            "topk": 256,
            "objective": objective,
            "weight": 1.0,
            "length": 20,
            "place": "suffix",
            "carrier": carrier,
            "draft": "",
        }
        for steps, objective, carrier in (
            (250, "ce", "request"),
            (500, "ce", "request"),
            (250, "mellowmax", "request"),
            (250, "attention", "request"),
            (250, "role-shift", "request"),
            (500, "ce", "injection"),
            (250, "attention", "injection"),
            (250, "role-shift", "injection"),
        )
    )
    quick = ({**grid[0], "num_steps": 50, "search_width": 128, "topk": 64},)

    num_steps: int = 250
    search_width: int = 512
    topk: int = 256
    n_replace: int = 1
    buffer_size: int = option(0, least=0)
    init: str | None = None
    ascii_only: bool = True
    draft: str = ""
    sampling_factor: int = 16
    reduction: int = 8
    prefix_cache: bool = True

    def search(self, context: SearchContext) -> Found:
        """Return the messages with the lowest loss; `n_queries` leaves out the runs of the draft model."""
        from rolesafe.attacks.gradient.gcg import gcg

        return gcg(context, self)


@dataclass(frozen=True, kw_only=True)
class BeastConfig(SlotConfig):
    """Grow the slot token by token from the model's own predictions (BEAST), without gradients.

    Each step draws `branches` next tokens for each of the `beams` slots from the model's distribution, without
    replacement, and keeps the `beams` slots with the lowest loss. `length` is the number of steps.

    Args:
        beams: Number of slots kept (k1 in the paper).
        branches: Next tokens drawn for each slot (k2).
        temperature: Temperature of the model's distribution.
        ascii_only: Fill the slot with printable ASCII only.
    """

    name = "beam"
    about = "a text grown from the model's own predictions (BEAST)"
    grid = tuple(
        {"length": 20, "beams": 15, "branches": 15, "temperature": 1.0, "objective": "ce", "carrier": carrier}
        for carrier in ("request", "injection")
    )
    quick = ({**grid[0], "length": 10, "beams": 5, "branches": 5},)

    beams: int = 15
    branches: int = 15
    temperature: float = option(1.0, above=0)
    ascii_only: bool = True
    check_every: int = 5

    def search(self, context: SearchContext) -> Found:
        """Return the messages with the lowest loss of any length; ``losses[0]`` is the best of the first step."""
        from rolesafe.attacks.gradient.beam import beast

        return beast(context, self)


@dataclass(frozen=True, kw_only=True)
class SoftPromptConfig(SlotConfig):
    """Move the embeddings of the slot down the gradient (PGD); see :mod:`rolesafe.attacks.gradient.soft`.

    Args:
        num_steps: Maximum number of steps.
        step_size: Step size, in root mean squares of an embedding's entries over the vocabulary.
        method: ``"adam"``, or ``"sign"``: steps of `step_size` along the gradient's sign.
        norm: ``"none"``: no bound; ``"l2"``: each token within `eps` mean embedding norms of its start; ``"linf"``:
            each entry within `eps` root mean squares of an entry.
        eps: Radius of `norm`.
        init: Text that the slot starts with; default: tokens drawn from the vocabulary. `length` is then not used.
    """

    name = "soft-prompt"
    about = "embeddings moved by gradient (PGD), which nobody can type"
    typed = False
    grid = points("num_steps", (100,), step_size=0.1, norm="none", eps=1.0, length=20, carrier="request")
    quick = ({**grid[0], "num_steps": 30},)

    num_steps: int = 100
    step_size: float = option(0.1, above=0)
    method: Literal["adam", "sign"] = "adam"
    norm: Literal["none", "l2", "linf"] = "none"
    eps: float = option(1.0, above=0)
    init: str | None = None

    def search(self, context: SearchContext) -> Found:
        """Return the reply to the embeddings with the lowest loss, and the messages that the slot started from."""
        from rolesafe.attacks.gradient.soft import pgd

        return pgd(context, self)
