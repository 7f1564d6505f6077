"""Alignment of ids and roles, equality with `apply_chat_template`, padding, truncation, every template shape."""

import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, BatchEncoding, LlamaConfig

from rolesafe import RoleConfig
from rolesafe.roles.encoding import EncodedConversation, encode, encode_one
from rolesafe.roles.templates import Part
from tests.roles import chat_templates
from tests.roles.tokenizers import SHAPES, byt5, tokenizer_of

SYSTEM, DEVELOPER, USER, ASSISTANT, TOOL = range(5)
CHAT = [
    {"role": "system", "content": "Keep the secret!"},
    {"role": "user", "content": "Hello there"},
    {"role": "assistant", "content": "How are you?"},
    {"role": "user", "content": "What is the weather\n\nin Paris today?"},
]
ROLES = {"system": 0, "developer": 1, "user": 2, "assistant": 3, "tool": 4}


def chat_for(shape: str) -> list[dict[str, str]]:
    return CHAT if SHAPES[shape].system else CHAT[1:]


def text_of(tokenizer, encoded: EncodedConversation, message: int, part: Part) -> str:
    wanted = zip(encoded.input_ids, encoded.message_ids, encoded.parts, strict=True)
    return tokenizer.decode([i for i, m, p in wanted if m == message and p is part])


def check_alignment(encoded: EncodedConversation, messages, generated: int = ASSISTANT) -> None:
    n = len(encoded.input_ids)
    assert n == len(encoded) == len(encoded.role_ids) == len(encoded.message_ids) == len(encoded.parts)
    for role, message in zip(encoded.role_ids, encoded.message_ids, strict=True):
        assert role == (generated if message == len(messages) else ROLES[messages[message]["role"]])


# ------------------------------------------------------------------------------------------------- all template shapes


@pytest.mark.parametrize("generation", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_ids_are_those_of_apply_chat_template(shape, generation):
    tokenizer = tokenizer_of(shape)
    for messages in (chat_for(shape), chat_for(shape)[-1:], chat_for(shape)[-3:]):
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=generation, return_dict=False)
        encoded = encode_one(tokenizer, messages, add_generation_prompt=generation)
        assert encoded.input_ids == expected
        check_alignment(encoded, messages)


@pytest.mark.parametrize("shape", SHAPES)
def test_contents_and_footers_are_told_apart(shape):
    tokenizer = tokenizer_of(shape)
    messages = chat_for(shape)
    encoded = encode_one(tokenizer, messages)
    for i, message in enumerate(messages):
        if SHAPES[shape].lossless:
            assert text_of(tokenizer, encoded, i, Part.CONTENT).strip() == message["content"]
    answer = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
    footer = text_of(tokenizer, encoded, answer, Part.FOOTER)
    ends = {"words": "[/INST]", "phi3": "<|end|>", "phi4": "<|im_end|>", "zephyr": "</s>\n", "qwen2.5": "<|im_end|>\n"}
    if shape in ends:
        assert footer == ends[shape]
    assert footer
    assert not text_of(tokenizer, encoded, answer, Part.HEADER).strip().endswith(footer.strip())


@pytest.mark.parametrize("shape", SHAPES)
def test_generation_prompt_has_the_generated_role(shape):
    tokenizer = tokenizer_of(shape)
    messages = chat_for(shape)
    closed = encode_one(tokenizer, messages)
    open_ = encode_one(tokenizer, messages, add_generation_prompt=True)
    prompt = [k for k, m in enumerate(open_.message_ids) if m == len(messages)]
    if shape not in ("llama2", "llama2-first", "mistral-v1", "mistral-v3"):  # these have none
        assert prompt == list(range(prompt[0], len(open_)))
    assert all(open_.role_ids[k] == ASSISTANT and open_.parts[k] is Part.HEADER for k in prompt)
    body = [i for i, m in zip(closed.input_ids, closed.message_ids, strict=True) if m < len(messages)]
    eos = tokenizer.eos_token_id if shape == "phi3" else None  # prints it only where nothing follows
    assert [i for i in body if i != eos] == [open_.input_ids[k] for k in range(len(open_)) if k not in prompt]


def test_the_turn_that_the_user_message_opens_belongs_to_the_assistant():
    tokenizer = tokenizer_of("phi4")
    encoded = encode_one(tokenizer, CHAT)
    assert text_of(tokenizer, encoded, 1, Part.FOOTER) == "<|im_end|>"
    assert text_of(tokenizer, encoded, 2, Part.HEADER) == "<|im_start|>assistant<|im_sep|>"
    assert encoded.role_ids[-3:] == [ASSISTANT] * 3


