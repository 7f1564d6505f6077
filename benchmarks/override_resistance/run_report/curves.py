"""Attack success along one parameter of an attack, for every mechanism."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.override_resistance.run_report.view import Curves, Scale
from benchmarks.override_resistance.settings import PLACED
from benchmarks.override_resistance.targets import placed_points
from rolesafe.evaluation import AttackPoint, Rate, Run, seed_mean

Groups = Mapping[str, Sequence[Run]]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Attack parameter drawn as an axis.

    Attributes:
        title: Title of the chart.
        attacks: Candidates; the first one that was run is drawn.
        parameter: Numeric parameter along the axis.
        where: Values of other parameters.
        scale: Scale of the axis.
        percent: Whether the parameter is a share.
    """

    title: str
    attacks: tuple[str, ...]
    parameter: str
    where: Mapping[str, Any] = field(default_factory=dict)
    scale: Scale = "linear"
    percent: bool = False


SWEEPS = (
    Sweep(title="Repetitions of the injection", attacks=("dilution",), parameter="repeats", scale="log"),
    Sweep(
        title="Place of the injection in the attacker's text",
        attacks=PLACED,
        parameter="at",
        where={"system": "first"},
        percent=True,
    ),
)

STEPS = 12
"""Number of intervals along the axis of a search."""


def curves_of(groups: Groups) -> tuple[Curves, ...]:
    """Return all curves with two positions or more: sweeps, place of the system text, steps of searches."""
    found = [_sweep(groups, sweep) for sweep in SWEEPS]
    found.append(_places(groups))
    points = [point for runs in groups.values() for run in runs for point in run.attacks]
    found += [_search(groups, attack) for attack in dict.fromkeys(point.attack for point in points if point.n_steps)]
    return tuple(curves for curves in found if len({x for line in curves.lines for x, _ in line}) > 1)


def _sweep(groups: Groups, sweep: Sweep) -> Curves:
    run_with = {point.attack for runs in groups.values() for run in runs for point in run.attacks}
    attack = next((name for name in sweep.attacks if name in run_with), "")

    def chosen(point: AttackPoint) -> bool:
        return (
            point.attack == attack
            and sweep.parameter in point.parameters
            and all(point.parameters.get(name) == value for name, value in sweep.where.items())
        )

    xs = sorted({p.parameters[sweep.parameter] for r in groups.values() for run in r for p in run.attacks if chosen(p)})
    lines = []
    for runs in groups.values():
        means = [
            seed_mean(
                [_pooled([p for p in run.attacks if chosen(p) and p.parameters[sweep.parameter] == x]) for run in runs]
            )
            for x in xs
        ]
        lines.append(tuple((float(x), mean) for x, mean in zip(xs, means, strict=True) if mean))
    fixed = " with the system text first" if sweep.where else ""
    return Curves(
        title=sweep.title,
        about=f"Attack “{attack}”{fixed}.",
        scale=sweep.scale,
        ticks=tuple((float(x), f"{x:.0%}" if sweep.percent else f"{x:g}") for x in xs),
        lines=tuple(lines),
    )


def _places(groups: Groups) -> Curves:
    places = [
        str(p.parameters["system"])
        for runs in groups.values()
        for run in runs
        for p in run.attacks
        if p.attack in PLACED and "system" in p.parameters
    ]
    order = sorted(dict.fromkeys(places), key=lambda place: {"first": 0, "middle": 1, "last": 2}.get(place, 3))
    lines = []
    for runs in groups.values():
        found = placed_points(runs)
        means = [seed_mean([_pooled(points) for _, points in found.get(place, ())]) for place in order]
        lines.append(tuple((float(i), mean) for i, mean in enumerate(means) if mean))
    return Curves(
        title="Place of the system text",
        about="Mean over the points of the attack that all places of the system text have in common.",
        scale="places",
        ticks=tuple((float(i), place) for i, place in enumerate(order)),
        lines=tuple(lines),
    )


def _search(groups: Groups, attack: str) -> Curves:
    most = max(
        (
            step
            for runs in groups.values()
            for run in runs
            for p in run.attacks
            if p.attack == attack
            for step in p.n_steps
        ),
        default=0,
    )
    xs = sorted({round(most * i / STEPS) for i in range(STEPS + 1)})
    lines = []
    for runs in groups.values():
        firsts = [_first_wins(run, attack) for run in runs]
        means = [seed_mean([Rate(sum(won is not None and won <= x for won in f), len(f)) for f in firsts]) for x in xs]
        lines.append(tuple((float(x), mean) for x, mean in zip(xs, means, strict=True) if mean))
    return Curves(
        title=f"Steps of the search: {attack}",
        about="Examples won by then, by any variant. A win counts from the step at which its search ended.",
        scale="linear",
        ticks=tuple((float(x), f"{x}") for x in sorted({0, round(most / 2), most})),
        lines=tuple(lines),
    )


def _first_wins(run: Run, attack: str) -> list[int | None]:
    """Return for each example the fewest steps after which a search of this attack had won; None: never."""
    found: dict[str, int | None] = {}
    for point in run.attacks:
        if point.attack == attack and point.n_steps:
            for (id, won), steps in zip(run.won(point).items(), point.n_steps, strict=True):
                before = found.get(id)
                found[id] = (steps if before is None else min(before, steps)) if won else before
    return list(found.values())


def _pooled(points: Sequence[AttackPoint]) -> Rate:
    return Rate(sum(point.success.k for point in points), sum(point.success.n for point in points))
