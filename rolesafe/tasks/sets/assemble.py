"""Assemble examples from the parts of published sets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from rolesafe.tasks.example import Example, Kind, Message
from rolesafe.tasks.sets.read import Row, RowError

REFUSAL: Final = "I cannot help with that."
SYSTEM: Final = "system"
"""Name of the policy of the system text."""


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
    """Return an example of a set.

    Sets have no rule templates, so the policies are the system text and `order`, the goal of the attacker in words.

    Args:
        row: Source row, part of the id.
        name: Name of the set.
        kind: ``"protected"`` or ``"benign"``; benign examples have no violation and no contrary policy.
        messages: Conversation up to the reply.
        request: Part of the attacker's message that attacks keep.
        reply: Right reply, if the set has one.
        order: Injected order.
        violation: Word or phrase in the reply that is an attack success.
        wanted: Whole reply that an attacker wants; default: `violation`.
        target: Role of the attacker's message.
        paired: True if the row gives a protected and a benign example.

    Raises:
        RowError: The violation has no letter or digit, or there is no order.
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
    """Return a chat message."""
    return {"role": role, "content": content}