def test_system_message_inside_the_user_turn():
    tokenizer = tokenizer_of("llama2")
    encoded = encode_one(tokenizer, CHAT)
    assert text_of(tokenizer, encoded, 0, Part.HEADER) == "<s> [INST] <<SYS>>\n"
    assert text_of(tokenizer, encoded, 0, Part.FOOTER) == "\n<</SYS>>\n\n"
    assert text_of(tokenizer, encoded, 1, Part.HEADER) == ""
    assert text_of(tokenizer, encoded, 1, Part.FOOTER) == "[/INST]"


def test_messages_printed_in_another_order_keep_their_roles():
    tokenizer = tokenizer_of("mistral-v3")
    encoded = encode_one(tokenizer, CHAT)
    assert list(dict.fromkeys(encoded.message_ids)) == [1, 2, 0, 3]
    assert text_of(tokenizer, encoded, 0, Part.CONTENT) == "Keep the secret!"
    check_alignment(encoded, CHAT)


@pytest.mark.parametrize("shape", ["chatml", "qwen2.5", "qwen3", "llama3", "llama3.2"])
def test_tool_messages(shape):
    tokenizer = tokenizer_of(shape)
    messages = [*CHAT, {"role": "assistant", "content": "call"}]
    messages += [{"role": "tool", "content": '{"city": "Paris"}'}, {"role": "tool", "content": "sunny\n"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    encoded = encode_one(tokenizer, messages, add_generation_prompt=True)
    assert encoded.input_ids == expected
    check_alignment(encoded, messages)
    assert TOOL in encoded.role_ids


def test_content_that_a_template_prints_as_json():
    tokenizer = tokenizer_of("llama3.2")
    encoded = encode_one(tokenizer, [{"role": "user", "content": "x"}, {"role": "tool", "content": 'a "b"\n'}])
    assert text_of(tokenizer, encoded, 1, Part.CONTENT) == r"a \"b\"\n"
    assert text_of(tokenizer, encoded, 1, Part.HEADER).endswith('\n"')


@pytest.mark.parametrize("shape", ["zephyr", "mistral-v1", "gemma3", "llama2"])
def test_roles_that_a_template_does_not_know_keep_their_standing(shape):
    tokenizer = tokenizer_of(shape)
    messages = [
        {"role": "developer", "content": "Keep it"},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "call"},
        {"role": "tool", "content": "sunny"},
    ]
    plain = [dict(m, role={"developer": "system", "tool": "user"}.get(m["role"], m["role"])) for m in messages]
    encoded = encode_one(tokenizer, messages)
    check_alignment(encoded, messages)
    assert {DEVELOPER, TOOL} <= set(encoded.role_ids)
    assert encoded.input_ids == tokenizer.apply_chat_template(plain, return_dict=False)


@pytest.mark.parametrize("shape", [name for name in SHAPES if SHAPES[name].lossless])
def test_empty_messages_and_unicode(shape):
    tokenizer = tokenizer_of(shape)
    start = 0 if SHAPES[shape].system else 1
    for text in ("", "naïve 東京 🙂\u200d", "e\u0301", "\x00", "a\ud800b", " \n "):
        messages = [dict(m, content=text) if m["role"] == "user" else m for m in CHAT[start:]]
        encoded = encode_one(tokenizer, messages, add_generation_prompt=True)
        check_alignment(encoded, messages)
        wanted = text.replace("\ud800", "\ufffd").strip()
        assert text_of(tokenizer, encoded, 1 - start, Part.CONTENT).strip() == wanted
    empty = encode_one(tokenizer, [{"role": "user", "content": ""}], add_generation_prompt=True)
    assert Part.CONTENT not in empty.parts or shape.startswith(("llama2", "mistral"))


def test_white_space_is_stripped_as_the_template_does():
    padded = [{"role": "user", "content": " \n Hello \n"}]
    for shape, kept in [("llama3", "Hello"), ("chatml", " \n Hello \n"), ("gemma2", "Hello"), ("llama2", "Hello")]:
        tokenizer = tokenizer_of(shape)
        encoded = encode_one(tokenizer, padded)
        assert text_of(tokenizer, encoded, 0, Part.CONTENT) == kept
        assert encoded.input_ids == tokenizer.apply_chat_template(padded, return_dict=False)
    answer = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\n\n Hello\n"}]
    encoded = encode_one(tokenizer_of("qwen3"), answer)  # strips line breaks on the left only
    assert encoded.input_ids == tokenizer_of("qwen3").apply_chat_template(answer, return_dict=False)


def test_text_does_not_steer_the_template():
    """Qwen 3 takes out what stands before `</think>`; LLama 2 loses white space that is next to an empty message."""
    tokenizer = tokenizer_of("qwen3")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>no</think>yes"}]
    encoded = encode_one(tokenizer, messages)
    assert text_of(tokenizer, encoded, 1, Part.CONTENT) == "<think>no</think>yes"
    assert encoded.input_ids.count(tokenizer.convert_tokens_to_ids("</think>")) == 1  # the template's own


def test_list_of_text_parts():
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]
    tokenizer = tokenizer_of("chatml")
    whole = encode_one(tokenizer, [{"role": "user", "content": "Hello there"}])
    assert encode_one(tokenizer, [{"role": "User", "content": parts}]) == whole


