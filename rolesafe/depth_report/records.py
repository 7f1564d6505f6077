"""Records of a depth report: settings, measurements, and their JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rolesafe.arguments import is_integer, is_number
from rolesafe.depth import Estimate
from rolesafe.evaluation import Environment
from rolesafe.evaluation.verdict import NotMeasured
from rolesafe.stored_record import StoredRecord
from rolesafe.tasks import FAMILIES

SCHEMA_VERSION = 1
"""Version of the JSON that :meth:`DepthReport.to_json` writes."""

NOT_RUN = NotMeasured("not measured")


@dataclass(frozen=True, kw_only=True)
class DepthSettings:
    """Settings of a depth report, which with the model and the examples decide its numbers.

    Args:
        examples: Number of protected examples of :func:`rolesafe.tasks.generate` if none are passed.
        families: Families of those examples; empty: all. Choose rules that the model was trained on.
        seed: Seed of the examples, rollouts and attacks.
        samples: Rollouts of each conversation. With 12 conversations 16 make 192 rollouts, enough to show a horizon at
            a tolerance of 0.01.
        max_new_tokens: Longest rollout, in tokens.
        forced: Numbers of forced tokens, rising.
        lengths: Numbers of tokens of an inserted span.
        continued: Tokens that the model writes after forced ones.
        recovery: Words that begin a refusal; empty: the first token of the refusals.
        strength: Strength mu of the objective that the model was trained with, for the predicted recovery; None: no
            prediction.
        discount: Its discount gamma, in (0, 1].
        target: Recovery probability that counts as recovered, in (0, 1).
        tolerance: Variance of harm that counts as decided, in (0, 0.25).
        batch_size: Most rows in a batch; changes no number.

    Raises:
        ValueError: A value is out of range.
    """

    examples: int = 12
    families: tuple[str, ...] = ()
    seed: int = 0
    samples: int = 16
    max_new_tokens: int = 32
    forced: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    lengths: tuple[int, ...] = (1, 4)
    continued: int = 16
    recovery: tuple[str, ...] = ()
    strength: float | None = None
    discount: float = 1.0
    target: float = 0.5
    tolerance: float = 0.01
    batch_size: int = 32

    def __post_init__(self) -> None:
        for family in self.families:
            if family not in FAMILIES:
                raise ValueError(f"`families`: expected some of {FAMILIES}, got {family!r}")
        for name in ("examples", "samples", "max_new_tokens", "continued", "batch_size"):
            if not is_integer(getattr(self, name), 1):
                raise ValueError(f"`{name}`: expected a number >= 1, got {getattr(self, name)!r}")
        for name in ("forced", "lengths"):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)) or not all(is_integer(n, 1) for n in values):
                raise ValueError(f"`{name}`: expected rising numbers >= 1, got {values!r}")
        if self.strength is not None and (not is_number(self.strength) or self.strength <= 0):
            raise ValueError(f"`strength`: expected a positive number or None, got {self.strength!r}")
        if not is_number(self.discount) or not 0.0 < self.discount <= 1.0:
            raise ValueError(f"`discount`: expected a number in (0, 1], got {self.discount!r}")
        if not is_number(self.target) or not 0.0 < self.target < 1.0:
            raise ValueError(f"`target`: expected a probability in (0, 1), got {self.target!r}")
        if not is_number(self.tolerance) or not 0.0 < self.tolerance < 0.25:
            raise ValueError(f"`tolerance`: expected a variance in (0, 0.25), got {self.tolerance!r}")


@dataclass(frozen=True, kw_only=True)
class Point:
    """Estimate at one depth.

    Attributes:
        at: Number of tokens before it.
        value: Estimate.
        low, high: Ends of its 95% interval; None without a finite end.
        n: Number of independent samples.
        method: Interval method.
    """

    at: int
    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str

    @classmethod
    def of(cls, at: int, estimate: Estimate) -> Point:
        """Return an estimate at a depth; numbers that are not finite become None."""
        value, low, high = (x if math.isfinite(x) else None for x in (estimate.value, estimate.low, estimate.high))
        return cls(at=at, value=value, low=low, high=high, n=estimate.n, method=estimate.method)


Curve = tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Martingale of the harm of the model's own replies, and their recovery.

    Attributes:
        harm: Mean harm.
        information: Harm information of the tokens after each depth, up to the next one.
        tail: Variance of harm that is left after each depth.
        horizon: Least depth after which it is at most the tolerance; `value` or an end is None beyond all depths.
        recovery: Recovery probability along the rollouts.
    """

    harm: Point
    information: Curve
    tail: Curve
    horizon: Point
    recovery: Curve


