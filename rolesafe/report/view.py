"""Contents of a report, shared by terminal, Markdown, chart and page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rolesafe.evaluation import SeedMean

Kind = Literal["utility", "attack"]
"""Kind of a row: higher is better for "utility", lower for "attack"."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Row of the table; `means` are in the order of :attr:`View.models`, None: not measured."""

    label: str
    kind: Kind
    means: tuple[SeedMean | None, ...]

    @property
    def versus(self) -> str:
        """Comparison of the last model with the first: a difference for utility, a ratio for an attack.

        If the last model's share is 0, the smallest ratio that both intervals allow. If the intervals overlap, no
        ratio.
        """
        if len(self.means) < 2 or self.means[0] is None or self.means[-1] is None:
            return ""
        first, last = self.means[0], self.means[-1]
        if self.kind == "utility":
            points = 100 * (last.value - first.value)
            return "±0.0 points" if abs(points) < 0.05 else f"{points:+.1f} points"
        if first.low <= last.high and last.low <= first.high:
            return "intervals overlap"
        if last.value > first.value:
            return "higher" if first.value == 0 else f"{last.value / first.value:.1f}x higher"
        if last.value == 0:
            return f"≥ {first.low / last.high:.1f}x lower"
        return f"{first.value / last.value:.1f}x lower"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Attack success of one model by the number of repetitions of the injection."""

    model: str
    points: tuple[tuple[int, SeedMean], ...]


@dataclass(frozen=True, kw_only=True)
class ModelLine:
    """Name of a model and one line about it."""

    name: str
    about: str


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Reply of one model, and whether the attack succeeded."""

    model: str
    text: str
    leaked: bool


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """Attacked conversation as (role, text) pairs, with the replies of the models."""

    title: str
    messages: tuple[tuple[str, str], ...]
    replies: tuple[Reply, ...]


@dataclass(frozen=True, kw_only=True)
class View:
    """Contents of a report.

    Args:
        models: Models; the first is the baseline.
        rows: Rows of the table: utility first, then attacks.
        curves: Attack success by repetitions.
        n_seeds: Number of seeds in the means.
        headline: Main result in one sentence.
        partial: Why the run is not complete; None where it is.
        settings: Names and values in groups, such as the configuration and the environment.
        notes: Caveats, one sentence each.
        command: Command that reproduces the run.
        transcripts: Examples of attacked conversations.
    """

    models: tuple[ModelLine, ...]
    rows: tuple[Row, ...]
    curves: tuple[Curve, ...]
    n_seeds: int
    headline: str
    partial: str | None = None
    settings: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    notes: tuple[str, ...] = ()
    command: str = ""
    transcripts: tuple[Transcript, ...] = ()

    @property
    def seeds(self) -> str:
        """Number of seeds, such as "3 seeds"."""
        return "1 seed" if self.n_seeds == 1 else f"{self.n_seeds} seeds"

    @property
    def with_versus(self) -> bool:
        """True with at least two models."""
        return len(self.models) > 1


def percent(share: float) -> str:
    """Return `share` as a percentage with one decimal."""
    return f"{100 * share:.1f}%"


def interval(mean: SeedMean) -> str:
    """Return the interval of `mean`, in percent."""
    return f"{100 * mean.low:.1f} to {100 * mean.high:.1f}"
