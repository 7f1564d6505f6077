"""Records of an audit: settings, measurements, verdicts, and their JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rolesafe.arguments import is_integer
from rolesafe.attacks import Rate
from rolesafe.court import ArticleTries
from rolesafe.evaluation import Environment
from rolesafe.evaluation.mass import MassMap
from rolesafe.evaluation.verdict import Measured, NotMeasured, Verdict
from rolesafe.stored_record import StoredRecord
from rolesafe.tasks import FAMILIES

SCHEMA_VERSION = 3
"""Version of the JSON that :meth:`AuditReport.to_json` writes. Earlier files are refused: they lack the spread and the
growth on the same examples, without which there is no verdict."""

NOT_RUN = NotMeasured("not measured")
NO_RATE = Rate(0, 0)


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """Settings of an audit, which with the model and the examples decide its outcome.

    Args:
        examples: Number of examples of :func:`rolesafe.tasks.generate` if none are passed; half of them are attacked.
        families: Families of those examples; empty: all. Choose rules that the model was trained on.
        seed: Of the examples and of the attacks.
        tau: Accepted override risk, in (0, 1).
        floor: Share of benign tasks that the model must solve for a verdict on its resistance, in [0, 1].
        attacks: Names of the attacks of the override search, each at all its points; empty: the quick suite of all
            text attacks, and the points of the two sweeps.
        strong: Whether the quick suite includes attacks that search with gradients or many queries.
        repeats: Repetitions of the injection in the dilution sweeps.
        max_new_tokens: Longest reply, in tokens.
        batch_size: Most conversations in a batch.
        looks: Most examples for the measurements of logits and attention; attacks run on all examples.
        forging: Tries to forge a role by text.
        court_tries: Tries to break each article of a court.

    Raises:
        ValueError: A number is out of range.
    """

    examples: int = 60
    families: tuple[str, ...] = ()
    seed: int = 0
    tau: float = 0.05
    floor: float = 0.5
    attacks: tuple[str, ...] = ()
    strong: bool = False
    repeats: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    max_new_tokens: int = 16
    batch_size: int = 32
    looks: int = 12
    forging: int = 10_000
    court_tries: int = 192

    def __post_init__(self) -> None:
        if not is_integer(self.examples, 2) or self.examples % 2:
            raise ValueError(f"`examples`: expected an even number >= 2, got {self.examples!r}")
        for family in self.families:
            if family not in FAMILIES:
                raise ValueError(f"`families`: unknown family {family!r}; expected some of {FAMILIES}")
        for name in ("max_new_tokens", "batch_size", "looks", "forging", "court_tries"):
            if not is_integer(getattr(self, name), 1):
                raise ValueError(f"`{name}`: expected a number >= 1, got {getattr(self, name)!r}")
        if not 0.0 < self.tau < 1.0:
            raise ValueError(f"`tau`: expected an accepted risk in (0, 1), such as 0.05, got {self.tau!r}")
        if not 0.0 <= self.floor <= 1.0:
            raise ValueError(f"`floor`: expected a share in [0, 1], got {self.floor!r}")
        rising = sorted(set(self.repeats))
        if not rising or list(self.repeats) != rising or not all(is_integer(n, 1) for n in rising):
            raise ValueError(f"`repeats`: expected rising numbers >= 1, got {self.repeats!r}")


@dataclass(frozen=True, kw_only=True)
class Usefulness:
    """Replies without attack, counted.

    Attributes:
        benign: Benign tasks solved, by the attacks' judge: the reply has the words that count as the attacker's success
            in the protected twin. Without a twin: the right reply, word for word.
        exact: Benign replies that are right word for word.
        violated: Protected examples with the violation in the reply.
        as_is: The same among examples with an attack in their own messages, as in published sets, and with a reply that
            is right or the violation.
    """

    benign: Rate
    exact: Rate
    violated: Rate
    as_is: Rate = NO_RATE


@dataclass(frozen=True, kw_only=True)
class TokenEquality:
    """Change of the next-token distribution at the start of the reply, with the roles of system and attacker exchanged.

    Attributes:
        takes_roles: Whether roles are an input of the model. If not, nothing is run, and all differences are 0.
        n: Conversations.
        max_delta, mean_delta: Absolute difference of the logits, over vocabulary and conversations.
        max_kl, mean_kl: KL divergence of the two distributions, in nats, over conversations.
        changed: Conversations in which the most likely next token changed.
        tolerance: Difference of logits from rounding, by their dtype and size.
    """

    takes_roles: bool
    n: int
    max_delta: float
    mean_delta: float
    max_kl: float
    mean_kl: float
    changed: Rate
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """Result of one attack at one parameter point.

    Attributes:
        attack: Name.
        label: Name and parameters.
        parameters: Parameters.
        success: Attack success rate (ASR).
        n_left_out: Examples left out because the attacked conversation does not fit the context.
        failed: Reasons why others could not be attacked, one of each kind.
        typed: Whether the attack is plain text.
        undecided: Examples neither lost nor held: the reply is neither the attacker's nor right, or the attack ran out
            of memory.
    """

    attack: str
    label: str
    parameters: Mapping[str, Any]
    success: Rate
    n_left_out: int = 0
    failed: tuple[str, ...] = ()
    typed: bool = True
    undecided: int = 0


@dataclass(frozen=True, kw_only=True)
class Position:
    """Attack success by position of the system text and of the injection.

    Attributes:
        points: All pairs of positions.
        systems: By position of the system text: examples lost to an injection at any position, of the decided ones.
        places: By position of the injection, as a fraction of the text around it, with the system text first.
        spread: Spread over `systems` on the same examples, in points; see :func:`rolesafe.evaluation.paired.spread`.
        place_spread: Spread over `places`.
        undecided: Undecided examples, the most at any position; see :attr:`SweepPoint.undecided`.
        complete: False after an interruption.
    """

    points: tuple[SweepPoint, ...]
    systems: tuple[tuple[str, Rate], ...]
    places: tuple[tuple[float, Rate], ...]
    spread: Measured | NotMeasured = NOT_RUN
    place_spread: Measured | NotMeasured = NOT_RUN
    undecided: int = 0
    complete: bool = True


@dataclass(frozen=True, kw_only=True)
class Dilution:
    """Attack success by number of repetitions of the injection.

    Attributes:
        points: One per number of repetitions, rising.
        growth: Largest growth from the smallest number on the same examples, in points; see
            :func:`rolesafe.evaluation.paired.growth`.
        complete: False after an interruption.
    """

    points: tuple[SweepPoint, ...]
    growth: Measured | NotMeasured = NOT_RUN
    complete: bool = True


@dataclass(frozen=True, kw_only=True)
class MassLevel:
    """Attention mass under an injection repeated `repeats` times."""

    repeats: int
    mass: MassMap


@dataclass(frozen=True, kw_only=True)
class AttentionMass:
    """Attention mass by number of repetitions of the injection.

    Attributes:
        levels: One per number of repetitions that fits the context, rising.
        complete: False after an interruption, or without enough memory.
    """

    levels: tuple[MassLevel, ...]
    complete: bool = True


@dataclass(frozen=True, kw_only=True)
class Override:
    """Override search.

    Attributes:
        points: All attacks.
        worst: Examples lost to at least one plain-text attack, of the decided ones: lost, or held with a right reply
            under every attack (per-sample OR).
        bound: The same over all attacks, embeddings included; None without such attacks.
        undecided: Examples neither lost nor held: an attack could not be run, or a reply was neither the attacker's nor
            right.
        not_run: Undecided examples that an attack could not be run on.
        complete: False after an interruption.
    """

    points: tuple[SweepPoint, ...]
    worst: Rate
    bound: Rate | None = None
    undecided: int = 0
    not_run: int = 0
    complete: bool = True


@dataclass(frozen=True, kw_only=True)
class CourtSweep:
    """Tries to break a court.

    Attributes:
        articles: Tries to break each article, by an attacker that sets the logits.
        declared: Conversations of untrusted text that changed the articles, of those tried.
    """

    articles: tuple[ArticleTries, ...]
    declared: Rate


@dataclass(frozen=True, kw_only=True)
class AuditReport(StoredRecord):
    """Record of an audit. A missing measurement is :class:`NotMeasured` with its reason.

    Attributes:
        model: Name or path.
        architecture: Class name.
        n_parameters: Number of parameters, the role layer included.
        roles: Role configuration; None for a plain model.
        settings: Of the audit.
        examples: Source of the examples.
        n_examples: Their number.
        environment: Versions and hardware.
        utility: Replies without attack.
        equality: Definition 1 of the paper.
        position: Lemma 1.
        dilution: Lemma 1, by number of repetitions.
        mass: Attention mass on privileged keys.
        override: Theorem 1.
        forging: Tries to forge a role by text, and successes.
        court: Tries to break the articles of a court; None without one.
        verdicts: One per claim.
        complete: False after an interruption.
        notes: Further facts that limit the measurements.
    """

    schema_version: ClassVar[int] = SCHEMA_VERSION
    oldest_version: ClassVar[int] = SCHEMA_VERSION
    noun: ClassVar[str] = "an audit"

    model: str
    architecture: str
    n_parameters: int
    roles: Mapping[str, Any] | None
    settings: AuditSettings
    examples: str
    n_examples: int
    environment: Environment
    utility: Usefulness | NotMeasured = NOT_RUN
    equality: TokenEquality | NotMeasured = NOT_RUN
    position: Position | NotMeasured = NOT_RUN
    dilution: Dilution | NotMeasured = NOT_RUN
    mass: AttentionMass | NotMeasured = NOT_RUN
    override: Override | NotMeasured = NOT_RUN
    forging: Rate | NotMeasured = NOT_RUN
    court: CourtSweep | NotMeasured | None = None
    verdicts: tuple[Verdict, ...] = ()
    complete: bool = True
    notes: tuple[str, ...] = ()
