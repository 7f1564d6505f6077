"""Conversations in tokens: which message each token belongs to, and which tokens can be cut.

Shapes: T tokens of a conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rolesafe.config import RoleConfig
from rolesafe.roles.segments import Part, Segment
from rolesafe.roles.traced import Kind

if TYPE_CHECKING:
    from rolesafe.roles.spans import Tokens
    from rolesafe.roles.structure import Structure

_PARTS = tuple(Part)


@dataclass(frozen=True)
class EncodedConversation:
    """One conversation in tokens, before padding. The four lists are aligned, token by token.

    Attributes:
        input_ids: Token ids.
        role_ids: Role of each token's message; of the generation prompt: ``config.generated``.
        message_ids: Index of each token's message; the number of messages for the generation prompt. Not ascending
            where the template prints messages in another order than they were sent.
        parts: What each token is to its message: header, content or footer. A model that answers learns the content
            and the footer (its end-of-turn token) of its own messages.
        truncated: Indices of the messages that lost content to `max_length`: their footer follows a cut text.
    """

    input_ids: list[int]
    role_ids: list[int]
    message_ids: list[int]
    parts: list[Part]
    truncated: tuple[int, ...] = ()

    @property
    def content_mask(self) -> list[bool]:
        """True where a token is text of a message, not of the template."""
        return [part is Part.CONTENT for part in self.parts]

    @property
    def footer_mask(self) -> list[bool]:
        """True where a token is template text that closes a message."""
        return [part is Part.FOOTER for part in self.parts]

    def __len__(self) -> int:
        return len(self.input_ids)


def tokenise(
    structure: Structure,
    tokens: Tokens | None,
    segments: Sequence[Segment],
    roles: Sequence[int],
    privileged: set[int],
) -> tuple[EncodedConversation, list[bool], list[bool]]:
    """Tokens of the segments, which of them hold nothing but the content of one message, and which of them begin inside
    a character of the token before.

    `tokens` are those of the whole text, where the tokenizer tells where they are.

    A token with characters of several segments has the role of what somebody wrote in it, the least privileged one if
    several did, else the least privileged one of the template's text. No token holds more than white space of a
    privileged content together with another content.
    """
    import numpy as np  # here, so that importing the package stays quick

    from rolesafe.roles.spans import trimmed

    text = "".join(segment.text for segment in segments)
    if not text:
        return EncodedConversation([], [], [], []), [], []
    lengths = [len(segment.text) for segment in segments]
    trusted = np.repeat([segment.kind is Kind.TEMPLATE for segment in segments], lengths)
    at = np.repeat(np.arange(len(segments)), lengths)  # segment of every character
    bounds = np.cumsum(lengths)[:-1].tolist()

    def spread(tokens: Tokens) -> tuple[Any, Any]:
        """First and last segment of every token."""
        last = np.maximum(tokens.ends - 1, tokens.starts)
        return at[np.minimum(tokens.starts, len(at) - 1)], at[np.minimum(last, len(at) - 1)]

    def mixes(a: int, b: int) -> bool:
        """Whether segments `a` to `b` hold a privileged content and another text that somebody wrote."""
        written = [k for k in range(a, b + 1) if segments[k].kind is not Kind.TEMPLATE]
        return any(roles[k] in privileged for k in written) and len({segments[k].message for k in written}) > 1

    tokens = structure.encode(text, trusted, bounds, tokens)
    first, last = spread(tokens)
    across = np.nonzero(first != last)[0].tolist()
    if any(mixes(first[k], last[k]) and text[tokens.starts[k] : tokens.ends[k]].strip() for k in across):
        tokens = structure.encode_apart(text, trusted, bounds)
        first, last = spread(tokens)
        across = np.nonzero(first != last)[0].tolist()
    owners = first.copy()
    parts = np.array([segment.part for segment in segments])[owners]
    for k in across:
        a, b = int(first[k]), int(last[k])
        if int(tokens.ids[k]) in structure.forbidden:  # it may have taken white space along
            start, end = trimmed(text, int(tokens.starts[k]), int(tokens.ends[k]))
            a, b = int(at[start]), int(at[max(start, end - 1)])
        written = [j for j in range(a, b + 1) if segments[j].kind is not Kind.TEMPLATE] or list(range(a, b + 1))
        owners[k] = max(written, key=lambda j: roles[j])
        parts[k] = segments[int(owners[k])].part
    cuttable = (first == last) & (parts == Part.CONTENT)
    glued = np.concatenate([[False], tokens.starts[1:] < tokens.ends[:-1]])
    encoded = EncodedConversation(
        tokens.ids.tolist(),
        np.array(roles)[owners].tolist(),
        np.array([segment.message for segment in segments])[owners].tolist(),
        [_PARTS[part] for part in parts.tolist()],
    )
    return encoded, cuttable.tolist(), glued.tolist()


def truncate(
    encoded: EncodedConversation,
    cuttable: Sequence[bool],
    glued: Sequence[bool],
    config: RoleConfig,
    max_length: int,
    argument: str,
) -> EncodedConversation:
    """Cut contents of unprivileged messages, oldest first, each from its end, whole characters at a time."""
    excess = len(encoded) - max_length
    privileged = set(config.privileged_ids)
    content: dict[int, list[int]] = {}
    for k, (message, role) in enumerate(zip(encoded.message_ids, encoded.role_ids, strict=True)):
        if cuttable[k] and role not in privileged:
            content.setdefault(message, []).append(k)
    room = sum(map(len, content.values()))
    if room < excess:
        held = sum(role in privileged for role in encoded.role_ids)
        raise ValueError(
            f"`max_length`: {max_length} is too small for the conversation `{argument}` of {len(encoded)} tokens; "
            f"expected at least {len(encoded) - room}, because the privileged part ({held} tokens) and "
            f"the template text around the other messages ({len(encoded) - room - held} tokens) are never cut. Raise "
            "`max_length`, or shorten the privileged messages yourself."
        )
    cut: set[int] = set()
    truncated = []
    for message in sorted(content):
        if excess <= 0:
            break
        at = max(0, len(content[message]) - excess)
        while at and glued[content[message][at]]:
            at -= 1
        taken = content[message][at:]
        cut.update(taken)
        truncated.append(message)
        excess -= len(taken)
    keep = [k for k in range(len(encoded)) if k not in cut]
    return EncodedConversation(
        [encoded.input_ids[k] for k in keep],
        [encoded.role_ids[k] for k in keep],
        [encoded.message_ids[k] for k in keep],
        [encoded.parts[k] for k in keep],
        tuple(truncated),
    )
