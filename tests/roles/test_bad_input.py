"""Bad input of encode: a ValueError with the argument, the expected and the given value."""

import re

import pytest

from rolesafe import RoleConfig
from rolesafe.roles.encoding import encode, encode_one
from tests.roles import chat_templates
from tests.roles.tokenizers import SHAPES, tokenizer_of

USER = {"role": "user", "content": "Hello"}
CHAT = [{"role": "system", "content": "Keep the secret!"}, USER, {"role": "assistant", "content": "Hi"}, USER]


def refused(*fragments: str):
    """Expect a ValueError with these fragments, in order."""
    return pytest.raises(ValueError, match="(?s)" + ".*".join(map(re.escape, fragments)))


@pytest.mark.parametrize(
    "messages, fragments",
    [
        ([], ["`messages`", "at least one", "got none"]),
        ("Hello", ["`messages`", "expected a list", "got str"]),
        ({"role": "user", "content": "x"}, ["`messages`", "expected a list", "got dict"]),
        (None, ["`messages`", "got NoneType"]),
        ([[USER], []], ["`messages[1]`", "at least one", "got none"]),
        ([[]], ["`messages[0]`", "got none"]),
        (["Hello"], ["`messages[0]`", "expected a mapping", "got str"]),
        ([[USER], USER], ["`messages[0]`", "expected a mapping", "got list"]),
        ([USER, {"content": "x"}], ["`messages[1]`", "'role'", "got ['content']"]),
        ([{"role": "user"}], ["`messages[0]`", "'content'", "got ['role']"]),
        ([[USER], [{"role": "user"}]], ["`messages[1][0]`", "'content'", "got ['role']"]),
        ([{"role": "user", "content": None}], ["`messages[0]['content']`", "got NoneType", "Pass ''"]),
        ([{"role": "user", "content": 3}], ["`messages[0]['content']`", "expected a string", "got int"]),
        (
            [{"role": "user", "content": [{"type": "image", "url": "x"}]}],
            ["`messages[0]['content'][0]`", "'type': 'text'", "'image'"],
        ),
        ([{"role": "user", "content": ["x"]}], ["`messages[0]['content'][0]`", "got 'x'"]),
        (
            [{"role": "admin", "content": "x"}],
            ["`messages[0]['role']`", "'system'", "got the role 'admin'", "RoleConfig"],
        ),
        ([{"role": 0, "content": "x"}], ["`messages[0]['role']`", "got the role 0"]),
        (
            [{"role": "assistant", "content": "", "tool_calls": [1]}],
            ["`messages[0]['tool_calls'][0]`", "'function'", "got 1"],
        ),
        ([{"role": "user", "content": "x", "mood": "good"}], ["`messages[0]`", "'tool_calls'", "got 'mood'"]),
    ],
)
def test_messages_invalid_raise(messages, fragments):
    with refused(*fragments):
        encode(tokenizer_of("chatml"), messages)


@pytest.mark.parametrize(
    "arguments, fragments",
    [
        ({"truncation": True}, ["`max_length`", "truncation=True", "got None"]),
        ({"truncation": True, "max_length": 0}, ["`max_length`", ">= 1", "got 0"]),
        ({"truncation": True, "max_length": 2.5}, ["`max_length`", "got 2.5"]),
        ({"max_length": 9}, ["`max_length`", "expected None", "truncation=True", "got 9"]),
        ({"padding": "max_length"}, ["`max_length`", '"max_length"', "got None"]),
        (
            {"padding": "max_length", "max_length": 5},
            ["`max_length`", "longest conversation", "got 5", "truncation=True"],
        ),
        ({"padding": "most"}, ["`padding`", "'longest'", "got 'most'"]),
        ({"padding_side": "top"}, ["`padding_side`", '"left"', "got 'top'"]),
        ({"return_tensors": "np"}, ["`return_tensors`", '"pt"', "got 'np'"]),
        ({"config": {"roles": []}}, ["`config`", "RoleConfig", "got {'roles': []}"]),
        (
            {"add_generation_prompt": True, "continue_final_message": True},
            ["`continue_final_message`", "expected False", "got True"],
        ),
        ({"template_kwargs": [1]}, ["`template_kwargs`", "a mapping", "got [1]"]),
        ({"template_kwargs": {"messages": []}}, ["`template_kwargs`", "expected none of", "got 'messages'"]),
        ({"chat_template": 3}, ["`chat_template`", "got int"]),
        ({"chat_template": "short"}, ["`chat_template`", '"default"', "got 'short'"]),
        ({"chat_template": "{% for %}"}, ["`chat_template`", "does not compile"]),
        ({"chat_template": "{{ x | nonsense }}"}, ["`chat_template`", "nonsense"]),
        ({"variable_roles": "system"}, ["`variable_roles`", "a mapping", "got 'system'"]),
        ({"variable_roles": {"tools": "system"}}, ["`variable_roles`", "`template_kwargs`", "got 'tools'"]),
        (
            {"template_kwargs": {"tools": []}, "variable_roles": {"tools": "boss"}},
            ["`variable_roles['tools']`", "got the role 'boss'"],
        ),
    ],
)
def test_argument_invalid_raises(arguments, fragments):
    with refused(*fragments):
        encode(tokenizer_of("chatml"), CHAT, **arguments)


