"""Definitions 1, 3 and 5, propositions 2, 4 and 6, corollary 7, theorem 9 and remark 1, by enumeration."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from rolesafe.depth import TabularModel, harm_table, martingale, tabulate
from rolesafe.depth.tabular import all_sequences
from tests.depth.models import DRAWS, random_harm, random_models


@pytest.mark.parametrize(("vocabulary", "length"), [(2, 3), (3, 4)])
def test_expected_harm_equals_sum_over_sequences(vocabulary: int, length: int) -> None:
    model = random_models(vocabulary, length)
    harm = random_harm(model)
    found = martingale(model, harm)
    for t in range(length + 1):
        for prefix in product(range(vocabulary), repeat=t):
            mean = 0.0
            for rest in product(range(vocabulary), repeat=length - t):
                y = prefix + rest
                chance = math.prod(float(model.probs[s][y[: s + 1]]) for s in range(t, length))
                mean += chance * float(harm[y])
            assert float(found.h[t][prefix]) == pytest.approx(mean, abs=1e-12)


def test_martingale_identities_on_random_models() -> None:
    model = random_models(4, 5, batch=(20,))
    harm = random_harm(model)
    found = martingale(model, harm)
    for t in range(1, 6):
        mean = (model.probs[t - 1] * found.h[t]).sum(-1)
        assert torch.allclose(mean, found.h[t - 1], rtol=0, atol=1e-10)  # Prop. 2
    parts = [d.reshape(*d.shape, *(1,) * (5 - t)).expand(model.shape(5)) for t, d in enumerate(found.innovations, 1)]
    start = found.h[0].reshape(-1, *(1,) * 5)
    assert torch.allclose(start + sum(parts), harm, rtol=0, atol=1e-10)  # Prop. 4
    products = torch.stack([model.mean(5, a * b) for i, a in enumerate(parts) for b in parts[:i]])
    assert float(products.abs().max()) < 1e-10
    drop = found.residual[:, :-1] - found.residual[:, 1:]
    assert torch.allclose(drop, found.information, rtol=0, atol=1e-10)  # Prop. 6
    variance = model.mean(5, harm.square()) - model.mean(5, harm).square()
    assert torch.allclose(found.information.sum(-1), variance, rtol=0, atol=1e-10)  # Cor. 7
    assert torch.allclose(found.residual[:, 0], variance, rtol=0, atol=1e-10)
    assert bool((found.residual[:, -1] == 0).all())


def test_horizon_is_last_position_with_information() -> None:
    for decided in range(1, 5):
        model = random_models(3, 4, batch=(50,))
        found = martingale(model, random_harm(model, horizon=decided))
        assert bool((found.horizon == decided).all())
        assert bool((found.information[:, decided:] == 0).all())  # exactly, Thm. 9 (ii) to (i)
        assert bool((found.residual[:, decided:] == 0).all())
        assert bool((found.information[:, decided - 1] > 0).all())


def test_horizon_counts_reachable_prefixes_only() -> None:
    """Theorem 9 holds almost surely under the model: a token of probability 0 decides nothing."""
    harm = torch.zeros(2, 2, dtype=torch.float64)
    harm[1, 1] = 1.0
    tables = [torch.tensor([0.0, -torch.inf]), torch.zeros(2, 2)]
    assert martingale(TabularModel(tables), harm).horizon == 0
    assert martingale(TabularModel([torch.zeros(2), torch.zeros(2, 2)]), harm).horizon == 2


def test_information_is_at_most_half_the_mutual_information() -> None:
    """Remark 1 for harm of 0 and 1, with MI_t = I(Harm; y_t | prefix) in nats."""
    model = random_models(3, 4, batch=(DRAWS,), scale=2.0)
    found = martingale(model, random_harm(model, binary=True))

    def entropy(h: torch.Tensor) -> torch.Tensor:
        h = h.clamp(0, 1)
        return -(torch.xlogy(h, h) + torch.xlogy(1 - h, 1 - h))

    means = torch.stack([model.mean(t, entropy(h)) for t, h in enumerate(found.h)], -1)
    mutual = means[:, :-1] - means[:, 1:]
    assert bool((found.information <= mutual / 2 + 1e-12).all())


def test_sample_follows_the_law() -> None:
    model = random_models(3, 3)
    drawn = model.sample(200_000, torch.Generator().manual_seed(0))
    shares = torch.bincount(model.index(drawn), minlength=27) / len(drawn)
    assert torch.allclose(shares.double(), model.law[3].reshape(-1), atol=5e-3)


def test_tabulate_reads_a_function_of_prefixes() -> None:
    model = random_models(3, 3)
    again = tabulate(lambda prefixes: model.tables[prefixes.shape[1]].reshape(-1, 3)[model.index(prefixes)], 3, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.tables, again.tables, strict=True))


def test_harm_function_equals_its_table() -> None:
    model = random_models(3, 3)
    table = harm_table(model, lambda y: (y[:, 0] == y[:, 2]).double())
    rows = table.reshape(-1)[model.index(all_sequences(3, 3))]
    assert torch.equal(rows, (all_sequences(3, 3)[:, 0] == all_sequences(3, 3)[:, 2]).double())


def test_bad_tables_and_harms_raise() -> None:
    with pytest.raises(ValueError, match="`tables`: expected at least one table"):
        TabularModel([])
    with pytest.raises(ValueError, match=r"`tables`: expected shape \(2, 2\) at position 2, got \(2, 3\)"):
        TabularModel([torch.zeros(2), torch.zeros(2, 3)])
    for bad in (torch.tensor([0.0, torch.nan]), torch.full((2,), -torch.inf), torch.tensor([0.0, torch.inf])):
        with pytest.raises(ValueError, match="`tables`: expected logits with a finite maximum"):
            TabularModel([bad])
    with pytest.raises(ValueError, match="`tables`: expected probabilities that sum to 1"):
        TabularModel.from_probabilities([torch.tensor([0.5, 0.6])])
    model = random_models(2, 2)
    with pytest.raises(ValueError, match=r"`harm`: expected values in \[0, 1\], got 1.5"):
        martingale(model, torch.full((2, 2), 1.5))
    with pytest.raises(ValueError, match=r"`harm`: expected values in \[0, 1\], got nan"):
        martingale(model, torch.full((2, 2), torch.nan))
    with pytest.raises(ValueError, match=r"`harm`: expected shape \(2, 2\), got \(2,\)"):
        martingale(model, torch.zeros(2))
    with pytest.raises(ValueError, match="`harm`: expected one value for each of 4 sequences, got 1"):
        martingale(model, lambda y: torch.zeros(1))
    with pytest.raises(ValueError, match="`sample`: expected one model, got a batch"):
        random_models(batch=(2,)).sample(3)
