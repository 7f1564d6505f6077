"""Token equality (R. Young, "Token Democracy", 2025, Definition 1): the same tokens in exchanged roles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rolesafe.attacks import Rate
from rolesafe.attacks.replies import Progress, role_config
from rolesafe.audit.records import TokenEquality
from rolesafe.config import RoleConfig
from rolesafe.patching.modes import evaluating
from rolesafe.roles.encoding import encode
from rolesafe.roles.role import role_id
from rolesafe.tasks import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def exchange(example: Example, config: RoleConfig) -> tuple[int, int] | None:
    """Return the ids of the two roles to exchange: of the first privileged message, and of the attacker's.

    Without a privileged role in `config` the first message of any other role than the attacker's is used.

    Returns:
        None if the example has no such message.

    Raises:
        ValueError: A role is not declared.
    """
    other = role_id(example.target, config.roles)
    wanted = config.privileged_ids or range(len(config.roles))
    held = (role_id(message["role"], config.roles) for message in example.messages)
    one = next((role for role in held if role in wanted and role != other), None)
    return None if one is None else (one, other)


def token_equality(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    progress: Progress | None = None,
) -> TokenEquality:
    """Compare the next-token distributions at the start of the reply, before and after an exchange of roles.

    Args:
        model: Causal language model, patched or not. A plain model takes no roles and is not run.
        tokenizer: Its tokenizer, with a chat template.
        examples: The roles of a privileged message and of the attacker's are exchanged, see :func:`exchange`; the token
            ids stay the same.
        progress: Called after each example.

    Raises:
        ValueError: There are no examples, or for a patched model one without roles to exchange.
        FloatingPointError: A logit is NaN or infinite.
    """
    import torch

    if not examples:
        raise ValueError("`examples`: expected at least one example, got none")
    config = role_config(model)
    if config is None:
        nothing = Rate(0, len(examples))
        return TokenEquality(
            takes_roles=False, n=len(examples), max_delta=0.0, mean_delta=0.0, max_kl=0.0, mean_kl=0.0,
            changed=nothing, tolerance=0.0,
        )  # fmt: skip
    pairs = []
    for example in examples:
        if (pair := exchange(example, config)) is None:
            raise ValueError(
                f"`examples`: expected a message of a privileged role in each, got none in {example.id!r}. Leave out "
                "the examples for which `exchange` returns None."
            )
        pairs.append(pair)
    deltas, means, divergences, changed, largest, eps = [], [], [], 0, 0.0, 0.0
    with evaluating(model), torch.no_grad():
        for i, (example, (one, other)) in enumerate(zip(examples, pairs, strict=True)):
            inputs = encode(tokenizer, example.messages, config=config, add_generation_prompt=True).to(model.device)
            roles = inputs["role_ids"]
            swapped = roles.clone()
            swapped[roles == one], swapped[roles == other] = other, one
            raw = [
                model(input_ids=inputs["input_ids"], role_ids=r, use_cache=False).logits[0, -1]
                for r in (roles, swapped)
            ]
            eps = torch.finfo(raw[0].dtype).eps
            before, after = (logits.double().log_softmax(-1) for logits in raw)
            delta = (raw[0].double() - raw[1].double()).abs().masked_fill(raw[0] == raw[1], 0.0)  # -inf is itself
            if not bool(delta.isfinite().all()):
                raise FloatingPointError(f"the logits of the model are not finite in {example.id!r}")
            deltas.append(float(delta.max()))
            means.append(float(delta.mean()))
            divergences.append(max(0.0, float((before.exp() * (before - after)).nan_to_num(0.0).sum())))
            changed += int(before.argmax() != after.argmax())
            largest = max(largest, float(raw[0][raw[0].isfinite()].abs().max()))
            if progress is not None:
                progress(i + 1, len(examples))
    n = len(examples)
    return TokenEquality(
        takes_roles=True,
        n=n,
        max_delta=max(deltas),
        mean_delta=sum(means) / n,
        max_kl=max(divergences),
        mean_kl=sum(divergences) / n,
        changed=Rate(changed, n),
        tolerance=16 * eps * largest,
    )
