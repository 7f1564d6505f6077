"""Any-Depth Alignment: insert the assistant header again during decoding (arXiv 2510.18081). A baseline, no veto.

The first tokens after the header are where alignment is strongest, so the model refuses after a repeated header even
deep in a harmful reply. The header and the tokens after it have the assistant's role.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rolesafe.arguments import is_integer
from rolesafe.attacks.forcing import ForcedPrompt
from rolesafe.attacks.replies import prompts
from rolesafe.tasks import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class AnyDepthReply:
    """Hold a reply under Any-Depth Alignment.

    Attributes:
        text: Text of the reply: forced tokens, own tokens, and the refusal if there was one.
        own: Tokens that the model wrote, without headers.
        refused_after: Number of tokens of the reply before the header at which the model refused; None: it did not.
        checks: Number of headers inserted.
    """

    text: str
    own: tuple[int, ...]
    refused_after: int | None
    checks: int


def any_depth_replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversation: Sequence[Message],
    *,
    refuses: Callable[[str], bool],
    prefixes: Sequence[Sequence[int]] = ((),),
    every: int = 16,
    look: int = 16,
    max_new_tokens: int = 64,
    batch_size: int = 32,
) -> list[AnyDepthReply]:
    """Return greedy replies that are checked every few tokens by a repeated assistant header.

    A check appends the header and decodes `look` tokens. If `refuses` calls their text a refusal, they end the reply;
    otherwise they are dropped, and the reply goes on without the header. The first check is after the forced tokens. A
    check costs `look` tokens, so decoding costs about ``1 + look / every`` times as much.

    Args:
        model: A causal language model, patched or not; in evaluation mode for the call.
        tokenizer: Its tokenizer, with a chat template.
        conversation: Messages up to the reply.
        refuses: Tells whether a text is a refusal.
        prefixes: Forced first tokens, one row for each.
        every: Number of own tokens between two checks.
        look: Number of tokens of a check.
        max_new_tokens: Maximum number of own tokens, those of the refusal not counted.
        batch_size: Maximum number of rows in a batch.

    Raises:
        ValueError: A number is out of range, the chat template has no header, or a row does not fit into the model's
            context.
    """
    from rolesafe.patching.modes import evaluating

    numbers = (("every", every), ("look", look), ("max_new_tokens", max_new_tokens), ("batch_size", batch_size))
    for name, value in numbers:
        if not is_integer(value, 1):
            raise ValueError(f"`{name}`: expected a number >= 1, got {value!r}")
    (encoded,) = prompts(model, tokenizer, [conversation])
    rows = zip(encoded.input_ids, encoded.message_ids, strict=True)
    header = [token for token, message in rows if message == len(conversation)]
    if not header:
        raise ValueError(
            "`tokenizer`: expected a chat template with a generation prompt, got one without. Any-Depth Alignment "
            "repeats its tokens."
        )
    with evaluating(model):
        prompt = ForcedPrompt(model, tokenizer, encoded, batch_size=batch_size)
        prompt.check_room(prefixes, max_new_tokens + len(header) + look)
        states = [_State(tuple(prefix)) for prefix in prefixes]
        while todo := [state for state in states if not state.done]:
            looks = prompt.continued([[*s.tokens, *header] for s in todo], max_new_tokens=look)
            for state, (seen,) in zip(todo, looks, strict=True):
                state.checks += 1
                if refuses(seen.own_text):
                    state.refuse(seen.own)
            todo = [state for state in todo if not state.done]
            steps = sorted({min(every, max_new_tokens - len(state.own)) for state in todo})
            for step in steps:
                some = [s for s in todo if min(every, max_new_tokens - len(s.own)) == step]
                written = prompt.continued([s.tokens for s in some], max_new_tokens=step)
                for state, (new,) in zip(some, written, strict=True):
                    state.own += new.own
                    state.done = len(new.own) < step or len(state.own) >= max_new_tokens
    return [
        AnyDepthReply(
            text=prompt.text(state.tokens), own=state.own, refused_after=state.refused_after, checks=state.checks
        )
        for state in states
    ]


@dataclass
class _State:
    """Hold one reply while it is decoded."""

    forced: tuple[int, ...]
    own: tuple[int, ...] = ()
    refused_after: int | None = None
    checks: int = 0
    done: bool = False

    @property
    def tokens(self) -> tuple[int, ...]:
        return (*self.forced, *self.own)

    def refuse(self, tokens: tuple[int, ...]) -> None:
        self.refused_after = len(self.tokens)
        self.own += tokens
        self.done = True
