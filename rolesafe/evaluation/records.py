"""The records of one measured model: its attacks, example by example, and what else was measured on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from rolesafe.attacks import AttackResult, Outcome, Rate
from rolesafe.attacks.memory import is_reason_of_the_run
from rolesafe.evaluation.resistance import Resistance, per_sample
from rolesafe.evaluation.utility import Utility

WON, HELD, NOT_RUN = "1", "0", "-"
"""The marks of an example in :attr:`AttackPoint.marks`."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where a run was made.

    Attributes:
        versions: Pairs of a package and its version; Python is one of them.
        hardware: The processor or accelerator in words.
        commit: The source commit, where it is known.
    """

    versions: tuple[tuple[str, str], ...]
    hardware: str
    commit: str | None = None

    @classmethod
    def joined(cls, environments: Sequence[Environment]) -> Environment:
        """One record of several: where they differ, all values stand beside each other, as in ``"2.12 / 2.13"``.

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
    """The success of one attack at one parameter point.

    Attributes:
        attack: Name of the attack.
        parameters: Its parameters.
        seed: Of the attack's own choices.
        success: Attack success.
        families: Attack success for each task family, as pairs.
        n_left_out: Examples whose attacked conversation did not fit into the model's context.
        complete: Whether all examples were attacked.
        samples: A few of the attacked conversations.
        typed: Whether it is made of text that anybody can type. What is not (embeddings, prefilled replies) is an upper
            bound: it is reported, and is no part of the worst case.
        marks: One character for each of :attr:`Run.examples`: ``1`` the attacker won, ``0`` held, ``-`` not run.
            Empty in files of schema version 1.
        n_queries: Sequences that the model was run on.
        n_steps: Of a search: steps taken for each example that was run, in the order of the marks; empty for others.
        losses: Of a search: loss of the best text after each step, mean over the examples; the first is the start's.
            An example that stopped early keeps its last loss.
        failed: Examples that could not be attacked, with the reason, as pairs.
        n_met: Examples that were not attacked because the model met the goal on them without any attack.
        right: One character for each of :attr:`Run.examples`: ``1`` the reply under attack was right, ``0`` it was not,
            ``-`` not run, or no right reply is known. Empty in files of schema version 1 and 2.
    """

    attack: str
    parameters: Mapping[str, Any]
    seed: int
    success: Rate
    families: tuple[tuple[str, Rate], ...] = ()
    n_left_out: int = 0
    complete: bool = True
    samples: tuple[Outcome, ...] = ()
    typed: bool = True
    marks: str = ""
    n_queries: int = 0
    n_steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    n_met: int = 0
    right: str = ""

    def __post_init__(self) -> None:
        if self.right and (len(self.right) != len(self.marks) or set(self.right) - {"1", "0", NOT_RUN}):
            raise ValueError(
                f"`right`: expected {len(self.marks)} marks out of '1', '0' and {NOT_RUN!r}, got {self.right!r}"
            )
        if any(mark != HELD and right == "1" for mark, right in zip(self.marks, self.right, strict=False)):
            raise ValueError(
                f"`right`: expected no right reply of {self.attack!r} where the attacker won or nothing was run, got "
                f"{self.right!r} beside {self.marks!r}"
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
        """As :attr:`rolesafe.attacks.AttackResult.undecided`."""
        return tuple(name for name, reason in self.failed if is_reason_of_the_run(reason))

    @classmethod
    def of(cls, result: AttackResult, *, samples: int = 0, examples: Sequence[str] | None = None) -> AttackPoint:
        """The record of `result`, with `samples` outcomes: those that won, then the first others.

        Args:
            result: Of one attack.
            samples: Attacked conversations to keep.
            examples: Ids that the marks stand for, in order; default: those of the outcomes.
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
            families=tuple(sorted(result.by_family().items())),
            n_left_out=len(result.left_out),
            complete=result.complete,
            samples=tuple(sorted(result.outcomes, key=lambda o: not o.success)[:samples]),
            typed=result.typed,
            marks="".join(_mark(outcomes.get(id)) for id in ids),
            n_queries=result.n_queries,
            n_steps=tuple(o.n_steps for o in ordered) if searched else (),
            losses=mean_losses([o.losses for o in ordered]),
            failed=result.failed,
            n_met=len(result.met),
            right="".join(_right_mark(outcomes.get(id)) for id in ids),
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trained model, measured. Attack success is never recorded without utility.

    Attributes:
        model: Name of the model in the comparison, such as ``"plain"`` or ``"role-aware"``; of a mechanism, in a study.
        seed: Of its training.
        n_parameters: Number of parameters.
        train_seconds: Wall-clock time of training, in seconds.
        utility: Without any attack.
        attacks: One per attack and parameter point.
        worst_case: Per-sample OR over all attacks that can be typed; ``None`` where none has been run yet.
        complete: Whether the suite was finished.
        size: Label of the model size, such as ``"0.2M"``; empty where there is only one.
        mechanism: The role configuration as :meth:`rolesafe.RoleConfig.to_dict` writes it; ``None`` for a plain model.
        examples: Ids of the attacked examples, in the order of :attr:`AttackPoint.marks`.
        bound: Per-sample OR over all attacks, those that nobody can type included: an upper bound.
        false_refusals: Refusals of harmless requests that sound like attacks; ``None`` where not measured.
        sep: SEP score (arXiv 2403.06833) among the probes executed in the instruction, see
            :attr:`rolesafe.evaluation.sep.Sep.among_executed`; ``None`` where not measured.
        sep_all: The same among all probes: one that is never executed counts against the model.
        attention_mass: Attention mass on privileged keys by layer and head, as [layer][head], such as
            :attr:`rolesafe.evaluation.mass.LayerMass.reply_mean` of every layer; ``None``: not measured.
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
        """Size, model and seed: what tells runs of one study apart."""
        return self.size, self.model, self.seed

    def won(self, point: AttackPoint) -> dict[str, bool]:
        """Whether the attacker won, for each example that `point` was run on; empty where no marks were recorded."""
        return {id: m == WON for id, m in zip(self.examples, point.marks, strict=False) if m != NOT_RUN}

    def worst(self, chosen: Callable[[AttackPoint], bool] | None = None) -> dict[str, bool]:
        """Per-sample OR over attacks: whether at least one won, for each example that every attack was run on.

        The point without attack never counts. See :func:`rolesafe.evaluation.resistance.per_sample`.

        Args:
            chosen: Which attacks; default: those that can be typed.
        """
        return per_sample((point.attack, self.won(point), point.undecided) for point in self._chosen(chosen))

    def held(self, chosen: Callable[[AttackPoint], bool] | None = None) -> dict[str, bool] | None:
        """Whether the reply was right under every attack, for the examples of :meth:`worst`.

        An example that no attack won on need not have been held: an empty reply gives nothing away either.

        Args:
            chosen: As in :meth:`worst`.

        Returns:
            ``None`` where a point does not record it, or an example states no right reply: nothing is known then.
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
        """The record of a measured model, with the first `samples` conversations of each attack.

        Args:
            resistance: The results of the attacks.
            model: As in the record, like all further arguments.
            seed: Of the training.
            n_parameters: Number of parameters.
            train_seconds: In seconds.
            utility: Without any attack.
            samples: Attacked conversations to keep of each attack.
            measured: What else was measured: ``size``, ``mechanism``, ``false_refusals``, ``sep``, ...
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
    """The rate of the outcomes that are true."""
    return Rate(sum(outcomes.values()), len(outcomes))


def mean_losses(curves: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The mean of loss curves, step by step; a shorter one keeps its last value. Rounded to five digits."""
    steps = max((len(curve) for curve in curves), default=0)
    filled = [[*curve, *[curve[-1]] * (steps - len(curve))] for curve in curves if curve]
    return tuple(float(f"{sum(column) / len(filled):.5g}") for column in zip_longest(*filled))


def _mark(outcome: Outcome | None) -> str:
    return NOT_RUN if outcome is None else WON if outcome.success else HELD


def _right_mark(outcome: Outcome | None) -> str:
    return NOT_RUN if outcome is None or outcome.right is None else str(int(outcome.right))


def _joined(values: Sequence[str]) -> str:
    return " / ".join(dict.fromkeys(part for value in values for part in value.split(" / ")))
