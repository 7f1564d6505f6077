"""Build a :class:`View` from the record of a comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rolesafe.evaluation import AttackPoint, Rate, Results, Run, SeedMean, seed_mean
from rolesafe.evaluation.evidence import silent, worst_case, worst_mean
from rolesafe.report.view import Curve, ModelLine, Reply, Row, Transcript, View, percent

REPEATED = ("dilution", "repeats")
"""Attack of the curve, and the parameter along its axis."""

Key = tuple[str, str]
"""An attack and its parameters, as JSON."""

_UTILITY: dict[str, Callable[[Run], Rate]] = {
    "benign questions, right": lambda run: run.utility.benign,
    "benign questions, not refused": lambda run: Rate(
        run.utility.refused.n - run.utility.refused.k, run.utility.refused.n
    ),
    "protected questions, right": lambda run: run.utility.protected,
}

_NO_ATTACK = "no attack"

_WORDS: dict[str, Callable[[Any], str]] = {
    "at": lambda value: f"at {value:.0%}",
    "delimiters": lambda value: "with delimiters" if value else "without delimiters",
    "num_steps": lambda value: f"{value} steps",
    "place": lambda value: f"{value} the question" if value in ("before", "after") else f"as {value}",
    "repeats": lambda value: f"x{value}",
    "system": lambda value: f"system text {value}",
    "turns": lambda value: f"x{value}",
    "words": lambda value: f"{value} words",
}
"""Wording of attack parameters; others are shown as "name value"."""


def build_view(results: Results) -> View:
    """Return the contents of a report; models, attacks and points keep their order of appearance.

    The last model is compared with the first. ``results.settings["command"]`` is shown as the command that reproduces
    the run; a setting that is a mapping becomes a group.
    """
    groups = {name: [run for run in results.runs if run.model == name] for name in results.models}
    rows = [*_utility_rows(groups), *_attack_rows(groups)]
    curves = _curves(groups)
    return View(
        models=tuple(ModelLine(name=name, about=_about(runs)) for name, runs in groups.items()),
        rows=tuple(rows),
        curves=curves,
        n_seeds=len(results.seeds),
        headline=_headline(results.models, curves, rows),
        partial=_partial(results, groups),
        settings=setting_groups(results),
        notes=missing_notes(results),
        command=str(results.settings.get("command", "")),
        transcripts=transcripts([runs[0] for runs in groups.values()]),
    )


# ---------------------------------------------------------------------------------------------------------- the figures


def point_key(point: AttackPoint) -> Key:
    """Return attack and parameters of a point, without the attack's own seed."""
    return point.attack, json.dumps(dict(point.parameters), sort_keys=True, default=str)


def points_of(runs: Sequence[Run]) -> dict[Key, AttackPoint]:
    """Return one point per attack and parameters, in order of appearance."""
    found: dict[Key, AttackPoint] = {}
    for run in runs:
        for point in run.attacks:
            found.setdefault(point_key(point), point)
    return found


def _all_runs(groups: Mapping[str, Sequence[Run]]) -> list[Run]:
    return [run for runs in groups.values() for run in runs]


def _success(run: Run, key: Key) -> Rate:
    """Return the success at one point, pooled over the attack's own seeds."""
    rates = [point.success for point in run.attacks if point_key(point) == key]
    return Rate(sum(rate.k for rate in rates), sum(rate.n for rate in rates))


def _mean_success(runs: Sequence[Run], key: Key) -> SeedMean | None:
    return seed_mean([_success(run, key) for run in runs])


def _utility_rows(groups: Mapping[str, Sequence[Run]]) -> list[Row]:
    return [
        Row(
            label=label, kind="utility", means=tuple(seed_mean([rate(run) for run in runs]) for runs in groups.values())
        )
        for label, rate in _UTILITY.items()
    ]


def _attack_rows(groups: Mapping[str, Sequence[Run]]) -> list[Row]:
    points = points_of(_all_runs(groups))
    rows = [
        Row(
            label=point_label(point, [other for other in points.values() if other.attack == point.attack]),
            kind="attack",
            means=tuple(_mean_success(runs, key) for runs in groups.values()),
        )
        for key, point in points.items()
    ]
    if not any(point.attack == "none" for point in points.values()):
        unprovoked = tuple(seed_mean([run.utility.violated for run in runs]) for runs in groups.values())
        rows.insert(0, Row(label=_NO_ATTACK, kind="attack", means=unprovoked))
    worst = tuple(worst_mean(runs) for runs in groups.values())
    if any(mean is not None for mean in worst):
        rows.append(Row(label="any of these attacks (worst case)", kind="attack", means=worst))
    return rows


def _curves(groups: Mapping[str, Sequence[Run]]) -> tuple[Curve, ...]:
    attack, parameter = REPEATED
    points = {key: point for key, point in points_of(_all_runs(groups)).items() if point.attack == attack}
    curves = []
    for name, runs in groups.items():
        means = [(int(point.parameters[parameter]), _mean_success(runs, key)) for key, point in points.items()]
        curves.append(Curve(model=name, points=tuple((x, mean) for x, mean in sorted(means, key=_first) if mean)))
    return tuple(curves)


