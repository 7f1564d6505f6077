"""A conversation in tokens with a slot that an attacker fills, and the way from the slot's tokens back to text.

Legend: P tokens before the slot, L of the slot, A after it up to the reply, W of the wanted reply, n candidates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rolesafe.attacks.judge import contains, words
from rolesafe.attacks.replies import context_size, role_config
from rolesafe.attacks.search import CannotSearch
from rolesafe.config import RoleConfig
from rolesafe.roles.encoding import EncodedConversation, encode_one
from rolesafe.roles.structure import Structure, structure
from rolesafe.roles.templates import Part
from rolesafe.tasks import Example, Message

PLACES = ("suffix", "prefix")
CARRIERS = ("request", "injection")
_TRIES = 100


class Target:
    """One example with a slot in the attacker's message.

    A slot *survives* if its text, put into the message and encoded like any other message, gives the same tokens
    again: only such slots are attacks that somebody can send.

    Args:
        model: A causal language model, patched or not: its roles, its context size, its device.
        tokenizer: Its tokenizer.
        example: What to attack.
        wanted: The reply to make likely.
        success: What makes a reply a success. Where the attacker could not state it without knowing it already, as with
            a secret, no slot contains it either: a model that repeats what it was told has given nothing away.
        length: L at the start; ignored with `init`.
        generator: Draws the first slot.
        place: ``"suffix"``: the slot follows the carrier; ``"prefix"``: it stands before it.
        carrier: What the message says beside the slot. ``"request"``: what has to stay; ``"injection"``: the contrary
            policy in the system text's own words too.
        init: The text that the slot starts with, instead of tokens drawn from the vocabulary.
        ascii_only: Whether the slot is made of printable ASCII only.
        room: Tokens that the context must hold after the prompt, for the reply.

    Attributes:
        before, after, wanted: (P,), (A,), (W,) int64 on the model's device; `after` ends with the generation prompt.
        roles_before, roles_after: (P,), (A + W,) int64.
        role: Role id of the slot.
        allowed: (V',) int64, ascending: ids that the slot may hold. No structural, special, padding or unknown token.
        start: (L,) int64: the first slot; it survives.

    Raises:
        ValueError: An argument is not as described, the prompt does not fit into the context, or nothing survives.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        example: Example,
        *,
        wanted: str,
        success: str | None = None,
        length: int = 20,
        generator: torch.Generator,
        place: str = "suffix",
        carrier: str = "request",
        init: str | None = None,
        ascii_only: bool = True,
        room: int = 16,
    ) -> None:
        if place not in PLACES:
            raise ValueError(f"`place`: expected one of {PLACES}, got {place!r}")
        if carrier not in CARRIERS:
            raise ValueError(f"`carrier`: expected one of {CARRIERS}, got {carrier!r}")
        check_count("length", length)
        if not isinstance(wanted, str) or not wanted.strip():
            raise ValueError(
                f"`wanted`: expected the reply that the attacker wants, got {wanted!r}; example {example.id!r} is "
                f"{example.kind}, only protected ones have it (`Example.wanted`)"
            )
        self.example = example
        self.place = place
        self._carried = example.request if carrier == "request" else f"{example.request} {example.injection()}"
        self._tokenizer = tokenizer
        self._config: RoleConfig = role_config(model) or RoleConfig()
        self._ascii = ascii_only
        self._allowed = frozenset(allowed_ids(tokenizer, ascii_only, model.get_input_embeddings().num_embeddings))
        told = f"{example.request} {example.injection()}"
        self._secret = success if success and words(success) and not contains(told, success) else None
        if self._secret is not None:
            self._allowed -= _spelled(tokenizer, self._secret)
        if not self._allowed:
            raise ValueError("`tokenizer`: expected tokens that a message may contain, got none; see `ascii_only`")
        self._carried_length = 0
        self._anchor: list[int] = []
        if self._carried.strip():
            alone = self._encode(example.with_target(self._carried))
            low, high = self._content(alone)
            self._carried_length, self._anchor = high - low, alone.input_ids[high - 1 : high]
        start = self._first(length, generator) if init is None else self._given(init)
        encoded = self._encode(self.messages(start))
        low, high = self._slot(encoded, len(start))
        replied = self._encode(
            [*self.messages(start), {"role": self._config.generated, "content": wanted}], add_generation_prompt=False
        )
        last = max(replied.message_ids)
        wanted_ids = [
            i
            for i, message, part in zip(replied.input_ids, replied.message_ids, replied.parts, strict=True)
            if message == last and part is Part.CONTENT
        ]
        if not wanted_ids:
            raise ValueError(f"`wanted`: expected a text with at least one token, got {wanted!r}")
        size, needed = context_size(model), len(encoded) + max(room, len(wanted_ids))
        if size is not None and needed > size:
            raise CannotSearch(
                f"`length`: the prompt with a slot of {len(start)} tokens and its reply have {needed} tokens; expected "
                f"at most {size}, the model's context. Shorten the slot or the conversation."
            )
        self._before, self._after = encoded.input_ids[:low], encoded.input_ids[high:]
        self.role = encoded.role_ids[low]

        def tensor(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=model.device)

        self.before, self.after, self.wanted = tensor(self._before), tensor(self._after), tensor(wanted_ids)
        self.roles_before = tensor(encoded.role_ids[:low])
        self.roles_after = tensor([*encoded.role_ids[high:], *[self._config.generated_id] * len(wanted_ids)])
        self.allowed = tensor(sorted(self._allowed))
        self.start = tensor(start)
        self.sieving = False

    # ------------------------------------------------------------------------------------------------ text and tokens

    def text(self, ids: Sequence[int]) -> str:
        """The text of a slot, with the white space between it and the carrier."""
        decode = functools.partial(self._tokenizer.batch_decode, clean_up_tokenization_spaces=False)
        return self._texts([list(ids)], decode)[0]

    def messages(self, ids: Sequence[int]) -> tuple[Message, ...]:
        """The conversation with a slot of these tokens, as text."""
        return self._with(self.text(ids))

    def survives(self, ids: Sequence[int]) -> bool:
        """Whether the messages with this slot have exactly its tokens."""
        if not self._may_hold(ids):
            return False
        return self._encode(self.messages(ids)).input_ids == [*self._before, *ids, *self._after]

    def sieve(self, candidates: Tensor) -> Tensor:
        """The candidates (m, L) of (n, L) that are likely to survive, found in one go.

        Their texts are encoded beside the carrier's nearest word only. Where none passes, all are returned.
        """
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return candidates
        rows = candidates.tolist()
        words = self._carried.split() or [""]
        near = words[-1] if self.place == "suffix" else words[0]
        joined = [self._join(near, text) for text in self._texts(rows, backend.decode_batch)]
        found = backend.encode_batch(joined, add_special_tokens=False)
        if self.place == "suffix":
            kept = [k for k, (e, row) in enumerate(zip(found, rows, strict=True)) if e.ids[-len(row) :] == row]
        else:
            kept = [k for k, (e, row) in enumerate(zip(found, rows, strict=True)) if e.ids[: len(row)] == row]
        return candidates[torch.tensor(kept, device=candidates.device)] if kept else candidates

    def survivors(self, candidates: Tensor, losses: Tensor, most: int = 1) -> list[tuple[float, Tensor]]:
        """The best `most` candidates that survive, best first: pairs of their loss and their ids (L,).

        Candidates are tried in the order of their losses, so that few have to be. The first that fails switches the
        sieve on for the steps to come: with a word-level tokenizer none ever does.
        """
        found: list[tuple[float, Tensor]] = []
        values, order = torch.sort(losses, stable=True)
        ranked = candidates[order]
        for k, (loss, row) in enumerate(zip(values.tolist(), ranked.tolist(), strict=True)):
            if self.survives(row):
                found.append((loss, ranked[k]))
                if len(found) == most:
                    break
            else:
                self.sieving = True
        return found

    # ------------------------------------------------------------------------------------------------------- internals

    def _texts(self, rows: list[list[int]], decode: Callable[..., list[str]]) -> list[str]:
        """Texts of slots. A decoder drops the space before the first token, or puts one between any two: what stands
        between the carrier and a slot that follows it is seen by decoding the carrier's last token too."""
        anchor = self._anchor if self.place == "suffix" else []
        before = decode([anchor], skip_special_tokens=False)[0] if anchor else ""
        texts = decode([[*anchor, *row] for row in rows], skip_special_tokens=False)
        return [text.removeprefix(before) for text in texts]

    def _join(self, carried: str, text: str) -> str:
        if not carried.strip():
            return text
        return f"{carried}{text}" if self.place == "suffix" else f"{text} {carried}"

    def _with(self, text: str) -> tuple[Message, ...]:
        return self.example.with_target(self._join(self._carried, text))

    def _encode(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> EncodedConversation:
        return encode_one(self._tokenizer, messages, config=self._config, add_generation_prompt=add_generation_prompt)

    def _content(self, encoded: EncodedConversation) -> tuple[int, int]:
        """Where the content of the attacker's message starts and ends."""
        index = max(k for k, m in enumerate(self.example.messages) if m["role"] == self.example.target)
        at = [
            k
            for k, (message, part) in enumerate(zip(encoded.message_ids, encoded.parts, strict=True))
            if message == index and part is Part.CONTENT
        ]
        if not at or at[-1] - at[0] + 1 != len(at):
            raise ValueError(
                "`tokenizer`: its chat template prints the attacker's message nowhere or in pieces; expected it once"
            )
        return at[0], at[-1] + 1

    def _slot(self, encoded: EncodedConversation, length: int) -> tuple[int, int]:
        low, high = self._content(encoded)
        return (high - length, high) if self.place == "suffix" else (low, low + length)

    def _read(self, text: str) -> list[int]:
        """The tokens that `text` has in the message: those by which it is longer than the message without it."""
        encoded = self._encode(self._with(text))
        low, high = self._content(encoded)
        extra = (high - low) - self._carried_length
        if extra < 1:
            return []
        ids = encoded.input_ids[low:high]
        return ids[-extra:] if self.place == "suffix" else ids[:extra]

    def _given(self, init: str) -> list[int]:
        ids = self._read(f" {init}" if self.place == "suffix" else init)
        if not ids or not self._holds(ids):
            raise ValueError(
                f"`init`: expected a text that has the same tokens when it is written out and read again, and none "
                f"that a message cannot contain, got {init!r}"
            )
        return ids

    def _first(self, length: int, generator: torch.Generator) -> list[int]:
        """`length` tokens of the vocabulary at random that survive.

        Random tokens read as others where pieces merge: they are read again until nothing changes.
        """
        allowed = torch.tensor(sorted(self._allowed))
        for _ in range(_TRIES):
            drawn = allowed[torch.randint(len(allowed), (4 * length,), generator=generator)].tolist()
            ids = drawn[:length]
            for _ in range(8):
                if self._holds(ids):
                    return ids
                drawn = [i for i in self._read(self.text(drawn)) if i in self._allowed]
                ids = drawn[:length] if self.place == "prefix" else drawn[-length:]
                if len(ids) < length:
                    break
        raise CannotSearch(
            f"`length`: no {length} random tokens were found that are the same after writing and reading them; pass a "
            "text as `init`"
        )

    def _may_hold(self, ids: Sequence[int]) -> bool:
        if not self._allowed.issuperset(ids):
            return False
        return self._secret is None or not contains(self.text(ids), self._secret)

    def _holds(self, ids: list[int]) -> bool:
        """Whether `ids` survive, before it is known what stands around them."""
        if not self._may_hold(ids):
            return False
        encoded = self._encode(self.messages(ids))
        low, high = self._content(encoded)
        if high - low < len(ids) + (self._carried_length > 0):
            return False
        low, high = self._slot(encoded, len(ids))
        return encoded.input_ids[low:high] == ids


def _spelled(tokenizer: Any, secret: str) -> frozenset[int]:
    """Ids of the tokens that spell `secret` alone, in usual cases, at the start of a text or after a space."""
    forms = {form(secret) for form in (str, str.lower, str.upper, str.capitalize)}
    texts = [f"{space}{form}" for form in forms for space in ("", " ")]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    return frozenset(one[0] for one in ids if len(one) == 1)


_ALLOWED: WeakKeyDictionary[Structure, dict[tuple[bool, int], tuple[int, ...]]] = WeakKeyDictionary()


def allowed_ids(tokenizer: Any, ascii_only: bool, size: int) -> tuple[int, ...]:
    """Ids below `size` of ordinary text: not structural, special, padding or unknown.

    `ascii_only`: of printable ASCII alone; nothing counts as that too, as a lone mark for a space is decoded to.
    """
    state = structure(tokenizer)
    known = _ALLOWED.setdefault(state, {})
    if (ascii_only, size) not in known:
        forbidden = {*state.structural.values(), *tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        ids = [i for i in range(min(len(tokenizer), size)) if i not in forbidden]
        texts = tokenizer.batch_decode(
            [[i] for i in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        known[ascii_only, size] = tuple(
            i
            for i, text in zip(ids, texts, strict=True)
            if "\ufffd" not in text and (not ascii_only or (text.isascii() and text.isprintable()))
        )
    return known[ascii_only, size]


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is not a whole number from `least` on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"`{name}`: expected a whole number >= {least}, got {value!r}")


def check_number(name: str, value: Any, *, positive: bool = True) -> None:
    """Refuse what is not a finite number > 0 (>= 0)."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
    if not good or not (value > 0 if positive else value >= 0):
        raise ValueError(f"`{name}`: expected a finite number {'> 0' if positive else '>= 0'}, got {value!r}")
