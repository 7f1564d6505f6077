"""Contents of a run's report, shared by HTML and Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rolesafe.evaluation import SeedMean, Versus
from rolesafe.evaluation.verdict import Verdict
from rolesafe.report.view import Transcript

Part = Literal["", "baseline", "candidate", "published"]


@dataclass(frozen=True, kw_only=True)
class Against:
    """Comparison of two mechanisms; the p values are Holm-corrected for the number of mechanisms."""

    versus: Versus
    p_mcnemar: float
    p_bootstrap: float


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """Row of the table. None: not measured.

    Attributes:
        name: Name of the mechanism.
        part: Role in the comparison.
        seeds: Training seeds.
        n_parameters: Parameters of the whole model.
        config: Configuration in words; empty for a plain model.
        utility: Benign questions answered rightly.
        refused: False refusals.
        sep: SEP score, of the probes executed in the instruction.
        sep_all: SEP score, of all probes.
        worst: Per-sample worst case over all typed attacks.
        bound: The same with untyped attacks.
        against_baseline: Its worst case against the baseline's.
        against_best: Its worst case against that of the best published mechanism.
    """

    name: str
    part: Part
    seeds: tuple[int, ...]
    n_parameters: int
    config: str
    utility: SeedMean | None
    refused: SeedMean | None
    sep: SeedMean | None
    sep_all: SeedMean | None
    worst: SeedMean | None
    bound: SeedMean | None
    against_baseline: Against | None
    against_best: Against | None


@dataclass(frozen=True, kw_only=True)
class Heat:
    """Attack success by attack family and mechanism.

    Attributes:
        families: Names of the attack families.
        untyped: Those that no user can type.
        rows: One per mechanism: success for each family; None: not measured.
    """

    families: tuple[str, ...]
    untyped: tuple[str, ...]
    rows: tuple[tuple[SeedMean | None, ...], ...]


Scale = Literal["linear", "log", "places"]


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Attack success along one parameter, one curve per mechanism.

    Attributes:
        title: Title of the chart.
        about: One sentence on how it was measured.
        scale: Scale of the axis; "places" has names at equal distances.
        ticks: Positions on the axis with their labels.
        lines: For each mechanism (position, success) pairs, ascending; empty: not measured.
    """

    title: str
    about: str
    scale: Scale
    ticks: tuple[tuple[float, str], ...]
    lines: tuple[tuple[tuple[float, SeedMean], ...], ...]


@dataclass(frozen=True, kw_only=True)
class Mass:
    """Attention mass on privileged keys of one mechanism, mean over seeds: [layer][head]."""

    name: str
    layers: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class SizeView:
    """All mechanisms at one model size.

    Attributes:
        label: Label of the size; empty where there is only one.
        best: The best published mechanism.
        mechanisms: Rows of the table; all other tuples have the same order.
        heat: Attack success by family.
        curves: Attack success along parameters.
        masses: Attention mass, where it was measured.
        transcripts: Attacked conversations with the replies of baseline, best published and candidate.
    """

    label: str
    best: str | None
    mechanisms: tuple[Mechanism, ...]
    heat: Heat
    curves: tuple[Curves, ...]
    masses: tuple[Mass, ...]
    transcripts: tuple[Transcript, ...]


@dataclass(frozen=True, kw_only=True)
class ComparisonView:
    """Contents of the report.

    Attributes:
        candidate: Mechanism that the verdicts are about.
        baseline: Model without roles.
        sizes: One view per model size.
        verdicts: For each target the verdicts of all sizes, in their order.
        n_seeds: Number of seeds in the means.
        partial: Why the run is not complete; None where it is.
        notes: Caveats, one sentence each.
        settings: Names and values in groups.
        command: Command that reproduces the run.
    """

    candidate: str
    baseline: str
    sizes: tuple[SizeView, ...]
    verdicts: tuple[tuple[Verdict, ...], ...]
    n_seeds: int
    partial: str | None = None
    notes: tuple[str, ...] = ()
    settings: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    command: str = ""

    @property
    def seeds(self) -> str:
        """The number of seeds, in words."""
        return "1 seed" if self.n_seeds == 1 else f"{self.n_seeds} seeds"
