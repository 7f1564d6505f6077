"""Attention mass on privileged tokens by layer and head, checked against the reserved share.

The *mass* of a row (one query of one head) is the sum of its attention weights on privileged keys. A reserved share is
a lower bound on it; a plain model has none (R. Young, "Token Democracy", 2025, Definition 1).

Legend: B batch (1 here), H query heads, G key/value heads, T queries, S keys, R roles.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rolesafe.attacks.replies import Progress, role_config
from rolesafe.attention import Problem
from rolesafe.attention.api import compute
from rolesafe.config import RoleConfig
from rolesafe.patching.caches import cache_argument, output_cache
from rolesafe.patching.families import attention_modules
from rolesafe.patching.modes import evaluating
from rolesafe.patching.observe import observing
from rolesafe.roles.encoding import encode_one
from rolesafe.tasks import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MAP_BYTES = 128 * 2**20
"""Largest attention map of one layer of a plain model, in bytes; longer texts are read in pieces."""

ROUNDING = 1e-5
"""Tolerance of the check in fp32. In half precision it is four steps of the dtype: 0.004 in fp16, 0.03 in bf16."""


@dataclass(frozen=True, kw_only=True)
class LayerMass:
    """Attention mass of one layer. Tuples have one entry per query head; they are empty without a query.

    Attributes:
        name: Name of the attention module in the model.
        mean: Mean mass over the unprivileged queries after a privileged key, in [0, 1].
        minimum: Smallest of these.
        reply_mean: Mean mass at the position where the reply starts, over the conversations.
        reserved: Promise of the role layer: 1 on dedicated heads, the reserved share on others, 0 without.
    """

    name: str
    mean: tuple[float, ...]
    minimum: tuple[float, ...]
    reply_mean: tuple[float, ...]
    reserved: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class MassMap:
    """Attention mass on privileged keys of a model, over some conversations.

    Attributes:
        layers: In the order of the model.
        n_conversations: Number of conversations.
        rows: Rows (one query of one head) of any role that see a privileged key and are promised a mass above 0.
        violations: Rows with less than the promise, beyond `tolerance`.
        blind: Unprivileged rows of patched layers after a privileged key that do not see it: it is out of their sliding
            window, or the table hides it. Nothing is reserved there.
        margin: Smallest difference of mass and promise over `rows`; None without rows.
        tolerance: Allowed rounding, from the dtype of the attention.
    """

    layers: tuple[LayerMass, ...]
    n_conversations: int
    rows: int
    violations: int
    blind: int
    margin: float | None
    tolerance: float

    @property
    def reply(self) -> float | None:
        """Mean mass at the reply position over layers, heads and conversations."""
        return _mean([value for layer in self.layers for value in layer.reply_mean])

    @property
    def mean(self) -> float | None:
        """Mean mass of the unprivileged queries over layers and heads."""
        return _mean([value for layer in self.layers for value in layer.mean])


def attention_mass(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    *,
    config: RoleConfig | None = None,
    progress: Progress | None = None,
) -> MassMap:
    """Measure the attention mass on privileged keys; check every row of a patched model against its promise.

    In a patched model its own backend computes the mass: the layer's attention runs once more with values 1 at
    privileged keys and 0 elsewhere, so the output is the mass, without a T x S map. A plain model is read with
    ``attn_implementation="eager"``, restored afterwards, one layer at a time and long texts in pieces.

    Args:
        model: Causal language model, patched or not; in evaluation mode during the call.
        tokenizer: Its tokenizer, with a chat template.
        conversations: Messages up to the reply.
        config: Privileged roles, for a plain model; default: ``RoleConfig()``.
        progress: Called after each conversation.

    Raises:
        ValueError: There are no conversations, none has a privileged token, or the model gives no attention weights.
        FloatingPointError: The model's attention weights are NaN, and none of them is promised anything.
    """
    if not conversations:
        raise ValueError("`conversations`: expected at least one conversation, got none")
    own = role_config(model)
    if own is not None and config is not None and config != own:
        raise ValueError("`config`: expected None for a patched model, got another configuration than its own")
    roles = own or config or RoleConfig()
    names = {id(module): name for name, module in model.named_modules()}
    tally = _Tally()
    with evaluating(model), torch.no_grad():
        for i, conversation in enumerate(conversations):
            encoded = encode_one(tokenizer, conversation, config=roles, add_generation_prompt=True)
            logger.debug("conversation %d of %d: %d tokens", i + 1, len(conversations), len(encoded))
            ids = torch.tensor([encoded.input_ids], device=model.device)
            role_ids = torch.tensor([encoded.role_ids], device=model.device)
            tally.conversation(role_ids[0], roles)
            if own is not None:
                _read_patched(model, ids, role_ids, names, tally)
            else:
                _read_plain(model, ids, names, tally)
            if progress is not None:
                progress(i + 1, len(conversations))
    return tally.finish()


# ------------------------------------------------------------------------------------------------------ patched models


def _read_patched(model: PreTrainedModel, ids: Tensor, role_ids: Tensor, names: dict[int, str], tally: _Tally) -> None:
    def see(module: nn.Module, problem: Problem) -> None:
        mass = compute(_asking_for_mass(problem), model.rolesafe_layers.impl)[0, :, :, 0].double()  # (H, T)
        tally.add(names[id(module)], 0, mass)
        tally.check(names[id(module)], mass, _promised(module, problem), sees_privileged(problem)[0], problem.q.dtype)

    with observing(model, see):
        model(input_ids=ids, role_ids=role_ids, use_cache=False)


def _asking_for_mass(p: Problem) -> Problem:
    """Return `p` with values 1 at privileged keys and 0 elsewhere, of the shape that fused kernels support."""
    value = p.roles.privileged_keys[:, None, :, None].to(p.v.dtype).expand(p.v.shape).contiguous()
    return replace(p, v=value, dropout=0.0)


def sees_privileged(p: Problem) -> Tensor:
    """Return (B, H, T) bool: rows that see a privileged key, after order, window, padding and the table's -inf."""
    privileged = list(p.roles.privileged)
    sight = p.roles_in_sight()[..., privileged]  # (B, 1 | H, T, P)
    hidden = p.hidden_pairs()
    if hidden is not None:
        pairs = hidden[:, p.roles.q_roles.long()][..., privileged]  # (H, B, T, P)
        sight = sight & ~pairs.transpose(0, 1)
    return sight.any(-1).expand(-1, p.q.shape[1], -1)


