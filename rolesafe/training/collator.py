"""Collate conversations into training batches.

Shapes: B conversations, T tokens of the longest.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from rolesafe.config import RoleConfig
from rolesafe.roles.encoding import EncodedConversation, encode_one, padding_id, padding_role_id
from rolesafe.roles.templates import Part
from rolesafe.training.privileged import PrivilegedWatch

IGNORED = -100
"""Label of tokens that the loss leaves out."""


@dataclass(frozen=True, kw_only=True)
class RoleCollator:
    """Collate conversations to `input_ids`, `attention_mask`, `labels` and `role_ids`, (B, T) int64 each.

    Labels are set on the content and the end-of-turn tokens of messages with the role of generated tokens
    (``config.generated``); everything else has the label -100. Padding is on the right.

    Attributes:
        tokenizer: With a chat template, unless `chat_template` is given.
        config: The model's role configuration, ``model.rolesafe_config``.
        with_roles: Add `role_ids`. False for a plain model trained on the same tokens.
        max_length: Truncate conversations to this many tokens (never the privileged part).
        chat_template: See :func:`rolesafe.encode`.
        pad_to_multiple_of: Round T up to a multiple of this.
        position_gap: If positive, add `position_ids` (B, T) that jump by a random length of up to `position_gap` at one
            random token of about every other conversation. Short conversations then train for a distant system prompt
            (after randomized positional encodings, arXiv 2305.16843). The jumps come from torch's global generator,
            which the Trainer seeds and restores.
        watch: Warns where the first rows have no privileged token and `config` has parts that act on these.

    Raises:
        ValueError: A number is out of range.
    """

    tokenizer: PreTrainedTokenizerBase
    config: RoleConfig
    with_roles: bool = True
    max_length: int | None = None
    chat_template: str | None = None
    pad_to_multiple_of: int = 1
    position_gap: int = 0
    _prompt_checked: list[bool] = field(default_factory=list, init=False, repr=False, compare=False)
    watch: PrivilegedWatch = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.position_gap < 0:
            raise ValueError(f"`position_gap`: expected a length >= 0, got {self.position_gap}")
        if self.pad_to_multiple_of < 1:
            raise ValueError(f"`pad_to_multiple_of`: expected a number >= 1, got {self.pad_to_multiple_of}")
        object.__setattr__(self, "watch", PrivilegedWatch(self.config if self.with_roles else None))

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collate rows with a column `messages`, or rows returned by :meth:`encode` (as lists or tensors).

        A row with `chosen` and `rejected`, each a conversation or an encoded row, is a pair. Pairs add a column
        `preference` (B,) to the batch: 1 for chosen rows, -1 for rejected ones, in the same order, 0 for other rows.
        Rows with `prefix_weights` add this column (B, T) fp32; see :class:`rolesafe.training.RecoveryLoss`.

        Warns:
            UserWarning: The role layer has parts that act on privileged tokens, and the first 64 rows have none.

        Raises:
            ValueError: A row has no `messages`, columns of several lengths, or no reply to learn.
        """
        features, preference = _pairs(features)
        rows = [row if "labels" in row else self.encode(row, f"row {i}") for i, row in enumerate(features)]
        fill = {
            "input_ids": padding_id(self.tokenizer),
            "attention_mask": 0,
            "labels": IGNORED,
            "role_ids": padding_role_id(self.config),
        }
        names = [name for name in fill if self.with_roles or name != "role_ids"]
        for i, row in enumerate(rows):
            if missing := [name for name in names if name not in row]:
                raise ValueError(f"row {i}: expected the columns {names} of RoleCollator.encode, got none of {missing}")
            # padding would silently fill a short column: tokens would get the role of padding
            if len(set(sizes := [len(row[name]) for name in names])) > 1:
                raise ValueError(f"row {i}: expected columns of one length, got {dict(zip(names, sizes, strict=True))}")
        if self.with_roles:
            self.watch.see(row["role_ids"] for row in rows)
        batch = {name: self._padded([row[name] for row in rows], fill[name]) for name in names}
        if preference is not None:
            batch["preference"] = torch.tensor(preference)
        if any("prefix_weights" in row for row in rows):
            batch["prefix_weights"] = self._weights(rows, batch["input_ids"].shape[1])
        if self.position_gap > 0:
            lengths = torch.tensor([len(row["input_ids"]) for row in rows])
            batch["position_ids"] = self._positions(lengths, batch["input_ids"].shape[1])
        return batch

    def _padded(self, rows: Sequence[Any], value: int) -> Tensor:
        """Return (B, T) int64 from rows of integers, lists or tensors."""
        found = pad_sequence([torch.as_tensor(row) for row in rows], batch_first=True, padding_value=value).long()
        return F.pad(found, (0, -found.shape[1] % self.pad_to_multiple_of), value=value)

    def _weights(self, rows: Sequence[Mapping[str, Any]], length: int) -> Tensor:
        """Return the prefix weights (B, T) fp32; 0 for rows without any."""
        found = torch.zeros(len(rows), length)
        for i, row in enumerate(rows):
            if "prefix_weights" in row:
                values = torch.as_tensor(row["prefix_weights"], dtype=torch.float32)
                if len(values) != len(row["input_ids"]):
                    raise ValueError(
                        f"row {i}: expected {len(row['input_ids'])} `prefix_weights`, one per token, got {len(values)}"
                    )
                found[i, : len(values)] = values
        return found

    def encode(
        self, row: Mapping[str, Any], argument: str = "row", *, live_markers: bool = False
    ) -> dict[str, list[int]]:
        """Return the lists `input_ids`, `attention_mask`, `role_ids` and `labels`, (T,) each, of a conversation.

        To encode a dataset once for many trainings: ``dataset.map(collator.encode)``.

        Args:
            row: With a column `messages`.
            argument: Name of the row in errors.
            live_markers: True to train on an attack that reaches servers which tokenise rendered text: markers typed
                into contents become structural tokens, in the role of their message.

        Warns:
            UserWarning: The first reply does not continue the tokens of its generation prompt: training and generation
                would differ.

        Raises:
            ValueError: The row has no `messages`, or no reply to learn.
        """
        one = self._encode(argument, row, live_markers)
        self._check_prompt(row["messages"])
        labels = self._labels(one)
        if all(label == IGNORED for label in labels):
            raise ValueError(
                f"{argument}: expected a message of role {self.config.generated!r} to learn, got roles "
                f"{[message['role'] for message in row['messages']]}"
            )
        return {
            "input_ids": list(one.input_ids),
            "attention_mask": [1] * len(one),
            "role_ids": list(one.role_ids),
            "labels": labels,
        }

    def _positions(self, lengths: Tensor, length: int) -> Tensor:
        """Return (B, T) positions with a jump in about every other row; `lengths` (B,) excludes padding."""
        rows = lengths.shape[0]
        gap = torch.randint(0, self.position_gap + 1, (rows, 1)) * torch.randint(0, 2, (rows, 1))
        at = (torch.rand(rows) * lengths).long().unsqueeze(1)
        count = torch.arange(length).expand(rows, length)
        return count + gap * (count >= at)

    def _encode(self, argument: str, row: Mapping[str, Any], live_markers: bool = False) -> EncodedConversation:
        if "messages" not in row:
            raise ValueError(f"{argument}: expected a column `messages`, got {sorted(row)}")
        return encode_one(
            self.tokenizer,
            row["messages"],
            config=self.config,
            truncation=self.max_length is not None,
            max_length=self.max_length,
            chat_template=self.chat_template,
            argument=f"{argument}: messages",
            live_markers=live_markers,
        )

    def _check_prompt(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Warn, once, where a reply does not continue the tokens of its generation prompt."""
        replies = [i for i, message in enumerate(messages) if i and message["role"] == self.config.generated]
        if self._prompt_checked or not replies:
            return
        self._prompt_checked.append(True)
        options: dict[str, Any] = {"config": self.config, "chat_template": self.chat_template}
        prompt = encode_one(self.tokenizer, messages[: replies[0]], add_generation_prompt=True, **options).input_ids
        begun = encode_one(self.tokenizer, messages[: replies[0] + 1], **options).input_ids[: len(prompt)]
        if list(begun) != list(prompt):
            convert = self.tokenizer.convert_ids_to_tokens
            warnings.warn(
                f"`tokenizer`: expected replies that continue their generation prompt, which ends with "
                f"{convert(list(prompt[-4:]))}, got {convert(list(begun[-4:]))} in the conversation. Training and "
                "generation would differ. Pass a `chat_template` whose generation prompt ends with a token of its own.",
                stacklevel=3,
            )

    def _labels(self, one: EncodedConversation) -> list[int]:
        learned = self.config.generated_id
        return labels_at(one, [role == learned for role in one.role_ids])


def labels_at(one: EncodedConversation, learned: Sequence[bool]) -> list[int]:
    """Return the labels (T,) of the tokens in contents and ends of turns where `learned` (T,), else -100.

    A message that was truncated does not teach its end.
    """
    return [
        token
        if is_learned and (part is Part.CONTENT or (part is Part.FOOTER and message not in one.truncated))
        else IGNORED
        for token, is_learned, part, message in zip(one.input_ids, learned, one.parts, one.message_ids, strict=True)
    ]


def _pairs(features: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[int] | None]:
    """Return the rows with each pair as two rows, and their preference, or None without a pair."""
    pairs = ["chosen" in row and "rejected" in row for row in features]
    if not any(pairs):
        return list(features), None
    rows: list[Mapping[str, Any]] = []
    preference: list[int] = []
    for row, paired in zip(features, pairs, strict=True):
        some = [row["chosen"], row["rejected"]] if paired else [row]
        rows += [one if isinstance(one, Mapping) else {"messages": [*row.get("prompt", ()), *one]} for one in some]
        preference += [1, -1] if paired else [0]
    return rows, preference