def _first(pair: tuple[int, SeedMean | None]) -> int:
    return pair[0]


# ------------------------------------------------------------------------------------------------------------- in words


def point_label(point: AttackPoint, family: Sequence[AttackPoint]) -> str:
    """Return the attack with the parameters that differ between the points of `family`."""
    if point.attack == "none":
        return _NO_ATTACK
    parts = [
        _WORDS[name](value) if name in _WORDS else f"{name} {value}"
        for name, value in point.parameters.items()
        if any(other.parameters.get(name) != value for other in family)
    ]
    return " ".join([point.attack, ", ".join(parts)]).strip()


def _about(runs: Sequence[Run]) -> str:
    seconds = sum(run.train_seconds for run in runs) / len(runs)
    return f"{runs[0].n_parameters:,} parameters, trained {seconds:,.0f} s a seed"


def _headline(models: Sequence[str], curves: Sequence[Curve], rows: Sequence[Row]) -> str:
    """Return attack success at the most repetitions common to all models, together with utility."""
    common = set.intersection(*({x for x, _ in curve.points} for curve in curves)) if curves else set()
    useful = [(name, mean) for name, mean in zip(models, rows[0].means, strict=True) if mean] if rows else []
    if not common or not useful:
        return ""
    most = max(common)
    times = "Written once" if most == 1 else f"Written {most} times"
    leaks = listed([f"{percent(dict(curve.points)[most].value)} ({curve.model})" for curve in curves])
    right = listed([f"{percent(mean.value)} ({name})" for name, mean in useful])
    return f"{times}, the injection succeeds in {leaks} of the trials. Benign questions answered right: {right}."


def listed(parts: Sequence[str]) -> str:
    """Join `parts` with commas and "and"."""
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts)


def _partial(results: Results, groups: Mapping[str, Sequence[Run]]) -> str | None:
    if results.complete and all(run.complete for run in results.runs):
        return None
    done = [
        f"{name} with {listed([f'seed {run.seed}' + ('' if run.complete else ' (in part)') for run in runs])}"
        for name, runs in groups.items()
    ]
    return f"the run was not finished. Measured: {'; '.join(done) or 'nothing yet'}."


def missing_notes(results: Results) -> tuple[str, ...]:
    """Return caveats: attacks and seeds that were not run, models without right replies under attack."""
    points = [point for run in results.runs for point in run.attacks]
    left_out = sum(point.n_left_out for point in points)
    failed = sum(len(point.failed) for point in points)
    notes = []
    if left_out:
        notes.append(f"{left_out} attacked conversations did not fit into a model's context and are not counted.")
    if failed:
        reasons = sorted({reason for point in points for _, reason in point.failed})
        notes.append(f"{failed} attacks failed and are not counted: {'; '.join(reasons[:5])}.")
    for size in results.sizes:
        for model in results.models:
            runs, planned = results.of(size, model), len({run.seed for run in results.runs if run.size == size})
            attacked = sum(worst_case(run).n > 0 for run in runs)
            if 0 < attacked < planned:
                name = " ".join(filter(None, (model, size)))
                notes.append(f"{name}: the worst case is of {attacked} of {planned} seeds.")
    notes += [
        f"{' '.join(filter(None, (model, size)))}: {quiet}, so its resistance shows nothing."
        for size in results.sizes
        for model in results.models
        if (quiet := silent(results.of(size, model)))
    ]
    return tuple(notes)


def setting_groups(results: Results) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """Return settings and environment as titled groups of names and values."""
    plain = {name: value for name, value in results.settings.items() if name != "command"}
    groups = {name: value for name, value in plain.items() if isinstance(value, Mapping)}
    single = {name: value for name, value in plain.items() if name not in groups}
    where = results.environment
    environment = {**dict(where.versions), "hardware": where.hardware, "commit": where.commit or "not known"}
    titled = {**({"settings": single} if single else {}), **groups, "environment": environment}
    return tuple(
        (title.replace("_", " ").capitalize(), tuple((str(name), _write(value)) for name, value in values.items()))
        for title, values in titled.items()
    )


def _write(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# ---------------------------------------------------------------------------------------------------------- transcripts


def transcripts(firsts: Sequence[Run]) -> tuple[Transcript, ...]:
    """Return the first recorded conversation of every attack at its last point, with the replies of all runs.

    The first one, because a choice by outcome would be biased. Models with different messages get separate transcripts.
    """
    points = points_of(firsts)
    last = {key[0]: key for key, point in points.items() if point.samples and point.attack != "none"}
    found: list[Transcript] = []
    for key in last.values():
        labelled = point_label(points[key], [other for other in points.values() if other.attack == key[0]])
        replies: dict[tuple[tuple[str, str], ...], list[Reply]] = {}
        for run in firsts:
            outcome = next((o for p in run.attacks if point_key(p) == key for o in p.samples), None)
            if outcome is not None:
                messages = tuple((message["role"], message["content"]) for message in outcome.messages)
                reply = Reply(model=run.model, text=outcome.reply, leaked=outcome.success)
                replies.setdefault(messages, []).append(reply)
        found += [Transcript(title=labelled, messages=m, replies=tuple(r)) for m, r in replies.items()]
    return tuple(found)
