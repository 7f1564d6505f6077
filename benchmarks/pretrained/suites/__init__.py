"""The suites by name. Each is resumable; the estimates are of SmolLM2-135M in float32, for one CPU core of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.pretrained.bench import Bench
from benchmarks.pretrained.suites import (
    ability,
    adaptive,
    ceiling,
    cost,
    ifeval,
    injection,
    leak,
    overdefence,
    sep,
)


@dataclass(frozen=True)
class Suite:
    """One suite.

    Attributes:
        run: Measures what the record lacks.
        about: One line for ``--help``.
        minutes: Estimate of the whole suite.
    """

    run: Callable[[Bench], None]
    about: str
    minutes: str


SUITES = {
    "ceiling": Suite(ceiling.run, "goals asked directly by the user", "6"),
    "injection": Suite(injection.run, "AlpacaFarm with fixed injected texts", "60"),
    "sep": Suite(sep.run, "SEP: executed, processed or ignored", "45"),
    "leak": Suite(leak.run, "secrets in the system prompt", "100"),
    "ifeval": Suite(ifeval.run, "IFEval, in the user and in the system turn", "180"),
    "ability": Suite(ability.run, "NLL of references, KL to --base, WikiText perplexity", "30"),
    "overdefence": Suite(overdefence.run, "benign tasks with the look of attacks, XSTest", "15"),
    "cost": Suite(cost.run, "tokens/s and memory, beside --base", "3"),
    "adaptive": Suite(adaptive.run, "GCG, BEAST, best-of-n, transfer", "20 an example"),
}
"""All suites, in the order they are run in."""
