"""Conversation in tokens with a slot that an attacker fills, and the mapping from the slot's tokens to text.

Legend: P tokens before the slot, L of the slot, A after it up to the reply, W of the wanted reply, n candidates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rolesafe.attacks.gradient.veto import veto_of
from rolesafe.attacks.judge import contains, words
from rolesafe.attacks.likelihood import reply_ids
from rolesafe.attacks.replies import context_size, role_config
from rolesafe.attacks.search import CannotSearch, SearchContext
from rolesafe.config import RoleConfig
from rolesafe.roles.encoding import EncodedConversation, encode_one
from rolesafe.roles.structure import Structure, structure
from rolesafe.roles.templates import Part
from rolesafe.tasks import Message

if TYPE_CHECKING:
    from rolesafe.attacks.gradient.config import SlotConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TRIES = 100


class Target:
    """Hold one example with a slot in the attacker's message.

    A slot *survives* if its text, put into the message and encoded, gives the same tokens again. Only such slots are
    attacks that a user can send. If the injection does not state `success`, as with a secret, no slot contains it
    either: a model that repeats the user's words has leaked nothing.

    Args:
        context: Model, tokenizer, example, wanted reply and success.
        config: Length, place and carrier of the slot; its first text and its alphabet where the attack has them.
        generator: Draws the first slot.

    Attributes:
        before, after, wanted: (P,), (A,), (W,) int64 on the model's device; `after` ends with the generation prompt.
            Under a veto `wanted` is the nearest reply that it allows.
        roles_before, roles_after: (P,), (A + W,) int64.
        role: Role id of the slot.
        allowed: (V',) int64, ascending: token ids that the slot may hold. No structural, special, padding or unknown
            token.
        start: (L,) int64: the first slot; it survives.
        sieving: True after a candidate did not survive, see :meth:`survivors`.

    Raises:
        ValueError: `wanted` is empty, the prompt does not fit into the context, or no slot survives.
    """

    def __init__(self, context: SearchContext, config: SlotConfig, generator: torch.Generator) -> None:
        model, tokenizer, example, wanted = context.model, context.tokenizer, context.example, context.wanted
        if not isinstance(wanted, str) or not wanted.strip():
            raise ValueError(
                f"`wanted`: expected the reply that the attacker wants, got {wanted!r}. Example {example.id!r} is "
                f"{example.kind}; only protected ones have it (`Example.wanted`)."
            )
        self.example = example
        self.place = config.place
        injected = f"{example.request} {example.injection()}"
        self._carried = example.request if config.carrier == "request" else injected
        self._tokenizer = tokenizer
        self._config: RoleConfig = role_config(model) or RoleConfig()
        ascii_only, init = getattr(config, "ascii_only", True), getattr(config, "init", None)
        self._allowed = frozenset(allowed_ids(tokenizer, ascii_only, model.get_input_embeddings().num_embeddings))
        known = not words(context.success) or contains(injected, context.success)
        self._secret = None if known else context.success
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
        start = self._first(config.length, generator) if init is None else self._given(init)
        encoded = self._encode(self.messages(start))
        low, high = self._slot(encoded, len(start))
        wanted_ids = reply_ids(tokenizer, self.messages(start), wanted, self._config)
        self._veto = veto_of(model)
        if self._veto is not None:
            wanted_ids = self._veto.aim(wanted_ids)
        self._forbidden: Tensor | None = None
        size, needed = context_size(model), len(encoded) + max(config.max_new_tokens, len(wanted_ids))
        if size is not None and needed > size:
            raise CannotSearch(
                f"`length`: expected at most {size} tokens with the prompt and its reply, the model's context, got "
                f"{needed} with a slot of {len(start)}. Shorten the slot or the conversation."
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

    def forbidden(self, size: int) -> Tensor | None:
        """Return (W, V) bool, True where a veto forbids one of `size` tokens of the reply; None without a veto."""
        if self._veto is not None and self._forbidden is None:
            self._forbidden = self._veto.mask(self.wanted.tolist(), size).to(self.wanted.device)
        return self._forbidden

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of a slot, with the white space between it and the carrier."""
        decode = functools.partial(self._tokenizer.batch_decode, clean_up_tokenization_spaces=False)
        return self._texts([list(ids)], decode)[0]

    def messages(self, ids: Sequence[int]) -> tuple[Message, ...]:
        """Return the conversation with a slot of these tokens, as text."""
        return self._with(self.text(ids))

    def survives(self, ids: Sequence[int]) -> bool:
        """Return True if the messages with this slot encode to exactly its tokens."""
        if not self._may_hold(ids):
            return False
        return self._encode(self.messages(ids)).input_ids == [*self._before, *ids, *self._after]

    def sieve(self, candidates: Tensor) -> Tensor:
        """Return the candidates (m, L) of (n, L) that are likely to survive, all of them if none is.

        Their texts are encoded in one batch, next to the nearest word of the carrier only.
        """
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return candidates
        rows = candidates.tolist()
        pieces = self._carried.split() or [""]
        near = pieces[-1] if self.place == "suffix" else pieces[0]
        joined = [self._join(near, text) for text in self._texts(rows, backend.decode_batch)]
        found = backend.encode_batch(joined, add_special_tokens=False)
        pairs = enumerate(zip(found, rows, strict=True))
        at = slice(-candidates.shape[1], None) if self.place == "suffix" else slice(candidates.shape[1])
        kept = [k for k, (one, row) in pairs if one.ids[at] == row]
        return candidates[torch.tensor(kept, device=candidates.device)] if kept else candidates

    def survivors(self, candidates: Tensor, losses: Tensor, most: int = 1) -> list[tuple[float, Tensor]]:
        """Return the best `most` candidates that survive, best first, as pairs of their loss and their ids (L,).

        Candidates are tried in the order of their losses. The first that fails sets :attr:`sieving`, which pays off
        except with word-level tokenizers.
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

    def _texts(self, rows: list[list[int]], decode: Callable[..., list[str]]) -> list[str]:
        """Return the texts of slots, decoded after the carrier's last token.

        A decoder may drop the space before the first token, or put one between any two.
        """
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

    def _encode(self, messages: Sequence[Message]) -> EncodedConversation:
        return encode_one(self._tokenizer, messages, config=self._config, add_generation_prompt=True)

    def _content(self, encoded: EncodedConversation) -> tuple[int, int]:
        """Return start and end of the content of the attacker's message."""
        index = max(k for k, m in enumerate(self.example.messages) if m["role"] == self.example.target)
        at = [
            k
            for k, (message, part) in enumerate(zip(encoded.message_ids, encoded.parts, strict=True))
            if message == index and part is Part.CONTENT
        ]
        if not at or at[-1] - at[0] + 1 != len(at):
            raise ValueError(
                "`tokenizer`: expected a chat template that prints the attacker's message once, got one that prints it "
                "nowhere or in pieces"
            )
        return at[0], at[-1] + 1

    def _slot(self, encoded: EncodedConversation, length: int) -> tuple[int, int]:
        low, high = self._content(encoded)
        return (high - length, high) if self.place == "suffix" else (low, low + length)

    def _read(self, text: str) -> list[int]:
        """Return the tokens that `text` adds to the message."""
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
                f"`init`: expected a text of allowed tokens that survive decoding and encoding, got {init!r}. Choose "
                "another text."
            )
        return ids

    def _first(self, length: int, generator: torch.Generator) -> list[int]:
        """Return `length` random tokens of the vocabulary that survive.

        Random tokens encode to others where pieces merge: they are encoded again until nothing changes.
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
            f"`length`: expected {length} random tokens that survive decoding and encoding, got none. Pass a text as "
            "`init`."
        )

    def _may_hold(self, ids: Sequence[int]) -> bool:
        if not self._allowed.issuperset(ids):
            return False
        return self._secret is None or not contains(self.text(ids), self._secret)

    def _holds(self, ids: list[int]) -> bool:
        """Return True if `ids` survive, before the tokens around them are known."""
        if not self._may_hold(ids):
            return False
        encoded = self._encode(self.messages(ids))
        low, high = self._content(encoded)
        if high - low < len(ids) + (self._carried_length > 0):
            return False
        low, high = self._slot(encoded, len(ids))
        return encoded.input_ids[low:high] == ids


def _spelled(tokenizer: PreTrainedTokenizerBase, secret: str) -> frozenset[int]:
    """Return the tokens that spell `secret` alone, in usual cases, at the start of a text or after a space."""
    forms = {form(secret) for form in (str, str.lower, str.upper, str.capitalize)}
    texts = [f"{space}{form}" for form in forms for space in ("", " ")]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    return frozenset(one[0] for one in ids if len(one) == 1)


_ALLOWED: WeakKeyDictionary[Structure, dict[tuple[bool, int], tuple[int, ...]]] = WeakKeyDictionary()


def allowed_ids(tokenizer: PreTrainedTokenizerBase, ascii_only: bool, size: int) -> tuple[int, ...]:
    """Return the ids below `size` of ordinary text: no structural, special, padding or unknown token.

    Args:
        tokenizer: A transformers tokenizer.
        ascii_only: Keep printable ASCII only; an empty text, which the mark of a space may decode to, is kept.
        size: Number of token embeddings of the model.
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
