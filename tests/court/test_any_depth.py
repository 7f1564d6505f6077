"""Any-Depth Alignment: a repeated header recovers at any depth, and leaves other replies alone."""

from __future__ import annotations

from typing import Any

import pytest

import rolesafe
from rolesafe import RoleConfig
from rolesafe.attacks import replies
from rolesafe.court import any_depth_replies
from tests.attacks.stubs import make_model
from tests.attacks.test_depth import EXAMPLE, REFUSAL, SHALLOW, START, TOKENIZER, WANTED, bigram


def refuses(text: str) -> bool:
    return "can not say" in text


def test_shallow_model_recovers_at_every_depth() -> None:
    model = bigram(*SHALLOW)
    prefixes = [[WANTED[0]] * k for k in (0, 1, 5, 40)]
    found = any_depth_replies(model, TOKENIZER, EXAMPLE.messages, refuses=refuses, prefixes=prefixes)
    assert [one.refused_after for one in found] == [0, 1, 5, 40]
    assert all(one.own == tuple(REFUSAL) and one.checks == 1 for one in found)
    assert all(EXAMPLE.violation not in one.text for one in found)


def test_model_without_refusal_is_unchanged() -> None:
    model = bigram([START, *WANTED, 1])
    (one,) = any_depth_replies(model, TOKENIZER, EXAMPLE.messages, refuses=refuses, every=2)
    assert [one.text] == replies(model, TOKENIZER, [EXAMPLE.messages])
    assert one.refused_after is None
    assert one.checks == 3  # before the tokens 0, 2 and 4; the turn ended after the fourth


@pytest.mark.parametrize("roles", [False, True])
def test_replies_without_refusal_equal_greedy_ones(roles: bool) -> None:
    model = make_model()
    if roles:
        rolesafe.patch(model, RoleConfig(embedding="input")).eval()
    (one,) = any_depth_replies(
        model, TOKENIZER, EXAMPLE.messages, refuses=lambda text: False, every=3, look=2, max_new_tokens=7
    )
    assert [one.text] == replies(model, TOKENIZER, [EXAMPLE.messages], max_new_tokens=7)
    assert len(one.own) == 7


@pytest.mark.parametrize("changes", [{"every": 0}, {"look": 0}, {"max_new_tokens": 0}])
def test_number_out_of_range_raises(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"`\w+`: expected a number >= 1, got 0"):
        any_depth_replies(make_model(), TOKENIZER, EXAMPLE.messages, refuses=refuses, **changes)
