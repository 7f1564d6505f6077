"""One prepared training row."""

from __future__ import annotations

from dataclasses import dataclass

from rolesafe.tasks import Message


@dataclass(frozen=True, kw_only=True)
class PreparedRow:
    """A conversation to train on.

    Attributes:
        id: Kind and number, such as ``"injected/17"``; unique in a preparation.
        kind: ``"clean"``, ``"injected"``, ``"benign"`` or ``"plain"``.
        detail: What was done, in words, such as ``"fake turn, middle, tool"``.
        source: Place of the source row, such as ``"alpaca.json, row 12"``.
        messages: The conversation up to the reply.
        reply: The reply to learn; ``None`` until the model has written it.
        prompt: Conversation whose greedy reply by the untouched model is the reply, where the recipe asks for that;
            ``None`` where the reply is exact by rule or given. For an injected row it is the clean twin.
    """

    id: str
    kind: str
    detail: str
    source: str
    messages: tuple[Message, ...]
    reply: str | None
    prompt: tuple[Message, ...] | None = None

    @property
    def conversation(self) -> list[Message]:
        """The messages with the reply.

        Raises:
            ValueError: There is no reply yet.
        """
        if self.reply is None:
            raise ValueError(f"`reply`: expected the reply of row {self.id!r}, got None. Write the replies first.")
        return [*self.messages, {"role": "assistant", "content": self.reply}]
