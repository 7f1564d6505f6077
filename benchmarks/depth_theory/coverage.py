"""Coverage of the intervals of the estimators on tabular models: how often they hold the exact value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rolesafe.depth import (
    Branches,
    Estimate,
    TabularModel,
    conditional_kl,
    horizon,
    information,
    martingale,
    mean_rate,
    mean_value,
    nested_variance,
    recovery_probabilities,
    sample_tabular,
    standard_optimum,
    tail,
)

ROLLOUTS = 192
TOLERANCE = 0.01
PREFIXES, CONTINUATIONS, DEPTH = 48, 4, 2


def model_of(vocabulary: int = 4, length: int = 5) -> TabularModel:
    """Return the model of the study."""
    return TabularModel.random(vocabulary, length, generator=torch.Generator().manual_seed(11))


def harm_of(model: TabularModel, kind: str) -> Tensor:
    """Return harm of the first 4 tokens: `binary` (probability near 0.4), `rare` (near 0.01) or `graded`."""
    shape = (model.vocabulary,) * (model.length - 1)
    values = torch.rand(shape, generator=torch.Generator().manual_seed(12), dtype=torch.float64)
    if kind != "graded":
        values = (values < (0.4 if kind == "binary" else 0.01)).double()
    return values.unsqueeze(-1).expand((model.vocabulary,) * model.length)


def study(runs: int = 1000, kinds: Sequence[str] = ("binary", "rare", "graded")) -> dict[str, Any]:
    """Return the coverage of every estimator, by kind of harm and by depth."""
    model = model_of()
    found: dict[str, Any] = {"runs": runs, "rollouts": ROLLOUTS, "vocabulary": model.vocabulary, "length": model.length}
    found["harm"] = {kind: _of_harm(model, harm_of(model, kind), runs) for kind in kinds}
    found["prefixes"] = _of_prefixes(model, runs)
    found["nested"] = _of_nested(model, harm_of(model, "binary"), runs)
    return found


def _of_harm(model: TabularModel, harm: Tensor, runs: int) -> dict[str, Any]:
    exact = martingale(model, harm)
    drawn = sample_tabular(model, harm, runs * ROLLOUTS, torch.Generator().manual_seed(13))
    parts = [
        Branches(drawn.depths, one, other)
        for one, other in zip(drawn.harm.split(ROLLOUTS), drawn.branched.split(ROLLOUTS), strict=True)
    ]
    residual = exact.residual[:-1].tolist()
    true_horizon = next(k for k, value in enumerate(exact.residual.tolist()) if value <= TOLERANCE)
    found = {
        "mean": float(exact.h[0]),
        "information": _coverage([information(part) for part in parts], exact.information.tolist()),
        "tail": _coverage([tail(part) for part in parts], residual),
        "horizon": _coverage([(horizon(part, TOLERANCE),) for part in parts], [float(true_horizon)]),
    }
    found["exact_information"] = exact.information.tolist()
    found["exact_tail"] = residual
    return found


def _of_prefixes(model: TabularModel, runs: int) -> dict[str, Any]:
    """Coverage of the mean recovery probability and of the KL by position, over the model's own prefixes."""
    aligned = standard_optimum(model, harm_of(model, "graded"), 3.0)
    drawn = aligned.sample(runs * ROLLOUTS, torch.Generator().manual_seed(14))
    tables = {
        "recovery": (recovery_probabilities(aligned, (0,)), mean_rate),
        "kl": (conditional_kl(aligned, model), mean_value),
    }
    found: dict[str, Any] = {}
    for name, (values, estimate) in tables.items():
        exact, estimates = [], []
        for t in range(1, model.length):  # one prefix of 0 tokens has nothing to estimate
            at = values[t].reshape(-1)[aligned.index(drawn[:, :t])]
            exact.append(float(aligned.mean(t, values[t])))
            estimates.append([estimate(part) for part in at.split(ROLLOUTS)])
        found[name] = _coverage(list(zip(*estimates, strict=True)), exact)
    return found


def _of_nested(model: TabularModel, harm: Tensor, runs: int) -> dict[str, Any]:
    """Coverage of the analysis of variance at one depth, and the bias of the plug-in variance."""
    generator = torch.Generator().manual_seed(15)
    exact = martingale(model, harm)
    between = float(exact.residual[0] - exact.residual[DEPTH])
    count = runs * PREFIXES
    prefixes = model.sample(count, generator)[:, :DEPTH].repeat_interleave(CONTINUATIONS, 0)
    whole = model.sample(count * CONTINUATIONS, generator, prefixes=prefixes)
    values = harm.reshape(-1)[model.index(whole)].reshape(runs, PREFIXES, CONTINUATIONS)
    estimates = [nested_variance(one) for one in values]
    return {
        "prefixes": PREFIXES,
        "continuations": CONTINUATIONS,
        "depth": DEPTH,
        "coverage": _coverage(estimates, [between, float(exact.residual[DEPTH])]),
        "exact_between": between,
        "mean_between": sum(one.value for one, _ in estimates) / runs,
        "mean_plug_in": float(values.mean(2).var(1).mean()),
    }


def _coverage(estimates: Sequence[Sequence[Estimate]], exact: Sequence[float]) -> list[float]:
    """Return the share of runs whose interval holds the exact value, by depth."""
    slack = 1e-12  # exact values are rounded
    holds: Callable[[Estimate, float], bool] = lambda one, value: one.low - slack <= value <= one.high + slack  # noqa: E731
    return [sum(holds(row[k], value) for row in estimates) / len(estimates) for k, value in enumerate(exact)]