@dataclass(frozen=True, kw_only=True)
class Forced:
    """Recovery probability after k harmful tokens.

    Attributes:
        model: Of the model.
        base: Of the base model; empty without one.
        predicted: Sigmoid of the base model's log-odds plus ``strength * discount^(k + 1)``, the mean over prefixes;
            empty without a base model or a strength.
        error: Mean absolute difference of `predicted` and `model` over prefixes and depths; None without a prediction.
        floor: Lowest recovery probability of the model over prefixes and depths.
    """

    model: Curve
    base: Curve = ()
    predicted: Curve = ()
    error: float | None = None
    floor: float


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """KL divergence from the base model along the model's own rollouts.

    Attributes:
        kl: KL of the next token at each depth, in nats.
        blocks: KL of all tokens from a depth to the next one, in nats.
        harm_change: Change of the expected harm by having the model, not the base model, write the tokens from a depth
            to the next one, when the base model writes the rest.
        functional: Lower bound ``2 harm_change^2`` of the part of `blocks` that this change needs, in nats.
        incidental: Upper bound ``blocks - functional`` of the rest, of the estimates, in nats.
    """

    kl: Curve
    blocks: Curve
    harm_change: Curve
    functional: Curve
    incidental: Curve


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Success of an attack inside the reply, along the depth.

    Attributes:
        name: Source of the prefix, or length of the span.
        whole: Success with the forced tokens counted, as in published numbers.
        own: Success in the model's own tokens alone.
    """

    name: str
    whole: Curve
    own: Curve


@dataclass(frozen=True, kw_only=True)
class ShortestPrefix:
    """Least number of forced tokens that break the model.

    Attributes:
        attack: For each example, the least measured number with a successful continuation; None: no number.
        recovery: For each example, the least number after which recovery is below the target; None: no number.
        predicted: The same by theory (Cor. 23), from the floor of the base model; None: no number.
        has_prediction: False without a base model or a strength.
    """

    attack: tuple[int | None, ...]
    recovery: tuple[int | None, ...]
    predicted: int | None = None
    has_prediction: bool = False


@dataclass(frozen=True, kw_only=True)
class DepthReport(StoredRecord):
    """Result of :func:`rolesafe.depth_report.depth_report`.

    Attributes:
        model: Name of the model.
        base: Name of the base model; empty without one.
        architecture: Class of the model.
        fingerprint: Digest of all parameters of the model, and of the base model.
        roles: Role configuration; None for a plain model.
        settings: Settings.
        examples: Source of the examples.
        n_examples: Number of examples.
        recovery_tokens: Recovery tokens.
        environment: Versions and hardware.
        rollouts, recovery, divergence, prefilling, insertion, shortest: Measurements, or the reason why one is missing.
        complete: False after an interruption; the same call resumes.
        notes: Limits of the report.
    """

    schema_version: ClassVar[int] = SCHEMA_VERSION
    oldest_version: ClassVar[int] = SCHEMA_VERSION
    noun: ClassVar[str] = "a depth report"

    model: str
    base: str
    architecture: str
    fingerprint: str
    roles: Mapping[str, Any] | None
    settings: DepthSettings
    examples: str
    n_examples: int
    recovery_tokens: tuple[str, ...]
    environment: Environment
    rollouts: Rollouts | NotMeasured = NOT_RUN
    recovery: Forced | NotMeasured = NOT_RUN
    divergence: Divergence | NotMeasured = NOT_RUN
    prefilling: tuple[Sweep, ...] = ()
    insertion: tuple[Sweep, ...] = ()
    shortest: ShortestPrefix | NotMeasured = NOT_RUN
    complete: bool = True
    notes: tuple[str, ...] = ()
