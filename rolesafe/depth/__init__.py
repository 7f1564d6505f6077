"""Depth of alignment: the harm martingale, its horizon, optima of alignment objectives, recovery, and their estimates.

Exact by enumeration for tiny vocabularies, by sampling for models of transformers. Source: R. Young, "Why Is RLHF
Alignment Shallow? A Gradient Analysis" (arXiv 2603.04851), with corrections; see docs/depth-theory.md.
"""

from rolesafe.depth.branches import Branches, BranchRow, BranchSettings, load_branches, save_branches
from rolesafe.depth.estimators import (
    horizon,
    information,
    least_rollouts,
    nested_variance,
    recovery_by_depth,
    sample_tabular,
    tail,
)
from rolesafe.depth.expansion import deep_equilibrium_kl, equilibrium_kl
from rolesafe.depth.gradients import (
    GradientBounds,
    fisher,
    fisher_traces,
    gradient,
    gradient_bounds,
    gradient_contributions,
    jacobian,
    scores,
)
from rolesafe.depth.harm import ClassifierHarm, Harm, HarmError, Reply, RuleHarm, TextHarm, TokenHarm
from rolesafe.depth.harm_process import Martingale, expected_harm, martingale
from rolesafe.depth.intervals import (
    Estimate,
    clopper_pearson,
    mean_rate,
    mean_value,
    t_interval,
    tango_interval,
    violating_mass,
)
from rolesafe.depth.objective import DeepObjective, conditional_kl, position_kl, standard_objective
from rolesafe.depth.optimum import DeepOptimum, deep_optimum, standard_optimum
from rolesafe.depth.profiles import check_same_tokenizer, kl_profile, recovery_profile
from rolesafe.depth.recovery_theory import (
    guarantee,
    guarantee_kl,
    recoverability,
    recovery,
    recovery_contributions,
    recovery_gradient,
    recovery_information,
    recovery_kl,
    recovery_probabilities,
    required_weight,
    shortest_prefix,
)
from rolesafe.depth.sampling import default_depths, sample_branches
from rolesafe.depth.split import KLSplit, kl_split
from rolesafe.depth.tabular import TabularModel, harm_table, tabulate

__all__ = [  # noqa: RUF022  (in the order of use)
    "TabularModel",
    "tabulate",
    "harm_table",
    "martingale",
    "Martingale",
    "expected_harm",
    "gradient",
    "gradient_contributions",
    "jacobian",
    "scores",
    "fisher",
    "fisher_traces",
    "gradient_bounds",
    "GradientBounds",
    "standard_optimum",
    "standard_objective",
    "deep_optimum",
    "DeepObjective",
    "DeepOptimum",
    "position_kl",
    "conditional_kl",
    "equilibrium_kl",
    "deep_equilibrium_kl",
    "kl_split",
    "KLSplit",
    "recovery",
    "recovery_kl",
    "recovery_probabilities",
    "recovery_information",
    "recovery_gradient",
    "recovery_contributions",
    "recoverability",
    "guarantee",
    "guarantee_kl",
    "required_weight",
    "shortest_prefix",
    "sample_branches",
    "default_depths",
    "Branches",
    "BranchSettings",
    "BranchRow",
    "save_branches",
    "load_branches",
    "sample_tabular",
    "Harm",
    "Reply",
    "TextHarm",
    "TokenHarm",
    "RuleHarm",
    "ClassifierHarm",
    "HarmError",
    "information",
    "tail",
    "horizon",
    "least_rollouts",
    "recovery_by_depth",
    "nested_variance",
    "recovery_profile",
    "kl_profile",
    "check_same_tokenizer",
    "Estimate",
    "mean_rate",
    "mean_value",
    "violating_mass",
    "clopper_pearson",
    "tango_interval",
    "t_interval",
]
