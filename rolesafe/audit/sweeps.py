"""Success of attacks against the place of texts and the number of repetitions, and the search for an override."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from rolesafe.attacks import ATTACKS, TEXT_ATTACKS, AttackConfig, AttackResult, Outcome, Rate, attack, attackable, suite
from rolesafe.attacks.judge import words
from rolesafe.attacks.memory import STOPPED
from rolesafe.attacks.replies import Progress, role_config
from rolesafe.attacks.run import attacked
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
    names = [name for name in ATTACKS if name != "none" and (settings.strong or name in TEXT_ATTACKS)]
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

    Examples that an attack cannot be made of, such as one that repeats an order which a published set does not spell
    out, have no outcome but the reason. So have all where the attack broke off with an error.

    Returns:
        False where it was interrupted; what is there is in `known` all the same.
    """
    todo = [config for config in configs if not any(result.config == config for result in known)]
    for i, config in enumerate(todo):
        tell = None if progress is None else _part(progress, i, len(todo))
        result = _run(model, tokenizer, attackable(examples), config, tell)
        known.append(result)
        if not result.complete:
            return False
    return True


def _run(
    model: Any, tokenizer: Any, examples: Sequence[Example], config: AttackConfig, progress: Progress | None
) -> AttackResult:
    """Attack those of `examples` that the attack can be made of; the others are `failed`, with the reason."""
    try:
        return attack(model, tokenizer, examples, config, check_goal=False, progress=progress)
    except ValueError as error:
        refused = {e.id: reason for e in examples if (reason := _refusal(model, tokenizer, e, config)) is not None}
        fit = [example for example in examples if example.id not in refused]
        if not refused or not fit:
            failed = {**{example.id: f"{STOPPED}: {error}" for example in fit}, **refused}
            return AttackResult(config=config, goal=None, outcomes=(), failed=tuple(failed.items()))
    result = _run(model, tokenizer, fit, config, progress)
    return replace(result, failed=(*result.failed, *refused.items()))


def _refusal(model: Any, tokenizer: Any, example: Example, config: AttackConfig) -> str | None:
    """Why the attack cannot be made of `example`; ``None`` where it can."""
    try:
        if config.name not in TEXT_ATTACKS:
            example.injection()
        else:
            attacked(tokenizer, example, config, role_config(model), model)
    except ValueError as error:
        return str(error)
    return None


def _part(progress: Progress, i: int, count: int) -> Callable[[int, int], None]:
    """Tells of part `i` of `count` parts of one length."""
    return lambda done, total: progress(i * total + done, count * total)


def position(configs: Sequence[AttackConfig], known: Sequence[AttackResult]) -> Position:
    """The record of the sweep over places."""
    results = _chosen(configs, known)
    names = dict.fromkeys(str(r.parameters["system"]) for r in results)
    systems = {name: decided([r for r in results if r.parameters["system"] == name]) for name in names}
    first = [r for r in results if r.parameters["system"] == "first"]
    fractions = sorted({float(r.parameters["at"]) for r in first})
    places = {at: decided([r for r in first if r.parameters["at"] == at]) for at in fractions}
    return Position(
        points=tuple(map(sweep_point, results)),
        systems=tuple((name, _rate(found)) for name, found in systems.items()),
        places=tuple((at, _rate(found)) for at, found in places.items()),
        changes=tuple(_change(a, systems[a], b, systems[b]) for a, b in combinations(systems, 2)),
        undecided=max(map(_undecided, [*systems.values(), *places.values()]), default=0),
        complete=_complete(configs, results),
    )


def dilution(configs: Sequence[AttackConfig], known: Sequence[AttackResult]) -> Dilution:
    """The record of the sweep over repetitions."""
    results = _chosen(configs, known)
    found = [(f"x{r.parameters['repeats']}", decided([r])) for r in results]
    return Dilution(
        points=tuple(map(sweep_point, results)),
        changes=tuple(_change(*found[0], name, outcomes) for name, outcomes in found[1:] if outcomes),
        complete=_complete(configs, results),
    )


