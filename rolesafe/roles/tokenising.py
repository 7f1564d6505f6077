"""Tokenise conversations with the message of each token, and truncate them.

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
    from rolesafe.roles.structure import Structure
    from rolesafe.roles.token_spans import Tokens

_PARTS = tuple(Part)


@dataclass(frozen=True)
class EncodedConversation:
    """One conversation in tokens, before padding. The four lists have length T.

    Attributes:
        input_ids: Token ids.
        role_ids: Role of each token's message; of the generation prompt: ``config.generated``.
        message_ids: Index of each token's message; the number of messages for the generation prompt. Not ascending
            where the template reorders messages.
        parts: Header, content or footer of its message. Training labels are the content and the footer (end-of-turn
            token) of the model's messages.
        truncated: Indices of the messages that lost content to `max_length`.
    """

    input_ids: list[int]
    role_ids: list[int]
    message_ids: list[int]
    parts: list[Part]
    truncated: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.input_ids)


def tokenise(
    structure: Structure,
    tokens: Tokens | None,
    segments: Sequence[Segment],
    roles: Sequence[int],
    privileged: set[int],
    live_markers: bool = False,
) -> tuple[EncodedConversation, list[bool], list[bool]]:
    """Tokenise the segments of a conversation.

    A token across segments gets the least privileged role of the contents in it, or, without content, of the template
    text in it. No token holds more than white space of a privileged content together with another content.

    Args:
        structure: The tokenizer.
        tokens: Tokens of the whole text, where their spans are known.
        segments: Pieces of the text.
        roles: Role id of each segment.
        privileged: Ids of the privileged roles.
        live_markers: Keep structural tokens of typed text; see :func:`rolesafe.roles.encoding.encode_one`.

    Returns:
        The tokens; (T,) True where a token holds nothing but the content of one message; (T,) True where a token begins
        inside a character of the token before.
    """
    import numpy as np  # late: imports of the package stay fast

    from rolesafe.roles.token_spans import trimmed

    text = "".join(segment.text for segment in segments)
    if not text:
        return EncodedConversation([], [], [], []), [], []
    lengths = [len(segment.text) for segment in segments]
    trusted = np.repeat([segment.kind is Kind.TEMPLATE for segment in segments], lengths)
    at = np.repeat(np.arange(len(segments)), lengths)  # segment of every character
    bounds = np.cumsum(lengths)[:-1].tolist()

    def spread(tokens: Tokens) -> tuple[Any, Any]:
        """Return the first and the last segment of every token."""
        last = np.maximum(tokens.ends - 1, tokens.starts)
        return at[np.minimum(tokens.starts, len(at) - 1)], at[np.minimum(last, len(at) - 1)]

    def mixes(a: int, b: int) -> bool:
        """Return True if segments `a` to `b` hold a privileged content and text of another message."""
        written = [k for k in range(a, b + 1) if segments[k].kind is not Kind.TEMPLATE]
        return any(roles[k] in privileged for k in written) and len({segments[k].message for k in written}) > 1

    if tokens is None or not live_markers:
        tokens = structure.encode(text, trusted, bounds, tokens)
    first, last = spread(tokens)
    across = np.nonzero(first != last)[0].tolist()
    if not live_markers and any(
        mixes(first[k], last[k]) and text[tokens.starts[k] : tokens.ends[k]].strip() for k in across
    ):
        tokens = structure.encode_apart(text, trusted, bounds)
        first, last = spread(tokens)
        across = np.nonzero(first != last)[0].tolist()
    owners = first.copy()
    parts = np.array([segment.part for segment in segments])[owners]
    for k in across:
        a, b = int(first[k]), int(last[k])
        if int(tokens.ids[k]) in structure.forbidden:  # it may include white space
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
            f"`max_length`: expected at least {len(encoded) - room} for the conversation `{argument}` of "
            f"{len(encoded)} tokens, got {max_length}: the privileged part ({held} tokens) and the template text "
            f"around the other messages ({len(encoded) - room - held} tokens) are never cut. Raise `max_length`, or "
            "shorten the privileged messages."
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
