"""Sampling of rollouts and of fresh continuations from every depth, for models of transformers, patched or not.

Legend of shapes: B rollouts of a batch, K depths, T largest number of new tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rolesafe.arguments import is_integer
from rolesafe.attacks.replies import Progress, context_size, end_ids, prompts
from rolesafe.depth.branches import Branches, BranchRow, BranchSettings, difference, judged
from rolesafe.depth.decoding import Decoder, draw
from rolesafe.depth.harm import Harm, HarmError, Reply, Values, as_harm, values_of
from rolesafe.tasks import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rolesafe.roles.encoding import EncodedConversation

MOST_DEPTHS = 18
"""Number of depths by default."""


def sample_branches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    harm: Harm | Callable[[list[str]], Values],
    *,
    samples: int = 192,
    max_new_tokens: int = 64,
    depths: Sequence[int] | None = None,
    recovery: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    done: Branches | None = None,
    keep: Callable[[Branches], object] | None = None,
    progress: Progress | None = None,
) -> Branches:
    """Sample rollouts, and for each depth k one fresh continuation of the first k tokens of each rollout.

    The martingale is that of the model's own law: temperature 1, all tokens. The generation configuration of the model
    is ignored. A reply ends where the chat template ends an assistant's turn. Random numbers belong to a rollout, not
    to a batch, so a measurement that is continued gives the same replies.

    After a ``KeyboardInterrupt`` the measurement so far is returned, with ``complete`` False. An error of the harm
    function keeps all sampled replies in :attr:`HarmError.branches`. Pass either as `done` to continue.

    With several conversations the estimates are means over them, within a conversation.

    Args:
        model: Causal language model, patched or not; in evaluation mode for the call. A patched one gets the roles.
        tokenizer: Its tokenizer, with a chat template.
        conversations: Messages up to the reply, at least one conversation.
        harm: Harm function, see :mod:`rolesafe.depth.harm`; a plain callable takes the texts of replies.
        samples: Rollouts of each conversation.
        max_new_tokens: T; longer replies are cut and judged as they are.
        depths: Increasing numbers of tokens below T; default: at most 18, all of 0..8 and then further and further
            apart.
        recovery: Recovery tokens, of which the probability is recorded along the rollouts; None: not measured.
        seed: Seed.
        batch_size: Largest number of rollouts in a batch.
        temperature: 1; other values are an error.
        top_p: 1; other values are an error.
        done: Result of an interrupted call with the same settings; `batch_size` may differ.
        keep: Called with the measurement so far after each batch, for example to save it.
        progress: Called with the number of finished rollouts and their total.

    Raises:
        ValueError: An argument is invalid, a prompt with T tokens does not fit into the context, the tokenizer is not
            the model's, or `done` has other settings.
        HarmError: The harm function raised, or returned a value outside [0, 1].
    """
    from rolesafe.patching.modes import evaluating

    chosen = _checked(conversations, samples, max_new_tokens, depths, recovery, seed, batch_size, temperature, top_p)
    judge = as_harm(harm)
    encoded = prompts(model, tokenizer, conversations)
    _check_context(model, encoded, max_new_tokens)
    settings = BranchSettings(
        prompts=_digest(encoded),
        conversations=len(conversations),
        samples=samples,
        max_new_tokens=max_new_tokens,
        depths=chosen,
        tokens=tuple(sorted({int(i) for i in recovery or ()})),
        seed=seed,
        harm=judge.name,
    )
    rows = _continued(done, settings)
    messages = [tuple(dict(m) for m in conversation) for conversation in conversations]
    job = _Job(model, tokenizer, encoded, messages, settings, judge)
    if settings.tokens and settings.tokens[-1] >= job.vocabulary:
        raise ValueError(
            f"`recovery`: expected ids below the {job.vocabulary} of the model, got {settings.tokens[-1]}."
        )
    try:
        with evaluating(model):
            rows = job.judge(rows)  # those that an earlier call sampled and could not judge
            while len(rows) < settings.rows:
                batch = range(len(rows), min(len(rows) + batch_size, settings.rows))
                rows = [*rows, *job.sample(batch)]
                rows = job.judge(rows)
                if keep is not None:
                    keep(Branches.of_rows(settings, rows))
                if progress is not None:
                    progress(len(rows), settings.rows)
    except KeyboardInterrupt:
        pass
    return Branches.of_rows(settings, rows)


class _Job:
    """Arguments of one call of :func:`sample_branches`, and the rows so far."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        encoded: Sequence[EncodedConversation],
        messages: Sequence[tuple[Message, ...]],
        settings: BranchSettings,
        harm: Harm,
    ) -> None:
        self.model, self.tokenizer, self.encoded, self.messages = model, tokenizer, encoded, messages
        self.settings, self.harm = settings, harm
        self.ends = end_ids(model, tokenizer)
        self.vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self.rows: list[BranchRow] = []

    def sample(self, batch: range) -> list[BranchRow]:
        """Return the rollouts of a batch of row numbers, with their continuations, not judged."""
        settings = self.settings
        conversations = [row // settings.samples for row in batch]
        used = sorted(set(conversations))
        places = torch.tensor([used.index(c) for c in conversations])
        decoder = Decoder(self.model, self.tokenizer, [self.encoded[c] for c in used], places)
        uniform = self._uniform(batch).to(decoder.logits.device)  # (B, K + 1, T)
        everything = torch.ones(len(batch), dtype=torch.bool, device=uniform.device)
        rollouts, rho = self._decode(decoder, decoder.logits, uniform[:, 0], everything, settings.max_new_tokens)
        lengths = _lengths(rollouts, self.ends)
        branches: list[list[tuple[int, ...]]] = [[] for _ in batch]
        ids = [tuple(row[:n]) for row, n in zip(rollouts.tolist(), lengths.tolist(), strict=True)]
        for column in range(len(settings.depths) - 1, -1, -1):  # the deepest first: the cache is cut, never refilled
            k = settings.depths[column]
            running = lengths > k
            drawn: list[list[int]] = [[] for _ in batch]
            if bool(running.any()):
                logits = decoder.rewind(rollouts[:, :k])
                left = settings.max_new_tokens - k
                new, _ = self._decode(decoder, logits, uniform[:, column + 1], running, left)
                sizes = _lengths(new, self.ends).tolist()
                drawn = [row[:n] for row, n in zip(new.tolist(), sizes, strict=True)]
            for i, alive in enumerate(running.tolist()):
                branches[i].insert(0, tuple(drawn[i]) if alive else ids[i][k:])
        found = []
        for i, conversation in enumerate(conversations):
            recovery = tuple(rho[i, : len(ids[i])].tolist()) if rho is not None else ()
            found.append(
                BranchRow(conversation=conversation, ids=ids[i], branches=tuple(branches[i]), recovery=recovery)
            )
        return found

    def _decode(
        self, decoder: Decoder, logits: Tensor, uniform: Tensor, running: Tensor, steps: int
    ) -> tuple[Tensor, Tensor | None]:
        """Return up to `steps` drawn tokens (B, n) of the running rows, and the recovery probability at each (B, n)."""
        tokens = self.settings.tokens
        chosen = torch.tensor(tokens, device=logits.device)
        ends = torch.tensor(self.ends, device=logits.device)
        filler = self.ends[0] if self.ends else 0
        drawn, rho = [], []
        for step in range(steps):
            if tokens:
                rho.append(logits.softmax(-1)[:, chosen].sum(-1).double().clamp(0, 1))
            token = torch.where(running, draw(logits, uniform[:, step]), filler)
            drawn.append(token)
            running = running & ~torch.isin(token, ends)
            if step == steps - 1 or not bool(running.any()):
                break
            logits = decoder.extend(token)
        return torch.stack(drawn, 1), torch.stack(rho, 1) if rho else None

    def _uniform(self, batch: range) -> Tensor:
        """Return random numbers (B, K + 1, T) float64 that depend on the seed and the row only."""
        found = []
        for row in batch:
            generator = torch.Generator().manual_seed(Random(f"{self.settings.seed}/{row}").getrandbits(63))
            shape = (len(self.settings.depths) + 1, self.settings.max_new_tokens)
            found.append(torch.rand(shape, generator=generator, dtype=torch.float64))
        return torch.stack(found)

    def judge(self, rows: Sequence[BranchRow]) -> list[BranchRow]:
        """Return `rows` with the harm of those that have none yet.

        Raises:
            HarmError: The harm function failed.
        """
        self.rows = list(rows)
        todo = [i for i, row in enumerate(rows) if row.harm is None]
        if not todo:
            return self.rows
        replies: dict[tuple[int, tuple[int, ...]], int] = {}  # equal replies are judged once
        for i in todo:
            row = rows[i]
            for ids in self._all(row):
                replies.setdefault((row.conversation, ids), len(replies))
        try:
            values = values_of(self.harm, [self._reply(*key) for key in replies])
        except ValueError as error:
            raise HarmError(str(error), Branches.of_rows(self.settings, self.rows)) from error
        for i in todo:
            row = rows[i]
            first, *others = (values[replies[row.conversation, ids]] for ids in self._all(row))
            self.rows[i] = judged(row, first, others)
        return self.rows

    def _all(self, row: BranchRow) -> list[tuple[int, ...]]:
        pairs = zip(self.settings.depths, row.branches, strict=True)
        return [row.ids, *(row.ids[:k] + branch for k, branch in pairs)]

    def _reply(self, conversation: int, ids: tuple[int, ...]) -> Reply:
        text = self.tokenizer.decode([i for i in ids if i not in self.ends], skip_special_tokens=True).strip()
        return Reply(self.messages[conversation], ids, text)


def default_depths(max_new_tokens: int) -> tuple[int, ...]:
    """Return at most 18 depths below `max_new_tokens`: 0..8, then further and further apart up to the last one.

    >>> from rolesafe.depth.sampling import default_depths
    >>> default_depths(12)
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
    >>> default_depths(64)
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 13, 16, 20, 25, 32, 40, 50, 63)
    """
    if max_new_tokens <= MOST_DEPTHS:
        return tuple(range(max_new_tokens))
    last, steps = max_new_tokens - 1, MOST_DEPTHS - 9
    found = list(range(9))
    for step in range(1, steps + 1):
        found.append(max(found[-1] + 1, round(8 * (last / 8) ** (step / steps))))
    return tuple(found)


def _lengths(tokens: Tensor, ends: Sequence[int]) -> Tensor:
    """Return the number of tokens of each row up to and including the first that ends it, (B,)."""
    ended = torch.isin(tokens, torch.tensor(ends, device=tokens.device, dtype=tokens.dtype))
    first = ended.int().argmax(1) + 1
    return torch.where(ended.any(1), first, tokens.shape[1])


def _checked(
    conversations: Sequence[Any],
    samples: int,
    max_new_tokens: int,
    depths: Sequence[int] | None,
    recovery: Sequence[int] | None,
    seed: int,
    batch_size: int,
    temperature: float,
    top_p: float,
) -> tuple[int, ...]:
    if not conversations:
        raise ValueError("`conversations`: expected at least one conversation, got none.")
    rows = (
        ("samples", samples, 1),
        ("max_new_tokens", max_new_tokens, 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
    )
    for name, value, least in rows:
        if not is_integer(value, least):
            raise ValueError(f"`{name}`: expected a number >= {least}, got {value!r}.")
    for name, one in (("temperature", temperature), ("top_p", top_p)):
        if one != 1.0:
            raise ValueError(
                f"`{name}`: expected 1, since the martingale is that of the model's own law, got {one!r}. Leave it out."
            )
    if recovery is not None and not len(recovery):
        raise ValueError("`recovery`: expected at least one recovery token, or None for no measurement, got none.")
    if recovery is not None and any(not is_integer(i, 0) for i in recovery):
        raise ValueError(f"`recovery`: expected ids of tokens, got {recovery!r:.80}.")
    chosen = default_depths(max_new_tokens) if depths is None else tuple(depths)
    valid = bool(chosen) and all(is_integer(k, 0) for k in chosen) and list(chosen) == sorted(set(chosen))
    if not valid or chosen[-1] >= max_new_tokens:
        raise ValueError(
            f"`depths`: expected increasing numbers of tokens from 0 to {max_new_tokens - 1}, below `max_new_tokens`, "
            f"got {chosen!r:.80}."
        )
    return chosen


def _check_context(model: PreTrainedModel, encoded: Sequence[EncodedConversation], max_new_tokens: int) -> None:
    size, longest = context_size(model), max(map(len, encoded)) + max_new_tokens
    if size is not None and longest > size:
        raise ValueError(
            f"`max_new_tokens`: expected at most {size} tokens with the prompt, the model's context, got {longest}. "
            "Lower it, or shorten the longest conversation."
        )


def _continued(done: Branches | None, settings: BranchSettings) -> list[BranchRow]:
    if done is None:
        return []
    if done.settings is None:
        raise ValueError("`done`: expected the result of an interrupted call, got arrays without tokens.")
    if (found := difference(done.settings, settings)) is not None:
        raise ValueError(f"`done`: expected a measurement with the same settings, got one with {found}. Leave it out.")
    return list(done.rows)


def _digest(encoded: Sequence[EncodedConversation]) -> str:
    content = repr([(one.input_ids, one.role_ids) for one in encoded])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
