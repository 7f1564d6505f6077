"""Alignment of ids and roles, equality with `apply_chat_template`, padding, truncation, every template shape."""

import pytest
from tokenizers import AddedToken

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
def test_ids_equal_apply_chat_template(shape, generation):
    tokenizer = tokenizer_of(shape)
    for messages in (chat_for(shape), chat_for(shape)[-1:], chat_for(shape)[-3:]):
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=generation, return_dict=False)
        encoded = encode_one(tokenizer, messages, add_generation_prompt=generation)
        assert encoded.input_ids == expected
        check_alignment(encoded, messages)


@pytest.mark.parametrize("shape", SHAPES)
def test_contents_and_footers_are_separated(shape):
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
def test_generation_prompt_has_generated_role(shape):
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


def test_turn_opened_by_user_message_is_assistants():
    tokenizer = tokenizer_of("phi4")
    encoded = encode_one(tokenizer, CHAT)
    assert text_of(tokenizer, encoded, 1, Part.FOOTER) == "<|im_end|>"
    assert text_of(tokenizer, encoded, 2, Part.HEADER) == "<|im_start|>assistant<|im_sep|>"
    assert encoded.role_ids[-3:] == [ASSISTANT] * 3


def test_system_message_inside_the_user_turn():
    tokenizer = tokenizer_of("llama2")
    encoded = encode_one(tokenizer, CHAT)
    assert text_of(tokenizer, encoded, 0, Part.HEADER) == "<s><<SYS>>\n"
    assert text_of(tokenizer, encoded, 0, Part.FOOTER) == "\n<</SYS>>\n\n"
    assert text_of(tokenizer, encoded, 1, Part.HEADER).strip() == "[INST]"  # the user's opener is the user's
    assert text_of(tokenizer, encoded, 1, Part.FOOTER) == "[/INST]"


def test_reordered_messages_keep_their_roles():
    tokenizer = tokenizer_of("mistral-v3")
    encoded = encode_one(tokenizer, CHAT)
    assert list(dict.fromkeys(encoded.message_ids)) == [1, 2, 3, 0]  # the system message inside the user's turn
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


def test_content_printed_as_json():
    tokenizer = tokenizer_of("llama3.2")
    encoded = encode_one(tokenizer, [{"role": "user", "content": "x"}, {"role": "tool", "content": 'a "b"\n'}])
    assert text_of(tokenizer, encoded, 1, Part.CONTENT) == r"a \"b\"\n"
    assert text_of(tokenizer, encoded, 1, Part.HEADER).endswith('\n"')


@pytest.mark.parametrize("shape", ["zephyr", "mistral-v1", "gemma3", "llama2"])
def test_unsupported_role_keeps_its_role_id(shape):
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


def test_white_space_is_stripped_as_in_template():
    padded = [{"role": "user", "content": " \n Hello \n"}]
    for shape, kept in [("llama3", "Hello"), ("chatml", " \n Hello \n"), ("gemma2", "Hello"), ("llama2", "Hello")]:
        tokenizer = tokenizer_of(shape)
        encoded = encode_one(tokenizer, padded)
        assert text_of(tokenizer, encoded, 0, Part.CONTENT) == kept
        assert encoded.input_ids == tokenizer.apply_chat_template(padded, return_dict=False)
    answer = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\n\n Hello\n"}]
    encoded = encode_one(tokenizer_of("qwen3"), answer)  # strips line breaks on the left only
    assert encoded.input_ids == tokenizer_of("qwen3").apply_chat_template(answer, return_dict=False)


def test_reasoning_equals_template_output():
    """Qwen 3 moves the text before `</think>` to a block of its own."""
    tokenizer = tokenizer_of("qwen3")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>no</think>yes"}]
    encoded = encode_one(tokenizer, messages)
    assert encoded.input_ids == tokenizer.apply_chat_template(messages, return_dict=False)
    assert text_of(tokenizer, encoded, 1, Part.CONTENT) == "noyes"
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


def test_template_kwargs_reach_template():
    template = "{{ note }}{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}"
    tokenizer = tokenizer_of("chatml")
    for note in ("Be kind. ", "Be brief. "):
        encoded = encode_one(tokenizer, CHAT[:1], chat_template=template, template_kwargs={"note": note})
        assert tokenizer.decode(encoded.input_ids) == f"{note}system: Keep the secret!"


def test_date_is_not_cached(monkeypatch):
    from datetime import datetime

    from transformers.utils import chat_template_utils

    tokenizer = tokenizer_of("llama3.2")
    first = encode_one(tokenizer, CHAT)

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 17)

    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    later = encode_one(tokenizer, CHAT)
    assert later.input_ids == tokenizer.apply_chat_template(CHAT, return_dict=False) != first.input_ids


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
