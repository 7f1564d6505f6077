"""Greedy replies to many conversations: batches of similar length, left padding, KV cache, resume.

Suites that judge replies pass a list of :class:`Asked`; :func:`answer` generates the replies missing from the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.pretrained.bench import Bench
from benchmarks.pretrained.record import Part
from benchmarks.pretrained.shared import Prefix, blocks, groups, shares
from rolesafe.attacks.replies import context_size, prompts, replies
from rolesafe.roles.encoding import EncodedConversation
from rolesafe.roles.templates import Part as Piece
from rolesafe.tasks import Message

MOST_ROWS = 128
"""Maximum number of conversations in a batch."""


@dataclass(frozen=True)
class Asked:
    """Conversation to answer.

    Attributes:
        source: Row of the published set; the cluster of its replies in intervals.
        case: Name of the question, unique within the source.
        messages: Conversation up to the reply.
        judge: Function that returns one character for each verdict on a reply.
        ids: True to encode typed delimiters as structural tokens, in the role of their message.
    """

    source: str
    case: str
    messages: tuple[Message, ...]
    judge: Callable[[str], str]
    ids: bool = False


def answer(bench: Bench, suite: str, part: Part, asked: Sequence[Asked], new_tokens: int) -> None:
    """Generate the replies missing from `part`, and append a row for each.

    Args:
        bench: Evaluation.
        suite: Name of the suite, for progress.
        part: Rows of the suite.
        asked: All conversations of the suite.
        new_tokens: Maximum length of a reply in tokens.

    Raises:
        ValueError: A conversation and its reply exceed the model's context.
    """
    done = part.done
    todo = [one for one in asked if (one.source, one.case) not in done]
    encoded = encode(bench, todo)
    size = context_size(bench.model)
    for one, tokens in zip(todo, encoded, strict=True):
        if size is not None and len(tokens) + new_tokens > size:
            raise ValueError(
                f"`model`: expected a context of at least {len(tokens) + new_tokens} tokens for row {one.source} of "
                f"{suite!r} ({one.case}), got {size}. Leave this suite out, or lower --limit."
            )
    with bench.filling(suite, part, len(asked)) as add:
        for batch, texts in _replies(bench, [one.source for one in todo], encoded, todo, new_tokens):
            add([[a.source, a.case, a.judge(t), t] for a, t in zip((todo[i] for i in batch), texts, strict=True)])


def _replies(
    bench: Bench,
    sources: Sequence[str],
    encoded: Sequence[EncodedConversation],
    asked: Sequence[Asked],
    new_tokens: int,
) -> Iterator[tuple[list[int], list[str]]]:
    """Yield indices and replies of batches; the common prefix of a source's conversations is run once."""
    left = set(range(len(encoded)))
    found = groups(sources, encoded) if shares(bench.model) else []
    for block in blocks(found, bench.batch_tokens):
        prefix = Prefix(bench.model, bench.tokenizer, block, encoded)
        if not prefix.usable:
            break
        members = [i for group in block for i in group.members]
        shared = max(group.length for group in block)
        lengths = [shared + len(encoded[i]) - prefix.row[i][1] for i in members]
        for some in batches(lengths, new_tokens, bench.batch_tokens):
            batch = [members[k] for k in some]
            left -= set(batch)
            yield batch, prefix.replies(batch, new_tokens)
    rest = sorted(left)
    for some in batches([len(encoded[i]) for i in rest], new_tokens, bench.batch_tokens):
        batch = [rest[k] for k in some]
        yield (
            batch,
            replies(
                bench.model,
                bench.tokenizer,
                [asked[i].messages for i in batch],
                max_new_tokens=new_tokens,
                batch_size=len(batch),
                encoded=[encoded[i] for i in batch],
            ),
        )


def batches(lengths: Sequence[int], new_tokens: int, most: int) -> Iterator[list[int]]:
    """Yield indices of batches, longest conversations first, so that running out of memory happens at the start.

    Args:
        lengths: Number of tokens of each conversation.
        new_tokens: Maximum length of a reply in tokens.
        most: Maximum number of tokens in a batch, padding and replies included; a batch has at least one conversation.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while order:
        count = max(1, min(MOST_ROWS, most // (lengths[order[0]] + new_tokens)))
        yield order[:count]
        order = order[count:]


def encode(bench: Bench, asked: Sequence[Asked]) -> list[EncodedConversation]:
    """Return the tokenized prompts of conversations, with roles."""
    messages = [one.messages for one in asked]
    encoded = prompts(bench.model, bench.tokenizer, messages, live_markers=False) if asked else []
    return [
        with_structure(bench.tokenizer, tokens, one.messages) if one.ids else tokens
        for one, tokens in zip(asked, encoded, strict=True)
    ]


def with_structure(tokenizer: Any, encoded: EncodedConversation, messages: Sequence[Message]) -> EncodedConversation:
    """Return `encoded` with the delimiters typed into the last message as structural tokens, in that message's role.

    A server that renders the chat template to text and tokenises the text sends these tokens.

    Args:
        tokenizer: Tokenizer with a chat template.
        encoded: Output of `rolesafe.roles.encoding.encode_one`.
        messages: Conversation; its last message is the untrusted one.

    Raises:
        ValueError: The template does not print the last message unchanged.
    """
    last = len(messages) - 1
    spots = [
        i
        for i, (message, piece) in enumerate(zip(encoded.message_ids, encoded.parts, strict=True))
        if message == last and piece is Piece.CONTENT
    ]
    if not spots or spots != list(range(spots[0], spots[-1] + 1)):
        raise ValueError(
            "`tokenizer`: expected a chat template that prints the content of a message unchanged, got another. "
            "Leave out the suite `injection`."
        )
    low, high = spots[0], spots[-1] + 1
    content = messages[last]["content"]
    # white space of the header may be part of the first token, as in " Hello"
    printed = tokenizer.decode(encoded.input_ids[low:high], clean_up_tokenization_spaces=False)
    text = printed if printed.endswith(content) and not printed.removesuffix(content).strip() else content
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)

    def spliced(values: list[Any], new: list[Any]) -> list[Any]:
        return [*values[:low], *new, *values[high:]]

    count = len(ids)
    return EncodedConversation(
        input_ids=spliced(encoded.input_ids, ids),
        role_ids=spliced(encoded.role_ids, [encoded.role_ids[low]] * count),
        message_ids=spliced(encoded.message_ids, [last] * count),
        parts=spliced(encoded.parts, [Piece.CONTENT] * count),
    )
