"""Replies under a court: encode, generate with the veto, check, decode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rolesafe.court.court import Court
from rolesafe.court.tree import Veto

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_OWN = ("logits_processor", "input_ids", "attention_mask", "role_ids", "eos_token_id", "return_dict_in_generate")


@dataclass(frozen=True)
class CourtReply:
    """Reply of a model under a court.

    Attributes:
        text: Text of the reply, with its beginning in the last message where that was continued.
        vetoes: Interventions of the court, in order.
        replaced: Article for which the whole reply was replaced by the court's text; None in all ordinary cases.
    """

    text: str
    vetoes: tuple[Veto, ...] = ()
    replaced: str | None = None


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    court: Court,
    *,
    continue_final_message: bool = False,
    **options: Any,
) -> list[CourtReply]:
    """Generate replies to one conversation under a court.

    The result is read once more, token by token and as a text; a reply that breaks an article, such as a beam of
    probability 0, is replaced by the court's text.

    Args:
        model: A causal language model, patched or not.
        tokenizer: Its tokenizer, with a chat template.
        messages: The conversation.
        court: The court.
        continue_final_message: Continue the last message instead of starting a new one.
        options: Further arguments of ``model.generate``, such as ``max_new_tokens``, ``num_beams``, ``do_sample``,
            ``num_return_sequences``, ``assistant_model``, ``prompt_lookup_num_tokens``, ``streamer``.

    Returns:
        One reply for each returned sequence.

    Raises:
        ValueError: An argument is the court's own, or the last message to continue breaks an article.
    """
    import torch
    from transformers import LogitsProcessorList

    from rolesafe.attacks.replies import role_config
    from rolesafe.court.processor import CourtProcessor
    from rolesafe.patching import is_patched
    from rolesafe.roles.encoding import encode_one, padding_id
    from rolesafe.roles.segments import Part

    for name in _OWN:
        if name in options:
            raise ValueError(f"`{name}`: expected no such option, got one: the court sets it. Remove it.")
    encoded = encode_one(
        tokenizer,
        messages,
        config=role_config(model),
        add_generation_prompt=not continue_final_message,
        continue_final_message=continue_final_message,
    )
    begun: list[int] = []
    if continue_final_message:
        rows = zip(encoded.input_ids, encoded.message_ids, encoded.parts, strict=True)
        begun = [i for i, message, part in rows if message == len(messages) - 1 and part is Part.CONTENT]
        if encoded.input_ids[len(encoded) - len(begun) :] != begun:
            raise ValueError(
                "`messages`: expected a last message at the end of the prompt, got template text after it."
            )
    ids = torch.tensor([encoded.input_ids], device=model.device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if is_patched(model):
        inputs["role_ids"] = torch.tensor([encoded.role_ids], device=model.device)
    if options.get("stop_strings") is not None:
        options = {"tokenizer": tokenizer, **options}
    processor = CourtProcessor(court, ids, continued=len(begun))
    out = model.generate(
        **inputs,
        logits_processor=LogitsProcessorList([processor]),
        eos_token_id=list(court.end_ids),
        pad_token_id=padding_id(tokenizer),
        **options,
    )
    found = []
    for row, vetoes in zip(out.tolist(), processor.record(out), strict=True):
        tokens = begun + row[ids.shape[1] :]
        end = next((k for k, token in enumerate(tokens) if token in court.end_ids), len(tokens))
        tokens = tokens[: end + 1]
        broken = court.check(tokens)
        if broken is not None:
            found.append(CourtReply(court.articles.refusal, tuple(vetoes), broken))
        else:
            found.append(CourtReply(court.vocabulary.text(tokens[:end]), tuple(vetoes)))
    return found