def override(
    configs: Sequence[AttackConfig],
    known: Sequence[AttackResult],
    examples: Sequence[Example],
    asked: Sequence[str] = (),
) -> Override:
    """The record of the override search.

    An example counts as held only where every attack was run on it and every reply was right: what could not be run is
    no evidence. An attack that refuses all examples, as one that moves a system text where there is none, is no attack
    on them and does not count, unless it was asked for by name.

    Args:
        configs: The suite.
        known: Results, those of the suite among them.
        examples: All that were to be attacked.
        asked: Names of attacks that the user asked for.
    """
    results = [r for r in _chosen(configs, known) if r.attack != "none"]
    names = {r.attack for r in results if r.outcomes or r.undecided} | set(asked)
    ids = [example.id for example in attackable(examples)] if any(r.outcomes or r.undecided for r in results) else []
    typed = [r for r in results if r.typed]
    found = decided(typed, ids, names & {r.attack for r in typed})
    everything = decided(results, ids, names)
    ran = _ran(typed, ids, names & {r.attack for r in typed})
    return Override(
        points=tuple(map(sweep_point, results)),
        worst=_rate(found),
        bound=_rate(everything) if len(typed) < len(results) else None,
        undecided=_undecided(found),
        not_run=sum(state is None and id not in ran for id, state in found.items()),
        complete=_complete(configs, _chosen(configs, known)),
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
        undecided=_undecided(decided([result])),
    )


def _chosen(configs: Sequence[AttackConfig], known: Sequence[AttackResult]) -> list[AttackResult]:
    return [result for config in configs for result in known if result.config == config]


Decided = Mapping[str, "bool | None"]
"""Id to True: at least one attack won; False: the example was held; None: neither, so nothing is decided."""


def decided(
    results: Sequence[AttackResult], ids: Iterable[str] = (), names: Collection[str] = ()
) -> dict[str, bool | None]:
    """What became of each example under all of `results` together (per-sample OR).

    Args:
        results: Of one model.
        ids: Examples that were to be attacked; default: those that were run, or were not for want of memory and the
            like. Others, too long for the context or refused by the chat template, no attacker can send either.
        names: Attacks that have to have run on an example, at some point of theirs, for it to be held.
    """
    outcomes: dict[str, list[Outcome]] = {id: [] for id in ids}
    for result in results:
        for id in result.undecided:
            outcomes.setdefault(id, [])
        for outcome in result.outcomes:
            outcomes.setdefault(outcome.id, []).append(outcome)
    ran = _ran(results, outcomes, names)
    return {
        id: True if any(o.success for o in of) else False if id in ran and all(map(is_held, of)) else None
        for id, of in outcomes.items()
    }


def is_held(outcome: Outcome) -> bool:
    """Whether the attacker lost: the reply is right, or says something where the example states no right one."""
    return not outcome.success and outcome.right is not False and bool(words(outcome.reply))


def _ran(results: Sequence[AttackResult], ids: Iterable[str], names: Collection[str]) -> set[str]:
    """Those of `ids` that every attack was run on, and none failed on for a reason of the run alone."""
    of: dict[str, set[str]] = {id: set() for id in ids}
    for result in results:
        for outcome in result.outcomes:
            of[outcome.id].add(result.attack)
    failed = {id for result in results for id in result.undecided}
    return {id for id, ran in of.items() if ran and ran >= set(names) and id not in failed}


def _rate(found: Decided) -> Rate:
    known = [state for state in found.values() if state is not None]
    return Rate(sum(known), len(known))


def _undecided(found: Decided) -> int:
    return sum(state is None for state in found.values())


def _complete(configs: Sequence[AttackConfig], results: Sequence[AttackResult]) -> bool:
    return len(results) == len(configs) and all(result.complete for result in results)


def _change(before: str, one: Decided, after: str, other: Decided) -> Change:
    both = [name for name in one if one[name] is not None and other.get(name) is not None]
    return Change(
        before=before,
        after=after,
        gained=sum(bool(other[name]) and not one[name] for name in both),
        lost=sum(bool(one[name]) and not other[name] for name in both),
    )


def _config(settings: AuditSettings, name: str, parameters: Mapping[str, Any]) -> AttackConfig:
    return ATTACKS[name](
        **parameters,
        seed=settings.seed,
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
    )
