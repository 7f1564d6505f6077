"""Rows of a data set to tokens, roles and labels.

Shapes: T tokens of a row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rolesafe.config import RoleConfig
from rolesafe.roles.encoding import EncodedConversation, encode_one
from rolesafe.roles.segments import Part
from rolesafe.training.collator import IGNORED, labels_at

MASKS = ("completion_mask", "assistant_masks")
"""Columns of encoded rows that exclude tokens from the loss."""


@dataclass(frozen=True, kw_only=True)
class RowEncoder:
    """Encode rows of conversations.

    Attributes:
        tokenizer: With a chat template.
        config: The model's role configuration.
        strength: Strength of the role layer. Not used: it makes data sets cache by it.
        max_length: Largest number of tokens; None: no limit.
        assistant_only: Learn the contents and the ends of assistant messages, told by their role: the template needs no
            generation markers.
        completion_only: Learn the completion of rows with `prompt` and `completion`.
    """

    tokenizer: PreTrainedTokenizerBase
    config: RoleConfig
    strength: float = 1.0
    max_length: int | None = None
    assistant_only: bool = False
    completion_only: bool = True

    def encode(self, row: Mapping[str, Any], index: int) -> dict[str, list[int]]:
        """Return `input_ids`, `role_ids` and `labels`, (T,) each, of row number `index`.

        Conversations longer than `max_length` lose contents of unprivileged messages, oldest first. Encoded rows are
        cut at the end, as by TRL.

        Raises:
            ValueError: The row is no conversation and has no roles, or privileged tokens would be cut.
        """
        if "input_ids" in row:
            return self._encoded(row, f"row {index}")
        before, messages = self._messages(row, f"row {index}")
        one = self.conversation(row, messages, f"row {index}: messages", self.max_length)
        return {"input_ids": one.input_ids, "role_ids": one.role_ids, "labels": self._labels(one, before)}

    def conversation(
        self,
        row: Mapping[str, Any],
        messages: Sequence[Mapping[str, Any]],
        argument: str,
        max_length: int | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> EncodedConversation:
        """Encode `messages` with the template variables of their `row` (`tools`, `chat_template_kwargs`)."""
        return encode_one(
            self.tokenizer,
            [{name: value for name, value in message.items() if value is not None} for message in messages],
            config=self.config,
            add_generation_prompt=add_generation_prompt,
            truncation=max_length is not None,
            max_length=max_length,
            template_kwargs=_variables(row) or None,
            argument=argument,
        )

    def _messages(self, row: Mapping[str, Any], name: str) -> tuple[int, list[Mapping[str, Any]]]:
        """Return the number of messages before the completion, and all messages."""
        if is_messages(row.get("messages")):
            return 0, list(row["messages"])
        prompt, completion = row.get("prompt"), row.get("completion")
        if is_messages(prompt) and is_messages(completion):
            assert isinstance(prompt, list)
            assert isinstance(completion, list)
            return len(prompt) if self.completion_only else 0, [*prompt, *completion]
        raise ValueError(
            f"{name}: expected a conversation (`messages`, or `prompt` and `completion`, as lists of messages), or "
            f"`input_ids` with `role_ids`, got the columns {sorted(row)}. Plain text has no roles."
        )

    def _labels(self, one: EncodedConversation, before: int) -> list[int]:
        """Return the labels: of all tokens, or of the completion after `before` messages, or of assistant messages."""
        learned = [self.config.generated_id == role or not self.assistant_only for role in one.role_ids]
        if before:
            learned = [now and message >= before for now, message in zip(learned, one.message_ids, strict=True)]
        if before or self.assistant_only:
            labels = labels_at(one, learned)
            if before and not self.assistant_only:  # headers between the messages of a completion, as by TRL
                for i, (part, message) in enumerate(zip(one.parts, one.message_ids, strict=True)):
                    if part is Part.HEADER and message > before:
                        labels[i] = one.input_ids[i]
            return labels
        return list(one.input_ids)

    def _encoded(self, row: Mapping[str, Any], name: str) -> dict[str, list[int]]:
        tokens, roles = list(row["input_ids"]), row.get("role_ids")
        if roles is None or len(roles) != len(tokens):
            got = "none" if roles is None else len(roles)
            raise ValueError(
                f"{name}: expected `role_ids` for each of its {len(tokens)} tokens, got {got}. Encode rows with "
                "rolesafe.encode, or pass conversations."
            )
        labels = row.get("labels")
        if labels is None:
            used = [row[mask] for mask in MASKS if mask in row and (mask != MASKS[0] or self.completion_only)]
            labels = [token if all(bits) else IGNORED for token, *bits in zip(tokens, *used, strict=True)]
        if self.max_length is not None and len(tokens) > self.max_length:
            if set(roles[self.max_length :]) & set(self.config.privileged_ids):
                raise ValueError(
                    f"{name}: expected all privileged tokens among the first {self.max_length} (`max_length`), got "
                    "some after them, which would be cut. Raise `max_length`."
                )
            tokens, roles, labels = (column[: self.max_length] for column in (tokens, roles, labels))
        return {"input_ids": tokens, "role_ids": list(roles), "labels": list(labels)}


def is_messages(column: Any) -> bool:
    """Return True for a list of messages."""
    return isinstance(column, list) and bool(column) and all(isinstance(one, Mapping) for one in column)


def _variables(row: Mapping[str, Any]) -> dict[str, Any]:
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    variables = {name: value for name, value in (row.get("chat_template_kwargs") or {}).items() if value is not None}
    return {**({"tools": tools} if tools else {}), **variables}
