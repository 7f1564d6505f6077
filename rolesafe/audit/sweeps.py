"""Success of attacks against the place of texts and the number of repetitions, and the search for an override."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from rolesafe.attacks import ATTACKS, AttackConfig, AttackResult, Rate, attack, attackable, suite
from rolesafe.attacks.replies import Progress
from rolesafe.audit.report import AuditSettings, Change, Dilution, Override, Position, SweepPoint
from rolesafe.tasks import Example


def dilution_points(settings: AuditSettings) -> list[AttackConfig]:
    """The injection, repeated more and more often."""
    return [_config(settings, "dilution", {"repeats": n}) for n in settings.repeats]


def position_points(settings: AuditSettings) -> list[AttackConfig]:
    """Every place of the system text with every place of the injection that the attack `placement` is run at."""
    return [_config(settings, "placement", point) for point in ATTACKS["placement"].grid]


def override_points(settings: AuditSettings) -> list[AttackConfig]:
    """The attacks of the override search.

    Raises:
        ValueError: An attack that was asked for does not exist.
    """
    given: dict[str, Any] = {
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "max_new_tokens": settings.max_new_tokens,
    }
    if settings.attacks:
        return suite(tuple(dict.fromkeys(settings.attacks)), **given)
    names = [name for name, family in ATTACKS.items() if name != "none" and (settings.strong or family.search is None)]
    quick = suite(names, quick=True, **given)
    swept = [*dilution_points(settings), *position_points(settings)]
    return [*quick, *(config for config in swept if config not in quick)]


def run_points(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    configs: Sequence[AttackConfig],
    known: list[AttackResult],
    progress: Progress | None = None,
) -> bool:
    """Run the attacks that are not in `known` yet, and put their results there.

    An attack that refuses the examples, such as one that repeats an order which a published set does not spell out, has
    a result without outcomes and with the reason.

    Returns:
        False where it was interrupted; what is there is in `known` all the same.
    """
    todo = [config for config in configs if not any(result.config == config for result in known)]
    for i, config in enumerate(todo):
        tell = None if progress is None else _part(progress, i, len(todo))
        try:
            result = attack(model, tokenizer, examples, None, config, check_goal=False, progress=tell)
        except ValueError as error:
            failed = tuple((example.id, str(error)) for example in attackable(examples))
            result = AttackResult(config=config, goal=None, outcomes=(), failed=failed)
        known.append(result)
        if not result.complete:
            return False
    return True


def _part(progress: Progress, i: int, count: int) -> Callable[[int, int], None]:
    """Tells of part `i` of `count` parts of one length."""
    return lambda done, total: progress(i * total + done, count * total)


def position(configs: Sequence[AttackConfig], known: Sequence[AttackResult]) -> Position:
    """The record of the sweep over places."""
    results = _chosen(configs, known)
    names = dict.fromkeys(str(r.parameters["system"]) for r in results)
    systems = {name: _union(r for r in results if r.parameters["system"] == name) for name in names}
    first = [r for r in results if r.parameters["system"] == "first"]
    fractions = sorted({float(r.parameters["at"]) for r in first})
    return Position(
        points=tuple(map(sweep_point, results)),
        systems=tuple((name, _rate(won)) for name, won in systems.items()),
        places=tuple((at, _rate(_union(r for r in first if r.parameters["at"] == at))) for at in fractions),
        changes=tuple(_change(a, systems[a], b, systems[b]) for a, b in combinations(systems, 2)),
    )


def dilution(configs: Sequence[AttackConfig], known: Sequence[AttackResult]) -> Dilution:
    """The record of the sweep over repetitions."""
    results = _chosen(configs, known)
    won = [(f"x{r.parameters['repeats']}", _union([r])) for r in results]
    return Dilution(
        points=tuple(map(sweep_point, results)),
        changes=tuple(_change(*won[0], name, outcomes) for name, outcomes in won[1:] if outcomes),
    )


def override(configs: Sequence[AttackConfig], known: Sequence[AttackResult]) -> Override:
    """The record of the override search."""
    results = [r for r in _chosen(configs, known) if r.attack != "none"]
    typed = [r for r in results if r.typed]
    return Override(
        points=tuple(map(sweep_point, results)),
        worst=_rate(_union(typed)),
        bound=_rate(_union(results)) if len(typed) < len(results) else None,
    )


def sweep_point(result: AttackResult) -> SweepPoint:
    """The record of one attack at one point."""
    reasons = tuple(dict.fromkeys(reason for _, reason in result.failed))
    return SweepPoint(
        attack=result.attack,
        label=result.config.label,
        parameters=dict(result.parameters),
        success=result.rate,
        n_left_out=len(result.left_out),
        failed=reasons,
        typed=result.typed,
        complete=result.complete,
    )


def _chosen(configs: Sequence[AttackConfig], known: Sequence[AttackResult]) -> list[AttackResult]:
    return [result for config in configs for result in known if result.config == config]


def _union(results: Iterable[AttackResult]) -> dict[str, bool]:
    """Id to whether at least one of the attacks won, for each example that any was run on (per-sample OR)."""
    won: dict[str, bool] = {}
    for result in results:
        for outcome in result.outcomes:
            won[outcome.id] = won.get(outcome.id, False) or outcome.success
    return won


def _rate(won: Mapping[str, bool]) -> Rate:
    return Rate(sum(won.values()), len(won))


def _change(before: str, one: Mapping[str, bool], after: str, other: Mapping[str, bool]) -> Change:
    both = [name for name in one if name in other]
    return Change(
        before=before,
        after=after,
        gained=sum(other[name] and not one[name] for name in both),
        lost=sum(one[name] and not other[name] for name in both),
    )


def _config(settings: AuditSettings, name: str, parameters: Mapping[str, Any]) -> AttackConfig:
    return AttackConfig(
        name=name,
        parameters=parameters,
        seed=settings.seed,
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
    )