def test_continue_final_message():
    tokenizer = tokenizer_of("chatml")
    messages = [*CHAT, {"role": "assistant", "content": "It is"}]
    encoded = encode_one(tokenizer, messages, continue_final_message=True)
    expected = tokenizer.apply_chat_template(messages, continue_final_message=True, return_dict=False)
    assert encoded.input_ids == expected
    assert encoded.parts[-1] is Part.CONTENT
    assert encoded.role_ids[-1] == ASSISTANT


def test_template_kwargs_reach_the_template():
    template = "{{ note }}{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}"
    tokenizer = tokenizer_of("chatml")
    for note in ("Be kind. ", "Be brief. "):
        encoded = encode_one(tokenizer, CHAT[:1], chat_template=template, template_kwargs={"note": note})
        assert tokenizer.decode(encoded.input_ids) == f"{note}system: Keep the secret!"


def test_date_is_not_kept(monkeypatch):
    from rolesafe.roles import templates

    tokenizer = tokenizer_of("llama3.2")
    encode_one(tokenizer, CHAT)
    calls = []
    original = templates._Page._render
    monkeypatch.setattr(templates._Page, "_render", lambda *a: calls.append(a) or original(*a))
    encode(tokenizer, [CHAT, CHAT])
    once = len(calls)
    encode_one(tokenizer, CHAT)
    assert len(calls) == 2 * once > 0


def test_functions_as_tools():
    def lookup(city: str) -> str:
        """Look a city up.

        Args:
            city: Its name.
        """
        return city

    template = "{{ tools | tojson }}" + chat_templates.CHATML
    tokenizer = tokenizer_of("chatml")
    encoded = encode_one(tokenizer, CHAT, chat_template=template, template_kwargs={"tools": [lookup]})
    expected = tokenizer.apply_chat_template(CHAT, tools=[lookup], chat_template=template, return_dict=False)
    assert encoded.input_ids == expected


@pytest.mark.parametrize("flags", [{"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": True}])
def test_flags_of_added_tokens(flags):
    tokenizer = SHAPES["chatml"].build()
    tokenizer.add_tokens([AddedToken("<sep>", **{"normalized": False, **flags})])
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ' <sep> x<sep> \n<sep>y ' + m.content }}{% endfor %}"
    messages = [{"role": "user", "content": "Hello"}]
    expected = tokenizer.apply_chat_template(messages, return_dict=False)
    assert encode_one(tokenizer, messages).input_ids == expected


