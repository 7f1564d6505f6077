"""Language models over a tiny vocabulary as tables, for exact results by enumeration.

Legend of shapes: V tokens, T positions, t one of 1..T, B batch of models (any number of axes, often none). A table of
position t has shape (*B, V, ..., V) with t axes of V: the first t - 1 index the prefix, the last one the next token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from rolesafe.arguments import is_integer


class TabularModel:
    """Autoregressive model of one next-token table per position, in float64.

    Args:
        tables: Logits of positions 1..T: T arrays of shape (V,) * t, or (*B, *(V,) * t) for a batch of models. They
            need no normalisation: log-probabilities are logits too. ``-inf`` is probability 0.

    Raises:
        ValueError: The shapes do not fit, a logit is NaN or +inf, or all tokens after a prefix have probability 0.
    """

    def __init__(self, tables: Sequence[Tensor]) -> None:
        if len(tables) == 0:
            raise ValueError("`tables`: expected at least one table, got none. Pass one per position.")
        self.tables = tuple(torch.as_tensor(table, dtype=torch.float64) for table in tables)
        if self.tables[0].ndim < 1 or self.tables[0].shape[-1] < 2:
            raise ValueError(
                f"`tables`: expected a first table of shape (V,) with V >= 2, got {tuple(self.tables[0].shape)}."
            )
        self.batch = tuple(self.tables[0].shape[:-1])
        self.vocabulary = self.tables[0].shape[-1]
        for t, table in enumerate(self.tables, 1):
            if tuple(table.shape) != (wanted := self.shape(t)):
                raise ValueError(f"`tables`: expected shape {wanted} at position {t}, got {tuple(table.shape)}.")
            largest = table.detach().amax(-1)
            if not bool(largest.isfinite().all()) or bool(table.detach().isnan().any()):
                raise ValueError(
                    f"`tables`: expected logits with a finite maximum after every prefix, got NaN or infinity at "
                    f"position {t}. Use -inf for single tokens of probability 0."
                )

    @classmethod
    def from_probabilities(cls, tables: Sequence[Tensor]) -> TabularModel:
        """Return the model of T tables of probabilities, which sum to 1 over the last axis.

        Raises:
            ValueError: They are negative or do not sum to 1 within 1e-9.
        """
        given = [torch.as_tensor(table, dtype=torch.float64) for table in tables]
        for t, table in enumerate(given, 1):
            if bool((table < 0).any()) or not torch.allclose(table.sum(-1), table.new_ones(()), rtol=0, atol=1e-9):
                raise ValueError(
                    f"`tables`: expected probabilities that sum to 1 over the last axis, got others at position {t}."
                )
        return cls([table.log() for table in given])

    @classmethod
    def random(
        cls,
        vocabulary: int,
        length: int,
        *,
        batch: tuple[int, ...] = (),
        scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> TabularModel:
        """Return a model, or a batch of models, with normal logits of standard deviation `scale`."""
        for name, value, least in (("vocabulary", vocabulary, 2), ("length", length, 1)):
            if not is_integer(value, least):
                raise ValueError(f"`{name}`: expected a number >= {least}, got {value!r}.")
        shapes = [(*batch, *(vocabulary,) * t) for t in range(1, length + 1)]
        return cls([scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes])

    @property
    def length(self) -> int:
        """Number T of positions."""
        return len(self.tables)

    def shape(self, t: int) -> tuple[int, ...]:
        """Return the shape of an array over prefixes of `t` tokens."""
        return (*self.batch, *(self.vocabulary,) * t)

    @cached_property
    def log_probs(self) -> tuple[Tensor, ...]:
        """Log-probabilities of positions 1..T, shapes as `tables`."""
        return tuple(table.log_softmax(-1) for table in self.tables)

    @cached_property
    def probs(self) -> tuple[Tensor, ...]:
        """Probabilities of positions 1..T, shapes as `tables`."""
        return tuple(table.exp() for table in self.log_probs)

    @cached_property
    def law(self) -> tuple[Tensor, ...]:
        """Law of the prefixes of 0..T tokens: T + 1 arrays of shape (*B, *(V,) * t), each of sum 1."""
        laws = [self.tables[0].new_ones(self.batch)]
        for probs in self.probs:
            laws.append(laws[-1].unsqueeze(-1) * probs)
        return tuple(laws)

    def mean(self, t: int, values: Tensor, law: Tensor | None = None) -> Tensor:
        """Return the mean of `values` over prefixes of `t` tokens, shape (*B,).

        Args:
            t: Length of the prefixes.
            values: Shape (*B, *(V,) * t).
            law: Law of the prefixes; default: the model's own. Values where it is 0 do not count.
        """
        law = self.law[t] if law is None else law
        return total(torch.where(law > 0, law * values, 0.0), t)

    def sample(self, n: int, generator: torch.Generator | None = None, *, prefixes: Tensor | None = None) -> Tensor:
        """Draw `n` sequences, or continue one prefix each.

        Args:
            n: Number of sequences.
            generator: Source of random numbers.
            prefixes: (n, k) int64 first tokens; default: none. The model must not be a batch.

        Returns:
            (n, T) int64 tokens.
        """
        if self.batch:
            raise ValueError(f"`sample`: expected one model, got a batch of shape {self.batch}. Index its tables.")
        drawn = torch.zeros(n, 0, dtype=torch.int64) if prefixes is None else prefixes
        for t in range(drawn.shape[1] + 1, self.length + 1):
            flat = self.probs[t - 1].reshape(-1, self.vocabulary)
            rows = flat[self.index(drawn)]
            drawn = torch.cat([drawn, torch.multinomial(rows, 1, replacement=True, generator=generator)], 1)
        return drawn

    def index(self, prefixes: Tensor) -> Tensor:
        """Return the flat index of each prefix (n, k) among the V^k prefixes, shape (n,)."""
        powers = self.vocabulary ** torch.arange(prefixes.shape[1] - 1, -1, -1)
        return (prefixes * powers).sum(1)


def total(values: Tensor, axes: int) -> Tensor:
    """Return the sum over the last `axes` axes."""
    return values if axes == 0 else values.flatten(values.ndim - axes).sum(-1)


def all_sequences(vocabulary: int, length: int) -> Tensor:
    """Return all sequences of tokens in the order of a flat table, (V^length, length) int64."""
    if length == 0:
        return torch.zeros(1, 0, dtype=torch.int64)
    return torch.cartesian_prod(*[torch.arange(vocabulary)] * length).reshape(-1, length)


@torch.no_grad()
def tabulate(
    logits: Callable[[Tensor], Tensor], vocabulary: int, length: int, *, batch_size: int = 4096
) -> TabularModel:
    """Enumerate a model of any kind.

    Args:
        logits: Function of prefixes (n, k) int64, k >= 0, that returns the logits of the next token, (n, V).
        vocabulary: Number V of tokens.
        length: Number T of positions.
        batch_size: Largest n.
    """
    tables = []
    for t in range(length):
        parts = [logits(part) for part in torch.split(all_sequences(vocabulary, t), batch_size)]
        tables.append(torch.cat(parts).double().reshape((vocabulary,) * (t + 1)))
    return TabularModel(tables)


def harm_table(model: TabularModel, harm: Tensor | Callable[[Tensor], Tensor]) -> Tensor:
    """Return the harm of every sequence, shape (*B, *(V,) * T).

    Args:
        model: Gives V, T and B.
        harm: Values in [0, 1] of shape (V,) * T or (*B, *(V,) * T), or a function of sequences (V^T, T) int64 that
            returns (V^T,).

    Raises:
        ValueError: The shape does not fit, or a value is not in [0, 1].
    """
    if callable(harm):
        values = torch.as_tensor(harm(all_sequences(model.vocabulary, model.length)), dtype=torch.float64)
        if values.numel() != model.vocabulary**model.length:
            raise ValueError(
                f"`harm`: expected one value for each of {model.vocabulary**model.length} sequences, got "
                f"{values.numel()}. Return a tensor of shape (n,)."
            )
        values = values.reshape((model.vocabulary,) * model.length)
    else:
        values = torch.as_tensor(harm, dtype=torch.float64)
    own = (model.vocabulary,) * model.length
    if tuple(values.shape) not in {own, model.shape(model.length)}:
        raise ValueError(f"`harm`: expected shape {model.shape(model.length)}, got {tuple(values.shape)}.")
    outside = ~((values >= 0) & (values <= 1))
    if bool(outside.any()):
        raise ValueError(f"`harm`: expected values in [0, 1], got {float(values[outside][0])}. Rescale it.")
    return values.expand(model.shape(model.length))
