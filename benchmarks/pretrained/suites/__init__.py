"""Suites by name. Each is resumable.

Times are estimates for SmolLM2-135M in float32 on one idle CPU core: the tokens of a suite at the measured 590 prompt
tokens/s and 90 new tokens/s.
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
    followup,
    ifeval,
    injection,
    leak,
    overdefence,
    sep,
)


@dataclass(frozen=True)
class Suite:
    """Suite of the evaluation.

    Attributes:
        run: Function that measures the rows missing from the record.
        about: Description in one line, for ``--help``.
        time: Estimated time of the whole suite.
        needs: Names of the required test sets.
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
    "followup": Suite(
        followup.run, "orders in the user's next turn, and the same tokens in the data", "3 min", ("alpacafarm",)
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
    "cost": Suite(cost.run, "tokens/s and memory, against --base", "2 min", ()),
    "adaptive": Suite(
        adaptive.run, "GCG, BEAST, best-of-n, transfer", "10 to 20 min for each example", ("alpacafarm",)
    ),
}
"""All suites, in the order of execution."""
