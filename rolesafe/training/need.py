"""Choose dedicated heads of a pretrained model by how little it needs them on ordinary text.

Restricting a head to privileged keys replaces its output o by that of the privileged channel, p. The need of a head is
the increase of the next-token loss on ordinary conversations when this head alone is restricted. It is measured with a
reserved share w per head, where the output is (1 - w) o + w p:

- ``"gradient"``: the derivative of the loss by w at w = 0, the sum of (p - o) dL/do. It is the increase to first order,
  for all heads in one backward pass: the estimate of Michel et al. 2019 (arXiv 1905.10650, equation 2) for replacing
  the output instead of removing it, with its sign, because an increase is of interest.
- ``"loss"``: the increase itself, from w = 0 to 1, with one forward pass for each head.

Legend: H query heads, G key/value heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rolesafe.attention.problem import is_privileged
from rolesafe.config import RoleConfig
from rolesafe.patching import families, is_patched, patch, unpatch
from rolesafe.patching.modes import evaluating
from rolesafe.patching.moved import check_moved, count_groups
from rolesafe.training.collator import IGNORED

Method = Literal["gradient", "loss"]
METHODS: tuple[str, ...] = get_args(Method)

Batch = Mapping[str, Tensor]


def choose_dedicated(
    model: PreTrainedModel,
    config: RoleConfig,
    batches: Sequence[Batch],
    *,
    method: Method = "gradient",
    progress: Callable[[int, int], None] | None = None,
) -> RoleConfig:
    """Return `config` with the heads that `model` needs least as its dedicated heads.

    Each layer keeps the number of dedicated heads that `config` has. With grouped keys the choice has the least sum of
    needs among whole groups and a part of one more, see :attr:`RoleConfig.dedicated_heads`.

    Args:
        model: Plain model, which stays as it is.
        config: Configuration with a number or share of dedicated heads.
        batches: Ordinary conversations, as :class:`rolesafe.training.RoleCollator` returns them; each row has a
            privileged token.
        method: ``"gradient"`` or ``"loss"``, as in :func:`head_need`.
        progress: Callback for the number of passes done and their total.

    Raises:
        ValueError: `config` has no dedicated heads or lists them already, the heads of `model` cannot be exchanged, or
            as :func:`head_need`.
    """
    if isinstance(config.dedicated_heads, tuple) or not config.dedicated_heads:
        raise ValueError(
            f"`config`: expected a number or share of dedicated heads above 0, got {config.dedicated_heads!r}. Give "
            "one, or leave out the choice."
        )
    _check_plain(model)
    counts: dict[int, int] = {}
    groups: dict[int, int] = {}
    for i, module in _attention(model, config).items():
        heads = families.count_heads(module)
        counts[i] = config.count_dedicated(heads)
        check_moved(module, heads, tuple(range(counts[i])))
        groups[i] = count_groups(module, heads)
    if not any(counts.values()):
        raise ValueError(
            f"`config`: expected at least one dedicated head in a layer, got dedicated_heads={config.dedicated_heads} "
            "of too few heads. Raise it."
        )
    need = head_need(model, config, batches, method=method, progress=progress)
    pairs = [(i, head) for i in need for head in choose_heads(need[i], counts[i], groups[i])]
    return replace(config, dedicated_heads=tuple(pairs))


def choose_heads(need: Tensor, count: int, groups: int) -> tuple[int, ...]:
    """Return the `count` query heads with the least sum of `need` among those that can be dedicated, ascending.

    Args:
        need: (H,).
        count: Number of heads.
        groups: G, a divisor of H. Heads of one group have common keys: whole groups are chosen, and a part of one more.
    """
    rows = need.detach().double().reshape(groups, -1)
    each = rows.shape[1]
    whole, part = divmod(count, each)
    sums, order = rows.sum(1), rows.argsort(dim=1, stable=True)
    best: tuple[float, list[int]] | None = None
    for divided in range(groups) if part else [-1]:
        others = sorted((g for g in range(groups) if g != divided), key=lambda g: (sums[g].item(), g))[:whole]
        if len(others) < whole:
            continue
        chosen = [g * each + h for g in others for h in range(each)]
        if part:
            chosen += [divided * each + int(h) for h in order[divided, :part]]
        cost = rows.flatten()[chosen].sum().item()
        if best is None or cost < best[0]:
            best = (cost, chosen)
    assert best is not None
    return tuple(sorted(best[1]))


def head_need(
    model: PreTrainedModel,
    config: RoleConfig,
    batches: Sequence[Batch],
    *,
    method: Method = "gradient",
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, Tensor]:
    """Return the need of each head: the increase of the loss per token when it reads privileged keys only.

    Args:
        model: Plain model, which stays as it is.
        config: Roles, privileged roles and layers.
        batches: `input_ids`, `role_ids`, `labels` (B, T) and usually `attention_mask`; each row has a privileged token.
        method: ``"gradient"``: to first order, one forward and backward pass for each batch; ``"loss"``: exactly, one
            forward pass for each head and batch.
        progress: Callback for the number of passes done and their total.

    Returns:
        By index of the decoder layer, (H,) in fp32 on the CPU. Negative where the model is better without the head's
        view of other text.

    Raises:
        ValueError: `model` has a role layer, `config` no privileged role, or `batches` no rows that can be used.
    """
    if method not in METHODS:
        raise ValueError(f"`method`: expected one of {METHODS}, got {method!r}. Choose one.")
    _check_plain(model)
    if not config.privileged:
        raise ValueError("`config`: expected at least one privileged role, got none. Name one.")
    _check_batches(batches, config)
    probe = RoleConfig(
        roles=config.roles, privileged=config.privileged, generated=config.generated, layers=config.layers, bias=False,
        share=1.0, impl=config.impl,
    )  # fmt: skip
    trained = [(p, p.requires_grad) for p in model.parameters()]
    patch(model, probe)
    try:
        shares = {i: module.rolesafe_heads.share for i, module in _attention(model, config).items()}
        for parameter, _ in trained:
            parameter.requires_grad_(False)
        with evaluating(model), torch.no_grad():
            for share in shares.values():
                share.zero_()
            measure = _by_gradient if method == "gradient" else _by_loss
            return measure(model, shares, batches, progress)
    finally:
        unpatch(model)
        for parameter, before in trained:
            parameter.requires_grad_(before)


def _by_gradient(
    model: Any, shares: Mapping[int, nn.Parameter], batches: Sequence[Batch], progress: Any
) -> dict[int, Tensor]:
    total = {i: torch.zeros_like(share) for i, share in shares.items()}
    tokens = 0
    for done, batch in enumerate(batches, 1):
        with torch.enable_grad():
            loss, count = _loss(model, batch)
            found = torch.autograd.grad(loss, list(shares.values()))
        for i, gradient in zip(total, found, strict=True):
            total[i] += gradient
        tokens += count
        if progress is not None:
            progress(done, len(batches))
    return {i: (gradient / tokens).float().cpu() for i, gradient in total.items()}


def _by_loss(
    model: Any, shares: Mapping[int, nn.Parameter], batches: Sequence[Batch], progress: Any
) -> dict[int, Tensor]:
    total = {i: torch.zeros(share.numel()) for i, share in shares.items()}
    passes, done, tokens = len(batches) * (1 + sum(share.numel() for share in shares.values())), 0, 0
    for batch in batches:
        base, count = _loss(model, batch)
        tokens += count
        done += 1
        for i, share in shares.items():
            for head in range(share.numel()):
                share[head] = 1.0
                total[i][head] += (_loss(model, batch)[0] - base).float().cpu()
                share[head] = 0.0
                done += 1
                if progress is not None:
                    progress(done, passes)
    return {i: increase / tokens for i, increase in total.items()}


def _loss(model: Any, batch: Batch) -> tuple[Tensor, int]:
    """Return the sum of the losses of all labels of a batch, and their number."""
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    count = int((inputs["labels"][:, 1:] != IGNORED).sum())
    return model(**inputs, use_cache=False).loss * count, count


def _attention(model: PreTrainedModel, config: RoleConfig) -> dict[int, Any]:
    """Return the attention modules that `config` patches, by index of their layer."""
    found: dict[int, Any] = {}
    for i, layer in enumerate(families.decoder_layers(model)):
        if layer.attention and (config.layers is None or i in config.layers):
            if len(layer.attention) > 1:
                raise ValueError(
                    f"`model`: expected one attention in each layer, got {len(layer.attention)} in {layer.name}. Give "
                    "dedicated heads as a number."
                )
            found[i] = layer.attention[0]
    return found


def _check_plain(model: Any) -> None:
    if not isinstance(model, PreTrainedModel) or is_patched(model):
        got = "one with a role layer" if is_patched(model) else type(model).__name__
        raise ValueError(f"`model`: expected a plain model of transformers, got {got}. Choose heads before the patch.")


def _check_batches(batches: Sequence[Batch], config: RoleConfig) -> None:
    if not batches:
        raise ValueError("`batches`: expected at least one batch of ordinary conversations, got none. Give some.")
    for i, batch in enumerate(batches):
        if missing := [name for name in ("input_ids", "role_ids", "labels") if name not in batch]:
            raise ValueError(f"`batches`: expected `{missing[0]}` in batch {i}, got none. RoleCollator returns them.")
        privileged = is_privileged(batch["role_ids"], config.privileged_ids)
        if "attention_mask" in batch:
            privileged = privileged & batch["attention_mask"].bool()
        if not bool(privileged.any(1).all()):
            raise ValueError(
                f"`batches`: expected a privileged token in each row, got a row without one in batch {i}: its heads "
                "could not be restricted. Add a system message, or leave the row out."
            )
        if not bool((batch["labels"][:, 1:] != IGNORED).any()):
            raise ValueError(f"`batches`: expected labels in batch {i}, got none. Leave the batch out.")