def _promised(module: nn.Module, p: Problem) -> Tensor:
    """Return (H, T): the mass promised to a row that sees a privileged key, from the layer's parameters."""
    heads: Any = module.rolesafe_heads
    share = heads.reserved_share()
    count, length = p.q.shape[1], p.q.shape[2]
    # a mass target t adds log(t / m) for m < t, which turns m into t / (1 + t - m) >= t / (1 + t)
    least = heads.mass_target / (1.0 + heads.mass_target)
    promised = torch.full((count, length), least, dtype=torch.float64, device=p.q.device)
    if share is not None:
        kept = share.detach().to(p.q.dtype).double()[:, None]  # rounded as in the backends
        promised = kept + (1.0 - kept) * promised
    promised[: heads.dedicated] = 1.0
    if heads.integrity:
        promised[:, p.roles.privileged_queries[0]] = 1.0
    return promised


# -------------------------------------------------------------------------------------------------------- plain models


def _read_plain(model: PreTrainedModel, ids: Tensor, names: dict[int, str], tally: _Tally) -> None:
    """Read the weights of every layer as it computes them, and free them."""
    modules = list(attention_modules(model).values())
    length = ids.shape[1]
    text = model.config.get_text_config()
    rows = max(1, MAP_BYTES // (4 * length * max(1, getattr(text, "num_attention_heads", None) or 1)))
    seen = 0  # queries before the current piece

    def take(module: nn.Module, args: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(weights, Tensor) and weights.ndim == 4:
            tally.weights(names[id(module)], seen, weights[0])

    hooks = [module.register_forward_hook(take) for module in modules]
    try:
        with _eager(model):
            cache = None
            for seen in range(0, length, rows):
                piece = ids[:, seen : seen + rows]
                output = model(
                    input_ids=piece,
                    use_cache=length > rows,
                    **({} if cache is None else {cache_argument(model.forward): cache}),
                    **({} if modules else {"output_attentions": True}),
                )
                cache = output_cache(output)
                if cache is None and seen + rows < length:
                    raise ValueError(
                        f"`model`: expected a KV cache from {type(model).__name__} to read {length} tokens in pieces, "
                        "got none. Use shorter conversations."
                    )
                if not modules:  # not transformers' attention interface: all layers at once
                    for i, weights in enumerate(getattr(output, "attentions", None) or ()):
                        if isinstance(weights, Tensor) and weights.ndim == 4:
                            tally.weights(f"layer {i}", seen, weights[0])
    finally:
        for hook in hooks:
            hook.remove()
    if not tally.has_layers:
        raise ValueError(
            f"`model`: expected attention weights (B, H, T, S) with attn_implementation='eager', got none from "
            f"{type(model).__name__}. Its attention cannot be measured."
        )


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Compute attention eagerly within the context, which returns attention weights."""
    configs = {id(c): c for m in model.modules() if hasattr(c := m.__dict__.get("config"), "_attn_implementation")}
    before = [(c, c._attn_implementation) for c in configs.values()]
    for c in configs.values():
        c._attn_implementation = "eager"
    try:
        yield
    finally:
        for c, name in before:
            c._attn_implementation = name


# ------------------------------------------------------------------------------------------------------------ the tally


@dataclass
class _Rows:
    """Running values of one layer, each (H,)."""

    total: Tensor
    least: Tensor
    reply: list[Tensor] = field(default_factory=list)
    reserved: Tensor | None = None
    count: int = 0


class _Tally:
    """Accumulator of the masses of all layers, conversation by conversation."""

    def __init__(self) -> None:
        self._layers: dict[str, _Rows] = {}
        self._privileged = self._behind = torch.zeros(0, dtype=torch.bool)
        self._conversations = self._found = 0
        self._rows = self._violations = self._blind = 0
        self._margin = math.inf
        self._tolerance = ROUNDING

    @property
    def has_layers(self) -> bool:
        return bool(self._layers)

    def conversation(self, role_ids: Tensor, roles: RoleConfig) -> None:
        """Start a conversation with roles (T,)."""
        self._privileged = torch.isin(role_ids, torch.tensor(roles.privileged_ids, device=role_ids.device))
        self._behind = ~self._privileged & (self._privileged.cumsum(0) > 0)
        self._conversations += 1
        self._found += bool(self._privileged.any())

    def weights(self, name: str, start: int, weights: Tensor) -> None:
        """Add attention weights (H, t, S) of the queries from `start` on; the last key belongs to the last query."""
        keys = self._privileged[: start + weights.shape[1]][-weights.shape[2] :].to(weights.device)
        self.add(name, start, weights.double() @ keys.double())

    def add(self, name: str, start: int, mass: Tensor) -> None:
        """Add masses (H, t) of the queries from `start` on."""
        heads, stop = mass.shape[0], start + mass.shape[1]
        if name not in self._layers:
            zero = mass.new_zeros(heads)
            self._layers[name] = _Rows(total=zero, least=zero + math.inf)
        rows = self._layers[name]
        chosen = mass[:, self._behind[start:stop].to(mass.device)]
        if chosen.shape[1]:
            rows.total = rows.total + chosen.sum(1)
            rows.least = torch.minimum(rows.least, chosen.amin(1))
            rows.count += chosen.shape[1]
        if stop == len(self._behind) and bool(self._behind[-1]):
            rows.reply.append(mass[:, -1])

    def check(self, name: str, mass: Tensor, promised: Tensor, sight: Tensor, dtype: torch.dtype) -> None:
        """Compare masses (H, T) with their promises (H, T) in the rows of `sight` (H, T)."""
        rows = self._layers[name]
        at_reply = promised[:, -1]
        rows.reserved = at_reply if rows.reserved is None else torch.minimum(rows.reserved, at_reply)
        self._tolerance = max(self._tolerance, 4 * torch.finfo(dtype).eps if dtype.itemsize < 4 else 0.0)
        self._blind += int((~sight & self._behind.to(sight.device)).sum())
        counts = sight & (promised > 0)
        left = (mass - promised)[counts]
        if left.numel():
            self._rows += left.numel()
            self._violations += int((~(left >= -self._tolerance)).sum())  # a NaN is a violation
            self._margin = min(self._margin, float(left.nan_to_num(nan=-1.0).min()))

    def finish(self) -> MassMap:
        if not self._found:
            raise ValueError(
                f"`conversations`: expected a message of a privileged role in at least one, got "
                f"{self._conversations} without. There is no mass to measure."
            )
        nan = any(
            bool(x.isnan().any()) for rows in self._layers.values() for x in (rows.total, rows.least, *rows.reply)
        )
        if nan and not self._violations:  # in rows with a promise a NaN is a violation
            raise FloatingPointError("the attention weights of the model are not finite")
        return MassMap(
            layers=tuple(_layer(name, rows) for name, rows in self._layers.items()),
            n_conversations=self._conversations,
            rows=self._rows,
            violations=self._violations,
            blind=self._blind,
            margin=self._margin if self._rows else None,
            tolerance=self._tolerance,
        )


def _layer(name: str, rows: _Rows) -> LayerMass:
    reply = torch.stack(rows.reply) if rows.reply else None
    reserved = torch.zeros_like(rows.total) if rows.reserved is None else rows.reserved
    return LayerMass(
        name=name,
        mean=_floats(rows.total / rows.count) if rows.count else (),
        minimum=_floats(rows.least) if rows.count else (),
        reply_mean=() if reply is None else _floats(reply.mean(0)),
        reserved=_floats(reserved),
    )


def _floats(values: Tensor) -> tuple[float, ...]:
    """Return values rounded to six digits, the reproducible ones; NaN, which is a violation, becomes 0."""
    return tuple(float(f"{value:.6g}") for value in values.nan_to_num(nan=0.0).tolist())


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
