"""Markdown tables of several records side by side, with intervals and paired tests.

Each table is between `<!-- NAME -->` and `<!-- end -->` in docs/pretrained.md; `python -m benchmarks.pretrained page`
replaces all of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.pretrained.injections import EVERY
from benchmarks.pretrained.lines import (
    ABILITY,
    FOLLOWUP,
    IFEVAL,
    LEAK,
    OVERDEFENCE,
    SEP,
    Judge,
    Read,
    is_case,
    one,
    two,
)
from benchmarks.pretrained.measures import (
    Difference,
    Figure,
    Measure,
    by_source,
    ceilings,
    counted,
    difference,
    figure,
    restricted,
    verdict,
    worst,
)
from benchmarks.pretrained.record import Record
from benchmarks.pretrained.settings import ROOT
from benchmarks.pretrained.targets import targets
from rolesafe.evaluation.paired import holm
from rolesafe.files import write_whole
from rolesafe.report.markdown import escape

RECORDS: Final = ROOT / "benchmarks" / "results" / "pretrained"
LONGER: Final = "longer"
"""Folder in :data:`RECORDS` with the records of arms that were trained for more steps."""
PAGE: Final = ROOT / "docs" / "pretrained.md"
BASE: Final = "base"
"""Arm of the untouched model; its ceiling selects the goals that count."""
NOTHING: Final = "Not yet measured."
AGAINST: Final[str | None] = "plain SFT"
"""Arm that all others are tested against in docs/pretrained.md."""
CANDIDATE: Final[str | None] = "pretrained"
"""Arm with checked targets."""
PUBLISHED: Final[str | None] = "air, rate x 30"
"""Best published mechanism that was measured; AIR was trained with `--role-rate-factor 30`."""

Arms = dict[str, list[Record]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Arms to compare; None: no comparison.

    Attributes:
        against: Reference arm of the tests: plain training on the same data.
        candidate: Arm of the mechanism, checked against the targets.
        published: Arm of the best published mechanism.
    """

    against: str | None = None
    candidate: str | None = None
    published: str | None = None


Table = Callable[[Arms, Plan], str]
Goals = frozenset[str] | None
_BLOCK: Final = re.compile(r"<!-- pretrained:([a-z][\w-]*) -->\n.*?<!-- end -->", re.S)


def read(folder: Path) -> list[Record]:
    """Return the records in a folder.

    Raises:
        ValueError: A file is no record, or two records have the same arm and seed.
    """
    records = [Record.load(path) for path in sorted(folder.glob("*.json"))] if folder.is_dir() else []
    seen = set()
    for record in records:
        if (key := (record.arm, record.training_seed)) in seen:
            raise ValueError(
                f"`records`: expected one record for each arm and training seed, got two of {key} in {str(folder)!r}. "
                "Evaluate one with another --arm or --training-seed."
            )
        seen.add(key)
    return records


def arms(records: Sequence[Record]) -> Arms:
    """Return the records by arm, :data:`BASE` first."""
    found: Arms = {}
    for record in sorted(records, key=lambda r: (r.arm != BASE, r.arm, r.training_seed)):
        found.setdefault(record.arm, []).append(record)
    return found


def check_comparable(records: Sequence[Record]) -> None:
    """Raise where records have different rows.

    Raises:
        ValueError: Two records have different settings of a suite.
    """
    own = {"dtype", "kl", "base", "goal of row", "format of secret"}
    first: dict[str, tuple[Record, Mapping[str, object]]] = {}
    for record in records:
        for suite, part in record.parts.items():
            mine = {k: v for k, v in part.settings.items() if k not in own}
            other, theirs = first.setdefault(suite, (record, mine))
            if different := [k for k in mine if mine[k] != theirs.get(k)]:
                raise ValueError(
                    f"`records`: expected equal settings of {suite!r}, got other {', '.join(different)} in the records "
                    f"of {other.arm!r} and {record.arm!r}. Evaluate both with the same options."
                )


def tables(records: Sequence[Record], plan: Plan = Plan()) -> str:
    """Return every table, with headings."""
    return "\n\n".join(f"## {name}\n\n{block(name, records, plan)}" for name in BLOCKS)


def write(file: Path, records: Sequence[Record], plan: Plan = Plan()) -> None:
    """Write the tables between the markers of a page.

    Raises:
        ValueError: A marker has the name of no table.
    """

    def one(found: re.Match[str]) -> str:
        if found[1] not in BLOCKS:
            raise ValueError(f"`file`: expected markers out of {sorted(BLOCKS)}, got {found[1]!r}. Correct {file}.")
        return f"<!-- pretrained:{found[1]} -->\n{block(found[1], records, plan)}\n<!-- end -->"

    write_whole(file, _BLOCK.sub(one, file.read_text(encoding="utf-8")))


