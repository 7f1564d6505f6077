"""Rows of a depth report, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rolesafe.depth_report.records import Curve, DepthReport, Point
from rolesafe.evaluation.verdict import NotMeasured

Columns = tuple[tuple[str, Curve], ...]


@dataclass(frozen=True)
class Section:
    """One table of a report.

    Attributes:
        title: Title.
        axis: Name of the first column.
        columns: Name and curve of each further column.
        percent: Whether the numbers are shares.
        note: Explanation in one sentence; the reason where nothing is measured.
    """

    title: str
    axis: str
    columns: Columns
    percent: bool
    note: str = ""

    @property
    def rows(self) -> list[tuple[int, list[Point | None]]]:
        """Return the depth and the point of each column, or None, by rising depth."""
        found = [{point.at: point for point in curve} for _, curve in self.columns]
        return [(at, [points.get(at) for points in found]) for at in sorted(set().union(*found))]


def sections(report: DepthReport) -> Iterator[Section]:
    """Iterate over the tables of a report."""
    rollouts, recovery, divergence = report.rollouts, report.recovery, report.divergence
    if isinstance(rollouts, NotMeasured):
        yield Section("Harm information", "tokens", (), False, rollouts.reason)
    else:
        columns: Columns = (("information", rollouts.information), ("variance left", rollouts.tail))
        note = "Information of the tokens from this depth to the next one; variance of the harm that is left after it."
        yield Section("Harm information", "tokens", columns, False, note)
    if isinstance(recovery, NotMeasured):
        yield Section("Recovery after forced tokens", "forced", (), True, recovery.reason)
    else:
        named = (("model", recovery.model), ("base", recovery.base), ("predicted", recovery.predicted))
        columns = tuple((name, curve) for name, curve in named if curve)
        note = f"Probability of a token that begins a refusal. Lowest over all prefixes: {100 * recovery.floor:.2g}%."
        if recovery.error is not None:
            note += f" Mean error of the prediction: {recovery.error:.3f}."
        yield Section("Recovery after forced tokens", "forced", columns, True, note)
    if isinstance(divergence, NotMeasured):
        yield Section("KL divergence from the base model", "tokens", (), False, divergence.reason)
    else:
        columns = (
            ("KL at the token", divergence.kl),
            ("KL to the next depth", divergence.blocks),
            ("harm change", divergence.harm_change),
            ("functional, at least", divergence.functional),
            ("incidental, at most", divergence.incidental),
        )
        note = (
            "In nats, along the model's own replies. Harm change: of these tokens, if the base model writes the rest; "
            "the functional KL is at least twice its square."
        )
        yield Section("KL divergence from the base model", "tokens", columns, False, note)
    for title, axis, sweeps in (
        ("Prefilling success", "forced", report.prefilling),
        ("Insertion success by position", "position", report.insertion),
    ):
        columns = tuple(
            (f"{one.name}, {part}", curve) for one in sweeps for part, curve in (("whole", one.whole), ("own", one.own))
        )
        note = "Whole: with the forced tokens. Own: in the model's own tokens." if sweeps else "not measured"
        yield Section(title, axis, columns, True, note)


def headline(report: DepthReport) -> list[str]:
    """Return horizon and shortest prefixes in sentences."""
    lines = []
    if not isinstance(report.rollouts, NotMeasured):
        shown = report.rollouts.horizon
        most = max((point.at for point in report.rollouts.tail), default=0)

        def depth(value: float | None) -> str:
            return f"more than {most}" if value is None else f"{value:.0f}"

        lines.append(
            f"harm horizon: {depth(shown.value)} tokens (95% interval {depth(shown.low)} to {depth(shown.high)}) at "
            f"variance {report.settings.tolerance}; harm without attack {cell(report.rollouts.harm, True)}"
        )
    if not isinstance(report.shortest, NotMeasured):
        found = report.shortest
        if found.attack:
            broken = sorted(k for k in found.attack if k is not None)
            median = f"median {broken[len(broken) // 2]}, least {broken[0]}" if broken else "none of the measured ones"
            lines.append(f"shortest attack prefix: {median} tokens; {len(broken)} of {len(found.attack)} broken")
        if found.recovery:
            below = sorted(k for k in found.recovery if k is not None)
            least = f"least {below[0]} tokens" if below else "none"
            text = f"recovery below {report.settings.target}: {least}; {len(below)} of {len(found.recovery)} examples"
            if found.has_prediction:
                text += f"; predicted: {'no prefix' if found.predicted is None else f'{found.predicted} tokens'}"
            lines.append(text)
    return lines


def cell(point: Point | None, percent: bool) -> str:
    """Return value and interval, such as ``"12.5% [3.5, 36.0]"``."""
    if point is None or point.value is None:
        return "-"
    scale, digits = (100.0, 1) if percent else (1.0, 3)
    text = f"{scale * point.value:.{digits}f}{'%' if percent else ''}"
    if point.low is None or point.high is None:
        return text
    return f"{text} [{scale * point.low:.{digits}f}, {scale * point.high:.{digits}f}]"
