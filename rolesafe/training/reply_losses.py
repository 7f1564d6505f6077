"""Losses of replies for :class:`rolesafe.training.RoleTrainer` and any other Trainer: DPO, constrained, deep objective.

A loss is called with the model and a batch of :class:`rolesafe.training.RoleCollator`, and returns a scalar with a
gradient and the model's output. It works with any mechanism: patched models get `role_ids`, plain ones do not.

Legend: B rows, T tokens, N selected positions, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from rolesafe.arguments import is_integer, is_number
from rolesafe.patching import is_patched
from rolesafe.training.collator import IGNORED

Batch = Mapping[str, Tensor]
Form = Literal["weights", "sigmoid"]

_NOT_FOR_MODELS = ("labels", "prefix_weights", "preference")


class ReplyLoss(ABC):
    """Base class of losses that replace the Trainer's own: ``RoleTrainer(..., loss=...)``."""

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        """Return the loss, a scalar, and the output of the model."""


def forward(model: nn.Module, batch: Batch) -> Any:
    """Return the output of `model`, patched or plain, for the columns of `batch` that it takes."""
    given = {name: value for name, value in batch.items() if name not in _NOT_FOR_MODELS}
    if not any(is_patched(module) for module in model.modules()):
        given.pop("role_ids", None)
    return model(**given, use_cache=False)


def row_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy (B,) of the labels of each row, in nats per token."""
    likely, learned = label_log_probs(forward(model, batch).logits, batch["labels"])
    return -likely.sum(1) / learned.sum(1).clamp(min=1)


def label_log_probs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probability (B, T - 1) fp32 of each label, 0 where there is none, and where there is one."""
    labels = labels[:, 1:]
    learned = labels != IGNORED
    loss = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return -loss, learned


def reply_positions(learned: Tensor) -> Tensor:
    """Return the number (B, T) of each token within its run of True tokens, from 1; 0 elsewhere."""
    count = learned.long().cumsum(1)
    before = torch.where(learned, 0, count).cummax(1).values
    return (count - before) * learned


class TokenConstrainedLoss(ReplyLoss):
    """Constrained fine-tuning of Qi et al. (arXiv 2406.05946): keep the first tokens of replies close to a reference.

    Minimises ``-(2 / beta_t) log sigmoid(beta_t log(pi(y_t) / pi_ref(y_t)))``, the mean over all learned tokens, where
    t counts the tokens of a reply from 1. ``form="weights"`` is the published code: cross-entropy times
    ``2 (1 - sigmoid(.))``, without a gradient through this weight, which is at least `least`. Both have the same
    gradient as long as no weight is below `least`.

    Args:
        reference: The aligned model before fine-tuning, frozen, patched or not.
        first_beta: Beta of the first token.
        early_beta: Beta of the tokens 2 to `early`.
        beta: Beta of the later tokens.
        early: Number of constrained tokens.
        least: Smallest weight.
        form: ``"weights"`` or ``"sigmoid"``.

    Raises:
        ValueError: A number is not positive, or `form` is unknown. At a call: the models have other vocabularies.
    """

    def __init__(
        self,
        reference: PreTrainedModel,
        *,
        first_beta: float = 0.5,
        early_beta: float = 2.0,
        beta: float = 0.1,
        early: int = 5,
        least: float = 1e-3,
        form: Form = "weights",
    ) -> None:
        betas = {"first_beta": first_beta, "early_beta": early_beta, "beta": beta, "least": least}
        for name, value in betas.items():
            if not is_number(value) or value <= 0:
                raise ValueError(f"`{name}`: expected a positive number, got {value!r}")
        if not is_integer(early, 1):
            raise ValueError(f"`early`: expected a number of tokens >= 1, got {early!r}")
        if form not in get_args(Form):
            raise ValueError(f"`form`: expected one of {get_args(Form)}, got {form!r}")
        self.reference = reference
        self.first_beta, self.early_beta, self.beta = first_beta, early_beta, beta
        self.early, self.least, self.form = early, least, form

    def betas(self, positions: Tensor) -> Tensor:
        """Return beta of tokens with these positions in their reply, counted from 1."""
        late = torch.full_like(positions, self.beta, dtype=torch.float32)
        found = torch.where(positions <= self.early, self.early_beta, late)
        return torch.where(positions <= 1, self.first_beta, found)

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        output = forward(model, batch)
        likely, learned = label_log_probs(output.logits, batch["labels"])
        with torch.no_grad():
            known = label_log_probs(reference_logits(self.reference, batch, output.logits), batch["labels"])[0]
        beta = self.betas(reply_positions(learned))
        ratio = beta * (likely - known)
        if self.form == "sigmoid":
            each = -2.0 / beta * F.logsigmoid(ratio)
        else:
            each = -(2.0 * torch.sigmoid(-ratio)).clamp(min=self.least).detach() * likely
        return (each * learned).sum() / learned.sum().clamp(min=1), output