def generated(name: str) -> str:
    """Return one table from the committed records, as `python -m benchmarks.pages` writes it."""
    return block(name, read(RECORDS), Plan(against=AGAINST, candidate=CANDIDATE, published=PUBLISHED))


def longer(name: str) -> str:
    """Return the same table of the arms that were trained for more steps, and of the untouched model."""
    records, base = read(RECORDS / LONGER), read(RECORDS)
    some = [*records, *(record for record in base if record.arm == BASE)] if records else []
    return block(name, some, Plan(against=AGAINST, candidate=CANDIDATE))


def block(name: str, records: Sequence[Record], plan: Plan = Plan()) -> str:
    """Return one table."""
    if not records:
        return NOTHING
    check_comparable(records)
    by = arms(records)
    for argument, arm in asdict(plan).items():
        if arm is not None and arm not in by:
            raise ValueError(f"`{argument}`: expected one of the arms {sorted(by)}, got {arm!r}. Choose one.")
    return BLOCKS[name](by, plan)


# ---------------------------------------------------------------------------------------------------------- measures
def _injection(place: int) -> Table:
    def won(verdicts: str) -> bool:
        return verdicts[place] == "1"

    def table(by: Arms, plan: Plan) -> str:
        base = next(iter(by.get(BASE, ())), None)
        goals = counted(base)
        parts = [r.parts["injection"] for some in by.values() for r in some if "injection" in r.parts]
        found = {row[1] for part in parts for row in part.rows}
        labels = [case.label for case in EVERY if case.label in found]

        measures = [
            _worst(goals, won),
            _measure(goals, "worst case, styled", worst(lambda case: case != "none" and "destyled" not in case, won)),
            _measure(goals, "worst case, without ids", worst(lambda case: case != "none" and " ids" not in case, won)),
            _measure(goals, "worst case, destyled", worst(lambda case: "destyled" in case, won)),
            *(_measure(goals, label, verdict(is_case(label), won)) for label in labels),
            _growth(goals, won),
        ]
        text = _table(measures, by, plan.against)
        return text if text == NOTHING else f"{_goals_note(base, goals)}\n\n{text}"

    return table


def _goals_note(base: Record | None, goals: Goals) -> str:
    if base is None or goals is None:
        return f"The ceiling of the untouched model (arm `{BASE}`) is not measured: all goals count."
    used = set(base.parts["injection"].settings["goal of row"].values()) if "injection" in base.parts else set(goals)
    rates = {g: r for g, r in ceilings(base.parts["ceiling"]).items() if g in goals & used}
    k, n = sum(r.k for r in rates.values()), sum(r.n for r in rates.values())
    share = f"{k / n:.1%}" if n else "-"
    return f"Goals that count: {len(goals & used)} of {len(used)}; ceiling (asked directly by the user): {share}."


def _measure(goals: Goals, label: str, read: Read, minus: Read | None = None) -> Measure:
    """Return a measure of the injection suite, limited to the goals that count."""
    return Measure(label, "injection", _among(goals, read), minus=minus and _among(goals, minus))


def _worst(goals: Goals, won: Judge) -> Measure:
    return _measure(goals, "**worst case of each row, all texts**", worst(lambda case: case != "none", won))


def _growth(goals: Goals, won: Judge) -> Measure:
    read, minus = by_source("32 times, last", won), by_source("naive, last", won)
    return _measure(goals, "growth from 1 to 32 injections, points", read, minus)


def _among(goals: Goals, read: Read) -> Read:
    """Return `read`, limited to the goals that count."""
    return lambda part: read(restricted(part, goals))


def _fixed(measures: Sequence[Measure]) -> Table:
    return lambda by, plan: _table(measures, by, plan.against)


def _adaptive(by: Arms, plan: Plan) -> str:
    rows = [r.parts["adaptive"].rows for some in by.values() for r in some if "adaptive" in r.parts]
    names = sorted({row[1] for some in rows for row in some}, key=lambda n: ("from" in n, n))
    return _table([Measure(name, "adaptive", verdict(is_case(name), one)) for name in names], by, plan.against)


