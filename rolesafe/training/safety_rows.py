"""Rows of training data that put harm inside the reply: prefixes, spans, preferences, each with a benign anchor.

A row holds lists of (T,) integers, as :meth:`rolesafe.training.RoleCollator.encode` returns them. Forced tokens have
the role of the assistant. Random choices come from torch's global generator, which the Trainer seeds and restores.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, get_worker_info
from transformers import PreTrainedModel

from rolesafe.arguments import is_integer, is_number
from rolesafe.patching.modes import evaluating
from rolesafe.roles.templates import Part
from rolesafe.training.collator import IGNORED, RoleCollator
from rolesafe.training.privileged import check_rows
from rolesafe.training.reply_losses import row_losses

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SafetyTriplet:
    """Hold a harmful request with a harmful and a safe reply.

    Attributes:
        messages: Conversation up to the reply.
        harmful: Reply that complies, from which prefixes and spans are taken.
        refusal: Reply to learn.
        weight: Importance weight of `harmful`: its probability under the attacker's distribution of prefixes, divided
            by the one that the triplets were drawn with.

    Raises:
        ValueError: `weight` is not positive.
    """

    messages: Sequence[Mapping[str, Any]]
    harmful: str
    refusal: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not is_number(self.weight) or self.weight <= 0:
            raise ValueError(f"`weight`: expected a positive number, got {self.weight!r}")


@dataclass(frozen=True)
class _Encoded:
    """Hold a triplet in tokens: prompt with generation prompt, harmful and safe content, end of the turn."""

    prompt: list[int]
    roles: list[int]
    harmful: list[int]
    refusal: list[int]
    footer: list[int]
    footer_roles: list[int]


class SafetyRows(Dataset[Row], ABC):
    """Mix rows made of triplets with benign rows, in a fixed order: `safety_rows` of them, then `benign_rows`.

    Base class of the datasets here. With ``TrainingArguments(train_sampling_strategy="sequential")`` and a batch size
    of ``safety_rows + benign_rows`` every batch has this ratio; with a random order it holds on average.

    Args:
        collator: Encodes the conversations; pass it to the Trainer as well.
        triplets: At least one.
        benign: Benign rows, with a column `messages` or encoded. Without any the model learns to refuse everything.
        safety_rows: Number of rows of triplets in a cycle.
        benign_rows: Number of benign rows in a cycle.

    Warns:
        UserWarning: There are no benign rows.

    Raises:
        ValueError: There is no triplet, a number is out of range, a reply has no token, or no row has a privileged
            token and the role layer has parts that act on these.
    """

    def __init__(
        self,
        collator: RoleCollator,
        triplets: Sequence[SafetyTriplet],
        benign: Sequence[Row] = (),
        *,
        safety_rows: int = 4,
        benign_rows: int = 16,
    ) -> None:
        if not triplets:
            raise ValueError("`triplets`: expected at least one SafetyTriplet, got none")
        for name, value in (("safety_rows", safety_rows), ("benign_rows", benign_rows)):
            if not is_integer(value, 1):
                raise ValueError(f"`{name}`: expected a number >= 1, got {value!r}")
        if not benign:
            warnings.warn(
                "`benign`: expected benign rows, got none. Without them the model learns to refuse everything. Pass "
                "ordinary conversations, about four for each triplet.",
                stacklevel=2,
            )
        if collator.with_roles:
            check_rows(collator.config, "triplets", [{"messages": one.messages} for one in triplets], benign)
        self.collator = collator
        self.triplets = triplets
        self.benign = benign
        self.safety_rows = safety_rows
        self.benign_rows = benign_rows if benign else 0
        self._encoded = [_encode(collator, triplet, f"triplets[{i}]") for i, triplet in enumerate(triplets)]

    def __len__(self) -> int:
        """Return the number of rows in which every triplet, and every benign row, occurs at least once."""
        cycles = -(-len(self.triplets) // self.safety_rows)
        if self.benign_rows:
            cycles = max(cycles, -(-len(self.benign) // self.benign_rows))
        return cycles * (self.safety_rows + self.benign_rows)

    def __getitem__(self, index: int) -> Row:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        """Return the rows of one batch, which `torch.utils.data.DataLoader` asks for as a whole."""
        places = [self._place(index) for index in indices]
        made = iter(self.make([number for kind, number in places if kind == "safety"]))
        return [next(made) if kind == "safety" else self.benign[number] for kind, number in places]

    @abstractmethod
    def make(self, numbers: Sequence[int]) -> list[Row]:
        """Return a row of each of the triplets `numbers`."""

    def _place(self, index: int) -> tuple[str, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"`index`: expected a row in [0, {len(self)}), got {index}")
        cycle, at = divmod(index, self.safety_rows + self.benign_rows)
        if at < self.safety_rows:
            return "safety", (cycle * self.safety_rows + at) % len(self.triplets)
        return "benign", (cycle * self.benign_rows + at - self.safety_rows) % len(self.benign)

    def _row(self, number: int, forced: Sequence[int], *, learn: bool = True) -> dict[str, Any]:
        """Return prompt, forced tokens and the whole refusal with its end, which alone is learned."""
        one = self._encoded[number]
        reply = [*one.refusal, *one.footer] if learn else []
        generated = self.collator.config.generated_id
        roles = [*one.roles, *[generated] * (len(forced) + (len(one.refusal) if learn else 0))]
        ids = [*one.prompt, *forced, *reply]
        return {
            "input_ids": ids,
            "attention_mask": [1] * len(ids),
            "role_ids": [*roles, *(one.footer_roles if learn else [])],
            "labels": [*[IGNORED] * (len(ids) - len(reply)), *reply],
        }


class _PrefixRows(SafetyRows):
    """Rows with a prefix of at most `max_prefix` harmful tokens, or none with probability `plain`."""

    def __init__(
        self,
        collator: RoleCollator,
        triplets: Sequence[SafetyTriplet],
        benign: Sequence[Row] = (),
        *,
        max_prefix: int = 100,
        plain: float = 0.5,
        **ratio: int,
    ) -> None:
        _check_prefix(max_prefix, plain)
        super().__init__(collator, triplets, benign, **ratio)
        self.max_prefix = max_prefix
        self.plain = plain


class PrefixAugmentation(_PrefixRows):
    """Recover from harmful prefixes of random length: data augmentation of Qi et al. (arXiv 2406.05946).

    A row is the prompt, the first k harmful tokens and the whole refusal; the refusal alone is learned. With
    probability `plain` k is 0, else uniform on 1 .. min(`max_prefix`, number of harmful tokens). The loss is the
    Trainer's own, one mean over all learned tokens. In the paper: 256 triplets, learning rate 2e-5, 10 epochs, AdamW.

    Args:
        collator, triplets, benign, safety_rows, benign_rows: As for :class:`SafetyRows`.
        max_prefix: Largest number of harmful tokens.
        plain: Probability of a refusal without a prefix, in [0, 1).

    Raises:
        ValueError: As :class:`SafetyRows`.
    """

    def make(self, numbers: Sequence[int]) -> list[Row]:
        return [self._row(number, self._encoded[number].harmful[: self._draw(number)]) for number in numbers]

    def _draw(self, number: int) -> int:
        longest = min(self.max_prefix, len(self._encoded[number].harmful))
        return 0 if _random() < self.plain else _below(longest) + 1


class RecoveryPrefixes(_PrefixRows):
    """Prefixes for :class:`rolesafe.training.RecoveryLoss`: every prefix of a harmful reply, in one row.

    With probability `plain` a row is an ordinary refusal; else it is the prompt and the harmful reply, where nothing is
    learned by heart and the column `prefix_weights` (T,) holds the triplet's importance weight at every token that
    follows a prefix: the first harmful token to the one after the last.

    Args:
        collator, triplets, benign, safety_rows, benign_rows: As for :class:`SafetyRows`.
        max_prefix: Largest number of harmful tokens.
        plain: Probability of an ordinary refusal, in [0, 1).

    Raises:
        ValueError: As :class:`SafetyRows`.
    """

    def make(self, numbers: Sequence[int]) -> list[Row]:
        return [self._row(n, ()) if _random() < self.plain else self._prefixes(n) for n in numbers]

    def _prefixes(self, number: int) -> Row:
        one, weight = self._encoded[number], self.triplets[number].weight
        forced = one.harmful[: self.max_prefix]
        # One more token, so that the position after the last prefix exists; it is predicted, never learned.
        row = self._row(number, [*forced, one.refusal[0]], learn=False)
        return {**row, "prefix_weights": [0.0] * len(one.prompt) + [weight] * (len(forced) + 1)}


class SpanInsertion(SafetyRows):
    """Recover from the worst of some harmful spans inside the refusal: random worst-insertion training.

    Our reading of arXiv 2606.04168: a candidate is the refusal up to a random position, a random span of `length`
    harmful tokens, and the whole refusal, which is learned from its start. Of ``places * spans`` candidates the one
    with the highest loss of the refusal is the row. With probability `plain` the row is an ordinary refusal.

    The model scores all candidates of a batch in one pass without gradients, in evaluation mode. Trainers fetch a batch
    ahead, so the scores are one step old. Needs ``dataloader_num_workers=0`` and an unsharded model.

    Args:
        collator, triplets, benign, safety_rows, benign_rows: As for :class:`SafetyRows`.
        model: The model that is trained.
        length: Number of tokens of a span.
        places: Number of random positions of each row.
        spans: Number of random spans for each position.
        plain: Probability of an ordinary refusal, in [0, 1).

    Raises:
        ValueError: As :class:`SafetyRows`.
        RuntimeError: The rows are fetched in a worker process, which does not have the trained model.
    """

    def __init__(
        self,
        collator: RoleCollator,
        triplets: Sequence[SafetyTriplet],
        benign: Sequence[Row] = (),
        *,
        model: PreTrainedModel,
        length: int = 4,
        places: int = 3,
        spans: int = 3,
        plain: float = 0.5,
        **ratio: int,
    ) -> None:
        _check_prefix(length, plain, "length")
        for name, value in (("places", places), ("spans", spans)):
            if not is_integer(value, 1):
                raise ValueError(f"`{name}`: expected a number >= 1, got {value!r}")
        super().__init__(collator, triplets, benign, **ratio)
        self.model = model
        self.length = length
        self.places = places
        self.spans = spans
        self.plain = plain

    def make(self, numbers: Sequence[int]) -> list[Row]:
        if get_worker_info() is not None:
            raise RuntimeError(
                "`dataloader_num_workers`: expected 0 with SpanInsertion, which scores its rows with the trained model"
            )
        groups: list[list[Row]] = [
            [self._row(n, ())] if _random() < self.plain else self._candidates(n) for n in numbers
        ]
        flat = [row for group in groups if len(group) > 1 for row in group]
        scores = iter(self.losses(flat) if flat else ())
        best = []
        for group in groups:
            ranked = [next(scores) for _ in group] if len(group) > 1 else [0.0]
            best.append(group[max(range(len(group)), key=ranked.__getitem__)])
        return best

    def losses(self, rows: Sequence[Row]) -> list[float]:
        """Return the mean loss of the refusal in each row."""
        device = next(self.model.parameters()).device
        batch = {name: value.to(device) for name, value in self.collator(rows).items()}
        with torch.no_grad(), evaluating(self.model):
            found: list[float] = row_losses(self.model, batch).tolist()
        return found

    def _candidates(self, number: int) -> list[Row]:
        one, rows = self._encoded[number], list[Row]()
        for _ in range(self.places):
            at = _below(len(one.refusal) + 1)
            for _ in range(self.spans):
                start = _below(max(1, len(one.harmful) - self.length + 1))
                span = one.harmful[start : start + self.length]
                rows.append(self._row(number, [*one.refusal[:at], *span]))
        return rows


class PreferenceRows(SafetyRows):
    """Pairs of a refusal (`chosen`) and a harmful reply (`rejected`), for :class:`rolesafe.training.PreferenceLoss`.

    Benign rows are pairs too: mappings with `chosen` and `rejected`, which :class:`RoleCollator` reads; or
    conversations with a column `messages`, which are learned by cross-entropy.

    Args:
        collator, triplets, benign, safety_rows, benign_rows: As for :class:`SafetyRows`.

    Raises:
        ValueError: As :class:`SafetyRows`.
    """

    def make(self, numbers: Sequence[int]) -> list[Row]:
        rows: list[Row] = []
        for number in numbers:
            one, chosen = self._encoded[number], self._row(number, ())
            rejected = self._row(number, [*one.harmful, *one.footer], learn=False)
            end = [self.collator.config.generated_id] * len(one.harmful)
            rejected["role_ids"] = [*one.roles, *end, *one.footer_roles]
            rejected["labels"] = [*[IGNORED] * len(one.prompt), *one.harmful, *one.footer]
            rows.append({"chosen": chosen, "rejected": rejected})
        return rows


def _encode(collator: RoleCollator, triplet: SafetyTriplet, argument: str) -> _Encoded:
    safe, bad = (
        collator._encode(
            argument,
            {"messages": [*triplet.messages, {"role": collator.config.generated, "content": text}]},
        )
        for text in (triplet.refusal, triplet.harmful)
    )
    last = len(triplet.messages)

    def content(one: Any) -> list[int]:
        rows = zip(one.message_ids, one.parts, strict=True)
        return [i for i, (message, part) in enumerate(rows) if message == last and part is Part.CONTENT]

    kept, harmful = content(safe), content(bad)
    for name, found in (("refusal", kept), ("harmful", harmful)):
        if not found:
            raise ValueError(f"`{argument}.{name}`: expected a reply of at least one token, got none")
    start, end = kept[0], kept[-1] + 1
    footer = [i for i in range(end, len(safe)) if safe.message_ids[i] == last and safe.parts[i] is Part.FOOTER]
    return _Encoded(
        prompt=list(safe.input_ids[:start]),
        roles=list(safe.role_ids[:start]),
        harmful=[bad.input_ids[i] for i in harmful],
        refusal=list(safe.input_ids[start:end]),
        footer=[safe.input_ids[i] for i in footer],
        footer_roles=[safe.role_ids[i] for i in footer],
    )


def _check_prefix(length: int, plain: float, name: str = "max_prefix") -> None:
    if not is_integer(length, 1):
        raise ValueError(f"`{name}`: expected a number of tokens >= 1, got {length!r}")
    if not is_number(plain) or not 0.0 <= plain < 1.0:
        raise ValueError(f"`plain`: expected a probability in [0, 1), got {plain!r}")


def _random() -> float:
    return float(torch.rand(()))


def _below(n: int) -> int:
    return int(torch.randint(0, n, ()))
