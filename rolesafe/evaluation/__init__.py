"""Utility, resistance, statistics and the record of a comparison."""

from rolesafe.evaluation.environment import environment
from rolesafe.evaluation.resistance import Resistance, resistance, worst_case
from rolesafe.evaluation.results import SCHEMA_VERSION, AttackPoint, Environment, Results, Run
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
    "environment",
    "resistance",
    "score",
    "seed_mean",
    "utility",
    "wilson_interval",
    "worst_case",
]