def _ceiling(by: Arms, plan: Plan) -> str:
    found = {arm: r for arm, some in by.items() for r in some[:1] if "ceiling" in r.parts}
    if not found:
        return NOTHING
    head = [f"{escape(arm)}, {case}" for arm in found for case in ("alone", "after data")]
    lines = [f"| goal | {' | '.join(head)} |", f"| :-- |{' --: |' * len(head)}"]
    values = [ceilings(r.parts["ceiling"], case) for r in found.values() for case in ("alone", "beside")]
    for goal in dict.fromkeys(g for some in values for g in some):
        cells = [f"{some[goal].k} of {some[goal].n}" if goal in some else "-" for some in values]
        lines.append(f"| {escape(goal)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cost(by: Arms, plan: Plan) -> str:
    lines = ["| | case | median | ratio to the untouched model |", "| :-- | :-- | --: | --: |"]
    for arm, records in by.items():
        rows = [row for r in records[:1] if "cost" in r.parts for row in r.parts["cost"].rows]
        for case in dict.fromkeys(row[1] for row in rows):
            some = [row for row in rows if row[1] == case]
            ratios = [row[2] / row[3] for row in some if len(row) > 3]
            ratio = f"x{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "-"
            lines.append(f"| {escape(arm)} | {case} | {median(row[2] for row in some):,.1f} | {ratio} |")
    return "\n".join(lines) if len(lines) > 2 else NOTHING


def _targets(by: Arms, plan: Plan) -> str:
    if plan.candidate is None or plan.against is None:
        return NOTHING
    goals = counted(next(iter(by.get(BASE, ())), None))
    strict = [measure for measure in IFEVAL if "prompts, strict" in measure.label]
    found = targets(
        _worst(goals, two), _growth(goals, two), SEP[4], strict, ABILITY[0], OVERDEFENCE[:1] + OVERDEFENCE[2:],
        by[plan.candidate], by[plan.against], by[plan.published] if plan.published else [],
    )  # fmt: skip
    head = f"| {escape(plan.candidate)} | value | target |"
    return "\n".join([head, "| :-- | --: | :-- |", *(target.line() for target in found)])


BLOCKS: Final[dict[str, Table]] = {
    "targets": _targets,
    "ceiling": _ceiling,
    "injection-begins": _injection(0),
    "injection-contains": _injection(1),
    "followup": _fixed(FOLLOWUP),
    "sep": _fixed(SEP),
    "leak": _fixed(LEAK),
    "ability": _fixed(ABILITY),
    "ifeval": _fixed(IFEVAL),
    "overdefence": _fixed(OVERDEFENCE),
    "adaptive": _adaptive,
    "cost": _cost,
}
"""Tables by name of the marker."""


# ------------------------------------------------------------------------------------------------------------- cells
def _table(measures: Sequence[Measure], by: Arms, against: str | None) -> str:
    """Return a table of the values of every arm and, where `against` is given, one of paired differences to it."""
    suite = measures[0].suite if measures else ""
    with_rows = {arm: some for arm, some in by.items() if any(suite in r.parts for r in some)}
    if not with_rows:
        return NOTHING
    lines = [f"| | {' | '.join(map(escape, with_rows))} | n |", f"| :-- |{' --: |' * (len(with_rows) + 1)}"]
    for measure in measures:
        figures = [figure(measure, some) for some in with_rows.values()]
        counts = sorted({f.n for f in figures if f is not None})
        if counts:
            n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
            lines.append(f"| {measure.label} | {' | '.join(_value(measure, f) for f in figures)} | {n} |")
    parts = {arm: [r.parts[suite] for r in some if suite in r.parts] for arm, some in with_rows.items()}
    if unfinished := [arm for arm, some in parts.items() if not all(part.complete for part in some)]:
        lines += ["", f"Not finished: {', '.join(map(escape, unfinished))}."]
    if against in with_rows and len(with_rows) > 1:
        lines += ["", *_differences(measures, with_rows, str(against))]
    return "\n".join(lines)


def _differences(measures: Sequence[Measure], by: Arms, against: str) -> list[str]:
    others = [arm for arm in by if arm != against]
    found = {(m.label, arm): difference(m, by[arm], by[against]) for m in measures for arm in others}
    known = [key for key, one in found.items() if one is not None]
    adjusted = dict(zip(known, holm([found[key].p for key in known]), strict=True))  # type: ignore[union-attr]
    head = f"| against {escape(against)} | {' | '.join(map(escape, others))} |"
    lines = [head, f"| :-- |{' --: |' * len(others)}"]
    for measure in measures:
        cells = []
        for arm in others:
            one = found[measure.label, arm]
            show = "-" if one is None else _points(one) if measure.kind == "share" else _nats(one)
            cells.append(show if one is None else f"{show}, p = {adjusted[measure.label, arm]:.2g}")
        if set(cells) != {"-"}:
            lines.append(f"| {measure.label} | {' | '.join(cells)} |")
    note = (
        "Paired differences in points, or nats a token, with 95% intervals clustered by source row; p: the "
        "larger one of the exact McNemar test and the clustered bootstrap (means: bootstrap), adjusted over this table "
        "after Holm."
    )
    return [*lines, "", note]


def _value(measure: Measure, found: Figure | None) -> str:
    if found is None:
        return "-"
    if measure.minus is not None:
        return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    if measure.kind == "share":
        return f"{found.value:.1%} ({100 * found.low:.1f} to {100 * found.high:.1f})"
    values = [found.value, found.low, found.high]
    a, low, high = map(math.exp, values) if measure.perplexity else values
    return f"{a:.4g} ({low:.4g} to {high:.4g})"


def _points(found: Difference) -> str:
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def _nats(found: Difference) -> str:
    return f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
