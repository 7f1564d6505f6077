"""RolePipeline: replies with roles, in the form of transformers' pipeline."""

from __future__ import annotations

import pytest

import rolesafe
from rolesafe.attacks import replies
from rolesafe.integrations.pipeline import RolePipeline
from rolesafe.training.tiny import text_tokenizer, tiny_llama
from tests.retrain.conftest import ROWS

CHATS = [
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say something about rain."}],
    [{"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "Describe the house."}, {"role": "tool", "content": "The house is red."}],
]


@pytest.fixture(scope="module")
def chat():
    tokenizer = text_tokenizer([" ".join(row.values()) for row in ROWS], 512)
    base = tiny_llama(len(tokenizer), seed=0, hidden=32, layers=2, heads=4)
    return RolePipeline(rolesafe.patch(base, rolesafe.RoleConfig.preset("channel")), tokenizer)


def test_pipeline_replies_are_the_greedy_ones(chat):
    found = chat(CHATS, batch_size=2, max_new_tokens=6, do_sample=False)
    assert [one[0]["generated_text"][:-1] for one in found] == CHATS
    texts = [one[0]["generated_text"][-1]["content"].strip() for one in found]
    assert texts == replies(chat.model, chat.tokenizer, CHATS, max_new_tokens=6)
    (one,) = chat(CHATS[0], max_new_tokens=6, do_sample=False, return_full_text=False)
    assert one["generated_text"].strip() == texts[0]


def test_pipeline_returns_several_sequences(chat):
    found = chat(CHATS[:2], max_new_tokens=4, do_sample=True, num_return_sequences=3)
    assert [len(one) for one in found] == [3, 3]


def test_pipeline_passes_arguments_of_encode(chat):
    with pytest.raises(ValueError, match="`tools`: expected a chat template that prints them"):
        chat(CHATS[0], tools=[{"name": "f"}])


@pytest.mark.parametrize(
    "arguments, options, fragment",
    [
        (CHATS[0], {"batch_size": 0}, "`batch_size`"),
        (CHATS[0], {"role_ids": [1]}, "`role_ids`: expected no such option"),
        ("hello", {}, "`messages`: expected a list"),
        ([{"role": "boss", "content": "x"}], {}, "got the role 'boss'"),
        ([CHATS[0], [{"role": "boss", "content": "x"}]], {}, r"`messages\[1\]\[0\]"),
    ],
)
def test_pipeline_invalid_argument_raises(chat, arguments, options, fragment):
    with pytest.raises(ValueError, match=fragment):
        chat(arguments, **options)


def test_pipeline_on_plain_model_raises(chat):
    plain = tiny_llama(64, seed=0, hidden=32, layers=1, heads=2)
    with pytest.raises(ValueError, match="`model`: expected a role-aware model, got a LlamaForCausalLM"):
        RolePipeline(plain, chat.tokenizer)
    with pytest.raises(ValueError, match="`tokenizer`"):
        RolePipeline(chat.model)
