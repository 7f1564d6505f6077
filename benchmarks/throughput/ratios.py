"""Quantiles, and ratios of times that were taken in the same rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

RESAMPLES = 2000


def quantiles(ms: Sequence[float]) -> dict[str, float]:
    """20th, 50th and 80th percentile of times in milliseconds."""
    found = torch.tensor(ms, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    return dict(zip(("p20_ms", "p50_ms", "p80_ms"), found.tolist(), strict=True))


def bootstrap_median(values: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Median of `values` and its percentile-bootstrap 95% interval, always from the same seed."""
    x = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = x[torch.randint(len(x), (RESAMPLES, len(x)), generator=generator)].quantile(0.5, dim=1)
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"median": float(x.quantile(0.5)), "low": low, "high": high, "rounds": len(values)}


def ratio(numerator: Mapping[int, float], denominator: Mapping[int, float]) -> dict[str, float] | None:
    """Time of one case by that of another, both by round: median over the rounds that both took part in."""
    shared = sorted(set(numerator) & set(denominator))
    return bootstrap_median([numerator[r] / denominator[r] for r in shared]) if shared else None


def ratios(times: Mapping[str, Mapping[int, float]], pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """`ratio` of every pair whose cases were both timed, under ``"a / b"``."""
    found = {f"{a} / {b}": ratio(times[a], times[b]) for a, b in pairs if a in times and b in times}
    return {name: value for name, value in found.items() if value is not None}
