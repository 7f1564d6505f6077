"""Rows with harm inside the reply: prefixes, spans, pairs, their ratio to benign rows."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import rolesafe
from rolesafe import RoleConfig
from rolesafe.training import (
    PreferenceRows,
    PrefixAugmentation,
    PromptRows,
    RecoveryPrefixes,
    RoleCollator,
    SafetyRows,
    SafetyTriplet,
    SpanInsertion,
)
from rolesafe.training.collator import IGNORED
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer

WORDS = """be safe how do I break it take the red wire then cut now no can not help with that sorry
hello there""".split()  # noqa: SIM905
TOKENIZER = tiny_tokenizer(WORDS)
CONFIG = RoleConfig()
COLLATOR = RoleCollator(tokenizer=TOKENIZER, config=CONFIG)
HARMFUL, REFUSAL = "take the red wire then cut it now", "sorry no I can not help with that"
PROMPT = [{"role": "system", "content": "be safe"}, {"role": "user", "content": "how do I break it"}]
TRIPLET = SafetyTriplet(messages=PROMPT, harmful=HARMFUL, refusal=REFUSAL)
BENIGN = [{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello there"}]}]


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


PREFIX = rolesafe.encode(TOKENIZER, PROMPT, add_generation_prompt=True, return_tensors=None)["input_ids"][0]
END = [TOKENIZER.eos_token_id]


def learned(row: Any) -> list[int]:
    return [label for label in row["labels"] if label != IGNORED]


def test_base_class_is_no_dataset() -> None:
    with pytest.raises(TypeError, match="abstract"):
        SafetyRows(COLLATOR, [TRIPLET], BENIGN)  # type: ignore[abstract]


def test_augmentation_row_is_prompt_prefix_and_whole_refusal() -> None:
    rows = PrefixAugmentation(COLLATOR, [TRIPLET], BENIGN, plain=0.0)
    torch.manual_seed(0)
    seen = set()
    for row in (rows[0] for _ in range(200)):
        k = len(row["input_ids"]) - len(PREFIX) - len(ids(REFUSAL)) - 1
        seen.add(k)
        assert row["input_ids"] == [*PREFIX, *ids(HARMFUL)[:k], *ids(REFUSAL), *END]
        assert learned(row) == [*ids(REFUSAL), *END]
        assert row["role_ids"][len(PREFIX) :] == [CONFIG.generated_id] * (k + len(ids(REFUSAL)) + 1)
        assert len(row["labels"]) == len(row["attention_mask"]) == len(row["input_ids"])
    assert seen == set(range(1, len(ids(HARMFUL)) + 1))


def test_augmentation_draws_as_published() -> None:
    """Half of the rows have no prefix; the others are uniform on 1 .. min(100, n)."""
    rows = PrefixAugmentation(COLLATOR, [TRIPLET], BENIGN, max_prefix=4)
    torch.manual_seed(0)
    count = collections.Counter(rows._draw(0) for _ in range(4000))
    assert sorted(count) == [0, 1, 2, 3, 4]
    assert abs(count[0] / 4000 - 0.5) < 0.03
    assert all(abs(count[k] / 4000 - 0.125) < 0.02 for k in range(1, 5))
    defaults = PrefixAugmentation(COLLATOR, [TRIPLET], BENIGN)
    assert (defaults.max_prefix, defaults.plain, defaults.safety_rows, defaults.benign_rows) == (100, 0.5, 4, 16)


def test_plain_row_equals_the_encoded_conversation() -> None:
    row = PrefixAugmentation(COLLATOR, [TRIPLET], BENIGN)._row(0, ())
    whole = COLLATOR.encode({"messages": [*PROMPT, {"role": "assistant", "content": REFUSAL}]})
    assert row == whole


def test_rows_keep_the_ratio_and_use_every_row() -> None:
    triplets = [SafetyTriplet(messages=PROMPT, harmful=HARMFUL, refusal=r) for r in ("no", "sorry", "no sorry")]
    benign = [{"messages": [*BENIGN[0]["messages"][:1], {"role": "assistant", "content": w}]} for w in WORDS[:7]]
    rows = PrefixAugmentation(COLLATOR, triplets, benign, safety_rows=2, benign_rows=3)
    assert len(rows) == 15
    kinds = ["benign" if "messages" in rows[i] else "safety" for i in range(15)]
    assert kinds == ["safety", "safety", "benign", "benign", "benign"] * 3
    assert {rows[i]["messages"][-1]["content"] for i in range(15) if "messages" in rows[i]} == set(WORDS[:7])
    with pytest.raises(IndexError, match=r"`index`: expected a row in \[0, 15\), got 15"):
        rows[15]


def test_rows_follow_the_global_seed() -> None:
    rows = PrefixAugmentation(COLLATOR, [TRIPLET], BENIGN)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append([rows[0] for _ in range(8)])
    assert drawn[0] == drawn[1] != drawn[2]


def test_recovery_prefixes_weigh_every_prefix() -> None:
    triplet = SafetyTriplet(messages=PROMPT, harmful=HARMFUL, refusal=REFUSAL, weight=2.5)
    rows = RecoveryPrefixes(COLLATOR, [triplet], BENIGN, plain=0.0, max_prefix=5)
    row = rows[0]
    assert row["input_ids"] == [*PREFIX, *ids(HARMFUL)[:5], ids(REFUSAL)[0]]
    assert row["prefix_weights"] == [0.0] * len(PREFIX) + [2.5] * 6
    assert learned(row) == []
    batch = COLLATOR([row, BENIGN[0]])
    assert batch["prefix_weights"].shape == batch["input_ids"].shape
    assert batch["prefix_weights"].sum(1).tolist() == [15.0, 0.0]


def test_prompt_rows_end_with_the_generation_prompt() -> None:
    row = PromptRows(COLLATOR, [TRIPLET], BENIGN)[0]
    assert row["input_ids"] == PREFIX
    assert learned(row) == []


# ----------------------------------------------------------------------------------------------------- worst insertion


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "roles"])
def model(request: pytest.FixtureRequest) -> Any:
    made = tiny_llama(len(TOKENIZER), seed=0, hidden=16, layers=1, heads=2)
    return rolesafe.patch(made, RoleConfig.preset("channel")) if request.param else made


def insertion(model: Any, **changes: Any) -> SpanInsertion:
    from rolesafe.patching import is_patched

    config = model.rolesafe_config if is_patched(model) else CONFIG
    collator = RoleCollator(tokenizer=TOKENIZER, config=config, with_roles=is_patched(model))
    return SpanInsertion(collator, [TRIPLET], BENIGN, model=model, **changes)


def test_insertion_row_is_the_worst_of_its_candidates(model: Any) -> None:
    rows = insertion(model, plain=0.0, length=3)
    model.train()
    torch.manual_seed(4)
    row = rows[0]
    assert model.training
    torch.manual_seed(4)
    torch.rand(())  # decides about a plain refusal
    candidates = rows._candidates(0)
    losses = rows.losses(candidates)
    assert len(candidates) == 9
    assert row == candidates[losses.index(max(losses))]
    for one in candidates:
        inside = one["input_ids"][len(PREFIX) : -len(ids(REFUSAL)) - 1]
        at = len(inside) - 3
        assert inside[:at] == ids(REFUSAL)[:at]
        assert " ".join(TOKENIZER.convert_ids_to_tokens(inside[at:])) in HARMFUL
        assert learned(one) == [*ids(REFUSAL), *END]


def test_insertion_scores_one_batch_in_one_pass(model: Any) -> None:
    rows = insertion(model, plain=0.0, safety_rows=4)
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    try:
        (batch,) = DataLoader(rows, batch_size=len(rows), collate_fn=list)
    finally:
        handle.remove()
    assert len(batch) == len(rows)
    assert len(calls) == 1


def test_insertion_in_a_worker_raises(model: Any) -> None:
    loader = DataLoader(insertion(model, plain=0.0), batch_size=2, collate_fn=list, num_workers=1)
    with pytest.raises(RuntimeError, match="`dataloader_num_workers`: expected 0 with SpanInsertion"):
        next(iter(loader))


# --------------------------------------------------------------------------------------------------------------- pairs


def test_preference_rows_collate_to_pairs() -> None:
    rows = PreferenceRows(COLLATOR, [TRIPLET], BENIGN, safety_rows=1, benign_rows=1)
    batch = COLLATOR([rows[0], rows[1]])
    assert batch["preference"].tolist() == [1, -1, 0]
    chosen, rejected = ([i for i in row if i != IGNORED] for row in batch["labels"][:2].tolist())
    assert chosen == [*ids(REFUSAL), *END]
    assert rejected == [*ids(HARMFUL), *END]
    whole = COLLATOR.encode({"messages": [*PROMPT, {"role": "assistant", "content": HARMFUL}]})
    assert rows[0]["rejected"] == whole


def test_collator_reads_conversations_of_pairs() -> None:
    """The format of TRL: `chosen` and `rejected` are conversations, with the prompt in them or in `prompt`."""
    safe, bad = ([{"role": "assistant", "content": text}] for text in (REFUSAL, HARMFUL))
    whole = COLLATOR([{"chosen": [*PROMPT, *safe], "rejected": [*PROMPT, *bad]}])
    apart = COLLATOR([{"prompt": PROMPT, "chosen": safe, "rejected": bad}])
    assert whole["preference"].tolist() == [1, -1]
    assert all(torch.equal(whole[name], apart[name]) for name in whole)


# ----------------------------------------------------------------------------------------------------------- bad input


def test_without_benign_rows_a_warning_names_the_cost() -> None:
    with pytest.warns(UserWarning, match="`benign`: expected benign rows, got none. Without them the model learns to"):
        rows = PrefixAugmentation(COLLATOR, [TRIPLET])
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"triplets": []}, "`triplets`: expected at least one SafetyTriplet, got none"),
        ({"max_prefix": 0}, "`max_prefix`: expected a number of tokens >= 1, got 0"),
        ({"plain": 1.0}, r"`plain`: expected a probability in \[0, 1\), got 1.0"),
        ({"safety_rows": 0}, "`safety_rows`: expected a number >= 1, got 0"),
        (
            {"triplets": [SafetyTriplet(messages=PROMPT, harmful="", refusal=REFUSAL)]},
            r"`triplets\[0\].harmful`: expected a reply of at least one token",
        ),
    ],
)
def test_rows_with_bad_arguments_raise(changes: dict[str, Any], message: str) -> None:
    given = {"triplets": [TRIPLET], **changes}
    with pytest.raises(ValueError, match=message):
        PrefixAugmentation(COLLATOR, given.pop("triplets"), BENIGN, **given)


def test_triplet_and_weights_out_of_range_raise() -> None:
    with pytest.raises(ValueError, match="`weight`: expected a positive number, got 0"):
        SafetyTriplet(messages=PROMPT, harmful=HARMFUL, refusal=REFUSAL, weight=0)
    row = RecoveryPrefixes(COLLATOR, [TRIPLET], BENIGN, plain=0.0)[0]
    with pytest.raises(ValueError, match="row 0: expected 21 `prefix_weights`, one per token, got 1"):
        COLLATOR([{**row, "prefix_weights": [1.0]}])
