"""Batches, padding, truncation and caches of encoding."""

import gc
import re
import subprocess
import sys
import time
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, BatchEncoding, LlamaConfig

from rolesafe.roles.encoding import encode, encode_one
from rolesafe.roles.templates import Part
from tests.roles import chat_templates
from tests.roles.test_encoding import (
    CHAT,
    TOOL,
    chat_for,
    check_alignment,
    text_of,
)
from tests.roles.tokenizers import SHAPES, tokenizer_of

# --------------------------------------------------------------------------------------------------- batches, tensors


def test_batch_of_tensors():
    tokenizer = tokenizer_of("gemma3")
    batch = encode(tokenizer, [CHAT, CHAT[:2]], add_generation_prompt=True)
    assert isinstance(batch, BatchEncoding)
    assert set(batch) == {"input_ids", "attention_mask", "role_ids"}
    assert len({value.shape for value in batch.values()}) == 1
    assert all(value.dtype == torch.int64 for value in batch.values())
    assert batch.to("cpu")["role_ids"].shape[0] == 2
    for row, messages in enumerate([CHAT, CHAT[:2]]):
        one = encode_one(tokenizer, messages, add_generation_prompt=True)
        real = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row][real].tolist() == one.input_ids
        assert batch["role_ids"][row][real].tolist() == one.role_ids


@pytest.mark.parametrize("side", ["left", "right", None])
def test_padding(side):
    tokenizer = tokenizer_of("gemma3")
    batch = encode(tokenizer, [CHAT, CHAT[:2]], padding_side=side)
    mask = batch["attention_mask"][1]
    padded = mask == 0
    count = int(padded.sum())
    assert count > 0
    used = side or tokenizer.padding_side
    assert mask.tolist() == ([0] * count + [1] * (len(mask) - count))[:: 1 if used == "left" else -1]
    assert set(batch["input_ids"][1][padded].tolist()) == {tokenizer.pad_token_id}
    assert set(batch["role_ids"][1][padded].tolist()) == {TOOL}


def test_padding_to_a_length_and_without():
    tokenizer = tokenizer_of("llama3")
    assert tokenizer.pad_token is None
    batch = encode(tokenizer, CHAT, padding="max_length", max_length=100, padding_side="left")
    assert batch["input_ids"].shape == (1, 100)
    assert batch["input_ids"][0, 0] == tokenizer.eos_token_id
    rows = encode(tokenizer, [CHAT, CHAT[:2]], padding=False, return_tensors=None)
    assert len(rows["input_ids"][0]) > len(rows["input_ids"][1])
    assert isinstance(rows["role_ids"][0], list)


def test_result_goes_into_a_model():
    tokenizer = tokenizer_of("gemma3")
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
        )
    )
    batch = encode(tokenizer, [CHAT, CHAT[:2]], add_generation_prompt=True, padding_side="left")
    del batch["role_ids"]  # a plain model takes none
    assert model.generate(**batch, max_new_tokens=2, do_sample=False, pad_token_id=0).shape[0] == 2


# --------------------------------------------------------------------------------------------------------- truncation


@pytest.mark.parametrize("shape", SHAPES)
def test_truncation_cuts_old_unprivileged_contents(shape):
    tokenizer = tokenizer_of(shape)
    messages = chat_for(shape)
    whole = encode_one(tokenizer, messages, add_generation_prompt=True)
    for length in range(len(whole) + 1, 1, -1):
        try:
            cut = encode_one(tokenizer, messages, add_generation_prompt=True, truncation=True, max_length=length)
        except ValueError as error:
            rows = list(zip(whole.role_ids, whole.parts, strict=True))
            floor = int(re.search(r"expected at least (\d+)", str(error))[1])
            # a token that a content shares with the template's text is content, and never cut
            assert 0 <= floor - sum(r == 0 or p is not Part.CONTENT for r, p in rows) <= len(messages)
            assert length < floor
            break
        assert min(length, len(whole)) - 3 <= len(cut) <= min(length, len(whole))  # whole characters are cut
        check_alignment(cut, messages)

        def kept(e, keep):
            rows = zip(e.input_ids, e.role_ids, e.message_ids, e.parts, strict=True)
            return [row for row in rows if keep(*row[1:])]

        def never_cut(role, _, part):
            return role == 0 or part is not Part.CONTENT

        assert kept(cut, never_cut) == kept(whole, never_cut)
        for i in range(len(messages)):
            before = kept(whole, lambda r, m, p, i=i: m == i and p is Part.CONTENT)
            after = kept(cut, lambda r, m, p, i=i: m == i and p is Part.CONTENT)
            assert after == before[: len(after)]
            assert (len(after) < len(before)) == (i in cut.truncated)
        first = 1 if SHAPES[shape].system else 0
        assert cut.truncated == tuple(range(first, first + len(cut.truncated)))


