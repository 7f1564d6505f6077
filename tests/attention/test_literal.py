"""The specification in plain loops, independent of the package: the test of `reference`."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given

from tests.attention.problems import MANY, ONE_WAY, Case, cases


def literal(case: Case) -> np.ndarray:
    """Role-aware attention, one query of one head at a time."""
    q, k, v = case.q.numpy(), case.k.numpy(), case.v.numpy()
    options = case.options
    batch, heads, length, dim = q.shape
    groups, keys = k.shape[1], k.shape[2]
    scale = options["scale"] or 1 / math.sqrt(dim)
    out = np.zeros((batch, heads, length, v.shape[3]))

    def visible(b: int, h: int, i: int, j: int) -> bool:
        position = i + keys - length
        if options["causal"] and j > position:
            return False
        if options.get("window") is not None and position - j >= options["window"]:
            return False
        mask = options.get("attention_mask")
        if mask is None:
            return True
        if mask.ndim == 2:
            return bool(mask[b, j])
        return bool(mask[b % mask.shape[0], h % mask.shape[1], i, j])

    def softmax_of(
        b: int,
        h: int,
        i: int,
        chosen: list[int],
        sink: float | None,
        raised: frozenset[int] = frozenset(),
        by: float = 0.0,
    ) -> np.ndarray:
        scores = {}
        for j in chosen:
            score = scale * float(q[b, h, i] @ k[b, h * groups // heads, j])
            if options.get("softcap"):
                score = options["softcap"] * math.tanh(score / options["softcap"])
            if case.bias is not None:
                score += float(case.bias[h, case.q_roles[b, i], case.k_roles[b, j]])
            if score != -math.inf:
                scores[j] = score + (by if j in raised else 0.0)
        total = sum(math.exp(score) for score in scores.values()) + (0.0 if sink is None else math.exp(sink))
        o = np.zeros(v.shape[3])
        for j, score in scores.items():
            o += math.exp(score) / total * v[b, h * groups // heads, j]
        softmax_of.saw = bool(scores)  # type: ignore[attr-defined]
        softmax_of.mass = sum(math.exp(scores[j]) for j in scores if j in high) / (total or 1)  # type: ignore[attr-defined]
        return o

    high: list[int] = []
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                seen = [j for j in range(keys) if visible(b, h, i, j)]
                high = [j for j in seen if int(case.k_roles[b, j]) in options["privileged"]]
                sinks = options.get("sinks")
                sink = None if sinks is None else float(sinks[h])
                ordinary = softmax_of(b, h, i, seen, sink)
                target, found = options.get("mass_target", 0.0), softmax_of.mass  # type: ignore[attr-defined]
                if 0 < found < target:  # SpotLight, as published: once more, with log(target / mass) on the scores
                    ordinary = softmax_of(b, h, i, seen, sink, frozenset(high), math.log(target / found))
                privileged = softmax_of(b, h, i, high, None)
                share = 0.0 if case.share is None else float(case.share[h])
                if not softmax_of.saw:  # type: ignore[attr-defined]
                    share = 0.0
                if h < options["dedicated"]:
                    share = 1.0
                if options["integrity"] and int(case.q_roles[b, i]) in options["privileged"]:
                    share = 1.0
                out[b, h, i] = (1 - share) * ordinary + share * privileged
    return out


@ONE_WAY
@MANY
@given(cases(extras=True, target=True))
def test_reference_equals_formula(case: Case) -> None:
    np.testing.assert_allclose(case.run("reference").numpy(), literal(case), rtol=0, atol=1e-10)


@MANY
@given(cases(target=True))
def test_sdpa_equals_formula(case: Case) -> None:
    np.testing.assert_allclose(case.run("sdpa").numpy(), literal(case), rtol=0, atol=1e-10)


@ONE_WAY
@MANY
@given(cases(target=True))
def test_mass_is_a_distribution(case: Case) -> None:
    mass = case.mass()
    total = mass.sum(-1)
    assert (mass >= 0).all()
    assert (torch.isclose(total, torch.ones_like(total)) | (total == 0)).all()
