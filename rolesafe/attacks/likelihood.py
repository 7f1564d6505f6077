"""Loss of a reply as the answer to each of several conversations.

Legend: B conversations of a batch, T tokens, W tokens of the reply, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rolesafe.attacks.replies import role_config
from rolesafe.config import RoleConfig
from rolesafe.roles.templates import Part
from rolesafe.tasks import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def reply_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], reply: str, config: RoleConfig | None
) -> list[int]:
    """Return the tokens of `reply` as the content of the assistant's answer to `messages`.

    Raises:
        ValueError: The reply has no token.
    """
    from rolesafe.roles.encoding import encode_one

    answer = {"role": (config or RoleConfig()).generated, "content": reply}
    encoded = encode_one(tokenizer, [*messages, answer], config=config)
    rows = zip(encoded.input_ids, encoded.message_ids, encoded.parts, strict=True)
    ids = [i for i, message, part in rows if message == len(messages) and part is Part.CONTENT]
    if not ids:
        raise ValueError(f"`reply`: expected a text with at least one token, got {reply!r}")
    return ids


def reply_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    reply: str,
    *,
    batch_size: int,
) -> list[float]:
    """Return the mean negative log-likelihood, in nats per token, of `reply` as the answer to each conversation.

    A role-aware model gets the roles of the messages; those of the reply are the assistant's.

    Args:
        model: A transformers causal language model, patched or not; in evaluation mode for the call.
        tokenizer: Its tokenizer.
        conversations: Messages up to the reply, at least one conversation.
        reply: The answer to measure.
        batch_size: Maximum number of conversations in a batch.
    """
    import torch

    from rolesafe.patching.modes import evaluating
    from rolesafe.roles.encoding import encode_one, padding_id, padding_role_id

    config = role_config(model)
    roles = config or RoleConfig()
    losses: list[float] = []
    options: dict[str, Any] = {"config": roles, "add_generation_prompt": True, "live_markers": True}
    wanted = reply_ids(tokenizer, conversations[0], reply, config)
    device = getattr(model, "device", "cpu")
    with evaluating(model):
        for start in range(0, len(conversations), batch_size):
            batch = conversations[start : start + batch_size]
            rows = [encode_one(tokenizer, c, **options) for c in batch]
            most = max(map(len, rows))
            # Padded on the right, which causal attention ignores, so that positions count from the first token.
            pads = [most - len(row) for row in rows]
            ids = [[*row.input_ids, *wanted, *[padding_id(tokenizer)] * n] for row, n in zip(rows, pads, strict=True)]
            mask = [[1] * (len(row) + len(wanted)) + [0] * n for row, n in zip(rows, pads, strict=True)]
            inputs = {"input_ids": ids, "attention_mask": mask}
            if config is not None:
                tail, pad = [roles.generated_id] * len(wanted), padding_role_id(roles)
                inputs["role_ids"] = [[*row.role_ids, *tail, *[pad] * n] for row, n in zip(rows, pads, strict=True)]
            with torch.no_grad():
                logits = model(**{k: torch.tensor(v, device=device) for k, v in inputs.items()}).logits  # (B, T, V)
            for i, row in enumerate(rows):
                predicted = logits[i, len(row) - 1 : len(row) - 1 + len(wanted)].float().log_softmax(-1)  # (W, V)
                chosen = predicted.gather(1, torch.tensor(wanted, device=device).unsqueeze(1))
                losses.append(-float(chosen.mean()))
    return losses
