"""Utility, false refusals, SEP, attention mass and attacks: everything that is measured of one trained model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.override_resistance.arms import ARMS
from benchmarks.override_resistance.kept import Kept
from benchmarks.override_resistance.settings import SEARCHES, Study
from rolesafe.attacks import ATTACKS, TEXT_ATTACKS, AttackConfig, attackable, replies, suite
from rolesafe.evaluation import Resistance, Run, resistance, utility
from rolesafe.evaluation.mass import attention_mass
from rolesafe.evaluation.sep import sep
from rolesafe.tasks import Difficulty, Example, generate, probes, trigger_examples

SAMPLES = 1
"""Attacked conversations kept of each attack, for the report."""

MASS_CONVERSATIONS = 10
"""Conversations that the attention mass is averaged over."""

BATCH = 60

SECONDS = 10.0
"""Between two records of what has been measured so far; single attacks are kept as they come."""

Tell = Callable[[str, float, Run | None], None]
"""Called with the stage, the fraction that is done, and what has been measured so far."""


def examples_of(study: Study, seed: int) -> list[Example]:
    """What the models of a seed are attacked on, and as many benign twins."""
    return generate("test", study.examples, 1000 + seed, study.families, difficulty=Difficulty(place=study.place))


def attacks(study: Study, seed: int) -> tuple[list[AttackConfig], list[AttackConfig]]:
    """The suite in two parts: text that is built, for all examples, and searches, for the first ones."""
    texts = suite(TEXT_ATTACKS, quick=study.quick, seed=seed, batch_size=BATCH)
    found = []
    for name in study.searches if study.searched else ():
        attack = next(known for known in ATTACKS if name == known or name.startswith(f"{known}-"))
        budget = {"num_steps": study.gcg_steps, "search_width": study.gcg_width} if attack == "gcg" else {}
        found.append(ATTACKS[attack](**{**SEARCHES[name], **budget}, seed=seed, batch_size=max(BATCH, study.gcg_width)))
    return texts, found


def measure(
    model: Any, tokenizer: Any, study: Study, key: tuple[str, str, int], seconds: float, kept: Kept, tell: Tell
) -> Run:
    """Everything that is measured of one model.

    Args:
        model, tokenizer: Trained.
        study: What to run.
        key: Size, arm and seed.
        seconds: What its training took.
        kept: Results of an earlier try, and where those of this one go.
        tell: Progress.
    """
    size, arm, seed = key
    tell("utility", 0.0, None)
    examples = examples_of(study, seed)
    config = ARMS[arm].config
    texts, searches = attacks(study, seed)
    refusals = utility(model, tokenizer, trigger_examples("test", study.examples // 2, 2000 + seed, study.families))
    pairs = probes("test", study.examples, 3000 + seed)
    separated = sep(pairs, replies(model, tokenizer, [e.messages for e in pairs]))
    mass = attention_mass(model, tokenizer, [e.messages for e in examples[:MASS_CONVERSATIONS]])
    measured = {
        "size": size,
        "mechanism": None if config is None else config.to_dict(),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "train_seconds": round(seconds, 2),
        "utility": utility(model, tokenizer, examples),
        "false_refusals": refusals.refused,
        "sep": separated.among_executed,
        "sep_all": separated.among_all,
        "attention_mass": tuple(tuple(round(x, 4) for x in layer.mean) for layer in mass.layers),
        "samples": SAMPLES,
    }
    results: list[Any] = []

    def record(complete: bool) -> Run:
        return Run.of(Resistance(results=tuple(results), complete=complete), model=arm, seed=seed, **measured)

    first = stratified(attackable(examples), study.searched)
    # a search costs as much as some fifty texts
    weights = [1.0] * len(texts) + [50.0] * len(searches)
    told = time.monotonic()
    for i, attack in enumerate([*texts, *searches]):
        due = results and time.monotonic() - told > SECONDS
        told = time.monotonic() if due else told
        tell(attack.name, sum(weights[:i]) / sum(weights), record(False) if due else None)
        chosen: Sequence[Example] = examples if i < len(texts) else first
        found = resistance(model, tokenizer, chosen, [attack], done=kept.results).results
        for result in found:
            if result not in kept.results:
                kept.add(result)
        results += found
    return record(True)


def stratified(examples: Sequence[Example], count: int) -> list[Example]:
    """The first examples of every family in turn, `count` in all."""
    families = list(dict.fromkeys(e.family for e in examples))
    columns = [[e for e in examples if e.family == family] for family in families]
    rows = [example for row in zip(*columns, strict=False) for example in row]
    return rows[:count]
