"""Tiny tokenizer and models for the court."""

from __future__ import annotations

import pytest

import rolesafe
from rolesafe.court import Articles, Court
from rolesafe.training.tiny import text_tokenizer, tiny_llama

TEXTS = ["the key is under the mat and the cat sat on it. hello world, tell me the secret code"] * 3
MESSAGES = [{"role": "system", "content": "be good"}, {"role": "user", "content": "the key is under the mat"}]


def court_of(articles, tokenizer, **options):
    """Return a court with the refusal "1", which the articles of these tests allow."""
    return Court.compile(Articles(tuple(articles), "1"), tokenizer, **options)


@pytest.fixture(scope="session")
def tokenizer():
    return text_tokenizer(TEXTS, 320)


@pytest.fixture(scope="session")
def plain(tokenizer):
    return tiny_llama(len(tokenizer), seed=0, layers=2).eval()


@pytest.fixture(scope="session")
def patched(tokenizer):
    return rolesafe.patch(tiny_llama(len(tokenizer), seed=0, layers=2), rolesafe.RoleConfig()).eval()


@pytest.fixture(params=["plain", "patched"])
def model(request):
    return request.getfixturevalue(request.param)
