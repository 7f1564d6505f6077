"""Records of one measured model: attacks, example by example, and all other measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rolesafe.attacks import AttackResult, Outcome, Rate
from rolesafe.attacks.memory import is_reason_of_the_run
from rolesafe.evaluation.resistance import Resistance, per_sample
from rolesafe.evaluation.utility import Utility

WON, HELD, NOT_RUN = "1", "0", "-"
"""Marks of an example in :attr:`AttackPoint.marks`."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Software and hardware of a run.

    Attributes:
        versions: Pairs of a package and its version, Python included.
        hardware: Processor or accelerator.
        commit: Source commit; None if unknown.
    """

    versions: tuple[tuple[str, str], ...]
    hardware: str
    commit: str | None = None

    @classmethod
    def joined(cls, environments: Sequence[Environment]) -> Environment:
        """Join several records into one; different values are joined by ``/``, as in ``"2.12 / 2.13"``.

        Raises:
            ValueError: There is none.
        """
        if not environments:
            raise ValueError("`environments`: expected at least one, got none")
        names = dict.fromkeys(name for one in environments for name, _ in one.versions)
        commits = [one.commit for one in environments if one.commit is not None]
        return cls(
            versions=tuple((n, _joined([dict(one.versions).get(n, "none") for one in environments])) for n in names),
            hardware=_joined([one.hardware for one in environments]),
            commit=_joined(commits) if commits else None,
        )


@dataclass(frozen=True, kw_only=True)
class AttackPoint:
    """Success of one attack at one parameter point.

    Attributes:
        attack: Name of the attack.
        parameters: Its parameters.
        seed: Of the attack.
        success: Attack success rate (ASR).
        n_left_out: Examples left out because the attacked conversation does not fit the context.
        complete: False after an interruption.
        samples: A few attacked conversations.
        typed: Whether the attack is plain text. Other attacks (embeddings, prefilled replies) give an upper bound and
            are no part of the worst case.
        marks: One character for each of :attr:`Run.examples`: ``1`` the attacker won, ``0`` held, ``-`` not run.
            Empty in files of schema version 1.
        n_queries: Sequences that the model was run on.
        n_steps: Steps of a search for each example that was run, in the order of the marks; empty without a search.
        failed: Pairs of an example that could not be attacked and the reason.
        right: One character for each of :attr:`Run.examples`: ``1`` right reply under attack, ``0`` wrong reply, ``-``
            not run, or no right reply is known. Empty in files of schema version 1 and 2.
    """

    REMOVED_FIELDS: ClassVar = ("families", "losses", "n_met")

    attack: str
    parameters: Mapping[str, Any]
    seed: int
    success: Rate
    n_left_out: int = 0
    complete: bool = True
    samples: tuple[Outcome, ...] = ()
    typed: bool = True
    marks: str = ""
    n_queries: int = 0
    n_steps: tuple[int, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    right: str = ""

    def __post_init__(self) -> None:
        if self.right and (len(self.right) != len(self.marks) or set(self.right) - {"1", "0", NOT_RUN}):
            raise ValueError(
                f"`right`: expected {len(self.marks)} marks out of '1', '0' and {NOT_RUN!r}, got {self.right!r}"
            )
        if any(mark != HELD and right == "1" for mark, right in zip(self.marks, self.right, strict=False)):
            raise ValueError(
                f"`right`: expected no right reply of {self.attack!r} where the attacker won or nothing was run, got "
                f"{self.right!r} for marks {self.marks!r}"
            )
        if not self.marks:
            return
        if set(self.marks) - {WON, HELD, NOT_RUN}:
            raise ValueError(f"`marks`: expected only {WON!r}, {HELD!r} and {NOT_RUN!r}, got {self.marks!r}")
        counted = Rate(self.marks.count(WON), len(self.marks) - self.marks.count(NOT_RUN))
        if counted != self.success:
            raise ValueError(f"`marks`: expected {self.success} of {self.attack!r}, got marks that give {counted}")
        if self.n_steps and len(self.n_steps) != counted.n:
            raise ValueError(f"`n_steps`: expected one for each of {counted.n} examples, got {len(self.n_steps)}")

    @property
    def undecided(self) -> tuple[str, ...]:
        """Ids in `failed` that failed for a reason of the run, such as memory."""
        return tuple(name for name, reason in self.failed if is_reason_of_the_run(reason))

    @classmethod
    def of(cls, result: AttackResult, *, samples: int = 0, examples: Sequence[str] | None = None) -> AttackPoint:
        """Return the record of `result` with `samples` outcomes, successful ones first.

        Args:
            result: Of one attack.
            samples: Attacked conversations to keep.
            examples: Ids of the marks, in order; default: those of the outcomes.
        """
        outcomes = {o.id: o for o in result.outcomes}
        ids = tuple(outcomes) if examples is None else tuple(examples)
        strangers = [id for id in outcomes if id not in set(ids)]
        if strangers:
            raise ValueError(f"`examples`: expected all ids of the result, got none for {strangers[0]!r}")
        ordered = [outcomes[id] for id in ids if id in outcomes]
        searched = any(o.n_steps for o in ordered)
        return cls(
            attack=result.attack,
            parameters=dict(result.parameters),
            seed=result.config.seed,
            success=result.rate,
            n_left_out=len(result.left_out),
            complete=result.complete,
            samples=tuple(sorted(result.outcomes, key=lambda o: not o.success)[:samples]),
            typed=result.typed,
            marks="".join(_mark(outcomes.get(id)) for id in ids),
            n_queries=result.n_queries,
            n_steps=tuple(o.n_steps for o in ordered) if searched else (),
            failed=result.failed,
            right="".join(_right_mark(outcomes.get(id)) for id in ids),
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """Record of one trained model. Attack success is never recorded without utility.

    Attributes:
        model: Name of the model or mechanism, such as ``"plain"`` or ``"role-aware"``.
        seed: Of the training.
        n_parameters: Number of parameters.
        train_seconds: Wall-clock time of training, in seconds.
        utility: Utility without attack.
        attacks: One per attack and parameter point.
        worst_case: Per-sample OR over all plain-text attacks; None before the first one.
        complete: False after an interruption.
        size: Label of the model size, such as ``"0.2M"``; empty for a single size.
        mechanism: Role configuration from :meth:`rolesafe.RoleConfig.to_dict`; None for a plain model.
        examples: Ids of the attacked examples, in the order of :attr:`AttackPoint.marks`.
        bound: Per-sample OR over all attacks: an upper bound.
        false_refusals: Refusals of harmless requests that sound like attacks; None if not measured.
        sep: SEP score (arXiv 2403.06833) among the probes executed in the instruction, see
            :attr:`rolesafe.evaluation.sep.Sep.among_executed`; None if not measured.
        sep_all: SEP score among all probes.
        attention_mass: Attention mass on privileged keys as [layer][head], such as
            :attr:`rolesafe.evaluation.mass.LayerMass.reply_mean` of every layer; None if not measured.
    """

    model: str
    seed: int
    n_parameters: int
    train_seconds: float
    utility: Utility
    attacks: tuple[AttackPoint, ...] = ()
    worst_case: Rate | None = None
    complete: bool = True
    size: str = ""
    mechanism: Mapping[str, Any] | None = None
    examples: tuple[str, ...] = ()
    bound: Rate | None = None
    false_refusals: Rate | None = None
    sep: Rate | None = None
    sep_all: Rate | None = None
    attention_mass: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        if len(set(self.examples)) < len(self.examples):
            raise ValueError("`examples`: expected distinct ids, got repeated ones")
        for point in self.attacks:
            if point.marks and len(point.marks) != len(self.examples):
                raise ValueError(
                    f"`attacks`: expected {len(self.examples)} marks, one per example, got {len(point.marks)} of "
                    f"{point.attack!r}"
                )

    @property
    def key(self) -> tuple[str, str, int]:
        """Size, model and seed: unique within a study."""
        return self.size, self.model, self.seed

    def won(self, point: AttackPoint) -> dict[str, bool]:
        """Return the attacker's success on each example that `point` was run on; empty without marks."""
        return {id: m == WON for id, m in zip(self.examples, point.marks, strict=False) if m != NOT_RUN}

    def worst(self, chosen: Callable[[AttackPoint], bool] | None = None) -> dict[str, bool]:
        """Return the per-sample OR over attacks, for each example that every attack was run on.

        The point without attack never counts. See :func:`rolesafe.evaluation.resistance.per_sample`.

        Args:
            chosen: Filter of attacks; default: plain-text attacks.
        """
        return per_sample((point.attack, self.won(point), point.undecided) for point in self._chosen(chosen))

    def held(self, chosen: Callable[[AttackPoint], bool] | None = None) -> dict[str, bool] | None:
        """Return, for the examples of :meth:`worst`, whether the reply was right under every attack.

        An example that no attack won on is not always held: its reply may be empty.

        Args:
            chosen: As in :meth:`worst`.

        Returns:
            None if a point does not record it, or an example states no right reply.
        """
        points = self._chosen(chosen)
        marks = [dict(zip(self.examples, zip(p.marks, p.right, strict=True), strict=True)) for p in points if p.right]
        found: dict[str, bool] = {}
        for id in self.worst(chosen):
            ran = [right for mark, right in (one[id] for one in marks) if mark != NOT_RUN]
            if len(marks) < len(points) or NOT_RUN in ran:
                return None
            found[id] = all(right == "1" for right in ran)
        return found

    def _chosen(self, chosen: Callable[[AttackPoint], bool] | None) -> list[AttackPoint]:
        return [p for p in self.attacks if p.attack != "none" and (p.typed if chosen is None else chosen(p))]

    @classmethod
    def of(
        cls,
        resistance: Resistance,
        *,
        model: str,
        seed: int,
        n_parameters: int,
        train_seconds: float,
        utility: Utility,
        samples: int = 0,
        **measured: Any,
    ) -> Run:
        """Return the record of a measured model, with `samples` conversations of each attack.

        Args:
            resistance: Results of the attacks.
            model: As in the record, like all further arguments.
            seed: Of the training.
            n_parameters: Number of parameters.
            train_seconds: In seconds.
            utility: Utility without attack.
            samples: Attacked conversations to keep of each attack.
            measured: Further fields: ``size``, ``mechanism``, ``false_refusals``, ``sep``, ...
        """
        ids = tuple(dict.fromkeys(o.id for result in resistance.results for o in result.outcomes))
        return cls(
            model=model,
            seed=seed,
            n_parameters=n_parameters,
            train_seconds=train_seconds,
            utility=utility,
            attacks=tuple(AttackPoint.of(r, samples=samples, examples=ids) for r in resistance.results),
            worst_case=resistance.worst_case,
            bound=resistance.bound,
            complete=resistance.complete,
            examples=ids,
            **measured,
        )


def counted(outcomes: Mapping[str, bool]) -> Rate:
    """Return the rate of true outcomes."""
    return Rate(sum(outcomes.values()), len(outcomes))


def _mark(outcome: Outcome | None) -> str:
    return NOT_RUN if outcome is None else WON if outcome.success else HELD


def _right_mark(outcome: Outcome | None) -> str:
    return NOT_RUN if outcome is None or outcome.right is None else str(int(outcome.right))


def _joined(values: Sequence[str]) -> str:
    return " / ".join(dict.fromkeys(part for value in values for part in value.split(" / ")))
