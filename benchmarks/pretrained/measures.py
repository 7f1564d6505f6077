"""Figures of rows: one outcome for each example, with its cluster for intervals.

An example is a reply (source and case) or, for worst cases, a source. Sources are clusters, because replies of one row
of a published set are correlated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.pretrained.goals import LEAST_CEILING
from benchmarks.pretrained.record import Part, Record
from rolesafe.evaluation.paired import Outcomes, Paired, bootstrap_p, percentile_interval, resampled, versus
from rolesafe.evaluation.statistics import Rate, effective_trials, seed_mean

Values = dict[str, tuple[str, float]]
"""Cluster and outcome of each example."""


@dataclass(frozen=True)
class Measure:
    """Line of a table.

    Attributes:
        label: Name in the table.
        suite: Name of the suite of its rows.
        read: Function that returns the outcomes of a record's rows.
        kind: ``"share"`` of examples, or ``"mean"`` of numbers.
        perplexity: True to show e to the mean.
        minus: Function that returns outcomes to subtract, of the same examples: a paired difference within an arm.
    """

    label: str
    suite: str
    read: Callable[[Part], Values]
    kind: Literal["share", "mean"] = "share"
    perplexity: bool = False
    minus: Callable[[Part], Values] | None = None


@dataclass(frozen=True)
class Figure:
    """Value with its 95% interval and number of examples."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """Difference of two arms on the same examples and seeds: value, 95% interval, p, number of examples."""

    value: float
    low: float
    high: float
    p: float
    n: int


def figure(measure: Measure, records: Sequence[Record]) -> Figure | None:
    """Return the figure of the records of one arm, one for each training seed; None where nothing was measured."""
    found = [v for r in records if measure.suite in r.parts and (v := measure.read(r.parts[measure.suite]))]
    if not found:
        return None
    if measure.minus is not None:
        other = Measure(measure.label, measure.suite, measure.minus)
        within = versus(_outcomes(measure, records), _outcomes(other, records), clusters=_clusters(found))
        return None if within is None else Figure(within.difference, *within.difference_interval, within.n)
    clusters = [cluster for values in found for cluster, _ in values.values()]
    if measure.kind == "share":
        rates = [Rate(round(sum(x for _, x in values.values())), len(values)) for values in found]
        mean = seed_mean(rates, effective_trials(clusters))
        assert mean is not None
        return Figure(mean.value, mean.low, mean.high, mean.n)
    paired = Paired.of(dict(enumerate({k: x for k, (_, x) in v.items()} for v in found)), clusters=_clusters(found))
    assert paired is not None
    interval = percentile_interval(resampled(paired)[:, 0]) or (math.nan, math.nan)
    return Figure(paired.means[0], *interval, paired.n)


def difference(measure: Measure, one: Sequence[Record], other: Sequence[Record]) -> Difference | None:
    """Return the difference of `one` to `other`; None where they have no seed and example in common."""
    if measure.minus is not None:
        return None
    mine, theirs = (_outcomes(measure, records) for records in (one, other))
    values = [measure.read(r.parts[measure.suite]) for r in (*one, *other) if measure.suite in r.parts]
    clusters = _clusters(values)
    if measure.kind == "share":
        found = versus(mine, theirs, clusters=clusters) if mine and theirs else None
        if found is None:
            return None
        p = max(found.p_mcnemar, found.p_bootstrap)
        return Difference(found.difference, *found.difference_interval, p, found.n)
    paired = Paired.of(mine, theirs, clusters=clusters) if mine and theirs else None
    if paired is None:
        return None
    means = resampled(paired)
    differences = means[:, 0] - means[:, 1]
    interval = percentile_interval(differences) or (math.nan, math.nan)
    return Difference(paired.means[0] - paired.means[1], *interval, bootstrap_p(differences), paired.n)


def ratio(measure: Measure, one: Sequence[Record], other: Sequence[Record]) -> tuple[float, float, float] | None:
    """Return the ratio of two arms' shares with its 95% interval; None where it is undefined, as for 0 to 0."""
    mine, theirs = (_outcomes(measure, records) for records in (one, other))
    values = [measure.read(r.parts[measure.suite]) for r in (*one, *other) if measure.suite in r.parts]
    found = versus(mine, theirs, clusters=_clusters(values)) if mine and theirs else None
    if found is None or found.ratio is None or found.ratio_interval is None:
        return None
    return found.ratio, *found.ratio_interval


