"""Recovery and KL divergence along given replies, by one forward pass per batch.

Legend of shapes: N replies, L tokens of the longest, B replies of a batch, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rolesafe.arguments import is_integer
from rolesafe.attacks.replies import Progress, context_size, end_ids, prompts, role_config
from rolesafe.config import RoleConfig
from rolesafe.tasks import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rolesafe.roles.encoding import EncodedConversation


def recovery_profile(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    replies: Sequence[Sequence[int]],
    tokens: Sequence[int],
    *,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Tensor:
    """Return the exact recovery probability after the first k tokens of each reply (Def. 16).

    Args:
        model: Causal language model, patched or not; in evaluation mode for the call.
        tokenizer: Its tokenizer, with a chat template.
        conversations: N conversations up to the reply.
        replies: Tokens of N replies, such as forced prefixes or rollouts.
        tokens: Recovery tokens.
        batch_size: Largest number of replies in a batch.
        progress: Called with the number of finished replies and their total.

    Returns:
        (N, L + 1) float64 for k = 0..L; NaN after the end of a reply.

    Raises:
        ValueError: There is no recovery token, the numbers of conversations and replies differ, or a prompt with its
            reply does not fit into the context.
    """
    chosen = sorted({int(i) for i in tokens})
    if not chosen:
        raise ValueError("`tokens`: expected at least one recovery token, got none. Name those that begin a refusal.")
    encoded = prompts(model, tokenizer, conversations)
    found = _empty(replies, encoded)
    for rows, logits in _forced(model, tokenizer, encoded, replies, batch_size):
        if chosen[-1] >= logits.shape[-1] or chosen[0] < 0:
            raise ValueError(f"`tokens`: expected ids in 0..{logits.shape[-1] - 1}, got {chosen[0]}..{chosen[-1]}.")
        _fill(found, rows, replies, logits.softmax(-1)[..., chosen].sum(-1).double().clamp(0, 1))
        if progress is not None:
            progress(rows.stop, len(replies))
    return _without_ends(found, replies, end_ids(model, tokenizer))


def kl_profile(
    model: PreTrainedModel,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    replies: Sequence[Sequence[int]],
    *,
    base_tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Tensor:
    """Return the KL divergence KL(model, base) of the next token after the first k tokens of each reply, in nats.

    The whole vocabulary counts. Replies that the model sampled give the KL of its own prefixes, replies of another
    source that of theirs; say which.

    Args:
        model: Aligned model, patched or not.
        base: Base model, patched or not.
        tokenizer: Tokenizer of `model`.
        conversations: N conversations up to the reply.
        replies: Tokens of N replies.
        base_tokenizer: Tokenizer of `base`; default: the same.
        batch_size: Largest number of replies in a batch.
        progress: Called with the number of finished replies and their total.

    Returns:
        (N, L + 1) float64 for k = 0..L; NaN after the end of a reply.

    Raises:
        ValueError: The tokenizers or the vocabularies of the models differ, the numbers of conversations and replies
            differ, or a prompt with its reply does not fit into a context.
    """
    if base_tokenizer is not None:
        check_same_tokenizer(tokenizer, base_tokenizer)
    ours = prompts(model, tokenizer, conversations)
    theirs = prompts(base, base_tokenizer or tokenizer, conversations)
    for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one.input_ids != other.input_ids:
            raise ValueError(
                f"`base_tokenizer`: expected the same tokens for both models, got others for conversation {i}. Compare "
                "models with one tokenizer and one chat template."
            )
    found = _empty(replies, ours)
    passes = zip(
        _forced(model, tokenizer, ours, replies, batch_size),
        _forced(base, base_tokenizer or tokenizer, theirs, replies, batch_size),
        strict=True,
    )
    for (rows, p), (_, q) in passes:
        if p.shape[-1] != q.shape[-1]:
            raise ValueError(
                f"`base`: expected logits of {p.shape[-1]} tokens as in `model`, got {q.shape[-1]}. Compare models "
                "with one vocabulary."
            )
        log_p, log_q = p.log_softmax(-1), q.to(p.device).log_softmax(-1)
        kl = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
        _fill(found, rows, replies, kl.double().clamp_min(0))
        if progress is not None:
            progress(rows.stop, len(replies))
    return _without_ends(found, replies, end_ids(model, tokenizer))


def check_same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> None:
    """Raise a ValueError where two tokenizers have another vocabulary or chat template."""
    ours, theirs = one.get_vocab(), other.get_vocab()
    if ours != theirs:
        changed = next(token for token in (*ours, *theirs) if ours.get(token) != theirs.get(token))
        raise ValueError(
            f"`base_tokenizer`: expected the vocabulary of `tokenizer`, got another id for {changed!r}. A KL "
            "divergence needs one vocabulary; choose a base model with the same tokenizer."
        )
    if getattr(one, "chat_template", None) != getattr(other, "chat_template", None):
        raise ValueError(
            "`base_tokenizer`: expected the chat template of `tokenizer`, got another. Set both to the same template."
        )


def _empty(replies: Sequence[Sequence[int]], encoded: Sequence[EncodedConversation]) -> Tensor:
    if len(replies) != len(encoded) or not len(replies):
        raise ValueError(
            f"`replies`: expected one for each of {len(encoded)} conversations, at least one, got {len(replies)}."
        )
    return torch.full((len(replies), max(map(len, replies)) + 1), torch.nan, dtype=torch.float64)


def _fill(found: Tensor, rows: range, replies: Sequence[Sequence[int]], values: Tensor) -> None:
    """Write the values (B, n) of the last positions of right-aligned rows."""
    for at, i in enumerate(rows):
        size = len(replies[i]) + 1
        found[i, :size] = values[at, values.shape[1] - size :].cpu()


def _without_ends(found: Tensor, replies: Sequence[Sequence[int]], ends: Sequence[int]) -> Tensor:
    for i, ids in enumerate(replies):
        if len(ids) and ids[-1] in ends:
            found[i, len(ids)] = torch.nan
    return found


def _forced(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[EncodedConversation],
    replies: Sequence[Sequence[int]],
    batch_size: int,
) -> Iterator[tuple[range, Tensor]]:
    """Yield batches of row numbers and the logits after each token of the replies, aligned on the right, (B, n, V)."""
    from rolesafe.patching.modes import evaluating
    from rolesafe.roles.encoding import padding_id, padding_role_id

    if not is_integer(batch_size, 1):
        raise ValueError(f"`batch_size`: expected a number >= 1, got {batch_size!r}.")
    size = context_size(model)
    longest = max(len(one) + len(ids) for one, ids in zip(encoded, replies, strict=True))
    if size is not None and longest > size:
        raise ValueError(
            f"`replies`: expected at most {size} tokens with the prompt, the model's context, got {longest}. Shorten "
            "the longest prefix."
        )
    config = role_config(model)
    roles = config or RoleConfig()
    parameters = inspect.signature(model.forward).parameters
    device = getattr(model, "device", "cpu")
    for start in range(0, len(replies), batch_size):
        rows = range(start, min(start + batch_size, len(replies)))
        most = max(len(encoded[i]) + len(replies[i]) for i in rows)
        columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "role_ids": []}
        for i in rows:
            ids = [*encoded[i].input_ids, *replies[i]]
            pads = most - len(ids)
            columns["input_ids"].append([padding_id(tokenizer) if pads else 0] * pads + ids)
            columns["attention_mask"].append([0] * pads + [1] * len(ids))
            own = [*encoded[i].role_ids, *[roles.generated_id] * len(replies[i])]
            columns["role_ids"].append([padding_role_id(roles)] * pads + own)
        inputs: dict[str, Any] = {name: torch.tensor(values, device=device) for name, values in columns.items()}
        if config is None:
            inputs.pop("role_ids")
        if "position_ids" in parameters:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        kept = max(len(replies[i]) for i in rows) + 1
        if "logits_to_keep" in parameters:
            inputs["logits_to_keep"] = kept
        with torch.no_grad(), evaluating(model):
            logits = model(**inputs, use_cache=False).logits
        yield rows, logits[:, -kept:].float()