# --------------------------------------------------------------------------------------------------------- properties

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30)


@given(
    st.sampled_from(sorted(n for n in SHAPES if n != "mistral-v3")),
    st.lists(TEXT, min_size=1, max_size=6),
    st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_alignment(shape, texts, generation):
    tokenizer = tokenizer_of(shape)
    roles = ["system"] * SHAPES[shape].system + ["user", "assistant"] * 3
    if SHAPES[shape].system and len(texts) == 1:
        texts = [*texts, ""]
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    encoded = encode_one(tokenizer, messages, add_generation_prompt=generation)
    check_alignment(encoded, messages)
    assert set(encoded.message_ids) >= set(range(len(messages)))
    if SHAPES[shape].lossless:
        for i, text in enumerate(texts):
            got = text_of(tokenizer, encoded, i, Part.CONTENT)
            assert got.replace("▁", " ").strip() == text.replace("▁", " ").strip()


# -------------------------------------------------------------------------------------------------------------- caches


def test_added_tokens_are_noticed():
    tokenizer = SHAPES["chatml"].build()
    tokenizer.chat_template = chat_templates.CHATML
    messages = [{"role": "user", "content": "a <|new|> b"}]
    before = encode_one(tokenizer, messages)
    tokenizer.add_tokens(["<|new|>"])
    assert encode_one(tokenizer, messages) == before
    tokenizer.chat_template = "<|new|>" + chat_templates.CHATML
    assert encode_one(tokenizer, messages).input_ids[0] == tokenizer.convert_tokens_to_ids("<|new|>")


def test_tokenizer_is_neither_kept_nor_changed():
    tokenizer = SHAPES["llama3"].build()
    tokenizer.chat_template = chat_templates.LLAMA3
    before = tokenizer.backend_tokenizer.to_str()
    encode(tokenizer, CHAT)
    assert tokenizer.backend_tokenizer.to_str() == before
    alive = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert alive() is None


def test_white_space_tokens_are_ordinary():
    tokenizer = SHAPES["chatml"].build()
    tokenizer.chat_template = chat_templates.CHATML
    tokenizer.add_tokens([AddedToken("\n\n\n", normalized=False), AddedToken("\t\t", normalized=False)])
    messages = [{"role": "user", "content": "a\n\n\nb\t\tc"}]
    encoded = encode_one(tokenizer, messages)
    assert encoded.input_ids == tokenizer.apply_chat_template(messages, return_dict=False)
    assert {tokenizer.convert_tokens_to_ids(t) for t in ("\n\n\n", "\t\t")} <= set(encoded.input_ids)


def test_encoding_time_is_linear_in_turns():
    """Guard against quadratic time: 400 turns once took 2.7 s, the template alone 0.03 s."""
    tokenizer = tokenizer_of("llama3")

    def seconds(turns: int) -> float:
        messages = [CHAT[0], *({"role": ("user", "assistant")[i % 2], "content": "Hello"} for i in range(turns))]
        encode_one(tokenizer, messages)
        best = float("inf")
        for _ in range(5):
            start = time.process_time()
            encode_one(tokenizer, messages)
            best = min(best, time.process_time() - start)
        return best

    assert seconds(800) < 40 * seconds(80)  # 10 times if linear, 95 times before


def test_import_is_light():
    code = (
        "import sys, rolesafe; rolesafe.encode; print(not {'torch', 'transformers', 'tokenizers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


def test_footer_ends_at_next_turn_opening():
    """The template rejects a system message at the end."""
    template = (
        "{% if messages[-1].role == 'system' %}{{ raise_exception('no') }}{% endif %}{% for m in messages %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + ' END\n<|im_end|> ***\n' }}{% endfor %}"
    )
    tokenizer = tokenizer_of("chatml")
    encoded = encode_one(tokenizer, CHAT, chat_template=template)
    assert text_of(tokenizer, encoded, 0, Part.FOOTER) == " END\n<|im_end|> ***\n"
    assert text_of(tokenizer, encoded, 1, Part.HEADER) == "<|im_start|>user\n"


def test_footer_between_turns_belongs_to_its_round():
    tokenizer = tokenizer_of("chatml")
    for footer, tail in [(" END", "<|im_end|>"), (" END\n", "<|end")]:
        template = (
            "{% for m in messages %}{{ m.content + '" + footer + "' }}"
            "{% if loop.last %}{{ '" + tail + "' }}{% else %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
        ).replace("\n", r"\n")
        encoded = encode_one(tokenizer, CHAT, chat_template=template)
        assert text_of(tokenizer, encoded, 0, Part.FOOTER) == footer + "<|im_end|>"
        assert text_of(tokenizer, encoded, 1, Part.HEADER) == ""
