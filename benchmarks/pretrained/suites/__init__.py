"""The suites by name. Each is resumable.

The times are for SmolLM2-135M in float32 on one CPU core of its own: tokens of the suite over 590 prompt tokens and 90
new tokens a second, as measured.
"""

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
        time: Estimate for the whole suite.
        needs: Names of the sets that it reads.
    """

    run: Callable[[Bench], None]
    about: str
    time: str
    needs: tuple[str, ...]


SUITES = {
    "ceiling": Suite(ceiling.run, "goals asked directly by the user", "2 min", ("alpacafarm",)),
    "injection": Suite(
        injection.run, "AlpacaFarm with fixed injected texts", "25 min, 95 with --cases all", ("alpacafarm",)
    ),
    "sep": Suite(sep.run, "SEP: executed, processed or ignored", "30 min", ("sep",)),
    "leak": Suite(leak.run, "secrets in the system prompt", "60 min", ()),
    "ifeval": Suite(
        ifeval.run, "IFEval, in the user and in the system turn", "105 min at most", ("ifeval-user", "ifeval-system")
    ),
    "ability": Suite(
        ability.run, "NLL of references, KL to --base, WikiText perplexity", "12 min", ("alpacafarm", "wikitext")
    ),
    "overdefence": Suite(
        overdefence.run, "benign tasks with the look of attacks, XSTest", "9 min", ("alpacafarm", "xstest")
    ),
    "cost": Suite(cost.run, "tokens/s and memory, beside --base", "2 min", ()),
    "adaptive": Suite(
        adaptive.run, "GCG, BEAST, best-of-n, transfer", "10 to 20 min for each example", ("alpacafarm",)
    ),
}
"""All suites, in the order they are run in."""
