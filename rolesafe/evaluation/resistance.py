"""Resistance of a model to a suite of attacks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rolesafe.attacks import AttackConfig, AttackResult, Rate, attack, attackable
from rolesafe.tasks import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Step = Callable[[str, int, int], None]
"""Called with the label of an attack, the number of its examples done, and their total."""


@dataclass(frozen=True, kw_only=True)
class Resistance:
    """Results of a suite.

    Attributes:
        results: One per configuration, in the order of the suite.
        complete: Whether every attack was run on all examples.
    """

    results: tuple[AttackResult, ...]
    complete: bool

    @property
    def worst_case(self) -> Rate:
        """Examples that at least one attack won on, of those that every attack was run on (per-sample OR).

        Only plain-text attacks count; the point without attack does not.
        """
        return worst_case(self.results)

    @property
    def bound(self) -> Rate:
        """Worst case over all attacks, including embeddings and prefilled replies: an upper bound."""
        return worst_case(self.results, typed_only=False)

    @property
    def failed(self) -> tuple[tuple[str, str, str], ...]:
        """Failed examples: label of the attack, id of the example, reason."""
        return tuple((r.config.label, name, reason) for r in self.results for name, reason in r.failed)


def worst_case(results: Sequence[AttackResult], *, typed_only: bool = True) -> Rate:
    """Return the per-sample OR over `results`; the point without attack does not count.

    Args:
        results: Of one model.
        typed_only: Count plain-text attacks only. Without any the rate has n = 0.
    """
    counted = [r for r in results if r.attack != "none" and (r.typed or not typed_only)]
    won = per_sample((r.attack, {o.id: o.success for o in r.outcomes}, r.undecided) for r in counted)
    return Rate(sum(won.values()), len(won))


def per_sample(attacks: Iterable[tuple[str, Mapping[str, bool], Collection[str]]]) -> dict[str, bool]:
    """Return, for each example that every attack was run on at some point, whether at least one attack won.

    Examples that an attack was not run on are left out: a worst case over fewer attacks would look safer. Single points
    may be missing, such as repetitions that do not fit the context. If one is missing for a reason of the run, such as
    memory, the example is left out unless another attack won.

    Args:
        attacks: For each point of each attack its name, its success by example id, and the ids that failed for a reason
            of the run (:attr:`rolesafe.attacks.AttackResult.undecided`).
    """
    ran: dict[str, set[str]] = {}
    won: dict[str, bool] = {}
    failed: set[str] = set()
    for name, outcomes, undecided in attacks:
        if undecided:
            failed.update(undecided)
            ran.setdefault(name, set())
        for example, success in outcomes.items():
            ran.setdefault(name, set()).add(example)
            won[example] = won.get(example, False) or success
    everywhere = set.intersection(*ran.values()) if ran else set()
    return {
        example: success
        for example, success in won.items()
        if example in everywhere and (success or example not in failed)
    }


def resistance(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    attacks: Sequence[AttackConfig],
    *,
    done: Sequence[AttackResult] = (),
    progress: Step | None = None,
) -> Resistance:
    """Run every attack of a suite; see :func:`rolesafe.attacks.suite`.

    On ``KeyboardInterrupt`` the results so far, those in `done` included, are returned with ``complete=False``.

    Args:
        model: Causal language model, patched or not.
        tokenizer: Its tokenizer, with a chat template.
        examples: Examples; only protected ones are attacked.
        attacks: The suite.
        done: Results of an earlier run; complete ones are kept, others are resumed. Examples that ran out of memory are
            tried again.
        progress: Called after each batch; in a search, after each example.

    Raises:
        ValueError: There is nothing to attack, or no attack.
    """
    ids = {e.id for e in attackable(examples)}
    if not attacks:
        raise ValueError("`attacks`: expected at least one, got none. Use `rolesafe.attacks.suite`.")
    results: list[AttackResult] = []
    earlier = [next((r for r in done if r.config == config and r.goal is None), None) for config in attacks]
    for at, (config, found) in enumerate(zip(attacks, earlier, strict=True)):
        if found is not None and found.complete and not found.out_of_memory and found.ids == ids:
            results.append(found)
            continue
        logger.info("attack %d of %d: %s", at + 1, len(attacks), config.label)
        report = None if progress is None else _labelled(progress, config.label)
        try:
            result = attack(model, tokenizer, examples, config, done=found, progress=report, check_goal=False)
        except KeyboardInterrupt:  # outside the loop over batches
            return Resistance(results=(*results, *filter(None, earlier[at:])), complete=False)
        results.append(result)
        if not result.complete:
            return Resistance(results=(*results, *filter(None, earlier[at + 1 :])), complete=False)
    return Resistance(results=tuple(results), complete=True)


def _labelled(progress: Step, label: str) -> Callable[[int, int], None]:
    return lambda count, total: progress(label, count, total)