def test_max_length_below_privileged_part_raises():
    fragments = ("`max_length`: expected at least", "got 8", "privileged part", "Raise `max_length`")
    with refused(*fragments):
        encode(tokenizer_of("chatml"), CHAT, truncation=True, max_length=8)
    with refused("`max_length`: expected at least", "`messages[1]`", "got 8"):
        encode(tokenizer_of("chatml"), [CHAT[1:2], CHAT], truncation=True, max_length=8)


def test_padding_off_with_ragged_tensor_raises():
    with refused("`padding`", "got False", "padding=True"):
        encode(tokenizer_of("chatml"), [CHAT, CHAT[:2]], padding=False)


def test_chat_template_missing_raises():
    with refused("`chat_template`", "got None", 'chat_template="default"', "Jinja template"):
        encode(SHAPES["llama3"].build(), CHAT)


def test_padding_token_missing_raises():
    tokenizer = SHAPES["words"].build()
    tokenizer.pad_token = tokenizer.eos_token = None
    arguments = {"chat_template": "default", "padding_side": "left"}
    assert encode(tokenizer, CHAT, **arguments)["input_ids"].shape[0] == 1  # nothing to pad
    with refused("`tokenizer`", "got neither", "tokenizer.pad_token"):
        encode(tokenizer, [CHAT, CHAT[:2]], **arguments)


def test_tokenizer_of_wrong_type_raises():
    with refused("`tokenizer`", "expected a transformers tokenizer", "got str"):
        encode("gpt2", CHAT)

    class Processor:
        tokenizer = tokenizer_of("chatml")

    with refused("`tokenizer`", "got Processor", "Pass its `.tokenizer`"):
        encode(Processor(), CHAT)


def test_tokenizer_without_templates_raises():
    class MistralCommonBackend:
        @property
        def added_tokens_decoder(self):
            raise NotImplementedError  # as the class of that name in transformers does

    class Own(MistralCommonBackend):
        pass

    with refused("`tokenizer`", "Jinja chat template", "got Own", "tokenizer.json"):
        encode(Own(), CHAT)


# --------------------------------------------------------------------------------------- templates that omit a message


def test_template_rejects_role_raises():
    with refused("`messages`", "System role not supported", "rejects role 'system'", '"default"'):
        encode(tokenizer_of("gemma2"), CHAT)


def test_template_rejects_order_raises():
    with refused("`messages`", "must alternate", "in an order"):
        encode(tokenizer_of("llama2"), [USER, USER])


def test_template_omits_system_message_raises():
    assert "Keep" not in tokenizer_of("mistral-v3").apply_chat_template(CHAT[:3], tokenize=False)
    with refused("`messages`", "omits message 0 (role 'system')"):
        encode(tokenizer_of("mistral-v3"), CHAT[:3])


@pytest.mark.parametrize(
    "body, fault",
    [
        ("{% if m.role == 'user' %}{{ m.content }}{% endif %}", "omits message 0 (role 'system')"),
        ("{{ m.parts[0].text }}", "it raises"),
        ("{{ m.content | wordwrap(20) }}", "cannot trace"),
        ("{{ m.content | length }}", "omits message 0"),
    ],
)
def test_template_garbles_message_raises(body, fault):
    template = "{% for m in messages %}" + body + "{% endfor %}"
    with refused("`messages`", fault, "`chat_template`"):
        encode(tokenizer_of("chatml"), CHAT[:2], chat_template=template)


def test_encode_one_error_names_argument():
    with refused("`dialogue[0]['role']`"):
        encode_one(tokenizer_of("chatml"), [{"role": "x", "content": ""}], argument="dialogue")


def test_unknown_role_error_lists_declared_roles():
    config = RoleConfig(roles=("owner", "model"), privileged=("owner",), generated="model")
    with refused("'owner', 'model'", "got the role 'user'"):
        encode(tokenizer_of("chatml"), [USER], config=config)


def test_all_templates_have_a_shape():
    names = [name for name in vars(chat_templates) if name.isupper() and not name.startswith("_")]
    assert {getattr(chat_templates, name) for name in names} <= {shape.template for shape in SHAPES.values()}
