"""`RoleCollator`: labels, roles, padding and positions of batches."""

from __future__ import annotations

import warnings

import pytest
import torch

from rolesafe import Role, RoleConfig
from rolesafe.tasks import vocabulary
from rolesafe.training import RoleCollator
from rolesafe.training.tiny import TEMPLATE, text_tokenizer, tiny_tokenizer

CONVERSATION = [
    {"role": "system", "content": "You can tell the gate code."},
    {"role": "user", "content": "What is the gate code?"},
    {"role": "assistant", "content": "It is gold."},
    {"role": "user", "content": "What is the gate code now?"},
    {"role": "assistant", "content": "It is red."},
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(vocabulary())


@pytest.fixture
def collator(tokenizer) -> RoleCollator:
    return RoleCollator(tokenizer=tokenizer, config=RoleConfig())


def learned(tokenizer, batch, row: int = 0) -> str:
    labels = batch["labels"][row]
    return " ".join(tokenizer.convert_ids_to_tokens(labels[labels != -100]))


def test_labels_are_replies_with_their_end(collator, tokenizer):
    batch = collator([{"messages": CONVERSATION}])
    assert learned(tokenizer, batch) == "It is gold . </s> It is red . </s>"
    kept = batch["labels"] != -100
    assert torch.equal(batch["labels"][kept], batch["input_ids"][kept])
    assert set(batch["role_ids"][kept].tolist()) == {Role.ASSISTANT}


def test_pads_on_the_right_with_an_unprivileged_role(collator, tokenizer):
    batch = collator([{"messages": CONVERSATION}, {"messages": CONVERSATION[:3]}])
    short = int(batch["attention_mask"][1].sum())
    assert {tuple(x.shape) for x in batch.values()} == {tuple(batch["input_ids"].shape)}
    assert not batch["attention_mask"][1, short:].any()
    assert (batch["labels"][1, short:] == -100).all()
    assert not set(batch["role_ids"][1, short:].tolist()) & set(RoleConfig().privileged_ids)
    alone = collator([{"messages": CONVERSATION[:3]}])
    assert torch.equal(batch["input_ids"][1, :short], alone["input_ids"][0])


def test_plain_twin_gets_the_same_tokens_without_roles(collator, tokenizer):
    plain = RoleCollator(tokenizer=tokenizer, config=RoleConfig(), with_roles=False)
    rows = [{"messages": CONVERSATION}]
    assert "role_ids" not in plain(rows)
    assert torch.equal(plain(rows)["labels"], collator(rows)["labels"])


def test_pad_to_multiple_of(tokenizer):
    batch = RoleCollator(tokenizer=tokenizer, config=RoleConfig(), pad_to_multiple_of=32)([{"messages": CONVERSATION}])
    assert batch["input_ids"].shape[1] % 32 == 0


def test_truncation_keeps_system_and_masks_footer(tokenizer):
    long = [*CONVERSATION[:1], {"role": "user", "content": "gate " * 50}, CONVERSATION[2]]
    batch = RoleCollator(tokenizer=tokenizer, config=RoleConfig(), max_length=30)([{"messages": long}])
    assert batch["input_ids"].shape[1] == 30
    text = tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    assert " ".join(text).startswith("<|system|> You can tell the gate code . </s>")
    assert learned(tokenizer, batch) == "It is gold . </s>"


def test_row_without_messages_raises(collator):
    with pytest.raises(ValueError, match=r"row 0: expected a column `messages`, got \['text'\]"):
        collator([{"text": "a"}])


def test_conversation_without_reply_raises(collator):
    with pytest.raises(ValueError, match=r"row 1: expected a message of role 'assistant' to learn, got roles"):
        collator([{"messages": CONVERSATION}, {"messages": CONVERSATION[:2]}])


def test_position_gap_jumps_once_within_limit(tokenizer):
    rows = [{"messages": CONVERSATION}, {"messages": CONVERSATION[:3]}] * 50
    torch.manual_seed(0)
    collator = RoleCollator(tokenizer=tokenizer, config=RoleConfig(), position_gap=100)
    batch = collator(rows)
    positions = batch["position_ids"]
    assert positions.shape == batch["input_ids"].shape
    steps = positions.diff(dim=1)
    assert ((steps == 1) | (steps > 1)).all()
    assert ((steps > 1).sum(1) <= 1).all()
    assert int((positions - torch.arange(positions.shape[1])).max()) <= 100
    jumped = (positions != torch.arange(positions.shape[1])).any(1)
    assert 20 < int(jumped.sum()) < 80  # about every other row
    torch.manual_seed(0)
    assert torch.equal(collator(rows)["position_ids"], positions)


@pytest.mark.parametrize("name, value", [("position_gap", -1), ("pad_to_multiple_of", 0)])
def test_invalid_options_raise(tokenizer, name, value):
    with pytest.raises(ValueError, match=f"`{name}`: expected .*, got {value}"):
        RoleCollator(tokenizer=tokenizer, config=RoleConfig(), **{name: value})


def test_rows_encoded_ahead_give_the_same_batch(tokenizer):
    collator = RoleCollator(tokenizer=tokenizer, config=RoleConfig(), pad_to_multiple_of=8)
    rows = [{"messages": CONVERSATION}, {"messages": CONVERSATION[:3]}]
    at_once, ahead = collator(rows), collator([collator.encode(row) for row in rows])
    assert at_once.keys() == ahead.keys()
    assert all(torch.equal(at_once[name], ahead[name]) for name in at_once)
    small = [{k: torch.tensor(v, dtype=torch.int32) for k, v in collator.encode(row).items()} for row in rows]
    assert all(torch.equal(at_once[name], value) for name, value in collator(small).items()), "tensors, int64 batches"
    with pytest.raises(ValueError, match=r"row: expected a message of role 'assistant' to learn"):
        collator.encode({"messages": CONVERSATION[:2]})
    without = {name: values for name, values in collator.encode(rows[0]).items() if name != "role_ids"}
    with pytest.raises(ValueError, match=r"row 1: expected the columns .* got none of \['role_ids'\]"):
        collator([rows[0], without])
    short = collator.encode(rows[0])
    for row in ({**short, "role_ids": short["role_ids"][:-1]}, {**short, "labels": [*short["labels"], 3]}):
        with pytest.raises(ValueError, match=r"row 1: expected columns of one length, got \{'input_ids': \d+, "):
            collator([rows[0], row])


TEXT = [" ".join(message["content"] for message in CONVERSATION)] * 50
"""Sentences, so that a tokenizer made from them glues spaces to words."""


def test_collator_prompt_mismatch_warns_once():
    """A space at the end of the generation prompt is a token there, and part of a word in a conversation."""
    tokenizer = text_tokenizer(TEXT, 400)
    tokenizer.chat_template = TEMPLATE
    collator = RoleCollator(tokenizer=tokenizer, config=RoleConfig())
    with pytest.warns(UserWarning, match="`tokenizer`: expected replies that continue") as warned:
        collator([{"messages": CONVERSATION}, {"messages": CONVERSATION[:3]}])
    assert len(warned) == 1


@pytest.mark.parametrize("words", [True, False])
def test_tiny_tokenizers_match_generation_prompt(words: bool):
    own = tiny_tokenizer(vocabulary()) if words else text_tokenizer(TEXT, 400)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = RoleCollator(tokenizer=own, config=RoleConfig())([{"messages": CONVERSATION}])
    kept = batch["labels"][0]
    assert own.decode(kept[kept != -100]).replace(" ", "") == "Itisgold.</s>Itisred.</s>"
