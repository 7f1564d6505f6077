"""Examples out of the parts that published sets have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from rolesafe.tasks.example import Example, Kind, Message
from rolesafe.tasks.sets.read import Row, RowError

REFUSAL: Final = "I cannot help with that."
SYSTEM: Final = "system"
"""The name of the policy that the system text itself sets."""


def example(
    row: Row,
    name: str,
    kind: Kind,
    messages: Sequence[Message],
    *,
    request: str,
    reply: str = "",
    order: str = "",
    violation: str = "",
    wanted: str = "",
    target: str = "user",
    paired: bool = True,
) -> Example:
    """An example of a set.

    Sets have no rule templates, so the policies are the system text itself and `order`, the attacker's wish in words:
    that is what attacks state, and what a forged system text adds.

    Args:
        row: Where it comes from; the id tells.
        name: Name of the set.
        kind: ``"protected"`` or ``"benign"``; a benign one has neither violation nor contrary policy.
        messages: The conversation up to the reply.
        request: What stays of the attacker's message under an attack of ours.
        reply: The right reply, where the set tells it.
        order: The injected order.
        violation: A word or phrase in the reply that counts as the attacker's success.
        wanted: The whole reply an attacker wants; default: `violation`.
        target: Role of the attacker's message.
        paired: Whether the row gives a protected and a benign example.

    Raises:
        RowError: The violation has no word that could be looked for, or there is no order.
    """
    stem = f"{name}/{row.source}/{row.number}"
    system = " ".join(m["content"] for m in messages if m["role"] == "system")
    protected = kind == "protected"
    if protected and not re.search(r"\w", violation):
        raise RowError(f"{row.where}: expected a witness with a letter or digit to look for, got {violation!r}")
    if protected and not order.strip():
        raise RowError(f"{row.where}: expected an injected order, got none")
    return Example(
        id=f"{stem}/{kind}",
        family=name,
        kind=kind,
        twin=f"{stem}/{'benign' if protected else 'protected'}" if paired else "",
        split="test",
        messages=tuple(messages),
        reply=reply,
        violation=violation if protected else None,
        goal=order,
        target=target,
        request=request,
        truth=SYSTEM,
        contrary=order if protected else None,
        statements=((SYSTEM, system), (order, order)) if protected else ((SYSTEM, system),),
        forged=f"{system} {order}".strip() if protected else "",
        wanted=(wanted or violation) if protected else "",
    )


def message(role: str, content: str) -> Message:
    """A chat message."""
    return {"role": role, "content": content}
