"""Greedy replies of a model, role-aware or not, to conversations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rolesafe.arguments import is_integer
from rolesafe.attacks.delimiters import closing_token
from rolesafe.config import RoleConfig
from rolesafe.tasks import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rolesafe.roles.encoding import EncodedConversation

Progress = Callable[[int, int], None]
"""Called with the number of conversations done and their total."""


def role_config(model: PreTrainedModel) -> RoleConfig | None:
    """Return the role configuration of `model`, or None for a model that is not role-aware."""
    from rolesafe.patching import is_patched

    return model.rolesafe_config if is_patched(model) else None


def prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    *,
    live_markers: bool = True,
) -> list[EncodedConversation]:
    """Encode each conversation with the generation prompt, as tokens with roles.

    Args:
        live_markers: Make typed delimiters structural tokens in the role of their message: the attacker of a server
            that tokenises with ``apply_chat_template``. False: ordinary text, as :func:`rolesafe.encode` does.

    Raises:
        ValueError: The tokenizer returns ids that the model has no embedding for.
    """
    from rolesafe.roles.encoding import encode_one

    config = role_config(model)
    options: dict[str, Any] = {"config": config, "add_generation_prompt": True, "live_markers": live_markers}
    encoded = [encode_one(tokenizer, c, **options) for c in conversations]
    _check_vocabulary(model, tokenizer, [one.input_ids for one in encoded])
    return encoded


def context_size(model: PreTrainedModel) -> int | None:
    """Return the maximum number of positions in the model's configuration, or None without one."""
    size = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return size if isinstance(size, int) and size > 0 else None


def replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int = 16,
    batch_size: int = 32,
    begun: Sequence[int] = (),
    encoded: Sequence[EncodedConversation] | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Return the greedy reply of `model` to each conversation.

    Conversations of similar length share a batch, padded on the left. A role-aware model gets the roles of the
    messages. A reply ends where the chat template ends an assistant's turn.

    Args:
        model: A transformers causal language model, patched or not; in evaluation mode for the call.
        tokenizer: Its tokenizer, with a chat template.
        conversations: Messages up to the reply.
        max_new_tokens: Maximum length of a reply, in tokens.
        batch_size: Maximum number of conversations in a batch.
        begun: Ids of the first tokens of every reply; the model continues from there.
        encoded: Result of :func:`prompts` for `conversations`; default: computed here.
        progress: Called after each batch.

    Returns:
        Texts of the replies, the tokens of `begun` included, in the order of `conversations`.

    Raises:
        ValueError: There is no conversation, a number is not positive, or a conversation and its reply do not fit into
            the model's context.
    """
    from rolesafe.patching.modes import evaluating

    if not conversations:
        raise ValueError("`conversations`: expected at least one conversation, got none")
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if not is_integer(value, 1):
            raise ValueError(f"`{name}`: expected a number >= 1, got {value!r}")
    if encoded is None:
        encoded = prompts(model, tokenizer, conversations)
    if len(encoded) != len(conversations):
        raise ValueError(f"`encoded`: expected one for each of {len(conversations)} conversations, got {len(encoded)}")
    lengths = [len(one) for one in encoded]
    size = context_size(model)
    longest = max(lengths) + len(begun) + max_new_tokens
    if size is not None and longest > size:
        raise ValueError(
            f"`conversations`: expected at most {size} tokens with the reply, the model's context, got {longest}. "
            "Shorten the longest one, or lower `max_new_tokens`."
        )
    order = sorted(range(len(conversations)), key=lambda i: (lengths[i], i))
    texts = [""] * len(order)
    ends = end_ids(model, tokenizer)
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            answers = _reply(model, tokenizer, [encoded[i] for i in batch], max_new_tokens, ends, begun)
            for i, text in zip(batch, answers, strict=True):
                texts[i] = text
            if progress is not None:
                progress(start + len(batch), len(order))
    return texts


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end a reply: those of the model and the tokenizer, and the chat template's closing token."""
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = [*(stated if isinstance(stated, (list, tuple)) else [stated])]
    found += [tokenizer.eos_token_id, closing_token(tokenizer, role_config(model))]
    return sorted({int(i) for i in found if i is not None})


def _check_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoded: Sequence[Sequence[int]]
) -> None:
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    rows = getattr(embeddings, "num_embeddings", None)
    largest = max((max(ids, default=0) for ids in encoded), default=0)
    if rows is not None and largest >= rows:
        raise ValueError(
            f"`tokenizer`: expected the model's own, got one that returns the token id {largest} for a model with "
            f"{rows} embeddings ({type(tokenizer).__name__} with {len(tokenizer)} tokens). Load both from one place."
        )


def _inputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[EncodedConversation],
    begun: Sequence[int],
) -> dict[str, Any]:
    """Return the inputs of `model`: (B, T) int64 tensors on its device, padded on the left; roles if it is role-aware.

    The tokens of `begun` have the role of generated tokens.
    """
    import torch

    from rolesafe.roles.encoding import collate

    config = role_config(model)
    inputs = dict(collate(tokenizer, encoded, config or RoleConfig(), padding_side="left"))
    if begun:
        generated = 0 if config is None else config.generated_id
        tail = torch.tensor([list(begun)] * len(encoded), dtype=torch.int64)
        added = {"input_ids": tail, "attention_mask": tail * 0 + 1, "role_ids": tail * 0 + generated}
        inputs = {name: torch.cat([value, added[name]], dim=1) for name, value in inputs.items()}
    if config is None:
        inputs.pop("role_ids")
    device = getattr(model, "device", "cpu")
    return {name: value.to(device) for name, value in inputs.items()}


def _reply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[EncodedConversation],
    max_new_tokens: int,
    ends: list[int],
    begun: Sequence[int],
) -> list[str]:
    import torch

    from rolesafe.roles.encoding import padding_id

    inputs = _inputs(model, tokenizer, encoded, begun)
    with torch.no_grad():
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=ends or None,
            pad_token_id=padding_id(tokenizer),
        )
    new = output[:, inputs["input_ids"].shape[1] :].tolist()
    stop = set(ends)
    cut = [ids[: next((k for k, i in enumerate(ids) if i in stop), len(ids))] for ids in new]
    return [tokenizer.decode([*begun, *ids], skip_special_tokens=True).strip() for ids in cut]