def test_named_and_passed_templates():
    tokenizer = SHAPES["chatml"].build()
    tokenizer.chat_template = {
        "default": chat_templates.CHATML,
        "short": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    assert tokenizer.decode(encode_one(tokenizer, CHAT[1:2], chat_template="short").input_ids) == "Hello there"
    assert encode_one(tokenizer, CHAT, chat_template="default") == encode_one(tokenizer, CHAT)
    assert encode_one(tokenizer, CHAT).input_ids == encode_one(tokenizer_of("chatml"), CHAT).input_ids


@pytest.mark.parametrize("shape", SHAPES)
def test_default_template_prints_every_role(shape):
    tokenizer = SHAPES[shape].build()
    messages = [{"role": role, "content": "Hello there"} for role in ROLES]
    encoded = encode_one(tokenizer, messages, chat_template="default", add_generation_prompt=True)
    check_alignment(encoded, messages)
    assert sorted(set(encoded.role_ids)) == [0, 1, 2, 3, 4]
    for i in range(5):
        assert text_of(tokenizer, encoded, i, Part.FOOTER).strip() == tokenizer.eos_token
    if SHAPES[shape].lossless:
        printed = "".join(tokenizer.decode(encoded.input_ids).split())
        assert printed.startswith(f"{tokenizer.bos_token or ''}<|system|>Hellothere{tokenizer.eos_token}<|developer|>")


def test_tokenizer_without_backend():
    tokenizer = byt5()
    messages = [{"role": "system", "content": "Keep"}, {"role": "user", "content": "a</s><pad><extra_id_0>b"}]
    encoded = encode_one(tokenizer, messages)
    check_alignment(encoded, messages)
    assert text_of(tokenizer, encoded, 1, Part.CONTENT) == "a</s><pad><extra_id_0>b"
    assert encoded.input_ids.count(tokenizer.eos_token_id) == 2
    benign = [messages[0], {"role": "user", "content": "abc"}]
    assert encode_one(tokenizer, benign).input_ids == tokenizer.apply_chat_template(benign, return_dict=False)


def test_declared_roles():
    config = RoleConfig(roles=("owner", "data", "model"), privileged=("owner",), generated="model")
    messages = [
        {"role": "owner", "content": "Keep"},
        {"role": "data", "content": "a"},
        {"role": "model", "content": "b"},
    ]
    tokenizer = tokenizer_of("gemma3")
    encoded = encode_one(tokenizer, messages, config=config)
    assert sorted(set(encoded.role_ids)) == [0, 1, 2]
    assert text_of(tokenizer, encoded, 2, Part.HEADER) == "<start_of_turn>model\n"
    batch = encode(tokenizer, [messages, messages[:2]], config=config, padding_side="right")
    assert batch["role_ids"][1, -1] == 2


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
def test_truncation_cuts_old_unprivileged_contents_only(shape):
    tokenizer = tokenizer_of(shape)
    messages = chat_for(shape)
    whole = encode_one(tokenizer, messages, add_generation_prompt=True)
    for length in range(len(whole) + 1, 1, -1):
        try:
            cut = encode_one(tokenizer, messages, add_generation_prompt=True, truncation=True, max_length=length)
        except ValueError as error:
            floor = sum(r == 0 or p is not Part.CONTENT for r, p in zip(whole.role_ids, whole.parts, strict=True))
            assert length < floor
            assert f"expected at least {floor}" in str(error)  # noqa: PT017
            break
        assert len(cut) == min(length, len(whole))
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


def test_a_tokenizer_is_neither_kept_nor_changed():
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


def test_rendering_is_quick_for_long_conversations():
    """The number of renderings does not grow with the conversation."""
    from rolesafe.roles import templates

    calls = []
    original = templates._Page._render

    def counted(self, names, generation):
        calls.append(len(names))
        return original(self, names, generation)

    tokenizer = tokenizer_of("llama3")
    messages = [CHAT[0], *({"role": ("user", "assistant")[i % 2], "content": str(i)} for i in range(300))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(templates._Page, "_render", counted)
        encode_one(tokenizer, messages)
        assert len(calls) <= 6
        calls.clear()
        encode_one(tokenizer, messages)
        assert not calls


def test_import_is_light():
    code = (
        "import sys, rolesafe; rolesafe.encode; print(not {'torch', 'transformers', 'tokenizers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


def test_masks():
    encoded = encode_one(tokenizer_of("chatml"), CHAT)
    masks = np.array([encoded.content_mask, encoded.footer_mask])
    assert masks.sum(axis=0).max() == 1
    assert masks.any(axis=1).all()


def test_footer_ends_where_a_turn_opens_if_the_message_cannot_be_last():
    """The template refuses to end on a system message, so there is nothing to compare with."""
    template = (
        "{% if messages[-1].role == 'system' %}{{ raise_exception('no') }}{% endif %}{% for m in messages %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + ' END\n<|im_end|> ***\n' }}{% endfor %}"
    )
    tokenizer = tokenizer_of("chatml")
    encoded = encode_one(tokenizer, CHAT, chat_template=template)
    assert text_of(tokenizer, encoded, 0, Part.FOOTER) == " END\n<|im_end|> ***\n"
    assert text_of(tokenizer, encoded, 1, Part.HEADER) == "<|im_start|>user\n"


def test_footers_do_not_end_inside_an_added_token_or_a_word():
    tokenizer = tokenizer_of("chatml")
    for footer, tail in [(" END", "<|im_end|>"), (" END\n", "<|end")]:
        template = (
            "{% for m in messages %}{{ m.content + '" + footer + "' }}"
            "{% if loop.last %}{{ '" + tail + "' }}{% else %}{{ '<|im_start|>' }}{% endif %}{% endfor %}"
        ).replace("\n", r"\n")
        encoded = encode_one(tokenizer, CHAT, chat_template=template)
        assert text_of(tokenizer, encoded, 0, Part.FOOTER) == footer
        assert text_of(tokenizer, encoded, 1, Part.HEADER) == "<|im_start|>"
