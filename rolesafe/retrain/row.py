"""`PreparedRow`: one training row."""

from __future__ import annotations

from dataclasses import dataclass

from rolesafe.tasks import Message


@dataclass(frozen=True, kw_only=True)
class PreparedRow:
    """Conversation to train on.

    Attributes:
        id: Kind and number, such as ``"injected/17"``; unique in a preparation.
        kind: ``"clean"``, ``"injected"``, ``"benign"`` or ``"plain"``.
        detail: Description of the preparation, such as ``"fake turn, middle, tool"``.
        source: Place of the source row, such as ``"alpaca.json, row 12"``.
        messages: Conversation up to the reply.
        reply: Reply to learn; ``None`` until the model has generated it.
        prompt: Conversation that the untouched model answers to get the reply, with `replies` "self"; ``None`` where
            the reply is given or follows from a rule. For an injected row it is the clean twin.
        live: True to encode delimiters typed into contents as structural tokens, in the role of their message, as on a
            server that tokenises rendered text.
    """

    id: str
    kind: str
    detail: str
    source: str
    messages: tuple[Message, ...]
    reply: str | None
    prompt: tuple[Message, ...] | None = None
    live: bool = False

    @property
    def conversation(self) -> list[Message]:
        """Messages with the reply.

        Raises:
            ValueError: The reply is not generated yet.
        """
        if self.reply is None:
            raise ValueError(f"`reply`: expected the reply of row {self.id!r}, got None. Generate the replies first.")
        return [*self.messages, {"role": "assistant", "content": self.reply}]
