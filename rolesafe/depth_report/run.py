"""Run of a depth report: one measurement after the other. Finished ones are kept."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rolesafe.attacks import attackable
from rolesafe.attacks.memory import is_out_of_memory
from rolesafe.attacks.replies import role_config
from rolesafe.attacks.search import CannotSearch
from rolesafe.depth import Branches, sample_branches, shortest_prefix
from rolesafe.depth.profiles import check_same_tokenizer
from rolesafe.depth_report import measure
from rolesafe.depth_report.records import DepthReport, DepthSettings, ShortestPrefix, Sweep
from rolesafe.evaluation import environment
from rolesafe.evaluation.stages import Interrupted, StageProgress
from rolesafe.evaluation.verdict import NotMeasured
from rolesafe.extras import require
from rolesafe.patching.modes import evaluating
from rolesafe.tasks import Example, generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

STAGES = ("rollouts", "recovery", "divergence", "prefilling", "insertion")
"""Stages of a report, in order; each is a field of :class:`DepthReport`."""

Keep = Callable[[DepthReport, Branches | None], None]


def depth_report(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example] | None = None,
    *,
    base: PreTrainedModel | None = None,
    base_tokenizer: PreTrainedTokenizerBase | None = None,
    settings: DepthSettings | None = None,
    name: str = "",
    base_name: str = "",
    source: str = "",
    notes: Sequence[str] = (),
    done: DepthReport | None = None,
    branches: Branches | None = None,
    keep: Keep | None = None,
    progress: StageProgress | None = None,
) -> DepthReport:
    """Measure how many tokens deep the alignment of a model goes. Needs the extra `stats`.

    On ``KeyboardInterrupt`` the report has the finished measurements and ``complete=False``; pass it as `done`, and the
    branches that `keep` got last as `branches`, to resume. A measurement that runs out of memory is
    :class:`NotMeasured` with the reason.

    Args:
        model: Causal language model, patched or not.
        tokenizer: Its tokenizer, with a chat template.
        examples: Examples; only protected ones are used. Default: those of :func:`rolesafe.tasks.generate` by the
            settings.
        base: Model before its alignment, for the divergence and the prediction.
        base_tokenizer: Tokenizer of `base`; default: `tokenizer`.
        settings: Default: ``DepthSettings()``.
        name: Name of the model in the report; default: its path.
        base_name: Name of the base model in the report; default: its path.
        source: Source of the examples in the report.
        notes: Notes to start the report with.
        done: Interrupted report with the same settings.
        branches: Its sampled rollouts.
        keep: Called with the report so far and the rollouts after each step, for example to save them.
        progress: Called after each step of a stage.

    Raises:
        ValueError: There is nothing to attack, a prefix does not fit into the context, the tokenizers differ, the base
            model refuses everything, there is no recovery token, or `done` is of another report.
        ImportError: The extra `stats` is not installed.
    """
    require("statsmodels", "stats")
    settings = settings or DepthSettings()
    if base_tokenizer is not None:
        check_same_tokenizer(tokenizer, base_tokenizer)
    if examples is None:
        chosen = f", {settings.families}" if settings.families else ""
        source = source or f"rolesafe.tasks.generate('test', {2 * settings.examples}, {settings.seed}{chosen})"
        examples = generate("test", 2 * settings.examples, settings.seed, settings.families or None)
    examples = _distinct(attackable(examples))
    config = role_config(model)
    with evaluating(model):
        usable, prefixes, left_out = _usable(model, tokenizer, examples, settings)
        tokens = _recovery_tokens(model, tokenizer, usable, settings)
    marks = [_digest(model), *([] if base is None else [_digest(base)])]
    report = DepthReport(
        model=name or _name(model),
        base="" if base is None else base_name or _name(base),
        architecture=type(model).__name__,
        fingerprint="/".join(mark[:16] for mark in marks),
        roles=None if config is None else config.to_dict(),
        settings=settings,
        examples=source or f"{len(examples)} examples",
        n_examples=len(usable),
        recovery_tokens=tuple(str(tokenizer.convert_ids_to_tokens(token)) for token in tokens),
        environment=environment(),
        notes=(*notes, *left_out),
    )
    if done is not None:
        report = _continued(done, report)
    run = _Run(
        model, tokenizer, base, base_tokenizer or tokenizer, usable, prefixes, tokens, settings, keep, progress, report
    )
    run.branches = branches
    with evaluating(model), evaluating(base or model):
        return run.run()


@dataclass
class _Run:
    """State of a run. Every stage writes its measurement into `report`, also after an interruption."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    base: PreTrainedModel | None
    base_tokenizer: PreTrainedTokenizerBase
    examples: list[Example]
    prefixes: list[list[int]]
    tokens: list[int]
    settings: DepthSettings
    keep: Keep | None
    progress: StageProgress | None
    report: DepthReport
    branches: Branches | None = None

    def run(self) -> DepthReport:
        self._keep(complete=False)
        parts = (self._rollouts, self._recovery, self._divergence, self._prefilling, self._insertion)
        try:
            for stage, part in zip(STAGES, parts, strict=True):
                if self._is_done(stage):
                    continue
                logger.info("stage: %s", stage)
                self._step(stage, 0, 1)
                try:
                    part()
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    self._note(f"{stage}: not finished, out of memory. Lower the batch size.")
                self._step(stage, 1, 1)
            self._keep(complete=True)
        except (KeyboardInterrupt, Interrupted):
            pass
        return self.report

    def _rollouts(self) -> None:
        settings = self.settings

        def keep(branches: Branches) -> None:
            self.branches = branches
            self._keep()

        branches = sample_branches(
            self.model,
            self.tokenizer,
            [measure.conversation(e) for e in self.examples],
            measure.ViolationHarm(self.examples),
            samples=settings.samples,
            max_new_tokens=settings.max_new_tokens,
            recovery=self.tokens,
            seed=settings.seed,
            batch_size=settings.batch_size,
            done=self.branches,
            keep=keep,
            progress=self._steps("rollouts"),
        )
        self.branches = branches
        if branches.n:
            self._keep(rollouts=measure.rollouts(branches, settings.tolerance))
        if not branches.complete:
            raise Interrupted

    def _recovery(self) -> None:
        given = (self.tokenizer, self.examples, self.prefixes, self.tokens, self.settings)
        found, ours, theirs = measure.forced(self.model, self.base, *given)
        depths, target, rows = (0, *self.settings.forced), self.settings.target, ours.tolist()
        least = tuple(next((k for k, rho in zip(depths, row, strict=True) if rho < target), None) for row in rows)
        predicted, known = None, theirs is not None and self.settings.strength is not None
        if theirs is not None and self.settings.strength is not None:
            floor = min(max(float(theirs.min()), 1e-12), 1 - 1e-12)
            value = shortest_prefix(target, floor, self.settings.strength, self.settings.discount)
            predicted = int(value) if value < float("inf") else None
        shortest = ShortestPrefix(attack=(), recovery=least, predicted=predicted, has_prediction=known)
        self._keep(recovery=found, shortest=shortest)

    def _divergence(self) -> None:
        if self.base is None:
            self._keep(divergence=NotMeasured("not measured, there is no base model; pass `against`"))
            return
        assert self.branches is not None
        found = measure.divergence(
            self.model,
            self.base,
            self.tokenizer,
            self.base_tokenizer,
            self.examples,
            self.branches,
            self.settings,
            self._steps("divergence"),
        )
        self._keep(divergence=found)

    def _prefilling(self) -> None:
        rows: dict[str, list[list[tuple[bool, bool]]]] = {}
        depths, least = (0, *self.settings.forced), []
        for number, example in enumerate(self.examples):
            branch, context = measure.branch(self.model, self.tokenizer, example, self.settings)
            found = measure.prefilling(branch, context, self.prefixes[number], self.settings)
            for source, row in found.items():
                rows.setdefault(source, []).append(row)
            won = [any(whole for whole, _ in column) for column in zip(*found.values(), strict=True)]
            least.append(next((k for k, success in zip(depths, won, strict=True) if success), None))
            self._step("prefilling", number + 1, len(self.examples))
        sweeps = tuple(measure.sweep(source, depths, some) for source, some in rows.items())
        known = self.report.shortest
        before = ShortestPrefix(attack=(), recovery=()) if isinstance(known, NotMeasured) else known
        self._keep(prefilling=sweeps, shortest=replace(before, attack=tuple(least)))

    def _insertion(self) -> None:
        rows: dict[int, list[list[tuple[bool, bool]]]] = {length: [] for length in self.settings.lengths}
        for number, example in enumerate(self.examples):
            branch, _ = measure.branch(self.model, self.tokenizer, example, self.settings)
            for length, some in rows.items():
                some.append(measure.insertion(branch, self.prefixes[number][:length], self.settings))
            self._step("insertion", number + 1, len(self.examples))
        self._keep(insertion=tuple(_by_position(length, some) for length, some in rows.items()))

    def _is_done(self, stage: str) -> bool:
        value = getattr(self.report, stage)
        if stage == "rollouts":
            return self.branches is not None and self.branches.complete and not isinstance(value, NotMeasured)
        return not isinstance(value, NotMeasured) and value != ()

    def _keep(self, **found: Any) -> None:
        self.report = replace(self.report, **found)
        if self.keep is not None:
            self.keep(self.report, self.branches)

    def _note(self, text: str) -> None:
        self._keep(notes=(*self.report.notes, text))

    def _step(self, stage: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(stage, done, total)

    def _steps(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: self._step(stage, done, total)


def _by_position(length: int, rows: Sequence[Sequence[tuple[bool, bool]]]) -> Sweep:
    name = "1 token" if length == 1 else f"{length} tokens"
    return measure.sweep(name, range(max(map(len, rows))), rows)


def _recovery_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], settings: DepthSettings
) -> list[int]:
    """Return the tokens that begin a refusal and no wanted reply.

    Raises:
        ValueError: There is none.
    """
    found, wanted = set(), set()
    if settings.recovery:
        texts = [text for word in settings.recovery for text in (word, f" {word}")]
        found = {ids[0] for text in texts if (ids := tokenizer(text, add_special_tokens=False)["input_ids"])}
    for example in examples:
        branch, _ = measure.branch(model, tokenizer, example, settings)
        wanted.add(branch.wanted[0])
        if not settings.recovery and branch.refusal:
            found.add(branch.refusal[0])
    found -= {tokenizer.unk_token_id, None}
    if not settings.recovery:
        found -= wanted
    if not found:
        raise ValueError(
            "`recovery`: expected at least one token that begins a refusal and no wanted reply, got none. Name the "
            "words that begin this model's refusals."
        )
    return sorted(int(token) for token in found)


