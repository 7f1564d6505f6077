"""Utility, resistance, statistics and the record of a comparison."""

from rolesafe.evaluation.environment import environment
from rolesafe.evaluation.resistance import Resistance, resistance, worst_case
from rolesafe.evaluation.results import SCHEMA_VERSION, AttackPoint, Environment, Results, Run
from rolesafe.evaluation.statistics import Estimate, Rate, bootstrap_interval, over_seeds, wilson_interval
from rolesafe.evaluation.utility import Utility, score, utility

__all__ = [
    "SCHEMA_VERSION",
    "AttackPoint",
    "Environment",
    "Estimate",
    "Rate",
    "Resistance",
    "Results",
    "Run",
    "Utility",
    "bootstrap_interval",
    "environment",
    "over_seeds",
    "resistance",
    "score",
    "utility",
    "wilson_interval",
    "worst_case",
]
