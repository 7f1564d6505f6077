"""What a report shows, whatever writes it: the terminal, Markdown, a chart or a page draw one :class:`View`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rolesafe.evaluation import SeedMean

Kind = Literal["utility", "attack"]
"""Of a row: higher is better for "utility", lower for "attack"."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: `means` and `n` stand in the order of :attr:`View.models`; None: not measured."""

    label: str
    kind: Kind
    means: tuple[SeedMean | None, ...]

    @property
    def versus(self) -> str:
        """The last model against the first one, in words: a difference for utility, a ratio for an attack.

        Where the last model's share is 0 there is no ratio: the least one that both intervals allow is given. Where the
        first model's interval reaches into the last one's, nothing is claimed.
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
    """Attack success of one model against the number of repetitions of the injection."""

    model: str
    points: tuple[tuple[int, SeedMean], ...]


@dataclass(frozen=True, kw_only=True)
class ModelLine:
    """A model in words: what the page says below its name."""

    name: str
    about: str


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What one model answered, and whether the attacker won."""

    model: str
    text: str
    leaked: bool


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """One attacked conversation as (role, text) pairs, and the replies of the models to it."""

    title: str
    messages: tuple[tuple[str, str], ...]
    replies: tuple[Reply, ...]


@dataclass(frozen=True, kw_only=True)
class View:
    """A whole report.

    Args:
        models: The models compared; the first is the baseline.
        rows: The table: utility first, then attacks.
        curves: Attack success against repetitions.
        n_seeds: Seeds that are in the means.
        headline: One sentence: what came out.
        partial: Why the run is not complete; None where it is.
        settings: Names and values in groups, such as the configuration and the environment.
        notes: What a reader of the figures has to know, one sentence each.
        command: What reproduces the run.
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
        """The number of seeds, in words."""
        return "1 seed" if self.n_seeds == 1 else f"{self.n_seeds} seeds"

    @property
    def with_versus(self) -> bool:
        """Whether there are models to compare."""
        return len(self.models) > 1


def percent(share: float) -> str:
    """`share` as a percentage with one decimal."""
    return f"{100 * share:.1f}%"


def interval(mean: SeedMean) -> str:
    """The interval of `mean`, in percent."""
    return f"{100 * mean.low:.1f} to {100 * mean.high:.1f}"
