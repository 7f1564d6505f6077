"""What a report needs to know about a run, and how it becomes a :class:`View`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rolesafe.report.estimate import estimate
from rolesafe.report.view import Curve, Estimate, Kind, ModelLine, Reply, Row, Transcript, View, percent

Counts = Mapping[str, Mapping[str, tuple[int, int]]]
"""Name, then point (such as the number of repetitions; "" where there is one only), to (k, n)."""

REPEATED = "dilution"
"""The attack whose points are numbers of repetitions: the curve of the chart."""


class Run(Protocol):
    """One trained model of one seed. For `utility` k counts right answers, for `attacks` successes of the attacker."""

    @property
    def model(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def n_params(self) -> int: ...
    @property
    def train_seconds(self) -> float: ...
    @property
    def utility(self) -> Counts: ...
    @property
    def attacks(self) -> Counts: ...


class Results(Protocol):
    """A whole evaluation; `transcripts` and `settings` may be empty, `partial` is None where the run is complete."""

    @property
    def runs(self) -> Sequence[Run]: ...
    @property
    def settings(self) -> Mapping[str, Mapping[str, Any]]: ...
    @property
    def command(self) -> str: ...
    @property
    def partial(self) -> str | None: ...
    @property
    def transcripts(self) -> Sequence[Mapping[str, Any]]: ...


def build_view(results: Results) -> View:
    """`results` as what a report shows; models, attacks and points in their order of appearance."""
    models = list(dict.fromkeys(run.model for run in results.runs))
    runs = {name: [run for run in results.runs if run.model == name] for name in models}
    rows = [*_rows("utility", runs), *_rows("attack", runs)]
    curves = tuple(
        Curve(
            model=name,
            points=tuple(
                (int(point), share)
                for (attack, point) in _points("attack", runs)
                if attack == REPEATED and (share := _share("attack", runs[name], attack, point)) is not None
            ),
        )
        for name in models
    )
    return View(
        models=tuple(ModelLine(name=name, about=_about(runs[name])) for name in models),
        rows=tuple(rows),
        curves=curves,
        n_seeds=len({run.seed for run in results.runs}),
        headline=_headline(models, curves, rows),
        partial=results.partial,
        settings=tuple(
            (title, tuple((name, _write(value)) for name, value in values.items()))
            for title, values in results.settings.items()
        ),
        command=results.command,
        transcripts=tuple(_transcript(transcript, models) for transcript in results.transcripts),
    )


def _counts(kind: Kind, run: Run) -> Counts:
    return run.utility if kind == "utility" else run.attacks


def _points(kind: Kind, runs: Mapping[str, Sequence[Run]]) -> list[tuple[str, str]]:
    every = [run for group in runs.values() for run in group]
    names = dict.fromkeys(name for run in every for name in _counts(kind, run))
    return [
        (name, point)
        for name in names
        for point in dict.fromkeys(p for run in every for p in _counts(kind, run).get(name, {}))
    ]


def _share(kind: Kind, runs: Sequence[Run], name: str, point: str) -> Estimate | None:
    return estimate([_counts(kind, run).get(name, {}).get(point, (0, 0)) for run in runs])


def _rows(kind: Kind, runs: Mapping[str, Sequence[Run]]) -> list[Row]:
    return [
        Row(
            label=f"{name} {point}".strip(),
            kind=kind,
            estimates=tuple(_share(kind, group, name, point) for group in runs.values()),
        )
        for name, point in _points(kind, runs)
    ]


def _about(runs: Sequence[Run]) -> str:
    seconds = sum(run.train_seconds for run in runs) / len(runs)
    return f"{runs[0].n_params:,} parameters, trained {seconds:.0f} s per seed"


def _headline(models: Sequence[str], curves: Sequence[Curve], rows: Sequence[Row]) -> str:
    """The strongest repetition that all models were attacked with, and the first utility beside it."""
    common = set.intersection(*({x for x, _ in curve.points} for curve in curves)) if curves else set()
    if not common or not rows or rows[0].kind != "utility":
        return ""
    most = max(common)
    leaks = [f"{percent(dict(curve.points)[most].value)} ({curve.model})" for curve in curves]
    useful = [
        f"{percent(share.value)} ({name})"
        for name, share in zip(models, rows[0].estimates, strict=True)
        if share is not None
    ]
    times = "once" if most == 1 else f"{most} times"
    return (
        f"Written {times} into the user's text, the injection succeeds in {_list(leaks)} of the trials; "
        f"{rows[0].label}: {_list(useful)}."
    )


def _list(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _write(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _transcript(values: Mapping[str, Any], models: Sequence[str]) -> Transcript:
    return Transcript(
        title=values["title"],
        messages=tuple((message["role"], message["content"]) for message in values["messages"]),
        replies=tuple(
            Reply(model=reply["model"], text=reply["text"], leaked=reply["leaked"])
            for reply in values["replies"]
            if reply["model"] in models
        ),
    )
