"""Measurement of one trained model: utility, false refusals, SEP, attention mass and attacks."""

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
"""Attacked conversations recorded of each attack, for the report."""

MASS_CONVERSATIONS = 10
"""Number of conversations behind the mean attention mass."""

BATCH = 60

SECONDS = 10.0
"""Time between two intermediate records, in seconds."""

Progress = Callable[[str, float, Run | None], None]
"""Called with stage, fraction done in [0, 1], and the run so far (None: unchanged)."""


def examples_of(study: Study, seed: int) -> list[Example]:
    """Return the test examples of a seed: protected ones and as many benign twins."""
    return generate("test", study.examples, 1000 + seed, study.families, difficulty=Difficulty(place=study.place))


def attacks(study: Study, seed: int) -> tuple[list[AttackConfig], list[AttackConfig]]:
    """Return fixed texts, run on all examples, and searches, run on the first ones."""
    texts = suite(TEXT_ATTACKS, quick=study.quick, seed=seed, batch_size=BATCH)
    found = []
    for name in study.searches if study.searched else ():
        attack = next(known for known in ATTACKS if name == known or name.startswith(f"{known}-"))
        budget = {"num_steps": study.gcg_steps, "search_width": study.gcg_width} if attack == "gcg" else {}
        found.append(ATTACKS[attack](**{**SEARCHES[name], **budget}, seed=seed, batch_size=max(BATCH, study.gcg_width)))
    return texts, found


def measure(
    model: Any, tokenizer: Any, study: Study, key: tuple[str, str, int], seconds: float, kept: Kept, progress: Progress
) -> Run:
    """Measure one model and return its record.

    Args:
        model, tokenizer: A trained model, patched or not.
        study: Settings.
        key: Size, arm and seed.
        seconds: Training time.
        kept: Attack results of an interrupted job; new ones are added.
        progress: Called before every attack.
    """
    size, arm, seed = key
    progress("utility", 0.0, None)
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
    recorded = time.monotonic()
    for i, attack in enumerate([*texts, *searches]):
        due = results and time.monotonic() - recorded > SECONDS
        recorded = time.monotonic() if due else recorded
        progress(attack.name, sum(weights[:i]) / sum(weights), record(False) if due else None)
        chosen: Sequence[Example] = examples if i < len(texts) else first
        found = resistance(model, tokenizer, chosen, [attack], done=kept.results).results
        for result in found:
            if result not in kept.results:
                kept.add(result)
        results += found
    return record(True)


def stratified(examples: Sequence[Example], count: int) -> list[Example]:
    """Return `count` examples, taking the first ones of every family in turn."""
    families = list(dict.fromkeys(e.family for e in examples))
    columns = [[e for e in examples if e.family == family] for family in families]
    rows = [example for row in zip(*columns, strict=False) for example in row]
    return rows[:count]
