"""Numbers and verdicts as text, the same in HTML and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.override_resistance.run_report.view import Against, Mechanism
from rolesafe.evaluation.verdict import Measured, NotMeasured, Unit, Verdict

NOTHING = "\u2013"
"""Printed where nothing was measured."""


def outcome(verdict: Verdict) -> str:
    """Return the result of a target, such as "met, uncertain"."""
    if verdict.passed is None:
        return "not measured" if isinstance(verdict.measured, NotMeasured) else "too few"
    return ("met" if verdict.passed else "missed") + ("" if verdict.clear else ", uncertain")


def measured(verdict: Verdict) -> tuple[str, str]:
    """Return the measured value and its 95% interval; the latter is empty where there is none."""
    if not isinstance(verdict.measured, Measured):
        return NOTHING, ""
    one = verdict.measured
    unit = {"ratio": "x", "points": " points", "tries": ""}[one.unit]
    value = f"{figure(one.value, one.unit)}{unit}"
    if one.interval is None:
        return value, ""
    low, high = (figure(end, one.unit) for end in one.interval)
    return value, f"{low} to {high}"


def detail(verdict: Verdict) -> str:
    """Return the numbers behind a verdict, or why there are none."""
    return verdict.measured.reason if isinstance(verdict.measured, NotMeasured) else verdict.text


def figure(value: float, unit: Unit) -> str:
    """Return a number in its unit with its significant digits."""
    if unit == "tries":
        return f"{value:,.0f}"
    if unit == "points":
        return "0.0" if abs(value) < 0.05 else f"{value:+.1f}"
    return ratio(value)


def ratio(value: float) -> str:
    """Return a ratio with two significant digits."""
    if math.isinf(value):
        return "∞"
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.3f}"


def against(test: Against | None) -> tuple[str, str, str]:
    """Return ratio, interval and p values of a comparison; empty strings without one."""
    if test is None:
        return "", "", ""
    one = test.versus
    value = "0 against 0" if one.ratio is None else f"{ratio(one.ratio)}x"
    span = "" if one.ratio_interval is None else f"{ratio(one.ratio_interval[0])} to {ratio(one.ratio_interval[1])}"
    return value, span, f"p {p_value(test.p_mcnemar)} / {p_value(test.p_bootstrap)}"


def p_value(value: float) -> str:
    """Return a p value, or "< 0.001"."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def configuration(one: Mechanism) -> str:
    """Return parameters, seeds and configuration of a mechanism."""
    seeds = f"{len(one.seeds)} seed{'s' * (len(one.seeds) != 1)}"
    return ", ".join(part for part in (f"{one.n_parameters:,} parameters", seeds, one.config) if part)


def titles(rows: Sequence[Sequence[Verdict]]) -> tuple[str, ...]:
    """Return the claims of the targets; sizes with different rivals are joined."""
    return tuple(" / ".join(dict.fromkeys(verdict.claim for verdict in row)) for row in rows)
