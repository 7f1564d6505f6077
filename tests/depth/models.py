"""Random tabular models, harms and prefixes for the tests of the theory."""

from __future__ import annotations

import torch
from torch import Tensor

from rolesafe.depth import TabularModel

DRAWS = 2000


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_models(
    vocabulary: int = 3, length: int = 4, *, batch: tuple[int, ...] = (), scale: float = 1.0, seed: int = 0
) -> TabularModel:
    return TabularModel.random(vocabulary, length, batch=batch, scale=scale, generator=source(seed))


def random_harm(model: TabularModel, *, horizon: int | None = None, binary: bool = False, seed: int = 1) -> Tensor:
    """Return harm of the first `horizon` tokens, of all by default, (*B, *(V,) * T)."""
    decided = model.length if horizon is None else horizon
    values = torch.rand(model.shape(decided), generator=source(seed), dtype=torch.float64)
    values = (values < 0.4).double() if binary else values
    return values.reshape(*values.shape, *(1,) * (model.length - decided)).expand(model.shape(model.length))


def random_features(model: TabularModel, parameters: int, seed: int = 2) -> tuple[Tensor, ...]:
    """Return features of tokens and prefixes, the Jacobian of a log-linear model: T arrays (*B, *(V,) * t, K)."""
    generator = source(seed)
    shapes = [(*model.shape(t), parameters) for t in range(1, model.length + 1)]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def log_linear(base: TabularModel, features: tuple[Tensor, ...], theta: Tensor) -> TabularModel:
    """Return the base model with theta (*B, K) or (*B, T, K) times the features added to its logits."""
    tables = []
    for t, (table, rows) in enumerate(zip(base.tables, features, strict=True), 1):
        own = theta if theta.ndim == len(base.batch) + 1 else theta[..., t - 1, :]
        tables.append(table + (rows @ own.reshape(*base.batch, *(1,) * (t - 1), -1, 1)).squeeze(-1))
    return TabularModel(tables)
