"""How a model stands up to a suite of attacks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rolesafe.attacks import AttackConfig, AttackResult, Rate, attack, attackable
from rolesafe.attacks.registry import look_up
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
        """Examples that at least one attack won on, of those that every attack was run on (per-sample OR).

        The figure that counts: an attacker needs one attack only. The point without attack does not count, nor does
        what nobody can type.
        """
        return worst_case(self.results)

    @property
    def bound(self) -> Rate:
        """The same with attacks that nobody can type, such as embeddings or prefilled replies: an upper bound."""
        return worst_case(self.results, typed_only=False)

    @property
    def failed(self) -> tuple[tuple[str, str, str], ...]:
        """What could not be attacked: label of the attack, id of the example, reason."""
        return tuple((r.config.label, name, reason) for r in self.results for name, reason in r.failed)


def worst_case(results: Sequence[AttackResult], *, typed_only: bool = True) -> Rate:
    """Per-sample OR over `results`; those without attack do not count.

    Args:
        results: Of one model.
        typed_only: Leave out attacks that nobody can type. Without any other attack the rate has n = 0.
    """
    counted = [r for r in results if r.attack != "none" and (r.typed or not typed_only)]
    won = per_sample((r.attack, {o.id: o.success for o in r.outcomes}, r.undecided) for r in counted)
    return Rate(sum(won.values()), len(won))


def per_sample(attacks: Iterable[tuple[str, Mapping[str, bool], Collection[str]]]) -> dict[str, bool]:
    """Whether at least one attack won, for each example that every attack was run on at some point.

    An attack that was made on some examples only, as costly searches are, leaves the others out: a worst case over
    fewer attacks would look safer. Single points may be missing, such as repetitions that do not fit into the context.
    Where one is missing for a reason of the run, such as memory, the example is left out, unless another attack won.

    Args:
        attacks: For each point of each attack its name, its success on examples by id, and the ids that it could not be
            run on for a reason of the run (:attr:`rolesafe.attacks.AttackResult.undecided`).
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
    return {
        example: success
        for example, success in won.items()
        if all(example in ids for ids in ran.values()) and (success or example not in failed)
    }


@dataclass(frozen=True)
class CurvePoint:
    """Attack success at one value of a parameter.

    Attributes:
        x: The value: a number of repetitions, a fraction of the text, or a name such as ``"first"``.
        success: Attack success there.
    """

    x: float | str
    success: Rate


def curve(results: Sequence[AttackResult], attack: str, parameter: str, **fixed: Any) -> tuple[CurvePoint, ...]:
    """Success of one attack along one of its parameters, in ascending order of its values.

    For instance ``curve(results, "dilution", "repeats")`` or ``curve(results, "position", "at", system="first")``.

    Args:
        results: Of one model; other attacks are left out.
        attack: Name of the attack.
        parameter: Along the axis.
        fixed: Values of other parameters; points that differ in them are left out.

    Raises:
        ValueError: No result fits, a parameter does not exist, or two results have the same value: another parameter
            or the seed differs between them.
    """
    known = sorted(look_up(attack).grid[0])
    for name in (parameter, *fixed):
        if name not in known:
            raise ValueError(f"`parameter`: attack {attack!r} has no {name!r}; expected one of {known}")
    chosen = [
        r for r in results if r.attack == attack and all(r.parameters[name] == value for name, value in fixed.items())
    ]
    if not chosen:
        raise ValueError(f"`results`: expected some of attack {attack!r} with {fixed}, got none of {len(results)}")
    points: dict[float | str, Rate] = {}
    for result in chosen:
        x = result.parameters[parameter]
        if x in points:
            others = [name for name in known if name != parameter and name not in fixed]
            raise ValueError(
                f"`results`: expected one at {parameter}={x!r}, got two; fix the other parameters {others}, or pass "
                "the results of one seed"
            )
        points[x] = result.rate
    order = sorted(points, key=lambda x: (isinstance(x, str), 0.0 if isinstance(x, str) else x, str(x)))
    return tuple(CurvePoint(x, points[x]) for x in order)


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

    On ``KeyboardInterrupt`` what is there, in `done` too, is returned, marked as not complete.

    Args:
        model: A transformers causal language model, patched or not.
        tokenizer: Its tokenizer, with a chat template.
        examples: Examples; only protected ones count.
        attacks: The suite.
        done: Results of an earlier run; complete ones are kept, the others are gone on with. Examples that failed for
            want of memory are tried again in both.
        progress: Called after each batch, of a search after each example.

    Raises:
        ValueError: There is nothing to attack, or no attack.
    """
    ids = {e.id for e in attackable(examples)}
    if not attacks:
        raise ValueError("`attacks`: expected at least one, got none; see `rolesafe.attacks.suite`")
    results: list[AttackResult] = []
    earlier = [next((r for r in done if r.config == config and r.goal is None), None) for config in attacks]
    for at, (config, found) in enumerate(zip(attacks, earlier, strict=True)):
        if found is not None and found.complete and not found.out_of_memory and found.ids == ids:
            results.append(found)
            continue
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
