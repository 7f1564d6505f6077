"""Utility, resistance, statistics and the record of a comparison."""

from typing import Any

from rolesafe.evaluation.environment import environment
from rolesafe.evaluation.paired import Versus, holm, mcnemar, versus
from rolesafe.evaluation.records import AttackPoint, Environment, Run
from rolesafe.evaluation.resistance import Resistance, resistance, worst_case
from rolesafe.evaluation.results import SCHEMA_VERSION, Results
from rolesafe.evaluation.statistics import Rate, SeedMean, seed_mean, wilson_interval
from rolesafe.evaluation.utility import Utility, score, utility

__all__ = [
    "SCHEMA_VERSION",
    "AttackPoint",
    "Environment",
    "Rate",
    "Resistance",
    "Results",
    "Run",
    "SeedMean",
    "Utility",
    "Versus",
    "environment",
    "holm",
    "mcnemar",
    "resistance",
    "score",
    "seed_mean",
    "utility",
    "versus",
    "wilson_interval",
    "worst_case",
]

_MOVED = {
    "Plan": "benchmarks.override_resistance.targets",
    "Store": "benchmarks.override_resistance.store",
    "Verdict": "rolesafe.evaluation.verdict",
    "comparison": "benchmarks.override_resistance.targets",
    "store": "benchmarks.override_resistance.store",
    "verdicts": "benchmarks.override_resistance.targets",
}


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        raise ImportError(f"rolesafe.evaluation.{name} has moved to {_MOVED[name]} (a source checkout has it)")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