class PreferenceLoss(ReplyLoss):
    """Eq. 2 of arXiv 2603.04851, expected harm with a KL penalty, by direct preference optimization (DPO).

    ``strength * E[Harm] + KL(P || P_ref)`` is the objective of DPO with the reward -Harm and ``beta = 1 / strength``.
    Batches come from rows with `chosen` and `rejected`, see :class:`rolesafe.training.PreferenceRows`; rows without a
    pair are learned by cross-entropy, the benign anchor.

    Args:
        reference: The base model, frozen, patched or not.
        strength: Weight of the harm, lambda in the paper.
        anchor: Weight of the cross-entropy of the rows without a pair.

    Raises:
        ValueError: A number is out of range. At a call: the batch has no pair, or the models have other vocabularies.
    """

    def __init__(self, reference: PreTrainedModel, *, strength: float = 10.0, anchor: float = 1.0) -> None:
        _check_strength(strength)
        if not is_number(anchor) or anchor < 0:
            raise ValueError(f"`anchor`: expected a number >= 0, got {anchor!r}")
        self.reference, self.strength, self.anchor = reference, strength, anchor

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        kind = batch.get("preference")
        if kind is None:
            raise ValueError(
                "`batch`: expected rows with `chosen` and `rejected`, got none. Use PreferenceRows, or pairs of "
                "conversations."
            )
        output = forward(model, batch)
        likely, learned = label_log_probs(output.logits, batch["labels"])
        with torch.no_grad():
            known = label_log_probs(reference_logits(self.reference, batch, output.logits), batch["labels"])[0]
        gain = (likely - known).sum(1)  # (B,)
        margin = gain[kind == 1] - gain[kind == -1]
        loss = -F.logsigmoid(margin / self.strength).mean() if margin.numel() else gain.sum() * 0.0
        alone = kind == 0
        anchored = -likely[alone].sum() / learned[alone].sum().clamp(min=1)
        return loss + self.anchor * anchored, output


class RecoveryLoss(ReplyLoss):
    """Deep alignment objective (arXiv 2603.04851, Def. 17): raise the recovery probability after every harmful prefix.

    At a prefix y of t - 1 tokens the loss is ``KL(P(. | y) || P_ref(. | y)) - strength * discount^t * rho(y)``, where
    rho is the probability of the recovery tokens. It is least where rho is the sigmoid of ``logit rho_ref + strength *
    discount^t`` (Theorem 20). Prefixes and their importance weights are the column `prefix_weights` of the batch, see
    :class:`rolesafe.training.RecoveryPrefixes`. The loss is the weighted mean over prefixes, plus the cross-entropy of
    the labels: benign rows and plain refusals.

    As printed, the paper takes the KL over the policy's own prefixes instead (``kl_on_prefixes=False``). Theorem 20 is
    false for that objective, and it can be minimised by making the prefixes unreachable. Here it is the KL at the
    labels.

    Args:
        tokens: Ids of the recovery tokens, such as the first tokens of refusals.
        strength: mu in the paper.
        discount: gamma in the paper, in (0, 1]; below 1 the objective fades with depth.
        kl_on_prefixes: Take the KL at the prefixes.
        reference: The base model, frozen, patched or not.
        anchor: Weight of the cross-entropy of the labels.

    Raises:
        ValueError: A number is out of range, or `tokens` is empty. At a call: a token is not in the vocabulary, or the
            models have other vocabularies.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        strength: float,
        discount: float = 1.0,
        kl_on_prefixes: bool = True,
        *,
        reference: PreTrainedModel,
        anchor: float = 1.0,
    ) -> None:
        if not len(tokens) or not all(is_integer(token, 0) for token in tokens):
            raise ValueError(f"`tokens`: expected at least one token id of a recovery, got {tokens!r}")
        _check_strength(strength)
        if not is_number(discount) or not 0.0 < discount <= 1.0:
            raise ValueError(f"`discount`: expected a number in (0, 1], got {discount!r}")
        if not is_number(anchor) or anchor < 0:
            raise ValueError(f"`anchor`: expected a number >= 0, got {anchor!r}")
        self.tokens = sorted(set(tokens))
        self.strength, self.discount, self.kl_on_prefixes = strength, discount, kl_on_prefixes
        self.reference, self.anchor = reference, anchor

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        output = forward(model, batch)
        logits = output.logits
        if self.tokens[-1] >= logits.shape[-1]:
            raise ValueError(
                f"`tokens`: expected ids below {logits.shape[-1]}, the vocabulary of the model, got {self.tokens[-1]}"
            )
        with torch.no_grad():
            base = reference_logits(self.reference, batch, logits)
        likely, learned = label_log_probs(logits, batch["labels"])
        loss = self.anchor * -likely.sum() / learned.sum().clamp(min=1)
        weights = batch.get("prefix_weights")
        if weights is not None:
            at = weights[:, 1:] > 0
            depth = reply_positions(at)[at]
            now = logits[:, :-1][at].float().log_softmax(-1)  # (N, V)
            rho = now[:, self.tokens].exp().sum(-1)
            each = -self.strength * self.discount ** depth.float() * rho
            if self.kl_on_prefixes:
                each = each + divergence(now, base[:, :-1][at])
            kept = weights[:, 1:][at].float()
            loss = loss + (kept * each).sum() / at.sum().clamp(min=1)
        if not self.kl_on_prefixes:
            now = logits[:, :-1][learned].float().log_softmax(-1)
            loss = loss + divergence(now, base[:, :-1][learned]).sum() / learned.sum().clamp(min=1)
        return loss, output


def divergence(log_probs: Tensor, reference_logits: Tensor) -> Tensor:
    """Return KL(P || P_ref) (N,) in nats, of log-probabilities (N, V) from logits (N, V)."""
    base = reference_logits.float().log_softmax(-1)
    return (log_probs.exp() * (log_probs - base)).sum(-1)


def reference_logits(reference: nn.Module, batch: Batch, like: Tensor) -> Tensor:
    """Return the logits of the reference for `batch`; raise where its vocabulary is not that of `like`."""
    found: Tensor = forward(reference, batch).logits
    if found.shape[-1] != like.shape[-1]:
        raise ValueError(
            f"`reference`: expected the model's vocabulary of {like.shape[-1]} tokens, got {found.shape[-1]}. The "
            "reference must have the model's tokenizer: pass the model before training."
        )
    return found.to(like.device)


def _check_strength(strength: float) -> None:
    if not is_number(strength) or strength <= 0:
        raise ValueError(f"`strength`: expected a positive number, got {strength!r}")
