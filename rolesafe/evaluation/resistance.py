"""How a model stands up to a suite of attacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rolesafe.attacks import AttackConfig, AttackResult, Rate, attack, attackable
from rolesafe.tasks import Example

Step = Callable[[str, int, int], None]
"""Called with the label of an attack, the number of its examples done, and their total."""


@dataclass(frozen=True, kw_only=True)
class Resistance:
    """The results of a suite.

    Attributes:
        results: One per configuration, in the order of the suite.
        complete: Whether all of the suite was run on all examples.
    """

    results: tuple[AttackResult, ...]
    complete: bool

    @property
    def worst_case(self) -> Rate:
        """Examples that at least one attack won on, of those that any attack was run on (per-sample OR).

        The figure that counts: an attacker needs one attack only. The point without attack does not count.
        """
        return worst_case(self.results)


def worst_case(results: Sequence[AttackResult]) -> Rate:
    """Per-sample OR over `results`; those without attack do not count."""
    won: dict[str, bool] = {}
    for result in results:
        if result.attack != "none":
            for outcome in result.outcomes:
                won[outcome.id] = won.get(outcome.id, False) or outcome.success
    return Rate(sum(won.values()), len(won))


def resistance(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    attacks: Sequence[AttackConfig],
    *,
    done: Sequence[AttackResult] = (),
    progress: Step | None = None,
) -> Resistance:
    """Run every attack of a suite; see :func:`rolesafe.attacks.suite`.

    On ``KeyboardInterrupt`` what is there is returned, marked as not complete.

    Args:
        model: A transformers causal language model, patched or not.
        tokenizer: Its tokenizer, with a chat template.
        examples: Examples; only protected ones count.
        attacks: The suite.
        done: Results of an interrupted run; complete ones are kept, the others are gone on with.
        progress: Called after each batch.

    Raises:
        ValueError: There is nothing to attack, or no attack.
    """
    attackable(examples)
    if not attacks:
        raise ValueError("`attacks`: expected at least one, got none; see `rolesafe.attacks.suite`")
    results: list[AttackResult] = []
    for config in attacks:
        found = next((r for r in done if r.config == config and r.goal is None), None)
        if found is not None and found.complete:
            results.append(found)
            continue
        report = None if progress is None else _labelled(progress, config.label)
        try:
            result = attack(model, tokenizer, examples, None, config, done=found, progress=report, check_goal=False)
        except KeyboardInterrupt:  # outside the loop over batches
            return Resistance(results=tuple(results), complete=False)
        results.append(result)
        if not result.complete:
            return Resistance(results=tuple(results), complete=False)
    return Resistance(results=tuple(results), complete=True)


def _labelled(progress: Step, label: str) -> Callable[[int, int], None]:
    return lambda count, total: progress(label, count, total)