def outcomes_of(measure: Measure, records: Sequence[Record]) -> list[float]:
    """Return every outcome of the records of an arm."""
    return [x for values in _outcomes(measure, records).values() for x in values.values()]


def _outcomes(measure: Measure, records: Sequence[Record]) -> Outcomes:
    return {
        r.training_seed: {k: x for k, (_, x) in measure.read(r.parts[measure.suite]).items()}
        for r in records
        if measure.suite in r.parts
    }


def _clusters(several: Iterable[Values]) -> dict[str, str]:
    return {k: cluster for values in several for k, (cluster, _) in values.items()}


# ------------------------------------------------------------------------------------------------------ reading rows
def verdict(case: Callable[[str], bool], judge: Callable[[str], bool]) -> Callable[[Part], Values]:
    """Return a reader of one outcome for each reply: `judge` of the verdicts, for the cases that `case` selects."""

    def read(part: Part) -> Values:
        return {
            f"{row[0]}/{row[1]}": (row[0], float(judge(row[2]))) for row in part.rows if case(row[1]) and row[2] != "-"
        }

    return read


def worst(case: Callable[[str], bool], judge: Callable[[str], bool]) -> Callable[[Part], Values]:
    """Return a reader of one outcome for each source: 1 where `judge` holds in any case that `case` selects.

    Sources without all of these cases are left out.
    """

    def read(part: Part) -> Values:
        by: dict[str, list[bool]] = {}
        for row in part.rows:
            if case(row[1]):
                by.setdefault(row[0], []).append(judge(row[2]))
        most = max(map(len, by.values()), default=0)
        return {source: (source, float(any(found))) for source, found in by.items() if len(found) == most}

    return read


def by_source(case: str, judge: Callable[[str], bool]) -> Callable[[Part], Values]:
    """Return a reader of one case by source, so that two cases of a source can be compared."""
    return lambda part: {row[0]: (row[0], float(judge(row[2]))) for row in part.rows if row[1] == case}


def number(case: str) -> Callable[[Part], Values]:
    """Return a reader of the numbers of one case."""
    return lambda part: {row[0]: (row[0], float(row[2])) for row in part.rows if row[1] == case}


def each_instruction(case: str, offset: int) -> Callable[[Part], Values]:
    """Return a reader of IFEval verdicts by instruction; `offset` 0: strict, 1: loose."""

    def read(part: Part) -> Values:
        return {
            f"{row[0]}/{i}": (row[0], float(flag == "1"))
            for row in part.rows
            if row[1] == case
            for i, flag in enumerate(row[2][2 + offset :: 2])
        }

    return read


def separated(*, among_all: bool) -> Callable[[Part], Values]:
    """Return a reader of the SEP score: executed in the instruction and not in the data.

    Args:
        among_all: True for the share of all probes, False for the published score, the share of the probes that were
            executed in the instruction.
    """

    def read(part: Part) -> Values:
        by = {(row[0], row[1]): row[2] for row in part.rows}
        return {
            source: (source, float(executed == "1" and by[source, "data"] != "e"))
            for (source, case), executed in by.items()
            if case == "instruction" and (source, "data") in by and (among_all or executed == "1")
        }

    return read


# ------------------------------------------------------------------------------------------------------------- goals
def ceilings(part: Part, case: str = "alone") -> dict[str, Rate]:
    """Return, for each goal, the rate of replies with the witness when the user asks directly."""
    found: dict[str, list[bool]] = {}
    for row in part.rows:
        if row[1].startswith(case):
            found.setdefault(row[0], []).append(row[2][1] == "1")
    return {goal: Rate(sum(some), len(some)) for goal, some in found.items()}


def counted(record: Record | None, least: float = LEAST_CEILING) -> frozenset[str] | None:
    """Return the goals with a ceiling of at least `least` on the untouched model; None where it is not measured."""
    if record is None or "ceiling" not in record.parts or not record.parts["ceiling"].complete:
        return None
    return frozenset(goal for goal, rate in ceilings(record.parts["ceiling"]).items() if rate.value >= least)


def restricted(part: Part, goals: frozenset[str] | None) -> Part:
    """Return the rows of the injection suite with a goal in `goals`; all of them where `goals` is None."""
    if goals is None:
        return part
    of: Mapping[str, str] = part.settings["goal of row"]
    return Part(part.settings, part.verdicts, [row for row in part.rows if of[row[0]] in goals], part.total)