def _distinct(examples: Sequence[Example]) -> list[Example]:
    """Return the examples with distinct conversations: harm is looked up by conversation."""
    return list({str(measure.conversation(e)): e for e in examples}.values())


def _usable(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], settings: DepthSettings
) -> tuple[list[Example], list[list[int]], tuple[str, ...]]:
    """Return the examples with a harmful prefix of the largest length that fits the context, and notes on the others.

    Raises:
        ValueError: There is none.
    """
    longest = max(settings.forced[-1], settings.lengths[-1])
    new = max(settings.max_new_tokens, longest + settings.continued)
    usable, prefixes, reasons = [], [], []
    for example in examples:
        if not measure.has_room(model, tokenizer, example, new):
            reasons.append("they do not fit the context")
            continue
        branch, _ = measure.branch(model, tokenizer, example, settings)
        if not branch.refusal:
            reasons.append("the model's own reply is empty")
            continue
        try:
            prefixes.append(branch.harmful_tokens(longest))
        except CannotSearch as error:
            reasons.append(str(error))
            continue
        usable.append(example)
    if not usable:
        raise ValueError(
            f"`forced`: expected harmful prefixes of {longest} tokens that fit into the model's context with the "
            f"conversation and {settings.continued} more tokens, got none for {len(examples)} examples: {reasons[0]}. "
            "Lower it."
        )
    if reasons:
        return usable, prefixes, (f"{len(reasons)} of {len(examples)} examples are left out: {reasons[0]}",)
    return usable, prefixes, ()


def _continued(done: DepthReport, new: DepthReport) -> DepthReport:
    """Return the interrupted report; raise where it is one of another model, base, set of examples or settings."""
    ours = replace(new.settings, batch_size=done.settings.batch_size)
    for name, one, other in (
        ("settings", done.settings, ours),
        ("fingerprint", done.fingerprint, new.fingerprint),
        ("examples", (done.examples, done.n_examples), (new.examples, new.n_examples)),
        ("recovery_tokens", done.recovery_tokens, new.recovery_tokens),
    ):
        if one != other:
            raise ValueError(
                f"`done`: expected a report with {name} {other!r:.200}, got one with {one!r:.200}. Write to another "
                "file, or delete the old one."
            )
    return replace(done, settings=new.settings)


def _digest(model: PreTrainedModel) -> str:
    """Return a SHA-256 of the names and all values of the parameters."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        values = parameter.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _name(model: PreTrainedModel) -> str:
    return str(getattr(model.config, "name_or_path", "")) or type(model).__name__
