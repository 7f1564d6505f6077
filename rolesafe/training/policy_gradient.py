"""Policy gradient of expected harm with a KL penalty: Eq. 2 of arXiv 2603.04851.

Legend: B prompts, S samples of each, R = B S rows, T tokens, N new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rolesafe.arguments import is_integer, is_number
from rolesafe.patching import is_patched
from rolesafe.patching.modes import evaluating
from rolesafe.roles.encoding import padding_id, padding_role_id
from rolesafe.training.collator import IGNORED
from rolesafe.training.reply_losses import Batch, ReplyLoss, divergence, forward, label_log_probs, reference_logits
from rolesafe.training.safety_rows import Row, SafetyRows

HarmFunction = Callable[[Sequence[str]], Sequence[float]]
"""Harm in [0, 1] of each of several replies."""


class PromptRows(SafetyRows):
    """Prompts to sample replies to, for :class:`PolicyGradientLoss`: the conversation of each triplet, no reply.

    Args:
        collator, triplets, benign, safety_rows, benign_rows: As for :class:`SafetyRows`.

    Raises:
        ValueError: As :class:`SafetyRows`.
    """

    def make(self, numbers: Sequence[int]) -> list[Row]:
        return [self._row(number, (), learn=False) for number in numbers]


class PolicyGradientLoss(ReplyLoss):
    """Minimise ``strength * E[Harm] + KL(P || P_ref)`` by sampling replies (REINFORCE).

    Rows without labels are prompts, see :class:`PromptRows`. Replies are sampled at temperature 1 and top-p 1. The KL
    is exact at every sampled position (full vocabulary), and later KL counts as a cost of earlier tokens, so the
    gradient is unbiased. The baseline of a sample is the mean cost of the other samples of its prompt. Rows with labels
    are learned by cross-entropy, the benign anchor.

    Args:
        tokenizer: The model's tokenizer.
        harm: Harm of each of the texts of replies, in [0, 1].
        reference: The base model, frozen, patched or not.
        strength: Weight of the harm, lambda in the paper.
        samples: Number of replies to each prompt, at least 2.
        max_new_tokens: Maximum length of a reply, in tokens.
        ends: Ids that end a reply; default: the tokenizer's end-of-sequence token.
        anchor: Weight of the cross-entropy of the labels.

    Raises:
        ValueError: A number is out of range. At a call: the harm is not one number in [0, 1] for each reply, or the
            models have other vocabularies.
        RuntimeError: At a call: `harm` failed.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        harm: HarmFunction,
        *,
        reference: PreTrainedModel,
        strength: float = 10.0,
        samples: int = 8,
        max_new_tokens: int = 32,
        ends: Sequence[int] | None = None,
        anchor: float = 1.0,
    ) -> None:
        for name, value, least in (("samples", samples, 2), ("max_new_tokens", max_new_tokens, 1)):
            if not is_integer(value, least):
                raise ValueError(f"`{name}`: expected a number >= {least}, got {value!r}")
        for name, number in (("strength", strength), ("anchor", anchor)):
            if not is_number(number) or number < 0 or (name == "strength" and number == 0):
                raise ValueError(f"`{name}`: expected a positive number, got {number!r}")
        self.tokenizer, self.harm, self.reference = tokenizer, harm, reference
        self.strength, self.samples, self.max_new_tokens, self.anchor = strength, samples, max_new_tokens, anchor
        self.ends = [int(i) for i in (tokenizer.eos_token_id,) if i is not None] if ends is None else list(ends)

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        labels = batch["labels"]
        alone = (labels != IGNORED).any(1)
        output: Any = None
        loss = torch.zeros((), device=labels.device)
        if bool(alone.any()):
            anchored = {name: value[alone] for name, value in batch.items()}
            output = forward(model, anchored)
            likely, learned = label_log_probs(output.logits, anchored["labels"])
            loss = loss - self.anchor * likely.sum() / learned.sum()
        if bool((~alone).any()):
            prompts = {name: value[~alone] for name, value in batch.items()}
            part, output = self._sampled(model, prompts)
            loss = loss + part
        return loss, output

    def _sampled(self, model: nn.Module, prompts: Batch) -> tuple[Tensor, Any]:
        rows, new = self._samples(model, prompts)
        harm = self._harm(new).to(rows["labels"].device)  # (R,)
        output = forward(model, rows)
        likely, learned = label_log_probs(output.logits, rows["labels"])  # (R, T - 1)
        with torch.no_grad():
            base = reference_logits(self.reference, rows, output.logits)
        kl = torch.zeros_like(likely)
        now = output.logits[:, :-1][learned].float().log_softmax(-1)
        kl = kl.masked_scatter(learned, divergence(now, base[:, :-1][learned]))
        with torch.no_grad():
            later = kl.flip(1).cumsum(1).flip(1) - kl  # the KL after each token
            cost = (self.strength * harm[:, None] + later).view(-1, self.samples, kl.shape[1])
            others = (cost.sum(1, keepdim=True) - cost) / (self.samples - 1)
            gain = ((cost - others).view_as(kl)) * learned
        each = (kl + gain * likely).sum(1)
        value = (self.strength * harm + kl.detach().sum(1)).mean()
        surrogate = each.mean()
        return value + surrogate - surrogate.detach(), output

    def _samples(self, model: nn.Module, prompts: Batch) -> tuple[dict[str, Tensor], list[list[int]]]:
        """Return the rows of prompts and sampled replies, padded on the right, and the new tokens of each."""
        inner: Any = getattr(model, "module", model)
        patched = any(is_patched(module) for module in inner.modules())
        device = prompts["input_ids"].device
        pad = padding_id(self.tokenizer)
        real = prompts["attention_mask"].bool()
        ids = [row[mask] for row, mask in zip(prompts["input_ids"], real, strict=True)]
        longest = max(map(len, ids))

        def left(rows: Sequence[Tensor], value: int) -> Tensor:
            return torch.stack([F.pad(row, (longest - len(row), 0), value=value) for row in rows])

        given = {"input_ids": left(ids, pad), "attention_mask": left([torch.ones_like(row) for row in ids], 0)}
        roles = []
        config = None
        if patched:
            config = next(m.rolesafe_config for m in inner.modules() if is_patched(m))
            roles = [row[mask] for row, mask in zip(prompts["role_ids"], real, strict=True)]
            given["role_ids"] = left(roles, padding_role_id(config))
        given = {name: value.repeat_interleave(self.samples, dim=0) for name, value in given.items()}
        with torch.no_grad(), evaluating(inner):
            found = inner.generate(
                **given,
                do_sample=True,
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                max_new_tokens=self.max_new_tokens,
                eos_token_id=self.ends or None,
                pad_token_id=pad,
            )[:, longest:].tolist()
        stop = set(self.ends)
        new = [row[: next((k + 1 for k, i in enumerate(row) if i in stop), len(row))] for row in found]
        whole, learned, all_roles = [], [], []
        for r, tokens in enumerate(new):
            prompt = ids[r // self.samples]
            own = torch.tensor(tokens, dtype=prompt.dtype, device=device)
            whole.append(torch.cat([prompt, own]))
            learned.append(torch.cat([torch.full_like(prompt, IGNORED), own]))
            if config is not None:
                all_roles.append(torch.cat([roles[r // self.samples], torch.full_like(own, config.generated_id)]))
        columns = [("input_ids", whole, pad), ("labels", learned, IGNORED)]
        if config is not None:
            columns.append(("role_ids", all_roles, padding_role_id(config)))
        rows = {name: pad_sequence(some, batch_first=True, padding_value=value) for name, some, value in columns}
        mask = pad_sequence([torch.ones_like(row) for row in whole], batch_first=True)
        return {**rows, "attention_mask": mask}, new

    def _harm(self, new: Sequence[Sequence[int]]) -> Tensor:
        texts = [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in new]
        try:
            values = [float(value) for value in self.harm(texts)]
        except Exception as error:
            raise RuntimeError(f"`harm`: failed on {len(texts)} replies, first {texts[0]!r}: {error}") from error
        if len(values) != len(texts):
            raise ValueError(f"`harm`: expected one number for each of {len(texts)} replies, got {len(values)}")
        for value, text in zip(values, texts, strict=True):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"`harm`: expected numbers in [0, 1], got {value} for the reply {text!r}")
        return torch.tensor(values)
