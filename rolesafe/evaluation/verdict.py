"""Verdicts of an audit and of a study: one claim, its result and the numbers behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["ratio", "points", "tries"]
"""``"points"``: percentage points."""


@dataclass(frozen=True)
class NotMeasured:
    """Missing measurement.

    Attributes:
        reason: Why it is missing, for the user.
    """

    reason: str


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Value with its 95% interval.

    Attributes:
        value: In `unit`.
        interval: Both ends, in `unit`; None without an interval.
        unit: Unit of both.
    """

    value: float
    interval: tuple[float, float] | None = None
    unit: Unit


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Result of checking one claim.

    Attributes:
        claim: The claim in two or three words.
        passed: True or False; None if the numbers do not decide, or there are none.
        measured: The value that decides, or the reason for its absence; None for a verdict from several numbers.
        target: The target in words, for verdicts that have one.
        clear: Whether the whole interval lies on one side of the target.
        text: The verdict in one sentence.
        numbers: The numbers behind it, one line each.
    """

    claim: str
    passed: bool | None
    measured: Measured | NotMeasured | None = None
    target: str = ""
    clear: bool = False
    text: str = ""
    numbers: tuple[str, ...] = ()

    @property
    def standing(self) -> str:
        """Removed: raise an error that names `passed`."""
        raise AttributeError("`standing`: removed. Use `passed`: True for 'good', False for 'bad', None for 'open'.")
